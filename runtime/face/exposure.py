"""The exposure of an identity photo: the light of a picture comes from the attribute photo, not from this one."""

from __future__ import annotations

from functools import cache

import numpy as np

from .crop import CROP_SIZE

FACE_CENTRE, FACE_RADII = (128, 135), (60, 75)  # px of the aligned crop, (x, y): an oval inside the face
HIGHLIGHT = 95  # percentile of the face's luma
DARK = 105.0  # 0..255; a face whose highlights are darker was in the shade, whatever its skin: 5 of 64 photographs
MOST = 2.0  # times as bright, at most
LUMA = (0.299, 0.587, 0.114)  # of R, G, B


def exposed(crop: np.ndarray) -> np.ndarray:
    """Return an aligned crop RGB uint8 [256, 256, 3] of a face in the shade as if it had had more light; any other as
    it is.

    Highlights tell light from skin: dark skin in good light has bright ones. The curve x -> 1 - (1 - x)^g multiplies
    dark values by g and burns no bright ones.
    """
    face = crop[_inside()] @ np.array(LUMA)
    gain = min(DARK / max(float(np.percentile(face, HIGHLIGHT)), 1.0), MOST)
    if gain <= 1:
        return crop
    curve = np.rint(255 * (1 - (1 - np.arange(256) / 255) ** gain)).astype(np.uint8)
    return curve[crop]


@cache
def _inside() -> np.ndarray:
    """Whether a place of the crop is inside the face: bool [256, 256], read-only."""
    y, x = np.mgrid[:CROP_SIZE, :CROP_SIZE]
    (cx, cy), (rx, ry) = FACE_CENTRE, FACE_RADII
    inside = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
    inside.flags.writeable = False
    return inside
