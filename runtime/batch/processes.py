"""Several processes of one machine that work on one batch.

Each has one file at a time. A process that dies (no memory, a crash in a library, somebody's `kill`) takes nothing with
it but the file that it was at: another one is started, and the file is tried again, at most `TRIES` times in all.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from ..errors import FidError
from .manifest import Line
from .worker import Setup, Task, Worker

TRIES = 3  # processes that may die over one file


@dataclass
class Lane:
    """One process, and the file that it is at."""

    process: BaseProcess
    pipe: Connection
    task: Task | None = None
    tries: int = 0

    def give(self, task: Task, tries: int = 1) -> None:
        """Hand a file over; it waits in the pipe while the process still opens its sessions."""
        self.task, self.tries = task, tries
        with contextlib.suppress(OSError):  # it has just died, which `take` will tell
            self.pipe.send(task)

    def take(self) -> Line | FidError | None:
        """Return what the process said; None when it has died."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            return None

    def stop(self) -> None:
        """End the process, whatever it is at."""
        self.process.terminate()
        self.process.join()
        self.pipe.close()


def work_in_processes(setup: Setup, tasks: Iterator[Task], count: int) -> Iterator[Line]:
    """Yield the lines of all tasks as they come, done by `count` processes. `FidError` when one cannot open."""
    lanes: list[Lane] = []
    try:
        for task in tasks:
            lanes.append(_started(setup))
            lanes[-1].give(task)
            if len(lanes) == count:
                break
        while busy := [lane for lane in lanes if lane.task is not None]:
            ready = wait([lane.pipe for lane in busy])
            for lane in (lane for lane in busy if lane.pipe in ready):
                line = _line_of(lane, lanes, setup)
                if line is not None:
                    lane.task = None
                    yield line  # first, because it may bring another task
                    if (task := next(tasks, None)) is not None:
                        lane.give(task)
    finally:
        for lane in lanes:
            lane.stop()


def _line_of(lane: Lane, lanes: list[Lane], setup: Setup) -> Line | None:
    """What a process with something to say has done; None when it died and another one has its file now."""
    said, task = lane.take(), lane.task
    assert task is not None
    if isinstance(said, FidError):
        raise said
    if said is not None:
        return said
    code = lane.process.exitcode if lane.process.join(5) is None else None
    fresh = _started(setup)
    lane.stop()
    lane.process, lane.pipe = fresh.process, fresh.pipe
    if lane.tries < TRIES:
        lane.give(task, lane.tries + 1)
        return None
    why = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    return replace(task.line(), error=f"{TRIES} processes died over this file, the last by {why}.")


def _started(setup: Setup) -> Lane:
    own, other = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_run, args=(other, setup), name="fid-batch", daemon=True)
    process.start()
    other.close()
    return Lane(process, own)


def _run(pipe: Connection, setup: Setup) -> None:
    """A worker's process: files in, lines out, until the pipe closes because who started it has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; who started this one ends it
    try:
        worker = Worker(setup)
    except FidError as error:
        pipe.send(error)
        return
    while True:
        try:
            pipe.send(worker.file(pipe.recv()))
        except (EOFError, OSError):
            return
