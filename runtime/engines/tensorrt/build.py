"""ONNX graph to a TensorRT engine, with full TensorRT (10.13 to 11) or with TensorRT for RTX: one code path.

Both libraries have nearly the same Python interface. What differs stands in this file and in `session`, at
every mention of `rtx`: full TensorRT measures kernels on the very GPU that the engine is for, and keeps the timings;
TensorRT-RTX compiles ahead of time for a list of compute capabilities, with or without a GPU, and finishes the kernels
where the engine is loaded. Precision is typed in the graph; TensorRT 11 knows no other way.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import FidError, InputError
from ...weights.cache import sha256
from ...weights.graph import external_files, read_graph

if TYPE_CHECKING:
    import onnx


RTX_TARGETS = ("80", "86", "89", "120")
"""Compute capabilities that TensorRT-RTX engines are built for: the GPUs named RTX 30 to RTX 50, and A100."""

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}


@dataclass(frozen=True)
class Batch:
    """Batch sizes of an engine: the smallest and largest that it takes, and the one that it is tuned for."""

    min: int = 1
    opt: int = 1
    max: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise InputError(f"batch sizes {self} are not in order: expected 1 <= MIN <= OPT <= MAX, such as 1:1:4.")

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"

    @classmethod
    def parse(cls, text: str) -> Batch:
        """From "MIN:OPT:MAX", or from one number for all three. Raises InputError."""
        if not re.fullmatch(r"[0-9]{1,5}(:[0-9]{1,5}:[0-9]{1,5})?", text):
            raise InputError(f"{text!r} are no batch sizes: expected MIN:OPT:MAX, such as 1:1:4, or one number.")
        sizes = [int(size) for size in text.split(":")]
        return cls(*(sizes * 3 if len(sizes) == 1 else sizes))


@dataclass(frozen=True)
class Library:
    """One of the two libraries, imported."""

    engine: str  # "tensorrt" or "tensorrt-rtx"
    trt: Any  # its Python module
    log: Any  # the one logger of this process; it keeps the last messages in `last`

    @property
    def rtx(self) -> bool:
        """Whether this is TensorRT-RTX."""
        return self.engine == "tensorrt-rtx"

    @property
    def version(self) -> str:
        """Version of the library, such as "11.4.0.106"."""
        return str(self.trt.__version__)

    def __str__(self) -> str:
        return f"{TITLES[self.engine]} {self.version}"

    def said(self) -> str:
        """Return the last errors that the library logged, as part of a sentence; forgets them."""
        lines = list(dict.fromkeys(self.log.last))
        self.log.last.clear()
        return "; ".join(lines)[:400].rstrip(".") or "it gives no reason"


@dataclass(frozen=True)
class Built:
    """An engine fresh from the builder."""

    plan: bytes
    timings: bytes  # the timing cache after the build; b"" for TensorRT-RTX


@dataclass(frozen=True)
class GraphFacts:
    """What the cache has to know of a graph."""

    sha256: str  # of the ONNX file and of the files that hold its weights
    precision: str  # of the arithmetic: "fp16" when any convolution or product is typed so, else "fp32"


def graph_facts(path: Path) -> GraphFacts:
    """Read what names the engine of the ONNX graph at `path`. Raises FidError when it is not one, or lacks a file."""
    import onnx

    model = _read(path)
    fp16 = {weight.name for weight in model.graph.initializer if weight.data_type == onnx.TensorProto.FLOAT16}
    typed = False
    for node in model.graph.node:
        if node.op_type == "Cast":
            to = next(attribute.i for attribute in node.attribute if attribute.name == "to")
            if to == onnx.TensorProto.FLOAT16:
                fp16.update(node.output)
        elif node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            typed = typed or any(name in fp16 for name in node.input)
    digest = hashlib.sha256(sha256(path).encode())
    try:
        for name in sorted(external_files(read_graph(path, weights=False))):
            digest.update(sha256(path.parent / name).encode())
    except OSError as error:
        raise FidError(f"{path.name} takes its weights from {error.filename}, which cannot be read.") from error
    return GraphFacts(digest.hexdigest(), "fp16" if typed else "fp32")


@cache
def library(engine: str) -> Library:
    """Import the library of "tensorrt" or "tensorrt-rtx". Raises FidError when it is not installed or broken."""
    try:
        trt = importlib.import_module(MODULES[engine])
        trt.Builder  # noqa: B018 - the lean runtime has none
    except (ImportError, OSError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == MODULES[engine]:
            reason = "is not installed"
        else:
            reason = f"cannot be imported ({str(error).splitlines()[0].rstrip('.')})"
        raise FidError(f"{TITLES[engine]} {reason}: `pip install 'fid-face[{engine}]'`.") from error

    class Log(trt.ILogger):
        """Keeps errors for the sentence of an exception; nothing is printed."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last: deque[str] = deque(maxlen=8)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.last.append(_plain(message))

    return Library(engine, trt, Log())


def build(
    lib: Library,
    path: Path,
    batch: Batch,
    *,
    targets: tuple[str, ...] = (),
    timings: bytes = b"",
    watch: Callable[[float], None] = lambda share: None,
) -> Built:
    """Build the ONNX graph at `path` for the batch sizes `batch`, which a graph without a dynamic batch ignores.

    targets: compute capabilities, for TensorRT-RTX. timings: a timing cache from an earlier build on this GPU, for full
    TensorRT. `watch` is called about four times a second with the share that is done, 0 to 1, as the library tells.

    Raises FidError in one sentence, with the names of the nodes, when the graph cannot be parsed or built. Ctrl-C
    stops the build within a step of it.
    """
    trt, log = lib.trt, lib.log
    log.last.clear()
    builder = trt.Builder(log)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # 10.x: a choice; later the only way
    network = builder.create_network(0 if flag is None or lib.rtx else 1 << int(flag))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(for_tensorrt(path).SerializeToString(), str(path)):
        raise FidError(f"{lib} cannot take {path.name}: {_parse_errors(parser)}.")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    dynamic = False
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        shape = tuple(tensor.shape)
        if -1 in shape:
            dynamic = True
            sizes = [
                tuple(size if side == -1 else side for side in shape) for size in (batch.min, batch.opt, batch.max)
            ]
            profile.set_shape(tensor.name, *sizes)
    if dynamic:
        config.add_optimization_profile(profile)
    if lib.rtx:
        config.set_flag(
            trt.BuilderFlag.REQUIRE_USER_ALLOCATION
        )  # memory at fixed places, so CUDA graphs can be captured
        config.num_compute_capabilities = len(targets)
        for i, target in enumerate(targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{target}"), i)
        known = None
    else:
        known = config.create_timing_cache(timings)
        if not config.set_timing_cache(known, False):  # of another GPU or version, or damaged
            known = config.create_timing_cache(b"")
            config.set_timing_cache(known, False)
    monitor = _monitor(trt)
    config.progress_monitor = monitor
    log.last.clear()
    plan = _in_thread(lambda: builder.build_serialized_network(network, config), monitor, watch)
    if plan is None:
        raise FidError(f"{lib} cannot build {path.name}: {lib.said()}.")
    spent = b"" if known is None else bytes(memoryview(config.get_timing_cache().serialize()))
    return Built(bytes(memoryview(plan)), spent)


def _in_thread(work: Callable[[], Any], monitor: Any, watch: Callable[[float], None]) -> Any:
    """Do `work` in a thread, so that this one can show progress and hear Ctrl-C, which then ends the work."""
    results: list[Any] = []
    failures: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:  # the bindings raise what they like; it belongs to the caller's thread
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.25)
            watch(monitor.share())
    except BaseException:
        monitor.stopped = True
        thread.join()  # the library is left in order; a second Ctrl-C goes without
        raise
    if failures:
        raise FidError(f"the builder failed: {str(failures[0]).splitlines()[0].rstrip('.')}.") from failures[0]
    return results[0]


def _monitor(trt: Any) -> Any:
    """An `IProgressMonitor` that adds up the phases, and ends the build once it is `stopped`."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stopped = False
            self._phases: dict[str, tuple[str | None, int, int]] = {}  # parent, steps, steps done
            self._lock = threading.Lock()

        def share(self) -> float:
            """Return 0 to 1."""
            with self._lock:
                whole, weight = 0.0, 1.0
                parent: str | None = None
                while True:  # from the outermost phase inwards, along the one that is under way
                    inner = [(name, p) for name, p in self._phases.items() if p[0] == parent]
                    if not inner:
                        return min(whole, 1.0)
                    parent, (_, steps, done) = inner[-1]
                    whole += weight * done / steps
                    weight /= steps

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._phases[phase_name] = (parent_phase or None, max(1, num_steps), 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                if phase_name in self._phases:
                    parent, steps, _ = self._phases[phase_name]
                    self._phases[phase_name] = (parent, steps, min(step + 1, steps))
            return not self.stopped

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                parent, steps, _ = self._phases.get(phase_name, (None, 1, 1))
                if parent is None:
                    self._phases[phase_name] = (parent, steps, steps)  # the outermost stays, done
                else:
                    self._phases.pop(phase_name, None)

    return Monitor()


def _parse_errors(parser: Any) -> str:
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    said = [f"node {e.node_name() or '?'} ({e.node_operator()}): {_plain(e.desc())}" for e in errors]
    return "; ".join(dict.fromkeys(said))[:600].rstrip(".") or "it gives no reason"


def _plain(message: str) -> str:
    """A message of the library on one line, without what it says of a missing GPU on the way."""
    lines = [line.strip() for line in message.splitlines() if line.strip() and "catchCudaError" not in line]
    return ", ".join(lines)


def _read(path: Path) -> onnx.ModelProto:
    """The graph without its weights; FidError when it is not one."""
    import onnx  # here: takes 0.4 s, which only those pay who use a GPU
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise FidError(f"{path.name} is not an ONNX graph.") from error
    if not model.graph.node:
        raise FidError(f"{path.name} is not an ONNX graph: it has no nodes.")
    return model


def for_tensorrt(path: Path) -> onnx.ModelProto:
    """Return the graph with its uint8 tensors where TensorRT takes them: at the very borders, touching nothing but a
    Cast.

    Our graphs transpose pictures while they are uint8, which on a CPU is the quarter of the work; here Transpose and
    Cast change places. Weights stay in the files beside the graph. Raises FidError when it is not an ONNX graph.
    """
    import onnx

    model = _read(path)
    graph, uint8 = model.graph, onnx.TensorProto.UINT8
    pictures = {port.name for port in graph.input if port.type.tensor_type.elem_type == uint8}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in graph.node:
        after = readers.get(node.output[0], []) if len(node.output) == 1 else []
        if len(after) != 1:
            continue
        first, second = node, after[0]
        order = (first.op_type, second.op_type)
        entering = order == ("Transpose", "Cast") and first.input[0] in pictures
        leaving = order == ("Cast", "Transpose") and any(a.name == "to" and a.i == uint8 for a in first.attribute)
        if entering or leaving:
            first.op_type, second.op_type = second.op_type, first.op_type
            attributes = [list(first.attribute), list(second.attribute)]
            for swapped, kept in zip((second, first), attributes, strict=True):
                copies = [type(a).FromString(a.SerializeToString()) for a in kept]
                del swapped.attribute[:]
                swapped.attribute.extend(copies)
    return model
