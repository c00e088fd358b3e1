"""Following a face that moves in front of a wall: the true motion is known."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fid.runtime.assets import FACES
from fid.runtime.commands.bench import made_frames
from fid.runtime.engines.open import open_detector
from fid.runtime.face.align import align, transform
from fid.runtime.face.detect import Detector
from fid.runtime.face.track import Tracker
from fid.runtime.media.images import read_image

FACE = read_image(FACES / "identity-ada.jpg")
CORNERS = np.array([[0, 0], [255, 0], [255, 255], [0, 255]])
WALL = np.full((480, 640, 3), 150, np.uint8)


@pytest.fixture(scope="module")
def detector(fetched: Callable[[str], Path]) -> Detector:
    fetched("yunet")
    return open_detector()


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    return made_frames(FACE, 24)


def corners(alignment: object) -> np.ndarray:
    return transform(alignment.inverse, CORNERS)  # type: ignore[attr-defined]


def test_a_moving_face_is_followed_as_well_as_by_detecting_it_anew(
    detector: Detector, frames: list[np.ndarray]
) -> None:
    tracker = Tracker(detector, smooth=1.0)
    errors = []
    for number, frame in enumerate(frames):
        alignment = tracker.follow(frame, number / 30)
        assert alignment is not None
        if number % 6 == 5:
            (face,) = detector.faces(frame)
            truth = align(detector.refine(frame, face).points)
            errors.append(np.abs(corners(alignment) - corners(truth)).mean() / truth.side_px)
    assert max(errors) < 0.03  # of the crop's side; single detections differ by as much


def test_smoothing_steadies_a_still_face(detector: Detector, frames: list[np.ndarray]) -> None:
    rng = np.random.default_rng(5)
    noisy = [np.clip(frames[0] + rng.normal(0, 6, frames[0].shape), 0, 255).astype(np.uint8) for _ in range(20)]
    spread = {}
    for smooth in (0.0, 1.0):
        tracker = Tracker(detector, smooth=smooth)
        places = [corners(tracker.follow(frame, number / 30)) for number, frame in enumerate(noisy)]
        spread[smooth] = np.std(places[4:], axis=0).mean()
    assert spread[1.0] < 0.7 * spread[0.0]


def test_a_face_that_goes_is_lost_and_found_again(detector: Detector, frames: list[np.ndarray]) -> None:
    tracker = Tracker(detector)
    assert tracker.follow(frames[0], 0.0) is not None
    assert tracker.follow(WALL, 0.1) is None or tracker.follow(WALL, 0.2) is None
    assert tracker.follow(WALL, 0.3) is None
    found = tracker.follow(frames[12], 0.4)
    assert found is not None
    (face,) = detector.faces(frames[12])
    assert np.abs(corners(found) - corners(align(face.points))).mean() < 0.08 * found.side_px
    alone = Tracker(detector, search=False)
    alone.start(frames[0], face)
    alone.reset()
    assert alone.follow(frames[0], 0.5) is None


def test_another_size_of_frame_starts_anew(detector: Detector, frames: list[np.ndarray]) -> None:
    tracker = Tracker(detector)
    assert tracker.follow(frames[0], 0.0) is not None
    half = np.ascontiguousarray(frames[0][:, 80:560])
    found = tracker.follow(half, 0.1)
    assert found is not None
    assert found.inverse[0, 2] + 127.5 * found.side_px / 256 < 320


def test_the_memory_can_be_kept(detector: Detector, frames: list[np.ndarray]) -> None:
    one, other = Tracker(detector), Tracker(detector)
    for number in range(6):
        one.follow(frames[number], number / 30)
    other.state = one.state
    for number in range(6, 10):
        first, second = (tracker.follow(frames[number], number / 30) for tracker in (one, other))
        assert first is not None
        assert second is not None
        np.testing.assert_array_equal(first.matrix, second.matrix)
