"""Finding faces and their five points with YuNet (OpenCV Zoo), in photos of any size.

YuNet sees faces of about 10 to 300 px. So a photo is searched in two sizes, one for a face that fills it and one for a
crowd; and the face that is wanted is looked at again, upright, in fixed sizes, mirrored as well, and the points are
averaged: they then do not depend on how large the photo was, and scatter less (the figures are in `align.py`). YuNet's
outputs are read as OpenCV's FaceDetectorYN reads them, which takes longer and keeps more memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ..errors import InputError
from .align import align, transform

SEARCH_SIDES = (320, 1024)  # px, longest side of the photo as it is searched
CROWD_SIDE = 2048  # px, tried when there was nothing in these and the photo is larger
REFINE_SIDES = ((320,), (448, 576))  # px, sides of the upright views in which the points are measured, in two rounds
MIN_SCORE = 0.7  # 0..1, YuNet's certainty
WARN_SCORE = 0.9  # real faces have 0.92 and more, pencil sketches 0.80 to 0.91, a cat 0.83: below it, a word is due
DOUBTFUL_SCORE = 0.45  # 0..1, YuNet itself says nothing of what it is less sure of
SURE_SCORE = 0.92  # an upright face has 0.93 to 0.96, one on its side up to 0.90 and then its points are wrong
TURNED_GAIN = 0.03  # how much surer a face must be in the turned photo
STRIDES = (8, 16, 32)  # px, from one of YuNet's places to the next
SAME_FACE = 0.3  # intersection over union above which two detections are one
OVERLAP = 0.4  # of the smaller box: above it, two boxes are one face
MIN_FACE_PX = 40  # width of the face in the photo; narrower ones hold too little to recognise anybody
MAX_YAW_DEGREES = 60.0  # beyond it, one eye is hidden and neither alignment nor identity can be trusted
NOSE_DEPTH = 0.57  # how far the nose tip stands before the eyes, in distances between the eyes (mean face)


@dataclass(frozen=True)
class Face:
    """One face in a photo; px of the photo, pixel centres at whole coordinates."""

    box: tuple[float, float, float, float]  # left, top, width, height, px
    points: np.ndarray  # float64 [5, 2]: eye on the picture's left, other eye, nose tip, left and right mouth corner
    score: float  # 0..1

    @property
    def area(self) -> float:
        """px^2"""
        return self.box[2] * self.box[3]

    @property
    def yaw_degrees(self) -> float:
        """How far the head is turned, from the nose's place between the eyes: rough, 0 is frontal, > 0 to the right."""
        left, right, nose = self.points[0], self.points[1], self.points[2]
        axis = right - left
        along = float((nose - (left + right) / 2) @ axis) / max(float(axis @ axis), 1e-9)
        return float(np.degrees(np.arctan(along / NOSE_DEPTH)))


class Detector:
    """YuNet, opened once (`engines.open.open_detector`)."""

    def __init__(self, run: Callable[[np.ndarray], Mapping[str, np.ndarray]], min_score: float = MIN_SCORE) -> None:
        """`run` is the prepared graph `detector`: from float32 [1, 3, height, width], BGR 0..255, both sides multiples
        of 32, to YuNet's outputs by name. Faces count from the certainty `min_score` on, 0..1."""
        self._run, self._min_score = run, min_score

    def faces(self, image: np.ndarray) -> list[Face]:
        """Return all faces in a photo RGB uint8 [height, width, 3], the largest first.

        A photo that lies on its side, its orientation lost, is recognised by its faces being surer when it is turned.
        """
        found = self._all(image)
        best, turns = _best_score(found), 0
        if best < SURE_SCORE:
            for quarter in (1, 2, 3):
                score = _best_score(self.search(np.rot90(image, quarter), SEARCH_SIDES[0]))
                if score > best + TURNED_GAIN:
                    best, turns = score, quarter
        if turns:
            found = [_turned_back(face, turns, image.shape) for face in self._all(np.rot90(image, turns))]
        return sorted(found, key=lambda face: face.area, reverse=True)

    def _all(self, image: np.ndarray) -> list[Face]:
        small, large = SEARCH_SIDES
        longest = max(image.shape[:2])
        found = self.search(image, small)
        if longest > small:
            found += self.search(image, min(large, longest))
        if not found and longest > large:
            found = self.search(image, min(CROWD_SIDE, longest))
        return distinct(found)

    def refine(self, image: np.ndarray, face: Face) -> Face:
        """Return the same face, its points measured anew in upright views of fixed sizes and in their mirror images."""
        for sides in REFINE_SIDES:
            measured = [
                points
                for side in sides
                for points in self._measured(image, face.points, side, (False, True))
                if points is not None
            ]
            if not measured:  # it was seen in the whole photo only: its first points have to do
                return face
            face = Face(face.box, np.mean(measured, axis=0), face.score)
        return face

    def measure(self, image: np.ndarray, points: np.ndarray, side: int, mirrored: bool = False) -> np.ndarray | None:
        """Return one more measurement of a face's five points, float64 [5, 2] px in the photo, in an upright view of
        it.

        `points` say where the face is; `side` is that of the view, px. None when there is no face.
        """
        (measured,) = self._measured(image, points, side, (mirrored,))
        return measured

    def _measured(
        self, image: np.ndarray, points: np.ndarray, side: int, ways: tuple[bool, ...]
    ) -> Iterator[np.ndarray | None]:
        """Yield what `measure` returns for each of some ways, mirrored or not, to look at one view."""
        alignment = align(points, side)
        view = alignment.crop(image)
        for mirrored in ways:
            seen = _central(self.search(view[:, ::-1] if mirrored else view, side), side)
            if seen is None:
                yield None
                continue
            own = seen.points
            if mirrored:
                own = own[[1, 0, 2, 4, 3]] * (-1, 1) + (side - 1, 0)
            yield transform(alignment.inverse, own)

    def search(self, image: np.ndarray, side: int) -> list[Face]:
        """Find faces in one go with the photo's longest side brought to `side` px, in the detector's order."""
        height, width = image.shape[:2]
        factor = side / max(height, width)
        small = (max(1, round(width * factor)), max(1, round(height * factor)))
        method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        view = cv2.cvtColor(cv2.resize(image, small, interpolation=method), cv2.COLOR_RGB2BGR)
        scale = np.array([width / small[0], height / small[1]])
        faces = []
        for face in self.look(view):
            corner, extent = np.array(face.box[:2]) * scale, np.array(face.box[2:]) * scale
            points = (face.points + 0.5) * scale - 0.5
            faces.append(Face((*corner.tolist(), *extent.tolist()), points, face.score))
        return faces

    def look(self, view: np.ndarray, least: float | None = None) -> list[Face]:
        """Return faces of a picture BGR uint8 [height, width, 3] as large as it is; `least`: from this certainty on,
        0..1 and `DOUBTFUL_SCORE` at least, None for the detector's own."""
        least = self._min_score if least is None else least
        below, right = (-side % STRIDES[-1] for side in view.shape[:2])
        padded = cv2.copyMakeBorder(view, 0, below, 0, right, cv2.BORDER_CONSTANT)
        outputs = self._run(cv2.dnn.blobFromImage(padded))
        rows = np.concatenate([_rows(outputs, stride, padded.shape[1] // stride, least) for stride in STRIDES])
        if not len(rows):
            return []
        boxes = rows[:, :4].astype(np.int32).tolist()
        kept = cv2.dnn.NMSBoxes(boxes, rows[:, 14].tolist(), 0.0, SAME_FACE)
        return [_face(row) for row in rows[np.asarray(kept)].astype(np.float64)]


@dataclass(frozen=True)
class Choice:
    """Which face of a photo was taken, for those who want to tell it."""

    photo: str  # its name
    width: int  # of the photo, px
    faces: tuple[Face, ...]  # all that were found, the largest first
    face: Face  # the one that was taken
    number: int | None  # the one that was asked for, counted from 1 by size

    def place(self, face: Face) -> str:
        """Return where in the photo a face is: at the left, in the middle or at the right."""
        centre = (face.box[0] + face.box[2] / 2) / self.width
        return "at the left" if centre < 1 / 3 else "in the middle" if centre <= 2 / 3 else "at the right"

    def remarks(self, option: str) -> list[str]:
        """Return what a user should know, one sentence each: that there were more faces and how `option` chooses
        another, and that the detector was not sure of this one."""
        said = []
        if self.number is None and len(self.faces) > 1:
            others = [f"{option} {n} is {self.place(face)}" for n, face in enumerate(self.faces[1:4], 2)]
            more = ", ..." if len(self.faces) > 4 else ""
            taken = f"the largest, {self.place(self.face)}, was taken"
            said.append(f"{self.photo} shows {len(self.faces)} faces; {taken} ({', '.join(others)}{more}).")
        if self.face.score < WARN_SCORE:
            said.append(
                f"{self.photo}: the detector is only {self.face.score:.2f} sure that this is a face (real ones have "
                f"0.92 and more); is it a person's? --min-confidence {WARN_SCORE} refuses such."
            )
        return said


def choose_face(faces: Sequence[Face], number: int | None, photo: str, min_score: float = 0.0) -> Face:
    """Return the face that is meant: the largest, or the one with that number, counted from 1 by size, of those that
    the detector is sure enough of (`min_score`, 0..1).

    Raises `InputError`, naming the photo, when there is none, when the number is too high, and when the face is
    narrower than `MIN_FACE_PX` or turned further than `MAX_YAW_DEGREES`.
    """
    if not faces:
        raise InputError(f"{photo}: no face was found; the face must be upright, visible, and not cut off.")
    surest = _best_score(list(faces))
    faces = [face for face in faces if face.score >= min_score]
    if not faces:
        raise InputError(
            f"{photo}: the detector is only {surest:.2f} sure of a face, and {min_score:g} is asked for "
            "(--min-confidence)."
        )
    if number is not None and not 1 <= number <= len(faces):
        there = "is 1 face" if len(faces) == 1 else f"are {len(faces)} faces"
        raise InputError(f"{photo}: face {number} was asked for and there {there}; they are counted by size, from 1.")
    face = faces[0 if number is None else number - 1]
    if face.box[2] < MIN_FACE_PX:
        raise InputError(
            f"{photo}: the face is only {face.box[2]:.0f} px wide and at least {MIN_FACE_PX} px are needed; "
            "use a larger photo."
        )
    if abs(face.yaw_degrees) > MAX_YAW_DEGREES:
        raise InputError(
            f"{photo}: the face is turned by about {abs(face.yaw_degrees):.0f} degrees, and beyond "
            f"{MAX_YAW_DEGREES:.0f} (a profile) nothing good can come out; use a photo that shows both eyes."
        )
    return face


def _rows(outputs: Mapping[str, np.ndarray], stride: int, columns: int, least: float) -> np.ndarray:
    """What YuNet found at one stride of a view with so many columns of places: float32 [n, 15], for each face its box,
    its points and its certainty, in px of the view."""
    certain, there, bbox, points = (outputs[f"{name}_{stride}"][0] for name in ("cls", "obj", "bbox", "kps"))
    scores = np.sqrt(certain[:, 0].clip(0, 1) * there[:, 0].clip(0, 1))
    (found,) = np.nonzero(scores >= least)
    place = np.column_stack([found % columns, found // columns]).astype(np.float32)
    centre, size = (place + bbox[found, :2]) * stride, np.exp(bbox[found, 2:]) * stride
    points = (np.tile(place, 5) + points[found]) * stride
    return np.column_stack([centre - size / 2, size, points, scores[found]])


def _face(row: np.ndarray) -> Face:
    """A face of a row float64 [15] of `_rows`."""
    box = (float(row[0]), float(row[1]), float(row[2]), float(row[3]))
    return Face(box, row[4:14].reshape(5, 2), float(row[14]))


def _central(faces: list[Face], side: int) -> Face | None:
    """The face nearest the middle of a refining view, if it is the one that the view was made for."""
    middle = (side - 1) / 2

    def distance(face: Face) -> float:
        return float(np.abs(face.points.mean(axis=0) - (middle, middle)).max())

    nearest = min(faces, key=distance, default=None)
    return nearest if nearest is not None and distance(nearest) < side / 5 else None


def _best_score(faces: list[Face]) -> float:
    return max((face.score for face in faces), default=MIN_SCORE)


def _turned_back(face: Face, quarters: int, shape: tuple[int, ...]) -> Face:
    """A face found in `np.rot90(image, quarters)`, in px of the image of that shape [height, width, 3]."""
    bottom, right = shape[0] - 1, shape[1] - 1
    matrix = np.array(
        {
            1: [[0, -1, right], [1, 0, 0]],
            2: [[-1, 0, right], [0, -1, bottom]],
            3: [[0, 1, 0], [-1, 0, bottom]],
        }[quarters]
    )
    left, top, width, height = face.box
    corners = transform(matrix, np.array([[left, top], [left + width, top + height]]))
    (x, y), (far_x, far_y) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    return Face((x, y, far_x - x, far_y - y), transform(matrix, face.points), face.score)


def distinct(faces: list[Face]) -> list[Face]:
    """Return the faces without the weaker of two whose boxes cover each other, the surest first."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: face.score, reverse=True):
        if all(_cover(face, other) < OVERLAP for other in kept):
            kept.append(face)
    return kept


def _cover(a: Face, b: Face) -> float:
    """The common part of two boxes, as a part of the smaller one."""
    wide = min(a.box[0] + a.box[2], b.box[0] + b.box[2]) - max(a.box[0], b.box[0])
    high = min(a.box[1] + a.box[3], b.box[1] + b.box[3]) - max(a.box[1], b.box[1])
    return max(wide, 0.0) * max(high, 0.0) / max(min(a.area, b.area), 1e-9)
