"""One run of a batch: which files there are, which are still to be done, and a line in the manifest for each."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from .jobs import Job
from .manifest import NAME, SUFFIX, Line, Manifest, is_done, manifest_name, read_manifests
from .places import Folder, Item, Place
from .worker import Task

Doing = Callable[[Iterator[Task]], Iterator[Line]]
"""Does tasks somewhere, and yields a line for each as it is done."""


@dataclass(frozen=True)
class Plan:
    """What a run has to do."""

    files: int  # of the job, in this shard
    tasks: tuple[Task, ...]  # not done yet
    matching: int = 0  # of those that are done: somebody is still recognised

    @property
    def done(self) -> int:
        """How many a former run did."""
        return self.files - len(self.tasks)


def parse_shard(text: str) -> tuple[int, int]:
    """Read "I/N" with I from 0 to N - 1. `InputError` for anything else."""
    first, _, count = text.partition("/")
    if not (first.isdecimal() and count.isdecimal() and int(first) < int(count)):
        raise InputError(f"--shard {text} is not understood; give I/N with I from 0 to N - 1, such as 0/4.")
    return int(first), int(count)


def in_shard(name: str, shard: tuple[int, int] | None) -> bool:
    """Return whether a file belongs to shard (I, N): by a hash of its name, so that files that come later change
    nothing for the others."""
    if shard is None:
        return True
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % shard[1] == shard[0]


def make_plan(
    job: Job, source: Place, target: Place, made_of: dict[str, Any], shard: tuple[int, int] | None = None
) -> Plan:
    """Return what is to be done, in order of names. `made_of`: what all results depend on beside the job.

    Raises `InputError` when there is nothing at all, when two inputs would have one output, or when inputs and results
    are to lie in one place.
    """
    if source == target:
        raise InputError(f"{target} is the folder of the originals; give another one for the results.")
    files = sorted(_inputs(job, source, target), key=lambda item: item.name)
    if not files:
        raise InputError(f"there is nothing in {source} for this job, which takes {', '.join(job.suffixes)}.")
    outputs: dict[str, str] = {}
    for item in files:
        other = outputs.setdefault(job.output(item.name), item.name)
        if other != item.name:
            raise InputError(f"{other} and {item.name} would both become {job.output(item.name)}; rename one of them.")
    there = {item.name for item in target.items()}
    names = [name for name in there if "/" not in name and name.startswith(NAME) and name.endswith(SUFFIX)]
    lines = read_manifests(target, names)
    base = json.dumps(made_of, sort_keys=True, default=str)
    mine = [item for item in files if in_shard(item.name, shard)]
    tasks, matching = [], 0
    for item in mine:
        own = base + json.dumps(job.made_of(item.name), sort_keys=True, default=str)
        task = Task(item, job.output(item.name), hashlib.sha256(own.encode()).hexdigest()[:16])
        line = lines.get(item.name)
        if line is None or not is_done(line, item, task.made_of, there, source):
            tasks.append(task)
        else:
            matching += is_matching(line)
    return Plan(len(mine), tuple(tasks), matching)


def is_matching(line: Line) -> bool:
    """Return whether somebody is still recognised in a file."""
    return bool(line.more.get("still_matching"))


def _inputs(job: Job, source: Place, target: Place) -> Iterator[Item]:
    """The files of the job; results may lie in a folder below the inputs and are none."""
    below = ""
    if isinstance(source, Folder) and isinstance(target, Folder) and target.path.is_relative_to(source.path):
        below = f"{target.path.relative_to(source.path).as_posix()}/"
    suffixes = set(job.suffixes)
    for item in source.items():
        dot = item.name.rfind(".")
        if dot >= 0 and item.name[dot:].lower() in suffixes and not (below and item.name.startswith(below)):
            yield item


@dataclass
class Tally:
    """How far a run is."""

    of: int  # files to do
    done: int = 0
    failed: int = 0
    matching: int = 0  # files in which somebody is still recognised
    work_s: float = 0.0  # seconds of all workers together
    start: float = 0.0  # `time.monotonic()` when the first worker began to open

    def add(self, line: Line) -> None:
        """Count one file."""
        self.done += 1
        self.failed += line.error is not None
        self.matching += is_matching(line)
        self.work_s += line.seconds

    @property
    def rate(self) -> float:
        """Return files a second since the start."""
        return self.done / max(time.monotonic() - self.start, 1e-9)

    @property
    def left_s(self) -> float | None:
        """Return seconds left at this rate; None before the first file."""
        return (self.of - self.done) / self.rate if self.done else None


def run(
    tasks: Iterable[Task],
    doing: Doing,
    target: Place,
    shard: tuple[int, int] | None,
    tally: Tally,
    watch: Callable[[Tally, Line], None] = lambda tally, line: None,
) -> Tally:
    """Do all tasks, write the manifest, and return the counts; `watch` hears of every file."""
    tally.start = time.monotonic()
    lines = doing(iter(tasks))
    with Manifest(target, manifest_name(shard)) as manifest:
        try:
            for line in lines:
                manifest.add(line)
                tally.add(line)
                watch(tally, line)
        finally:
            close = getattr(lines, "close", None)
            if close is not None:  # ends the workers at once, on Ctrl-C as well
                close()
    return tally
