"""Where faces are in a photo or clip: one place for each face and frame, tied together as tracks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from ..face.detect import MAX_YAW_DEGREES, MIN_FACE_PX, MIN_SCORE, WARN_SCORE, Face
from ..face.search import visible_part

Box = tuple[float, float, float, float]  # left, top, width, height, px

WHOLE = 0.85  # part of a face's box that must lie in the picture if the face is to be composed
SAME_PLACE = 0.6  # of the width: nearer than that, two faces of one frame or of neighbouring frames are one
SAME_SIZE = 2.2  # and neither more than so many times as wide as the other


@dataclass(frozen=True)
class Place:
    """A face in one frame; px of the frame, pixel centres at whole coordinates."""

    box: Box
    points: np.ndarray | None  # float64 [5, 2] as in `Face`; None where nobody was seen, and the place is hidden
    score: float  # 0..1, certainty of the detector; 0 where it did not see the face
    seen: bool  # by the detector, in this frame

    @property
    def centre(self) -> np.ndarray:
        """(x, y) px."""
        left, top, width, height = self.box
        return np.array([left + width / 2, top + height / 2])

    def composable(self, shape: tuple[int, ...]) -> bool:
        """Return whether a head can be composed here, in a frame of that shape [height, width, 3]: wide enough, no
        profile, and not cut by the border."""
        if self.points is None or min(self.box[2:]) < MIN_FACE_PX:
            return False
        face = Face(self.box, self.points, self.score)
        return abs(face.yaw_degrees) <= MAX_YAW_DEGREES and visible_part(face, shape) >= WHOLE


@dataclass
class Track:
    """One face through a clip."""

    number: int
    places: dict[int, Place] = field(default_factory=dict)  # by frame, from 0
    person: int | None = None  # whom a track file names; None: found out
    action: str | None = None  # what a track file asks for, see `track_file.ACTIONS`; None: replace

    def __post_init__(self) -> None:
        given, self.places = self.places, {}
        self.first = self.last = 0
        self._surest, self._seen, self._span = 0.0, set[int](), (0, 0)  # frames: in which it was seen, first and last
        for frame, place in given.items():
            self.put(frame, place)

    @property
    def sure(self) -> bool:
        """Whether the detector was very sure of it once, or sure of it and saw it in at least half of the frames from
        the first to the last in which it did. What only a careful search sees now and then is as likely a pattern."""
        if self._surest < MIN_SCORE:
            return False
        return self._surest >= WARN_SCORE or 2 * len(self._seen) > self._span[1] - self._span[0]

    @property
    def sightings(self) -> int:
        """In how many frames the detector saw it."""
        return len(self._seen)

    def put(self, frame: int, place: Place) -> None:
        """Set the place in a frame."""
        if not self.places:
            self.first = self.last = frame
        self.places[frame] = place
        self.first, self.last = min(self.first, frame), max(self.last, frame)
        self._surest = max(self._surest, place.score)
        if place.seen:
            first, last = self._span if self._seen else (frame, frame)
            self._span = min(first, frame), max(last, frame)
            self._seen.add(frame)

    def end(self, frame: int, count: int) -> list[int]:
        """Return up to `count` frames with a place, the nearest first, from the end of the track that is nearer to a
        frame."""
        start, step = (self.last, -1) if abs(frame - self.last) <= abs(frame - self.first) else (self.first, 1)
        frames: list[int] = []
        while len(frames) < count and self.first <= start <= self.last:
            frames += [start] if start in self.places else []
            start += step
        return frames


def place_of(face: Face) -> Place:
    """Return the place of a detected face."""
    return Place(face.box, face.points, face.score, True)


def same_place(a: Box, b: Box, reach: float = SAME_PLACE) -> bool:
    """Return whether two boxes are about one face: middles nearer than `reach` widths of the larger, of similar
    size."""
    x, y = a[0] + a[2] / 2 - b[0] - b[2] / 2, a[1] + a[3] / 2 - b[1] - b[3] / 2
    small, large = sorted((max(a[2], 1e-6), max(b[2], 1e-6)))
    return float(np.hypot(x, y)) < reach * large and large < SAME_SIZE * small


def by_frame(tracks: Iterable[Track]) -> dict[int, list[tuple[Track, Place]]]:
    """Return the tracks and their places for each frame that has some."""
    frames: dict[int, list[tuple[Track, Place]]] = {}
    for track in tracks:
        for frame, place in track.places.items():
            frames.setdefault(frame, []).append((track, place))
    return frames


def between(first: Place, last: Place, steps: int) -> Iterator[Place]:
    """Yield the places of the frames between two, `steps` apart, on the straight way."""
    for step in range(1, steps):
        part = step / steps
        mixed = (1 - part) * np.array(first.box) + part * np.array(last.box)
        points = None
        if first.points is not None and last.points is not None:
            points = (1 - part) * first.points + part * last.points
        left, top, width, height = mixed.tolist()
        yield Place((left, top, width, height), points, 0.0, False)
