"""How a command ends: every foreseen failure in one sentence, with its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

from ..errors import FidError


class OneLineErrors(click.Group):
    """A group that ends every foreseen failure with one line on stderr and its exit code, never with a traceback."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run the command line; see `click.Command.main`."""
        os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # what it has to say about a broken photo, fid says
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        end_with_one_line("fid-run", lambda: super(OneLineErrors, self).main(*args, standalone_mode=False, **extra))


def end_with_one_line(program: str, run: Callable[[], Any]) -> NoReturn:
    """Run a command line to its end and leave the process: 0 or what it returns, 2 for a wrong command line or input, 1
    for a failure, 130 for Ctrl-C; whatever was foreseen with one line on stderr and no traceback."""
    try:
        result = run()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as stop:  # click raises Abort from KeyboardInterrupt, which may say more
        click.echo(f"{program}: {str(stop.__cause__ or stop) or 'stopped.'}", err=True)
        sys.exit(130)
    except FidError as error:
        click.echo(f"{program}: {error}", err=True)
        sys.exit(error.exit_code)
    except MemoryError:
        click.echo(f"{program}: there is not enough memory for this.", err=True)
        sys.exit(1)
    sys.exit(result if isinstance(result, int) else 0)
