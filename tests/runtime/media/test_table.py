"""Every picture of the table stands exactly where the geometry says, and labels fit."""

import numpy as np
import pytest
from fid.runtime.media.table import INK, MAX_SIDE, PAPER, Geometry, compose_table, shorten, text_strip, text_width


def flat(colour: int, side: int = 64) -> np.ndarray:
    return np.full((side, side, 3), colour, np.uint8)


def test_every_picture_is_in_its_place() -> None:
    identities, attributes = [flat(10), flat(20), flat(30)], [flat(40), flat(50)]
    cells = [[flat(100 + 10 * row + column) for column in range(3)] for row in range(2)]
    table = compose_table(identities, attributes, cells, ["a", "b", "c"], ["x", "y"])
    place = Geometry.fit(2, 3, 64)
    assert table.shape == (place.height, place.width, 3)
    expected = {(-1, c): 10 * (c + 1) for c in range(3)} | {(r, -1): 40 + 10 * r for r in range(2)}
    expected |= {(r, c): 100 + 10 * r + c for r in range(2) for c in range(3)}
    painted = np.zeros(table.shape[:2], bool)
    for (row, column), colour in expected.items():
        window = np.s_[place.top(row) : place.top(row) + 64, place.left(column) : place.left(column) + 64]
        assert (table[window] == colour).all()
        assert not painted[window].any()  # nothing overlaps
        painted[window] = True
    captions = place.margin + place.caption
    rest = ~painted
    rest[:captions], rest[:, :captions] = False, False
    assert (table[rest] == PAPER).all()
    assert (table[: place.margin] == PAPER).all()
    assert (table[: place.margin + place.caption, place.left(0) :] < 128).any()  # there is writing


def test_inputs_of_any_size_are_brought_to_the_cell() -> None:
    table = compose_table([flat(10, 256)], [flat(20, 17)], [[flat(30, 128)]], ["a"], ["b"])
    place = Geometry.fit(1, 1, 128)
    assert (table[place.top(-1) :, place.left(0) :][:128, :128] == 10).all()
    assert (table[place.top(0) :, place.left(-1) :][:128, :128] == 20).all()


def test_a_huge_table_gets_smaller_cells() -> None:
    for rows, columns in ((100, 3), (3, 100), (40, 40), (400, 1)):
        place = Geometry.fit(rows, columns, 1024)
        assert max(place.width, place.height) <= MAX_SIDE
        assert place.cell < 1024
    assert Geometry.fit(8, 8, 1024).cell == 1024


def test_a_table_without_the_right_cells_is_refused() -> None:
    with pytest.raises(ValueError, match="2 x 1 inputs"):
        compose_table([flat(1)], [flat(2), flat(3)], [[flat(4)]], ["a"], ["b", "c"])


LONG = "a name that is much longer than its cell allows.jpg"


@pytest.mark.parametrize("text", ["short", LONG, "", "日本語のとても長いファイル名です"])
def test_labels_fit(text: str) -> None:
    shown = shorten(text, 120, 14)
    assert text_width(shown, 14) <= 120
    if text_width(text, 14) <= 120:
        assert shown == text
    else:
        head, tail = shown.split("…")
        assert text.startswith(head)
        assert text.endswith(tail)
        assert abs(len(head) - len(tail)) <= 1
    strip = text_strip(text, 120, 24)
    assert strip.shape == (24, 120, 3)
    assert (strip[:2] == PAPER).all()
    assert bool((strip < 128).any()) == bool(text)


def test_text_is_ink_on_paper_and_in_the_middle() -> None:
    strip = text_strip("HHH", 200, 40)
    columns = np.flatnonzero((strip < 128).any(axis=(0, 2)))
    assert abs((columns[0] + columns[-1]) / 2 - 99.5) <= 3
    assert strip.min(axis=(0, 1)).tolist() == pytest.approx(list(INK), abs=3)
