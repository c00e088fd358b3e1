"""Compose a whole clip into a file: the work of `fid-run video`, and of one file of `fid-run batch video`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..composer import Composer
from ..media import video_rework
from ..media.video import Clip
from .crowd import Cast, Crowd
from .layout import Reenactment, Wishes
from .reenact import Reenactor

if TYPE_CHECKING:
    from ..labels.provenance import Note


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
