"""A GPU that is not there: the CUDA runtime in host memory, and TensorRT whose engines run on ONNX Runtime.

What the two compute is real, how fast and on what is not. So they prove logic (which buffer, which shape, what is
recorded, what is cached and refused) and nothing else. The stand-in for TensorRT has exactly the attributes that
`tensorrt_names.json` lists for a version of the library; any other raises AttributeError.
"""

from __future__ import annotations

import ctypes
import enum
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.external_data_helper import load_external_data_for_model

RECORD = json.loads((Path(__file__).parent / "tensorrt_names.json").read_text())
LIBRARIES: list[str] = RECORD["libraries"]
UINT8, FLOAT = 5, 0  # as TensorRT numbers them


def names_of(library: str, kind: str) -> set[str]:
    """The attributes of a class in a version of a library."""
    number = str(LIBRARIES.index(library))
    return {name for which, names in RECORD["classes"][kind].items() if number in which for name in names.split()}


class Error(enum.IntEnum):
    """The results of the CUDA runtime that fid tells apart."""

    cudaSuccess = 0  # noqa: N815 - the library's names
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorInsufficientDriver = 35  # noqa: N815
    cudaErrorNoDevice = 100  # noqa: N815
    cudaErrorStreamCaptureInvalidated = 901  # noqa: N815


class Cuda(ModuleType):
    """`cuda.bindings.runtime` on host memory. Counts what was done."""

    cudaError_t = Error  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self, name: str = "Toy GPU", capability: tuple[int, int] = (8, 9), memory: int = 1 << 30) -> None:
        super().__init__("cuda.bindings.runtime")
        self.name, self.capability, self.memory = name, capability, memory
        self.broken: Error | None = None  # what asking for a GPU gives
        self.blocks: dict[int, Any] = {}
        self.sent: list[int] = []  # bytes of every copy to the GPU
        self.recording: list[Callable[[], None]] | None = None
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.launched = 0
        self.can_record = True

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:  # noqa: N802
        return (self.broken, None) if self.broken is not None else (Error.cudaSuccess, 1)

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:  # noqa: N802
        major, minor = self.capability
        return Error.cudaSuccess, SimpleNamespace(name=self.name.encode() + b"\0", major=major, minor=minor)

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:  # noqa: N802
        return Error.cudaSuccess, 13000

    def cudaGetLastError(self) -> tuple[Any, ...]:  # noqa: N802
        return (Error.cudaSuccess,)

    def _allocate(self, size: int) -> tuple[Any, ...]:
        if sum(map(len, list(self.blocks.values()))) + size > self.memory:
            return Error.cudaErrorMemoryAllocation, None
        block = (ctypes.c_uint8 * size)()
        self.blocks[ctypes.addressof(block)] = block
        return Error.cudaSuccess, ctypes.addressof(block)

    def _release(self, pointer: int) -> tuple[Any, ...]:
        del self.blocks[pointer]  # KeyError when it is freed twice
        return (Error.cudaSuccess,)

    cudaMalloc = cudaMallocHost = _allocate  # noqa: N815
    cudaFree = cudaFreeHost = _release  # noqa: N815

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[Any, ...]:  # noqa: N802
        assert stream == 7
        if kind == 1:
            self.sent.append(size)
        ctypes.memmove(to, source, size)
        return (Error.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:  # noqa: N802
        assert flags == self.cudaStreamNonBlocking
        return Error.cudaSuccess, 7

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:  # noqa: N802
        return (Error.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:  # noqa: N802
        assert self.recording is None
        return (Error.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[Any, ...]:  # noqa: N802
        self.recording = []
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:  # noqa: N802
        recorded, self.recording = self.recording, None
        assert recorded is not None
        if not self.can_record:
            return Error.cudaErrorStreamCaptureInvalidated, None
        return Error.cudaSuccess, recorded

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any, ...]:  # noqa: N802
        self.graphs[len(self.graphs) + 1] = graph
        return Error.cudaSuccess, len(self.graphs)

    def cudaGraphDestroy(self, graph: Any) -> tuple[Any, ...]:  # noqa: N802
        return (Error.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph: int) -> tuple[Any, ...]:  # noqa: N802
        self.graphs[graph] = []
        return (Error.cudaSuccess,)

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[Any, ...]:  # noqa: N802
        self.launched += 1
        for kernel in self.graphs[graph]:
            kernel()
        return (Error.cudaSuccess,)

    def submit(self, kernel: Callable[[], None]) -> None:
        """What a library does when it puts work into the stream."""
        if self.recording is None:
            kernel()
        else:
            self.recording.append(kernel)

    def view(self, pointer: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """The array that lies at an address."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        assert len(self.blocks[pointer]) >= size
        return np.frombuffer(self.blocks[pointer], np.uint8, size).view(dtype).reshape(shape)


class TensorRT(ModuleType):
    """The Python module of one version of TensorRT or TensorRT-RTX. `behave` changes what it does:

    `loads`: whether plans can be loaded; `noise`: is added to every output; `fails`: the build gives nothing;
    `during_build`: is called in the middle of a build; `step`: whether a step of the build may go on.
    """

    def __init__(self, library: str, cuda: Cuda) -> None:
        super().__init__(library.split()[0].replace("-", "_"))
        self.library, self.cuda = library, cuda
        self.__version__ = library.split()[1]
        self.builds: list[dict[str, Any]] = []
        self.behave: dict[str, Any] = {}
        make = _classes(self)
        for name, kind in make.items():
            setattr(self, name, kind)


def _classes(trt: TensorRT) -> dict[str, Any]:
    library, cuda = trt.library, trt.cuda
    rtx = library.startswith("tensorrt-rtx")

    def strict(kind: str) -> type:
        """A base class whose instances have the attributes of a class of the library, and those with an underscore."""
        allowed = names_of(library, kind)

        class Strict:
            def __getattribute__(self, name: str) -> Any:
                if not name.startswith("_") and name not in allowed and name not in type(self).__dict__.get("own", ()):
                    raise AttributeError(f"{library}: {kind} has no {name}")
                return object.__getattribute__(self, name)

            def __setattr__(self, name: str, value: Any) -> None:
                if not name.startswith("_") and name not in allowed:
                    raise AttributeError(f"{library}: {kind} has no {name}")
                object.__setattr__(self, name, value)

        Strict.__name__ = kind
        return Strict

    def choices(kind: str) -> Any:
        return enum.IntEnum(kind, [n for n in sorted(names_of(library, kind)) if n not in ("name", "value")], start=0)

    class ILogger:
        """To be subclassed."""

        INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2

    class IProgressMonitor:
        """To be subclassed."""

    types = choices("DataType")
    modes = choices("TensorIOMode")
    kinds = {np.dtype(np.uint8): types.UINT8, np.dtype(np.float32): types.FLOAT, np.dtype(np.float16): types.HALF}

    class ITensor(strict("ITensor")):
        def __init__(self, port: Any) -> None:
            self.name = port.name
            self.shape = tuple(side.dim_value or -1 for side in port.type.tensor_type.shape.dim)

    class INetworkDefinition(strict("INetworkDefinition")):
        _model: onnx.ModelProto

        def __init__(self, flags: int) -> None:
            self._flags = flags

        @property
        def num_inputs(self) -> int:
            return len(self._model.graph.input)

        def get_input(self, i: int) -> ITensor:
            return ITensor(self._model.graph.input[i])

    class ParserError(strict("ParserError")):
        def __init__(self, node: onnx.NodeProto, text: str) -> None:
            self._node, self._text = node, text

        def node_name(self) -> str:
            return self._node.name

        def node_operator(self) -> str:
            return self._node.op_type

        def desc(self) -> str:
            return self._text

    class OnnxParser(strict("OnnxParser")):
        def __init__(self, network: INetworkDefinition, log: ILogger) -> None:
            self._network, self._errors = network, []

        def parse(self, content: bytes, path: str) -> bool:
            model = onnx.load_model_from_string(content)
            self._errors = [
                ParserError(node, "Plugin not found\nAssertion failed: no such operator")
                for node in model.graph.node
                if node.op_type == "Unheard"
            ]
            load_external_data_for_model(model, str(Path(path).parent))
            self._network._model = model
            return not self._errors

        @property
        def num_errors(self) -> int:
            return len(self._errors)

        def get_error(self, i: int) -> ParserError:
            return self._errors[i]

    class IOptimizationProfile(strict("IOptimizationProfile")):
        def __init__(self) -> None:
            self._shapes: dict[str, list[Any]] = {}

        def set_shape(self, name: str, low: tuple, best: tuple, high: tuple) -> None:
            self._shapes[name] = [low, best, high]

    class IHostMemory(bytes):
        """Has the buffer interface, and nothing that fid uses besides."""

    class ITimingCache(strict("ITimingCache")):
        def __init__(self, content: bytes) -> None:
            self._content = content

        def serialize(self) -> IHostMemory:
            return IHostMemory(self._content)

    class IBuilderConfig(strict("IBuilderConfig")):
        def __init__(self) -> None:
            self._profiles: list[IOptimizationProfile] = []
            self._flags: list[Any] = []
            self._targets: dict[int, Any] = {}
            self._timings: ITimingCache | None = None

        def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
            self._profiles.append(profile)
            return len(self._profiles) - 1

        def set_flag(self, flag: Any) -> None:
            self._flags.append(flag.name)

        def set_compute_capability(self, target: Any, i: int) -> bool:
            self._targets[i] = target.name
            return True

        def create_timing_cache(self, content: bytes) -> ITimingCache:
            return ITimingCache(content)

        def set_timing_cache(self, timings: ITimingCache, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            self._timings = timings
            return timings._content in (b"", b"timings of " + cuda.name.encode())

        def get_timing_cache(self) -> ITimingCache:
            assert self._timings is not None
            return self._timings

    class Builder(strict("Builder")):
        def __init__(self, log: Any) -> None:
            self._log = log

        def create_network(self, flags: int) -> INetworkDefinition:
            return INetworkDefinition(flags)

        def create_builder_config(self) -> IBuilderConfig:
            return IBuilderConfig()

        def create_optimization_profile(self) -> IOptimizationProfile:
            return IOptimizationProfile()

        def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
            monitor = config.progress_monitor
            monitor.phase_start("Building", None, 4)
            for step in range(4):
                trt.behave.get("during_build", lambda: None)()
                if not monitor.step_complete("Building", step):
                    return None
            monitor.phase_finish("Building")
            if trt.behave.get("fails"):
                self._log.log(1, "no tactic fits")
                return None
            found = config._timings._content if config._timings is not None else None
            if config._timings is not None:
                config._timings._content = b"timings of " + cuda.name.encode()
            shapes = config._profiles[0]._shapes if config._profiles else {}
            trt.builds.append(
                {"flags": config._flags, "targets": config._targets, "network": network._flags, "timings": found}
                | {"shapes": shapes}
            )
            head = json.dumps({"library": library, "gpu": None if rtx else cuda.name, "shapes": shapes}).encode()
            return IHostMemory(head + b"\n" + network._model.SerializeToString())

    class IRuntimeCache(strict("IRuntimeCache") if rtx else object):
        def __init__(self) -> None:
            self._content = b""

        def deserialize(self, content: bytes) -> bool:
            self._content = content
            return True

        def serialize(self) -> IHostMemory:
            return IHostMemory(self._content or b"kernels for " + cuda.name.encode())

    class IRuntimeConfig(strict("IRuntimeConfig") if rtx else object):
        def create_runtime_cache(self) -> IRuntimeCache:
            return IRuntimeCache()

        def set_runtime_cache(self, kernels: IRuntimeCache) -> bool:
            self._kernels = kernels
            return True

    class IExecutionContext(strict("IExecutionContext")):
        def __init__(self, engine: Any) -> None:
            self._engine, self._shapes, self._places, self._warm = engine, {}, {}, False

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            low, _, high = self._engine._head["shapes"].get(name, (shape, shape, shape))
            self._shapes[name] = shape
            return all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))

        def set_tensor_address(self, name: str, place: int) -> bool:
            self._places[name] = place
            return True

        def execute_async_v3(self, stream: int) -> bool:
            assert stream == 7
            session = self._engine._session
            if cuda.recording is not None and not self._warm:
                return False  # what is done once for a shape cannot be recorded
            self._warm = True

            def kernel() -> None:
                inputs = {
                    port.name: cuda.view(self._places[port.name], self._shapes[port.name], self._engine._dtype(port))
                    for port in session.get_inputs()
                }
                for port, array in zip(session.get_outputs(), session.run(None, inputs), strict=True):
                    noisy = (array + trt.behave.get("noise", 0)).astype(array.dtype)
                    cuda.view(self._places[port.name], array.shape, array.dtype)[...] = noisy

            cuda.submit(kernel)
            return True

    class ICudaEngine(strict("ICudaEngine")):
        def __init__(self, head: dict[str, Any], graph: bytes) -> None:
            self._head = head
            self._session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
            self._ports = {p.name: p for p in (*self._session.get_inputs(), *self._session.get_outputs())}

        def _dtype(self, port: Any) -> np.dtype:
            return np.dtype({"tensor(uint8)": "uint8", "tensor(float)": "float32"}[port.type])

        @property
        def num_io_tensors(self) -> int:
            return len(self._ports)

        def get_tensor_name(self, i: int) -> str:
            return list(self._ports)[i]

        def get_tensor_mode(self, name: str) -> Any:
            entering = name in {p.name for p in self._session.get_inputs()}
            return modes.INPUT if entering else modes.OUTPUT

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return tuple(side if isinstance(side, int) else -1 for side in self._ports[name].shape)

        def get_tensor_dtype(self, name: str) -> Any:
            return kinds[self._dtype(self._ports[name])]

        def create_runtime_config(self) -> IRuntimeConfig:
            return IRuntimeConfig()

        def create_execution_context(self, config: IRuntimeConfig | None = None) -> IExecutionContext | None:
            assert (config is not None) == rtx
            return None if trt.behave.get("no_context") else IExecutionContext(self)

    class Runtime(strict("Runtime")):
        def __init__(self, log: Any) -> None:
            self._log = log

        def deserialize_cuda_engine(self, plan: bytes) -> ICudaEngine | None:
            head, _, graph = plan.partition(b"\n")
            record = json.loads(head)
            if record["library"] != library or not trt.behave.get("loads", True):
                self._log.log(1, "The engine plan file is not compatible with this version of TensorRT")
                return None
            assert record["gpu"] in (None, cuda.name)
            return ICudaEngine(record, graph)

    made = {kind.__name__: kind for kind in (ILogger, IProgressMonitor, Builder, OnnxParser, Runtime)}
    made |= {"DataType": types, "TensorIOMode": modes, "BuilderFlag": choices("BuilderFlag")}
    made["NetworkDefinitionCreationFlag"] = choices("NetworkDefinitionCreationFlag")
    if rtx:
        for name in ("ComputeCapability", "CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy"):
            made[name] = choices(name)
    return made


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, library: str = LIBRARIES[2], **gpu: Any) -> TensorRT:
    """Put a stand-in of `library` and a GPU into the place of the real ones, for one test that also uses the fixture
    `stand_in`. `gpu`: as `Cuda` takes it."""
    from fid.runtime.engines import cuda
    from fid.runtime.engines import open as session
    from fid.runtime.engines.tensorrt import build as build_tensorrt

    device = Cuda(**gpu)
    trt = TensorRT(library, device)
    (folder / "driver").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n"
    )
    monkeypatch.setattr(cuda, "cudart", lambda: device)
    monkeypatch.setattr(cuda, "DRIVER", folder / "driver")
    for name in build_tensorrt.MODULES.values():
        monkeypatch.setitem(sys.modules, name, trt if name == trt.__name__ else None)
    monkeypatch.setattr(session, "installed", lambda name: name == library.split()[0])
    build_tensorrt.library.cache_clear()
    return trt
