"""The batch size not used for longest makes room, before another is built; steady inputs are worked on once."""

import numpy as np
from fid.runtime.engines.session import KEPT, VIEWS, Recent, Steady


def test_the_size_not_used_for_longest_makes_room_first() -> None:
    said: list[str] = []
    recent = Recent(lambda batch: said.append(f"make {batch}") or batch, lambda batch: said.append(f"drop {batch}"))
    for batch in range(1, KEPT + 1):
        recent.at(batch)
    assert recent.at(1) == 1  # used again: 2 is the oldest now
    del said[:]
    recent.at(KEPT + 1)
    assert said == ["drop 2", f"make {KEPT + 1}"]
    assert 1 in recent
    assert 2 not in recent
    assert len(recent) == KEPT


def test_inputs_that_come_again_in_turns_are_worked_on_once() -> None:
    seen: list[float] = []
    steady = Steady(["photo"], lambda given: seen.append(float(given["photo"][0])) or 2 * given["photo"])
    photos = [np.full(3, value) for value in range(VIEWS + 1)]
    for turn in range(6):
        arrays = {"photo": photos[turn % VIEWS], "x": np.zeros(1)}
        np.testing.assert_array_equal(steady.of(arrays), 2 * photos[turn % VIEWS])
        assert list(arrays) == ["x"]
    assert seen == [0, 1]
    steady.of({"photo": photos[-1]})  # makes room for itself
    photos[-1][:] = 9  # the caller's array: what was kept is a copy
    steady.of({"photo": np.full(3, VIEWS)})
    assert seen == [0, 1, VIEWS]
