"""Progress bars, drawn on a terminal only; where nobody watches, long work says now and then how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from ..terminal import make_console

if TYPE_CHECKING:
    from ..batch.run import Tally

T = TypeVar("T")
SAY_S = 30.0  # seconds from one line about long work to the next, in a log


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


@contextmanager
def file_progress() -> Iterator[Callable[[Tally], None]]:
    """Give what shows files, rate, time left and failures of a batch: a bar on a terminal, else a line now and then."""
    from rich.progress import BarColumn, Progress, TextColumn

    console = make_console(stderr=True)
    if not console.is_terminal:
        said = time.monotonic()

        def say(tally: Tally) -> None:
            nonlocal said
            if time.monotonic() - said >= SAY_S:
                said = time.monotonic()
                console.print(f"fid-run: {_told(tally)}")

        yield say
        return
    with Progress(BarColumn(), TextColumn("{task.description}"), console=console, transient=True) as progress:
        task = progress.add_task("opening", total=None)
        yield lambda tally: progress.update(task, total=tally.of, completed=tally.done, description=_told(tally))


def _told(tally: Tally) -> str:
    left = "" if tally.left_s is None else f", {duration(tally.left_s)} left"
    return f"{tally.done} of {tally.of} files, {rate_told(tally.rate)}{left}, {tally.failed} failed"


def rate_told(rate: float) -> str:
    """Return files a second in words: a second or a minute, whichever makes a number that says something."""
    return f"{rate:.2g} files/s" if rate >= 1 else f"{60 * rate:.2g} files/min"


def duration(seconds: float) -> str:
    """Return a duration in words: seconds, minutes, or hours."""
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
