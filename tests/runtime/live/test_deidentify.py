"""De-identification with the toy bundle: everybody is replaced or hidden, always by the same, and it is measured."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from fid.runtime import Composer, Identity
from fid.runtime.assets import FACES
from fid.runtime.commands.bench import made_frames
from fid.runtime.errors import InputError
from fid.runtime.face.track import Tracker
from fid.runtime.identity import encoder_name
from fid.runtime.live import deidentify
from fid.runtime.live.deidentify import HIDE_S, MATCH, Deidentifier, DeidentifierState, Person, mosaic, plan, summary
from fid.runtime.media.images import read_image
from fid.runtime.media.state import flatten, unflatten


@pytest.fixture
def composer(toy_bundle: Path, fetched: Callable[[str], Path]) -> Composer:
    fetched("yunet")
    return Composer(toy_bundle)


def draw_for(composer: Composer) -> Callable[[int], Identity]:
    """Synthetic people: random codes."""

    def draw(seed: int) -> Identity:
        code = np.random.default_rng(seed).standard_normal(128).astype(np.float32)
        return Identity(code / np.linalg.norm(code), encoder_name(composer.bundle), sources=0)

    return draw


def two_people() -> np.ndarray:
    """Two faces side by side, and a third that is too small: RGB uint8 [300, 700, 3]."""
    photo = np.full((300, 700, 3), 150, np.uint8)
    photo[20:276, 20:276] = read_image(FACES / "identity-ada.jpg")
    photo[20:276, 300:556] = read_image(FACES / "identity-ben.jpg")
    photo[100:164, 600:664] = cv2.resize(read_image(FACES / "identity-eve.jpg"), (64, 64), interpolation=cv2.INTER_AREA)
    return photo


def test_everybody_in_a_photo_is_replaced_and_who_is_too_small_is_hidden(composer: Composer) -> None:
    photo = two_people()
    work = Deidentifier(composer, draw_for(composer), seed=3)
    result = work.photo(photo)
    assert [person.replaced for person in work.people] == [1, 1]
    assert work.people[0].seed != work.people[1].seed
    assert work.hidden == 1
    for left in (20, 300):
        assert (
            np.abs(result[80:220, left + 60 : left + 196].astype(int) - photo[80:220, left + 60 : left + 196]).mean()
            > 10
        )
    small = result[110:155, 610:655]
    assert not np.array_equal(small, photo[110:155, 610:655])
    report = work.people[0].report()
    assert report["cosine_before"] is not None
    assert report["still_matches"] == (report["cosine_after_worst"] >= MATCH)
    again = Deidentifier(composer, draw_for(composer), seed=3).photo(photo)
    assert np.array_equal(again, result)


def test_only_the_largest_when_asked(composer: Composer) -> None:
    photo = two_people()
    work = Deidentifier(composer, draw_for(composer), seed=3, faces="largest")
    work.photo(photo)
    assert len(work.people) == 1
    assert work.hidden == 0


def test_a_clip_keeps_its_stand_in_also_after_a_break(composer: Composer) -> None:
    frames = made_frames(read_image(FACES / "identity-ada.jpg"), 8)
    wall = np.full_like(frames[0], 150)
    work = Deidentifier(composer, draw_for(composer), seed=0)
    clip = [*frames[:4], *[wall] * 4, *frames[4:]]
    results = [work.picture(frame, 0.25 * number) for number, frame in enumerate(clip)]
    assert len(work.people) == 1  # the toy encoder knows her again
    assert work.people[0].replaced >= 7
    for frame, result in zip(clip, results, strict=True):
        if frame is not wall:
            assert (
                np.abs(result[200:300, 280:360].astype(int) - frame[200:300, 280:360]).mean() > 5
            )  # never left as she is


def moved(frame: np.ndarray, px: int) -> np.ndarray:
    """The frame moved to the right, its left edge repeated."""
    return np.hstack([np.repeat(frame[:, :1], px, axis=1), frame[:, :-px]])


def shown(frame: np.ndarray, result: np.ndarray, box: tuple[float, ...]) -> float:
    """The share of a box's pixels that are as in the frame."""
    left, top, width, height = (round(value) for value in box)
    part = np.s_[top : top + height, left : left + width]
    return float(np.mean(np.all(frame[part] == result[part], axis=2)))


@pytest.mark.parametrize("followed", [True, False], ids=["known", "never composed"])
def test_a_face_that_cannot_be_composed_is_hidden_where_it_is(
    composer: Composer, followed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not where it was followed to, and also in the frames in which the detector misses it."""
    frame = made_frames(read_image(FACES / "identity-ada.jpg"), 1)[0]
    work = Deidentifier(composer, draw_for(composer), seed=0)
    if followed:
        work.picture(frame, 0.0)

    def lose(self: Tracker, image: np.ndarray, time_s: float) -> None:
        self.points = None

    monkeypatch.setattr(Tracker, "follow", lose)
    monkeypatch.setattr(deidentify, "_composable", lambda face: False)
    box = composer.detector.search(frame, 640)[0].box
    for number in (1, 2, 3):  # further each time than the mosaic around its last place reaches
        there = (box[0] + 60 * number, *box[1:])
        turned = moved(frame, 60 * number)
        assert shown(turned, work.picture(turned, 0.1 * number), there) < 0.05
    other = Deidentifier(composer, draw_for(composer), seed=0)
    other.state = work.state
    monkeypatch.setattr(composer.detector, "search", lambda image, side: [])
    for one in (work, other):
        assert shown(turned, one.picture(turned, 0.35), there) < 0.05
        assert shown(turned, one.picture(turned, 0.4 + HIDE_S), there) < 0.05
        assert shown(turned, one.picture(turned, 0.5 + HIDE_S), there) == 1  # there is nobody any more
    assert [person.hidden for person in work.people] == ([5] if followed else [])
    assert work.hidden == (0 if followed else 5)


def test_a_place_that_is_hidden_goes_along_with_a_profile(composer: Composer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which optical flow still follows when the detector sees nothing."""
    frame = made_frames(read_image(FACES / "identity-ada.jpg"), 1)[0]
    work = Deidentifier(composer, draw_for(composer), seed=0)
    work.picture(frame, 0.0)
    box = composer.detector.search(frame, 640)[0].box

    def profile(self: Tracker, image: np.ndarray, time_s: float) -> None:
        assert self.points is not None
        self.points = np.add(self.points, (40, 0))

    monkeypatch.setattr(Tracker, "follow", profile)
    monkeypatch.setattr(composer.detector, "search", lambda image, side: [])
    for number in (1, 2, 3, 4):
        turned = moved(frame, 40 * number)
        assert shown(turned, work.picture(turned, HIDE_S * number), (box[0] + 40 * number, *box[1:])) < 0.05


def test_a_face_that_was_lost_is_composed_as_soon_as_it_is_seen(
    composer: Composer, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = made_frames(read_image(FACES / "identity-ada.jpg"), 3)
    work = Deidentifier(composer, draw_for(composer), seed=0)
    work.picture(frames[0], 0.0)
    work._followers[0].tracker.reset()  # as when optical flow and detection fail
    work.picture(frames[1], 0.04)
    assert (len(work.people), work.people[0].replaced, work.people[0].hidden) == (1, 2, 0)
    assert len(work._followers) == 1


def test_the_largest_face_of_a_clip_is_hidden_when_it_cannot_be_composed(
    composer: Composer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deidentify, "_composable", lambda face: face.area < 5000)
    photo = two_people()
    faces = composer.detector.faces(photo)
    work = Deidentifier(composer, draw_for(composer), seed=3, faces="largest")
    for number in range(3):
        result = work.picture(photo, 0.04 * number)
        assert shown(photo, result, faces[0].box) < 0.05
        assert [shown(photo, result, face.box) for face in faces[1:]] == [1, 1]
    assert (work.people, work.hidden) == ([], 3)


def test_its_memory_can_be_kept(composer: Composer) -> None:
    frames = made_frames(read_image(FACES / "identity-ada.jpg"), 6)
    one = Deidentifier(composer, draw_for(composer), seed=0)
    for number in range(3):
        one.picture(frames[number], number / 25)
    other = Deidentifier(composer, draw_for(composer), seed=0)
    other.state = unflatten(DeidentifierState, flatten(one.state))
    for number in range(3, 6):
        first, second = (work.picture(frames[number], number / 25) for work in (one, other))
        assert np.array_equal(first, second)
    assert one.people[0].report() == other.people[0].report()


def test_a_mosaic_hides_and_keeps_the_rest() -> None:
    image = np.random.default_rng(0).integers(0, 256, (100, 120, 3), np.uint8)
    hidden = mosaic(image, (40, 30, 40, 40))
    assert len(np.unique(hidden[22:78, 32:88].reshape(-1, 3), axis=0)) <= 49
    assert np.array_equal(hidden[:, :28], image[:, :28])
    assert np.array_equal(mosaic(image, (500, 500, 10, 10)), image)
    assert mosaic(image, (-20, -20, 40, 40)).shape == image.shape


def test_the_report_counts_who_is_still_recognised() -> None:
    code = np.zeros(4, np.float32)
    people = [Person(code, Identity(code, "toy"), 1, 1, 0, [0.9], [after]) for after in (0.1, MATCH)]
    people.append(Person(code, Identity(code, "toy"), 2))
    report = summary([{"people": [person.report() for person in people]}])
    assert (report["people"], report["still_matching"]) == (3, 1)
    assert report["cosine_before"] == 0.9
    assert people[2].report()["still_matches"] is None


def test_the_plan_for_a_folder(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.mp4", "c.avi", "d.bmp", "notes.txt"):
        (tmp_path / name).touch()
    jobs, record = plan(tmp_path, tmp_path / "out")
    assert [target.name for _, target in jobs] == ["a.jpg", "b.mp4", "c.avi.mkv", "d.bmp.png"]
    assert record == tmp_path / "out" / "report.json"
    with pytest.raises(InputError, match="folder of the originals"):
        plan(tmp_path, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no photos and no videos"):
        plan(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(InputError, match=r"must end in \.mp4"):
        plan(tmp_path / "b.mp4", tmp_path / "out.png")
    for name in ("a.jpg", "b.mp4"):
        with pytest.raises(InputError, match="is the original itself"):
            plan(tmp_path / name, tmp_path / "empty" / ".." / name)
