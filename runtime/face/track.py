"""Following one face from frame to frame: detected every few frames, carried between by optical flow, smoothed.

A detection costs as much as a third of a composition and scatters by 2 to 4 px at the corners of the crop; optical flow
costs a tenth of it and hardly scatters, but drifts. So flow carries the five points from each frame to the next, and
every `every` frames one detection in an upright view pulls them back, a little if it is near and all the way if it is
far. Views of two sizes, and mirrored ones, take turns, so that what they differ by averages out. When both fail, the
face is lost and looked for in the whole frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from .align import Alignment, align, quick_warp, transform
from .detect import MAX_YAW_DEGREES, MIN_FACE_PX, Detector, Face
from .smooth import FilterState, OneEuro

EVERY = 4  # frames from one detection to the next
VIEWS = ((256, False), (256, True), (320, False), (320, True))  # side in px, mirrored: they take turns
FIND_SIDE = 320  # px, longest side of the whole frame when a face is looked for
FAR_SIDE, FAR_EVERY = 640, 8  # px, frames: now and then a closer look, for small faces
FLOW_SIDE = 160  # px, side of the aligned view in which flow is measured
CORNERS, MIN_CORNERS = 70, 12  # points that flow follows at most, and at least
FLOW_ERROR_PX = 1.5  # of the view: further off the common motion, a point is no witness
MIN_AGREEMENT = 0.5  # of the points must agree on one motion
PULL = 0.12  # of the way to a detection that is near
NEAR, FAR = 0.03, 0.08  # mean distance of the five points, in sides of the crop: up to here PULL, from there all
PATIENCE = 2  # detections that may fail in a row while flow still agrees
FACE_PART = 0.45  # width of a face's box, in sides of its crop
CUTOFF_HZ, BETA = 0.5, 14.0  # of the One-Euro filter, for positions in sides of the crop, logarithm of size, roll


@dataclass(frozen=True)
class TrackState:
    """What a tracker remembers."""

    points: np.ndarray | None  # float64 [5, 2], px of the last frame, not smoothed
    view: np.ndarray | None  # uint8 [FLOW_SIDE, FLOW_SIDE], grey, the last frame aligned by `points`; may be left out,
    # which costs the flow from there
    height: int  # px, of the last frame
    width: int
    unit: float  # px, side of the crop when the face was found: the unit of positions
    frames: int  # since the start
    failed: int  # detections in a row
    filter: FilterState


class Tracker:
    """Follows the largest face, or the one given to `start`. One for each clip or camera, for one thread."""

    def __init__(self, detector: Detector, *, smooth: float = 1.0, every: int = EVERY, search: bool = True) -> None:
        """`smooth`: strength of the smoothing, 1 as measured, 0 none, 2 twice as steady. `every`: frames from one
        detection to the next. `search`: look in the whole frame for a face that is lost; else it stays lost."""
        self._detector, self._every, self._search = detector, every, search
        self._filter = OneEuro(CUTOFF_HZ, BETA)
        self.smooth = smooth
        self.points: np.ndarray | None = None  # float64 [5, 2], px of the last frame, not smoothed
        self._view: np.ndarray | None = None  # uint8 [FLOW_SIDE, FLOW_SIDE], grey, the last frame aligned by its points
        self._shape: tuple[int, ...] = (0, 0)  # [height, width] px, of the last frame
        self._unit = 1.0  # px, side of the crop when the face was found: the unit of positions
        self._frames = self._failed = 0  # frames since the start, detections failed in a row

    def reset(self) -> None:
        """Forget the face: the next frame is searched."""
        self.points = None

    def start(self, image: np.ndarray, face: Face) -> np.ndarray:
        """Follow this face of the frame RGB uint8 [height, width, 3] from now on; returns its points float64 [5, 2]."""
        self.points = self._detector.refine(image, face).points
        self._view, self._shape = _flow_view(image, self.points), image.shape[:2]
        self._unit = align(self.points).side_px
        self._failed = 0
        self._filter.reset()
        return self.points

    def follow(self, image: np.ndarray, time_s: float) -> Alignment | None:
        """Return the alignment of the face in the next frame RGB uint8 [height, width, 3] at its time in seconds.

        None while there is no face that fid can use: none at all, narrower than `MIN_FACE_PX`, or a profile.
        """
        self._frames += 1
        if self.points is not None and self._view is None:  # a state without its view: no flow this time
            self.points = self._correct(image, self.points, self.points)
        elif self.points is not None and self._view is not None and self._shape == image.shape[:2]:
            carried = self._flow(self._view, image, self.points)
            due = carried is None or self._frames % self._every == 0
            self.points = self._correct(image, self.points, carried) if due else carried
        else:
            self.points = None
        if self.points is not None:
            self._view = _flow_view(image, self.points)
        if self.points is None:
            face = self._find(image) if self._search else None
            if face is None:
                return None
            points = self.start(image, face)
        else:
            points = self.points
        return self._smoothed(align(points), time_s) if _usable(points) else None

    def _find(self, image: np.ndarray) -> Face | None:
        """The largest face of the frame that is large enough and no profile."""
        closer = self._frames % FAR_EVERY == 0 and max(image.shape[:2]) > FIND_SIDE
        faces = self._detector.search(image, min(FAR_SIDE, max(image.shape[:2])) if closer else FIND_SIDE)
        usable = [face for face in faces if face.box[2] >= MIN_FACE_PX and abs(face.yaw_degrees) <= MAX_YAW_DEGREES]
        return max(usable, key=lambda face: face.area, default=None)

    def _flow(self, old: np.ndarray, image: np.ndarray, points: np.ndarray) -> np.ndarray | None:
        """The five points carried along by the common motion of the face since the view `old` of them; None when there
        is none."""
        alignment, new = align(points, FLOW_SIDE), _flow_view(image, points)
        corners = cv2.goodFeaturesToTrack(old, CORNERS, 0.01, 5, mask=_inner_face())
        if corners is None or len(corners) < MIN_CORNERS:
            return None
        moved, found, _ = cv2.calcOpticalFlowPyrLK(old, new, corners, corners.copy(), winSize=(21, 21), maxLevel=3)
        kept = found.ravel() == 1
        if kept.sum() < MIN_CORNERS:
            return None
        motion, agree = cv2.estimateAffinePartial2D(
            corners[kept], moved[kept], method=cv2.RANSAC, ransacReprojThreshold=FLOW_ERROR_PX
        )
        if motion is None or agree.sum() < max(MIN_CORNERS, MIN_AGREEMENT * len(corners)):
            return None
        if not 0.8 < float(np.hypot(motion[0, 0], motion[1, 0])) < 1.25:
            return None
        return transform(alignment.inverse, transform(motion, transform(alignment.matrix, points)))

    def _correct(self, image: np.ndarray, last: np.ndarray, carried: np.ndarray | None) -> np.ndarray | None:
        """The points after one detection; None when the face is lost."""
        view = VIEWS[(self._frames // self._every) % len(VIEWS)]
        measured = self._detector.measure(image, last if carried is None else carried, *view)
        if measured is None:
            self._failed += 1
            return None if self._failed >= PATIENCE else carried
        self._failed = 0
        if carried is None:
            return measured
        off = float(np.hypot(*(measured - carried).T).mean()) / align(carried).side_px
        return carried + (measured - carried) * np.interp(off, (NEAR, FAR), (PULL, 1.0))

    def _smoothed(self, alignment: Alignment, time_s: float) -> Alignment:
        if self.smooth <= 0:
            return alignment
        self._filter.cutoff_hz, self._filter.beta = CUTOFF_HZ / self.smooth, BETA / self.smooth
        unit, middle = self._unit, (alignment.size - 1) / 2
        centre = transform(alignment.inverse, np.array([[middle, middle]]))[0] / unit
        turn = np.radians(alignment.roll_degrees)
        if self._filter_turn is not None:  # no jump by a full circle
            turn = self._filter_turn + (turn - self._filter_turn + np.pi) % (2 * np.pi) - np.pi
        x, y, size, turn = self._filter.filter(np.array([*centre, np.log(alignment.side_px / unit), turn]), time_s)
        scale = alignment.size / (np.exp(size) * unit)
        rotation = scale * np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        offset = middle - rotation @ (x * unit, y * unit)
        return Alignment(np.column_stack([rotation, offset]), alignment.size)

    @property
    def _filter_turn(self) -> float | None:
        value = self._filter.state.value
        return None if value is None else float(value[3])

    @property
    def state(self) -> TrackState:
        """What it remembers; may be set to what another tracker remembered."""
        view = None if self.points is None else self._view
        height, width = self._shape
        return TrackState(self.points, view, height, width, self._unit, self._frames, self._failed, self._filter.state)

    @state.setter
    def state(self, state: TrackState) -> None:
        self.points, self._view, self._unit = state.points, state.view, state.unit
        self._shape = (state.height, state.width)
        self._frames, self._failed, self._filter.state = state.frames, state.failed, state.filter


def _flow_view(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The face of a frame RGB uint8, aligned by its points, grey: uint8 [FLOW_SIDE, FLOW_SIDE]."""
    return cv2.cvtColor(quick_warp(image, align(points, FLOW_SIDE).matrix, FLOW_SIDE, FLOW_SIDE), cv2.COLOR_RGB2GRAY)


def _usable(points: np.ndarray) -> bool:
    face = Face((0, 0, 0, 0), points, 1.0)
    return abs(face.yaw_degrees) <= MAX_YAW_DEGREES and align(points).side_px * FACE_PART >= MIN_FACE_PX


@cache
def _inner_face() -> np.ndarray:
    """Where flow looks for corners: an oval from the forehead to the chin. uint8 [FLOW_SIDE, FLOW_SIDE], 0 or 255."""
    mask = np.zeros((FLOW_SIDE, FLOW_SIDE), np.uint8)
    centre, axes = (FLOW_SIDE // 2, round(0.55 * FLOW_SIDE)), (round(0.27 * FLOW_SIDE), round(0.33 * FLOW_SIDE))
    return np.asarray(cv2.ellipse(mask, centre, axes, 0, 0, 360, 255, cv2.FILLED))
