"""Several processes behind one port (`fid-run serve --workers`): started, watched, and ended together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from ..composer import Composer
from ..errors import FidError
from .app import Server, serve, warm_up
from .guard import Access
from .listen import Peers
from .picture import Labelling
from .worker import Limits

HASTY_S = 10.0  # a process that ends sooner after its start than that is not started again for ever
HASTY = 3  # times in a row
END_S = 15.0  # seconds that all have to end


@dataclass(frozen=True)
class Serving:
    """What each process serves."""

    open: Callable[[], Composer]
    access: Access
    limits: Limits
    label: Labelling
    certificate: Path | None = None
    key: Path | None = None


@dataclass
class Child:
    """One process."""

    process: BaseProcess
    pipe: Connection
    started_s: float
    hasty: int = 0  # times in a row that it ended at once


def serve_in_processes(serving: Serving, listening: socket.socket, count: int, ready: Callable[[str], None]) -> None:
    """Answer on a bound socket by `count` processes until Ctrl-C or SIGTERM. `ready` is told what they compute on when
    all are there. A process that dies is started again; `FidError` when one cannot open, or dies again and again."""
    ending = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: _interrupt(ending))
    with tempfile.TemporaryDirectory(prefix="fid-serve-") as folder:
        children: list[Child] = []
        try:
            for number in range(count):
                children.append(_started(serving, listening, Peers(number, count, Path(folder))))
            ready(" + ".join(dict.fromkeys(_hello(child) for child in children)))
            while True:
                gone = wait([child.process.sentinel for child in children])
                for number, child in enumerate(children):
                    if child.process.sentinel in gone:
                        children[number] = _again(child, serving, listening, Peers(number, count, Path(folder)))
        except KeyboardInterrupt:
            if not ending.is_set():
                raise
        finally:
            _end(children)
            signal.signal(signal.SIGTERM, before)
    signal.raise_signal(signal.SIGTERM)


def _interrupt(ending: threading.Event) -> None:
    ending.set()
    raise KeyboardInterrupt


def _started(serving: Serving, listening: socket.socket, peers: Peers) -> Child:
    pipe, other = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_run, args=(serving, listening, peers, other), name="fid-serve")
    process.start()
    other.close()
    return Child(process, pipe, time.monotonic())


def _hello(child: Child) -> str:
    """What a process computes on, when it is there; its error where it cannot be."""
    try:
        said = child.pipe.recv()
    except (EOFError, OSError):
        raise FidError("a process of the server died before it was there; is there enough memory?") from None
    if isinstance(said, FidError):
        raise said
    return said


def _again(child: Child, serving: Serving, listening: socket.socket, peers: Peers) -> Child:
    hasty = child.hasty + 1 if time.monotonic() - child.started_s < HASTY_S else 0
    if hasty >= HASTY:
        raise FidError(f"a process of the server died {HASTY} times in a row (exit code {child.process.exitcode}).")
    child.pipe.close()
    fresh = _started(serving, listening, peers)
    fresh.hasty = hasty
    return fresh


def _end(children: list[Child]) -> None:
    """End all, gently first."""
    until = time.monotonic() + END_S
    for child in children:
        child.process.terminate()
    for child in children:
        child.process.join(max(0.0, until - time.monotonic()))
        if child.process.is_alive():
            child.process.kill()
            child.process.join()
        child.pipe.close()


def _run(serving: Serving, listening: socket.socket, peers: Peers, pipe: Connection) -> None:
    """One process, until a signal comes or who started it has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: who started this one ends it
    try:
        limits = replace(serving.limits, videos=serving.limits.videos * peers.count)  # of all together
        server = Server(serving.open(), serving.access, limits, serving.label, peers, peers.videos)
        warm_up(server)
    except FidError as error:
        pipe.send(error)
        return
    threading.Thread(target=_follow, args=(pipe,), daemon=True).start()
    pipe.send(server.composer.provider)
    with suppress(KeyboardInterrupt):
        serve(server, listening, serving.certificate, serving.key)


def _follow(pipe: Connection) -> None:
    """End this process when who started it is gone."""
    with suppress(EOFError, OSError):
        pipe.recv()
    os.kill(os.getpid(), signal.SIGTERM)
