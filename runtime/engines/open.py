"""A session is one graph on one engine. All engines look the same from here on, and say truthfully what runs."""

from __future__ import annotations

from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FidError, InputError
from ..face.detect import MIN_SCORE, Detector
from .machine import CPU_ENGINES, has_bf16, measured, measured_provider, physical_cores, remembered
from .session import Session
from .table import DEVICE_ENGINES, ENGINES, is_remote

if TYPE_CHECKING:
    from .tensorrt.build import Batch

GPU_ENGINES = ("tensorrt", "tensorrt-rtx", "cuda")
"""In the order in which `auto` tries them, and in which one that fails gives way to the next."""


def open_session(
    path: Path | str,
    *,
    engine: str = "auto",
    require: str | None = None,
    threads: int | None = None,
    static_batch: int | None = None,
    fp16_graph: Path | None = None,
    steady: Collection[str] = (),
) -> Session:
    """Open the ONNX graph at `path`; external weights lie beside it.

    engine: one of `ENGINES`, which `table.TABLE` explains, or triton://HOST:PORT. "auto": the first of `GPU_ENGINES`
    that is installed and works, else what `fid-run bench` found faster for the graph, ONNX Runtime on the CPU until it
    has run. require: an engine, device or precision ("cuda", "openvino", "bf16", "tensorrt") that must be what runs;
    with engine `auto` it also chooses. threads: at most so many CPU threads, None for one per physical core.
    static_batch: the batch size to build for at once, for engines that build per size. fp16_graph: the same typed in
    FP16, which GPU engines open in the place of `path` where they can. steady: inputs that stay the same over many
    runs; a CPU computes what hangs on them alone when they change, and not in every run.

    An engine for a GPU or NPU that is installed and does not work here (no driver, no memory, a result that falls
    short) gives way to the next one and at last to the CPU; `fallback` of the session says why. Raises InputError for
    an unknown engine; FidError in one sentence when the engine is not installed, the graph cannot be read, or something
    else than `require` would run.
    """
    if Path(path).suffix in (".plan", ".engine", ".trt"):
        raise InputError(
            f"{path} is an engine, which is native code: only those built here are loaded; give the graph."
        )
    if engine not in ENGINES and not is_remote(engine):
        raise InputError(f"there is no engine {engine!r}; known are {', '.join(ENGINES)} and triton://HOST:PORT.")
    if threads is not None and threads < 1:
        raise InputError(f"{threads} threads cannot run anything; give at least 1.")
    if engine == "auto" and require in ENGINES:
        engine = require
    if not Path(path).is_file():
        raise FidError(f"there is no graph {path}.")
    path = Path(path).resolve()  # installed as a link, a graph has its weights beside the file that it points to
    fp16_graph = None if fp16_graph is None else fp16_graph.resolve()
    count = threads or physical_cores()
    if is_remote(engine):
        from .triton import TritonSession

        session = TritonSession(path, engine)
    elif engine in DEVICE_ENGINES:
        session = _on_device(Path(path), engine, count, static_batch)
    elif engine.startswith("openvino"):
        from .ov import OpenVINOSession

        session = OpenVINOSession(path, _precision(engine), count, static_batch, steady=steady)
    elif engine == "onnxruntime":
        from .ort import OnnxRuntimeSession

        session = OnnxRuntimeSession(path, "CPU", count, steady=steady)
    else:
        session = _on_gpu(Path(path), fp16_graph, engine, count, static_batch)
    if engine == require == "openvino-int8" and session.fallback is None:
        require = "openvino"  # eight bits are for generators; other graphs have no products for it
    if require is not None and not satisfies(session.provider, require):
        raise FidError(f"{require} is required and {session.provider} is what runs{_because(session)}.")
    return session


def open_detector(min_score: float = MIN_SCORE, threads: int | None = None) -> Detector:
    """Return the face detector, YuNet on ONNX Runtime's CPU wherever the rest runs; it is fetched the first time.

    `min_score`: see `Detector`. `threads`: see `open_session`. FidError when it cannot be fetched or opened.
    """
    from ..weights.prepare import prepared
    from .ort import OnnxRuntimeSession

    session = OnnxRuntimeSession(prepared("detector"), "CPU", threads or physical_cores(), any_size=True)
    return Detector(lambda view: session.run(input=view), min_score)


def _on_gpu(path: Path, fp16_graph: Path | None, engine: str, threads: int, static_batch: int | None) -> Session:
    """A session on `engine`, or on the first that works of those after it; with "auto" only installed ones count."""
    named = engine != "auto"
    reason = ""  # the first: without a driver, all that follow are the same
    for candidate in GPU_ENGINES[GPU_ENGINES.index(engine) if named else 0 :]:
        if not installed(candidate):
            if candidate == engine:
                raise FidError(_how_to_install(candidate))
            continue
        for graph in dict.fromkeys((fp16_graph or path, path)):
            try:
                return _open_on_gpu(graph, path, candidate, threads, static_batch, reason)
            except FidError as error:
                typed = " in FP16" if graph == fp16_graph else ""
                reason = reason or f"{candidate} does not work here{typed}: {error}"
    return _on_cpu(path, threads, static_batch, reason)


def _on_device(path: Path, engine: str, threads: int, static_batch: int | None) -> Session:
    """A session on one of `DEVICE_ENGINES`; where that is installed and does not work, on the CPU."""
    from .devices import offered
    from .ort import OnnxRuntimeSession

    try:
        return _open_on_device(path, engine, threads, static_batch)
    except FidError as error:
        if not offered(engine):
            raise
        return OnnxRuntimeSession(path, "CPU", threads, str(error))


def _open_on_device(path: Path, engine: str, threads: int, static_batch: int | None, reason: str = "") -> Session:
    if engine.startswith("openvino:"):
        from .ov import OpenVINOSession

        return OpenVINOSession(path, "f16", threads, static_batch, reason, engine.partition(":")[2].upper())
    from .devices import DeviceSession

    return DeviceSession(path, engine, threads, reason)


def _on_measured_device(path: Path, engine: str, threads: int, static_batch: int | None, reason: str) -> Session:
    """A session on the device that was measured. FidError when it does not open, or another device answers."""
    session = _open_on_device(path, engine, threads, static_batch, reason)
    if session.provider != measured_provider(engine):
        raise FidError(f"{session.provider} has not been measured yet: run fid-run bench.")
    return session


def _on_cpu(path: Path, threads: int, static_batch: int | None, reason: str) -> Session:
    """A session on the engine that was found faster for a graph; where that does not open, on ONNX Runtime. `reason`:
    why no GPU engine runs that is installed, "" where none is."""
    from .ort import OnnxRuntimeSession

    engine = remembered(path.stem)
    if engine in DEVICE_ENGINES:
        try:
            return _on_measured_device(path, engine, threads, static_batch, reason)
        except FidError as error:
            reason = reason or str(error)
    elif engine.startswith("openvino"):
        from .ov import OpenVINOSession

        try:
            return OpenVINOSession(path, _precision(engine), threads, static_batch, reason)
        except FidError as error:
            reason = reason or f"openvino does not work here: {error}"
    return OnnxRuntimeSession(path, "CPU", threads, reason)


def _precision(engine: str) -> str:
    return engine.partition("-")[2] or "f32"


def _open_on_gpu(
    graph: Path, reference: Path, engine: str, threads: int, static_batch: int | None, reason: str
) -> Session:
    if engine == "cuda":
        from .ort import OnnxRuntimeSession

        return OnnxRuntimeSession(graph, "CUDA", threads, reason)
    from .tensorrt.build import Batch

    batch = None if static_batch is None else Batch(*[static_batch] * 3)
    return open_tensorrt(graph, engine, batch, reference, reason)


def open_tensorrt(
    path: Path, engine: str, batch: Batch | None = None, reference: Path | None = None, reason: str = ""
) -> Session:
    """Open a graph on "tensorrt" or "tensorrt-rtx", and compare an engine that is new with FP32.

    `batch`: see `TensorRTSession`. `reference`: the FP32 form of the graph at `path`; None for that graph itself, which
    a CPU computes in FP32 however it is typed. `reason`: why it runs in the place of another engine. Raises FidError in
    one sentence when the engine cannot be built or falls short.
    """
    from .compare import compare
    from .tensorrt.session import TensorRTSession

    session = TensorRTSession(path, engine, batch, reason)
    if not session.compared:
        session.judge(*compare(session, reference or path))
    return session


def quickest_for_gradients() -> str:
    """Return the CPU engine for `refine`: OpenVINO in bfloat16, which takes half as long as any in float32, where it is
    installed, the CPU has bfloat16, and nothing speaks against it that `fid-run bench` measured; else ONNX Runtime."""
    here = has_bf16() and find_spec("openvino") is not None
    return (
        "openvino-bf16"
        if here and measured("synthesis") in (None, "openvino-bf16", "openvino-int8")
        else CPU_ENGINES[0]
    )


def on_cpu(engine: str) -> bool:
    """Return whether a CPU surely computes what is opened with an engine; False where that has to be tried."""
    if engine != "auto":
        return engine in CPU_ENGINES
    devices = [remembered(graph) in DEVICE_ENGINES for graph in ("attributes", "mapper", "synthesis")]
    return not any(devices) and not any(map(installed, GPU_ENGINES))


def installed(engine: str) -> bool:
    """Return whether the library of a GPU engine is here; it may still fail to load, or lack a driver."""
    if engine == "cuda":
        from .ort import has_cuda

        return has_cuda()
    return find_spec(engine.replace("-", "_")) is not None


def _how_to_install(engine: str) -> str:
    if engine == "cuda":
        from .ort import NO_CUDA

        return NO_CUDA
    from .tensorrt.build import TITLES

    return f"{TITLES[engine]} is not installed: `pip install 'fid-face[{engine}]'`."


def satisfies(provider: str, require: str) -> bool:
    """Return whether a live provider ("onnxruntime CUDA") is what a name asks for ("cuda", "onnxruntime-cuda")."""

    def words(name: str) -> set[str]:
        return set(name.lower().replace("tensorrt-rtx", "tensorrt_rtx").replace("-", " ").replace(":", " ").split())

    return words(require) <= words(provider)


def _because(session: Session) -> str:
    return "" if session.fallback is None else f" ({session.fallback.rstrip('.')})"
