"""What an engine builds for each batch size, kept for the sizes that were used last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

KEPT = 4
"""Batch sizes that stay ready; the one not used for longest makes room."""


class Recent(Generic[T]):
    """Values by batch size, made when first asked for. For one thread at a time."""

    def __init__(self, make: Callable[[int], T], drop: Callable[[T], object] = lambda value: None) -> None:
        """`make` builds the value for a batch size; `drop` is told of one that makes room, before another is built."""
        self._make, self._drop = make, drop
        self._ready: OrderedDict[int, T] = OrderedDict()

    def at(self, batch: int) -> T:
        """Return the value for a batch size."""
        if batch not in self._ready:
            if len(self._ready) >= KEPT:
                self._drop(self._ready.popitem(last=False)[1])
            self._ready[batch] = self._make(batch)
        self._ready.move_to_end(batch)
        return self._ready[batch]

    def __contains__(self, batch: int) -> bool:
        return batch in self._ready

    def __len__(self) -> int:
        return len(self._ready)
