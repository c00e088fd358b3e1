"""Long clips of a batch as spans that workers share, and the joining of each when its last span is done.

Tasks come out as workers ask for them: a clip is looked at when its turn comes. What is done of a clip whose run was
stopped waits below the folder of results, and is not done again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from ..errors import FidError
from ..live.spans import spans_of
from ..media.video import VIDEO_INPUTS, open_clip
from .manifest import Line
from .places import Folder, Place
from .run import Doing
from .worker import PREPARED, PREPARING, Setup, Span, Task


@dataclass
class Shared:
    """One clip that is shared out."""

    task: Task
    spans: tuple[tuple[int, int], ...]
    left: int = 0  # spans that are not done
    seconds: float = 0.0
    error: str | None = None

    def part(self, number: int) -> Task:
        """Return a task of it: a span, what comes before all, or the joining."""
        return replace(self.task, span=Span(number, self.spans))


@dataclass
class Sharing:
    """An iterator of tasks, in which long clips are many; `seen` hears of each that is done, and may add some."""

    tasks: Iterator[Task]
    source: Place
    target: Place
    seconds: float
    _ready: deque[Task] = field(default_factory=deque)
    _shared: dict[str, Shared] = field(default_factory=dict)  # by the name of the input

    def __iter__(self) -> Iterator[Task]:
        return self

    def __next__(self) -> Task:
        while not self._ready:
            task = next(self.tasks)
            spans = self._spans(task)
            if len(spans) < 2:
                return task
            own = self._shared[task.item.name] = Shared(task, tuple(spans))
            if not self.target.has(f"{task.spans}/{PREPARED}.tar"):
                self._ready.append(own.part(PREPARING))
            else:
                self._share(own)
        return self._ready.popleft()

    def _spans(self, task: Task) -> list[tuple[int, int]]:
        """The spans of a clip; none where it cannot be looked at from here; its worker will say why."""
        name = task.item.name
        if not isinstance(self.source, Folder) or PurePosixPath(name).suffix.lower() not in VIDEO_INPUTS:
            return []
        try:
            return spans_of(open_clip(Path(self.source.path / name)), self.seconds)
        except FidError:
            return []

    def _share(self, own: Shared) -> None:
        """Make tasks of the spans that are not done; of the joining, where all are."""
        count, folder = len(own.spans), own.task.spans
        left = [number for number in range(count) if not self.target.has(f"{folder}/{number}.tar")]
        own.left = len(left)
        self._ready.extend(own.part(number) for number in left or [count])

    def seen(self, line: Line) -> Line | None:
        """Return the line of a whole file; None where more of the clip is to come."""
        own = self._shared.get(line.input)
        if own is None:
            return line
        own.seconds += line.seconds
        own.error = own.error or line.error
        if own.left:
            own.left -= 1
            if own.left:
                return None
            if own.error is None:
                self._ready.append(own.part(len(own.spans)))
                return None
        elif own.error is None and (line.more.get("span") == PREPARING or line.more.get("again")):
            self._share(own)
            return None
        del self._shared[line.input]
        return replace(line, seconds=round(own.seconds, 4), error=own.error)


def work_in_spans(setup: Setup, tasks: Iterator[Task], doing: Doing, seconds: float) -> Iterator[Line]:
    """Yield the lines of all files as `doing` does, with clips of more than two spans of about `seconds` shared out."""
    sharing = Sharing(tasks, setup.source, setup.target, seconds)
    for line in doing(sharing):
        whole = sharing.seen(line)
        if whole is not None:
            yield whole
