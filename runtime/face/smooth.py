"""Smoothing over time: the One-Euro filter (Casiez, Roussel and Vogel 2012), for alignments and for w.

It is a low-pass filter whose cutoff rises with speed: slow at rest, where noise shows, and quick in motion, where lag
shows. A vector has one speed and one cutoff, so that it is slowed down but never bent.
"""

from __future__ import annotations

import numpy as np

SPEED_CUTOFF_HZ = 1.0  # of the low-pass filter on the speed; the authors' value


class OneEuro:
    """`filter(value, time_s)` for one vector after another. Equal times give the last result again."""

    def __init__(self, cutoff_hz: float, beta: float) -> None:
        """`cutoff_hz`: at rest; lower is steadier. `beta`: how much the cutoff in Hz rises with each unit of the
        vector's root-mean-square speed, in units/s; higher lags less."""
        self.cutoff_hz, self.beta = cutoff_hz, beta
        self._value: np.ndarray | None = None
        self._speed: np.ndarray | None = None
        self._time_s = 0.0

    def reset(self) -> None:
        """Forget everything: the next value passes unchanged."""
        self._value = self._speed = None

    def filter(self, value: np.ndarray, time_s: float) -> np.ndarray:
        """The smoothed vector float64 [n] at a time in seconds, which must not run backwards."""
        value = np.asarray(value, np.float64)
        step_s = time_s - self._time_s
        if self._value is None or self._speed is None:
            self._value, self._speed = value, np.zeros_like(value)
        elif step_s > 0:
            speed = (value - self._value) / step_s
            self._speed = self._speed + _weight(SPEED_CUTOFF_HZ, step_s) * (speed - self._speed)
            cutoff_hz = self.cutoff_hz + self.beta * float(np.sqrt(np.mean(self._speed**2)))
            self._value = self._value + _weight(cutoff_hz, step_s) * (value - self._value)
        self._time_s = time_s
        return self._value

    def state(self) -> dict[str, np.ndarray]:
        """What it remembers, as arrays; `restore` takes it back."""
        if self._value is None or self._speed is None:
            return {}
        return {"value": self._value, "speed": self._speed, "time_s": np.array(self._time_s)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Remember what `state` gave."""
        self._value, self._speed = state.get("value"), state.get("speed")
        self._time_s = float(state.get("time_s", 0.0))


def _weight(cutoff_hz: float, step_s: float) -> float:
    """How much of a new value a first-order low-pass filter takes."""
    return 1 / (1 + 1 / (2 * np.pi * cutoff_hz * step_s))
