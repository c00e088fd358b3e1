"""A batch on a Ray cluster: actors that open their sessions once and are given file after file.

Each actor holds at most `AHEAD` files, so nothing piles up, whatever the batch's size. An actor that is lost, with its
machine or alone, is started again by Ray where there is room, and its files are tried again, `TRIES` times in all. Who
is still waiting for room has no files.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from typing import Any

from ..errors import FidError
from .manifest import Line
from .worker import Setup, Task, Worker

AHEAD = 2  # files that an actor has at most: the one that it is at, and the next
TRIES = 3  # actors that may be lost over one file
STORE_BYTES = 100 << 20  # of Ray's object store, where fid starts Ray itself: lines and names are all that passes it
NO_RAY = "Ray is not installed: `pip install 'fid-face[ray]'`."


@dataclass(frozen=True)
class Cluster:
    """Where and with what actors run."""

    address: str = "local"  # "auto" or an address for a cluster that runs; "local" starts Ray on this machine
    workers: int | None = None  # actors; None: as many as the cluster's CPUs and GPUs hold now
    cpus: float = 1.0  # of the cluster that each actor takes
    gpus: float = 0.0


class Remote:
    """The actor: a `Worker` that opens when it is first asked, on a machine of the cluster."""

    def __init__(self, setup: Setup) -> None:
        self._setup, self._worker = setup, None

    def ready(self) -> str | None:
        """Open everything; returns a sentence when that cannot be."""
        try:
            self._worker = self._worker or Worker(self._setup)
        except FidError as error:
            return str(error)
        return None

    def file(self, task: Task) -> Line:
        """Do one file; see `Worker.file`."""
        problem = self.ready()
        return task.line(problem) if self._worker is None else self._worker.file(task)


def work_on_ray(setup: Setup, tasks: Iterator[Task], cluster: Cluster) -> Iterator[Line]:
    """Yield the lines of all tasks as they come. `FidError` when the cluster cannot be reached or no actor opens."""
    with joined(cluster) as ray:
        count = cluster.workers or room(ray, cluster)
        options = {"num_cpus": cluster.cpus, "num_gpus": cluster.gpus}
        actor = ray.remote(max_restarts=-1, max_task_retries=TRIES - 1, **options)(Remote)
        actors = [actor.remote(setup) for _ in range(count)]
        opening = {one.ready.remote(): one for one in actors}
        working: dict[Any, tuple[Any, Task]] = {}
        held: list[Task] = []  # looked at, to see whether there is one

        def give(one: Any) -> None:
            if (task := held.pop() if held else next(tasks, None)) is not None:
                working[one.file.remote(task)] = one, task

        while opening or working:
            if not working and not held:
                if (task := next(tasks, None)) is None:
                    return  # all is done, and some never found room
                held.append(task)
            (ref,), _ = ray.wait([*working, *opening], num_returns=1)
            if ref in opening:
                one = opening.pop(ref)
                problem = _result(ray, ref)
                if problem is not None:
                    raise FidError(problem)
                for _ in range(AHEAD):
                    give(one)
                continue
            one, task = working.pop(ref)
            line = _line(ray, ref, task)
            yield line  # first, because it may bring another task
            give(one)


def _result(ray: Any, ref: Any) -> str | None:
    """Why an actor did not open; None when it did."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:
        return f"a worker on Ray could not be started: {_first_line(error)}."


def _line(ray: Any, ref: Any, task: Task) -> Line:
    """What became of a task; an actor that was lost too often is the error of its file."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayActorError:  # lost, or not there for too long
        return replace(task.line(), error=f"{TRIES} workers were lost over this file.")
    except ray.exceptions.RayError as error:
        return replace(task.line(), error=f"Ray could not do this file: {_first_line(error)}.")


def room(ray: Any, cluster: Cluster) -> int:
    """Return how many actors the cluster holds, one at least."""
    there = ray.cluster_resources()
    wanted = {"CPU": cluster.cpus, "GPU": cluster.gpus}
    return max(1, int(min(there.get(name, 0.0) / amount for name, amount in wanted.items() if amount > 0)))


@contextmanager
def joined(cluster: Cluster) -> Iterator[Any]:
    """Give Ray, joined to the cluster, and left at the end with all actors; nothing of it is reported to its makers."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise FidError(NO_RAY) from error
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": True}
    if cluster.address == "local":
        os.environ.setdefault("RAY_worker_niceness", "0")  # by itself, 15: whatever else runs here would come first
        cpus = None if cluster.workers is None else max(1, round(cluster.workers * cluster.cpus))
        options |= {"include_dashboard": False, "object_store_memory": STORE_BYTES, "num_cpus": cpus}
    own = not ray.is_initialized()  # else who called has joined, as a test or a program of the user's does
    if own:
        try:
            ray.init(address=cluster.address, **options)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise FidError(f"there is no Ray cluster at {cluster.address}: {_first_line(error)}.") from error
    try:
        with redirect_stdout(sys.stderr):  # Ray tells of lost workers on stdout, where fid's result will stand
            yield ray
    finally:
        if own:
            with suppress(Exception):  # a cluster that is gone cannot be left
                ray.shutdown()


def _first_line(error: BaseException) -> str:
    cause = getattr(error, "cause", None)  # what a worker raised
    text = f"{type(cause).__name__}: {cause}" if isinstance(cause, Exception) else str(error)
    lines = text.strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:300]
