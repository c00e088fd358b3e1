"""Reenactment: frame after frame, a person's identity on the pose, expression and light of whoever is in the frame.

One `Reenactor` serves a webcam, a video file and a browser alike: track, align, encode, map, smooth, generate. What
a user sees of it is laid out by `Layout`: the frame with the head pasted in, both side by side, or the result alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ..composer import Composer
from ..errors import InputError
from ..face.align import Alignment
from ..face.smooth import OneEuro
from ..face.track import EVERY, Tracker, part_of
from ..identity import Identity

W_CUTOFF_HZ, W_BETA = 1.6, 1.2  # of the One-Euro filter on w


@dataclass(frozen=True)
class Step:
    """What came of one frame with a face."""

    image: np.ndarray  # RGB uint8 [R, R, 3], the composition
    crop: np.ndarray  # RGB uint8 [256, 256, 3], the aligned crop of the frame
    alignment: Alignment  # smoothed; of the crop
    w: np.ndarray | None  # float32 [w_size], smoothed; None when one graph did everything


class Reenactor:
    """One face of one camera or clip, with the composer's identity. For one thread.

    composer.set_identity("ann.jpg")
    reenactor = Reenactor(composer)
    step = reenactor.step(frame, time_s)  # None: no face

    `timings` holds the ms of each stage (track, align, attributes, mapper, synthesis; or reenact) of the last step.
    """

    def __init__(
        self, composer: Composer, *, smooth: float = 1.0, every: int = EVERY, light: bool | None = False
    ) -> None:
        """`smooth`: strength of the smoothing of alignment and w, 0 for none, at most 10. `every`: frames from one
        detection to the next. `light`: by the light generator; None for where that pays.

        Raises `InputError` when a light generator is asked for and the bundle has none.
        """
        if light and not composer.has_light:
            raise InputError(
                f"the bundle {composer.bundle.name} has no light generator for {composer.resolution} px; leave --light "
                "out, or export it with one."
            )
        self.composer = composer
        self.light = composer.wants_light if light is None else light
        self.tracker = Tracker(composer.detector, every=every)
        self.timings: dict[str, float] = {}
        self._filter = OneEuro(W_CUTOFF_HZ, W_BETA)
        self._identity: Identity | None = None
        self.smooth = smooth

    @property
    def smooth(self) -> float:
        """Strength of the smoothing."""
        return self.tracker.smooth

    @smooth.setter
    def smooth(self, strength: float) -> None:
        if not 0 <= strength <= 10:
            raise InputError(f"a smoothing of {strength:g} is outside 0 (none) to 10.")
        self.tracker.smooth = strength
        if strength > 0:
            self._filter.cutoff_hz, self._filter.beta = W_CUTOFF_HZ / strength, W_BETA / strength

    def reset(self) -> None:
        """Forget the face and all smoothing: for a cut, another camera, or when the user asks for it."""
        self.tracker.reset()
        self._filter.reset()

    def step(self, image: np.ndarray, time_s: float) -> Step | None:
        """Compose the next frame RGB uint8 [height, width, 3] at its time in seconds; None when there is no face."""
        with self._timed("track"):
            alignment = self.tracker.follow(image, time_s)
        if alignment is None:
            self._filter.reset()
            return None
        with self._timed("align"):
            crop = alignment.crop(image)
        composed, w = self.compose(crop, time_s)
        return Step(composed, crop, alignment, w)

    def compose(self, crop: np.ndarray, time_s: float) -> tuple[np.ndarray, np.ndarray | None]:
        """The composition RGB uint8 [R, R, 3] of an aligned crop RGB uint8 [256, 256, 3], and its smoothed w."""
        composer, identity = self.composer, self.composer.identity
        if identity is None:
            raise InputError(
                "call set_identity(photo) of the composer first: it is not known yet whose face to compose."
            )
        if identity is not self._identity:  # another person: no way leads there through w
            self._filter.reset()
            self._identity = identity
        composer.timings.clear()
        own = identity.w_offset is None and composer.resolution == composer.bundle.resolution and not self.light
        if self.smooth == 0 and own:
            composed, w = composer.reenact(crop), None
        else:
            w = self.smooth_w(composer.w(identity, composer.attribute_code(crop)), time_s)
            composed = composer.image(w, light=self.light)
        self.timings |= composer.timings
        return composed, w

    def smooth_w(self, w: np.ndarray, time_s: float) -> np.ndarray:
        """The next w float32 [w_size] at its time in seconds, smoothed."""
        return w if self.smooth == 0 else self._filter.filter(w, time_s).astype(np.float32)

    def state(self) -> dict[str, np.ndarray]:
        """What it remembers of former frames, as arrays; `restore` takes it back."""
        parts = {"tracker": self.tracker.state(), "w": self._filter.state()}
        return {f"{part}.{name}": value for part, state in parts.items() for name, value in state.items()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Remember what `state` gave; the identity must be set already."""
        self.tracker.restore(part_of(state, "tracker"))
        self._filter.restore(part_of(state, "w"))
        self._identity = self.composer.identity

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        if stage == "track":
            self.timings = {}
        start = time.perf_counter()
        yield
        self.timings[stage] = 1e3 * (time.perf_counter() - start)
