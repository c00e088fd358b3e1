"""Which engine `auto` takes for a graph where no NVIDIA engine works: what `fid-run bench` found faster here."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ..assets import installed_version
from ..errors import FidError
from ..files import new_file
from ..weights.cache import cache_folder, locked, plain_disk_errors
from ..weights.records import decode
from .table import DEVICE_ENGINES, TABLE

CPU_ENGINES = ("onnxruntime", "openvino", "openvino-bf16", "openvino-int8")
"""The first is the one to beat."""

MEASURED = (*CPU_ENGINES, *DEVICE_ENGINES)
"""What `auto` may take for a graph after `fid-run bench`."""

MARGIN = 0.95
"""Another engine has to need at most this share of the first one's time."""

M_ARENA_MAX = -8
"""glibc's number for how many places memory comes from (malloc.h)."""

LEAST_COSINE = 0.995
"""Identity cosine to the reference below which an engine is not taken, however fast it is."""


@dataclass(frozen=True)
class Measured:
    """What `fid-run bench` found, as engines.json keeps it."""

    machine: dict[str, str | None]  # see `_machine`
    graphs: dict[str, str]  # graph -> engine
    providers: dict[str, str] = field(default_factory=dict)  # engine -> what ran, with the device's name


def faster(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Graph -> the fastest of `MEASURED`, by the rows of `bench.bench`; {} unless the first of them and another have
    been measured."""
    found = {row["engine"]: row for row in rows if row["engine"] in MEASURED and "missing" not in row}
    first = found.pop(CPU_ENGINES[0], None)
    if first is None or not found:
        return {}
    accurate = [row for row in found.values() if row["identity_cosine"] >= LEAST_COSINE]
    result = {}
    for graph in ("attributes", "mapper", "synthesis"):
        times = {row["engine"]: row["stage_ms"][graph]["p50"] for row in accurate}
        best = min(times, key=times.__getitem__, default=CPU_ENGINES[0])
        wins = best in times and times[best] <= MARGIN * first["stage_ms"][graph]["p50"]
        result[graph] = best if wins else CPU_ENGINES[0]
    return result


def remember(graphs: Mapping[str, str], providers: Mapping[str, str] | None = None) -> Path:
    """Keep graph -> engine for this machine, these versions and these devices; returns the file.

    `providers`: for each engine what ran, as `Session.provider` says it.
    """
    path = _file()
    with plain_disk_errors("keeping the faster engines", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.name), new_file(path) as partial:
            partial.write_text(
                json.dumps(asdict(Measured(_machine(), dict(graphs), dict(providers or {}))), indent=1) + "\n"
            )
    _remembered.cache_clear()
    return path


def measured(graph: str) -> str | None:
    """Return the engine that was found faster for a graph ("synthesis", whether light or not); None where nothing was
    measured, or under other versions."""
    engine = _remembered(_file()).graphs.get(graph.removesuffix("-light"))
    return engine if engine in MEASURED else None


def remembered(graph: str) -> str:
    """Return the engine for a graph: `measured`, and ONNX Runtime where nothing was."""
    return measured(graph) or CPU_ENGINES[0]


def measured_provider(engine: str) -> str | None:
    """Return what ran when an engine was measured here, with the device's name; None when it was not."""
    return _remembered(_file()).providers.get(engine)


@cache
def _remembered(path: Path) -> Measured:
    try:
        kept = decode(path.read_bytes(), Measured)
    except (OSError, FidError):  # none, or not ours: measure again
        return Measured({}, {})
    return kept if kept.machine == _machine() else Measured({}, {})


def _file() -> Path:
    return cache_folder("engines.json")


def _machine() -> dict[str, str | None]:
    """What the outcome depends on."""
    packages = {package for row in TABLE if row.name in MEASURED for package in row.packages}
    return {"host": platform.node(), **{package: installed_version(package) for package in sorted(packages)}}


def return_freed_memory() -> None:
    """Return memory that was freed to the system, where the C library keeps it (glibc): opening sessions frees much."""
    gc.collect()  # a closed session may be part of a cycle
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def share_freed_memory() -> None:
    """Let all threads take memory from one place, where the C library would give each its own (glibc): what the thread
    that opened a session has freed is there for the others. For processes that compose on one thread."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


@cache
def processor_features() -> frozenset[str]:
    """Return what Linux says that the CPU can do ("avx512f", "avx512_bf16", "amx_bf16"); nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


def has_avx512() -> bool:
    """Return whether the CPU has AVX-512; where it cannot be told, no."""
    return "avx512f" in processor_features()


def has_bf16() -> bool:
    """Return whether the CPU multiplies in bfloat16; where it cannot be told, no."""
    return bool({"avx512_bf16", "amx_bf16"} & processor_features())


def has_vnni() -> bool:
    """Return whether the CPU multiplies eight bits quicker than floats, and sums them in 32; where it cannot be told,
    no."""
    return bool({"avx512_vnni", "avx_vnni", "amx_int8"} & processor_features())


def physical_cores() -> int:
    """Return the CPU cores this process may use, hyper-threads counted once, a container's CPU quota respected; at
    least 1."""
    allowed = os.sched_getaffinity(0) if sys.platform == "linux" else set(range(os.cpu_count() or 1))
    cores = set()
    for cpu in allowed:
        try:
            topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
            cores.add((topology / "thread_siblings_list").read_text())
        except OSError:  # not Linux, or hidden: count every CPU
            cores.add(cpu)
    count = len(cores)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no such file, or "max"
        pass
    return max(1, count)
