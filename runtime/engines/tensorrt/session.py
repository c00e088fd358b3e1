"""Sessions on TensorRT and TensorRT-RTX: engines from the cache or built for this GPU, run without a detour.

Every batch size has an execution context of its own, with buffers that are allocated once. What the GPU has to do for
it is recorded as a CUDA graph after one warm-up run, so that a call is two copies and one launch.
"""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import FidError
from ...tensor import Tensor
from ..cuda import Buffers, CudaGraph, Gpu, Stream, gpu
from ..session import Recent, check_inputs, in_place_of
from . import cache as engine_cache
from .build import RTX_TARGETS, TITLES, Batch, Library, build, graph_facts, library
from .cache import Engine, Key

DTYPES = {"FLOAT": "float32", "HALF": "float16", "UINT8": "uint8", "INT32": "int32", "INT64": "int64"}


class TensorRTSession:
    """See `session.Session`. `engine`: "tensorrt" or "tensorrt-rtx".

    `batch`: sizes to build for; None takes an engine in the cache whose smallest size is 1, or builds for `Batch()`.
    Larger batches are run in parts and smaller ones filled up, so any size can be run.

    The first session of a graph builds its engine, which takes seconds to minutes. `compared` tells whether the engine
    was ever compared with FP32; one that was not is judged by `judge` before it is used (see `open.open_tensorrt`).
    Raises FidError in one sentence when the library or a GPU is missing, or the engine fell short before.
    """

    def __init__(self, path: Path | str, engine: str, batch: Batch | None = None, reason: str = "") -> None:
        path = Path(path)
        self._reason = reason
        self._gpu = gpu()  # first: without a driver there is no need to load 200 MB of library
        self._lib = library(engine)
        key = engine_key(self._lib, path, batch or Batch(), self._gpu)
        found, self._engine = self._load(path, key if batch else engine_cache.similar(key))
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        entering = self._lib.trt.TensorIOMode.INPUT
        self.inputs = tuple(self._tensor(n) for n in names if self._engine.get_tensor_mode(n) == entering)
        self.outputs = tuple(self._tensor(n) for n in names if self._engine.get_tensor_mode(n) != entering)
        self.provider = f"{engine} CUDA {found.key.precision}"
        self._batch = Batch.parse(found.key.batch)
        self._stream = Stream()
        self._kernels = _Kernels(self._lib, self._engine, found.key, self._gpu)
        self._ready: Recent[_Ready] = Recent(self._make)
        self._lock = threading.Lock()
        self._found = found
        self.compared = found.checked is not None
        self._ready.at(self._batch.opt)  # memory that is short shows here, not at the first picture

    def judge(self, figures: dict[str, float], fault: str | None) -> None:
        """Keep the figures of a comparison with FP32 beside the engine; FidError when it found a fault."""
        engine_cache.mark(self._found, figures, fault)
        self.compared = True
        if fault is not None:
            raise FidError(_refusal(self._found, fault))

    def _load(self, path: Path, key: Key) -> tuple[Engine, Any]:
        """The engine from the cache or built, and loaded; one that does not load is built once more."""
        for attempt in ("cached", "built"):
            found = engine_cache.obtain(key, path.stem, lambda watch: make(self._lib, path, key, watch))
            if found.refused is not None:
                raise FidError(_refusal(found, found.refused))
            self._lib.log.last.clear()
            runtime = self._lib.trt.Runtime(self._lib.log)  # engine_host_code_allowed stays off
            loaded = runtime.deserialize_cuda_engine(found.plan)
            if loaded is not None:
                return found, loaded
            engine_cache.discard(key)
            if attempt == "built":
                break
        raise FidError(f"{self._lib} cannot load the engine of {path.stem} that it built: {self._lib.said()}.")

    def _tensor(self, name: str) -> Tensor:
        sides = tuple(self._engine.get_tensor_shape(name))
        shape = tuple("batch" if side == -1 else int(side) for side in sides)
        return Tensor(name, shape, DTYPES[self._engine.get_tensor_dtype(name).name])

    @property
    def fallback(self) -> str | None:
        """See `session.Session.fallback`."""
        return in_place_of(self._reason, self.provider)

    def _make(self, batch: int) -> _Ready:
        shapes = {t.name: (_sized(t, batch), t.dtype) for t in (*self.inputs, *self.outputs)}
        entering = {t.name: shapes[t.name][0] for t in self.inputs}
        return _Ready(self._lib, self._kernels, entering, shapes, self._stream)

    def run(self, **arrays: NDArray) -> dict[str, NDArray]:
        """See `session.Session.run`. The first call with a new batch size takes longer."""
        check_inputs(self.inputs, arrays)
        count = next((len(arrays[t.name]) for t in self.inputs if "batch" in t.shape), None)
        with self._lock:
            if count is None:
                return self._run_once(arrays, self._batch.opt)
            parts = []
            for start in range(0, count, self._batch.max):
                part = {name: array[start : start + self._batch.max] for name, array in arrays.items()}
                size = min(count - start, self._batch.max)
                missing = max(0, self._batch.min - size)
                if missing:
                    part = {name: np.concatenate([a, np.repeat(a[-1:], missing, 0)]) for name, a in part.items()}
                done = self._run_once(part, size + missing)
                parts.append({name: array[:size] for name, array in done.items()} if missing else done)
            if len(parts) == 1:
                return parts[0]
            return {t.name: np.concatenate([part[t.name] for part in parts]) for t in self.outputs}

    def _run_once(self, arrays: dict[str, NDArray], batch: int) -> dict[str, NDArray]:
        ready = self._ready.at(batch)
        for name, array in arrays.items():
            ready.buffers.send(name, array)
        ready.enqueue()
        return ready.buffers.fetch(tuple(t.name for t in self.outputs))


class _Ready:
    """An execution context for one batch size, its buffers, and the recorded work."""

    def __init__(
        self,
        lib: Library,
        kernels: _Kernels,
        entering: dict[str, tuple[int, ...]],
        tensors: dict[str, tuple[tuple[int, ...], str]],
        stream: Stream,
    ) -> None:
        self._lib, self._stream = lib, stream
        self._graph: CudaGraph | None = None
        self._context = kernels.context()
        for name, shape in entering.items():
            if not self._context.set_input_shape(name, shape):
                raise FidError(f"{lib} refuses {name} of shape {list(shape)}: {lib.said()}.")
        self.buffers = Buffers(tensors, stream)
        for name in tensors:
            self._context.set_tensor_address(name, self.buffers.address(name))
        for name, shape in entering.items():
            self.buffers.send(name, np.zeros(shape, tensors[name][1]))
        self.enqueue()  # the warm-up: what a library does once for a shape cannot be recorded
        stream.wait()
        if lib.rtx:
            kernels.keep()  # it records by itself, once the kernels for the shape are compiled
        else:
            self._graph = stream.capture(lambda: self._context.execute_async_v3(int(stream.handle)))

    def enqueue(self) -> None:
        """Put one run into the stream."""
        if self._graph is not None:
            self._graph.launch()
        elif not self._context.execute_async_v3(int(self._stream.handle)):
            raise FidError(f"{self._lib} failed to run: {self._lib.said()}.")


class _Kernels:
    """Makes execution contexts. For TensorRT-RTX it holds the kernels that were finished on this GPU, across runs."""

    def __init__(self, lib: Library, engine: Any, key: Key, gpu: Gpu) -> None:
        self._lib, self._engine = lib, engine
        self._config: Any = None
        if lib.rtx:
            trt = lib.trt
            where = hashlib.sha256(f"{gpu.name} {gpu.driver} {gpu.cuda}".encode()).hexdigest()[:8]
            self._file = f"kernels-{key.digest}-{where}"
            self._config = engine.create_runtime_config()
            self._config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER  # the first call waits, and no later one does
            self._config.dynamic_shapes_kernel_specialization_strategy = eager
            self._cache = self._config.create_runtime_cache()
            self._kept = engine_cache.read_sealed(self._file)
            if self._kept:
                self._cache.deserialize(self._kept)  # False for those of another driver: they are compiled again
            self._config.set_runtime_cache(self._cache)

    def context(self) -> Any:
        """Return a new execution context. Raises FidError when there is no memory for it."""
        create = self._engine.create_execution_context
        context = create() if self._config is None else create(self._config)
        if context is None:
            raise FidError(f"{self._lib} cannot make an execution context: {self._lib.said()}.")
        return context

    def keep(self) -> None:
        """Store the kernels, when there are new ones."""
        content = bytes(memoryview(self._cache.serialize()))
        if content != self._kept:
            engine_cache.write_sealed(self._file, content)
            self._kept = content


def engine_key(lib: Library, path: Path, batch: Batch, on: Gpu | None) -> Key:
    """Return what the engine of a graph depends on. `on`: the GPU here; None is possible for TensorRT-RTX only.

    Raises FidError when the library cannot build for this GPU, or needs one and there is none.
    """
    facts = graph_facts(path)
    targets = gpu_name = driver = cuda = ""
    if not lib.rtx:
        if on is None:
            raise FidError(f"{TITLES[lib.engine]} builds on the GPU that the engine is for, and there is none here.")
        targets, gpu_name, driver, cuda = on.compute_capability, on.name, on.driver, on.cuda
    elif on is None or (own := on.compute_capability.replace(".", "")) in RTX_TARGETS:
        targets = " ".join(RTX_TARGETS)
    elif hasattr(lib.trt.ComputeCapability, f"SM{own}"):
        targets = own
    else:
        raise FidError(f"{lib} does not support this GPU ({on.name}, compute capability {on.compute_capability}).")
    return Key(
        graph=facts.sha256,
        precision=facts.precision,
        batch=str(batch),
        flags="strongly typed, user allocation" if lib.rtx else "strongly typed, tf32",
        library=lib.engine,
        version=lib.version,
        compute_capability=targets,
        gpu=gpu_name,
        driver=driver,
        cuda=cuda,
    )


def make(lib: Library, path: Path, key: Key, watch: Any) -> bytes:
    """Build the engine that `key` describes; full TensorRT uses and keeps the timings of this GPU."""
    if lib.rtx:
        targets = tuple(key.compute_capability.split())
        return build(lib, path, Batch.parse(key.batch), targets=targets, watch=watch).plan
    where = hashlib.sha256(f"{key.version} {key.gpu} {key.driver}".encode()).hexdigest()[:8]
    timings = f"timings-{where}"
    built = build(lib, path, Batch.parse(key.batch), timings=engine_cache.read_sealed(timings), watch=watch)
    engine_cache.write_sealed(timings, built.timings)
    return built.plan


def _sized(tensor: Tensor, batch: int) -> tuple[int, ...]:
    return tuple(batch if isinstance(side, str) else side for side in tensor.shape)


def _refusal(found: Engine, fault: str) -> str:
    return f"the {TITLES[found.key.library]} engine of {found.name} is refused: {fault}."
