"""A session is one graph on one engine. All engines look the same from here on, and say truthfully what runs."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .bundle import Tensor
from .errors import FidError, InputError

ENGINES = ("auto", "onnxruntime", "cuda", "openvino", "openvino-bf16")
"""What `open_session` takes as `engine`.

`auto`: ONNX Runtime, on CUDA where its build has CUDA and CUDA works, else on the CPU. `onnxruntime`: on the CPU.
`cuda`: ONNX Runtime on CUDA. `openvino`: on the CPU in float32. `openvino-bf16`: bfloat16 where the CPU has it.
"""


class Session(Protocol):
    """One graph on one engine. `run` may be called from several threads."""

    @property
    def provider(self) -> str:
        """What the graph really runs on: engine, device and, when there is a choice, precision ("openvino CPU f32")."""
        ...

    @property
    def fallback(self) -> str | None:
        """One sentence when this is not what was asked for, else None."""
        ...

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Name, shape and dtype of each input; "batch" stands for any size."""
        ...

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Name, shape and dtype of each output."""
        ...

    def run(self, **arrays: NDArray) -> dict[str, NDArray]:
        """Outputs by name, for all inputs by name. The arrays belong to the caller.

        Raises ValueError when a name, a dtype or a shape does not fit.
        """
        ...


def open_session(
    path: Path | str,
    *,
    half: Path | str | None = None,
    engine: str = "auto",
    require: str | None = None,
    threads: int | None = None,
    static_batch: int | None = None,
) -> Session:
    """Open the ONNX graph at `path`; external weights lie beside it. `half` is the same graph typed in FP16, which
    engines on a GPU take in its place.

    engine: one of `ENGINES`. require: an engine, device or precision ("cuda", "openvino", "bf16", "tensorrt") that must
    be what runs; with engine `auto` it also chooses. threads: at most so many CPU threads, None for one per
    physical core. static_batch: the batch size to build for at once, for engines that build per size.

    Raises InputError for an unknown engine; FidError in one sentence when the engine is not installed, the graph
    cannot be read, or something else than `require` would run.
    """
    if engine not in ENGINES:
        raise InputError(f"there is no engine {engine!r}; known are {', '.join(ENGINES)}.")
    if threads is not None and threads < 1:
        raise InputError(f"{threads} threads cannot run anything; give at least 1.")
    if engine == "auto" and require in ENGINES:
        engine = require
    if not Path(path).is_file():
        raise FidError(f"there is no graph {path}.")
    count = threads or physical_cores()
    if engine.startswith("openvino"):
        from .session_openvino import OpenVINOSession

        session = OpenVINOSession(path, "bf16" if engine.endswith("bf16") else "f32", count, static_batch)
    else:
        from .session_onnxruntime import OnnxRuntimeSession

        device = {"onnxruntime": "CPU", "cuda": "CUDA"}.get(engine, "auto")
        session = OnnxRuntimeSession(path, device, count, half)
    if require is not None and not satisfies(session.provider, require):
        raise FidError(f"{require} is required and {session.provider} is what runs{_because(session)}.")
    return session


def satisfies(provider: str, require: str) -> bool:
    """Whether a live provider ("onnxruntime CUDA") is what a name asks for ("cuda", "onnxruntime-cuda")."""
    return set(require.lower().replace("-", " ").split()) <= set(provider.lower().split())


def _because(session: Session) -> str:
    return "" if session.fallback is None else f" ({session.fallback.rstrip('.')})"


def check_inputs(inputs: tuple[Tensor, ...], arrays: dict[str, NDArray]) -> None:
    """ValueError in one sentence unless the arrays are exactly these inputs, with one batch size for all."""
    wanted = {tensor.name: tensor for tensor in inputs}
    if arrays.keys() != wanted.keys():
        raise ValueError(f"the graph takes {', '.join(wanted)}; it was given {', '.join(arrays) or 'nothing'}.")
    sizes: dict[str, int] = {}
    for name, tensor in wanted.items():
        array = arrays[name]
        if not isinstance(array, np.ndarray) or array.dtype.name != tensor.dtype:
            found = array.dtype.name if isinstance(array, np.ndarray) else type(array).__name__
            raise ValueError(f"{name} must be an array of {tensor.dtype}; it is {found}.")
        fits = array.ndim == len(tensor.shape) and all(
            size == sizes.setdefault(want, size) if isinstance(want, str) else size == want
            for size, want in zip(array.shape, tensor.shape, strict=True)
        )
        if not fits or array.size == 0:
            raise ValueError(f"{name} must have shape {_text(tensor.shape)}; it has {_text(array.shape)}.")


def _text(shape: tuple[int | str, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def physical_cores() -> int:
    """CPU cores this process may use, hyper-threads counted once, a container's CPU quota respected; at least 1."""
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
