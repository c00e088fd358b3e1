"""Finding every face of a picture: at its own scale, in eight turns, and also where the border cuts one.

`Detector.faces` finds the faces that can be used. Here none may be missed. YuNet sees an upright face from 16 px on,
but a small one only when it is turned by less than about 30 degrees (measured: 24 px wide, found 1.0 / 0.8 / 0.2 / 0.1
at 15 / 30 / 45 / 60 degrees). So the picture is searched in a pyramid of tiles, each in eight turns, 45 degrees apart,
and what is found is merged. Every view goes on beyond the picture as its mirror image: half a face at the border then
is a whole one, and is found down to a third of it (alone, down to two thirds).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import cv2
import numpy as np

from .align import align, transform
from .detect import MIN_SCORE, Detector, Face, distinct

SMALLEST_PX = 24  # width of the smallest face that is found in every turn
TURNS = (0, 180, 90, 270, 45, 135, 225, 315)  # degrees; with the upright one first, a tie goes to it
STEP = 4  # from one level of the pyramid to the next; YuNet sees 16 to 300 px
TILE_PX, COMMON_PX = 1280, 128  # side of a tile in its level, and how far two of them overlap
BEYOND_PX = 48  # of each level: so far it is mirrored outwards
SMALLEST_LEVEL = 320  # px, longest side of the last level, and what a smaller picture is enlarged to
HAIR = 0.25  # of a face's height: so far its head reaches above it
CUT = 0.3  # of a face's side: so far outside of the picture the middle of one may lie that the border cuts
LEAST = 0.6  # 0..1, YuNet's certainty of what is looked at once more, upright
ROOM = 2.2  # side of a view around a face, in sides of its box
VIEW_SIDE = 192  # px, side of the upright view of that second look


def find_all(detector: Detector, image: np.ndarray, turns: Sequence[int] = TURNS) -> list[Face]:
    """Return every face of a picture RGB uint8 [height, width, 3], from `SMALLEST_PX` on, the surest of each place.

    A face that YuNet is not sure of (score below `MIN_SCORE`) is in the list with that score. Points follow the face's
    own roll; boxes of faces that the border cuts reach beyond the picture.
    """
    found: list[Face] = []
    for factor in _levels(max(image.shape[:2])):
        level, scale = _resized(image, factor)
        padded = cv2.copyMakeBorder(level, *[BEYOND_PX] * 4, borderType=cv2.BORDER_REFLECT_101)
        for top, left, tile in _tiles(padded):
            for degrees in turns:
                view, home = _turned(tile, degrees)
                for face in detector.look(view, LEAST):
                    if not _inside(_moved(face, home, np.zeros(2), np.ones(2)), tile.shape, 0.0):
                        continue  # a mirror image of one beyond the tile, in the corners of a slanted view
                    moved = _moved(face, home, np.array([left, top]) - BEYOND_PX, scale)
                    if _inside(moved, image.shape):
                        found.append(moved)
    return [_second_look(detector, image, face) for face in _possible(distinct(found), image.shape)]


def find_quickly(detector: Detector, image: np.ndarray, side: int, turns: Sequence[int] = (0,)) -> list[Face]:
    """Return the upright faces of a picture RGB uint8 [height, width, 3] brought to `side` px, cut ones as well; in one
    view, or in one for each turn."""
    level, scale = _resized(image, side / max(image.shape[:2]))
    padded = cv2.copyMakeBorder(level, *[BEYOND_PX] * 4, borderType=cv2.BORDER_REFLECT_101)
    found: list[Face] = []
    for degrees in turns:
        view, home = _turned(padded, degrees)
        found += [_moved(face, home, np.full(2, -BEYOND_PX), scale) for face in detector.look(view, MIN_SCORE)]
    return _possible(distinct([face for face in found if _inside(face, image.shape)]), image.shape)


def surest_turn(detector: Detector, image: np.ndarray, face: Face) -> Face:
    """Return a face of a picture RGB uint8 [height, width, 3] with the points of that of eight turns in which YuNet is
    surest of it; the face itself where none is surer.

    Points of a face that is turned by 45 degrees are wrong in an upright view, in which YuNet is sure of it to 0.9.
    """
    left, top, width, height = face.box
    home = np.array([[1.0, 0, left + width / 2], [0, 1.0, top + height / 2]])  # from the view into the picture
    home[:, :2] *= ROOM * max(width, height) / VIEW_SIDE
    home[:, 2] -= home[:, :2] @ np.full(2, (VIEW_SIDE - 1) / 2)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    around = cv2.warpAffine(image, home, (VIEW_SIDE, VIEW_SIDE), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    around, best = cv2.cvtColor(around, cv2.COLOR_RGB2BGR), face
    for degrees in TURNS:
        view, back = _turned(around, degrees)
        for seen in detector.look(view, MIN_SCORE):
            points = transform(back, seen.points)
            if seen.score > best.score and np.abs(points.mean(axis=0) - VIEW_SIDE / 2).max() < VIEW_SIDE / 6:
                best = replace(face, points=transform(home, points), score=seen.score)
    return best


def visible_part(face: Face, shape: tuple[int, ...]) -> float:
    """Return how much of a face's box lies in a picture of that shape [height, width, ...], 0..1."""
    left, top, width, height = face.box
    wide = min(left + width, shape[1]) - max(left, 0.0)
    high = min(top + height, shape[0]) - max(top, 0.0)
    return max(wide, 0.0) * max(high, 0.0) / max(width * height, 1e-9)


def _levels(longest: int) -> Iterator[float]:
    """The factors by which a picture is made smaller, or a tiny one larger."""
    factor = max(1.0, SMALLEST_LEVEL / longest)
    yield factor
    while factor * longest > SMALLEST_LEVEL:
        factor = max(factor / STEP, SMALLEST_LEVEL / longest)
        yield factor


def _resized(image: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """The picture as BGR at that factor, and (x, y) px of the picture for one of the result."""
    height, width = image.shape[:2]
    small = max(1, round(width * factor)), max(1, round(height * factor))
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    level = image if small == (width, height) else cv2.resize(image, small, interpolation=method)
    return cv2.cvtColor(level, cv2.COLOR_RGB2BGR), np.array([width / small[0], height / small[1]])


def _tiles(level: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """(top, left, tile) that cover a level."""
    tall, wide = map(_extent, level.shape[:2])
    for top in _starts(level.shape[0]):
        for left in _starts(level.shape[1]):
            yield top, left, level[top : top + tall, left : left + wide]


def _extent(length: int) -> int:
    """The side of the tiles of a level: its whole length where two tiles would be nearly the same."""
    return length if length <= TILE_PX + COMMON_PX else TILE_PX


def _starts(length: int) -> list[int]:
    if _extent(length) == length:
        return [0]
    count = -(-(length - COMMON_PX) // (TILE_PX - COMMON_PX))
    return [round(i * (length - TILE_PX) / (count - 1)) for i in range(count)]


def _turned(tile: np.ndarray, degrees: int) -> tuple[np.ndarray, np.ndarray]:
    """The tile turned clockwise, and the affine transform float64 [2, 3] from it back into the tile."""
    height, width = tile.shape[:2]
    if degrees % 90 == 0:
        quarters = degrees // 90 % 4
        back = {
            0: [[1, 0, 0], [0, 1, 0]],
            1: [[0, 1, 0], [-1, 0, height - 1]],
            2: [[-1, 0, width - 1], [0, -1, height - 1]],
            3: [[0, -1, width - 1], [1, 0, 0]],
        }[quarters]
        return np.ascontiguousarray(np.rot90(tile, -quarters)), np.array(back, np.float64)
    angle = np.radians(degrees)
    cosine, sine = np.cos(angle), np.sin(angle)
    size = np.ceil([width * abs(cosine) + height * abs(sine), width * abs(sine) + height * abs(cosine)]).astype(int)
    turn = np.array([[cosine, -sine], [sine, cosine]])  # of a point, clockwise as y points down
    middle, new_middle = np.array([width - 1, height - 1]) / 2, (size - 1) / 2
    forth = np.column_stack([turn, new_middle - turn @ middle])
    view = cv2.warpAffine(tile, forth, size.tolist(), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return view, np.column_stack([turn.T, middle - turn.T @ new_middle])


def _moved(face: Face, home: np.ndarray, offset: np.ndarray, scale: np.ndarray) -> Face:
    """A face of a turned tile in px of the picture; its box is upright there, as large, around the same middle."""
    left, top, width, height = face.box
    points = (transform(home, face.points) + offset + 0.5) * scale - 0.5
    middle = (transform(home, np.array([[left + width / 2, top + height / 2]]))[0] + offset + 0.5) * scale - 0.5
    turn = np.abs(home[:, :2])
    wide, high = np.array([width, height]) * scale
    extent = turn @ (wide, high) if turn.max() > 0.99 else np.full(2, 0.5 * (wide + high))
    return Face((*(middle - extent / 2).tolist(), *extent.tolist()), points, face.score)


def _inside(face: Face, shape: tuple[int, ...], beyond: float = CUT) -> bool:
    """Whether a face is one of the picture and not of its mirror image: its middle lies in it, or outside by at most so
    many of its sides."""
    left, top, width, height = face.box
    x, y = left + width / 2, top + height / 2
    wide, high = beyond * width, beyond * height
    return -wide < x < shape[1] + wide and -high < y < shape[0] + high


def _possible(faces: Sequence[Face], shape: tuple[int, ...]) -> list[Face]:
    """The faces but those that mirrored necks and shoulders look like: with their middle beyond the border, and with
    the mouth of a surer face in their box or where their hair would be: nobody there would let us see it."""

    def before(face: Face, other: Face) -> bool:
        left, top, width, height = face.box
        top, height = top - HAIR * height, height + HAIR * height
        inside = (other.points[3:] > (left, top)) & (other.points[3:] < (left + width, top + height))
        return other.score > face.score and bool(inside.all())

    return [face for face in faces if _inside(face, shape, 0.0) or not any(before(face, other) for other in faces)]


def _second_look(detector: Detector, image: np.ndarray, face: Face) -> Face:
    """The face with the certainty of an upright view of it, where YuNet was not sure."""
    if face.score >= MIN_SCORE:
        return face
    alignment = align(face.points, VIEW_SIDE)
    view = cv2.cvtColor(alignment.crop(image), cv2.COLOR_RGB2BGR)
    middle = (VIEW_SIDE - 1) / 2
    for seen in detector.look(view, MIN_SCORE):
        if np.abs(seen.points.mean(axis=0) - middle).max() < VIEW_SIDE / 5:
            return replace(face, points=transform(alignment.inverse, seen.points), score=seen.score)
    return face
