"""Between two photos while the rest stands still: attributes with one identity, or identities with one's attributes.

In W, both ends are mapped to w and the way between them is straight there (Figs 11 and 12 of the paper): the
generator's own smoothness. In z, the concatenated codes, the moving code is interpolated and every step goes through
the mapper (Figs 16 and 17): that shows whether the representation itself is disentangled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from .composer import Composer
from .errors import FidError, InputError
from .files import replacing
from .identity import Identity
from .labels.mark import embed_mark
from .labels.provenance import Note, embed_note
from .media.images import PICTURE_SUFFIXES, check_output, write_image

SPACES = ("w", "z")
ANIMATION_SUFFIXES = (".gif", ".mp4")
OUTPUT_SUFFIXES = (*PICTURE_SUFFIXES, *ANIMATION_SUFFIXES)
VIDEO_CODECS = ("vp09", "mp4v")  # the first that OpenCV's FFmpeg can write; browsers play VP9, and not MPEG-4 part 2
STRIP_GAP = 8  # px, white, between the photos at the ends of a strip and the pictures between them


def interpolate(
    composer: Composer, identities: Sequence[Identity], attributes: Sequence[np.ndarray], steps: int, space: str = "w"
) -> Iterator[np.ndarray]:
    """Compose `steps` pictures, RGB uint8 [R, R, 3], in even steps; the first and the last are the two compositions.

    One of `identities` and `attributes` (attribute codes, float32 [attributes_size]) has two entries, the other one.
    `space` is "w" or "z". Raises `InputError` for any other numbers.
    """
    check_numbers(len(identities), len(attributes))
    if steps < 2:
        raise InputError(f"interpolation needs at least 2 steps, and {steps} was asked for.")
    if space not in SPACES:
        raise InputError(f"there is no space {space!r} to interpolate in; there are {' and '.join(SPACES)}.")
    (start, end), way = (identities[0], identities[-1]), np.linspace(0.0, 1.0, steps)
    if space == "w":
        first, last = composer.w(start, attributes[0]), composer.w(end, attributes[-1])
        for t in way:
            yield composer.image(between(first, last, t))
    else:
        for t in way:
            yield composer.image(composer.w(identity_between(start, end, t), between(attributes[0], attributes[-1], t)))


def check_numbers(identities: int, attributes: int) -> None:
    """Raise `InputError` unless there are two of one and one of the other."""
    if sorted((identities, attributes)) != [1, 2]:
        raise InputError(
            "interpolation needs one identity and two attribute photos, or two identities and one attribute photo; "
            f"there are {identities} and {attributes}."
        )


def between(first: np.ndarray, last: np.ndarray, t: float) -> np.ndarray:
    """Return float32, the straight way from `first` (t = 0) to `last` (t = 1); exact at both ends."""
    return ((1.0 - t) * first + t * last).astype(np.float32)


def identity_between(first: Identity, last: Identity, t: float) -> Identity:
    """On the straight way, the code brought back to unit length: the mapper has never seen another one."""
    if first is last:
        return first
    if first.encoder != last.encoder:
        raise InputError(f"there is no way between identities of {first.encoder} and {last.encoder}.")
    code = between(first.code, last.code, t)
    length = float(np.linalg.norm(code))
    if length < 1e-6:
        raise InputError("the two identities are exact opposites: there is no way between them.")
    zero = np.zeros((1, 1), np.float32)
    start, end = (zero if i.w_plus_offset is None else i.w_plus_offset for i in (first, last))
    offset = None if first.w_plus_offset is None and last.w_plus_offset is None else between(start, end, t)
    mapper = None if offset is None else first.mapper or last.mapper
    looks = None
    if first.appearance is not None and last.appearance is not None:
        looks = between(first.appearance, last.appearance, t)
    unit = (code / length).astype(np.float32)
    return Identity(unit, first.encoder, 0, offset, mapper, looks, None if looks is None else first.attributes)


def write_interpolation(
    path: Path,
    frames: Sequence[np.ndarray],
    ends: Sequence[np.ndarray] = (),
    *,
    frames_per_second: float = 25.0,
    note: Note | None = None,
) -> None:
    """Write the pictures by the ending of `path`: a strip (PNG, JPEG, WebP), or an animation (GIF, MP4).

    `frames` are RGB uint8 [R, R, 3]; `ends` the two photos, crops in RGB uint8, that stand left and right of a strip.
    An animation runs there and back, so that it can be played round and round.
    """
    check_output(path, OUTPUT_SUFFIXES)
    suffix = path.suffix.lower()
    if suffix in PICTURE_SUFFIXES:
        write_image(path, strip(frames, ends), note)
        return
    frames = [embed_mark(frame) for frame in frames] if note is not None and note.mark else frames
    round_trip = [*frames, *frames[-2:0:-1]]
    write: Callable[[Path, Sequence[np.ndarray], float], None] = _write_gif if suffix == ".gif" else _write_mp4
    with replacing(path) as temporary:
        write(temporary, round_trip, frames_per_second)
        if note is not None:
            temporary.write_bytes(embed_note(temporary.read_bytes(), note))


def strip(frames: Sequence[np.ndarray], ends: Sequence[np.ndarray] = ()) -> np.ndarray:
    """Return the pictures side by side, RGB uint8 [R, width, 3], with the two photos a little off at either end."""
    side = frames[0].shape[0]
    row = np.hstack(list(frames))
    if not ends:
        return row
    gap = np.full((side, STRIP_GAP, 3), 255, np.uint8)
    first, last = (cv2.resize(end, (side, side), interpolation=cv2.INTER_CUBIC) for end in ends)
    return np.hstack([first, gap, row, gap, last])


def _write_gif(path: Path, frames: Sequence[np.ndarray], frames_per_second: float) -> None:
    animation = cv2.Animation()
    animation.frames = [cv2.cvtColor(frame, cv2.COLOR_RGB2BGR) for frame in frames]
    ms = max(20, round(100 / frames_per_second) * 10)  # GIF counts in 10 ms, and viewers slow down what is under 20
    animation.durations = [ms] * len(frames)
    animation.loop_count = 0  # for ever
    options = [cv2.IMWRITE_GIF_COLORTABLE, 1, cv2.IMWRITE_GIF_DITHER, 3]  # own colours for each frame: 37 dB, not 21
    if not cv2.imwriteanimation(str(path), animation, options):
        raise FidError(f"{path.name} could not be encoded as GIF.")


def _write_mp4(path: Path, frames: Sequence[np.ndarray], frames_per_second: float) -> None:
    height, width = frames[0].shape[:2]
    for codec in VIDEO_CODECS:
        writer = cv2.VideoWriter(
            str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), frames_per_second, (width, height)
        )
        if writer.isOpened():
            for frame in frames:
                writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
            writer.release()
            return
    raise FidError(f"this build of OpenCV writes no MP4 video; write {path.stem}.gif instead.")


def mixed_w(
    composer: Composer, people: Sequence[Identity], codes: Sequence[np.ndarray], s: float, t: float, space: str = "w"
) -> np.ndarray:
    """Return w float32 [w_size], or W+ [n_styles, w_size], at `s` of the way between one or two people and `t` between
    one or two attribute codes.

    In W the two to four compositions are blended bilinearly: with one of the two ways it is `interpolate`'s straight
    line. In z the codes are, and then mapped.
    """
    if space == "z":
        return composer.w(identity_between(people[0], people[-1], s), between(codes[0], codes[-1], t))
    corners = [[composer.w(person, code) for code in codes] for person in people]
    rows = [between(row[0], row[-1], t) if len(row) == 2 else row[0] for row in corners]
    return between(rows[0], rows[-1], s) if len(rows) == 2 else rows[0]
