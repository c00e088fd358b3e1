"""Where the files of a batch lie and where its results go: a folder, or an address that fsspec knows (`s3://`, `gs://`).

An address is read and written through local temporary files, so every job sees plain paths.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..errors import FidError, InputError


@dataclass(frozen=True)
class Item:
    """One file of a place."""

    name: str  # below the place, with "/" between folders
    size: int  # bytes
    changed: str  # when or as what it was written: another text, another file


class Place(Protocol):
    """A folder, here or elsewhere."""

    def items(self) -> Iterator[Item]:
        """Yield every file in it and below it, without hidden ones."""
        ...

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        """Give a local file with the content of a file; `FidError` when it cannot be had."""
        ...

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Give a local path to write; what lies there at the end is the file of that name, whole or not at all."""
        ...


@dataclass(frozen=True)
class Folder:
    """A folder of this machine, or one that all machines share."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def items(self) -> Iterator[Item]:
        """See `Place.items`."""
        folders = [(self.path, "")]
        while folders:
            folder, prefix = folders.pop()
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append((Path(entry.path), f"{prefix}{entry.name}/"))
                    elif entry.is_file():
                        status = entry.stat()
                        yield Item(f"{prefix}{entry.name}", status.st_size, str(status.st_mtime_ns))

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        """See `Place.reading`."""
        yield self.path / name

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """See `Place.writing`. Who writes there replaces the file at the end, as everything in fid does."""
        path = self.path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FidError(f"the folder {path.parent} cannot be made: {error.strerror or error}.") from error
        yield path


def source_place(address: str) -> Place:
    """Return where the inputs lie. Raises `InputError` for a folder that does not exist."""
    path = Path(address)
    if not path.exists():
        raise InputError(f"{address} does not exist.")
    if not path.is_dir():
        raise InputError(f"{address} is a file; batch takes a folder.")
    return Folder(path.absolute())


def target_place(address: str) -> Place:
    """Return where the results go; a folder is made. Raises `InputError` where that cannot be."""
    path = Path(address).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"{address} is a file; give a folder.") from None
    except OSError as error:
        raise InputError(f"the folder {address} cannot be made: {error.strerror or error}.") from error
    return Folder(path)
