"""The visible label: where it is, that it can be read, and that it is left out where there is no room."""

import numpy as np
import pytest
from fid.runtime.labels.badge import LEAST_PX, draw_badge


@pytest.mark.parametrize("shape", [(256, 256, 3), (720, 1280, 3), (1280, 720, 3)])
@pytest.mark.parametrize("grey", [0, 120, 255])
def test_it_can_be_read_on_any_ground_and_covers_one_corner(shape: tuple[int, int, int], grey: int) -> None:
    picture = np.full(shape, grey, np.uint8)
    shown = draw_badge(picture)
    assert (picture == grey).all()
    changed = np.argwhere((shown != picture).any(axis=2))
    (top, left), (bottom, right) = changed.min(axis=0), changed.max(axis=0)
    height, width = shape[:2]
    assert top > 0.85 * height
    assert bottom < height
    assert right - left >= 0.7 * LEAST_PX
    assert right < 0.55 * width
    field = shown[top : bottom + 1, left : right + 1].astype(int)
    assert field.max() - field.min() > 100  # letters against their field
    assert len(changed) < 0.04 * height * width


def test_a_picture_without_room_stays_as_it_is() -> None:
    speck = np.full((4, 64, 3), 9, np.uint8)
    assert draw_badge(speck) is speck
    assert (draw_badge(np.full((64, 64, 3), 9, np.uint8)) != 9).any()
