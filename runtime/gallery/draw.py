"""The pictures of a gallery: the user's people in a table, one becoming another, one turning, and one replaced."""

from __future__ import annotations

import io
import shlex
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import cv2
import numpy as np

from ..assets import shipped_faces
from ..composer import Composer
from ..deidentify.replace import Deidentifier, tracks_of_photo
from ..deidentify.stand_in import People
from ..deidentify.traits import known_candidates
from ..errors import FidError
from ..interpolate import interpolate, strip
from ..labels.mark import embed_mark
from ..labels.provenance import Note, embed_note
from ..looks import Look, compose_cells, look_at_attributes
from ..media.images import encode_image, read_image
from ..media.table import compose_table
from ..sample import Sampler
from .page import Section

MOST_PEOPLE = 6  # in the table
ROWS = ("laughing", "outdoors", "aside")  # shipped faces that give pose, expression and light
TURN = ("aside", "laughing", "outdoors", "aside")  # shipped faces that a person turns through
TURN_STEPS = 8  # pictures from one of them to the next
STEPS = 6
CELL, TURN_SIDE = 168, 256  # px
FRAME_MS = 90
WIDEST = 720  # px, of a photo that is shown
NoteOf = Callable[[str, bool], Note | None]  # the note of a kind of picture, and whether it shows the photos as well


def sections(composer: Composer, people: Sequence[Look], note_of: NoteOf) -> Iterator[Section]:
    """Yield the parts of a gallery as they are ready.

    `people`: everybody who was found in the user's photos, with crop and identity. A part that cannot be made, such as
    one whose model cannot be fetched, says why instead.
    """
    faces = shipped_faces("attributes")
    looks = {name: look_at_attributes(composer, faces[name]) for name in dict.fromkeys((*ROWS, *TURN))}
    yield _table(composer, people[:MOST_PEOPLE], [looks[name] for name in ROWS], note_of)
    yield _way(composer, people, looks, note_of)
    yield _turn(composer, people[0], [looks[name] for name in TURN], note_of)
    yield _replaced(composer, people[-1], note_of)


def _table(composer: Composer, people: Sequence[Look], lefts: Sequence[Look], note_of: NoteOf) -> Section:
    cells = [_small(cell, CELL) for cell in compose_cells(composer, people, lefts)]
    rows = [cells[start : start + len(people)] for start in range(0, len(cells), len(people))]
    tops, sides = ([one.crop for one in side if one.crop is not None] for side in (people, lefts))
    picture = compose_table(tops, sides, rows, [one.path.stem for one in people], list(ROWS))
    files = " ".join(f"--identities {shlex.quote(str(one.path))}" for one in people)
    return Section(
        "Your people, with somebody else's pose, expression and light",
        "On top stand your photos. On the left stand faces that ship with fid, of people who do not exist; put "
        "photos of your own there.",
        f"fid-run grid {files} --attributes poses/ -o grid.png",
        [(encode_image(picture, ".jpg", note_of("grid", True)), ".jpg", "A table of composed faces")],
    )


def _way(composer: Composer, people: Sequence[Look], looks: dict[str, Look], note_of: NoteOf) -> Section:
    who, what = people[:2], [looks["laughing"]] if len(people) > 1 else [looks["laughing"], looks["aside"]]
    identities = [one.identity for one in who if one.identity is not None]
    codes = [one.attributes for one in what if one.attributes is not None]
    frames = [_small(frame, CELL) for frame in interpolate(composer, identities, codes, STEPS)]
    ends = [_small(one.crop, CELL) for one in (who if len(who) == 2 else what) if one.crop is not None]
    shown = " ".join(f"--identity {shlex.quote(str(one.path))}" for one in who)
    attributes = " ".join(f"--attributes {name}.jpg" for name in ("bob", "eve")[: len(what)])
    return Section(
        "From one person to another" if len(who) == 2 else "From one expression to another",
        "Everything else stands still. An ending of .gif or .mp4 makes an animation of it.",
        f"fid-run interpolate {shown} {attributes} -o strip.png",
        [
            (
                encode_image(strip(frames, ends), ".jpg", note_of("interpolation", True)),
                ".jpg",
                "Faces between two photos",
            )
        ],
    )


def _turn(composer: Composer, person: Look, ways: Sequence[Look], note_of: NoteOf) -> Section:
    assert person.identity is not None
    frames: list[np.ndarray] = []
    for start, end in pairwise(ways):
        codes = [one.attributes for one in (start, end) if one.attributes is not None]
        steps = list(interpolate(composer, [person.identity], codes, TURN_STEPS + 1))
        frames += [_small(frame, TURN_SIDE) for frame in steps[:-1]]
    return Section(
        "One photo turns and speaks",
        "Your first photo, led by other faces. In front of a camera you lead it, in a video whoever is in it.",
        f"fid-run webcam --identity {shlex.quote(str(person.path))}",
        [(_animation(frames, note_of("interpolation", False)), ".webp", "A face that turns and laughs")],
    )


def _replaced(composer: Composer, person: Look, note_of: NoteOf) -> Section:
    title, command = (
        "Somebody who was there and is not any more",
        f"fid-run deidentify {shlex.quote(str(person.path))} -o out.png",
    )
    try:
        image = read_image(person.path)
        sampler = Sampler(composer)
        people = People(composer, lambda seed: sampler.person(seed)[1], 0, measured=known_candidates(composer))
        picture = Deidentifier(composer, people, tracks_of_photo(composer, image)).picture(image, 0.0)
    except FidError as error:
        return Section(title, f"This could not be made here: {error}", command, [])
    sides = [_narrow(one) for one in (image, picture)]
    data = encode_image(np.hstack(sides), ".jpg", note_of("deidentification", True))
    text = "Everybody in the photo becomes a synthetic person. The command also asks recognisers whether they see it."
    return Section(title, text, command, [(data, ".jpg", "A photo as it was, and with a synthetic person in it")])


def _animation(frames: Sequence[np.ndarray], note: Note | None) -> bytes:
    """Pictures RGB uint8 [height, width, 3] as a WebP animation that goes on for ever."""
    from PIL import Image

    images = [Image.fromarray(embed_mark(frame) if note is not None and note.mark else frame) for frame in frames]
    file = io.BytesIO()
    images[0].save(file, "WEBP", save_all=True, append_images=images[1:], duration=FRAME_MS, loop=0, quality=85)
    return file.getvalue() if note is None else embed_note(file.getvalue(), note)


def _small(image: np.ndarray, side: int) -> np.ndarray:
    """A square picture RGB uint8 at `side` px."""
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)


def _narrow(image: np.ndarray) -> np.ndarray:
    """A picture RGB uint8 [height, width, 3] of at most `WIDEST` px."""
    factor = min(1.0, WIDEST / max(image.shape[:2]))
    size = round(image.shape[1] * factor), round(image.shape[0] * factor)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA) if factor < 1 else image
