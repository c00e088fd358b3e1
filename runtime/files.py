"""Write files so that a name always stands for a whole file: aside first, then one rename."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from .errors import FidError

MACHINE = re.sub(r"[^A-Za-z0-9-]", "-", platform.node())[:64]  # in names, because several may share a folder


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, with the same ending; the file becomes `path` in one rename when the block
    ends well, and goes when it raises.

    What killed processes of this machine left in the folder goes as well. Raises OSError as the disk does.
    """
    _remove_orphans(path.parent.absolute())
    temporary = path.with_name(f".{path.stem}.{MACHINE}-{os.getpid()}.part{path.suffix}")
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


@cache
def _remove_orphans(folder: Path) -> None:
    """Remove what was written into a folder by processes that no longer run; once, because it may hold a million."""
    if os.name != "posix" or not folder.is_dir():  # elsewhere, asking whether a process runs may end it
        return
    ours = re.compile(rf"\..+\.{MACHINE}-([0-9]{{1,9}})\.part")
    for name in os.listdir(folder):
        found = ours.match(name)
        if found and not _runs(int(found[1])):
            (folder / name).unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True
