"""The One-Euro filter against its closed forms."""

import numpy as np
import pytest
from fid.runtime.face.smooth import FilterState, OneEuro


def test_the_first_value_passes_and_a_constant_stays() -> None:
    one_euro = OneEuro(1.0, 0.0)
    for n in range(5):
        np.testing.assert_allclose(one_euro.filter(np.array([3.0, -1.0]), n / 30), [3.0, -1.0])


def test_without_beta_it_is_a_low_pass_filter_of_first_order() -> None:
    """The answer to a step is 1 - (1 - a)^n with a = 1 / (1 + 1 / (2 pi f dt))."""
    cutoff_hz, step_s = 2.0, 0.02
    one_euro = OneEuro(cutoff_hz, 0.0)
    one_euro.filter(np.zeros(1), 0.0)
    a = 1 / (1 + 1 / (2 * np.pi * cutoff_hz * step_s))
    for n in range(1, 20):
        assert one_euro.filter(np.ones(1), n * step_s)[0] == pytest.approx(1 - (1 - a) ** n)


def test_noise_is_damped_at_rest_and_motion_is_followed(rng: np.random.Generator) -> None:
    times = np.arange(300) / 30
    still, moving = rng.normal(0, 1, 300), 40 * times + rng.normal(0, 1, 300)
    results = []
    for signal in (still, moving):
        one_euro = OneEuro(1.0, 0.5)
        results.append(np.array([one_euro.filter(np.array([v]), t)[0] for v, t in zip(signal, times, strict=True)]))
    assert np.std(results[0][60:]) < 0.75 * np.std(still[60:])
    lag_s = np.mean(40 * times[60:] - results[1][60:]) / 40
    assert lag_s < 0.02  # with the cutoff at rest alone it would be 0.16 s


def test_a_vector_is_slowed_down_and_not_bent() -> None:
    one_euro = OneEuro(1.0, 1.0)
    one_euro.filter(np.zeros(3), 0.0)
    way = one_euro.filter(np.array([1.0, 2.0, -3.0]), 0.1)
    np.testing.assert_allclose(way / way[0], [1, 2, -3])


def test_the_memory_can_be_kept_and_reset() -> None:
    one, other = OneEuro(1.0, 1.0), OneEuro(1.0, 1.0)
    assert one.state == FilterState()
    for n in range(4):
        one.filter(np.array([n, -n]), n / 10)
    other.state = one.state
    np.testing.assert_array_equal(one.filter(np.ones(2), 0.5), other.filter(np.ones(2), 0.5))
    np.testing.assert_array_equal(one.filter(np.zeros(2), 0.5), one.filter(np.ones(2), 0.5))  # no time has passed
    one.reset()
    np.testing.assert_array_equal(one.filter(np.ones(2), 0.6), np.ones(2))
