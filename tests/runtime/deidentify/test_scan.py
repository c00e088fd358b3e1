"""The first pass: where everybody is, also before the detector could see them."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from fid.runtime.assets import FACES
from fid.runtime.commands.bench import made_frames
from fid.runtime.deidentify import scan
from fid.runtime.deidentify.places import Place, Track, between, by_frame, same_place
from fid.runtime.deidentify.scan import Scanner
from fid.runtime.engines.open import open_detector
from fid.runtime.face.detect import Detector, Face
from fid.runtime.face.search import find_all
from fid.runtime.media.images import read_image

FPS = 10.0
PEOPLE = FACES / "identity-ada.jpg"
POINTS = np.array([[10.0, 12], [30, 12], [20, 22], [12, 32], [28, 32]])


@pytest.fixture(scope="module")
def detector(fetched: Callable[[str], Path]) -> Detector:
    fetched("yunet")
    return open_detector()


def scanned(detector: Detector, frames: list[np.ndarray], **options: object) -> list[Track]:
    scanner = Scanner(detector, FPS, **options)  # type: ignore[arg-type]
    for frame in frames:
        scanner.add(frame)
    return scanner.finish()


def walking_in(step: int, count: int) -> list[np.ndarray]:
    """A face that comes in from the left: RGB uint8 [300, 400, 3] each; its middle is at `step` * n - 128."""
    face, frames = read_image(PEOPLE), []
    for number in range(count):
        frame = np.full((300, 400, 3), 150, np.uint8)
        left = step * number - 256
        shown = face[:, max(0, -left) :]
        frame[22:278, max(0, left) : max(0, left) + shown.shape[1]] = shown[:, : 400 - max(0, left)]
        frames.append(frame)
    return frames


def test_who_walks_in_is_hidden_from_the_first_frame_on(detector: Detector) -> None:
    frames = walking_in(20, 20)
    tracks = [track for track in scanned(detector, frames) if track.sure]
    assert len(tracks) == 1
    for number in range(4, 20):  # 4: 80 of 256 px are in the picture, of the face the last 10
        middle = 20 * number - 128
        left, _, width, _ = tracks[0].places[number].box
        assert left - 0.25 * width < max(middle, 0) < left + 1.25 * width, number
    assert tracks[0].places[19].composable(frames[0].shape)
    assert not tracks[0].places[6].composable(frames[0].shape)


def test_one_that_only_the_careful_search_sees_is_followed_back(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upside down: from the last frame of the clip to the first."""
    frames = [np.ascontiguousarray(frame[::-1, ::-1]) for frame in made_frames(read_image(PEOPLE), 6)]
    careful: list[int] = []

    def only_the_last(net: Detector, image: np.ndarray) -> list[Face]:
        careful.append(1)
        return find_all(net, image) if len(careful) > 1 else []

    monkeypatch.setattr(scan, "find_all", only_the_last)
    (track,) = scanned(detector, frames)
    assert len(careful) == 2
    assert [track.places[number].seen for number in range(6)] == [True] * 6


@pytest.mark.parametrize("degrees", [45, 60])
def test_points_follow_a_turned_face(detector: Detector, degrees: int) -> None:
    """YuNet sees one turned by 45 degrees in an upright view, sure to 0.85, and says that it is hardly turned."""
    face, turn, turned = read_image(PEOPLE), np.radians(degrees), []
    for number in range(4):
        middle = np.array([200.0 + 4 * number, 160])
        matrix = 0.7 * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        placed = np.column_stack([matrix, middle - matrix @ (128, 128)])
        frame = np.full((320, 420, 3), 150, np.uint8)
        turned.append(cv2.warpAffine(face, placed, (420, 320), frame, borderMode=cv2.BORDER_TRANSPARENT))
    for frames in (turned, [np.full_like(turned[0], 150), *turned]):  # from the first frame on, and appearing
        (track,) = [track for track in scanned(detector, frames) if track.sure]
        for place in track.places.values():
            if place.points is not None:
                right, down = place.points[1] - place.points[0]
                off = np.degrees(np.arctan2(down, right)) - degrees
                assert abs((off + 180) % 360 - 180) < 12


def test_a_pattern_that_is_seen_once_at_the_border_is_hidden_for_a_moment_alone(detector: Detector) -> None:
    """The border makes everything symmetrical, fingers as well, and they look like a face in one frame."""
    wall = [np.full((200, 200, 3), 150, np.uint8)] * 40
    once = Face((180.0, 90.0, 30.0, 40.0), np.add(POINTS, (175, 90)), 0.75)
    (track,) = scanned(detector, wall, known={number: [once] if number == 20 else [] for number in range(40)})
    around = round(scan.AROUND_S * FPS)
    assert sorted(track.places) == list(range(20 - around, 21 + around))
    moved = [Face((174.0 + 3 * n, 90.0, 30.0, 40.0), np.add(POINTS, (169 + 3 * n, 90)), 0.75) for n in (0, 1)]
    known = {number: [moved[number - 19]] if number in (19, 20) else [] for number in range(40)}
    (track,) = scanned(detector, wall, known=known)
    assert track.last > 20 + around or track.places[track.last].box[0] > 190  # until it is outside


def test_what_the_last_search_finds_again_is_no_second_track(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = Face((80.0, 80.0, 40.0, 50.0), np.add(POINTS, (78, 85)), 0.8)
    monkeypatch.setattr(scan, "find_all", lambda net, image: [pattern])
    monkeypatch.setattr(scan, "find_quickly", lambda net, image, side, turns: [])
    (track,) = scanned(detector, [np.full((200, 200, 3), 150, np.uint8)] * 8)
    assert [frame for frame, place in track.places.items() if place.seen] == [0, 7]
    assert not track.sure


def test_what_only_careful_searches_see_is_unsure_unless_they_are_very_sure() -> None:
    box = (10.0, 10.0, 40.0, 50.0)
    for score, sure in ((0.8, False), (0.93, True)):
        track = Track(0, {frame: Place(box, POINTS, score, frame % 10 == 0) for frame in range(31)})
        assert track.sure is sure
        assert track.sightings == 4
    assert Track(0, {0: Place(box, POINTS, 0.8, True)}).sure  # a photo
    assert Track(0, {frame: Place(box, POINTS, 0.8, frame % 2 == 0) for frame in range(9)}).sure
    assert not Track(0, {0: Place(box, POINTS, 0.6, True)}).sure


def test_a_cut_ends_what_is_followed(detector: Detector) -> None:
    frames = made_frames(read_image(PEOPLE), 3)
    wall = np.full_like(frames[0], 20)
    tracks = scanned(detector, [wall, wall, *frames, wall, wall])
    assert [sorted(track.places) for track in tracks if track.sure] == [[2, 3, 4]]


def test_after_its_last_frame_a_place_is_hidden_a_while(detector: Detector) -> None:
    frames = made_frames(read_image(PEOPLE), 2)
    wall = np.full_like(frames[0], 150)
    tracks = scanned(detector, [*frames, *[wall] * 12])
    (track,) = [track for track in tracks if track.sure]
    assert track.last == 1 + round(scan.AROUND_S * FPS)
    assert track.places[track.last].points is None


def test_what_a_former_run_found_is_not_searched_again(detector: Detector) -> None:
    frames, kept = made_frames(read_image(PEOPLE), 4), {}
    first = scanned(detector, frames, keep=kept.__setitem__)
    known = {frame: faces for frame, faces in kept.items() if frame < 3}
    searched: list[int] = []
    second = scanned(detector, frames, known=known, keep=lambda frame, faces: searched.append(frame))
    assert set(searched) == {3}  # quickly, then, as the last one, with all care
    assert [sorted(track.places) for track in second] == [sorted(track.places) for track in first]


def test_gaps_are_filled_on_the_straight_way() -> None:
    one, two = Place((0, 0, 10, 20), POINTS, 0.9, True), Place((40, 8, 10, 20), POINTS + 4, 0.9, True)
    middle = list(between(one, two, 4))[1]
    assert middle.box == (20, 4, 10, 20)
    assert middle.points is not None
    assert np.allclose(middle.points, POINTS + 2)
    assert not middle.seen
    assert same_place(one.box, (5, 0, 10, 20))
    assert not same_place(one.box, (5, 0, 30, 20))


def test_the_end_of_a_track_that_is_nearer() -> None:
    track = Track(0, {frame: Place((0, 0, 1, 1), None, 0, False) for frame in (3, 4, 7, 9)})
    assert track.end(12, 3) == [9, 7, 4]
    assert track.end(0, 2) == [3, 4]
    assert list(by_frame([track])) == [3, 4, 7, 9]
