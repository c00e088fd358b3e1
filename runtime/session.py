"""A session is one graph on one engine. All engines look the same from here on, and say truthfully what runs."""

from __future__ import annotations

import math
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .bundle import Tensor
from .choice import remembered
from .errors import FidError, InputError

ENGINES = ("auto", "tensorrt", "tensorrt-rtx", "cuda", "onnxruntime", "openvino", "openvino-bf16")
"""What `open_session` takes as `engine`.

`auto`: the first of `GPU_ENGINES` that is installed and works, else the CPU engine that `fid-run bench` found faster
for the graph, ONNX Runtime until it has run. `tensorrt`, `tensorrt-rtx`: NVIDIA's builders, on the GPU. `cuda`: ONNX
Runtime on CUDA. `onnxruntime`: on the CPU. `openvino`: on the CPU in float32. `openvino-bf16`: bfloat16 where the CPU
has it.
"""

GPU_ENGINES = ("tensorrt", "tensorrt-rtx", "cuda")
"""In the order in which `auto` tries them, and in which one that fails gives way to the next."""


class Session(Protocol):
    """One graph on one engine. `run` may be called from several threads."""

    @property
    def provider(self) -> str:
        """What the graph really runs on: engine, device and, when there is a choice, precision ("openvino CPU f32")."""
        ...

    fallback: str | None
    """One sentence when this is not what was asked for, or an installed GPU engine does not work; else None."""

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
    engine: str = "auto",
    require: str | None = None,
    threads: int | None = None,
    static_batch: int | None = None,
    half: Path | None = None,
) -> Session:
    """Open the ONNX graph at `path`; external weights lie beside it.

    engine: one of `ENGINES`. require: an engine, device or precision ("cuda", "openvino", "bf16", "tensorrt") that must
    be what runs; with engine `auto` it also chooses. threads: at most so many CPU threads, None for one per
    physical core. static_batch: the batch size to build for at once, for engines that build per size. half: the same
    graph typed in FP16, which GPU engines open in the place of `path` where they can.

    A GPU engine that is installed and does not work here (no driver, no memory, a result that falls short) gives way to
    the next one and at last to the CPU; `fallback` of the session says why. Raises InputError for an unknown engine;
    FidError in one sentence when the engine is not installed, the graph cannot be read, or something else than
    `require` would run.
    """
    if Path(path).suffix in (".plan", ".engine", ".trt"):
        raise InputError(
            f"{path} is an engine, which is native code: only those built here are loaded; give the graph."
        )
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

        session = OpenVINOSession(path, _precision(engine), count, static_batch)
    elif engine == "onnxruntime":
        from .session_onnxruntime import OnnxRuntimeSession

        session = OnnxRuntimeSession(path, "CPU", count)
    else:
        session = _on_gpu(Path(path), half, engine, count, static_batch)
    if require is not None and not satisfies(session.provider, require):
        raise FidError(f"{require} is required and {session.provider} is what runs{_because(session)}.")
    return session


def _on_gpu(path: Path, half: Path | None, engine: str, threads: int, static_batch: int | None) -> Session:
    """A session on `engine`, or on the first that works of those after it; with "auto" only installed ones count."""
    named = engine != "auto"
    reason = ""  # the first: without a driver, all that follow are the same
    session: Session | None = None
    for candidate in GPU_ENGINES[GPU_ENGINES.index(engine) if named else 0 :]:
        if not installed(candidate):
            if candidate == engine:
                raise FidError(_how_to_install(candidate))
            continue
        for graph in dict.fromkeys((half or path, path)):
            try:
                session = _open_on_gpu(graph, path, candidate, threads, static_batch)
                break
            except FidError as error:
                typed = " in FP16" if graph == half else ""
                reason = reason or f"{candidate} does not work here{typed}: {str(error).rstrip('.')}"
        if session is not None:
            break
    session = session or _on_cpu(path, threads, static_batch)
    if reason:
        session.fallback = f"{reason}; {session.provider} runs in its place."
    return session


def _on_cpu(path: Path, threads: int, static_batch: int | None) -> Session:
    """A session on the faster CPU engine for a graph; where that does not open, on ONNX Runtime."""
    from .session_onnxruntime import OnnxRuntimeSession

    engine = remembered(path.stem)
    if engine.startswith("openvino"):
        from .session_openvino import OpenVINOSession

        try:
            return OpenVINOSession(path, _precision(engine), threads, static_batch)
        except FidError as error:
            session = OnnxRuntimeSession(path, "CPU", threads)
            session.fallback = (
                f"openvino does not work here: {str(error).rstrip('.')}; {session.provider} runs instead."
            )
            return session
    return OnnxRuntimeSession(path, "CPU", threads)


def _precision(engine: str) -> str:
    return "bf16" if engine.endswith("bf16") else "f32"


def _open_on_gpu(graph: Path, reference: Path, engine: str, threads: int, static_batch: int | None) -> Session:
    if engine == "cuda":
        from .session_onnxruntime import OnnxRuntimeSession

        return OnnxRuntimeSession(graph, "CUDA", threads)
    from .build_tensorrt import Batch
    from .session_tensorrt import TensorRTSession

    return TensorRTSession(graph, engine, None if static_batch is None else Batch(*[static_batch] * 3), reference)


def installed(engine: str) -> bool:
    """Whether the library of a GPU engine is here; it may still fail to load, or lack a driver."""
    if engine == "cuda":
        from .session_onnxruntime import has_cuda

        return has_cuda()
    return find_spec(engine.replace("-", "_")) is not None


def _how_to_install(engine: str) -> str:
    if engine == "cuda":
        from .session_onnxruntime import NO_CUDA

        return NO_CUDA
    from .build_tensorrt import TITLES

    return f"{TITLES[engine]} is not installed: `pip install 'fid-face[{engine}]'`."


def satisfies(provider: str, require: str) -> bool:
    """Whether a live provider ("onnxruntime CUDA") is what a name asks for ("cuda", "onnxruntime-cuda")."""

    def words(name: str) -> set[str]:
        return set(name.lower().replace("tensorrt-rtx", "tensorrt_rtx").replace("-", " ").split())

    return words(require) <= words(provider)


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
