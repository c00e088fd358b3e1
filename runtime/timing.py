"""Measure the stages of composing, and give the figures to whoever asked for them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Timings = dict[str, float]
"""ms by stage: read, detect, track, align, identity, attributes, mapper, synthesis or reenact, paste."""

_open: ContextVar[tuple[Timings, ...]] = ContextVar("open", default=())


@contextmanager
def collect_timings() -> Iterator[Timings]:
    """Collect the ms of every stage that this thread runs meanwhile; a stage that runs more than once is summed up."""
    timings: Timings = {}
    token = _open.set((*_open.get(), timings))
    try:
        yield timings
    finally:
        _open.reset(token)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Measure what runs meanwhile as one stage."""
    start = time.perf_counter()
    yield
    ms = 1e3 * (time.perf_counter() - start)
    for timings in _open.get():
        timings[name] = timings.get(name, 0.0) + ms
