"""Heads whose faces nobody saw: where they are, for how long they are hidden, and that a face that is seen counts."""

from collections import Counter

import numpy as np
import pytest
from fid.runtime.assets import FACES, PEOPLE
from fid.runtime.deidentify.heads import SCORE, head_tracks, open_heads, without_face
from fid.runtime.deidentify.places import Place, Track
from fid.runtime.engines.open import open_session
from fid.runtime.face.people import LEAST, SIDE, STEPS, STRIDES, find_people, head_of
from fid.runtime.media.images import read_image

HEAD = (100.0, 50.0, 40.0, 40.0)


def clip(frames: int) -> tuple[int, int]:
    return 0, frames


def face(left: float) -> Place:
    return Place((left, 55.0, 20.0, 25.0), np.zeros((5, 2)), 0.95, True)


def test_boxes_are_the_means_of_their_distances() -> None:
    """One person, of whom two places of a map speak, in a picture twice as large as the network sees."""
    maps = {f"stride_{n}": np.full((1, 1 + 4 * STEPS, SIDE // n, SIDE // n), -9.0, np.float32) for n in STRIDES}
    for column, certainty in ((5, 1.0), (6, 0.5)):
        maps["stride_16"][0, 0, 4, column] = certainty
        for side, steps in enumerate((2, 3, 2, 5)):
            maps["stride_16"][0, 1 + side * STEPS + steps, 4, column] = 30.0
    seen: list[np.ndarray] = []

    def run(picture: np.ndarray) -> dict[str, np.ndarray]:
        seen.append(picture)
        return maps

    ((score, box),) = find_people(run, np.full((SIDE, 2 * SIDE, 3), (255, 0, 0), np.uint8))
    assert score == pytest.approx(1 / (1 + np.exp(-1.0)))
    x, y = 2 * 5.5 * 16, 2 * 4.5 * 16
    assert box == pytest.approx((x - 64, y - 96, 128, 256), abs=1e-3)
    assert seen[0].shape == (1, 3, SIDE, SIDE)
    assert seen[0][0, 2, 0, 0] == pytest.approx((255 - 123.675) / 58.395, abs=1e-4)  # red is the last of BGR
    assert not seen[0][0, :, SIDE // 2 :].any()


def test_the_network_that_ships_finds_a_person() -> None:
    session = open_session(PEOPLE, engine="onnxruntime", threads=1)
    photo = read_image(FACES / "identity-ada.jpg")
    (score, box), *_ = find_people(lambda picture: session.run(picture=picture), photo)
    assert score > LEAST
    assert box[2] > 0.5 * photo.shape[1]
    assert find_people(lambda picture: session.run(picture=picture), np.full((240, 320, 3), 128, np.uint8)) == []
    (head, *_) = open_heads(1)(photo)
    assert abs(head[0] + head[2] / 2 - photo.shape[1] / 2) < 0.2 * photo.shape[1]


@pytest.mark.parametrize("person", [(0.0, 0.0, 100.0, 250.0), (0.0, 0.0, 100.0, 120.0), (0.0, 0.0, 200.0, 100.0)])
def test_a_head_is_in_the_upper_part(person: tuple[float, float, float, float]) -> None:
    left, top, width, height = head_of(person)
    assert left + width / 2 == pytest.approx(person[0] + person[2] / 2)
    assert person[1] <= top
    assert top + height < person[1] + 0.65 * person[3]


def test_only_heads_without_a_face_count() -> None:
    assert without_face([HEAD], [face(110)]) == []
    assert without_face([HEAD], [face(200)]) == [HEAD]


def test_a_head_is_hidden_from_one_interval_before_to_one_after() -> None:
    moved = (112.0, 50.0, 40.0, 40.0)
    (track,) = head_tracks({10: [HEAD], 20: [moved]}, [], lambda frame: clip(25), 10)
    assert sorted(track.places) == list(range(25))
    assert track.places[15].box[0] == pytest.approx(106)
    assert not track.sure
    assert Counter(place.seen for place in track.places.values()) == {True: 2, False: 23}
    assert all(place.points is None and place.score <= SCORE for place in track.places.values())


def test_a_face_that_turns_away_is_one_person_and_no_mosaic_lies_on_it() -> None:
    turned = Track(0, {frame: face(110) for frame in range(12)})
    (track,) = head_tracks({0: [HEAD], 10: [HEAD], 20: [HEAD]}, [turned], lambda frame: clip(30), 10)
    assert track.number == 1
    assert sorted(track.places) == list(range(12, 30))


def test_a_cut_ends_it() -> None:
    (track,) = head_tracks({10: [HEAD]}, [], lambda frame: (8, 14), 10)
    assert sorted(track.places) == list(range(8, 14))
