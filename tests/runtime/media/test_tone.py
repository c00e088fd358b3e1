"""HDR and wide gamut on a screen: the standards' own points, and the table against the equations."""

import numpy as np
import pytest
from fid.runtime.media.tone import (
    BT2020,
    DISPLAY_P3,
    HLG,
    PEAK_NITS,
    PQ,
    SCREEN_GAMMA,
    SIDE,
    WHITE_NITS,
    cube_file,
    hlg_to_nits,
    needs_table,
    nits_to_pq,
    pq_to_nits,
    screen_colour,
    to_bt709,
    tone_mapped,
)


def test_pq_has_the_points_of_its_standard() -> None:
    np.testing.assert_allclose(nits_to_pq(np.array([0.0, 100.0, 1000.0, 10000.0])), [0, 0.5081, 0.7518, 1], atol=1e-4)
    nits = np.geomspace(0.01, 10000, 50)
    np.testing.assert_allclose(pq_to_nits(nits_to_pq(nits)), nits, rtol=1e-9)


def test_hlg_has_the_points_of_its_standard() -> None:
    grey = hlg_to_nits(np.array([[0.0] * 3, [0.5] * 3, [0.75] * 3, [1.0] * 3]))
    np.testing.assert_allclose(grey[:, 0], [0, 1000 * (1 / 12) ** 1.2, 203, 1000], rtol=2e-3)  # 75 % is 203 cd/m2
    assert np.ptp(grey, axis=1).max() < 1e-9


def test_light_below_the_knee_stays_and_the_peak_becomes_white() -> None:
    top = nits_to_pq(np.array(PEAK_NITS))
    knee = pq_to_nits((1.5 * nits_to_pq(np.array(WHITE_NITS)) / top - 0.5) * top)
    dark = np.linspace(0, knee, 20)
    np.testing.assert_allclose(tone_mapped(dark), dark, rtol=1e-9, atol=1e-9)
    assert tone_mapped(np.array(PEAK_NITS)) == pytest.approx(WHITE_NITS)
    ramp = tone_mapped(np.linspace(0, PEAK_NITS, 2000))
    assert (np.diff(ramp) > 0).all()
    around = tone_mapped(knee * np.array([1 - 1e-4, 1 - 5e-5, 1 + 5e-5, 1 + 1e-4]))
    assert (around[1] - around[0]) / (around[3] - around[2]) == pytest.approx(1, abs=1e-2)  # no kink


def test_primaries_become_those_of_bt_709() -> None:
    for primaries in (BT2020, DISPLAY_P3, 1):
        np.testing.assert_allclose(to_bt709(primaries).sum(axis=1), 1, atol=1e-12)  # white stays white
    np.testing.assert_allclose(to_bt709(1), np.eye(3), atol=1e-12)
    of_bt_2087 = [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
    np.testing.assert_allclose(to_bt709(BT2020), of_bt_2087, atol=1e-4)


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_a_colour_of_sdr_brightness_keeps_its_light(transfer: int) -> None:
    """Green background at 2 to 8 cd/m2: as if it had been filmed for a screen whose white is 100 cd/m2."""
    nits_709 = np.array([2.6, 7.1, 2.6])
    nits = np.linalg.solve(to_bt709(BT2020), nits_709)
    if transfer == PQ:
        signal = nits_to_pq(nits)
    else:
        luminance = (nits / 1000 @ np.array([0.2627, 0.6780, 0.0593])) ** (1 / 1.2)
        signal = np.sqrt(3 * nits / 1000 / luminance**0.2)
    wanted = (nits_709 / WHITE_NITS) ** (1 / SCREEN_GAMMA)
    np.testing.assert_allclose(screen_colour(signal, BT2020, transfer), wanted, atol=1e-3)


def test_hues_survive_and_nothing_leaves_the_range() -> None:
    signal = np.random.default_rng(0).random((1000, 3))
    for transfer in (PQ, HLG, 1):
        colour = screen_colour(signal, BT2020, transfer)
        assert colour.min() >= 0
        assert colour.max() <= 1
        grey = screen_colour(np.repeat(signal[:, :1], 3, axis=1), BT2020, transfer)
        assert np.ptp(grey, axis=1).max() < 1e-6


def test_sdr_of_bt_709_keeps_its_values() -> None:
    signal = np.random.default_rng(0).random((100, 3))
    np.testing.assert_allclose(screen_colour(signal, 1, 1), signal, atol=1e-9)
    assert not needs_table(1, 1)
    assert not needs_table(2, 2)
    assert needs_table(BT2020, 14)
    assert needs_table(1, HLG)


def test_the_table_holds_the_equations_with_red_fastest() -> None:
    head, *rows = cube_file(BT2020, PQ).splitlines()
    assert head == f"LUT_3D_SIZE {SIDE}"
    assert len(rows) == SIDE**3
    for red, green, blue in ((3, 20, 40), (SIDE - 1, 0, 7)):
        row = [float(value) for value in rows[red + SIDE * (green + SIDE * blue)].split()]
        wanted = screen_colour(np.array([red, green, blue]) / (SIDE - 1), BT2020, PQ)
        np.testing.assert_allclose(row, wanted, atol=1e-6)
