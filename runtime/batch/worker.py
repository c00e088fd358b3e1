"""One worker of a batch: opens its job once, then does file after file, and tells of each in a line."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..composer import Composer
from ..errors import FidError
from ..files import replacing
from .jobs import Job, Made, Opening, Work
from .manifest import Line, sha256_of
from .places import Item, Place


@dataclass(frozen=True)
class Setup:
    """All that a worker needs, in any process and on any machine."""

    job: Job
    opening: Opening
    source: Place
    target: Place


@dataclass(frozen=True)
class Task:
    """One file to do."""

    item: Item
    output: str  # below the target
    made_of: str  # see `manifest.Line`

    def line(self, error: str | None = None) -> Line:
        """Return the line of this file, with nothing done yet."""
        return Line(self.item.name, self.output, self.item.size, self.item.changed, self.made_of, error=error)


class Worker:
    """Does the files that it is given. For one thread."""

    def __init__(self, setup: Setup) -> None:
        """Open everything; `FidError` when that cannot be."""
        if setup.opening.threads is not None:
            import cv2

            cv2.setNumThreads(setup.opening.threads)
        self._setup = setup
        self._composer: Composer = setup.opening.composer()
        self._work: Work = setup.job.open(setup.opening, self._composer)

    def file(self, task: Task) -> Line:
        """Do one file. Whatever goes wrong with it is the error of its line; nothing half-written stays."""
        start, line = time.perf_counter(), task.line()
        try:
            line, made = self._made(task)
            line = replace(line, faces=made.faces, more=made.more)
        except FidError as error:
            line = replace(line, error=str(error))
        except MemoryError:
            line = replace(line, error="there is not enough memory for this file.")
        except Exception as error:  # a bug, which shall not end the other files
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"this met a bug in fid: {type(error).__name__}: {error} ({where.name}, line {where.lineno})."
            line = replace(line, error=text)
        fallback = next(iter(self._composer.fallbacks), None)
        seconds = round(time.perf_counter() - start, 4)
        return replace(line, seconds=seconds, engine=self._composer.provider, fallback=fallback)

    def _made(self, task: Task) -> tuple[Line, Made]:
        setup = self._setup
        with setup.source.reading(task.item.name) as path:
            line = replace(task.line(), sha256=sha256_of(path))
            with setup.target.writing(task.output) as output:
                made = self._work(path, output)
        if made.report is not None:
            with setup.target.writing(f"{task.output}.json") as record, replacing(record) as temporary:
                temporary.write_text(json.dumps(made.report, indent=1) + "\n")
        return line, made


def work_here(setup: Setup, tasks: Iterator[Task]) -> Iterator[Line]:
    """Yield the lines of all tasks, done in this process one after the other."""
    worker = Worker(setup)
    for task in tasks:
        yield worker.file(task)
