"""How things are timed here: in turns, so that a noisy minute hits everything alike, and never the first run."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class Plan:
    """How often. Each turn of each candidate is one run that does not count and `inner` that do."""

    rounds: int
    inner: int
    warm_up: int = 3  # runs before the first turn
    seconds: float = 20.0  # a candidate that has used so much time takes no more turns, after three

    @property
    def text(self) -> str:
        return (
            f"in turns, {self.rounds} rounds of 1 uncounted and {self.inner} counted runs each, "
            f"after {self.warm_up} warm-up runs"
        )


FULL, QUICK = Plan(12, 5), Plan(2, 2, warm_up=1, seconds=4.0)


def interleaved(candidates: Mapping[str, Callable[[], object]], plan: Plan) -> dict[str, np.ndarray]:
    """Return milliseconds of every counted run, float [n], by name: A B C, A B C, ... in one process.

    A call has to return only when its work is done: engines on a GPU synchronise themselves.
    """
    for run in candidates.values():
        for _ in range(plan.warm_up):
            run()
    times: dict[str, list[list[float]]] = {name: [] for name in candidates}
    used = dict.fromkeys(candidates, 0.0)
    for turn in range(plan.rounds):
        for name, run in candidates.items():
            if turn >= 3 and used[name] > plan.seconds:
                continue
            begin = time.perf_counter()
            run()
            marks = [time.perf_counter()]
            for _ in range(plan.inner):
                run()
                marks.append(time.perf_counter())
            times[name].append([1e3 * (b - a) for a, b in pairwise(marks)])
            used[name] += marks[-1] - begin
    return {name: np.array(turns) for name, turns in times.items()}


def summary(turns: np.ndarray, batch: int = 1) -> dict[str, float]:
    """Sum up the ms of runs [turns, inner]: p50, p95, p99, min, how many, and pictures a second at the median."""
    ms = turns.ravel()
    p50, p95, p99 = np.percentile(ms, (50, 95, 99))
    return {
        "p50_ms": round(float(p50), 3),
        "p95_ms": round(float(p95), 3),
        "p99_ms": round(float(p99), 3),
        "min_ms": round(float(ms.min()), 3),
        "runs": ms.size,
        "per_second": round(1e3 * batch / float(p50), 2),
    }


def quantiles(turns: np.ndarray) -> list[float]:
    """Return quantiles of the ms of runs [turns, inner]: the shortest, every tenth percentile, the longest; for
    plots."""
    return [round(float(ms), 2) for ms in np.percentile(turns, range(0, 101, 10))]


def speedup(base: np.ndarray, turns: np.ndarray) -> float:
    """Return how many times faster than `base`: the median over turns of the ratio of the two medians of that turn."""
    shared = min(len(base), len(turns))
    return round(float(np.median(np.median(base[:shared], axis=1) / np.median(turns[:shared], axis=1))), 3)
