"""Draw the README's pictures from the shipped bundle and the shipped faces.

    python docs/pictures/make_pictures.py    writes the still pictures of the README into docs/

Each picture carries the note that it is synthetic. JPEG keeps a table of faces small enough for a repository.
"""

from pathlib import Path

import click
import cv2
import numpy as np
from fid.runtime import Composer
from fid.runtime.assets import FACES
from fid.runtime.deidentify.judges import Judges
from fid.runtime.deidentify.replace import Deidentifier, tracks_of_photo
from fid.runtime.deidentify.stand_in import People
from fid.runtime.deidentify.traits import known_candidates
from fid.runtime.interpolate import interpolate, strip
from fid.runtime.media.images import find_photos, read_image, write_image
from fid.runtime.media.table import compose_table
from fid.runtime.sample import Sampler

DOCS = Path(__file__).resolve().parents[1]


ROWS = ("aside", "laughing", "shade")  # the grid's attributes: with all of them it would fill more than a screen
CELL = 176  # px, side of one face in the grid
STEP = 128  # px, side of one face in the interpolations
STEPS = 7
GAP = 8  # px, between the two interpolations
LIMITS = {"cap": 93, "sunglasses": 61}  # what goes wrong, and which sampled person wears it
LIMIT_ROWS = ("laughing", "outdoors", "speaking")


def shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """Return a square picture at `side` px: uint8 [side, side, 3]."""
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)


def grid(composer: Composer, identities: list[Path], attributes: list[Path]) -> np.ndarray:
    """Return the labelled identity x attributes table."""
    tops, lefts = ([composer.crop(path) for path in paths] for paths in (identities, attributes))
    people = [composer.identify(path) for path in identities]
    codes = [composer.attribute_code(crop) for crop in lefts]
    cells = [[shrunk(composer.image(composer.w(person, code)), CELL) for person in people] for code in codes]
    labels = [[path.stem.partition("-")[2] for path in paths] for paths in (identities, attributes)]
    return compose_table(tops, lefts, cells, *labels)


def one(composer: Composer, identity: Path, attributes: Path) -> np.ndarray:
    """Return the identity photo, the composed picture, and the attribute photo, side by side."""
    composer.set_identity(identity)
    return strip([composer.compose(attributes)], (composer.crop(identity), composer.crop(attributes)))


def two_ways(composer: Composer, identities: list[Path], attributes: list[Path]) -> np.ndarray:
    """Return two rows: above, one identity from attributes to attributes; below, one attribute photo from person to
    person; in W."""
    people = [composer.identify(path) for path in identities]
    crops = [composer.crop(path) for path in attributes]
    codes = [composer.attribute_code(crop) for crop in crops]
    faces = [composer.crop(path) for path in identities]
    rows = []
    for row_people, row_codes, ends in ((people[:1], codes[:2], crops[:2]), (people[:2], codes[:1], faces[:2])):
        frames = [shrunk(frame, STEP) for frame in interpolate(composer, row_people, row_codes, STEPS)]
        rows.append(strip(frames, [shrunk(end, STEP) for end in ends]))
    gap = np.full((GAP, rows[0].shape[1], 3), 255, np.uint8)
    return np.vstack([rows[0], gap, rows[1]])


def replaced(composer: Composer, photo: Path) -> np.ndarray:
    """Return a photo and what de-identification makes of it, side by side."""
    sampler = Sampler(composer)
    image = read_image(photo)
    chosen = {"measured": known_candidates(composer), "judges": Judges(composer)}
    people = People(composer, lambda seed: sampler.person(seed)[1], 0, **chosen)
    work = Deidentifier(composer, people, tracks_of_photo(composer, image))
    return np.hstack([image, work.picture(image, 0.0)])


def gone_wrong(composer: Composer, seed: int) -> np.ndarray:
    """Return a sampled person who wears something, and what becomes of it with three photos' attributes."""
    worn, _ = Sampler(composer, psi=1.0).person(seed)
    who = composer.identify(worn)
    codes = [composer.attribute_code(composer.crop(FACES / f"attributes-{name}.jpg")) for name in LIMIT_ROWS]
    pictures = [worn, *(composer.image(composer.w(who, code)) for code in codes)]
    return np.hstack([shrunk(picture, CELL) for picture in pictures])


@click.command(help=__doc__)
@click.option("--bundle", type=click.Path(exists=True, path_type=Path), help="Default: the bundle that ships with fid.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), default=DOCS)
def main(bundle: Path | None, output: Path) -> None:
    composer = Composer(bundle)
    faces = find_photos([FACES])
    identities = [path for path in faces if path.stem.startswith("identity-")]
    attributes = [path for path in faces if path.stem.startswith("attributes-")]
    output.mkdir(exist_ok=True)
    pictures = {
        "grid": grid(composer, identities, [FACES / f"attributes-{name}.jpg" for name in ROWS]),
        "compose": one(composer, identities[0], attributes[0]),
        "deidentify": replaced(composer, FACES / "identity-dave.jpg"),
        "interpolate": two_ways(composer, identities, attributes),
        **{f"limit-{name}": gone_wrong(composer, seed) for name, seed in LIMITS.items()},
    }
    for name, picture in pictures.items():
        path = output / f"{name}.jpg"
        write_image(path, picture, composer.note(name))
        click.echo(f"{path}: {picture.shape[1]} x {picture.shape[0]}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
