"""Sessions on ONNX Runtime: CPU everywhere, CUDA with the onnxruntime-gpu build.

On CUDA, inputs and outputs are bound to buffers that are allocated once for each batch size, and the work on the GPU is
recorded as a CUDA graph. Without NVIDIA's Python bindings of CUDA, ONNX Runtime copies for itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import threading
from collections.abc import Collection
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import FidError
from ..files import new_file
from ..tensor import Tensor
from ..weights.cache import cache_folder, locked
from .cuda import Buffers, Stream, gpu
from .machine import has_avx512
from .ort_forms import LARGEST_GRAPH, quick_forms
from .session import Recent, Steady, check_inputs, in_place_of

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # since 1.31 its import starts reporting to its maker
import onnxruntime as ort

DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}

SETTLING = 2
"""Runs on the CPU after which memory is given back: the first takes a block for every result, and the second, which
knows how long each is needed, one block for all."""

FORM = 2
"""Counts up when `ort_forms` makes another form of the same graph, so that kept ones are made anew."""

DEVICE = "cuda"
"""Where bound buffers lie, in ONNX Runtime's word."""

NO_CUDA = (
    "this build of ONNX Runtime has no CUDA: `pip install 'fid-face[gpu]'`, "
    "then `pip install --force-reinstall --no-deps onnxruntime-gpu`."  # both builds are one module: the last one stays
)


class OnnxRuntimeSession:
    """See `session.Session`. `device`: "CPU" or "CUDA". `reason`: why this engine runs in the place of another.
    `steady`: see `open.open_session`. `any_size`: pictures of many sizes come, and memory of the largest is not kept.

    Raises FidError when CUDA does not work.
    """

    def __init__(
        self,
        path: Path | str,
        device: str,
        threads: int,
        reason: str = "",
        steady: Collection[str] = (),
        any_size: bool = False,
    ) -> None:
        ort.set_default_logger_severity(4)  # failures come as exceptions; the log would reach the user's terminal
        self._reason = reason
        self._bound: _BoundRuns | None = None
        first: ort.InferenceSession | None = None  # of what hangs on steady inputs alone
        if device == "CUDA":
            if not has_cuda():
                raise FidError(NO_CUDA)
            try:
                gpu()
                bindings = True
            except FidError:  # no bindings, or no GPU: ONNX Runtime itself will tell
                bindings = False
            self._session, recorded = _open_on_cuda(path, threads, bindings)
        else:
            recorded = False
            self._session = _open(path, "CPUExecutionProvider", threads, steady=steady, arena=not any_size)
            forms = _forms(Path(path), steady)
            if forms[1]:
                first = _open(path, "CPUExecutionProvider", threads, model=forms[1])
        live = self._session.get_providers()[0].removesuffix("ExecutionProvider")
        self.provider = f"onnxruntime {live}"
        ports = self._session.get_inputs()
        if first is not None:
            made = {port.name for port in first.get_outputs()}
            ports = [*first.get_inputs(), *(port for port in ports if port.name not in made)]
        self.inputs = tuple(map(describe_tensor, ports))
        self.outputs = tuple(map(describe_tensor, self._session.get_outputs()))
        self._names = [tensor.name for tensor in self.outputs]
        self._steady = None if first is None else _steady(first)
        self._settling = iter(range(SETTLING if device == "CPU" and not any_size else 0))
        self._shrinking = ort.RunOptions()
        self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        if device == "CUDA" and bindings:
            self._bound = _BoundRuns(self._session, self.inputs, self.outputs, recorded)

    @property
    def fallback(self) -> str | None:
        """See `session.Session.fallback`."""
        return in_place_of(self._reason, self.provider)

    def run(self, **arrays: NDArray) -> dict[str, NDArray]:
        """See `session.Session.run`."""
        check_inputs(self.inputs, arrays)
        if self._bound is not None:
            return self._bound.run(arrays)
        options = None if next(self._settling, None) is None else self._shrinking
        if self._steady is not None:
            arrays |= self._steady.of(arrays)
        return dict(zip(self._names, map(np.asarray, self._session.run(self._names, arrays, options)), strict=True))


def _steady(first: ort.InferenceSession) -> Steady[dict[str, NDArray]]:
    """What `first` makes of its inputs, by name."""
    names = [port.name for port in first.get_outputs()]
    return Steady(
        (port.name for port in first.get_inputs()),
        lambda given: dict(zip(names, map(np.asarray, first.run(names, given)), strict=True)),
    )


class _BoundRuns:
    """Runs a CUDA session on buffers of our own, a set for each batch size."""

    def __init__(
        self, session: ort.InferenceSession, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], recorded: bool
    ) -> None:
        self._session, self._inputs, self._outputs = session, inputs, outputs
        self._recorded = recorded
        self._stream = Stream()
        self._ready = Recent(self._make, self._release)
        self._numbers = itertools.count(1)  # of the recorded graphs; never used twice
        self._lock = threading.Lock()

    def run(self, arrays: dict[str, NDArray]) -> dict[str, NDArray]:
        batch = next((len(arrays[t.name]) for t in self._inputs if "batch" in t.shape), 1)
        with self._lock:
            buffers, binding, options, _ = self._ready.at(batch)
            for name, array in arrays.items():
                buffers.send(name, array)
            self._stream.wait()  # ONNX Runtime works on a stream of its own, and is done when the call returns
            self._session.run_with_iobinding(binding, options)
            return buffers.fetch(tuple(t.name for t in self._outputs))

    def _release(self, made: tuple[Buffers, ort.IOBinding, ort.RunOptions, int]) -> None:
        if self._recorded and hasattr(self._session, "release_captured_graph"):
            self._session.release_captured_graph(made[3])

    def _make(self, batch: int) -> tuple[Buffers, ort.IOBinding, ort.RunOptions, int]:
        """Buffers on the GPU for a batch size, their binding, and the number of the graph recorded with them."""
        shapes = {
            t.name: (tuple(batch if isinstance(side, str) else side for side in t.shape), t.dtype)
            for t in (*self._inputs, *self._outputs)
        }
        buffers, binding, options = Buffers(shapes, self._stream), self._session.io_binding(), ort.RunOptions()
        number = next(self._numbers)
        if self._recorded:
            options.add_run_config_entry("gpu_graph_id", str(number))
        for t in self._inputs:
            shape, dtype = shapes[t.name]
            binding.bind_input(t.name, DEVICE, 0, np.dtype(dtype).type, shape, buffers.address(t.name))
        for t in self._outputs:
            shape, dtype = shapes[t.name]
            binding.bind_output(t.name, DEVICE, 0, np.dtype(dtype).type, shape, buffers.address(t.name))
        return buffers, binding, options, number


def has_cuda() -> bool:
    """Return whether this build of ONNX Runtime has CUDA, which says nothing about a GPU."""
    return "CUDAExecutionProvider" in ort.get_available_providers()


def _open_on_cuda(path: Path | str, threads: int, bindings: bool) -> tuple[ort.InferenceSession, bool]:
    """The session, and whether it records its work; a graph that cannot be recorded is opened without."""
    if bindings:
        try:
            return _open(path, "CUDAExecutionProvider", threads, {"enable_cuda_graph": "1"}), True
        except FidError:  # either it cannot be recorded, or it cannot be opened at all, which comes out next
            pass
    return _open(path, "CUDAExecutionProvider", threads), False


def session_options(threads: int) -> ort.SessionOptions:
    """Return how sessions run here."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle sessions leave the cores alone
    return options


def model_for(
    path: Path | str, provider: str, options: ort.SessionOptions, steady: Collection[str] = ()
) -> str | bytes:
    """Return what to open for the graph at `path`: the file, or on the CPU the same graph in the form that is faster
    there, without what hangs on the inputs `steady` alone."""
    rewritten = _forms(Path(path), steady)[0] if provider == "CPUExecutionProvider" else b""
    return _with_weights(path, rewritten, options) if rewritten else str(path)


def _with_weights(path: Path | str, model: bytes, options: ort.SessionOptions) -> bytes:
    """Return a model whose external weights lie beside `path`, and tell the options so."""
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(Path(path).parent))
    return model


def _forms(path: Path, steady: Collection[str]) -> tuple[bytes, bytes]:
    """`quick_forms` of a graph, kept in the user's cache, because making them takes `onnx`: 0.4 s and 30 MB."""
    products = not has_avx512()
    if path.stat().st_size > LARGEST_GRAPH or not (products or steady):  # only a graph with a gradient has slopes
        return b"", b""
    asked = f"{FORM} {products} {sorted(steady)} ".encode()
    key = hashlib.sha256(asked + path.read_bytes()).hexdigest()[:32]
    kept = [cache_folder("forms", f"{key}{end}.onnx") for end in ("", *(["-first"] if steady else []))]
    try:
        found = [place.read_bytes() for place in kept]  # empty: the graph has no such form
        return found[0], b"".join(found[1:])
    except OSError:
        pass
    made = quick_forms(path, products=products, steady=steady)
    with (
        contextlib.suppress(OSError, FidError),
        locked(kept[0].name),
    ):  # a full or read-only disk only costs the time again
        kept[0].parent.mkdir(parents=True, exist_ok=True)
        for place, content in zip(kept, made, strict=False):
            with new_file(place) as partial:
                partial.write_bytes(content)
    return made


def _open(
    path: Path | str,
    provider: str,
    threads: int,
    settings: dict[str, str] | None = None,
    *,
    steady: Collection[str] = (),
    model: bytes = b"",
    arena: bool = True,
) -> ort.InferenceSession:
    """Open the graph at `path`, or `model` in its place; with `arena`, memory of one run is kept for the next."""
    options = session_options(threads)
    options.enable_cpu_mem_arena = arena
    problem = _load_cuda() if provider == "CUDAExecutionProvider" else ""
    try:
        session = ort.InferenceSession(
            _with_weights(path, model, options) if model else model_for(path, provider, options, steady),
            options,
            providers=[(provider, settings) if settings else provider],
        )
    except Exception as error:  # the bindings raise a dozen unrelated types
        raise FidError(f"ONNX Runtime cannot open {Path(path).name}: {first_line(error)}.") from error
    if session.get_providers()[0] != provider:  # it falls back without an exception
        reason = f": {problem}" if problem else "; is there an NVIDIA driver?"
        raise FidError(f"ONNX Runtime did not start {provider.removesuffix('ExecutionProvider')}{reason}.")
    return session


@cache
def _load_cuda() -> str:
    """Load the CUDA libraries of NVIDIA's wheels, once; "" or the first problem."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):  # it prints what it does not find
        ort.preload_dlls()
    return next((line.strip().rstrip(".") for line in printed.getvalue().splitlines() if "Failed" in line), "")


def first_line(error: Exception) -> str:
    """Return the first line of an exception's text, without its full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:300]


def describe_tensor(port: ort.NodeArg) -> Tensor:
    """Return name, shape and dtype of an input or output of a session of ONNX Runtime."""
    shape = tuple(size if isinstance(size, int) else str(size) for size in port.shape)
    return Tensor(port.name, shape, DTYPES.get(str(port.type), str(port.type)))
