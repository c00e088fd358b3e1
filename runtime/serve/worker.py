"""The one thread that computes for a server, and the limits of what the server takes on."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from ..errors import InputError
from ..media.images import MOST_PIXELS
from .guard import RefusedError

T = TypeVar("T")
VIDEOS = 4  # uploaded ones, of one process


@dataclass(frozen=True)
class Limits:
    """What one server takes on; beyond it there is an answer that says so, and no work."""

    upload_mb: float = 12.0  # of one request's body
    megapixels: float = 50.0  # of one picture, as its header says, before it is decoded
    sessions: int = 2  # live videos at a time
    video_mb: float = 100.0  # of one uploaded video; 0 turns them off
    videos: int = VIDEOS  # uploaded ones that are here at a time, in whatever state
    queue: int = 16  # requests that are being read, wait or are computed at a time

    def __post_init__(self) -> None:
        if self.upload_mb <= 0 or self.sessions < 0 or self.queue < 1 or self.video_mb < 0:
            raise InputError(
                "limits must be positive; only sessions and video_mb may be 0, which turns live video and uploads off."
            )
        if not 0 < self.megapixels * 1e6 <= MOST_PIXELS:
            raise InputError(f"{self.megapixels:g} megapixels cannot be the limit; fid reads up to 536.")

    @property
    def upload_bytes(self) -> int:
        """`upload_mb` in bytes."""
        return round(self.upload_mb * 1e6)


class Worker:
    """The one thread that computes: requests and live frames, in the order of arrival."""

    def __init__(self, limit: int) -> None:
        self.limit, self.waiting = limit, 0
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="fid-compose")

    @contextmanager
    def place(self) -> Iterator[None]:
        """Give a request's place in the queue, taken before its body is read; `RefusedError` 503 when there is none."""
        if self.waiting >= self.limit:
            raise RefusedError(
                503, f"{self.waiting} requests are waiting already; try again in a moment.", retry_after="1"
            )
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Return the result of `work(*arguments)`, called in the thread, its stages measured for whoever collects
        timings. Also for live frames: a session has one at a time."""
        call = partial(contextvars.copy_context().run, work, *arguments)
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    def close(self) -> None:
        """Drop what waits; what runs ends by itself."""
        self._executor.shutdown(wait=True, cancel_futures=True)
