"""What the commands write to: lines are wrapped on a terminal only."""

from __future__ import annotations

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
            if self.file.isatty():
                return super().size
            return ConsoleDimensions(UNWRAPPED, 25)

    return Unwrapped(stderr=stderr, quiet=quiet, markup=markup, highlight=False)
