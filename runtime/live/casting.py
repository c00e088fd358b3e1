"""Who in a camera or clip becomes whom: `--identity FILE@N`, `--who`, `--face`, `--faces`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..composer import Composer
from ..errors import InputError
from ..identity import Identity, average
from .crowd import Cast


@dataclass(frozen=True)
class Casting:
    """What was asked for, before any photo is read."""

    everybody: tuple[Path, ...]  # identity photos of one person, for whoever is meant
    numbered: tuple[tuple[int, Path], ...] = ()
    known: tuple[tuple[Path, Path], ...] = ()  # photo of somebody in the clip, identity photo
    face: int | None = None
    all_faces: bool = False

    @classmethod
    def parse(cls, identities: Sequence[Path], who: Sequence[str], face: int | None, faces: str | None) -> Casting:
        """Read the options. `InputError` for what does not go together."""
        numbered, everybody = [], []
        for path in identities:
            named = re.fullmatch(r"(.+)@(\d+)", str(path))
            if named and not path.exists():
                numbered.append((int(named[2]), Path(named[1])))
            else:
                everybody.append(path)
        known = []
        for pair in who:
            there, equals, identity = pair.partition("=")
            if not (there and equals and identity):
                raise InputError(f"--who {pair} is not understood; give WHO.jpg=IDENTITY.jpg.")
            known.append((Path(there), Path(identity)))
        numbers = [number for number, _ in numbered]
        if 0 in numbers or len(set(numbers)) < len(numbers):
            raise InputError("people are counted from 1, and each number is given once: ann.jpg@1, bob.jpg@2.")
        if everybody and (numbered or known) and faces != "all":
            raise InputError(
                f"it is not clear who becomes {everybody[0]}: write {everybody[0]}@N for person N, or --faces all for "
                "everybody else."
            )
        if face is not None and (numbered or known or faces == "all"):
            raise InputError("--face N is for one identity; leave it out beside FILE@N, --who and --faces all.")
        if not everybody and (face is not None or faces == "all"):
            raise InputError("--face and --faces need an --identity without a number.")
        return cls(tuple(everybody), tuple(numbered), tuple(known), face, faces == "all")

    @property
    def several(self) -> bool:
        """Whether anything but the largest face is meant."""
        return bool(self.numbered or self.known or self.face or self.all_faces)

    @property
    def photos(self) -> list[Path]:
        """All files that are read."""
        return [*self.everybody, *(path for _, path in self.numbered), *(path for pair in self.known for path in pair)]

    def person(self, composer: Composer, identity_face: int | None = None) -> Identity:
        """Return the identity of those photos that are of nobody in particular."""
        return average([composer.identify(path, identity_face) for path in self.everybody])

    def cast(self, composer: Composer, identity_face: int | None = None) -> Cast:
        """Return who becomes whom, all photos looked at."""
        numbered = [(number, composer.identify(path, identity_face)) for number, path in self.numbered]
        known = [
            (composer.identity_code(composer.crop(there)), composer.identify(path, identity_face))
            for there, path in self.known
        ]
        others = None
        if self.everybody:
            others = self.person(composer, identity_face)
        if self.face is not None and others is not None:
            numbered, others = [(self.face, others)], None
        return Cast(tuple(numbered), tuple(known), others)
