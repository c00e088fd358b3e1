"""The user's cache folder: where fetched and prepared files live, written so that a crash or a second process cannot
leave half a file behind."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from ..errors import FidError


def cache_folder(*parts: str) -> Path:
    """Return `FID_CACHE` or the platform's user cache folder for fid, with `parts` joined on. Nothing is created."""
    root = os.environ.get("FID_CACHE") or platformdirs.user_cache_dir("fid", appauthor=False)
    return Path(root).expanduser().absolute().joinpath(*parts)


def sha256(path: Path) -> str:
    """Return SHA-256 of a file as 64 lower-case hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def plain_disk_errors(task: str, place: Path) -> Iterator[None]:
    """Turn the disk errors a user can do something about into one sentence. `task` reads like "storing the model"."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "the disk is full; free some space, or let FID_CACHE name a folder on another disk"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = "writing there is not allowed; let FID_CACHE name a folder you can write to"
        elif error.errno in (errno.ENOTDIR, errno.EEXIST):
            reason = "a file is in the way of a folder; let FID_CACHE name another folder"
        else:
            raise
        raise FidError(f"{task} in {place} failed: {reason}.") from error


@contextmanager
def locked(name: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock `name` of this cache; a second process (or thread) waits here until the first is done or dead.

    `waiting` is called once, before a wait.
    """
    from filelock import FileLock, Timeout  # here: takes 30 ms, and most starts find all in its place

    folder = cache_folder("locks")
    with plain_disk_errors("making the cache", folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / name)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            waiting()
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield `path` as an empty folder that is gone afterwards. Hold a lock: what a killed process left is removed."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder; it becomes `target` in one rename when the block ends well, and vanishes when the block
    raises. Hold a lock."""
    aside = target.parent / f".{target.name}"
    if (aside / "old").exists() and not target.exists():  # killed between the two renames
        os.rename(aside / "old", target)
    with scratch_folder(aside) as scratch:
        inner = scratch / "new"
        inner.mkdir()
        yield inner
        if target.exists():
            os.rename(target, scratch / "old")
        os.rename(inner, target)
