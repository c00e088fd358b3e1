"""The third pass: is anybody left? The output is searched again, and every face compared with the original.

A face counts as still there when both recognisers take what stands in its place for the same person, or when the middle
of it has hardly changed and its detail is still there: a dark face made one plain colour hardly changes, and is gone.
Where the recognisers do not even know the original again in other frames (too small, a profile, blurred), their silence
says nothing, and the verdict is "unknown" unless the pixels tell; nor does their word where they know it again in one
plain colour, as if it were a soft patch of a wall. They are not asked about a face of which less than half lies in the
picture: there, pixels alone tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..face.align import align
from ..face.detect import MIN_SCORE, Detector, Face
from ..face.search import find_all, visible_part
from .hide import detail_left, middle_difference, mosaic
from .judges import STRICT, Codes, Judges, likeness, recognisable
from .places import WHOLE, Place, Track, same_place
from .scan import CAREFUL_S

UNCHANGED = 6.0  # 0..255, mean difference in the middle of a face below which it is the original
LEFT = 0.25  # part of a face's detail that is there then, dark, marked and encoded too; of a plain place 0 to 0.2
JUDGED = 0.5  # part of a face that must lie in the picture if recognisers are to be asked: beyond it, a crop is made up
# of the picture's mirror image, and from `WHOLE` on, it is not so like its own mirror image for that reason
NEAR = 0.25  # cosine of SFace from which on dlib's recogniser is asked in every frame: below, there is no match
LOOK_EVERY = 10  # frames of one face from one look at the original to the next, and to dlib's next look at the output
REFERENCES = 24  # looks at the original, at most


@dataclass
class Evidence:
    """What was seen of one track's face."""

    track: Track
    frames: list[int] = field(default_factory=list)  # those in which it was compared
    originals: list[Codes] = field(default_factory=list)
    after: list[Codes] = field(default_factory=list)  # one for each of `frames`
    unchanged: list[int] = field(default_factory=list)  # frames
    mirrored: bool = False  # whether the original was looked at in the mirror as well
    plain: Codes | None = None  # the original in one plain colour: what says "one person" of it says nothing

    def report(self, person: int | None) -> dict[str, Any]:
        """Return what is told of it: counts, likeness before and after, frames in which it still matches."""
        alike = [likeness(self.originals, codes) for codes in self.after] if self.originals else []
        known = self.track.sure and recognisable(self.originals) and not self._known_in_plain()
        still = {frame for frame, one in zip(self.frames, alike, strict=False) if known and one.matches}
        still |= set(self.unchanged)
        others = [self.originals[:i] + self.originals[i + 1 :] for i in range(len(self.originals))]
        before = [likeness(rest, one) for rest, one in zip(others, self.originals, strict=True) if rest]
        apart = [one.distance for one in alike if one.distance is not None]
        return {
            "track": self.track.number,
            "person": person,
            "frames": len(self.frames),
            "verdict": "matches" if still else "gone" if known else "unknown",
            "cosine_before": _mean([one.cosine for one in before]),
            "cosine_after": _mean([one.cosine for one in alike]),
            "cosine_after_worst": _rounded(max((one.cosine for one in alike), default=None)),
            "distance_before": _mean([one.distance for one in before if one.distance is not None]),
            "distance_after": _mean(apart),
            "distance_after_worst": _rounded(min(apart, default=None)),
            "accepted_strictly": _mean([float(one.cosine >= STRICT) for one in alike]) if known else None,
            "unchanged_frames": ranges(self.unchanged),
            "still_matching_frames": ranges(still),
        }

    def _known_in_plain(self) -> bool:
        """Whether both recognisers know the original again where there is nothing of it; SFace alone does that to some
        real faces."""
        plain = self.plain
        return plain is not None and plain.dlib is not None and likeness(self.originals, plain).matches


class Verdict:
    """Takes original and output, frame by frame. For one thread."""

    def __init__(
        self,
        detector: Detector,
        judges: Judges,
        chosen: Callable[[int], list[tuple[Track, Place]]],
        every: int = 1,
        first: int = 0,
    ) -> None:
        """`chosen`: what was to be replaced in a frame, by its number. `every`: frames from one careful search of the
        output to the next, and `first` the frame of the first one."""
        self._detector, self._judges, self._chosen, self._every, self._first = detector, judges, chosen, every, first
        self.evidence: dict[int, Evidence] = {}  # by track
        self.missed: dict[int, list[Face]] = {}  # by frame: original faces that nobody had found
        self._frame = 0

    def add(self, original: np.ndarray, output: np.ndarray) -> None:
        """The next frame RGB uint8 [height, width, 3], as it was and as it is; the output may lack one row, column."""
        frame, shape = self._frame, output.shape
        original = original[: shape[0], : shape[1]]
        there = self._chosen(frame)
        for track, place in there:
            if place.seen and place.points is not None:
                self._compare(track, place, original, output, frame)
        if frame % self._every == self._first:
            self._search(original, output, frame, [place for _, place in there])
        self._frame += 1

    def _compare(self, track: Track, place: Place, original: np.ndarray, output: np.ndarray, frame: int) -> None:
        own = self.evidence.setdefault(track.number, Evidence(track))
        near = middle_difference(original, output, place.box) < UNCHANGED
        if near and detail_left(original, output, place.box) >= LEFT:
            own.unchanged.append(frame)
        assert place.points is not None
        part = visible_part(Face(place.box, place.points, place.score), output.shape)
        if part < JUDGED:
            return
        alignment = align(place.points)
        whole = part >= WHOLE and not own.mirrored  # for the first time
        told = whole or len(own.frames) % LOOK_EVERY == 0
        if told and len(own.originals) < REFERENCES:
            crop = alignment.crop(original)
            own.originals.append(self._judges.look(crop))
            if own.plain is None:
                own.plain = self._judges.look(alignment.crop(mosaic(original, place.box, (1,))))
            if whole:  # so that a face of one frame has another view of itself
                own.mirrored = True
                own.originals.append(self._judges.look(np.ascontiguousarray(crop[:, ::-1])))
        crop = alignment.crop(output)
        codes = self._judges.look(crop, both=told)
        if not told and likeness(own.originals, codes).cosine >= NEAR:
            codes = self._judges.look(crop)
        own.frames.append(frame)
        own.after.append(codes)

    def _search(self, original: np.ndarray, output: np.ndarray, frame: int, places: Sequence[Place]) -> None:
        """Look with all care for faces in the output that are faces of the original."""
        for face in find_all(self._detector, output):
            if face.score < MIN_SCORE or any(_covered(face, place) for place in places):
                continue
            if middle_difference(original, output, face.box) < UNCHANGED:
                self.missed.setdefault(frame, []).append(face)

    def report(self, persons: dict[int, int]) -> dict[str, Any]:
        """Return the verdict over all faces; `persons`: who it is, by track."""
        tracks = [own.report(persons.get(number)) for number, own in sorted(self.evidence.items())]
        count = {name: sum(track["verdict"] == name for track in tracks) for name in ("matches", "gone", "unknown")}
        return {
            "recognisers": self._judges.names,
            "second_recogniser_absent": self._judges.absent or None,
            "still_matching": count["matches"] + len(self.missed),
            "gone": count["gone"],
            "unknown": count["unknown"],
            "missed_frames": ranges(self.missed),
            "faces": tracks,
        }


def careful_frames(fps: float, count: int) -> tuple[int, int]:
    """Return how many frames lie from one careful search of the output to the next, and the first one that is searched
    so: half way between two of the first pass, in a clip of `count` frames."""
    every = max(1, round(2 * CAREFUL_S * fps))
    return every, min(every // 4, count // 2)


def ranges(frames: Iterable[int]) -> list[list[int]]:
    """Frame numbers as ranges [first, last]."""
    found: list[list[int]] = []
    for frame in sorted(set(frames)):
        if found and frame == found[-1][1] + 1:
            found[-1][1] = frame
        else:
            found.append([frame, frame])
    return found


def _covered(face: Face, place: Place) -> bool:
    """Whether a face found in the output is what was put into a place."""
    x, y = face.box[0] + face.box[2] / 2, face.box[1] + face.box[3] / 2
    left, top, width, height = place.box
    inside = left - 0.3 * width < x < left + 1.3 * width and top - 0.3 * height < y < top + 1.3 * height
    return inside or same_place(face.box, place.box)


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return _rounded(float(np.mean(known))) if known else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 3)
