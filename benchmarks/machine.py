"""On which machine and from which code a figure was measured; for the records of the scripts beside this file."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from fid.runtime.assets import installed_version

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = (
    *("fid-face", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "opencv-python-headless", "openvino", "nncf"),
    *("torch", "tensorrt", "tensorrt-rtx", "cuda-python"),
)
FEATURES = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_tile")
"""Of the processor: what decides which kernels an engine takes."""


def machine_record() -> dict[str, object]:
    """Return what a record needs so that its figures can be compared: code, time, processor, load and versions.

    `commit` ends in `+changes` when tracked files differ from it, and is None outside of a git checkout. `load_1min`
    is the load average at the moment of the call: call this before measuring.
    """
    return {
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "cpu_features": [name for name in FEATURES if name in _cpu_flags()],
        "clock_mhz": _clock_mhz(),
        "gpu": gpu(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_1min": round(os.getloadavg()[0], 2),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: version for name in LIBRARIES if (version := installed_version(name)) is not None},
    }


def commit() -> str | None:
    """Return the abbreviated commit of the checkout, or None when git or the checkout is missing."""
    try:
        head = subprocess.run(
            ["git", "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+changes"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip()


def cpu_model() -> str:
    """Return the name of the processor as the system tells it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def gpu() -> str | None:
    """Return name, memory and driver of the first NVIDIA GPU as its driver tells them, or None."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()[0].strip() if done.stdout.strip() else None


def _cpuinfo(key: str) -> str:
    """The first value of a line of /proc/cpuinfo, "" where there is none."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _cpu_flags() -> list[str]:
    return _cpuinfo("flags").split()


def _clock_mhz() -> int | None:
    clock = _cpuinfo("cpu MHz")
    return round(float(clock)) if clock else None
