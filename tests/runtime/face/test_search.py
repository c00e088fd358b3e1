"""Real YuNet on generated people: none is missed, however small, turned, or cut by the border."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from fid.runtime.assets import FACES
from fid.runtime.engines.open import open_detector
from fid.runtime.face import search
from fid.runtime.face.align import align, transform, warp
from fid.runtime.face.detect import MIN_SCORE, Detector, Face
from fid.runtime.face.search import SMALLEST_PX, TILE_PX, find_all, find_quickly, visible_part
from fid.runtime.media.images import read_image

PEOPLE = [read_image(path) for path in sorted(FACES.glob("*.jpg"))]
FACE_PART = 0.45  # width of a face's box, in sides of the crop


@pytest.fixture(scope="module")
def detector(fetched: Callable[[str], Path]) -> Detector:
    fetched("yunet")
    return open_detector()


def head() -> np.ndarray:
    """The opacity of a head in the crop: float32 [256, 256, 1]."""
    mask = cv2.ellipse(np.zeros((256, 256), np.float32), (128, 128), (105, 126), 0, 0, 360, 1, -1)
    return cv2.GaussianBlur(mask, (0, 0), 4)


def put(image: np.ndarray, person: int, width: float, degrees: float, x: float, y: float) -> np.ndarray:
    """The picture with a face `width` px wide, turned clockwise, around (x, y)."""
    turn = width / FACE_PART / 256 * np.exp(1j * np.radians(degrees))
    offset = complex(x, y) - turn * complex(127.5, 127.5)
    matrix = np.array([[turn.real, -turn.imag, offset.real], [turn.imag, turn.real, offset.imag]])
    size = image.shape[1], image.shape[0]
    opacity = warp(head(), matrix, *size)
    opacity *= cv2.warpAffine(np.ones((256, 256), np.float32), matrix, size)
    return (image + (warp(PEOPLE[person % len(PEOPLE)], matrix, *size) - image.astype(np.float32)) * opacity[..., None]
            ).clip(0, 255).astype(np.uint8)  # fmt: skip


def crowd(width: float, angles: range, across: int) -> tuple[np.ndarray, np.ndarray]:
    """One person for each angle, in rows: the picture, and where each is, [n, 2] px."""
    cell = round(2.6 * width)
    image = np.full((cell * -(-len(angles) // across), cell * across, 3), 150, np.uint8)
    places = [(cell * (i % across + 0.5), cell * (i // across + 0.5)) for i in range(len(angles))]
    for number, (degrees, place) in enumerate(zip(angles, places, strict=True)):
        image = put(image, number, width, degrees, *place)
    return image, np.array(places)


def nearest(faces: list[Face], place: np.ndarray) -> Face:
    """The face nearest a place."""
    return min(faces, key=lambda face: float(np.hypot(*(face.points.mean(axis=0) - place))))


@pytest.mark.parametrize(("width", "angles"), [(SMALLEST_PX, range(0, 360, 15)), (60, range(0, 360, 15)),
                                               (140, range(30, 360, 90)), (400, range(45, 360, 180))])  # fmt: skip
def test_nobody_is_missed_at_any_angle(detector: Detector, width: int, angles: range) -> None:
    image, places = crowd(width, angles, 6 if len(angles) > 4 else 2)
    faces = find_all(detector, image)
    for degrees, place in zip(angles, places, strict=True):
        face = nearest(faces, place)
        assert np.hypot(*(face.points.mean(axis=0) - place)) < 0.4 * width, degrees
        off = (align(face.points).roll_degrees - degrees + 180) % 360 - 180
        assert abs(off) < 30, degrees  # the faces are not all straight in their crops
        assert face.score >= MIN_SCORE


@pytest.mark.parametrize("width", [SMALLEST_PX, 90])
def test_half_a_face_at_each_border_is_found(detector: Detector, width: int) -> None:
    side = 8 * width
    image = np.full((side, side, 3), 150, np.uint8)
    places = [(0, side / 2), (side - 1, side / 2), (side / 2, 0), (side / 2, side - 1)]
    for number, place in enumerate(places):
        image = put(image, number + 5, width, (0, 90, 10, 180)[number], *place)
    faces = find_all(detector, image)
    for place in places:
        face = nearest(faces, np.array(place))
        assert np.hypot(*(face.points.mean(axis=0) - place)) < 0.5 * width
        assert 0.2 < visible_part(face, image.shape) < 0.8
    upright = find_quickly(detector, image, side)
    assert np.hypot(*(nearest(upright, np.array(places[0])).points.mean(axis=0) - places[0])) < 0.5 * width


def test_a_small_face_in_a_wide_picture_is_found(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its own scale, and across the seam of two tiles."""
    monkeypatch.setattr(search, "TILE_PX", 700)
    image = put(np.full((300, 3000, 3), 150, np.uint8), 6, 30, 0, 700 - 48, 150)
    (face,) = find_all(detector, image, (0,))
    assert np.abs(face.points.mean(axis=0) - (652, 152)).max() < 12


@pytest.mark.parametrize("distance", [40, 70, 110, 150])
def test_a_face_beside_a_seam_is_one_face(detector: Detector, monkeypatch: pytest.MonkeyPatch, distance: int) -> None:
    """Slanted views of a tile have mirror images beyond its seams, where the picture has something else."""
    monkeypatch.setattr(search, "TILE_PX", 500)
    seam = 500 - search.BEYOND_PX
    places = [(seam - distance, 200), (seam - distance, 450)]
    image = np.full((650, 1300, 3), 150, np.uint8)
    for number, place in enumerate(places):
        image = put(image, number + 5, 60, 45 * number, *place)
    faces = find_all(detector, image)
    assert len(faces) == 2
    for place in places:
        assert np.hypot(*(nearest(faces, np.array(place)).points.mean(axis=0) - place)) < 24


def test_nobody_is_nobody(detector: Detector) -> None:
    assert find_all(detector, np.full((200, 300, 3), 150, np.uint8)) == []


@pytest.mark.parametrize("length", [10, TILE_PX, TILE_PX + 1, TILE_PX + search.COMMON_PX + 1, 2 * TILE_PX, 5000])
def test_tiles_cover_everything_and_overlap(length: int) -> None:
    starts = search._starts(length)
    ends = [start + search._extent(length) for start in starts]
    assert len(starts) == 1 or length > TILE_PX + search.COMMON_PX
    assert starts[0] == 0
    assert ends[-1] >= length
    assert all(start + search.COMMON_PX <= end for start, end in zip(starts[1:], ends[:-1], strict=True))


@pytest.mark.parametrize("degrees", search.TURNS)
def test_what_is_found_in_a_turned_view_is_taken_home(degrees: int) -> None:
    tile = np.zeros((60, 90, 3), np.uint8)
    y, x = 20, 71
    tile[y - 1 : y + 2, x - 1 : x + 2] = 255
    view, home = search._turned(tile, degrees)
    bright = np.argwhere(view[..., 0] > 100)[:, ::-1]
    own = bright[np.abs(transform(home, bright) - (x, y)).max(axis=1) < 10]  # the others are mirror images of it
    columns, rows = own.T
    back = transform(home, own).mean(axis=0)
    assert np.abs(back - (x, y)).max() < 0.3  # px; a diagonal view is resampled
    box = Face((float(columns.mean() - 4), float(rows.mean() - 6), 8.0, 12.0), np.zeros((5, 2)), 1.0)
    left, top, width, height = search._moved(box, home, np.zeros(2), np.ones(2)).box
    assert (left + width / 2, top + height / 2) == pytest.approx((x, y), abs=0.3)
    assert (width, height) == pytest.approx({0: (8, 12), 90: (12, 8)}.get(degrees % 180, (10, 10)))


@pytest.mark.parametrize("hidden", ["mask", "glasses", "half"])
def test_faces_are_found_behind_a_mask_dark_glasses_or_with_one_half_hidden(detector: Detector, hidden: str) -> None:
    image = put(np.full((150, 150, 3), 150, np.uint8), 6, 60, 0, 75, 75)
    left, top, width, height = max(detector.faces(image), key=lambda face: face.area).box
    x, y, right, bottom = round(left), round(top), round(left + width), round(top + height)
    if hidden == "mask":
        axes = round(0.55 * width), round(0.33 * height)
        cv2.ellipse(image, ((x + right) // 2, round(top + 0.78 * height)), axes, 0, 0, 360, (190, 210, 225), -1)
    elif hidden == "glasses":
        image[round(top + 0.25 * height) : round(top + 0.5 * height), x:right] = 20
    else:
        image[y:bottom, x : (x + right) // 2] = 100
    (face,) = find_all(detector, image)
    assert face.score >= MIN_SCORE
    assert abs(face.box[0] + face.box[2] / 2 - left - width / 2) < 0.2 * width


def test_nobody_beyond_the_border_has_the_mouth_of_somebody_surer_in_their_face() -> None:
    """A neck and its mirror image below the picture look like a large face; one below somebody else is kept."""
    points = np.array([[200.0, 200], [300, 200], [250, 260], [210, 320], [290, 320]])
    sure = Face((150, 110, 220, 330), points, 0.94)
    neck = Face((60, 300, 430, 430), points, 0.7)  # its middle at y = 515
    below = Face((60, 400, 230, 230), points, 0.7)  # the same, below the mouth
    before = Face((60, 250, 430, 430), points, 0.7)  # its middle in the picture
    surer = Face((60, 300, 430, 430), points, 0.95)
    hair = Face((60, 350, 430, 430), points, 0.7)  # its hair would be before the mouth
    for other, kept in ((neck, False), (hair, False), (below, True), (before, True), (surer, True)):
        assert (other in search._possible([sure, other], (512, 512, 3))) == kept
        assert sure in search._possible([sure, other], (512, 512, 3))


def test_a_surer_mirror_image_takes_no_face_away() -> None:
    """Two views of one face at the border; the surer one has its middle too far outside."""
    points = np.zeros((5, 2))
    far, near = Face((-52, 100, 120, 120), points, 0.9), Face((-38, 100, 120, 120), points, 0.8)  # 48 px are mirrored
    detector = SimpleNamespace(look=lambda view, least: [far, near])
    (found,) = search.find_quickly(detector, np.zeros((320, 320, 3), np.uint8), 320)  # type: ignore[arg-type]
    assert found.score == 0.8
