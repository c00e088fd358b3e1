"""A group of commands that ends every foreseen failure with one sentence."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from ..errors import FidError


class OneLineErrors(click.Group):
    """A group that ends every foreseen failure with one line on stderr and its exit code, never with a traceback."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run the command line; see `click.Command.main`."""
        os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # what it has to say about a broken photo, fid says
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        try:
            result = super().main(*args, standalone_mode=False, **extra)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except click.Abort:
            click.echo("fid-run: stopped.", err=True)
            sys.exit(130)
        except FidError as error:
            click.echo(f"fid-run: {error}", err=True)
            sys.exit(error.exit_code)
        except MemoryError:
            click.echo("fid-run: there is not enough memory for this.", err=True)
            sys.exit(1)
        sys.exit(result if isinstance(result, int) else 0)
