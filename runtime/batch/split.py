"""Long clips of a batch as spans that workers share, and the joining of each when its last span is done.

Tasks come out as workers ask for them: a clip is looked at when its turn comes. What is done of a clip whose run was
stopped waits below the folder of results, and is not done again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import FidError
from ..live.spans import spans_of
from ..media.video import open_clip
from .manifest import Line
from .places import Folder, Place
from .run import Doing
from .worker import Span, Task


@dataclass
class Shared:
    """One clip that is shared out."""

    task: Task
    count: int
    left: int  # spans that are not done
    seconds: float = 0.0
    error: str | None = None


@dataclass
class Sharing:
    """An iterator of tasks, in which long clips are many; `seen` hears of each that is done, and may add one."""

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
            self._share(task, spans)
        return self._ready.popleft()

    def _spans(self, task: Task) -> list[tuple[int, int]]:
        """The spans of a clip; none where it cannot be looked at from here; its worker will say why."""
        if not isinstance(self.source, Folder):
            return []
        try:
            return spans_of(open_clip(Path(self.source.path / task.item.name)), self.seconds)
        except FidError:
            return []

    def _share(self, task: Task, spans: list[tuple[int, int]]) -> None:
        count = len(spans)
        left = [number for number in range(count) if not self.target.has(f"{task.spans}/{number}.tar")]
        self._shared[task.item.name] = Shared(task, count, len(left))
        self._ready.extend(replace(task, span=Span(number, count, spans[number])) for number in left)
        if not left:
            self._ready.append(self._joining(task, count))

    def _joining(self, task: Task, count: int) -> Task:
        return replace(task, span=Span(count, count, (0, 0)))

    def seen(self, line: Line) -> Line | None:
        """Return the line of a whole file; None where more of the clip is to come."""
        own = self._shared.get(line.input)
        if own is None:
            return line
        own.seconds += line.seconds
        if own.left:
            own.error = own.error or line.error
            own.left -= 1
            if own.left:
                return None
            if own.error is None:
                self._ready.append(self._joining(own.task, own.count))
                return None
        del self._shared[line.input]
        return replace(line, seconds=round(own.seconds, 4), error=own.error or line.error)


def work_in_spans(tasks: Iterator[Task], doing: Doing, source: Place, target: Place, seconds: float) -> Iterator[Line]:
    """Yield the lines of all files as `doing` does, with clips of more than two spans of about `seconds` shared out."""
    sharing = Sharing(tasks, source, target, seconds)
    for line in doing(sharing):
        whole = sharing.seen(line)
        if whole is not None:
            yield whole
