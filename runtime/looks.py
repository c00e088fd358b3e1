"""What a photo looks like to the composer, and every identity composed with every attribute photo."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from .composer import Composer
    from .identity import Identity


@dataclass(frozen=True)
class Look:
    """One photo, or identity file, of a table or an interpolation: looked at once, used in many pictures."""

    path: Path
    crop: np.ndarray | None  # RGB uint8 [256, 256, 3]; an identity file has none
    identity: Identity | None  # of an identity
    attributes: np.ndarray | None  # attribute code float32 [attributes_size], of an attribute photo


def look_at_identity(composer: Composer, path: Path, face: int | None = None) -> Look:
    """Read, align and encode one identity photo, or load an identity file, or average a folder of one person."""
    from .identity import SUFFIX

    if path.suffix.lower() == SUFFIX or path.is_dir():
        return Look(path, None, composer.identify(path, face), None)
    crop = composer.crop(path, face, of_identity=True)
    return Look(path, crop, composer.identity_of(crop, refine=True), None)


def look_at_attributes(composer: Composer, path: Path, face: int | None = None) -> Look:
    """Read, align and encode one attribute photo."""
    crop = composer.crop(path, face)
    return Look(path, crop, None, composer.attribute_code(crop))


def compose_cells(composer: Composer, tops: Sequence[Look], lefts: Sequence[Look]) -> Iterator[np.ndarray]:
    """Compose every identity with every attributes, row after row: pictures RGB uint8 [R, R, 3]."""
    for left in lefts:
        for top in tops:
            if top.identity is not None and left.attributes is not None:
                yield composer.image(composer.w(top.identity, left.attributes))
