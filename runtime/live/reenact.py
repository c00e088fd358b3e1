"""Reenactment: frame after frame, a person's identity on the pose, expression and light of whoever is in the frame.

One `Reenactor` serves a webcam, a video file and a browser alike: track, align, encode, map, smooth, generate. What
a user sees of it is laid out by `Layout`: the frame with the head pasted in, both side by side, or the result alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..composer import Composer
from ..controls import AS_IT_IS, Controls
from ..errors import InputError
from ..face.align import Alignment
from ..face.smooth import FilterState, OneEuro
from ..face.track import EVERY, Tracker, TrackState
from ..identity import Identity
from ..timing import stage

W_CUTOFF_HZ, W_BETA = 1.6, 1.2  # of the One-Euro filter on w


@dataclass(frozen=True)
class Step:
    """What came of one frame with a face."""

    image: np.ndarray  # RGB uint8 [R, R, 3], the composition
    crop: np.ndarray  # RGB uint8 [256, 256, 3], the aligned crop of the frame
    alignment: Alignment  # smoothed; of the crop
    w: np.ndarray | None  # float32 [w_size] or W+ [n_styles, w_size], smoothed; None when one graph did everything


@dataclass(frozen=True)
class ReenactorState:
    """What a reenactor remembers of former frames."""

    tracker: TrackState
    w: FilterState


class Reenactor:
    """One face of one camera or clip, frame after frame, as whoever is asked for. For one thread.

    reenactor = Reenactor(composer)
    step = reenactor.step(frame, time_s, composer.identify("ann.jpg"))  # None: no face
    """

    def __init__(self, composer: Composer, *, every: int = EVERY, light: bool | None = False) -> None:
        """`every`: frames from one detection to the next. `light`: by the light generator; None for where that pays.

        Raises `InputError` when a light generator is asked for and the bundle has none.
        """
        if light and not composer.has_light:
            raise InputError(
                f"the bundle {composer.bundle.name} has no light generator for {composer.resolution} px; leave --light "
                "out, or export it with one."
            )
        self.composer = composer
        self.light = composer.wants_light if light is None else light
        self._tracker = Tracker(composer.detector, every=every)
        self._filter = OneEuro(W_CUTOFF_HZ, W_BETA)
        self._identity: Identity | None = None

    def reset(self) -> None:
        """Forget the face and all smoothing: for a cut, another camera, or when the user asks for it."""
        self._tracker.reset()
        self._filter.reset()

    def step(
        self,
        image: np.ndarray,
        time_s: float,
        identity: Identity,
        smooth: float = 1.0,
        controls: Controls = AS_IT_IS,
    ) -> Step | None:
        """Compose the next frame RGB uint8 [height, width, 3] at its time in seconds; None when there is no face.

        `smooth`: strength of the smoothing of alignment and w, 0 for none. Another identity than in the frame before
        begins with a w of its own. `controls`: how far pose and expression are followed.
        """
        alignment = self.track(image, time_s, smooth)
        if alignment is None:
            self._filter.reset()
            return None
        with stage("align"):
            crop = alignment.crop(image, quick=True)
        composed, w = self.compose(crop, time_s, identity, smooth, controls)
        return Step(composed, crop, alignment, w)

    def track(self, image: np.ndarray, time_s: float, smooth: float = 1.0) -> Alignment | None:
        """Return where the face of the next frame is, and compose nothing; None when there is none."""
        self._tracker.smooth = smooth
        with stage("track"):
            return self._tracker.follow(image, time_s)

    def compose(
        self,
        crop: np.ndarray,
        time_s: float,
        identity: Identity,
        smooth: float = 1.0,
        controls: Controls = AS_IT_IS,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the composition RGB uint8 [R, R, 3] of an aligned crop RGB uint8 [256, 256, 3], and its smoothed w;
        all else as in `step`."""
        composer = self.composer
        if self._identity is not None and identity is not self._identity:  # no way leads to another person through w
            self._filter.reset()
        self._identity = identity
        own = composer.resolution == composer.bundle.resolution and not self.light
        if smooth == 0 and own and controls == AS_IT_IS:
            return composer.reenact(crop, identity), None
        w = self.smooth_w(composer.w(identity, composer.attribute_code(crop, controls)), time_s, smooth)
        return composer.image(w, light=self.light), w

    def smooth_w(self, w: np.ndarray, time_s: float, smooth: float) -> np.ndarray:
        """Return the next w float32 [w_size] or W+ [n_styles, w_size] at its time in seconds, smoothed."""
        if smooth == 0:
            return w
        self._filter.cutoff_hz, self._filter.beta = W_CUTOFF_HZ / smooth, W_BETA / smooth
        return self._filter.filter(w, time_s).astype(np.float32)

    @property
    def state(self) -> ReenactorState:
        """What it remembers of former frames; may be set to what another one remembered of the same identity."""
        return ReenactorState(self._tracker.state, self._filter.state)

    @state.setter
    def state(self, state: ReenactorState) -> None:
        self._tracker.state, self._filter.state, self._identity = state.tracker, state.w, None
