"""One long clip as several spans that are composed apart, in other processes or on other machines, and joined.

A span begins as if the clip had been composed from its start. What a reenactment remembers of former frames fades: the
tracker is led back to the detector by an eighth every fourth frame, and its filters have time constants below a second.
So the tracker runs through the `TRACKED` frames before a span (0.88 to the power of 75 is left of a difference), and
everything through the last `SHOWN_S` and `SHOWN` frames; what is left is below what an encoder loses. Where nobody was
seen in that time and the last picture is held, the run before a span is as long as it has to be.

Spans begin at multiples of `video_rework.PART_FRAMES`, so that the encoder begins anew where it does in the whole clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from ..face.head import LOOK_EVERY
from ..media.video import Clip, frame_stamps, read_frames
from ..media.video_rework import PART_FRAMES, rework_span
from .film import Film
from .layout import Reenactment

TRACKED = 300  # frames before a span in which is tracked
SHOWN_S = 2.0  # seconds of them in which everything is computed,
SHOWN = 40  # and at least so many frames: what is behind a pasted head is remembered by frames, a fifth anew in each
LONGER = 4  # times as long is tracked where nobody was seen


def spans_of(clip: Clip, seconds: float) -> list[tuple[int, int]]:
    """Return the spans of a clip, about so many seconds long, as numbers of their first frame and of the one after
    their last; one for the whole clip where it is not worth it or cannot be split."""
    stamps = frame_stamps(clip)
    length = max(1, round(seconds * clip.fps / PART_FRAMES)) * PART_FRAMES
    if stamps is None or len(stamps) < 2 * length:
        return [(0, clip.frames if stamps is None else len(stamps))]
    firsts = list(range(0, len(stamps) - length + 1, length))  # what is left over goes to the last
    return list(zip(firsts, [*firsts[1:], len(stamps)], strict=True))


def write_span(film: Film, clip: Clip, folder: Path, span: tuple[int, int], *, marked: bool) -> None:
    """Compose one span of a clip into an empty folder, for `video_rework.join_spans`."""
    stamps = frame_stamps(clip)
    assert stamps is not None  # else it was not split
    first, after = span
    work = _begun(film, clip, stamps, first)
    rework_span(clip, folder, work, stamps[first], stamps[after] if after < len(stamps) else None, marked=marked)


def _begun(film: Film, clip: Clip, stamps: list[int], first: int) -> Reenactment:
    """A reenactment that remembers what one does that has come to frame `first` from the start."""
    lead = TRACKED
    while True:
        begin = max(0, first - lead)
        work = film.reenactment()
        assert isinstance(work, Reenactment)  # a crowd is not split
        work.reenactor.begin_at(begin)
        lead_shown = max(SHOWN, round(SHOWN_S * clip.fps))
        shown = stamps[max(begin, (first - lead_shown) // LOOK_EVERY * LOOK_EVERY)]  # heads are looked at in turns
        with closing(read_frames(clip, stamps[begin], stamps[first])) as frames:
            seen = first == begin or _run_through(work, ((s, float(s * clip.time_base), i) for s, i in frames), shown)
        if seen or not begin or film.wishes.no_face != "hold":
            return work
        lead *= LONGER


def _run_through(work: Reenactment, frames: Iterator[tuple[int, float, np.ndarray]], shown: int) -> bool:
    """Track what comes before the time stamp `shown`, and compose from there on; returns whether there was a face."""
    wishes, held, lost = work.wishes, None, False
    seen = False
    for stamp, time_s, image in frames:
        if stamp < shown:
            alignment = work.reenactor.track(image, time_s, wishes.smooth)
            lost = alignment is None
            held = held if alignment is None else (image, time_s, alignment)
            continue
        if held is not None and lost:
            work.hold(*held)
        seen |= held is not None
        held = None
        seen |= work.show(image, time_s).seen
    return seen
