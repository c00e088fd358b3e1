"""What a batch did, a line of JSON for each file: the record of the job, and what a second run goes on from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import FidError
from ..weights.records import decode
from .places import Folder, Item, Place

NAME = "manifest"  # of the file, and how the names of shards' files begin
SUFFIX = ".jsonl"


@dataclass(frozen=True)
class Line:
    """What became of one file."""

    input: str  # below the folder of inputs
    output: str  # below the folder of results
    size: int  # bytes of the input
    changed: str  # see `places.Item`
    made_of: str  # digest of everything else that the output depends on
    sha256: str | None = None  # of the input; None where it could not be read
    seconds: float = 0.0
    engine: str = ""  # what computed
    faces: int | None = None  # composed or replaced; None where nobody counted
    fallback: str | None = None  # one sentence where the engine is not the one that was asked for
    error: str | None = None  # one sentence; None: the output is there
    more: dict[str, Any] = field(default_factory=dict)  # of this kind of job


def manifest_name(shard: tuple[int, int] | None) -> str:
    """Return the name of the manifest of a run, or of its shard I of N."""
    return f"{NAME}{SUFFIX}" if shard is None else f"{NAME}-{shard[0]}-of-{shard[1]}{SUFFIX}"


def read_manifests(target: Place, names: list[str]) -> dict[str, Line]:
    """Return the newest line of each input from all manifests of former runs; what is done counts before what failed.

    The last line of a run that was killed may be half; it is passed over.
    """
    lines: dict[str, Line] = {}
    for name in sorted(names):
        with target.reading(name) as path:
            for line in _lines(path):
                known = lines.get(line.input)
                if known is None or line.error is None or known.error is not None:
                    lines[line.input] = line
    return lines


def _lines(path: Path) -> Iterator[Line]:
    with path.open("rb") as file:
        for row in file:
            try:
                yield decode(row, Line)
            except FidError:
                continue


class Manifest:
    """The manifest that a run writes: a line at a time, on the disk before the next file is taken."""

    def __init__(self, target: Place, name: str) -> None:
        """Opens the file to go on with it. `FidError` when it cannot be written."""
        self._log = target.open_log(name)

    def add(self, line: Line) -> None:
        """Write one line. `FidError` when the disk refuses."""
        self._log.add(json.dumps(asdict(line), ensure_ascii=False).encode("utf-8", "surrogateescape"))

    def __enter__(self) -> Manifest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.close()


def is_done(line: Line, item: Item, made_of: str, outputs: set[str], source: Place) -> bool:
    """Return whether a former run did this very file with these settings, and its result is there.

    A file of another time of change is the same if its bytes are.
    """
    if line.error is not None or line.made_of != made_of or line.output not in outputs:
        return False
    if line.size != item.size:
        return False
    if line.changed == item.changed:
        return True
    return isinstance(source, Folder) and line.sha256 == sha256_of(source.path / item.name)


def sha256_of(path: Path) -> str | None:
    """Return the SHA-256 of a file; None when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
