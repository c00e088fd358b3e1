"""What a live session composes: settings that the page sends, and the picture of each frame."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..composer import Composer
from ..controls import MOST_CONTROL, Controls
from ..identity import Identity
from ..interpolate import identity_between
from ..labels.mark import embed_mark
from ..live.layout import MAX_SMOOTH, NO_FACE, VIEWS, Picture, Reenactment, Wishes
from ..live.reenact import Reenactor
from .guard import RefusedError

if TYPE_CHECKING:
    from ..labels.credentials import Signer
    from ..labels.provenance import Note


MAX_SIDE = 1280  # px; larger frames are made smaller on arrival
INTERPOLATION = 2 | 0x2000  # swscale: bilinear, and colour of every pixel, or smaller frames are darker by 1 to 2


@dataclass(frozen=True)
class Labelling:
    """What says that the pictures of a server are synthetic."""

    provenance: bool = True  # a note in every file
    mark: bool = True  # the invisible mark in the pixels of every file and of live videos
    badge: bool = False  # a small label that people can read in every video, see `labels.badge`
    signer: Signer | None = None  # signs every file

    def note(self, note: Note) -> Note | None:
        """Return a note with what is chosen; None where that is nothing."""
        if not (self.provenance or self.mark or self.signer):
            return None
        return replace(note, packet=self.provenance, mark=self.mark, signer=self.signer)


@dataclass(frozen=True)
class Settings:
    """What a live video shows. `RefusedError` 400 for a value that cannot be."""

    people: tuple[Identity, ...] = ()  # nobody yet, one, or two to go between
    identity_mix: float = 0.0  # 0..1, how far from the first to the second
    view: str = "result-only"  # see `layout.Wishes`
    no_face: str = "hold"  # see `layout.Wishes`
    smooth: float = 1.0  # see `layout.Wishes`
    pose: float = 1.0  # see `controls.Controls`
    expression: float = 1.0

    def __post_init__(self) -> None:
        numbers = {"identity_mix": 1.0, "smooth": MAX_SMOOTH, "pose": MOST_CONTROL, "expression": MOST_CONTROL}
        for name, most in numbers.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
                raise RefusedError(400, f"{name} is a number from 0 to {most:g}.")
        for name, known in (("view", VIEWS), ("no_face", NO_FACE)):
            if getattr(self, name) not in known:
                raise RefusedError(400, f"{name} is one of {', '.join(known)}.")

    def wishes(self, identity: Identity, badge: bool) -> Wishes:
        """Return what these settings want of a reenactment as `identity`; `badge`: see `Labelling`."""
        controls = Controls(self.pose, self.expression)
        return Wishes(identity, self.view, self.no_face, self.smooth, badge=badge, controls=controls)


class PictureMaker:
    """A frame becomes a picture; in the worker's thread only. Keeps what one live video needs from frame to frame."""

    def __init__(self, composer: Composer, label: Labelling) -> None:
        """`label`: of it, mark and badge are in every picture, so that what is kept of a live video bears them."""
        self._composer, self._label = composer, label
        self._person: tuple[tuple[Identity, ...], float, Identity] | None = None  # people, mix, and who that is
        self._reenactment: Reenactment | None = None

    def picture(self, frame: Any, settings: Settings) -> Picture:
        """Return what is shown of a video frame, even sides; its timings have the whole as "all"."""
        start = time.perf_counter()
        wishes = settings.wishes(self._identity(settings), self._label.badge)
        if self._reenactment is None:
            self._reenactment = Reenactment(Reenactor(self._composer, light=None), wishes)
        picture = self._reenactment.show(_rgb(frame), frame.time or 0.0, wishes)
        image = embed_mark(picture.image) if self._label.mark else picture.image
        return replace(picture, image=image, timings={**picture.timings, "all": 1e3 * (time.perf_counter() - start)})

    def _identity(self, settings: Settings) -> Identity:
        """Who is composed; a person in between is made once, so that smoothing knows them again."""
        if self._person is None or self._person[0] is not settings.people or self._person[1] != settings.identity_mix:
            who = identity_between(settings.people[0], settings.people[-1], settings.identity_mix)
            self._person = settings.people, settings.identity_mix, who
        return self._person[2]


def _rgb(frame: Any) -> np.ndarray:
    """A video frame as RGB uint8 [height, width, 3], even sides of at most `MAX_SIDE`."""
    factor = min(1.0, MAX_SIDE / max(frame.width, frame.height))
    width, height = (max(2, round(side * factor) // 2 * 2) for side in (frame.width, frame.height))
    return frame.to_ndarray(format="rgb24", width=width, height=height, interpolation=INTERPOLATION)
