"""What a photo looks like to the composer, and every identity composed with every attribute photo."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from .composer import Composer
    from .controls import Controls
    from .face.align import Alignment
    from .identity import Identity


@dataclass(frozen=True)
class Home:
    """A photo, and where in it the face is that gave the attributes."""

    image: np.ndarray  # RGB uint8 [height, width, 3]
    alignment: Alignment

    def with_head(self, composer: Composer, composed: np.ndarray, mask: str) -> np.ndarray:
        """Return the photo with a composition RGB uint8 [R, R, 3] pasted in; `mask`: one of `paste.MASKS`."""
        return composer.paster(mask, still=True).paste(self.image, composed, self.alignment)


@dataclass(frozen=True)
class Look:
    """One photo, or identity file, of a table or an interpolation: looked at once, used in many pictures."""

    path: Path
    crop: np.ndarray | None  # RGB uint8 [256, 256, 3]; an identity file has none
    identity: Identity | None  # of an identity
    attributes: np.ndarray | None  # attribute code float32 [attributes_size], of an attribute photo
    home: Home | None = None  # of an attribute photo, where compositions are pasted


def look_at_identity(composer: Composer, path: Path, face: int | None = None) -> Look:
    """Read, align and encode one identity photo, or load an identity file, or average a folder of one person."""
    from .identity import SUFFIX

    if path.suffix.lower() == SUFFIX or path.is_dir():
        return Look(path, None, composer.identify(path, face), None)
    crop = composer.crop(path, face, of_identity=True)
    return Look(path, crop, composer.identity_of(crop, refine=True), None)


def look_at_attributes(
    composer: Composer,
    path: Path,
    face: int | None = None,
    paste: bool = False,
    controls: Controls | None = None,
) -> Look:
    """Read, align and encode one attribute photo; with `paste` the photo is kept, for what is composed to go into.
    `controls`: how far pose and expression are followed; None for as they are."""
    image, alignment = composer.locate(path, face)
    crop = alignment.crop(image)
    code = composer.attribute_code(crop) if controls is None else composer.attribute_code(crop, controls)
    return Look(path, crop, None, code, Home(image, alignment) if paste else None)


def compose_cells(
    composer: Composer, tops: Sequence[Look], lefts: Sequence[Look], mask: str = "head"
) -> Iterator[np.ndarray]:
    """Compose every identity with every attributes, row after row: pictures RGB uint8 [R, R, 3], or the attribute
    photos with these pasted in, where they have a home; `mask`: one of `paste.MASKS`."""
    for left in lefts:
        for top in tops:
            if top.identity is not None and left.attributes is not None:
                composed = composer.image(composer.w(top.identity, left.attributes))
                yield composed if left.home is None else left.home.with_head(composer, composed, mask)


def table_of(
    tops: Sequence[Look],
    lefts: Sequence[Look],
    cells: list[list[np.ndarray]],
    top_names: list[str],
    left_names: list[str],
) -> np.ndarray:
    """Draw the table of compositions [attributes][identities] with their photos and names, RGB uint8 [height, width,
    3]."""
    from .media.table import compose_table, squared, text_strip

    side = max(lefts[0].crop.shape[0] if lefts[0].crop is not None else 0, min(cells[0][0].shape[:2]))
    cells = [[squared(cell, side) for cell in row] for row in cells]
    crops = [text_strip("identity file", side, side // 9) if one.crop is None else one.crop for one in tops]
    left_crops = [one.crop for one in lefts if one.crop is not None]
    return compose_table(crops, left_crops, cells, top_names, left_names)


def labels(paths: list[Path]) -> list[str]:
    """Return file names without their endings; with them where two would be the same. `InputError` when even that does
    not tell them apart."""
    times = Counter(path.stem for path in paths)
    labels = [path.stem if times[path.stem] == 1 else path.name for path in paths]
    twice = [label for label, number in Counter(labels).items() if number > 1]
    if twice:
        raise InputError(f"two inputs are called {twice[0]}, so their results would have one name; rename one.")
    return labels


def by_stem(paths: list[Path]) -> dict[str, Path]:
    """Return files by their names without endings. `InputError` for two of one name."""
    files: dict[str, Path] = {}
    for path in paths:
        if path.stem in files:
            raise InputError(f"{files[path.stem]} and {path} have the same name, so pairs are not clear; rename one.")
        files[path.stem] = path
    return files
