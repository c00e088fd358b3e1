"""One worker of a batch: opens its job once, then does file after file, and tells of each in a line."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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


PREPARED = "prepared"
PREPARING = -1  # number of the task that comes before all spans of a clip


@dataclass(frozen=True)
class Span:
    """A part of a long clip; before all of them what they need to know of it, and at the end the joining."""

    number: int  # from 0; `PREPARING` before, and `count` for the joining
    spans: tuple[tuple[int, int], ...]  # of the whole clip: numbers of the first frame, and of the one after the last

    @property
    def count(self) -> int:
        """Return how many there are."""
        return len(self.spans)


@dataclass(frozen=True)
class Task:
    """One file to do, or a part of one."""

    item: Item
    output: str  # below the target
    made_of: str  # see `manifest.Line`
    span: Span | None = None

    @property
    def spans(self) -> str:
        """The folder below the target in which the parts of a clip wait for each other."""
        key = f"{self.item.name}\0{self.item.size}\0{self.item.changed}\0{self.made_of}"
        return f".spans/{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()[:24]}"

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
            if task.span is not None:
                made = self._span(task, task.span, path)
            else:
                with setup.target.writing(task.output) as output:
                    made = self._work(path, output)
        if made.report is not None:
            with setup.target.writing(f"{task.output}.json") as record, replacing(record) as temporary:
                temporary.write_text(json.dumps(made.report, indent=1) + "\n")
        return line, made

    def _span(self, task: Task, span: Span, path: Path) -> Made:
        """Do a part of a clip, what comes before all, or join them."""
        work: Any = self._work  # a `SpanWork`, else nothing is shared out
        firsts, numbers = [first for first, _ in span.spans], range(span.count)
        with tempfile.TemporaryDirectory(prefix="fid-span-") as temporary:
            prepared, own = Path(temporary) / "prepared", Path(temporary) / "own"
            for folder in (prepared, own):
                folder.mkdir()
            if span.number == PREPARING:
                work.prepare(path, prepared, firsts)
                self._pack(task, PREPARED, prepared)
                return Made(more={"span": PREPARING})
            self._unpack(task, PREPARED, prepared)
            if span.number < span.count:
                work.span(path, prepared, own, span.spans[span.number])
                self._pack(task, str(span.number), own)
                return Made(more={"span": span.number})
            folders = [own / str(number) for number in numbers]
            for number, folder in enumerate(folders):
                self._unpack(task, str(number), folder)
            with self._setup.target.writing(task.output) as output:
                made = work.join(path, prepared, folders, output)
            if made is None:
                work.prepare(path, prepared, firsts)
            self._setup.target.remove(task.spans)
            if made is None:
                self._pack(task, PREPARED, prepared)
                return Made(more={"again": True})
        return made

    def _pack(self, task: Task, name: str, folder: Path) -> None:
        """Put a folder where all workers find it, for the user alone: it tells who is in the clip."""
        packed = shutil.make_archive(str(folder), "tar", folder)
        with self._setup.target.writing(f"{task.spans}/{name}.tar") as place, replacing(place) as new:
            new.touch(mode=0o600)
            shutil.copyfile(packed, new)

    def _unpack(self, task: Task, name: str, folder: Path) -> None:
        try:
            with self._setup.target.reading(f"{task.spans}/{name}.tar") as packed:
                shutil.unpack_archive(packed, folder, "tar", filter="data")
        except (OSError, shutil.ReadError) as error:
            raise FidError("what was ready of this clip is gone; the same command makes it anew.") from error


def work_here(setup: Setup, tasks: Iterator[Task]) -> Iterator[Line]:
    """Yield the lines of all tasks, done in this process one after the other."""
    worker = Worker(setup)
    for task in tasks:
        yield worker.file(task)
