"""Several people in one camera or clip, each as somebody else: found, known again, composed and pasted.

Everybody who is seen gets a number, in the order of appearance and by size within a frame. Between the frames that are
searched, faces are followed as in `face.track`. Who comes back, or stands elsewhere after a cut, is known again by
the identity encoder's code. The work grows with the number of people who are composed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from ..composer import Composer
from ..errors import InputError
from ..face.align import Alignment
from ..face.detect import MAX_YAW_DEGREES, MIN_FACE_PX, Face
from ..face.paste import AnyPaster
from ..face.search import find_quickly
from ..face.smooth import FilterState, OneEuro
from ..face.track import Tracker, TrackState
from ..identity import Identity
from ..labels.badge import draw_badge
from ..timing import collect_timings, stage
from .layout import PasterState, Picture, Wishes
from .reenact import W_BETA, W_CUTOFF_HZ

SEARCH_EVERY, SEARCH_SIDE = 6, 640  # frames from one search for new faces to the next; px, longest side of the frame
KNOWN = 0.30  # cosine of identity codes above which a face is somebody who was seen before
CUT = 28.0  # 0..255, mean difference of two frames (32 x 18 px): another scene
APART = 0.6  # of a face's width: two measurements whose middles are nearer are of one face


@dataclass(frozen=True)
class Cast:
    """Who becomes whom.

    `numbered`: (N, identity), for the person with number N. `known`: (code, identity), for whoever the identity encoder
    takes for the person with that unit code float32 [identity_size]. `others`: for everybody else; None leaves them as
    they are.
    """

    numbered: tuple[tuple[int, Identity], ...] = ()
    known: tuple[tuple[np.ndarray, Identity], ...] = ()
    others: Identity | None = None

    @property
    def identities(self) -> tuple[Identity, ...]:
        """Everybody whom somebody may become."""
        others = () if self.others is None else (self.others,)
        return (*(who for _, who in self.numbered), *(who for _, who in self.known), *others)

    @property
    def fingerprint(self) -> list[object]:
        """What tells this cast from others, ready for `json.dump`."""
        own = [[number, who.fingerprint] for number, who in self.numbered]
        own += [[code.tobytes().hex(), who.fingerprint] for code, who in self.known]
        return [*own, None if self.others is None else self.others.fingerprint]

    def role(self, number: int, code: np.ndarray) -> Identity | None:
        """Return as whom the person of that number, counted from 1, and code appears; None: as they are."""
        for own, identity in self.numbered:
            if own == number:
                return identity
        alike = [float(code @ own) for own, _ in self.known]
        if alike and max(alike) >= KNOWN:
            return self.known[int(np.argmax(alike))][1]
        return self.others


@dataclass
class _Follower:
    """One face that is followed."""

    person: int
    tracker: Tracker
    paster: AnyPaster
    filter: OneEuro = field(default_factory=lambda: OneEuro(W_CUTOFF_HZ, W_BETA))


@dataclass(frozen=True)
class FollowerState:
    """One face that is followed."""

    person: int
    tracker: TrackState
    filter: FilterState
    paster: PasterState


@dataclass(frozen=True)
class CrowdState:
    """What a crowd remembers of former frames."""

    frame: int
    time_s: float
    codes: tuple[np.ndarray, ...]  # of everybody seen so far
    followers: tuple[FollowerState, ...]


class Crowd:
    """From frame to what the user sees, as `layout.Reenactment`, for several people. For one thread."""

    def __init__(self, composer: Composer, cast: Cast, wishes: Wishes, *, light: bool = False) -> None:
        """`wishes`: their smoothing, mask and mirror hold; the view is always "paste". `light`: by the light
        generator."""
        if wishes.view != "paste":
            raise InputError("several people are shown pasted into the frame: leave --side-by-side and --result-only.")
        self.composer, self.cast, self.wishes, self.light = composer, cast, wishes, light
        self.codes: list[np.ndarray] = []  # of everybody seen so far, by number less 1
        self.replaced, self._spent_ms = 0, 0.0  # heads in all frames of this run, and what they took
        self._followers: list[_Follower] = []
        self._frame, self._time_s = 0, 0.0
        self._thumb: np.ndarray | None = None

    @property
    def people(self) -> int:
        """How many of those seen so far are somebody else now."""
        return sum(self._role(person) is not None for person in range(len(self.codes)))

    def reset(self) -> None:
        """Forget where everybody is, not who they are."""
        self._followers, self._frame = [], 0

    def summary(self) -> str:
        """Return how many people were replaced, and what one head took, in words."""
        people = "1 person" if self.people == 1 else f"{self.people} people"
        each = f", {self._spent_ms / self.replaced:.0f} ms a head" if self.replaced else ""
        seen = f" of {len(self.codes)}" if len(self.codes) > self.people else ""
        return f"{people}{seen} replaced{each}"

    def show(self, image: np.ndarray, time_s: float, wishes: Wishes | None = None) -> Picture:
        """Return what the user sees of a frame RGB uint8 [height, width, 3] at its time in seconds."""
        wishes = wishes or self.wishes
        step_s, self._time_s = max(time_s - self._time_s, 0.0), time_s
        with collect_timings() as timings:
            with stage("track"):
                there = self._follow(image, time_s, wishes)
            shown = image
            for follower, alignment in there:
                role = self._role(follower.person)
                if role is not None:
                    shown = self._replaced(shown, image, follower, alignment, role, time_s, step_s, wishes)
            if wishes.mirror:
                shown = np.ascontiguousarray(shown[:, ::-1])
            shown = draw_badge(shown) if wishes.badge else shown
        self._frame += 1
        return Picture(shown, bool(there), timings)

    def picture(self, image: np.ndarray, time_s: float) -> np.ndarray:
        """Return `show`, the pixels alone: RGB uint8 [height, width, 3]; see `video_rework.FrameWork`."""
        return self.show(image, time_s).image

    def _role(self, person: int) -> Identity | None:
        return self.cast.role(person + 1, self.codes[person])

    def _follow(self, image: np.ndarray, time_s: float, wishes: Wishes) -> list[tuple[_Follower, Alignment]]:
        """Everybody in the frame; those who are new to it are looked for now and then, after a cut, and when somebody
        was lost."""
        if self._is_cut(image):
            self._followers = []
        before = len(self._followers)
        there: list[tuple[_Follower, Alignment]] = []
        for follower in self._followers:
            follower.tracker.smooth = wishes.smooth
            alignment = follower.tracker.follow(image, time_s)
            if alignment is not None and not self._double(follower, there):
                there.append((follower, alignment))
        if self._frame % SEARCH_EVERY == 0 or len(there) < before or not there:
            there += self._newcomers(image, time_s, wishes, [follower for follower, _ in there])
        self._followers = [follower for follower, _ in there]
        return there

    def _newcomers(
        self, image: np.ndarray, time_s: float, wishes: Wishes, present: Sequence[_Follower]
    ) -> list[tuple[_Follower, Alignment]]:
        faces = find_quickly(self.composer.detector, image, min(SEARCH_SIDE, max(image.shape[:2])))
        new: list[tuple[_Follower, Alignment]] = []
        for face in sorted(faces, key=lambda face: face.area, reverse=True):
            if face.box[2] < MIN_FACE_PX or abs(face.yaw_degrees) > MAX_YAW_DEGREES or _seen(face, present):
                continue
            tracker = Tracker(self.composer.detector, smooth=wishes.smooth, search=False)
            tracker.start(image, face)
            alignment = tracker.follow(image, time_s)
            if alignment is not None:
                taken = {follower.person for follower in present} | {follower.person for follower, _ in new}
                person = self._person(alignment.crop(image, quick=True), taken)
                new.append((_Follower(person, tracker, self.composer.paster(wishes.mask)), alignment))
        return new

    def _person(self, crop: np.ndarray, taken: set[int]) -> int:
        """The number, less 1, of who is in an aligned crop: somebody seen before who is not there yet, or new."""
        code = self.composer.identity_code(crop)
        alike = [-1.0 if person in taken else float(code @ own) for person, own in enumerate(self.codes)]
        if alike and max(alike) >= KNOWN:
            return int(np.argmax(alike))
        self.codes.append(code)
        return len(self.codes) - 1

    def _double(self, follower: _Follower, others: Sequence[tuple[_Follower, Alignment]]) -> bool:
        """Whether two trackers have come to follow one face."""
        points = follower.tracker.points
        return points is not None and any(_near(points, other.tracker.points) for other, _ in others)

    def _replaced(
        self,
        shown: np.ndarray,
        image: np.ndarray,
        follower: _Follower,
        alignment: Alignment,
        role: Identity,
        time_s: float,
        step_s: float,
        wishes: Wishes,
    ) -> np.ndarray:
        start = time.perf_counter()
        crop = alignment.crop(image, quick=True)
        w = self.composer.w(role, self.composer.attribute_code(crop, wishes.controls))
        if wishes.smooth > 0:
            follower.filter.cutoff_hz, follower.filter.beta = W_CUTOFF_HZ / wishes.smooth, W_BETA / wishes.smooth
            w = follower.filter.filter(w, time_s).astype(np.float32)
        composed = self.composer.image(w, light=self.light)
        with stage("paste"):
            shown = follower.paster.paste(shown, composed, alignment, step_s=step_s, crop=crop)
        self.replaced, self._spent_ms = self.replaced + 1, self._spent_ms + 1e3 * (time.perf_counter() - start)
        return shown

    def _is_cut(self, image: np.ndarray) -> bool:
        thumb = cv2.resize(image, (32, 18), interpolation=cv2.INTER_AREA).astype(np.float32)
        before, self._thumb = self._thumb, thumb
        return before is not None and float(np.abs(thumb - before).mean()) > CUT

    @property
    def state(self) -> CrowdState:
        """What it remembers of former frames; may be set to what another one of the same cast remembered."""
        own = tuple(
            FollowerState(f.person, f.tracker.state, f.filter.state, PasterState.of(f.paster)) for f in self._followers
        )
        return CrowdState(self._frame, self._time_s, tuple(self.codes), own)

    @state.setter
    def state(self, state: CrowdState) -> None:
        self._frame, self._time_s, self.codes, self._followers = state.frame, state.time_s, list(state.codes), []
        for own in state.followers:
            tracker = Tracker(self.composer.detector, smooth=self.wishes.smooth, search=False)
            follower = _Follower(own.person, tracker, self.composer.paster(self.wishes.mask))
            follower.tracker.state, follower.filter.state = own.tracker, own.filter
            own.paster.bring_back(follower.paster)
            self._followers.append(follower)


def _seen(face: Face, present: Sequence[_Follower]) -> bool:
    return any(_near(face.points, follower.tracker.points) for follower in present)


def _near(points: np.ndarray, others: np.ndarray | None) -> bool:
    """Whether two measurements of five points are of one face."""
    if others is None:
        return False
    width = 2 * float(np.hypot(*(others[1] - others[0])))
    return float(np.hypot(*(points.mean(axis=0) - others.mean(axis=0)))) < APART * width
