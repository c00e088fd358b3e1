"""Paste-back: the composed head put into the frame that it came from, without a seam and without flicker.

The composition is an aligned crop, so the inverse of the alignment takes it home. Three things hide the edge:

- feathering: the opacity falls from 1 to 0 over a band along a rounded square just inside the crop, so that the whole
  head, hair included, is inside of it;
- colour matching at the border: in that band, the smooth part of the difference between frame and composition is added
  to the composition, fading out towards the face, so that the two backgrounds meet in one colour and the face keeps its
  own. This is the membrane of Perez et al. 2003 ("Poisson image editing"), solved coarsely on a grid of 32 x 32;
- a memory: that difference is averaged over some frames, so that noise in the band does not make the head pulse. The
  mask itself is fixed in the crop and moves with the alignment, which is smoothed already.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

from .align import Alignment

EDGE = 0.02  # the opacity reaches 0 this far inside the crop, in sides of the crop: a composition is worst at its edge
FEATHER = 0.11  # width of the band in which it rises to 1, in sides of the crop
ROUNDNESS = 3.6  # exponent of the superellipse |x|^n + |y|^n = 1: 2 is a circle, infinity a square
GRID = 32  # cells a side: the colours of the band are matched at this coarseness
REACH = 0.30  # how far inwards the matching fades out, in sides of the crop: it ends before the cheeks
SPREAD = 1.6  # cells; the Gaussian that carries a difference along the band
SAME = 55.0  # 0..255; a larger difference is no shade of one thing but hair against wall: it counts little
TRACE = 0.02  # so little trust around, and nothing is corrected
MEMORY_S = 0.25  # seconds; time constant of the average of the difference
CUT = 45.0  # 0..255; a mean jump of the difference beyond it is a cut to another scene, and nothing is remembered


class Paster:
    """Pastes one head, frame after frame. One for each face of a clip; `reset` before another clip.

    paster = Paster()
    frame = paster.paste(frame, composed, alignment)
    """

    def __init__(self) -> None:
        self._difference: np.ndarray | None = None  # float32 [GRID, GRID, 3], remembered

    def reset(self) -> None:
        """Forget the colours of former frames."""
        self._difference = None

    def paste(
        self,
        image: np.ndarray,
        composed: np.ndarray,
        alignment: Alignment,
        *,
        step_s: float = 1 / 25,
        crop: np.ndarray | None = None,
    ) -> np.ndarray:
        """A copy of the frame with the composed head in the place of its own.

        `image` is RGB uint8 [height, width, 3], the frame; `composed` RGB uint8 [R, R, 3] of any R, the composition of
        the crop that `alignment` cuts from it. `step_s` is the time since the last frame, in seconds. `crop`, the
        aligned crop RGB uint8 [size, size, 3], saves cutting it again.
        """
        crop = alignment.crop(image) if crop is None else crop
        difference = coarse(crop) - coarse(composed)
        if self._difference is not None and np.abs(difference - self._difference).mean() < CUT:
            difference = self._difference + (difference - self._difference) * (1 - np.exp(-step_s / MEMORY_S))
        self._difference = difference
        side = composed.shape[0]
        return alignment.resized(side).paste(image, match_border(composed, difference), head_mask(side))

    def state(self) -> dict[str, np.ndarray]:
        """What it remembers of former frames, as arrays; `restore` takes it back."""
        return {} if self._difference is None else {"difference": self._difference}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Remember what `state` gave."""
        self._difference = state.get("difference")


@cache
def head_mask(side: int) -> np.ndarray:
    """The opacity of the head in an aligned crop, float32 [side, side], 0..1, read-only: 1 inside, 0 at the edge."""
    mask = smoothstep(_depth(side) / FEATHER)
    mask.flags.writeable = False
    return mask


def match_border(composed: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """`composed` uint8 [R, R, 3] with its border brought to the colours of the frame.

    `difference` is float32 [GRID, GRID, 3]: frame less composition. What lies in the band is spread along it and added,
    in full at the edge of the mask and not at all beyond `REACH` inwards.
    """
    band, fade = _band()
    trust = band * np.exp(-((difference**2).mean(axis=2, keepdims=True)) / SAME**2)
    spread = cv2.GaussianBlur(difference * trust, (0, 0), SPREAD, borderType=cv2.BORDER_CONSTANT)
    weight = cv2.GaussianBlur(trust, (0, 0), SPREAD, borderType=cv2.BORDER_CONSTANT)[..., None]
    field = spread / (weight + TRACE) * fade
    side = composed.shape[0]
    full = cv2.resize(field, (side, side), interpolation=cv2.INTER_LINEAR)
    return cv2.add(composed, full, dtype=cv2.CV_8U)


def coarse(crop: np.ndarray) -> np.ndarray:
    """Means over the cells of the grid: uint8 [R, R, 3] -> float32 [GRID, GRID, 3], 0..255."""
    return cv2.resize(crop.astype(np.float32), (GRID, GRID), interpolation=cv2.INTER_AREA)


def smoothstep(t: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, and 3 t^2 - 2 t^3 between: float32."""
    t = np.clip(t, 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)


@cache
def _band() -> tuple[np.ndarray, np.ndarray]:
    """Weight of each cell as a witness of the border, float32 [GRID, GRID, 1], and how much of the match it gets."""
    depth = _depth(GRID)
    witness = ((depth > -EDGE) & (depth < FEATHER)).astype(np.float32)[..., None]
    return witness, smoothstep(1 - depth / REACH)[..., None]


def _depth(side: int) -> np.ndarray:
    """How far each pixel lies inside of the rounded square, in sides of the crop; < 0 outside. [side, side]"""
    axis = np.abs((np.arange(side) + 0.5) / side - 0.5)
    x, y = np.meshgrid(axis, axis)
    return 0.5 - EDGE - (x**ROUNDNESS + y**ROUNDNESS) ** (1 / ROUNDNESS)
