"""On which machine and from which code a figure was measured; for the records of the scripts beside this file."""

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("fid-face", "numpy", "onnxruntime", "opencv-python-headless", "openvino", "tensorrt-rtx", "torch")


def machine_record() -> dict[str, object]:
    """What a record needs so that its figures can be compared: code, time, processor, load and versions.

    `commit` ends in `+changes` when tracked files differ from it, and is None outside of a git checkout. `load_1min`
    is the load average at the moment of the call: call this before measuring.
    """
    return {
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_1min": round(os.getloadavg()[0], 2),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: version for name in LIBRARIES if (version := version_of(name)) is not None},
    }


def commit() -> str | None:
    """Abbreviated commit of the checkout, or None when git or the checkout is missing."""
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
    """Name of the processor as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def version_of(distribution: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
