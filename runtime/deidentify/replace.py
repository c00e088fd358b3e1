"""The second pass: in every frame, a synthetic head or a mosaic in each place that the first pass found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..composer import Composer
from ..face.align import Alignment, align
from ..face.detect import Face
from ..face.paste import Paster, PasteState
from ..face.search import find_all
from ..face.smooth import FilterState, OneEuro
from ..face.track import Tracker, TrackState
from ..live.reenact import W_BETA, W_CUTOFF_HZ
from .hide import mosaic
from .places import Place, Track, by_frame, place_of, same_place
from .stand_in import People

FACES = ("all", "largest")
UNSURE = ("mosaic", "keep")
OFF = 0.35  # of a face's width: a tracker further off from where the first pass saw it begins anew


@dataclass
class Follower:
    """One track whose face is replaced."""

    person: int
    tracker: Tracker
    paster: Paster = field(default_factory=Paster)
    filter: OneEuro = field(default_factory=lambda: OneEuro(W_CUTOFF_HZ, W_BETA))


@dataclass(frozen=True)
class PersonState:
    """A `Person`, the stand-in by its seed alone."""

    code: np.ndarray
    seed: int


@dataclass(frozen=True)
class FollowerState:
    """A `Follower`, its parts by what they remember; no picture is in it."""

    track: int
    person: int
    tracker: TrackState
    paster: PasteState
    filter: FilterState


@dataclass(frozen=True)
class DeidentifierState:
    """What a de-identifier remembers of former frames."""

    frame: int
    time_s: float | None
    counts: np.ndarray  # int64 [3]: replaced, hidden, unsure
    people: tuple[PersonState, ...]
    followers: tuple[FollowerState, ...]
    persons: np.ndarray  # int64 [n, 2]: track, person


class Deidentifier:
    """Replaces people. One for each clip or photo; `people` tells afterwards who they were. For one thread."""

    def __init__(
        self,
        composer: Composer,
        people: People,
        tracks: Sequence[Track],
        *,
        faces: str = "all",
        unsure: str = "mosaic",
        smooth: float = 1.0,
        still: bool = False,
    ) -> None:
        """`tracks`: what the first pass found. `faces`: "all", or "largest" and the others stay as they are. `unsure`:
        "mosaic" or "keep" what the detector was never sure of. `still`: a photo, which is pasted with more care."""
        self.people, self.counts = people, Counter[str]()
        self.persons: dict[int, int] = {}  # track -> person
        self._composer, self._smooth = composer, smooth
        self._faces, self._unsure, self._still = faces, unsure, still
        self.tracks, self._frames = list(tracks), by_frame(tracks)
        self._followers: dict[int, Follower] = {}
        self._frame, self._time_s = 0, None

    def chosen(self, frame: int) -> list[tuple[Track, Place]]:
        """Return the tracks and places of a frame that are to be replaced or hidden."""
        there = self._frames.get(frame, [])
        if self._unsure == "keep":
            there = [(track, place) for track, place in there if track.sure]
        if self._faces == "largest" and there:
            there = [max(there, key=lambda pair: pair[1].box[2] * pair[1].box[3])]
        return [(track, place) for track, place in there if track.action != "keep"]

    def picture(self, image: np.ndarray, time_s: float) -> np.ndarray:
        """Return the next frame RGB uint8 [height, width, 3] of a clip, at its time in seconds, with its people
        replaced."""
        step_s = 0.0 if self._time_s is None else max(0.0, time_s - self._time_s)
        result = image
        aligned = self.follow(image, time_s)
        for track, place, alignment in aligned:
            if alignment is None:  # first, so that no mosaic lies on a composition
                result = mosaic(result, place.box)
                self.counts["hidden" if track.sure else "unsure"] += 1
        for track, _, alignment in aligned:
            if alignment is not None:
                result = self._replace(result, image, track, alignment, time_s, step_s)
        return result

    def follow(self, image: np.ndarray, time_s: float) -> list[tuple[Track, Place, Alignment | None]]:
        """Take the next frame as `picture` does and make no picture of it: who is who is known afterwards. Returns the
        tracks of the frame, their places, and where to compose their heads; None where they are to be hidden."""
        there, self._time_s = self.chosen(self._frame), time_s
        seen = {track.number for track, _ in there}  # whoever is not may be the same person as one who is: after a cut
        self._followers = {number: one for number, one in self._followers.items() if number in seen}
        aligned = [(track, place, self._alignment(image, track, place, time_s)) for track, place in there]
        left = [track.number for track, _, alignment in aligned if alignment is not None]
        self._followers = {number: self._followers[number] for number in left}
        self._frame += 1
        return aligned

    def _alignment(self, image: np.ndarray, track: Track, place: Place, time_s: float) -> Alignment | None:
        """Where to compose the head of a track; None where it is to be hidden."""
        if not track.sure or track.action == "mosaic" or not place.composable(image.shape):
            return None
        assert place.points is not None
        follower = self._followers.get(track.number)
        if follower is not None:
            alignment = follower.tracker.follow(image, time_s)
            if alignment is not None and self._near(follower, place):
                return alignment
        return self._begin(image, track, place, time_s)

    def _near(self, follower: Follower, place: Place) -> bool:
        points = follower.tracker.points
        if points is None or place.points is None:
            return False
        return float(np.hypot(*(points.mean(axis=0) - place.points.mean(axis=0)))) < OFF * place.box[2]

    def _begin(self, image: np.ndarray, track: Track, place: Place, time_s: float) -> Alignment | None:
        """Follow a track from here on, as somebody known or as somebody new."""
        assert place.points is not None
        tracker = Tracker(self._composer.detector, smooth=self._smooth, search=False)
        tracker.start(image, Face(place.box, place.points, place.score))
        alignment = tracker.follow(image, time_s)
        if alignment is None:
            return None
        if track.number not in self.persons:
            present = {self.persons[number] for number in self._followers}
            self.persons[track.number] = self._person(alignment.crop(image), track, present)
        before = self._followers.get(track.number)
        follower = Follower(self.persons[track.number], tracker, Paster(exact=self._still))
        if before is not None:
            follower.paster, follower.filter = before.paster, before.filter
        if not self._near(follower, place):
            return None
        self._followers[track.number] = follower
        return alignment

    def _person(self, crop: np.ndarray, track: Track, present: set[int]) -> int:
        code = self._composer.identity_code(crop)
        if track.person is not None:
            same = [self.persons[other] for other in self.persons if self._named(other) == track.person]
            return same[0] if same else self.people.add(crop, code)
        known = self.people.find(code, present)
        return self.people.add(crop, code) if known is None else known

    def _named(self, number: int) -> int | None:
        return next((t.person for pairs in self._frames.values() for t, _ in pairs if t.number == number), None)

    def _replace(
        self, result: np.ndarray, image: np.ndarray, track: Track, alignment: Alignment, time_s: float, step_s: float
    ) -> np.ndarray:
        follower = self._followers[track.number]
        person, crop = self.people.all[follower.person], alignment.crop(image)
        w = self._composer.w(person.stand_in, self._composer.attribute_code(crop))
        if self._smooth > 0:
            w = follower.filter.filter(w, time_s).astype(np.float32)
        composed = self._composer.image(w)
        result = follower.paster.paste(result, composed, alignment, step_s=step_s, crop=crop)
        self.counts["replaced"] += 1
        return result

    @property
    def state(self) -> DeidentifierState:
        """What it remembers; may be set to what another one with the same tracks remembered. The trackers forget the
        last frame, here as there: no picture of the original is ever kept, and both go on alike."""
        people = tuple(PersonState(person.code, person.seed) for person in self.people.all)
        followers = []
        for number, f in self._followers.items():
            f.tracker.state = replace(f.tracker.state, view=None)
            own = FollowerState(number, f.person, f.tracker.state, f.paster.state, f.filter.state)
            followers.append(own)
        counts = np.array([self.counts[name] for name in ("replaced", "hidden", "unsure")], np.int64)
        persons = np.array(list(self.persons.items()), np.int64).reshape(-1, 2)
        return DeidentifierState(self._frame, self._time_s, counts, people, tuple(followers), persons)

    @state.setter
    def state(self, state: DeidentifierState) -> None:
        self._frame, self._time_s = state.frame, state.time_s
        self.counts = Counter(dict(zip(("replaced", "hidden", "unsure"), state.counts.tolist(), strict=True)))
        self.persons = dict(state.persons.tolist())
        self.people.restore([(p.code, p.seed) for p in state.people])
        self._followers = {}
        for own in state.followers:
            tracker = Tracker(self._composer.detector, smooth=self._smooth, search=False)
            follower = Follower(own.person, tracker)
            follower.tracker.state, follower.paster.state, follower.filter.state = own.tracker, own.paster, own.filter
            self._followers[own.track] = follower


def tracks_of_photo(composer: Composer, image: np.ndarray) -> list[Track]:
    """Return a track of one frame for every face of a photo RGB uint8 [height, width, 3], measured anew, the largest
    first."""
    tracks: list[Track] = []
    faces = find_all(composer.detector, image)
    for face in sorted(faces, key=lambda face: face.area, reverse=True):
        place = place_of(face)
        if place.composable(image.shape):
            refined = composer.detector.refine(image, face)
            if same_place(face.box, _around(align(refined.points))):
                place = place_of(refined)
        tracks.append(Track(len(tracks), {0: place}))
    return tracks


def _around(alignment: Alignment) -> tuple[float, float, float, float]:
    """About the box of the face of an alignment: the middle of its crop."""
    side, middle = alignment.side_px, (alignment.size - 1) / 2
    x, y = alignment.inverse @ (middle, middle + 0.05 * alignment.size, 1)
    return float(x - 0.24 * side), float(y - 0.3 * side), 0.48 * side, 0.6 * side
