"""Paste-back: the composed head put into the frame that it came from, without a seam and without flicker.

The composition is an aligned crop, so the inverse of the alignment takes it home. Three things hide the edge:

- feathering: the opacity falls from 1 to 0 over a band along a rounded square just inside the crop, so that the whole
  head, hair included, is inside of it;
- colour matching at the border: the difference between frame and composition in that band is carried inwards to what
  is near and of the same colour in the composition (a joint bilateral filter, Petschnigg et al. 2004, on a grid of
  24 x 24), so that the generated wall takes the colour of the real one up to the hair, and the face keeps its own;
- a memory: that difference is averaged over some frames, so that noise in the band does not make the head pulse. The
  mask itself is fixed in the crop and moves with the alignment, which is smoothed already.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import cv2
import numpy as np

from .align import Alignment, transform

EDGE = 0.02  # the opacity reaches 0 this far inside the crop, in sides of the crop: a composition is worst at its edge
FEATHER = 0.11  # width of the band in which it rises to 1, in sides of the crop
ROUNDNESS = 3.6  # exponent of the superellipse |x|^n + |y|^n = 1: 2 is a circle, infinity a square
GRID = 24  # cells a side: colours are matched at this coarseness
NEAR = 0.13  # sides of the crop; how far inwards a difference is carried (standard deviation)
ALIKE = 28.0  # 0..255; how much a colour may differ from the band's to take part (standard deviation)
SAME = 65.0  # 0..255; a larger difference is no shade of one thing but hair against wall: it counts little
REACH = 0.13, 0.33  # sides of the crop; in full as far in as the first, not at all beyond the second: the face is there
TRACE = 1.5  # so little trust around, in cells, and nothing is corrected
MEMORY_S = 0.25  # seconds; time constant of the average of the difference
DOUBLE_FROM = 0.75  # px of the frame for one of the composition, from which it is doubled first
SHARPEN = np.array([-0.04, 1.08, -0.04], np.float32)  # along both axes; as much as linear interpolation then blurs
CUT = 45.0  # 0..255; a mean jump of the difference beyond it is a cut to another scene, and nothing is remembered


MASKS = ("head", "face", "square")
"""What of a composition is pasted: head and hair, the face within the driver's hair, or all of it with a soft edge."""


class AnyPaster(Protocol):
    """What puts composed heads into frames: `Paster`, or `head.HeadPaster`."""

    state: Any
    """What it remembers, a dataclass; may be set to what another one of its kind remembered."""

    def paste(
        self,
        image: np.ndarray,
        composed: np.ndarray,
        alignment: Alignment,
        *,
        step_s: float = 1 / 25,
        crop: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return a copy of the frame with the composed head; see `Paster.paste`."""
        ...

    def look(
        self, image: np.ndarray, alignment: Alignment, *, step_s: float = 1 / 25, crop: np.ndarray | None = None
    ) -> None:
        """Remember of a frame what does not come from the composition and lasts longer than seconds."""
        ...

    def reset(self) -> None:
        """Forget former frames."""
        ...


@dataclass(frozen=True)
class PasteState:
    """What a paster remembers."""

    difference: np.ndarray | None = None  # float32 [GRID, GRID, 3]: frame less composition, averaged over time


class Paster:
    """Paste one head, frame after frame. One for each face of a clip; `reset` before another clip. `state` is what it
    remembers, and may be set to what another paster remembered.

    paster = Paster()
    frame = paster.paste(frame, composed, alignment)
    """

    def __init__(self, *, exact: bool = False) -> None:
        """`exact`: by cubic interpolation, for single pictures; else as `put_back` does it, in half the time."""
        self.state = PasteState()
        self._exact = exact

    def look(
        self, image: np.ndarray, alignment: Alignment, *, step_s: float = 1 / 25, crop: np.ndarray | None = None
    ) -> None:
        """See `AnyPaster.look`: nothing here lasts so long."""

    def reset(self) -> None:
        """Forget the colours of former frames."""
        self.state = PasteState()

    def paste(
        self,
        image: np.ndarray,
        composed: np.ndarray,
        alignment: Alignment,
        *,
        step_s: float = 1 / 25,
        crop: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return a copy of the frame with the composed head in the place of its own.

        `image` is RGB uint8 [height, width, 3], the frame; `composed` RGB uint8 [R, R, 3] of any R, the composition of
        the crop that `alignment` cuts from it. `step_s` is the time since the last frame, in seconds. `crop`, the
        aligned crop RGB uint8 [size, size, 3], saves cutting it again.
        """
        crop = alignment.crop(image) if crop is None else crop
        difference, former = coarse(crop) - coarse(composed), self.state.difference
        if former is not None and np.abs(difference - former).mean() < CUT:
            difference = former + (difference - former) * (1 - np.exp(-step_s / MEMORY_S))
        self.state = PasteState(difference)
        side = composed.shape[0]
        matched = match_border(composed, difference)
        framing, mask = alignment.resized(side), head_mask(side)
        return framing.paste(image, matched, mask) if self._exact else put_back(image, matched, framing, mask)


def put_back(
    image: np.ndarray,
    crop: np.ndarray,
    alignment: Alignment,
    mask: np.ndarray,
    *,
    soft: bool = False,
    copy: bool = True,
) -> np.ndarray:
    """Return a copy of the frame uint8 [height, width, 3] with an aligned crop uint8 [size, size, 3] where it came
    from.

    `mask` float32 [size, size], 0..1, is the crop's opacity. Colours, multiplied by it, and opacity are resampled
    together as four channels, for which OpenCV has its quickest code. Where the crop grows, it is sharpened a little
    and doubled first, and linear interpolation from there looks like cubic (48 dB) in a quarter of the time; `soft`
    leaves that out, for what has no detail. Without `copy` the frame itself is changed.
    """
    height, width = image.shape[:2]
    opacity = np.rint(255 * mask).astype(np.uint8)
    result = image.copy() if copy else image
    columns, rows = np.flatnonzero(opacity.any(axis=0)), np.flatnonzero(opacity.any(axis=1))
    if not columns.size:
        return result
    grown = alignment.side_px / alignment.size
    reach = 1 + 1 / min(grown, 1.0)  # px of the crop, of the interpolation
    across, down = ((at[0] - reach, at[-1] + reach) for at in (columns, rows))
    around = transform(alignment.inverse, np.array([(x, y) for x in across for y in down]))
    left, top = np.clip(np.floor(around.min(axis=0)).astype(int), 0, (width, height))
    right, bottom = np.clip(np.ceil(around.max(axis=0)).astype(int) + 1, 0, (width, height))
    if left >= right or top >= bottom:
        return result
    side = alignment.size
    if grown > DOUBLE_FROM and not soft:  # apart: multiplied, colours would overshoot at a hard edge of the opacity
        side = 2 * alignment.size
        crop = cv2.resize(cv2.sepFilter2D(crop, -1, SHARPEN, SHARPEN), (side, side), interpolation=cv2.INTER_CUBIC)
        opacity = cv2.resize(opacity, (side, side), interpolation=cv2.INTER_LINEAR)
    colours = cv2.multiply(crop, cv2.cvtColor(opacity, cv2.COLOR_GRAY2RGB), scale=1 / 255)
    layers = cv2.merge([colours, opacity])
    if grown < 0.5:
        side = max(1, alignment.size // int(1 / grown))
        layers = cv2.resize(layers, (side, side), interpolation=cv2.INTER_AREA)
    home = alignment.resized(side).inverse - np.array([[0, 0, left], [0, 0, top]])
    layers = cv2.warpAffine(layers, home, (right - left, bottom - top), flags=cv2.INTER_LINEAR)
    behind = cv2.cvtColor(cv2.bitwise_not(layers[..., 3]), cv2.COLOR_GRAY2RGB)
    region = result[top:bottom, left:right]
    region[:] = cv2.add(cv2.cvtColor(layers, cv2.COLOR_RGBA2RGB), cv2.multiply(region, behind, scale=1 / 255))
    return result


@cache
def head_mask(side: int) -> np.ndarray:
    """Return the opacity of the head in an aligned crop, float32 [side, side], 0..1, read-only: 1 inside, 0 at the
    edge."""
    mask = smoothstep(_depth(side) / FEATHER)
    mask.flags.writeable = False
    return mask


def match_border(composed: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """Return `composed` uint8 [R, R, 3] with its border, and what is near and looks like it, in the colours of the
    frame.

    `difference` is float32 [GRID, GRID, 3]: frame less composition.
    """
    band, nearness, fade = _band()
    cells = coarse(composed).reshape(-1, 3)
    witness, change = cells[band], difference.reshape(-1, 3)[band]
    distance = (cells**2).sum(1)[:, None] + (witness**2).sum(1)[None] - 2 * cells @ witness.T
    trust = np.exp(-(change**2).mean(1) / SAME**2)
    weight = np.exp(distance * (-0.5 / (3 * ALIKE**2))) * nearness * trust
    field = fade * (weight @ change) / (weight.sum(axis=1, keepdims=True) + TRACE)
    side = composed.shape[0]
    full = cv2.resize(field.astype(np.float32).reshape(GRID, GRID, 3), (side, side), interpolation=cv2.INTER_LINEAR)
    return cv2.add(composed, full, dtype=cv2.CV_8U)


def coarse(crop: np.ndarray) -> np.ndarray:
    """Return means over the cells of the grid: uint8 [R, R, 3] -> float32 [GRID, GRID, 3], 0..255."""
    return cv2.resize(crop.astype(np.float32), (GRID, GRID), interpolation=cv2.INTER_AREA)


def smoothstep(t: np.ndarray) -> np.ndarray:
    """Return 0 below 0, 1 above 1, and 3 t^2 - 2 t^3 between: float32."""
    t = np.clip(t, 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)


@cache
def _band() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The cells of the band, int [n]; how near each is to every cell, float32 [GRID * GRID, n]; and how much of the
    match a cell gets, float32 [GRID * GRID, 1]."""
    depth = _depth(GRID).ravel()
    band = np.flatnonzero((depth > -EDGE) & (depth < FEATHER))
    places = np.indices((GRID, GRID)).reshape(2, -1).T / GRID
    squared = ((places[:, None] - places[band][None]) ** 2).sum(-1)
    fade = smoothstep((REACH[1] - depth) / (REACH[1] - REACH[0]))[:, None]
    return band, np.exp(-0.5 * squared / NEAR**2).astype(np.float32), fade


def _depth(side: int) -> np.ndarray:
    """How far each pixel lies inside of the rounded square, in sides of the crop; < 0 outside. [side, side]"""
    axis = np.abs((np.arange(side) + 0.5) / side - 0.5)
    x, y = np.meshgrid(axis, axis)
    return 0.5 - EDGE - (x**ROUNDNESS + y**ROUNDNESS) ** (1 / ROUNDNESS)
