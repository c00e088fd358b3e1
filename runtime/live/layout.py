"""What a user sees of a frame: the head pasted in, both side by side, or the composition alone."""

from __future__ import annotations

import time

import cv2
import numpy as np

from ..errors import InputError
from ..face.paste import Paster
from ..face.track import part_of
from .reenact import Reenactor, Step

VIEWS = ("paste", "side-by-side", "result-only")
NO_FACE = ("hold", "pass", "blank")
BLANK = 32  # grey of a picture without a face, 0..255


class Layout:
    """What the user sees of a frame: always the same size for the same size of frame. For one thread."""

    def __init__(self, view: str, no_face: str, side: int) -> None:
        """`view`: one of `VIEWS`. `no_face`: one of `NO_FACE`: the last picture held, the frame passed through, or
        grey. `side`: px, of the composition."""
        if view not in VIEWS or no_face not in NO_FACE:
            raise InputError(f"there is no view {view!r} with {no_face!r}; known are {VIEWS} and {NO_FACE}.")
        self.view, self.no_face, self._side = view, no_face, side
        self._paster = Paster()
        self._held: np.ndarray | None = None
        self._time_s = 0.0

    def reset(self) -> None:
        """Forget the colours and the picture that is held."""
        self._paster.reset()
        self._held = None

    def picture(self, image: np.ndarray, step: Step | None, time_s: float) -> np.ndarray:
        """RGB uint8 [height, width, 3] of a frame RGB uint8 and what came of it, at its time in seconds.

        With "paste" it has the frame's size, with "side-by-side" the frame stands left of a composition as high as it,
        with "result-only" it is the composition.
        """
        step_s, self._time_s = max(time_s - self._time_s, 0.0), time_s
        if step is not None:
            shown = self._composed(image, step, step_s)
        elif self.no_face == "pass":
            shown = image if self.view == "paste" else _square(image, self._result_side(image))
        elif self.no_face == "hold" and self._held is not None and self._held.shape == self._shape(image):
            shown = self._held
        else:
            shown = np.full(self._shape(image), BLANK, np.uint8)
        if step is not None:
            self._held = shown
        return np.hstack([image, shown]) if self.view == "side-by-side" else shown

    def _composed(self, image: np.ndarray, step: Step, step_s: float) -> np.ndarray:
        if self.view == "paste":
            return self._paster.paste(image, step.image, step.alignment, step_s=step_s, crop=step.crop)
        side = self._result_side(image)
        return step.image if side == step.image.shape[0] else cv2.resize(step.image, (side, side))

    def _result_side(self, image: np.ndarray) -> int:
        return image.shape[0] if self.view == "side-by-side" else self._side

    def _shape(self, image: np.ndarray) -> tuple[int, int, int]:
        side = self._result_side(image)
        return (image.shape[0], image.shape[1], 3) if self.view == "paste" else (side, side, 3)

    def state(self) -> dict[str, np.ndarray]:
        """What it remembers of former frames, as arrays; `restore` takes it back."""
        own = {"time_s": np.array(self._time_s)} | ({} if self._held is None else {"held": self._held})
        return own | {f"paster.{name}": value for name, value in self._paster.state().items()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Remember what `state` gave."""
        self._held, self._time_s = state.get("held"), float(state["time_s"])
        self._paster.restore(part_of(state, "paster"))


class Reenactment:
    """A reenactor and a layout together: from frame to what the user sees. For one thread.

    `timings` holds the ms of each stage of the last frame, the layout's as "paste"; `seen` whether it had a face.
    """

    def __init__(self, reenactor: Reenactor, layout: Layout) -> None:
        self.reenactor, self.layout = reenactor, layout
        self.timings: dict[str, float] = {}
        self.seen = False
        self._shape: tuple[int, ...] = ()  # of the last frame

    def reset(self) -> None:
        """Forget all former frames."""
        self.reenactor.reset()
        self.layout.reset()

    def picture(self, image: np.ndarray, time_s: float) -> np.ndarray:
        """What the user sees of a frame RGB uint8 [height, width, 3] at its time in seconds: RGB uint8."""
        if self._shape and image.shape != self._shape:  # a phone was turned, a camera came back in another mode
            self.reset()
        self._shape = image.shape
        step = self.reenactor.step(image, time_s)
        start = time.perf_counter()
        shown = self.layout.picture(image, step, time_s)
        self.seen = step is not None
        self.timings = {**self.reenactor.timings, "paste": 1e3 * (time.perf_counter() - start)}
        return shown

    def state(self) -> dict[str, np.ndarray]:
        """What it remembers of former frames, as arrays; `restore` takes it back."""
        parts = {"reenactor": self.reenactor.state(), "layout": self.layout.state()}
        return {f"{part}.{name}": value for part, state in parts.items() for name, value in state.items()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Remember what `state` gave; the identity must be set already."""
        self.reenactor.restore(part_of(state, "reenactor"))
        self.layout.restore(part_of(state, "layout"))


def _square(image: np.ndarray, side: int) -> np.ndarray:
    """The middle square of a picture at `side` px."""
    height, width = image.shape[:2]
    small = min(height, width)
    top, left = (height - small) // 2, (width - small) // 2
    return cv2.resize(image[top : top + small, left : left + small], (side, side), interpolation=cv2.INTER_AREA)
