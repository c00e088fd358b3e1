"""Faces in the shade are brought to light, others stay as they are."""

import numpy as np
import pytest
from fid.runtime.assets import FACES
from fid.runtime.face.exposure import DARK, HIGHLIGHT, LUMA, MOST, _inside, exposed
from fid.runtime.media.images import read_image


def highlight(crop: np.ndarray) -> float:
    return float(np.percentile(crop[_inside()] @ np.array(LUMA), HIGHLIGHT))


@pytest.fixture
def face() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)


@pytest.mark.parametrize("share", [0.25, 0.35])
def test_a_face_in_the_shade_gets_its_highlights_back(face: np.ndarray, share: float) -> None:
    dark = np.rint(face * share).astype(np.uint8)
    light = exposed(dark)
    before, gain = highlight(dark), min(DARK / highlight(dark), MOST)
    assert gain > 1
    assert highlight(light) == pytest.approx(255 * (1 - (1 - before / 255) ** gain), abs=3)
    assert (light >= dark).all()
    assert light.dtype == np.uint8


def test_order_and_ends_of_all_values_stay() -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8)[:, None, None], (1, 256, 3))
    ramp[_inside()] = 40
    light = exposed(ramp)
    column = light[:, 0, 0].astype(int)
    assert (np.diff(column) >= 0).all()
    assert (column[0], column[255]) == (0, 255)


def test_a_black_square_is_no_division_by_zero() -> None:
    assert (exposed(np.zeros((256, 256, 3), np.uint8)) == 0).all()


def test_well_lit_faces_stay_to_the_last_bit(face: np.ndarray) -> None:
    assert exposed(face) is face
    for path in sorted(FACES.glob("*.jpg")):
        crop = read_image(path)
        if crop.shape == (256, 256, 3):
            np.testing.assert_array_equal(exposed(crop), crop)
