"""States are kept as arrays and come back as they were."""

from dataclasses import dataclass

import numpy as np
import pytest
from fid.runtime.media.state import flatten, unflatten


@dataclass(frozen=True)
class Part:
    place: np.ndarray
    name: int | None = None


@dataclass(frozen=True)
class Whole:
    time_s: float
    first: Part
    other: Part | None
    parts: tuple[Part, ...]


@pytest.mark.parametrize("other", [None, Part(np.arange(4.0), 7)])
@pytest.mark.parametrize("count", [0, 2, 11])
def test_a_state_comes_back_from_its_arrays(other: Part | None, count: int) -> None:
    parts = tuple(Part(np.full((2, 3), number)) for number in range(count))
    whole = Whole(0.25, Part(np.zeros(0), 0), other, parts)
    arrays = flatten(whole)
    assert all(isinstance(array, np.ndarray) and array.dtype != object for array in arrays.values())
    found = unflatten(Whole, arrays)
    assert (found.time_s, found.first.name) == (0.25, 0)
    assert (found.other is None) == (other is None)
    assert found.other is None or found.other.name == 7
    assert [int(part.place[0, 0]) for part in found.parts] == list(range(count))
    assert flatten(found).keys() == arrays.keys()


def test_names_are_dotted_paths() -> None:
    whole = Whole(1.0, Part(np.zeros(2)), None, (Part(np.ones(1), 3),))
    assert list(flatten(whole)) == ["time_s", "first.place", "parts.0.place", "parts.0.name"]


def test_an_array_that_is_missing_is_named() -> None:
    arrays = flatten(Whole(1.0, Part(np.zeros(2)), None, ()))
    del arrays["first.place"]
    with pytest.raises(KeyError, match=r"first\.place"):
        unflatten(Whole, arrays)
