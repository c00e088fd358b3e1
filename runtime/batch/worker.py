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

from ..composer import Composer
from ..errors import FidError
from ..files import replacing
from .jobs import FilmWork, Job, Made, Opening, Work
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
class Span:
    """A part of a long clip, or at the end the joining of all."""

    number: int  # from 0; that of the joining is `count`
    count: int
    frames: tuple[int, int]  # numbers of the first, and of the one after the last


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
            if task.span is not None:
                return replace(task.line(), sha256=sha256_of(path)), self._span(task, task.span, path)
            line = replace(task.line(), sha256=sha256_of(path))
            with setup.target.writing(task.output) as output:
                made = self._work(path, output)
        if made.report is not None:
            with setup.target.writing(f"{task.output}.json") as record, replacing(record) as temporary:
                temporary.write_text(json.dumps(made.report, indent=1) + "\n")
        return line, made

    def _span(self, task: Task, span: Span, path: Path) -> Made:
        """Do a part of a clip, or join them."""
        work, target = self._work, self._setup.target
        assert isinstance(work, FilmWork)
        with tempfile.TemporaryDirectory(prefix="fid-span-") as temporary:
            if span.number < span.count:
                folder = Path(temporary) / "span"
                folder.mkdir()
                work.span(path, folder, span.frames)
                packed = shutil.make_archive(f"{temporary}/packed", "tar", folder)
                with target.writing(f"{task.spans}/{span.number}.tar") as place, replacing(place) as new:
                    shutil.copyfile(packed, new)
                return Made(more={"span": span.number})
            folders = [Path(temporary) / str(number) for number in range(span.count)]
            for number, folder in enumerate(folders):
                with target.reading(f"{task.spans}/{number}.tar") as packed:
                    shutil.unpack_archive(packed, folder, "tar", filter="data")
            with target.writing(task.output) as output:
                made = work.join(path, folders, output)
        target.remove(task.spans)
        return made


def work_here(setup: Setup, tasks: Iterator[Task]) -> Iterator[Line]:
    """Yield the lines of all tasks, done in this process one after the other."""
    worker = Worker(setup)
    for task in tasks:
        yield worker.file(task)
