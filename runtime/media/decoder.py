"""Decode photos of strangers in processes of their own, so that one that takes for ever, or crashes, ends alone."""

from __future__ import annotations

import multiprocessing
import queue
import signal
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from ..errors import FidError, InputError
from .images import MOST_PIXELS, TooLargeError, UnknownFormatError, decode_image

_ERRORS = {error.__name__: error for error in (FidError, InputError, TooLargeError, UnknownFormatError)}
_START_S = 60.0  # a process that is not there by then will not come


class Decoder:
    """Processes that decode photos within a time limit, for any number of threads. They start when first needed.

    decoder = Decoder()
    picture = decoder.decode(data, "the photo")
    decoder.close()
    """

    def __init__(self, workers: int = 2, limit_s: float = 20.0) -> None:
        """`workers`: how many photos are decoded at a time; further callers wait. `limit_s`: seconds that one may
        take."""
        self._limit_s = limit_s
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._running: set[_Worker] = set()
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(workers):
            self._idle.put(None)

    def decode(self, data: bytes | np.ndarray, name: str, max_pixels: int = MOST_PIXELS) -> np.ndarray:
        """Return what `images.decode_image` returns: sRGB uint8 [height, width, 3], upright.

        Raises what that raises, `InputError` as well for a photo that takes longer than the limit or crashes its
        decoder, and `FidError` when `close` was called.
        """
        worker = self._idle.get()
        try:
            worker = worker or self._started()
            return worker.decode(bytes(data), name, max_pixels, self._limit_s)
        except (EOFError, OSError, TimeoutError) as error:
            if worker is not None:
                worker.end()
                self._running.discard(worker)
                worker = None
            if self._closed.is_set():
                raise FidError(f"{name} was not decoded, because the program ends.") from error
            if isinstance(error, TimeoutError):
                raise InputError(
                    f"{name} takes more than {self._limit_s:g} s to decode; save it anew as a plain JPEG or PNG."
                ) from error
            raise InputError(f"{name} is not a picture that can be read: its decoder gave up.") from error
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End all processes at once; whoever waits for one gets `FidError`."""
        with self._lock:
            self._closed.set()
            for worker in tuple(self._running):  # their callers take them out meanwhile
                worker.end()

    def _started(self) -> _Worker:
        with self._lock:
            if self._closed.is_set():
                raise OSError
            worker = _Worker()
            self._running.add(worker)
        return worker


class _Worker:
    """One process, and the pipe to it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")  # a copy of a process with threads could hang
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far,), name="decode", daemon=True)
        self._process.start()
        far.close()
        self._ready = False

    def decode(self, data: bytes, name: str, max_pixels: int, limit_s: float) -> np.ndarray:
        """See `Decoder.decode`; `TimeoutError`, `EOFError` or `OSError` when the process is of no use any more."""
        if not self._ready:
            self._receive(_START_S)
            self._ready = True
        self._pipe.send((name, max_pixels))
        self._pipe.send_bytes(data)
        end_s = time.monotonic() + limit_s
        shape, error, sentence = self._receive(limit_s)
        if shape is None:
            raise _ERRORS[error](sentence)
        if not self._pipe.poll(max(1.0, end_s - time.monotonic())):
            raise TimeoutError
        return np.frombuffer(self._pipe.recv_bytes(), np.uint8).reshape(shape)

    def end(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.join()

    def _receive(self, seconds: float) -> Any:
        if not self._pipe.poll(seconds):
            raise TimeoutError
        return self._pipe.recv()


def _serve(pipe: Connection) -> None:
    """The process: decode one photo after another until the other end of the pipe is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; who started this one ends it
    try:
        pipe.send(None)
        while True:
            name, max_pixels = pipe.recv()
            try:
                picture = decode_image(pipe.recv_bytes(), name, max_pixels=max_pixels)
            except FidError as error:
                pipe.send((None, type(error).__name__, str(error)))
                continue
            pipe.send((picture.shape, "", ""))
            pipe.send_bytes(np.ascontiguousarray(picture).reshape(-1).data)
    except (EOFError, OSError):
        return
