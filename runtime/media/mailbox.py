"""A place for one item between two threads: the newest wins, and what nobody took is counted."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Room for one: the newest wins. For one who puts and one who takes."""

    def __init__(self) -> None:
        self.dropped = 0  # how many were replaced before anybody took them
        self._full = threading.Condition()
        self._item: T | None = None
        self._closed = False

    def put(self, item: T) -> None:
        """Replace whatever is in it."""
        with self._full:
            self.dropped += self._item is not None
            self._item = item
            self._full.notify()

    def take(self, timeout_s: float | None = None) -> T | None:
        """Wait for an item and take it; None when there was none in time, or none will come any more."""
        with self._full:
            self._full.wait_for(lambda: self._item is not None or self._closed, timeout_s)
            item, self._item = self._item, None
            return item

    def close(self) -> None:
        """Let nothing be put any more; what is in it can still be taken."""
        with self._full:
            self._closed = True
            self._full.notify_all()

    @property
    def ended(self) -> bool:
        """Tell whether it is closed and empty."""
        with self._full:
            return self._closed and self._item is None
