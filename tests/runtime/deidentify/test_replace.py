"""The second pass with the toy bundle: everybody is replaced or hidden, always by the same."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from fid.runtime import Composer, Identity
from fid.runtime.assets import FACES
from fid.runtime.commands.bench import made_frames
from fid.runtime.deidentify.hide import CHANGED, detail_left, middle_difference, mosaic
from fid.runtime.deidentify.places import Place, Track
from fid.runtime.deidentify.replace import Deidentifier, DeidentifierState, tracks_of_photo
from fid.runtime.deidentify.stand_in import People
from fid.runtime.face.search import find_all
from fid.runtime.identity import encoder_name
from fid.runtime.media.images import read_image
from fid.runtime.media.state import flatten, unflatten


@pytest.fixture
def composer(toy_bundle: Path, fetched: Callable[[str], Path]) -> Composer:
    fetched("yunet")
    return Composer(toy_bundle)


def people(composer: Composer, seed: int = 3) -> People:
    """Stand-ins with random codes."""

    def draw(number: int) -> Identity:
        code = np.random.default_rng(number).standard_normal(128).astype(np.float32)
        return Identity(code / np.linalg.norm(code), encoder_name(composer.bundle), sources=0)

    return People(composer, draw, seed)


def three_people() -> np.ndarray:
    """Two faces side by side, and a third that is too small to be composed: RGB uint8 [300, 700, 3]."""
    photo = np.full((300, 700, 3), 150, np.uint8)
    photo[20:276, 20:276] = read_image(FACES / "identity-ada.jpg")
    photo[20:276, 300:556] = read_image(FACES / "identity-ben.jpg")
    photo[100:164, 600:664] = cv2.resize(read_image(FACES / "identity-eve.jpg"), (64, 64), interpolation=cv2.INTER_AREA)
    return photo


def test_a_mosaic_that_the_border_cuts_is_as_coarse_as_a_whole_one(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (200, 200, 3), np.uint8)
    whole, cut = mosaic(image, (60.0, 60, 80, 80)), mosaic(image, (-40.0, 60, 80, 80))
    widths = [np.diff(np.flatnonzero(np.diff(row, axis=0).any(axis=1))) for row in (whole[100, 40:160], cut[100, :60])]
    assert min(widths[1]) >= min(widths[0]) == 20


def one_track(composer: Composer, frames: list[np.ndarray]) -> Track:
    """The largest face of each frame, as the first pass gives it."""
    track = Track(0)
    for number, frame in enumerate(frames):
        face = max(composer.detector.faces(frame), key=lambda face: face.area)
        track.put(number, Place(face.box, face.points, face.score, True))
    return track


def test_everybody_in_a_photo_is_replaced_and_who_is_too_small_is_hidden(composer: Composer) -> None:
    photo = three_people()
    tracks = tracks_of_photo(composer, photo)
    work = Deidentifier(composer, people(composer), tracks)
    result = work.picture(photo, 0.0)
    assert (work.counts["replaced"], work.counts["hidden"]) == (2, 1)
    assert work.people.all[0].seed != work.people.all[1].seed
    for track in tracks:
        assert middle_difference(photo, result, track.places[0].box) > CHANGED
    again = Deidentifier(composer, people(composer), tracks).picture(photo, 0.0)
    assert np.array_equal(again, result)


def test_a_person_upside_down_is_composed_upside_down(composer: Composer) -> None:
    photo = np.full((300, 300, 3), 150, np.uint8)
    photo[20:276, 20:276] = read_image(FACES / "identity-ada.jpg")
    results = []
    for image in (photo, np.ascontiguousarray(photo[::-1, ::-1])):
        (track, *_) = tracks_of_photo(composer, image)
        results.append(Deidentifier(composer, people(composer), [track]).picture(image, 0.0).astype(int))
    assert np.abs(results[0] - results[1][::-1, ::-1])[60:240, 60:240].mean() < 8  # the points scatter by a px or two


def test_only_the_largest_when_asked(composer: Composer) -> None:
    photo = three_people()
    work = Deidentifier(composer, people(composer), tracks_of_photo(composer, photo), faces="largest")
    work.picture(photo, 0.0)
    assert sum(work.counts.values()) == 1


def test_what_is_unsure_gets_a_mosaic_or_is_kept(composer: Composer) -> None:
    image = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    doubtful = Track(0, {0: Place((20, 20, 50, 60), np.full((5, 2), 40.0), 0.6, True)})
    hide, keep = (Deidentifier(composer, people(composer), [doubtful], unsure=how) for how in ("mosaic", "keep"))
    assert not np.array_equal(hide.picture(image, 0.0), image)
    assert hide.counts["unsure"] == 1
    assert np.array_equal(keep.picture(image, 0.0), image)


def test_places_without_a_face_are_hidden_before_and_after(composer: Composer) -> None:
    """What the first pass carried on beyond the frames in which the face was seen."""
    frames = made_frames(read_image(FACES / "identity-ada.jpg"), 3)
    track = one_track(composer, frames)
    box = track.places[0].box
    track.put(0, Place(box, None, 0.0, False))
    work = Deidentifier(composer, people(composer), [track])
    results = [work.picture(frame, number / 25) for number, frame in enumerate(frames)]
    assert (work.counts["replaced"], work.counts["hidden"]) == (2, 1)
    assert middle_difference(frames[0], results[0], box) > CHANGED


def test_a_tracker_that_is_not_where_the_first_pass_saw_the_face_begins_anew(composer: Composer) -> None:
    frames = made_frames(read_image(FACES / "identity-ada.jpg"), 3)
    work = Deidentifier(composer, people(composer), [one_track(composer, frames)])
    work.picture(frames[0], 0.0)
    work._followers[0].tracker.points = np.add(work._followers[0].tracker.points, 150)
    result = work.picture(frames[1], 0.04)
    assert work.counts["replaced"] == 2
    assert len(work.people.all) == 1
    assert middle_difference(frames[1], result, work._frames[1][0][1].box) > 5


def test_its_memory_can_be_kept_and_holds_no_picture(composer: Composer) -> None:
    frames = made_frames(read_image(FACES / "identity-ada.jpg"), 6)
    track = one_track(composer, frames)
    one, other = (Deidentifier(composer, people(composer), [track]) for _ in range(2))
    for number in range(3):
        one.picture(frames[number], number / 25)
    kept = flatten(one.state)
    assert not [name for name, value in kept.items() if value.ndim == 2 and min(value.shape) > 50]  # a frame
    other.state = unflatten(DeidentifierState, kept)
    for number in range(3, 6):
        first, second = (work.picture(frames[number], number / 25) for work in (one, other))
        assert np.array_equal(first, second)
    assert other.counts == one.counts


def test_the_same_face_after_a_cut_is_the_same_person(composer: Composer) -> None:
    """There its place is another, and so its track."""
    photo = read_image(FACES / "identity-ada.jpg")
    frames = [np.full((300, 600, 3), 150, np.uint8) for _ in range(4)]
    for number, frame in enumerate(frames):
        left = 20 if number < 2 else 320
        frame[20:276, left : left + 256] = photo
    tracks = [Track(0), Track(1)]
    for number, frame in enumerate(frames):
        (face,) = composer.detector.faces(frame)
        tracks[number // 2].put(number, Place(face.box, face.points, face.score, True))
    work = Deidentifier(composer, people(composer), tracks)
    for number, frame in enumerate(frames):
        work.picture(frame, number / 25)
    assert (work.persons, work.counts["replaced"]) == ({0: 0, 1: 0}, 4)


def test_a_mosaic_hides_and_keeps_the_rest() -> None:
    image = np.random.default_rng(0).integers(0, 256, (100, 120, 3), np.uint8)
    hidden = mosaic(image, (40, 30, 40, 40))
    assert len(np.unique(hidden[22:78, 32:88].reshape(-1, 3), axis=0)) <= 36
    assert np.array_equal(hidden[:, :28], image[:, :28])
    assert np.array_equal(mosaic(image, (500, 500, 10, 10)), image)
    assert mosaic(image, (-20, -20, 40, 40)).shape == image.shape


def test_a_faint_face_gets_fewer_cells() -> None:
    """As many as change its middle: a smooth ramp needs one."""
    ramp = np.repeat(np.linspace(100, 150, 60).astype(np.uint8)[None, :, None], 60, axis=0).repeat(3, axis=2)
    box = (12.0, 12.0, 36.0, 36.0)
    assert len(np.unique(mosaic(ramp, box)[8:52, 8:52])) <= 2


def test_how_much_of_what_there_was_is_left(rng: np.random.Generator) -> None:
    image = rng.integers(60, 180, (100, 120, 3)).astype(np.uint8)
    box = (40.0, 30.0, 40.0, 40.0)
    other, mean = rng.integers(60, 180, image.shape).astype(np.uint8), image.astype(np.float32).mean()
    for output, left in (
        (image, 1),
        (image + 20, 1),  # lighter
        (0.5 * (image - mean) + mean, 0.5),  # faded
        (image + rng.normal(0, 20, image.shape), 1),
        (mosaic(image, box, (1,)), 0),
        (mosaic(image, box, (1,)) + rng.normal(0, 20, image.shape), 0),
        (other, 0),
    ):
        assert detail_left(image, np.rint(output).astype(np.uint8), box) == pytest.approx(left, abs=0.05)
    half = image.copy()
    half[:, :60] = 120
    assert detail_left(image, half, box) == pytest.approx(0.5, abs=0.05)
    assert detail_left(image, half, (90.0, 0.0, 60.0, 60.0)) == pytest.approx(1)  # what lies in the picture
    assert detail_left(half, other, (10.0, 10.0, 40.0, 40.0)) == 1  # there was nothing, and that proves nothing
    assert detail_left(image, other, (500.0, 500.0, 40.0, 40.0)) == 1


def test_faces_that_are_found_are_distinct(composer: Composer) -> None:
    assert len(find_all(composer.detector, three_people())) == 3
