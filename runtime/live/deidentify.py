"""De-identification: every person of a photo or clip becomes a synthetic one, pose, expression and light stay.

A face that cannot be composed (too small, a profile, just lost) is not left as it is but made into a mosaic. Whether it
worked is measured: the cosine of the identity codes of the original face and of what stands in its place now, beside
that of the original face and another view of itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..composer import Composer
from ..errors import InputError
from ..face.align import Alignment, align
from ..face.crop import CROP_SIZE
from ..face.detect import MAX_YAW_DEGREES, MIN_FACE_PX, Face
from ..face.paste import Paster, PasteState
from ..face.smooth import FilterState, OneEuro
from ..face.track import Tracker, TrackState
from ..identity import Identity
from ..media.images import PHOTO_SUFFIXES, PICTURE_SUFFIXES, check_output, read_image, write_image
from ..media.provenance import Note
from ..media.video import VIDEO_INPUTS, VIDEO_SUFFIXES, open_clip
from ..media.video_rework import rework
from .reenact import W_BETA, W_CUTOFF_HZ

FACES = ("all", "largest")
MATCH = 0.363  # cosine above which SFace says "one person": OpenCV's value, from Labeled Faces in the Wild
KNOWN = 0.30  # cosine above which a face that appears in a clip is somebody who was there before
STRANGER = 0.20  # cosine of a stand-in with the original, at most; of those below, one more alike fits better
SAFE = 0.25  # cosine of the first composition with the original, at most
CANDIDATES = 12  # synthetic people to choose from
SCAN_SIDE = 640  # px, longest side of a frame as it is searched for faces, every frame
HIDE_S = 0.6  # seconds for which the place of a face that was lost is hidden
MEASURE_EVERY = 10  # frames of one face from one measurement to the next
MOSAIC = 7  # cells across a hidden face
AROUND = 0.25  # how much larger than its box a face is hidden, in sides of the box


@dataclass
class Person:
    """Somebody in a photo or clip, and who stands in."""

    code: np.ndarray  # float32 [identity_size], of the original face
    stand_in: Identity
    seed: int  # of the stand-in
    replaced: int = 0  # frames
    hidden: int = 0  # frames
    before: list[float] = field(default_factory=list)  # cosines of the original with other views of the original
    after: list[float] = field(default_factory=list)  # cosines of the original with what is in its place

    def report(self) -> dict[str, Any]:
        """What is told of this person: counts, mean cosines, and whether the recogniser still says "the same"."""
        mean = {name: round(float(np.mean(v)), 3) if v else None for name, v in self._cosines().items()}
        worst = round(max(self.after), 3) if self.after else None
        return {
            "stand_in": self.seed,
            "replaced": self.replaced,
            "hidden": self.hidden,
            "cosine_before": mean["before"],
            "cosine_after": mean["after"],
            "cosine_after_worst": worst,
            "still_matches": None if worst is None else worst >= MATCH,
        }

    def _cosines(self) -> dict[str, list[float]]:
        return {"before": self.before, "after": self.after}


@dataclass
class Follower:
    """One face of a clip that is followed, to be replaced or to be hidden."""

    person: int | None  # None: somebody who could not be composed so far
    tracker: Tracker
    paster: Paster
    filter: OneEuro
    lost_s: float = 0.0  # seconds since it was last seen
    place: tuple[float, float, float, float] = (0, 0, 0, 0)  # left, top, width, height px, where it was last seen


@dataclass(frozen=True)
class PersonState:
    """A `Person`, the stand-in by its seed alone."""

    code: np.ndarray
    seed: int
    replaced: int
    hidden: int
    before: np.ndarray  # float64 [n]
    after: np.ndarray  # float64 [n]


@dataclass(frozen=True)
class FollowerState:
    """A `Follower`, its parts by what they remember."""

    person: int | None
    tracker: TrackState
    paster: PasteState
    filter: FilterState
    lost_s: float
    place: np.ndarray  # float64 [4]: left, top, width, height px


@dataclass(frozen=True)
class DeidentifierState:
    """What a de-identifier remembers of former frames."""

    hidden: int
    time_s: float | None
    people: tuple[PersonState, ...]
    followers: tuple[FollowerState, ...]


class Deidentifier:
    """Replaces people. One for each clip or photo; `people` tells afterwards what came of them. For one thread."""

    def __init__(
        self,
        composer: Composer,
        draw: Callable[[int], Identity],
        seed: int,
        faces: str = "all",
        smooth: float = 1.0,
    ) -> None:
        """`draw` gives the synthetic person of a number, see `sample.Sampler`. `seed`: number of the first one to
        look at; the same seed gives the same result. `faces`: "all", or "largest" and the others stay as they are."""
        self.people: list[Person] = []
        self.hidden = 0  # faces, counted frame by frame, that were hidden without anybody known behind them
        self._composer, self._draw, self._smooth = composer, draw, smooth
        self._seed, self._faces = seed, faces
        self._followers: list[Follower] = []
        self._time_s: float | None = None

    def photo(self, image: np.ndarray) -> np.ndarray:
        """The photo RGB uint8 [height, width, 3] with its people replaced."""
        detector, result = self._composer.detector, image.copy()
        for face in self._chosen(detector.faces(image)):
            if not _composable(face):
                result = mosaic(result, face.box)
                self.hidden += 1
                continue
            alignment = align(detector.refine(image, face).points)
            crop = alignment.crop(image)
            person = self._new_person(crop)
            person.before.append(self._cosine(person, np.ascontiguousarray(crop[:, ::-1])))
            composed = self._compose(person, crop, None, 0.0)
            result = Paster(exact=True).paste(result, composed, alignment, crop=crop)
            person.replaced += 1
            found = detector.measure(result, face.points, 320)  # aligned anew, as a stranger would
            seen = alignment if found is None else align(found)
            person.after.append(self._cosine(person, seen.crop(result)))
        return result

    def picture(self, image: np.ndarray, time_s: float) -> np.ndarray:
        """The next frame RGB uint8 [height, width, 3] of a clip, at its time in seconds, with its people replaced."""
        step_s = 0.0 if self._time_s is None else max(0.0, time_s - self._time_s)
        self._time_s = time_s
        faces = self._composer.detector.search(image, max(320, min(SCAN_SIDE, max(image.shape[:2]))))
        followed = [(follower, self._follow(follower, image, time_s, step_s)) for follower in self._followers]
        lost = [follower for follower, alignment in followed if alignment is None]
        composed = [follower for follower, alignment in followed if alignment is not None]
        unseen = [face for face in faces if not any(_covers(follower, face) for follower in composed)]
        for face in sorted(unseen, key=lambda face: face.area, reverse=True):
            known = next((follower for follower in lost if _covers(follower, face)), None)
            if known is None and self._faces == "largest" and followed:
                continue
            if known is not None:
                lost.remove(known)  # found again
            if _composable(face) and (known is None or known.tracker.points is None):
                followed = [one for one in followed if one[0] is not known] + [self._begin(image, face, time_s)]
            elif known is not None:
                known.place, known.lost_s = face.box, 0.0
            else:
                followed.append((self._follower(None, face.box), None))
        result = image.copy()
        for follower, alignment in followed:  # first, so that no mosaic lies on a composition
            if alignment is None:
                result = mosaic(result, follower.place)
                self._count_hidden(follower)
        for follower, alignment in followed:
            if alignment is not None:
                result = self._replace(result, image, follower, alignment, time_s, step_s)
        self._followers = [follower for follower, _ in followed if follower.lost_s < HIDE_S]
        return result

    def _replace(
        self,
        result: np.ndarray,
        image: np.ndarray,
        follower: Follower,
        alignment: Alignment,
        time_s: float,
        step_s: float,
    ) -> np.ndarray:
        assert follower.person is not None
        person, crop = self.people[follower.person], alignment.crop(image)
        composed = self._compose(person, crop, follower.filter, time_s)
        result = follower.paster.paste(result, composed, alignment, step_s=step_s, crop=crop)
        if person.replaced % MEASURE_EVERY == 0:
            person.before.append(self._cosine(person, crop if person.replaced else np.ascontiguousarray(crop[:, ::-1])))
            person.after.append(self._cosine(person, alignment.crop(result)))
        person.replaced += 1
        return result

    def _count_hidden(self, follower: Follower) -> None:
        if follower.person is None:
            self.hidden += 1
        else:
            self.people[follower.person].hidden += 1

    def _follow(self, follower: Follower, image: np.ndarray, time_s: float, step_s: float) -> Alignment | None:
        alignment, points = follower.tracker.follow(image, time_s), follower.tracker.points
        if alignment is not None:
            follower.place = _place(alignment)
        elif points is not None:  # it has turned to a profile, and is still there
            (x, y), (_, _, width, height) = points.mean(axis=0).tolist(), follower.place
            follower.place = (x - width / 2, y - height / 2, width, height)
        follower.lost_s = follower.lost_s + step_s if points is None else 0.0
        return alignment

    def _follower(self, person: int | None, place: tuple[float, float, float, float]) -> Follower:
        tracker = Tracker(self._composer.detector, smooth=self._smooth, search=False)
        return Follower(person, tracker, Paster(), OneEuro(W_CUTOFF_HZ, W_BETA), place=place)

    def _begin(self, image: np.ndarray, face: Face, time_s: float) -> tuple[Follower, Alignment | None]:
        """Follow a face that was not there a frame ago, as somebody known or as somebody new."""
        follower = self._follower(None, face.box)
        tracker = follower.tracker
        tracker.start(image, face)
        alignment = tracker.follow(image, time_s)
        points = tracker.points if tracker.points is not None else face.points
        crop = (alignment or align(points)).crop(image)
        code = self._composer.identity_code(crop)
        cosines = [float(code @ person.code) for person in self.people]
        number = int(np.argmax(cosines)) if cosines and max(cosines) >= KNOWN else len(self.people)
        if number == len(self.people):
            self._new_person(crop)
        follower.person = number
        return follower, alignment

    def _new_person(self, crop: np.ndarray) -> Person:
        """Somebody new, and who stands in: of the synthetic people unlike enough, the one most alike (an adult for an
        adult) whose composition is unlike as well, or the least alike of all."""
        code = self._composer.identity_code(crop)
        taken = {person.seed for person in self.people}
        seeds = [seed for seed in range(self._seed, self._seed + CANDIDATES + len(taken)) if seed not in taken]
        people = {seed: self._draw(seed) for seed in seeds}
        alike = {seed: float(code @ people[seed].code) for seed in seeds}
        attributes = self._composer.attribute_code(crop)
        tried: dict[int, float] = {}
        for seed in sorted((seed for seed in seeds if alike[seed] < STRANGER), key=lambda seed: -alike[seed]):
            image = self._composer.image(self._composer.w(people[seed], attributes))
            small = cv2.resize(image, (CROP_SIZE, CROP_SIZE), interpolation=cv2.INTER_AREA)
            tried[seed] = float(code @ self._composer.identity_code(small))
            if tried[seed] < SAFE:
                break
        chosen = min(tried or alike, key=lambda seed: (tried or alike)[seed])
        self.people.append(Person(code, people[chosen], chosen))
        return self.people[-1]

    def _compose(self, person: Person, crop: np.ndarray, smooth: OneEuro | None, time_s: float) -> np.ndarray:
        w = self._composer.w(person.stand_in, self._composer.attribute_code(crop))
        if smooth is not None and self._smooth > 0:
            w = smooth.filter(w, time_s).astype(np.float32)
        return self._composer.image(w)

    def _cosine(self, person: Person, crop: np.ndarray) -> float:
        return float(person.code @ self._composer.identity_code(crop))

    def _chosen(self, faces: list[Face]) -> list[Face]:
        by_size = sorted(faces, key=lambda face: face.area, reverse=True)
        return by_size if self._faces == "all" else by_size[:1]

    @property
    def state(self) -> DeidentifierState:
        """What it remembers of former frames; may be set to what another one of the same seed remembered."""
        people = tuple(
            PersonState(p.code, p.seed, p.replaced, p.hidden, np.array(p.before), np.array(p.after))
            for p in self.people
        )
        followers = tuple(
            FollowerState(f.person, f.tracker.state, f.paster.state, f.filter.state, f.lost_s, np.array(f.place))
            for f in self._followers
        )
        return DeidentifierState(self.hidden, self._time_s, people, followers)

    @state.setter
    def state(self, state: DeidentifierState) -> None:
        self.hidden, self._time_s = state.hidden, state.time_s
        self.people = [
            Person(p.code, self._draw(p.seed), p.seed, p.replaced, p.hidden, p.before.tolist(), p.after.tolist())
            for p in state.people
        ]
        self._followers = [self._restored(own) for own in state.followers]

    def _restored(self, state: FollowerState) -> Follower:
        left, top, width, height = state.place.tolist()
        follower = self._follower(state.person, (left, top, width, height))
        follower.lost_s, follower.tracker.state = state.lost_s, state.tracker
        follower.paster.state, follower.filter.state = state.paster, state.filter
        return follower


def plan(source: Path, output: Path) -> tuple[list[tuple[Path, Path]], Path]:
    """(input, output) of each file, and where the report goes. Raises `InputError` for what cannot be."""
    if not source.exists():
        raise InputError(f"{source} does not exist.")
    if not source.is_dir():
        check_output(output, VIDEO_SUFFIXES if source.suffix.lower() in VIDEO_INPUTS else PICTURE_SUFFIXES, [source])
        return [(source, output)], output.with_name(f"{output.name}.json")
    known = (*PHOTO_SUFFIXES, *VIDEO_INPUTS)
    files = sorted(path for path in source.iterdir() if path.is_file() and path.suffix.lower() in known)
    if not files:
        raise InputError(f"there are no photos and no videos in the folder {source}.")
    if output.exists() and output.samefile(source):
        raise InputError(f"{output} is the folder of the originals; give another one for the results.")
    jobs = []
    for path in files:
        can, other = (VIDEO_SUFFIXES, ".mkv") if path.suffix.lower() in VIDEO_INPUTS else (PICTURE_SUFFIXES, ".png")
        jobs.append((path, output / (path.name if path.suffix.lower() in can else f"{path.name}{other}")))
    return jobs, output / "report.json"


def replace_people(
    path: Path,
    output: Path,
    work: Deidentifier,
    *,
    settings: dict[str, Any],
    mute: bool = False,
    note: Note | None = None,
    progress: Callable[[str, int], AbstractContextManager[Callable[[int], None]]],
) -> dict[str, Any]:
    """Replace the people of one photo or video file; returns its part of the report. See `video.rework`, and for
    `progress` `commands.progress.frame_progress`."""
    extra: dict[str, Any] = {}
    if path.suffix.lower() in VIDEO_INPUTS:
        clip = open_clip(path)
        clip = replace(clip, sound=0) if mute else clip
        with progress(path.name, clip.frames) as tick:
            counts = rework(clip, output, work, settings={**settings, "mute": mute}, note=note, tick=tick)
        extra["frames"], extra["missing"] = counts
        extra["sound"] = "unchanged" if clip.sound else "none"
    else:
        write_image(output, work.photo(read_image(path, still=True)), note)
    people = [person.report() for person in work.people]
    return {"input": str(path), "output": str(output), **extra, "hidden": work.hidden, "people": people}


def summary(files: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The report over all files: how many people, how many still matching, mean cosines before and after."""
    people = [person for file in files for person in file["people"]]
    means = {}
    for name in ("cosine_before", "cosine_after"):
        values = [person[name] for person in people if person[name] is not None]
        means[name] = round(float(np.mean(values)), 3) if values else None
    still = sum(person["still_matches"] is True for person in people)
    head = {"recogniser": "sface", "match_above": MATCH, "people": len(people), "still_matching": still}
    return {**head, **means, "files": list(files)}


def mosaic(image: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """A copy of RGB uint8 [height, width, 3] in which the box (left, top, width, height, px) and a margin around it are
    `MOSAIC` cells across."""
    left, top, width, height = box
    corner = np.array([left - AROUND * width, top - AROUND * height])
    far = np.array([left + (1 + AROUND) * width, top + (1 + AROUND) * height])
    limit = (image.shape[1], image.shape[0])
    (x, y), (x_end, y_end) = (np.clip(np.rint(point).astype(int), 0, limit) for point in (corner, far))
    result = image.copy()
    if x < x_end and y < y_end:
        part = result[y:y_end, x:x_end]
        cells = min(MOSAIC, x_end - x), min(MOSAIC, y_end - y)
        coarse = cv2.resize(part, cells, interpolation=cv2.INTER_AREA)
        part[:] = cv2.resize(coarse, (x_end - x, y_end - y), interpolation=cv2.INTER_NEAREST).reshape(part.shape)
    return result


def _composable(face: Face) -> bool:
    return face.box[2] >= MIN_FACE_PX and abs(face.yaw_degrees) <= MAX_YAW_DEGREES


def _covers(follower: Follower, face: Face) -> bool:
    """Whether a detected face is the one that is followed."""
    left, top, width, height = follower.place
    x, y = face.box[0] + face.box[2] / 2 - (left + width / 2), face.box[1] + face.box[3] / 2 - (top + height / 2)
    return bool(np.hypot(x, y) < 0.5 * max(width, face.box[2]))


def _place(alignment: Alignment) -> tuple[float, float, float, float]:
    """About where the box of the face is: the middle of its crop."""
    side = alignment.side_px
    middle = (alignment.size - 1) / 2
    x, y = alignment.inverse @ (middle, middle + 0.05 * alignment.size, 1)
    return float(x - 0.24 * side), float(y - 0.3 * side), 0.48 * side, 0.6 * side
