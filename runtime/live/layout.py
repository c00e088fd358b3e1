"""What a user sees of a frame: the head pasted in, both side by side, or the composition alone.

`Reenactment` is the whole way from a frame to what is shown of it. What is wished for comes with each frame, as one
value (`Wishes`), so nobody changes another thread's objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ..composer import Composer
from ..controls import AS_IT_IS, Controls
from ..errors import InputError
from ..face.align import Alignment
from ..face.head import HeadPaster, HeadState
from ..face.paste import MASKS, AnyPaster, Paster, PasteState
from ..identity import Identity
from ..labels.badge import draw_badge
from ..timing import Timings, collect_timings, stage
from .reenact import Reenactor, ReenactorState, Step

VIEWS = ("paste", "side-by-side", "result-only")
NO_FACE = ("hold", "pass", "blank")
BLANK = 32  # grey of a picture without a face, 0..255
MAX_SMOOTH = 10.0


@dataclass(frozen=True)
class Wishes:
    """Who is composed and what is shown. `InputError` for a value that cannot be."""

    identity: Identity
    view: str = "paste"  # one of VIEWS
    no_face: str = "hold"  # one of NO_FACE: the last picture held, the frame passed through, or grey
    smooth: float = 1.0  # strength of the smoothing of alignment and w; 0 is none, MAX_SMOOTH the most
    mirror: bool = False  # left and right of what is shown swapped
    badge: bool = False  # a small label that people can read, see `labels.badge`
    mask: str = "head"  # what is pasted, one of `paste.MASKS`
    controls: Controls = AS_IT_IS  # how far pose and expression are followed

    def __post_init__(self) -> None:
        if self.view not in VIEWS or self.no_face not in NO_FACE:
            raise InputError(f"there is no view {self.view!r} with {self.no_face!r}; known are {VIEWS} and {NO_FACE}.")
        if self.mask not in MASKS:
            raise InputError(f"there is no mask {self.mask!r}; known are {', '.join(MASKS)}.")
        if not 0 <= self.smooth <= MAX_SMOOTH:
            raise InputError(f"a smoothing of {self.smooth:g} is outside 0 (none) to {MAX_SMOOTH:g}.")


@dataclass(frozen=True)
class Picture:
    """What is shown of one frame."""

    image: np.ndarray  # RGB uint8 [height, width, 3]
    seen: bool  # whether there was a face
    timings: Timings  # ms of each stage


@dataclass(frozen=True)
class PasterState:
    """What a paster remembers, of whichever kind it is."""

    square: PasteState | None
    head: HeadState | None

    @classmethod
    def of(cls, paster: AnyPaster) -> PasterState:
        """Return the state of a paster."""
        square, head = isinstance(paster, Paster), isinstance(paster, HeadPaster)
        return cls(paster.state if square else None, paster.state if head else None)

    def bring_back(self, paster: AnyPaster) -> None:
        """Let a paster remember this, if it is of that kind; else it begins anew."""
        if isinstance(paster, Paster) and self.square is not None:
            paster.state = self.square
        elif isinstance(paster, HeadPaster) and self.head is not None:
            paster.state = self.head
        else:
            paster.reset()


@dataclass(frozen=True)
class LayoutState:
    """What a layout remembers of former frames."""

    time_s: float
    held: np.ndarray | None  # RGB uint8 [height, width, 3], the last picture with a face
    paste: PasterState


class Layout:
    """Lay out frame after frame: always the same size for the same size of frame and view. For one thread."""

    def __init__(self, composer: Composer, mask: str = "head") -> None:
        """`composer`: of the compositions. `mask`: see `Wishes`."""
        self._composer, self._side, self._mask = composer, composer.resolution, mask
        self._paster = composer.paster(mask)
        self._held: np.ndarray | None = None
        self._time_s = 0.0

    def reset(self) -> None:
        """Forget the colours and the picture that is held."""
        self._paster.reset()
        self._held = None

    def picture(self, image: np.ndarray, step: Step | None, time_s: float, wishes: Wishes) -> np.ndarray:
        """Return RGB uint8 [height, width, 3] of a frame RGB uint8 and what came of it, at its time in seconds.

        With "paste" it has the frame's size, with "side-by-side" the frame stands left of a composition as high as it,
        with "result-only" it is the composition.
        """
        step_s, self._time_s = max(time_s - self._time_s, 0.0), time_s
        if wishes.mask != self._mask:
            self._mask, self._paster = wishes.mask, self._composer.paster(wishes.mask)
        shape, view = self._shape(image, wishes.view), wishes.view
        if step is not None:
            shown = self._held = self._composed(image, step, step_s, view)
        elif wishes.no_face == "pass":
            shown = image if view == "paste" else _square(image, shape[0])
        elif wishes.no_face == "hold" and self._held is not None and self._held.shape == shape:
            shown = self._held
        else:
            shown = np.full(shape, BLANK, np.uint8)
        return np.hstack([image, shown]) if view == "side-by-side" else shown

    def look(self, image: np.ndarray, alignment: Alignment | None, time_s: float, wishes: Wishes) -> None:
        """Remember of a frame what `picture` would, as far as it does not come from the composition."""
        step_s, self._time_s = max(time_s - self._time_s, 0.0), time_s
        if alignment is not None and wishes.view == "paste":
            self._paster.look(image, alignment, step_s=step_s, crop=alignment.crop(image, quick=True))

    def _composed(self, image: np.ndarray, step: Step, step_s: float, view: str) -> np.ndarray:
        if view == "paste":
            return self._paster.paste(image, step.image, step.alignment, step_s=step_s, crop=step.crop)
        side = self._shape(image, view)[0]
        return step.image if side == step.image.shape[0] else cv2.resize(step.image, (side, side))

    def _shape(self, image: np.ndarray, view: str) -> tuple[int, int, int]:
        side = image.shape[0] if view == "side-by-side" else self._side
        return (image.shape[0], image.shape[1], 3) if view == "paste" else (side, side, 3)

    @property
    def state(self) -> LayoutState:
        """What it remembers of former frames; may be set to what another layout remembered."""
        return LayoutState(self._time_s, self._held, PasterState.of(self._paster))

    @state.setter
    def state(self, state: LayoutState) -> None:
        self._time_s, self._held = state.time_s, state.held
        state.paste.bring_back(self._paster)


@dataclass(frozen=True)
class ReenactmentState:
    """What a reenactment remembers of former frames."""

    reenactor: ReenactorState
    layout: LayoutState


class Reenactment:
    """From frame to what the user sees, by a reenactor and a layout. For one thread."""

    def __init__(self, reenactor: Reenactor, wishes: Wishes) -> None:
        """`wishes`: what holds for frames that come without their own."""
        self.reenactor, self.wishes = reenactor, wishes
        self.composer, self.light = reenactor.composer, reenactor.light
        self._layout = Layout(reenactor.composer, wishes.mask)
        self._shape: tuple[int, ...] = ()  # of the last frame

    def reset(self) -> None:
        """Forget all former frames."""
        self.reenactor.reset()
        self._layout.reset()

    def show(self, image: np.ndarray, time_s: float, wishes: Wishes | None = None) -> Picture:
        """Return what the user sees of a frame RGB uint8 [height, width, 3] at its time in seconds."""
        wishes = wishes or self.wishes
        if self._shape and image.shape != self._shape:  # a phone was turned, a camera came back in another mode
            self.reset()
        self._shape = image.shape
        with collect_timings() as timings:
            step = self.reenactor.step(image, time_s, wishes.identity, wishes.smooth, wishes.controls)
            with stage("paste"):
                shown = self._layout.picture(image, step, time_s, wishes)
                if wishes.mirror:
                    shown = np.ascontiguousarray(shown[:, ::-1])
                if wishes.badge:
                    shown = draw_badge(shown)
        return Picture(shown, step is not None, timings)

    def follow(self, image: np.ndarray, time_s: float) -> Alignment | None:
        """Take the next frame as `show` does and compose nothing: where the face is and what is behind it is known
        afterwards. Returns where the face is; None for none."""
        if self._shape and image.shape != self._shape:
            self.reset()
        self._shape = image.shape
        alignment = self.reenactor.track(image, time_s, self.wishes.smooth)
        self._layout.look(image, alignment, time_s, self.wishes)
        return alignment

    def hold(self, image: np.ndarray, time_s: float, alignment: Alignment) -> None:
        """Remember the picture of a frame with a face, as that which is held when none follows."""
        crop = alignment.crop(image, quick=True)
        wishes = self.wishes
        composed, w = self.reenactor.compose(crop, time_s, wishes.identity, wishes.smooth, wishes.controls)
        self._layout.picture(image, Step(composed, crop, alignment, w), time_s, self.wishes)

    def picture(self, image: np.ndarray, time_s: float) -> np.ndarray:
        """Return `show`, the pixels alone: RGB uint8 [height, width, 3]; see `video_rework.FrameWork`."""
        return self.show(image, time_s).image

    @property
    def state(self) -> ReenactmentState:
        """What it remembers of former frames; may be set to what another one remembered of the same identity."""
        return ReenactmentState(self.reenactor.state, self._layout.state)

    @state.setter
    def state(self, state: ReenactmentState) -> None:
        self.reenactor.state, self._layout.state = state.reenactor, state.layout


def _square(image: np.ndarray, side: int) -> np.ndarray:
    """The middle square of a picture at `side` px."""
    height, width = image.shape[:2]
    small = min(height, width)
    top, left = (height - small) // 2, (width - small) // 2
    return cv2.resize(image[top : top + small, left : left + small], (side, side), interpolation=cv2.INTER_AREA)
