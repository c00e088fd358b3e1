"""What the commands write to: lines are wrapped on a terminal only."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

UNWRAPPED = 1 << 15  # columns that a file or a pipe is said to have


def make_console(stderr: bool = False, quiet: bool = False, markup: bool = False) -> Console:
    """Return a rich console on stdout or stderr that wraps lines on a terminal only.

    A program that reads a pipe, or a person who searches a log, finds every line, and every path in it, in one piece.
    `quiet`: say nothing. `markup`: understand [bold]; off where a path may hold brackets.
    """
    from rich.console import Console, ConsoleDimensions

    class Unwrapped(Console):
        @property
        def size(self) -> ConsoleDimensions:
            """Return columns and rows, looked up at each print, because stdout may be another one by then."""
            if not self.file.isatty():
                return ConsoleDimensions(UNWRAPPED, 25)
            columns = os.environ.get("COLUMNS", "")  # rich remembers what it was when the console was made
            size = super().size
            return ConsoleDimensions(int(columns), size.height) if columns.isdigit() else size

    return Unwrapped(stderr=stderr, quiet=quiet, markup=markup, highlight=False)


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun: "1 face", "2 faces", "2 people"; `many` is the plural, `one` with an s if None."""
    return f"{number} {one if number == 1 else many or one + 's'}"
