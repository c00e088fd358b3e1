"""Put in the composed head and hair alone, and take away what of the driver's head would show beside it.

What is what in the frame and in the composition tells a small network (`parts`). From the back to the front lie: the
frame; where the driver's head was, what is behind it, known from former frames or carried in from around; the driver's
neck in the colour of the new skin; the composed head; and what stood before the driver's face in the frame. The driver
is looked at in a wider view than the aligned crop, since long hair reaches beyond it. All else of the frame stays as it
is, to the last bit.

In a clip the network looks at the driver and at the composition in turns, every few frames, and sooner where something
moves beside the face; meanwhile what was seen moves along with the head, because all of it lies in the aligned crop.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import cv2
import numpy as np

from .align import Alignment
from .crop import CROP_SIZE
from .parts import BACKGROUND, BODY, FACE, HAIR, NECK, OCCLUDER, PARTS, PARTS_SIDE, WIDER, FindParts
from .paste import EDGE as MARGIN
from .paste import ROUNDNESS, put_back, smoothstep

MEMORY_S = 0.08  # seconds; time constant of the average of the parts
LOOK_EVERY = 8  # frames; so often the driver is looked at whatever moves, and half as much later the composition
GRID = 16  # cells a side of the crop, in which is seen whether something moved
MOVED = 24.0  # 0..255; a cell beside the face that differs by more from when it was looked at has moved
CUT = 0.07  # 0..1; a mean change of the parts beyond it is another scene
# px of 128 of the wide view, in clips and in single pictures: the driver's hair is taken away with so wide an edge, and
# so far from everybody the wall is what it seems. A clip shows later what is behind, and keeps every shadow of hair.
AROUND, APART = (17, 9), (13, 5)
NECK_COUNTS = 0.25  # how much the neck takes part in what is behind hair; the rest of the body takes 1
FADE = 0.86, 0.98  # sides of the crop from the top, between which the neck goes over into the frame's own colour
GAIN = 0.4, 2.5  # the neck's colour is changed by factors between these
PLATE_ERROR = 10.0  # 0..255; where what is behind is seen otherwise than remembered, the camera has moved
PLATE_RATE = 0.2  # how much of it a frame renews
ROUND_ABOVE = 2.2  # exponent of the superellipse that ends a head above; see `paste.ROUNDNESS` for below
FEATHER = 0.05  # sides of the crop, over which a composed head ends that the crop cuts
EDGE = 0.03  # sides of the wide view, over which what is taken away ends at its border


@dataclass(frozen=True)
class HeadState:
    """What a head paster remembers."""

    frames: int = 0  # so many were pasted
    looked: np.ndarray | None = None  # int64 [2], at which of them driver and composition were looked at
    cells: np.ndarray | None = None  # float32 [2, GRID, GRID, 3], crop and composition as they were then
    parts: np.ndarray | None = None  # float32 [2, 6, 128, 128], of wide view and composition, averaged over time
    filling: np.ndarray | None = None  # uint8 [128, 128, 4]: RGB and opacity of what is behind the driver's head
    gain: np.ndarray | None = None  # float32 [3], from the driver's skin to the new one
    inside: np.ndarray | None = None  # uint8 [128, 128, 3], the composition's colours carried out of its head
    plate: np.ndarray | None = None  # float32 [h, w, 4]: what is behind, RGB times how well known, and how well known
    scale: float = 1.0  # px of the plate for one of the frame


@dataclass(frozen=True)
class _Cover:
    """Where a composed head and the neck below it lie, of parts that have not changed since; all float32 [S, S]."""

    parts: np.ndarray  # float32 [2, 6, 128, 128]
    side: int  # S, px
    driver: np.ndarray  # float32 [6, 128, 128], the driver's parts in the aligned crop
    new: np.ndarray  # the composed head
    below: np.ndarray  # the neck below it
    sure: np.ndarray  # where the head's own colours are good
    opacity: np.ndarray

    @classmethod
    def of(cls, parts: np.ndarray, side: int) -> _Cover:
        """Return the cover of parts, for compositions of `side` px."""
        driver, head = _middle(parts[0]), parts[1]
        neck = head[NECK] * np.minimum(driver[NECK] + driver[FACE] + driver[HAIR], 1)
        height = (np.arange(PARTS_SIDE, dtype=np.float32)[:, None] + 0.5) / PARTS_SIDE
        skin = driver[NECK] * smoothstep((FADE[1] - height) / (FADE[1] - FADE[0]))
        maps = np.dstack((_firm(head[FACE] + head[HAIR] + neck), skin, 1 - _before(driver)))
        new, skin, free = cv2.split(cv2.resize(maps, (side, side), interpolation=cv2.INTER_LINEAR))
        below = (1 - new) * skin
        # What is not sure is mixed with what was behind it: it takes the colour of the rest.
        sure = smoothstep((new - 0.5) / 0.4)
        return cls(parts, side, driver, new, below, sure, (new + below) * free * _reach(side))

    def colours(self, crop: np.ndarray, composed: np.ndarray, inside: np.ndarray, gain: np.ndarray) -> np.ndarray:
        """Return what is put in, uint8 [S, S, 3], of the frame's crop and the composition [S, S, 3]; `inside`: the
        composition's colours carried out of the head, [128, 128, 3]."""
        wide = cv2.resize(inside, (self.side, self.side), interpolation=cv2.INTER_LINEAR)
        clean = cv2.blendLinear(composed, wide, self.sure, 1 - self.sure)
        return cv2.blendLinear(clean, cv2.transform(crop, np.diag(gain)), self.new, self.below)


class HeadPaster:
    """Paste one head, frame after frame, as `paste.Paster` does and with its interface."""

    def __init__(self, find_parts: FindParts, *, face_only: bool = False, still: bool = False) -> None:
        """`face_only`: the composed face alone, within the driver's own hair. `still`: single pictures, in full detail
        and with no memory."""
        self.state = HeadState()
        self._find, self._face_only, self._still = find_parts, face_only, still
        self._cover: _Cover | None = None

    def reset(self) -> None:
        """Forget former frames."""
        self.state = HeadState()

    def paste(
        self,
        image: np.ndarray,
        composed: np.ndarray,
        alignment: Alignment,
        *,
        step_s: float = 1 / 25,
        crop: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return a copy of the frame with the composed head in the place of its own; see `paste.Paster.paste`."""
        crop = alignment.crop(image) if crop is None else crop
        wide, side = alignment.widened(WIDER), composed.shape[0]
        small = composed if side == CROP_SIZE else cv2.resize(composed, crop.shape[:2], interpolation=cv2.INTER_AREA)
        gone_by = self._gone_by(crop, small)
        view = _view(image, wide) if gone_by[0] else None
        parts = self._parts((view, small if gone_by[1] else None), gone_by, step_s)
        if self._cover is None or self._cover.parts is not parts or self._cover.side != side:
            self._cover = _Cover.of(parts, side)
        cover, framing = self._cover, alignment.resized(side)
        detail = crop if side == CROP_SIZE else framing.crop(image)
        self.state = replace(self.state, frames=self.state.frames + 1, parts=parts)
        if self._face_only:
            colours, opacity = _face(cover.driver, parts[1], detail, composed)
            opacity = opacity * _reach(side)
        else:
            image = self._without_driver(image, view, wide, crop, composed)
            state = self.state
            assert state.inside is not None
            assert state.gain is not None
            colours, opacity = cover.colours(detail, composed, state.inside, state.gain), cover.opacity
        if self._still:
            return framing.paste(image, colours, opacity)
        return put_back(image, colours, framing, opacity, copy=self._face_only)

    def look(
        self, image: np.ndarray, alignment: Alignment, *, step_s: float = 1 / 25, crop: np.ndarray | None = None
    ) -> None:
        """Remember what a frame shows of the driver and of what is behind, as `paste` does, without a composition."""
        crop = alignment.crop(image) if crop is None else crop
        first, wide = self.state.parts is None, alignment.widened(WIDER)
        gone_by = self._gone_by(crop, crop) if first or self.state.frames % 2 == 0 else (0, 0)
        if gone_by[0]:
            view = _view(image, wide)
            parts = self._parts((view, view if first else None), gone_by, step_s)
            self.state = replace(self.state, parts=parts)
            if not self._face_only:
                self._behind(image, _reduced(view), parts[0][BACKGROUND], wide)
        if first:  # until something is pasted: the first composition will differ from anything
            cells, nothing = self.state.cells, np.zeros((PARTS_SIDE, PARTS_SIDE, 4), np.uint8)
            assert cells is not None
            cells = np.stack((cells[0], np.full_like(cells[1], -1000)))
            self.state = replace(self.state, cells=cells, filling=nothing, gain=np.ones(3, np.float32))
        self.state = replace(self.state, frames=self.state.frames + 1)

    def _without_driver(
        self, image: np.ndarray, view: np.ndarray | None, wide: Alignment, crop: np.ndarray, composed: np.ndarray
    ) -> np.ndarray:
        """A copy of the frame without the driver's head; `view`: the wide view when the driver is looked at now."""
        parts, state = self.state.parts, self.state
        assert parts is not None
        if view is not None:
            gain = _skin_gain(_middle(parts[0]), parts[1], crop, composed)
            filling = self._filling(image, view, wide, parts[0], gain)
            self.state = replace(self.state, filling=filling, gain=gain)
        if view is not None or state.inside is None:
            inside = spread(_reduced(composed), (parts[1][FACE] + parts[1][HAIR] + parts[1][NECK]) ** 4)
            self.state = replace(self.state, inside=np.rint(inside).clip(0, 255).astype(np.uint8))
        filling = self.state.filling
        assert filling is not None
        opacity = filling[..., 3].astype(np.float32) / 255
        return put_back(image, filling[..., :3], wide.resized(PARTS_SIDE), opacity, soft=True)

    def _gone_by(self, crop: np.ndarray, composed: np.ndarray) -> tuple[int, int]:
        """How many frames ago driver and composition were looked at, if they are now, else 0: both at first, then one
        of them, when its turn has come or something beside the face has moved. Both uint8 [256, 256, 3]."""
        state = self.state
        if self._still:
            return 1, 1
        now = np.stack([cv2.resize(one, (GRID, GRID), interpolation=cv2.INTER_AREA) for one in (crop, composed)])
        now = now.astype(np.float32)
        if state.parts is None or state.looked is None or state.cells is None:
            self.state = replace(state, looked=np.full(2, state.frames), cells=now)
            return 1, 1
        turn = state.frames % 2  # of the driver, then of the composition
        due = state.frames % LOOK_EVERY == turn * (LOOK_EVERY // 2 + 1)
        if not due:
            face = cv2.resize(state.parts[1][FACE] if turn else _middle(state.parts[0])[FACE], (GRID, GRID))
            due = bool((np.abs(now[turn] - state.cells[turn]).mean(-1) * (1 - face)).max() > MOVED)
        if not due:
            return 0, 0
        looked, cells = state.looked.copy(), state.cells.copy()
        ago = int(state.frames - looked[turn])
        looked[turn], cells[turn] = state.frames, now[turn]
        self.state = replace(state, looked=looked, cells=cells)
        return (0, ago) if turn else (ago, 0)

    def _parts(
        self, pictures: tuple[np.ndarray | None, np.ndarray | None], gone_by: tuple[int, int], step_s: float
    ) -> np.ndarray:
        """float32 [2, 6, 128, 128], of wide view and composition, averaged over time; those that are looked at now."""
        former = None if self._still else self.state.parts
        seen = [picture for picture in pictures if picture is not None]
        if former is not None and not seen:
            return former
        found = iter(self._find(np.stack(seen)))
        parts = np.empty((2, len(PARTS), PARTS_SIDE, PARTS_SIDE), np.float32)
        for number, (picture, frames) in enumerate(zip(pictures, gone_by, strict=True)):
            new = None if picture is None else next(found)
            if former is None or new is None:
                parts[number] = former[number] if new is None and former is not None else new
            else:
                moved = np.abs(new - former[number]).mean() >= CUT
                share = 1.0 if moved else 1 - np.exp(-frames * step_s / MEMORY_S)
                cv2.addWeighted(new, share, former[number], 1 - share, 0, parts[number])
        return parts

    def _filling(
        self, image: np.ndarray, view: np.ndarray, wide: Alignment, around: np.ndarray, gain: np.ndarray
    ) -> np.ndarray:
        """Colours and opacity uint8 [128, 128, 4] that take the driver's head out of the frame, in the wide view; the
        neck in the new skin's colour."""
        seen = _reduced(view)
        head = around[HAIR] + around[FACE]
        edge = cv2.dilate(head, np.ones((AROUND[self._still],) * 2, np.uint8)) * (1 - around[NECK] - around[BODY])
        gone = smoothstep((np.maximum(head, edge) - 0.2) / 0.3) * (1 - _before(around)) * _border()
        body = around[BODY] + NECK_COUNTS * around[NECK]
        behind = self._behind(image, seen, around[BACKGROUND], wide)
        wall = spread(behind[..., :3] / np.maximum(behind[..., 3:], 1e-3), behind[..., 3])
        skin = seen * (1 + (gain - 1) * around[NECK][..., None])
        cloth = spread(skin, (around[BODY] + around[NECK]) ** 2)
        either = body + around[BACKGROUND]
        part = smoothstep((spread((body / np.maximum(either, 1e-3))[..., None], either) - 0.35) / 0.3)
        return np.rint(np.clip(np.dstack((wall + (cloth - wall) * part, 255 * gone)), 0, 255)).astype(np.uint8)

    def _behind(self, image: np.ndarray, seen: np.ndarray, background: np.ndarray, wide: Alignment) -> np.ndarray:
        """What is behind everybody in the wide view, float32 [128, 128, 4]: RGB times trust, and trust 0..1."""
        framing = wide.resized(PARTS_SIDE)
        sure = cv2.erode(background, np.ones((APART[self._still],) * 2, np.uint8)) ** 2 * _inside(image, framing)
        known = np.dstack((seen * sure[..., None], sure))
        if self._still:
            return known
        plate, scale = self.state.plate, self.state.scale
        size = None if plate is None else plate.shape[:2]
        if plate is None or size != (round(image.shape[0] * scale), round(image.shape[1] * scale)):
            scale = min(1.0, PARTS_SIDE / wide.side_px)
            plate = np.zeros((round(image.shape[0] * scale), round(image.shape[1] * scale), 4), np.float32)
        home = np.diag([scale, scale]) @ framing.inverse  # to px of the plate
        remembered = cv2.warpAffine(plate, home, (PARTS_SIDE,) * 2, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        both = sure * remembered[..., 3]
        change = np.abs(remembered[..., :3] / np.maximum(remembered[..., 3:], 1e-3) - seen).mean(-1)
        if float((both * change).sum()) > PLATE_ERROR * max(float(both.sum()), 1.0):
            plate, remembered = np.zeros_like(plate), np.zeros_like(remembered)
        moved = cv2.warpAffine(known, home, (plate.shape[1], plate.shape[0]), flags=cv2.INTER_LINEAR)
        rate = np.where(plate[..., 3:] > 0.5, PLATE_RATE, 1.0) * moved[..., 3:]
        fresh = np.dstack((moved[..., :3] / np.maximum(moved[..., 3:], 1e-3), np.ones(plate.shape[:2], np.float32)))
        plate = (plate + (fresh - plate) * rate).astype(np.float32)
        self.state = replace(self.state, plate=plate, scale=scale)
        return known + remembered * (1 - sure)[..., None]


def _face(
    driver: np.ndarray, head: np.ndarray, crop: np.ndarray, composed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The composed face where both have a face, in its own colours; as `_head`."""
    side = composed.shape[0]
    both = cv2.GaussianBlur(_firm(np.minimum(driver[FACE], head[FACE])), (0, 0), 1.5)
    both = cv2.resize(cv2.erode(both, np.ones((3, 3), np.uint8)), (side, side), interpolation=cv2.INTER_LINEAR)
    weight = np.minimum(driver[FACE], head[FACE])[..., None]
    means = [(_reduced(x) * weight).sum((0, 1)) / max(float(weight.sum()), 1.0) for x in (crop, composed)]
    gain = np.clip((means[0] + 1) / (means[1] + 1), *GAIN)
    return np.rint(np.clip(composed * gain, 0, 255)).astype(np.uint8), both


def _skin_gain(driver: np.ndarray, head: np.ndarray, crop: np.ndarray, composed: np.ndarray) -> np.ndarray:
    """Factors float32 [3] from the driver's neck to the new skin."""
    lower = np.linspace(0, 1, PARTS_SIDE, dtype=np.float32)[:, None] > 0.6
    weights = driver[NECK], head[NECK] + 0.1 * head[FACE] * lower
    ours, new = (
        (_reduced(x) * w[..., None]).sum((0, 1)) / max(float(w.sum()), 1.0)
        for x, w in zip((crop, composed), weights, strict=True)
    )
    return np.clip((new + 1) / (ours + 1), *GAIN).astype(np.float32)


def spread(values: np.ndarray, trust: np.ndarray) -> np.ndarray:
    """Return values float32 [128, 128, c], those of little trust (float32 [128, 128], 0..1) replaced by what is around:
    down a pyramid of means and up again, each level filled from the coarser one (push-pull, Gortler et al. 1996)."""
    levels: list[np.ndarray] = [np.dstack((values * trust[..., None], trust)).astype(np.float32)]
    while levels[-1].shape[0] > 1:
        levels.append(cv2.resize(levels[-1], (levels[-1].shape[1] // 2,) * 2, interpolation=cv2.INTER_AREA))
    known = levels[-1].reshape(1, 1, -1)
    filled = known[..., :-1] / np.maximum(known[..., -1:], 1e-6)
    for level in reversed(levels[:-1]):
        side = level.shape[0]
        coarser = cv2.resize(filled, (side, side), interpolation=cv2.INTER_LINEAR).reshape(side, side, -1)
        part = np.minimum(level[..., -1:] * 4, 1)
        filled = coarser + (level[..., :-1] / np.maximum(level[..., -1:], 1e-6) - coarser) * part
    return filled


def _view(image: np.ndarray, wide: Alignment) -> np.ndarray:
    """The wide view uint8 [256, 256, 3], the frame's border repeated beyond it, as the network was taught."""
    size = (wide.size, wide.size)
    return cv2.warpAffine(image, wide.matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _middle(around: np.ndarray) -> np.ndarray:
    """The parts of the aligned crop, float32 [6, 128, 128], out of those of the wide view."""
    middle = (PARTS_SIDE - 1) / 2
    matrix = np.array([[1, 0, middle * (WIDER - 1)], [0, 1, middle * (WIDER - 1)]]) / WIDER
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    halves = (np.ascontiguousarray(half.transpose(1, 2, 0)) for half in (around[:3], around[3:]))
    return np.dstack([cv2.warpAffine(half, matrix, (PARTS_SIDE,) * 2, flags=flags) for half in halves]).transpose(
        2, 0, 1
    )


def _inside(image: np.ndarray, framing: Alignment) -> np.ndarray:
    """1 where a crop shows the frame and not its mirror image, else 0: float32 [size, size]."""
    whole = np.ones(image.shape[:2], np.uint8)
    return cv2.warpAffine(whole, framing.matrix, (framing.size,) * 2, flags=cv2.INTER_NEAREST).astype(np.float32)


@cache
def _reach(side: int) -> np.ndarray:
    """How far a composed head reaches that the crop cuts: 1 inside, 0 at the edge, round above and square below;
    float32 [side, side], read-only."""
    across = np.abs((np.arange(side, dtype=np.float32) + 0.5) / side - 0.5)
    down = (np.arange(side, dtype=np.float32)[:, None] + 0.5) / side - 0.5
    round_above = (across**ROUND_ABOVE + np.abs(down) ** ROUND_ABOVE) ** (1 / ROUND_ABOVE)
    square_below = (across**ROUNDNESS + np.abs(down) ** ROUNDNESS) ** (1 / ROUNDNESS)
    mask = smoothstep((0.5 - MARGIN - np.where(down < 0, round_above, square_below)) / FEATHER)
    mask.flags.writeable = False
    return mask


@cache
def _border() -> np.ndarray:
    """1 inside the wide view, falling to 0 at its border: float32 [128, 128], read-only."""
    axis = smoothstep(np.minimum(np.arange(PARTS_SIDE), np.arange(PARTS_SIDE)[::-1]) / (EDGE * PARTS_SIDE))
    border = axis[:, None] * axis
    border.flags.writeable = False
    return border


def _reduced(picture: np.ndarray) -> np.ndarray:
    """A picture uint8 [S, S, 3] as float32 [128, 128, 3]."""
    return cv2.resize(picture, (PARTS_SIDE,) * 2, interpolation=cv2.INTER_AREA).astype(np.float32)


def _before(parts: np.ndarray) -> np.ndarray:
    """The opacity of what stands before the head, where that is quite sure: float32 [128, 128]."""
    return smoothstep((parts[OCCLUDER] - 0.8) / 0.15)


def _firm(x: np.ndarray) -> np.ndarray:
    """An opacity without traces: 0 below 0.2, 1 above 0.8."""
    return smoothstep((x - 0.2) / 0.6)
