"""Progress bars, drawn on a terminal only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ..terminal import make_console

T = TypeVar("T")


def progress_of(what: str, items: Iterable[T], count: int) -> Iterator[T]:
    """Yield the items, with a bar on the terminal while they last; nothing is drawn where nobody watches."""
    from rich.progress import track

    console = make_console(stderr=True)
    if count < 2 or not console.is_terminal:
        yield from items
    else:
        yield from track(items, what, count, console=console, transient=True)


@contextmanager
def frame_progress(what: str, count: int) -> Iterator[Callable[[int], None]]:
    """Give a bar with the time left, told how many frames are ready; nothing is drawn where nobody watches."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = make_console(stderr=True)
    if not console.is_terminal:
        yield lambda ready: None
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=count)
        yield lambda ready: progress.update(task, completed=ready)
