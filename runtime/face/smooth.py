"""Smoothing over time: the One-Euro filter (Casiez, Roussel and Vogel 2012), for alignments and for w.

It is a low-pass filter whose cutoff rises with speed: slow at rest, where noise shows, and quick in motion, where lag
shows. A vector has one speed and one cutoff, so that it is slowed down but never bent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SPEED_CUTOFF_HZ = 1.0  # of the low-pass filter on the speed; the authors' value


@dataclass(frozen=True)
class FilterState:
    """What a filter remembers."""

    value: np.ndarray | None = None  # float64 [n], smoothed
    speed: np.ndarray | None = None  # float64 [n], units/s, smoothed
    time_s: float = 0.0


class OneEuro:
    """`filter(value, time_s)` for one vector after another. Equal times give the last result again. `state` is what
    it remembers, and may be set to what another filter remembered."""

    def __init__(self, cutoff_hz: float, beta: float) -> None:
        """`cutoff_hz`: at rest; lower is steadier. `beta`: how much the cutoff in Hz rises with each unit of the
        vector's root-mean-square speed, in units/s; higher lags less."""
        self.cutoff_hz, self.beta = cutoff_hz, beta
        self.state = FilterState()

    def reset(self) -> None:
        """Forget everything: the next value passes unchanged."""
        self.state = FilterState()

    def filter(self, value: np.ndarray, time_s: float) -> np.ndarray:
        """Return the smoothed vector float64 [n] at a time in seconds, which must not run backwards."""
        value, last, speed = np.asarray(value, np.float64), self.state.value, self.state.speed
        step_s = time_s - self.state.time_s
        if last is None or speed is None:
            last, speed = value, np.zeros_like(value)
        elif step_s > 0:
            speed = speed + _weight(SPEED_CUTOFF_HZ, step_s) * ((value - last) / step_s - speed)
            cutoff_hz = self.cutoff_hz + self.beta * float(np.sqrt(np.mean(speed**2)))
            last = last + _weight(cutoff_hz, step_s) * (value - last)
        self.state = FilterState(last, speed, time_s)
        return last


def _weight(cutoff_hz: float, step_s: float) -> float:
    """How much of a new value a first-order low-pass filter takes."""
    return 1 / (1 + 1 / (2 * np.pi * cutoff_hz * step_s))
