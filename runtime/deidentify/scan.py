"""The first pass over a clip: where every face is in every frame, with knowledge of later frames.

Each frame is searched for upright faces, twice a second in four turns; every two seconds, at the first and the last
frame and at every cut, it is searched with all care (`face.search.find_all`). Faces are tied together from frame to
frame. One that the quick search does not see is measured in an upright view where it ought to be. One that appears is
followed backwards in the same way through the frames since the last careful search, which are kept for that; before the
first frame in which anything of it could be seen, and after the last, its place is carried on in its own motion until
it has left the picture.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np

from ..face.align import align
from ..face.detect import SURE_SCORE, Detector, Face
from ..face.search import find_all, find_quickly, surest_turn
from .heads import EVERY_S, FindHeads, head_tracks
from .places import Box, Place, Track, between, place_of, same_place

QUICK_SIDE = 640  # px, longest side of a frame as it is searched for upright faces, every frame
TURNED_S, QUARTERS = 0.5, (0, 180, 90, 270)  # seconds from one quick search in these turns, degrees, to the next
CAREFUL_S = 2.0  # seconds from one careful search to the next, at most
KEPT_BYTES = 256 << 20  # of frames kept for looking back; where they do not suffice, careful searches come sooner
AROUND_S = 0.6  # seconds before and after a face was seen for which its place is hidden
ENTER_S = 1.5  # the same where it comes in or goes out at the border, until it is outside
LOST_S = 0.4  # seconds for which a face that is not seen is looked for where it ought to be
VIEW_SIDE = 256  # px, side of the upright view in which that is done
CUT = 28.0  # 0..255, mean difference of two frames (32 x 18 px): another scene
MOTION_FRAMES = 6  # from which a face's motion is taken at its ends
GROWTH = 0.02  # by which a place that is carried on grows in each frame
UPRIGHT_DEGREES = 20.0  # by which a face may be turned if its points are to be believed as they are
DRIFT = 0.5  # of the width: a view that finds a face further off from where it ought to be found another one


class Scanner:
    """Takes the frames of a clip in order; `finish` gives the tracks. For one thread."""

    def __init__(
        self,
        detector: Detector,
        fps: float,
        known: dict[int, list[Face]] | None = None,
        keep: Callable[[int, list[Face]], None] = lambda frame, faces: None,
        find_heads: FindHeads | None = None,
    ) -> None:
        """`known`: what a former run found in these frames, by number. `keep` hears what is found in others.
        `find_heads`: finds people, so that those without a visible face have tracks as well."""
        self._find_heads, self._heads = find_heads, dict[int, list[Box]]()
        self._heads_every = max(1, round(EVERY_S * fps))
        self._detector, self._fps, self._known, self._keep = detector, fps, known or {}, keep
        self._tracks: list[Track] = []
        self._open: list[Track] = []
        self._recent: deque[tuple[int, np.ndarray]] = deque()
        self._thumb: np.ndarray | None = None
        self._scenes: list[int] = []  # the first frame of each
        self._careful = -1  # frame of the last careful search
        self._count = 0

    def add(self, image: np.ndarray) -> None:
        """The next frame RGB uint8 [height, width, 3]."""
        frame = self._count
        every = max(1, min(round(CAREFUL_S * self._fps), KEPT_BYTES // max(image.nbytes, 1)))
        if self._is_cut(image):
            self._search_last()
            self._open, self._recent = [], deque()
            self._scenes.append(frame)
        careful = not self._recent or frame - self._careful >= every
        if self._find_heads is not None and (not self._recent or frame % self._heads_every == 0):
            self._heads[frame] = self._find_heads(image)
        self._link(frame, image, self._found(frame, image, careful))
        self._careful = frame if careful else self._careful
        self._recent.append((frame, image))
        while len(self._recent) > every:
            self._recent.popleft()
        self._count += 1

    def finish(self) -> list[Track]:
        """Return the tracks of the whole clip, without gaps, and carried on at both ends."""
        shape = self._recent[-1][1].shape if self._recent else (0, 0, 3)
        self._search_last()
        self._recent.clear()
        for track in self._tracks:
            frames = sorted(track.places)
            for before, after in pairwise(frames):
                filled = between(track.places[before], track.places[after], after - before)
                for number, place in enumerate(filled, start=before + 1):
                    track.put(number, place)
            for step in (-1, 1):
                self._carry_on(track, step, shape)
        faces = [track for track in self._tracks if track.places]
        heads = head_tracks(self._heads, faces, self._scene, self._heads_every)
        return [*faces, *(Track(len(self._tracks) + i, head.places) for i, head in enumerate(heads))]

    def _found(self, frame: int, image: np.ndarray, careful: bool) -> list[Face]:
        if frame in self._known:
            return self._known[frame]
        if careful:
            faces = find_all(self._detector, image)
        else:
            turned = frame % max(1, round(TURNED_S * self._fps)) == 0
            side = max(320, min(QUICK_SIDE, max(image.shape[:2])))
            faces = find_quickly(self._detector, image, side, QUARTERS if turned else QUARTERS[:1])
        self._keep(frame, faces)
        return faces

    def _search_last(self) -> None:
        """Search the last frame of a scene with all care, where that has not been done."""
        if not self._recent or self._recent[-1][0] == self._careful:
            return
        frame, image = self._recent.pop()
        self._known.pop(frame, None)
        faces = self._found(frame, image, True)
        there = [place for track in self._tracks if (place := track.places.get(frame)) is not None]
        for face in faces:
            if any(same_place(face.box, place.box) for place in there):
                continue
            known = (track for track in self._open if frame not in track.places)
            track = next((track for track in known if same_place(_expected(track, frame).box, face.box)), None)
            if track is None:
                self._begin(frame, self._first_place(image, face))
            else:
                track.put(frame, self._upright(image, track, frame, face))
        self._recent.append((frame, image))

    def _is_cut(self, image: np.ndarray) -> bool:
        thumb = cv2.resize(image, (32, 18), interpolation=cv2.INTER_AREA).astype(np.float32)
        before, self._thumb = self._thumb, thumb
        return before is None or before.shape != thumb.shape or float(np.abs(thumb - before).mean()) > CUT

    def _link(self, frame: int, image: np.ndarray, faces: Sequence[Face]) -> None:
        """Add what was found in a frame to the tracks, and begin those of faces that are new."""
        left = list(faces)
        pairs = []
        for track in self._open:
            there = _expected(track, frame)
            for face in left:
                if same_place(there.box, face.box):
                    off = np.hypot(*(there.centre - place_of(face).centre)) / max(face.box[2], 1e-6)
                    pairs.append((float(off), track.number, track, face))
        matched: set[int] = set()
        for _, number, track, face in sorted(pairs, key=lambda pair: pair[:2]):
            if number not in matched and any(face is other for other in left):
                matched.add(number)
                left = [other for other in left if other is not face]
                track.put(frame, self._upright(image, track, frame, face))
        for track in self._open:
            if track.number not in matched and frame - track.last <= LOST_S * self._fps:
                place = self._look_where(image, _expected(track, frame))
                if place is not None and not self._taken(frame, place):
                    track.put(frame, place)
        for face in left:
            if not self._taken(frame, place_of(face)):
                self._begin(frame, self._first_place(image, face))
        self._open = [track for track in self._open if frame - track.last <= 1.2 * CAREFUL_S * self._fps]

    def _upright(self, image: np.ndarray, track: Track, frame: int, face: Face) -> Place:
        """The place of a face that continues a track; measured in a view in which it is upright, where it is not."""
        if _is_upright(face):
            return place_of(face)
        measured = self._look_where(image, _expected(track, frame))
        return place_of(face) if measured is None else replace(measured, score=max(measured.score, face.score))

    def _first_place(self, image: np.ndarray, face: Face) -> Place:
        """The place of a face that is new, with the same care."""
        if _is_upright(face):
            return place_of(face)
        place = place_of(surest_turn(self._detector, image, face))
        return self._look_where(image, place) or place

    def _taken(self, frame: int, place: Place) -> bool:
        there = (track.places.get(frame) for track in self._open)
        return any(same_place(other.box, place.box) for other in there if other is not None)

    def _begin(self, frame: int, first: Place) -> None:
        """A new track, followed backwards; where it meets one that was lost, both are one."""
        track = Track(len(self._tracks), {frame: first})
        failed = 0
        for before, image in reversed(self._recent):
            place = self._look_where(image, _expected(track, before))
            if place is None:
                failed += 1
                if failed == 3:
                    break
                continue
            failed = 0
            met = next((other for other in self._tracks if _meets(other, before, place)), None)
            if met is not None:
                for number, own in track.places.items():
                    met.put(number, met.places.get(number, own))
                self._open += [met] if met not in self._open else []
                return
            track.put(before, place)
        self._tracks.append(track)
        self._open.append(track)

    def _look_where(self, image: np.ndarray, there: Place) -> Place | None:
        """The face that is about there, measured in an upright view; None where there is none."""
        if there.points is None:
            return None
        points = self._detector.measure(image, there.points, VIEW_SIDE)
        if points is None:
            return None
        moved = points.mean(axis=0) - there.points.mean(axis=0)
        growth = align(points).side_px / align(there.points).side_px
        if np.hypot(*moved) > DRIFT * there.box[2] or not 1 / 1.4 < growth < 1.4:
            return None
        width, height = growth * there.box[2], growth * there.box[3]
        x, y = there.centre + moved
        return Place((float(x - width / 2), float(y - height / 2), width, height), points, there.score or 0.7, True)

    def _carry_on(self, track: Track, step: int, shape: tuple[int, ...]) -> None:
        """Hide the place of a track beyond its end: for a while, or until it is outside where it goes that way."""
        frames = track.end(track.first - 1 if step < 0 else track.last + 1, MOTION_FRAMES)
        end = track.places[frames[0]]
        motion = np.zeros(2)
        if len(frames) > 1:
            motion = (end.centre - track.places[frames[-1]].centre) / (len(frames) - 1)
        begin, stop = self._scene(frames[0])
        leaves = _leaves(end, motion, shape)
        moves = leaves and track.sightings > 1  # one sighting tells nothing of where it goes, and may be a pattern
        limit = round((ENTER_S if moves else AROUND_S) * self._fps)
        for count in range(1, limit + 1):
            frame = frames[0] + step * count
            grown = 1 + GROWTH * count
            width, height = grown * end.box[2], grown * end.box[3]
            x, y = end.centre + count * motion
            box = (float(x - width / 2), float(y - height / 2), width, height)
            outside = x < -width / 2 or y < -height / 2 or x > shape[1] + width / 2 or y > shape[0] + height / 2
            if not begin <= frame < stop or outside:
                return
            track.put(frame, Place(_to_border(box, shape) if leaves else box, None, 0.0, False))

    def _scene(self, frame: int) -> tuple[int, int]:
        """The first frame of a frame's scene, and that of the next one."""
        begin = max((scene for scene in self._scenes if scene <= frame), default=0)
        return begin, min((scene for scene in self._scenes if scene > frame), default=self._count)


def _is_upright(face: Face) -> bool:
    """Whether YuNet saw a face as it wants it; else its points may be wrong."""
    right, down = face.points[1] - face.points[0]
    return face.score >= SURE_SCORE and abs(np.degrees(np.arctan2(down, right))) < UPRIGHT_DEGREES


def _meets(track: Track, frame: int, place: Place) -> bool:
    there = track.places.get(frame)
    return there is not None and same_place(there.box, place.box)


def _expected(track: Track, frame: int) -> Place:
    """Where a track ought to be in a frame after its last or before its first one, in the motion that it has there."""
    frames = track.end(frame, 4)
    near = track.places[frames[0]]
    if len(frames) == 1 or frames[0] == frame:
        return near
    far = track.places[frames[-1]]
    move = (near.centre - far.centre) * min(3.0, (frame - frames[0]) / (frames[0] - frames[-1]))
    left, top, width, height = near.box
    points = None if near.points is None else near.points + move
    return replace(near, box=(left + float(move[0]), top + float(move[1]), width, height), points=points)


def _leaves(end: Place, motion: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether a face is near the border and moves towards it, or is cut by it."""
    left, top, width, height = end.box
    for position, extent, move, limit in ((left, width, motion[0], shape[1]), (top, height, motion[1], shape[0])):
        if position < 0.5 * extent and (move < -0.2 or position < 0):
            return True
        if position + extent > limit - 0.5 * extent and (move > 0.2 or position + extent > limit):
            return True
    return False


def _to_border(box: tuple[float, float, float, float], shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    """The box, carried on to the borders that are nearer than half of it."""
    left, top, width, height = box
    right, bottom = left + width, top + height
    left = min(left, 0.0) if left < 0.5 * width else left
    top = min(top, 0.0) if top < 0.5 * height else top
    right = max(right, shape[1]) if right > shape[1] - 0.5 * width else right
    bottom = max(bottom, shape[0]) if bottom > shape[0] - 0.5 * height else bottom
    return left, top, right - left, bottom - top
