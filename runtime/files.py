"""Write files so that a name always stands for a whole file: aside first, then one rename."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import FidError


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, with the same ending; the file becomes `path` in one rename when the block
    ends well, and goes when it raises.

    What a killed process of this machine left beside `path` goes as well. Raises OSError as the disk does.
    """
    _remove_orphans(path)
    temporary = path.with_name(f"{_head(path)}{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name as `new_file` does, for a file that a user asked for: `FidError`, one sentence, in the
    place of OSError."""
    try:
        with new_file(path) as temporary:
            yield temporary
    except OSError as error:
        raise FidError(f"{path} could not be written: {error.strerror or error}.") from error


def _head(path: Path) -> str:
    """How temporary names for `path` begin: with this machine, because a shared folder is written by several."""
    machine = re.sub(r"[^A-Za-z0-9-]", "-", platform.node())[:64]
    return f".{path.stem}.{machine}-"


def _remove_orphans(path: Path) -> None:
    """Remove what processes wrote for `path` that no longer run."""
    if os.name != "posix" or not path.parent.is_dir():  # elsewhere, asking whether a process runs may end it
        return
    head = _head(path)
    for name in os.listdir(path.parent):
        found = re.match(r"([0-9]{1,9})\.part", name.removeprefix(head)) if name.startswith(head) else None
        if found and not _runs(int(found[1])):
            (path.parent / name).unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True
