"""Crop geometry: the one definition that alignment, training, exporting and running share.

Points are (x, y) in pixel-index coordinates, as in `cv2.warpAffine`: the centre of the top left pixel is (0, 0).
The aligned crop is a square of `CROP_SIZE` pixels in the FFHQ template. The identity encoder wants the ArcFace template
at 112 pixels; on an aligned crop that is one fixed scale and shift, so it is two small constant matrices and can live
inside a graph.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

CROP_SIZE = 256
"""Side of the aligned crop in pixels."""

CROP_TEMPLATE = "ffhq"
"""Name of the alignment that `CROP_SIZE` and `FIVE_POINTS` belong to."""

FIVE_POINTS = ((95.9, 120.2), (160.1, 119.8), (128.3, 159.5), (97.9, 185.9), (158.3, 186.0))
"""Mean (x, y) in the aligned crop of: eye on the left of the picture, eye on the right, nose tip, mouth corner on the
left of the picture, mouth corner on the right. Measured on generated faces; single faces differ by 1 to 5 px, the nose
by 8."""

IDENTITY_SIZE = 112
"""Side in pixels of what the identity encoder looks at."""

IDENTITY_SCALE = 0.5677
IDENTITY_SHIFT = (-17.0, -15.4)
"""ArcFace placement: a point p of the aligned crop lies at `IDENTITY_SCALE * p + IDENTITY_SHIFT` (x, y)."""


def to_identity(points: ArrayLike) -> NDArray[np.float64]:
    """Map points [..., 2] (x, y) of the aligned crop to points of the identity encoder's 112 px view."""
    return IDENTITY_SCALE * np.asarray(points, np.float64) + np.asarray(IDENTITY_SHIFT)


def resample_matrix(
    out_size: int, in_size: int, scale: float | None = None, shift: float | None = None
) -> NDArray[np.float32]:
    """Return a matrix float32 [out_size, in_size] that resamples one axis; every row sums to 1.

    Index i of the input lands at `scale * i + shift` of the output. Without `scale` and `shift` the whole axis is
    resized (the outer edges of the first and last pixel stay on each other). The filter is a triangle, one input pixel
    wide when enlarging and one output pixel wide when reducing, so reducing does not alias. Beyond the border
    the outermost pixel is repeated. Scale 1 and shift 0 give the identity matrix.

    Raises ValueError for sizes below 1 or a scale that is not positive.
    """
    if scale is None:
        scale = out_size / in_size
        shift = (scale - 1) / 2 if shift is None else shift
    shift = 0.0 if shift is None else shift
    if out_size < 1 or in_size < 1 or not scale > 0:
        raise ValueError(f"cannot resample {in_size} to {out_size} pixels with scale {scale}")
    reach = max(1.0, 1 / scale)
    matrix = np.zeros((out_size, in_size))
    for row in range(out_size):
        centre = (row - shift) / scale
        taps = np.arange(np.floor(centre - reach), np.ceil(centre + reach) + 1)
        weights = np.maximum(0, 1 - np.abs(taps - centre) / reach)
        np.add.at(matrix[row], np.clip(taps, 0, in_size - 1).astype(int), weights / weights.sum())
    return matrix.astype(np.float32)


@cache
def identity_matrices() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return (rows, columns), each float32 [112, 256]: `rows @ channel @ columns.T` is the identity encoder's view of
    an aligned crop channel [256, 256]. Read-only."""
    rows = resample_matrix(IDENTITY_SIZE, CROP_SIZE, IDENTITY_SCALE, IDENTITY_SHIFT[1])
    columns = resample_matrix(IDENTITY_SIZE, CROP_SIZE, IDENTITY_SCALE, IDENTITY_SHIFT[0])
    rows.flags.writeable = columns.flags.writeable = False
    return rows, columns


def identity_view(crop: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return what the identity encoder sees, float32 [batch, 112, 112, 3], of crops uint8 [batch, 256, 256, 3]; same
    colour order and 0..255 range. The reference that the graph and the torch module are tested against."""
    rows, columns = identity_matrices()
    return np.einsum("ah,nhwc,bw->nabc", rows, crop.astype(np.float32), columns, optimize=True)
