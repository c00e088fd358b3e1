"""Compose a whole clip into a file: the work of `fid-run video`, and of one file of `fid-run batch video`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..composer import Composer
from ..errors import InputError
from ..media import video_rework
from ..media.table import FRAME_SIDE, column_of_frames, shrunk
from ..media.video import Clip, read_frames
from .crowd import Cast, Crowd
from .layout import Reenactment, Wishes
from .reenact import Reenactor

if TYPE_CHECKING:
    from ..labels.provenance import Note

PREVIEWED, RUN_UP = 5, 4  # places of a clip that a preview shows; frames at each, of which it shows the last


@dataclass(frozen=True)
class Preview:
    """What a clip will look like, and how long it will take."""

    image: np.ndarray  # RGB uint8, `PREVIEWED` frames one below the other, what becomes of each beside it
    frames: int  # that will be composed
    seconds: float  # for all of them, here and now: reading and composing, not the writing


@dataclass(frozen=True)
class Film:
    """What a clip is composed with."""

    composer: Composer
    wishes: Wishes
    light: bool = False  # by the light generator
    cast: Cast | None = None  # who becomes whom; None: the largest face the identity of the wishes

    def reenactment(self) -> Reenactment | Crowd:
        """Return what composes the frames of one clip; nothing of another clip is in it."""
        if self.cast is not None:
            return Crowd(self.composer, self.cast, self.wishes, light=self.light)
        return Reenactment(Reenactor(self.composer, light=self.light), self.wishes)

    def warm_up(self) -> None:
        """Open the sessions that frames need, and close those that they do without."""
        Reenactor(self.composer, light=self.light)  # refuses a light generator that is not there
        if self.cast is None:  # a crowd is told apart by the identity encoder
            self.composer.close_identity()
        self.composer.warm_up(self.wishes.identity, light=self.light)

    @property
    def made_of(self) -> dict[str, Any]:
        """Everything that the pictures depend on beside the clip, for `video_rework.rework`."""
        composer, wishes = self.composer, self.wishes
        made_of = {"identity": wishes.identity.fingerprint, "bundle": composer.bundle.to_json()}
        made_of |= {"engine": composer.provider, "view": wishes.view, "smooth": wishes.smooth}
        made_of |= {"no_face": wishes.no_face, "resolution": composer.resolution, "badge": wishes.badge}
        made_of |= {"mask": wishes.mask, "cast": None if self.cast is None else self.cast.fingerprint}
        made_of |= {"controls": [wishes.controls.pose, wishes.controls.expression]}
        return made_of | {"generator": "light" if self.light else "full"}

    def write(
        self,
        clip: Clip,
        output: Path,
        *,
        trim: tuple[float, float | None] = (0.0, None),
        note: Note | None = None,
        tick: Callable[[int], None] = lambda frames: None,
        work: Reenactment | Crowd | None = None,
    ) -> tuple[int, int]:
        """Write a clip's composition; `trim`, `tick` and what is returned as in `video_rework.rework`. `work`: a fresh
        `reenactment`, for who wants to ask it something afterwards."""
        work, made_of = work or self.reenactment(), self.made_of
        return video_rework.rework(clip, output, work, settings=made_of, trim=trim, note=note, tick=tick)

    def preview(
        self,
        clip: Clip,
        trim: tuple[float, float | None] = (0.0, None),
        tick: Callable[[int], None] = lambda frames: None,
    ) -> Preview:
        """Compose a few frames from all over a clip, and write nothing. `trim`: seconds, as in `write`. `tick` hears
        how many places are done. `InputError` when no frame lies between them."""
        start, stop = trim[0], min(clip.frames / clip.fps, math.inf if trim[1] is None else trim[1])
        after = None if trim[1] is None else clip.first + math.ceil(stop / clip.time_base)
        work, rows, spent = self.reenactment(), [], []
        for place in range(PREVIEWED):
            time_s = max(start, start + (place + 0.5) / PREVIEWED * (stop - start) - RUN_UP / clip.fps)
            stamp, began = clip.first + math.ceil(time_s / clip.time_base), math.inf
            work.reset()
            with closing(read_frames(clip, stamp, after)) as frames:
                for at, image in islice(frames, RUN_UP):
                    shown = work.picture(image, float((at - clip.first) * clip.time_base))
                    spent += [] if began is math.inf else [time.perf_counter() - began]
                    began = time.perf_counter()
                    row = f"{float((at - clip.first) * clip.time_base):.1f} s", image, shown
                rows += [row] if began < math.inf else []
            tick(place + 1)
        if not rows:
            raise InputError(f"{clip.path} has no frames between {start:g} s and {stop:g} s.")
        side = FRAME_SIDE // 2
        pairs = [(words, _beside(shrunk(image, side), shrunk(shown, side))) for words, image, shown in rows]
        count = max(1, round((stop - start) * clip.fps))
        return Preview(column_of_frames(pairs), count, count * float(np.median(spent or [0.0])))


def _beside(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two pictures side by side, the lower one filled up with black."""
    height = max(left.shape[0], right.shape[0])
    return np.hstack([np.pad(one, ((0, height - one.shape[0]), (0, 0), (0, 0))) for one in (left, right)])
