"""Where the files of a batch lie and where its results go: a folder, or an address that fsspec knows (`s3://`, `gs://`).

An address is read and written through local temporary files, so every job sees plain paths.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from ..errors import FidError, InputError

NO_FSSPEC = "addresses such as {address} need the ray extra: `pip install 'fid-face[ray]'`."
WHOLE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "memory"}
"""Protocols whose files appear when they are whole; others get a temporary name first."""
UPLOAD_S = 10.0  # seconds from one upload of a log to the next


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

    def has(self, name: str) -> bool:
        """Return whether there is a file of that name."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all that is in it, if it is there."""
        ...

    def open_log(self, name: str) -> Log:
        """Open a file of lines to add to, with those that it has; `FidError` when it cannot be written."""
        ...


class Log(Protocol):
    """A file that grows by lines."""

    def add(self, line: bytes) -> None:
        """Write one line, without its end; `FidError` when that fails."""
        ...

    def close(self) -> None:
        """Write what has not been written yet."""
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

    def has(self, name: str) -> bool:
        """See `Place.has`."""
        return (self.path / name).is_file()

    def remove(self, name: str) -> None:
        """See `Place.remove`."""
        path = self.path / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def open_log(self, name: str) -> FileLog:
        """See `Place.open_log`."""
        return FileLog(self.path / name)


class FileLog:
    """See `Log`. Each line is with the system before the next is taken."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("ab+")
            if self._file.tell():
                self._file.seek(-1, os.SEEK_END)
                if self._file.read(1) != b"\n":  # a run was killed within a line
                    self._file.write(b"\n")
        except OSError as error:
            raise FidError(f"{path} cannot be written: {error.strerror or error}.") from error

    def add(self, line: bytes) -> None:
        """See `Log.add`."""
        try:
            self._file.write(line + b"\n")
            self._file.flush()
        except OSError as error:
            raise FidError(f"{self._file.name} could not be written: {error.strerror or error}.") from error

    def close(self) -> None:
        """See `Log.close`."""
        self._file.close()


@dataclass(frozen=True)
class Address:
    """A folder that fsspec reaches, by its address such as "s3://bucket/folder"."""

    url: str

    def __str__(self) -> str:
        return self.url

    def _opened(self) -> tuple[Any, str]:
        """The file system, which fsspec keeps open, and the folder in it."""
        try:
            import fsspec
        except ImportError as error:
            raise FidError(NO_FSSPEC.format(address=self.url)) from error
        try:
            fs, root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:  # a package of its own is missing, or nobody knows the protocol
            raise InputError(f"{self.url} cannot be opened: {str(error).rstrip('.')}.") from error
        return fs, root.rstrip("/")

    def items(self) -> Iterator[Item]:
        """See `Place.items`."""
        fs, root = self._opened()
        with self._told("listed"):
            found = fs.find(root, detail=True) if fs.exists(root) else {}
        for path, info in found.items():
            name = path.removeprefix(root).lstrip("/")
            if not any(part.startswith(".") for part in PurePosixPath(name).parts):
                yield Item(name, int(info.get("size") or 0), _version(info))

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        """See `Place.reading`."""
        fs, root = self._opened()
        with tempfile.TemporaryDirectory(prefix="fid-") as folder:
            path = Path(folder) / PurePosixPath(name).name
            with self._told("read", name):
                fs.get_file(f"{root}/{name}", str(path))
            yield path

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """See `Place.writing`."""
        with tempfile.TemporaryDirectory(prefix="fid-") as folder:
            path = Path(folder) / PurePosixPath(name).name
            yield path
            self.upload(path, name)

    def upload(self, path: Path, name: str) -> None:
        """Put a local file there, under its name when it is whole."""
        fs, root = self._opened()
        target = PurePosixPath(f"{root}/{name}")
        protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        with self._told("written", name):
            fs.makedirs(str(target.parent), exist_ok=True)
            if protocols & WHOLE:
                fs.put_file(str(path), str(target))
            else:
                temporary = str(target.with_name(f".{target.name}.{os.getpid()}.part"))
                fs.put_file(str(path), temporary)
                fs.mv(temporary, str(target))

    @contextmanager
    def _told(self, done: str, name: str = "") -> Iterator[None]:
        """Whatever an fsspec package raises, in a sentence."""
        try:
            yield
        except Exception as error:  # each brings errors of its own
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            address = f"{self.url.rstrip('/')}/{name}" if name else self.url
            raise FidError(f"{address} could not be {done}: {reason}.") from error

    def has(self, name: str) -> bool:
        """See `Place.has`."""
        fs, root = self._opened()
        with self._told("looked at", name):
            return bool(fs.isfile(f"{root}/{name}"))

    def remove(self, name: str) -> None:
        """See `Place.remove`."""
        fs, root = self._opened()
        with self._told("removed", name):
            if fs.exists(f"{root}/{name}"):
                fs.rm(f"{root}/{name}", recursive=True)

    def open_log(self, name: str) -> UploadedLog:
        """See `Place.open_log`."""
        return UploadedLog(self, name)


class UploadedLog:
    """See `Log`. Written to a local file, which is uploaded now and then and at the end: a run that is killed may
    forget its last seconds, and does them again."""

    def __init__(self, place: Address, name: str) -> None:
        self._place, self._name = place, name
        self._folder = tempfile.TemporaryDirectory(prefix="fid-")
        self._path = Path(self._folder.name) / name
        if any(item.name == name for item in place.items()):
            with place.reading(name) as known:
                self._path.write_bytes(known.read_bytes())
        self._local, self._uploaded_s = FileLog(self._path), time.monotonic()

    def add(self, line: bytes) -> None:
        """See `Log.add`."""
        self._local.add(line)
        if time.monotonic() - self._uploaded_s > UPLOAD_S:
            self._place.upload(self._path, self._name)
            self._uploaded_s = time.monotonic()

    def close(self) -> None:
        """See `Log.close`."""
        self._local.close()
        self._place.upload(self._path, self._name)
        self._folder.cleanup()


def _version(info: dict[str, Any]) -> str:
    """What tells one content of a remote file from another, as far as its store says: a tag, or a time."""
    names = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "modified", "created")
    return next((str(info[name]) for name in names if info.get(name) is not None), "")


def source_place(address: str) -> Place:
    """Return where the inputs lie. Raises `InputError` for a folder that does not exist."""
    if "://" in address:
        return Address(address)
    path = Path(address)
    if not path.exists():
        raise InputError(f"{address} does not exist.")
    if not path.is_dir():
        raise InputError(f"{address} is a file; batch takes a folder.")
    return Folder(path.absolute())


def target_place(address: str) -> Place:
    """Return where the results go; a folder is made. Raises `InputError` where that cannot be."""
    if "://" in address:
        return Address(address)
    path = Path(address).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"{address} is a file; give a folder.") from None
    except OSError as error:
        raise InputError(f"the folder {address} cannot be made: {error.strerror or error}.") from error
    return Folder(path)
