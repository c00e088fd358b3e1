"""The cache of TensorRT engines: what an engine was built from names it, and what was not built here is not loaded.

Loading a plan runs native code. So engines lie in a folder that only this user can enter; every manifest is signed with
a secret of this folder; and a plan is loaded only when its SHA-256 is the one in its manifest. A plan from elsewhere,
an edited manifest or a damaged file is built anew, and so is an engine for another driver, GPU or library.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import FidError
from ...files import new_file
from ...terminal import make_console
from ...weights.cache import cache_folder, locked, new_folder, plain_disk_errors
from ...weights.records import convert, decode

RECIPE = 1
"""Counts up when the same graph would be built into another engine, so that cached ones are built anew."""

MAX_BYTES = 4 << 30
"""Beyond this the engines that were not used for longest are removed."""

PLAN, MANIFEST = "engine.plan", "manifest.json"


@dataclass(frozen=True)
class Key:
    """Everything that an engine depends on."""

    graph: str  # SHA-256 of the ONNX file and of the files that hold its weights
    precision: str  # of the arithmetic, as typed in the graph: "fp32" or "fp16"
    batch: str  # "MIN:OPT:MAX"
    flags: str  # of the builder
    library: str  # "tensorrt" or "tensorrt-rtx"
    version: str  # of the library
    compute_capability: str  # "8.9"; for TensorRT-RTX all that the engine is for: "80 86 89 120"
    gpu: str  # name; "" where the engine is not tied to one
    driver: str  # version of the NVIDIA driver; "" as above
    cuda: str  # newest CUDA that the driver knows; "" as above
    recipe: int = RECIPE

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that name the engine."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Engine:
    """A plan that was built here, and what its manifest says of it."""

    key: Key
    name: str  # of the graph
    plan: bytes  # b"" when it was refused
    build_s: float
    checked: dict[str, float | None] | None = None  # figures of the comparison with FP32; None before one on a GPU
    refused: str | None = None  # why it must not be used


def obtain(key: Key, name: str, make: Callable[[Callable[[float], None]], bytes]) -> Engine:
    """Return the engine for `key`, from the cache, or built by `make` and kept. A second process waits for the first.

    `make` receives a function to tell the share that is done (0 to 1) and returns the plan. Before it runs, one line on
    stderr says why and how long it may take. What `make` raises goes through, and nothing is left behind.
    """
    with locked(
        f"engine-{key.digest}", lambda: _say(f"waiting for another process, which builds the {_title(key, name)}")
    ):
        found, problem = _read(key.digest)
        if found is not None and found.key == key:
            os.utime(_folder() / key.digest / MANIFEST)  # the one used last is removed last
            return found
        why = problem or _what_changed(key, name)
        start = time.monotonic()
        with _showing(f"building the {_title(key, name)}", why, _estimate(key, name)) as watch:
            plan = make(watch)
        engine = Engine(key, name, plan, round(time.monotonic() - start, 1))
        _write(engine)
    _make_room(keep=key.digest)
    return engine


def similar(key: Key) -> Key:
    """Return `key`, or that of an engine in the cache which differs in nothing but a range of batch sizes from 1 on:
    one that was exported with other sizes serves as well."""
    if not (_folder() / key.digest / MANIFEST).is_file():
        for engine in _engines():
            serves = replace(engine.key, batch=key.batch) == key and engine.key.batch.startswith("1:")
            if serves and engine.refused is None:
                return engine.key
    return key


def mark(engine: Engine, checked: dict[str, float], refused: str | None) -> Engine:
    """Keep the result of the comparison with FP32. A refused engine loses its plan and is not built again."""
    finite: dict[str, float | None] = {name: x if math.isfinite(x) else None for name, x in checked.items()}  # for JSON
    marked = replace(engine, checked=finite, refused=refused, plan=b"" if refused else engine.plan)
    with locked(f"engine-{engine.key.digest}"):
        _write(marked)
    return marked


def discard(key: Key) -> None:
    """Remove an engine, because it does not load."""
    with locked(f"engine-{key.digest}"):
        shutil.rmtree(_folder() / key.digest, ignore_errors=True)


def read_sealed(name: str) -> bytes:
    """Return the content that `write_sealed` kept under a name; b"" when there is none, or it was not written here."""
    try:
        content = (_folder() / name).read_bytes()
    except OSError:
        return b""
    return content[32:] if hmac.compare_digest(content[:32], _seal(content[32:])) else b""


def write_sealed(name: str, content: bytes) -> None:
    """Keep what a library wants to find again: timings, or kernels that it finished here."""
    target = _folder() / name
    with (
        locked(name),
        plain_disk_errors("keeping what the GPU library learned", target.parent),
        new_file(target) as file,
    ):
        file.write_bytes(_seal(content) + content)


def _folder() -> Path:
    """The private folder. One that others could write to holds nothing to be trusted: its secret is drawn anew."""
    folder = cache_folder("engines")
    with plain_disk_errors("making the cache of engines", folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        found = os.lstat(folder)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise FidError(
                f"{folder} is not a folder of yours, and engines, which are native code, are loaded from nowhere else; "
                "let FID_CACHE name another place."
            )
        if stat.S_IMODE(found.st_mode) != 0o700:
            os.chmod(folder, 0o700)
            if found.st_mode & 0o022:
                (folder / "secret").unlink(missing_ok=True)
    return folder


def _seal(content: bytes) -> bytes:
    """HMAC-SHA256 with the secret of this folder, which is drawn when it is first needed."""
    path = _folder() / "secret"
    try:
        secret = path.read_bytes()
    except FileNotFoundError:
        with locked("engines-secret"):
            if not path.is_file():
                with new_file(path) as file:
                    file.touch(mode=0o600)
                    file.write_bytes(secrets.token_bytes(32))
            secret = path.read_bytes()
    return hmac.digest(secret, content, "sha256")


def _write(engine: Engine) -> None:
    target = _folder() / engine.key.digest
    record: dict[str, Any] = {
        **asdict(engine.key),
        "name": engine.name,
        "plan_sha256": hashlib.sha256(engine.plan).hexdigest(),
        "build_s": engine.build_s,
        "checked": engine.checked,
        "refused": engine.refused,
    }
    seal = _seal(_canonical(record)).hex()
    with plain_disk_errors("keeping the engine", target.parent), new_folder(target) as folder:
        (folder / PLAN).write_bytes(engine.plan)
        (folder / MANIFEST).write_text(json.dumps({**record, "seal": seal}, indent=1) + "\n")


def _read(digest: str) -> tuple[Engine | None, str]:
    """The engine of that name, or None and why it cannot be used ("" when there is none). Reads the whole plan."""
    folder = _folder() / digest
    if not folder.exists():
        return None, ""
    try:
        record = _signed(folder)
        plan = (folder / PLAN).read_bytes()
        if hashlib.sha256(plan).hexdigest() != record.pop("plan_sha256"):
            return None, "the plan in the cache is not the one that was built here"
        return _engine(record, plan), ""
    except (OSError, ValueError, KeyError, FidError):
        return None, "the manifest in the cache is not the one that was written here"


def _signed(folder: Path) -> dict[str, Any]:
    """The content of a manifest; ValueError unless it was signed here."""
    record = decode((folder / MANIFEST).read_bytes(), dict[str, Any])
    seal = bytes.fromhex(str(record.pop("seal", "")))
    if not hmac.compare_digest(seal, _seal(_canonical(record))):
        raise ValueError("not signed here")
    return record


def _engine(record: dict[str, Any], plan: bytes) -> Engine:
    return convert({**record, "key": record, "plan": plan}, Engine)


def _engines() -> Iterator[Engine]:
    """All engines with a signed manifest, newest first, without their plans."""
    folders = [path.parent for path in _folder().glob(f"*/{MANIFEST}")]
    for folder in sorted(folders, key=lambda folder: (folder / MANIFEST).stat().st_mtime, reverse=True):
        try:
            record = _signed(folder)
            record.pop("plan_sha256")
            yield _engine(record, b"")
        except (OSError, ValueError, KeyError, FidError):
            continue


def _canonical(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True).encode()


def _what_changed(key: Key, name: str) -> str:
    """What differs from the engine of this graph that is most like it, as half a sentence; "" without any."""
    wanted = asdict(key)
    differing = [
        {field: value for field, value in asdict(engine.key).items() if value != wanted[field]}
        for engine in _engines()
        if (engine.name, engine.key.library) == (name, key.library)
    ]
    if not differing:
        return ""
    words = {"graph": "its graph changed", "recipe": "fid builds it in another way now"}
    changes = [
        words.get(field, f"{field.replace('_', ' ')} was {old or 'any'} and is {wanted[field] or 'any'}")
        for field, old in min(differing, key=len).items()
    ]
    return ", ".join(changes[:3])


def _estimate(key: Key, name: str) -> str:
    """How long a build takes, from the last one of this graph with this library."""
    for engine in _engines():
        if (engine.name, engine.key.library) == (name, key.library):
            return f"about {max(1, round(engine.build_s))} s, as the last time"
    return "up to a minute" if key.library == "tensorrt-rtx" else "up to some minutes"


def _title(key: Key, name: str) -> str:
    from .build import TITLES

    return f"{TITLES[key.library]} engine of {name}, {key.precision}, batch {key.batch}"


def _make_room(keep: str) -> None:
    """Remove engines, the one not used for longest first, until the rest fits."""
    folders = [path.parent for path in _folder().glob(f"*/{MANIFEST}")]
    folders.sort(key=lambda folder: (folder / MANIFEST).stat().st_mtime, reverse=True)
    total = 0
    for folder in folders:
        total += sum(path.stat().st_size for path in folder.iterdir())
        if total > MAX_BYTES and folder.name != keep:
            with locked(f"engine-{folder.name}"):
                shutil.rmtree(folder, ignore_errors=True)


def _say(line: str) -> None:
    make_console(stderr=True).print(f"fid: {line}")


@contextmanager
def _showing(what: str, why: str, estimate: str) -> Iterator[Callable[[float], None]]:
    """Say one line, and draw a bar beneath it where somebody watches."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    _say(f"{what}{f' ({why})' if why else ''}: {estimate}")
    console = make_console(stderr=True)
    if not console.is_terminal:
        yield lambda share: None
        return
    columns = (TextColumn("building"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda share: bar.update(task, completed=share)
