"""Percentiles and slope of frame ages, in constant memory."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

BIN_MS = 0.5  # width of a bin of the histogram of ages
BINS = 20_000  # up to 10 s; what is older counts as 10 s


PERCENTS = (50, 95, 99)


def percentiles(values: Iterable[float], digits: int = 1) -> dict[str, float]:
    """Return p50, p95 and p99 of numbers, rounded; zeros without any."""
    found = np.percentile([*values] or [0.0], PERCENTS).round(digits).tolist()
    return {f"p{percent}": value for percent, value in zip(PERCENTS, found, strict=True)}


class Ages:
    """Percentiles and slope of frame ages, in constant memory."""

    def __init__(self) -> None:
        self.count = 0
        self._bins = np.zeros(BINS + 1, np.int64)
        self._sums = np.zeros(4)  # of t, age, t * t, t * age

    def add(self, age_ms: float, time_s: float) -> None:
        """One age, at a time in seconds."""
        self.count += 1
        self._bins[min(int(age_ms / BIN_MS), BINS)] += 1
        self._sums += (time_s, age_ms, time_s * time_s, time_s * age_ms)

    def percentile(self, percent: float) -> float:
        """Return ms, to the width of a bin; 0 when there is none yet."""
        if not self.count:
            return 0.0
        rank = np.searchsorted(np.cumsum(self._bins), percent / 100 * self.count)
        return float((min(rank, BINS) + 1) * BIN_MS)

    @property
    def slope_ms_per_s(self) -> float:
        """How much older the frames get with every second, by least squares."""
        t, age, tt, t_age = self._sums
        spread = self.count * tt - t * t
        return float((self.count * t_age - t * age) / spread) if spread > 1e-9 else 0.0

    def summary(self) -> dict[str, float]:
        """Return p50, p95, p99 in ms."""
        return {f"p{percent}": round(self.percentile(percent), 1) for percent in PERCENTS}
