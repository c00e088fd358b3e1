"""What a live session composes: settings that the page sends, and the picture of each frame."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..identity import Identity
from ..interpolate import identity_between
from ..live.layout import NO_FACE, VIEWS, Layout, Reenactment
from ..live.reenact import Reenactor
from .guard import RefusedError

if TYPE_CHECKING:
    from ..composer import Composer


MAX_SIDE = 1280  # px; larger frames are made smaller on arrival


@dataclass(frozen=True)
class Settings:
    """What a live video shows. `RefusedError` 400 for a value that cannot be."""

    people: tuple[Identity, ...] = ()  # nobody yet, one, or two to go between
    identity_mix: float = 0.0  # 0..1, how far from the first to the second
    view: str = "result-only"  # see `reenact.Layout`
    no_face: str = "hold"  # see `reenact.Layout`
    smooth: float = 1.0  # see `reenact.Reenactor`

    def __post_init__(self) -> None:
        for name, most in (("identity_mix", 1), ("smooth", 10)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
                raise RefusedError(400, f"{name} is a number from 0 to {most}.")
        for name, known in (("view", VIEWS), ("no_face", NO_FACE)):
            if getattr(self, name) not in known:
                raise RefusedError(400, f"{name} is one of {', '.join(known)}.")


class PictureMaker:
    """A frame becomes a picture; in the worker's thread only. Keeps what one live video needs from frame to frame."""

    def __init__(self, composer: Composer) -> None:
        self.stage_ms: dict[str, float] = {}  # of the last frame
        self.face_seen = False
        self._composer = composer
        self._settings = Settings()
        self._person: Identity | None = None
        self._reenactment: Reenactment | None = None

    def picture(self, frame: Any, settings: Settings) -> np.ndarray:
        """RGB uint8 [height, width, 3], even sides, of a video frame."""
        start = time.perf_counter()
        reenactment = self._prepare(settings)
        self._composer.identity = self._person  # the sessions share the composer, and this thread runs one at a time
        picture = reenactment.picture(_rgb(frame), frame.time or 0.0)
        self.face_seen = reenactment.seen
        self.stage_ms = {**reenactment.timings, "all": 1e3 * (time.perf_counter() - start)}
        return picture

    def _prepare(self, settings: Settings) -> Reenactment:
        """What is new since the last frame; a person in between is made once, so that smoothing knows them again."""
        former, self._settings = self._settings, settings
        same_view = (former.view, former.no_face) == (settings.view, settings.no_face)
        if self._reenactment is None or not same_view:
            layout = Layout(settings.view, settings.no_face, self._composer.resolution)
            reenactor = self._reenactment.reenactor if self._reenactment else Reenactor(self._composer, light=None)
            self._reenactment = Reenactment(reenactor, layout)
        if self._reenactment.reenactor.smooth != settings.smooth:
            self._reenactment.reenactor.smooth = settings.smooth
        same_person = former.people is settings.people and former.identity_mix == settings.identity_mix
        if self._person is None or not same_person:
            self._person = identity_between(settings.people[0], settings.people[-1], settings.identity_mix)
        return self._reenactment


def _rgb(frame: Any) -> np.ndarray:
    """A video frame as RGB uint8 [height, width, 3], even sides of at most `MAX_SIDE`."""
    factor = min(1.0, MAX_SIDE / max(frame.width, frame.height))
    width, height = (max(2, round(side * factor) // 2 * 2) for side in (frame.width, frame.height))
    return frame.to_ndarray(format="rgb24", width=width, height=height)
