"""One long clip as several spans that are composed apart, in other processes or on other machines, and joined.

A span begins as if the clip had been composed from its start. Where the face is, and what is behind the head, depends
on all frames before; so `prepare` follows the face through the whole clip once, without composing, and keeps what is
known where each span begins. What else a reenactment remembers fades within two seconds, in which everything is
computed before a span; what is left is below what an encoder loses.

Spans begin at multiples of `video_rework.PART_FRAMES`, so that the encoder begins anew where it does in the whole clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..face.align import Alignment
from ..media.state import flatten, unflatten
from ..media.video import Clip, frame_stamps, read_frames
from ..media.video_rework import PART_FRAMES, rework_span
from .film import Film
from .layout import Reenactment, ReenactmentState

SHOWN_S = 2.0  # seconds before a span in which everything is computed, times the strength of smoothing above 1,
SHOWN = 40  # and at least so many frames: pictures of parts are averaged by frames


def spans_of(clip: Clip, seconds: float) -> list[tuple[int, int]]:
    """Return the spans of a clip, about so many seconds long, as numbers of their first frame and of the one after
    their last; one for the whole clip where it is not worth it or cannot be split."""
    stamps = frame_stamps(clip)
    length = max(1, round(seconds * clip.fps / PART_FRAMES)) * PART_FRAMES
    if stamps is None or len(stamps) < 2 * length:
        return [(0, clip.frames if stamps is None else len(stamps))]
    firsts = list(range(0, len(stamps) - length + 1, length))  # what is left over goes to the last
    return list(zip(firsts, [*firsts[1:], len(stamps)], strict=True))


@dataclass(frozen=True)
class Begun:
    """What is known of a clip where a span begins to be computed."""

    state: ReenactmentState
    last: int = -1  # the last frame with a face, whose picture is held while nobody is seen; -1: there was none
    alignment: Alignment | None = None  # of it


def lead_begin(film: Film, clip: Clip, first: int) -> int:
    """Return the frame from which everything is computed for a span that begins with frame `first`."""
    return max(0, first - max(SHOWN, round(SHOWN_S * max(1.0, film.wishes.smooth) * clip.fps)))


def prepare(film: Film, clip: Clip, folder: Path, firsts: Sequence[int]) -> None:
    """Follow the face through a clip, and write into a folder what is known where the spans of these first frames begin
    to be computed."""
    work, begins = _reenactment(film), {lead_begin(film, clip, first) for first in firsts}
    last: tuple[int, Alignment] | None = None  # the last frame with a face
    with closing(read_frames(clip)) as frames:
        for number, (stamp, image) in enumerate(frames):
            if number in begins:
                begun = Begun(work.state) if last is None else Begun(work.state, *last)
                np.savez_compressed(folder / f"{number}.npz", allow_pickle=False, **flatten(begun))
                begins.remove(number)
                if not begins:
                    return
            alignment = work.follow(image, float(stamp * clip.time_base))
            last = last if alignment is None else (number, alignment)


def write_span(film: Film, clip: Clip, prepared: Path, folder: Path, span: tuple[int, int], *, marked: bool) -> None:
    """Compose one span of a clip into an empty folder, for `video_rework.join_spans`; `prepared`: see `prepare`."""
    stamps, (first, after) = frame_stamps(clip), span
    assert stamps is not None  # else it was not split
    begin, work = lead_begin(film, clip, first), _reenactment(film)
    with np.load(prepared / f"{begin}.npz", allow_pickle=False) as arrays:
        begun = unflatten(Begun, dict(arrays))
    if begun.alignment is not None:
        with closing(read_frames(clip, stamps[begun.last], stamps[begun.last + 1])) as frames:
            stamp, image = next(frames)
            work.hold(image, float(stamp * clip.time_base), begun.alignment)
    layout = replace(begun.state.layout, held=work.state.layout.held)
    work.state = replace(begun.state, layout=layout)
    with closing(read_frames(clip, stamps[begin], stamps[first])) as frames:
        for stamp, image in frames:
            work.show(image, float(stamp * clip.time_base))
    rework_span(clip, folder, work, stamps[first], stamps[after] if after < len(stamps) else None, marked=marked)


def _reenactment(film: Film) -> Reenactment:
    work = film.reenactment()
    assert isinstance(work, Reenactment)  # a crowd is not split
    return work
