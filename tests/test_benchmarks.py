"""The parts of the benchmark scripts whose mistakes would make wrong figures."""

import json
from pathlib import Path

import click
import evaluate_photos
import machine
import numpy as np
import pytest


def photo(person: str, code: list[float]) -> evaluate_photos.Photo:
    pixels = np.zeros((1, 1, 3), np.uint8)
    return evaluate_photos.Photo(person, pixels, pixels, np.array(code, np.float32))


def test_people_need_both_photos(tmp_path: Path) -> None:
    for name in (
        "002_smiling.jpg",
        "002_neutral.png",
        "001_neutral.jpg",
        "003_neutral.jpg",
        "003_smiling.jpg",
        "x.txt",
    ):
        (tmp_path / name).touch()
    people = evaluate_photos.people_of(tmp_path, "neutral", "smiling")
    assert list(people) == ["002", "003"]
    assert people["002"] == (tmp_path / "002_neutral.png", tmp_path / "002_smiling.jpg")


def test_people_are_taken_evenly_and_never_twice() -> None:
    names = [f"{index:02}" for index in range(10)]
    assert evaluate_photos.spread(names, 4) == ["00", "03", "06", "09"]
    assert evaluate_photos.spread(names, 10) == names
    with pytest.raises(click.UsageError, match="11 people were asked for and 10 are left"):
        evaluate_photos.spread(names, 11)


def test_cosines_leave_out_two_photos_of_one_person() -> None:
    photos = [photo("a", [1, 0]), photo("a", [0.6, 0.8]), photo("b", [0, 1])]
    np.testing.assert_allclose(evaluate_photos.cosines_between_people(photos), [0.0, 0.8], rtol=1e-6)


def test_a_large_picture_is_encoded_from_its_area_means() -> None:
    image = np.zeros((1024, 1024, 3), np.uint8)
    image[:, ::2] = 200
    np.testing.assert_array_equal(evaluate_photos.as_crop(image), np.full((256, 256, 3), 100, np.uint8))


def test_a_record_names_commit_processor_and_versions_and_no_path() -> None:
    record = machine.machine_record()
    assert {"commit", "cpu", "cpus", "load_1min", "python", "versions"} <= set(record)
    assert str(machine.ROOT) not in json.dumps(record)
