"""The batch size that was not used for longest makes room, before another is built."""

from fid.runtime.engines.session import KEPT, Recent


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
