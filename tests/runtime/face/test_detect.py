"""Real YuNet on the faces that ship with fid: found at any size, number and tilt, and refused where they must be."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from fid.runtime.assets import FACES
from fid.runtime.engines.open import open_detector
from fid.runtime.errors import InputError
from fid.runtime.face.align import align, transform, warp
from fid.runtime.face.detect import DOUBTFUL_SCORE, MIN_FACE_PX, Detector, Face, choose_face
from fid.runtime.media.images import read_image

PHOTOS = sorted(FACES.glob("*.jpg"))
CORNERS = np.array([[0, 0], [255, 0], [255, 255], [0, 255]])
FRONTAL = np.array([[96.0, 120], [160, 120], [128, 159], [98, 186], [158, 186]])


@pytest.fixture(scope="module")
def detector(fetched: Callable[[str], Path]) -> Detector:
    fetched("yunet")
    return open_detector()


def scene(*placed: tuple[int, float, float, float, float], width: int = 1600, height: int = 1200) -> np.ndarray:
    """Shipped faces on a plain wall: (number, scale, degrees, centre x, centre y), RGB uint8 [height, width, 3]."""
    photo = np.full((height, width, 3), (176, 170, 160), np.uint8)
    for number, scale, degrees, x, y in placed:
        matrix = placement(scale, degrees, x, y)
        face = read_image(PHOTOS[number])
        everywhere = np.full((256, 256), 255, np.uint8)
        inside = cv2.warpAffine(everywhere, matrix, (width, height), flags=cv2.INTER_CUBIC) > 127
        photo[inside] = warp(face, matrix, width, height)[inside]
    return photo


def placement(scale: float, degrees: float, x: float, y: float) -> np.ndarray:
    """The similarity that puts a face's 256 px around (x, y), px."""
    turn = scale * np.exp(1j * np.radians(degrees))
    offset = complex(x, y) - turn * complex(127.5, 127.5)
    return np.array([[turn.real, -turn.imag, offset.real], [turn.imag, turn.real, offset.imag]])


def test_yunet_is_read_as_opencv_reads_it(detector: Detector, fetched: Callable[[str], Path]) -> None:
    file = fetched("yunet") / "face_detection_yunet_2023mar_int8bq.onnx"
    net = cv2.FaceDetectorYN.create(str(file), "", (320, 320), DOUBTFUL_SCORE, 0.3, 5000)
    photo = scene((5, 1.1, 0, 400, 300), (6, 0.5, 10, 700, 300), (2, 0.4, 0, 640, 500), width=900, height=650)
    for width, height in ((900, 650), (451, 325), (320, 320)):  # multiples of 32, and not
        view = cv2.cvtColor(cv2.resize(photo, (width, height)), cv2.COLOR_RGB2BGR)
        net.setInputSize((width, height))
        expected = net.detect(view)[1]
        found = [[*face.box, *face.points.ravel(), face.score] for face in detector.look(view, DOUBTFUL_SCORE)]
        assert len(expected) >= 2
        np.testing.assert_allclose(found, expected, atol=0.01)  # px: two libraries' sums in float32, 0.0003 off as seen


def test_shipped_faces_are_aligned_already(detector: Detector) -> None:
    """Each is found, once; aligning it again moves the corners by a few px (align.py has the mean over many)."""
    moves = []
    for path in PHOTOS:
        image = read_image(path)
        faces = detector.faces(image)
        assert len(faces) == 1, path.name
        refined = detector.refine(image, choose_face(faces, None, path.name))
        moves.append(transform(align(refined.points).matrix, CORNERS) - CORNERS)
    assert np.abs(np.mean(moves, axis=0)).max() < 4
    assert np.sqrt(np.mean(np.square(moves))) < 10  # px; five of the ten are far from frontal


@pytest.mark.parametrize(("scale", "degrees"), [(0.3, 0), (1.0, 20), (2.5, -15), (4.0, 5)])
def test_the_crop_does_not_depend_on_size_and_tilt(detector: Detector, scale: float, degrees: float) -> None:
    photo = scene((6, scale, degrees, 820, 610), width=1700, height=1250)
    (face,) = detector.faces(photo)
    there = transform(placement(scale, degrees, 820, 610), CORNERS)
    found = transform(align(detector.refine(photo, face).points).matrix, there)
    alone = read_image(PHOTOS[6])
    reference = transform(align(detector.refine(alone, detector.faces(alone)[0]).points).matrix, CORNERS)
    assert np.abs(found - reference).max() < 12  # px of the crop


def test_a_tiny_and_a_huge_face_are_found_together(detector: Detector) -> None:
    photo = scene((5, 4.5, 0, 700, 700), (6, 0.35, 0, 1900, 200), width=2400, height=1400)
    faces = detector.faces(photo)
    assert len(faces) == 2
    assert faces[0].area > 50 * faces[1].area
    assert abs(faces[1].points.mean(axis=0) - (1900, 200)).max() < 15


def test_a_small_face_in_a_very_large_photo(detector: Detector) -> None:
    photo = scene((6, 1.0, 0, 3500, 2000), width=5000, height=4000)
    (face,) = detector.faces(photo)
    assert abs(face.points.mean(axis=0) - (3500, 2020)).max() < 20


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_photo_on_its_side(detector: Detector, quarters: int) -> None:
    """The orientation is lost, and the crop is the same nevertheless."""
    upright = scene((6, 1.6, 0, 500, 400), width=1000, height=760)
    turned = np.ascontiguousarray(np.rot90(upright, quarters))
    crops = []
    for photo in (upright, turned):
        face = choose_face(detector.faces(photo), None, "photo")
        crops.append(align(detector.refine(photo, face).points).crop(photo).astype(int))
    assert np.abs(crops[0] - crops[1]).mean() < 8


def test_several_faces_are_counted_by_size(detector: Detector) -> None:
    photo = scene((5, 0.8, 0, 300, 300), (6, 1.4, 0, 900, 500), (7, 0.5, 0, 1400, 900))
    faces = detector.faces(photo)
    assert [round(face.points[:, 0].mean(), -2) for face in faces] == [900, 300, 1400]
    assert choose_face(faces, None, "photo") is faces[0]
    assert choose_face(faces, 3, "photo") is faces[2]
    with pytest.raises(InputError, match=r"face 4 was asked for and there are 3 faces"):
        choose_face(faces, 4, "photo")
    with pytest.raises(InputError, match=r"face 2 was asked for and there is 1 face;"):
        choose_face(faces[:1], 2, "photo")


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (64, 64), (900, 700)])
def test_no_face(detector: Detector, size: tuple[int, int]) -> None:
    photo = np.random.default_rng(0).integers(90, 110, (*size, 3)).astype(np.uint8)
    with pytest.raises(InputError, match=r"^holiday\.jpg: no face was found"):
        choose_face(detector.faces(photo), None, "holiday.jpg")


def test_a_face_too_small(detector: Detector) -> None:
    photo = scene((6, 0.2, 0, 300, 300), width=640, height=480)
    faces = detector.faces(photo)
    assert faces[0].box[2] < MIN_FACE_PX
    with pytest.raises(InputError, match=r"only \d+ px wide and at least 40 px are needed; use a larger photo"):
        choose_face(faces, None, "photo")


def face_turned(degrees: float) -> Face:
    """The mean face's points, turned about the vertical axis and seen from far away."""
    depth = np.array([0, 0, 0.57 * 64, 10, 10])
    angle = np.radians(degrees)
    points = FRONTAL.copy()
    points[:, 0] = 128 + (FRONTAL[:, 0] - 128) * np.cos(angle) + depth * np.sin(angle)
    return Face((50, 60, 150, 190), points, 0.95)


@pytest.mark.parametrize("degrees", [-80, -40, 0, 25, 59, 75])
def test_yaw_is_read_from_the_nose(degrees: float) -> None:
    assert face_turned(degrees).yaw_degrees == pytest.approx(degrees, abs=1e-6)


def test_a_profile_is_refused_and_a_turned_head_is_not() -> None:
    assert choose_face([face_turned(55)], None, "photo").score == 0.95
    for degrees in (-65, 80):
        with pytest.raises(InputError, match=rf"turned by about {abs(degrees)} degrees"):
            choose_face([face_turned(degrees)], None, "photo")
