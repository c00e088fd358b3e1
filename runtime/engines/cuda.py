"""What fid needs of CUDA, through NVIDIA's own Python bindings: the GPU's facts, memory, a stream, graphs.

Nothing here compiles anything and nothing is imported before it is used, so that a machine without a GPU pays nothing.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import re
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FidError

MISSING = "NVIDIA's Python bindings of CUDA are not installed: `pip install cuda-bindings`."

DRIVER = Path("/proc/driver/nvidia/version")

COMPARED_BYTES = 1 << 16
"""Inputs of so many bytes or fewer are compared with what the GPU holds, and not sent again when they are the same."""


@dataclass(frozen=True)
class Gpu:
    """The first GPU that this process sees (`CUDA_VISIBLE_DEVICES`)."""

    name: str  # "NVIDIA GeForce RTX 4090"
    compute_capability: str  # "8.9"
    driver: str  # "580.95.05", or "" where Linux does not tell
    cuda: str  # the newest CUDA that the driver knows: "13.0"


def cudart() -> Any:
    """Return the CUDA runtime of cuda-bindings; FidError when it is not installed."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise FidError(MISSING) from error


def check(result: tuple[Any, ...]) -> Any:
    """Return the value of a call of the CUDA runtime, None where it has none. Raises FidError when the call failed."""
    error, *values = result
    if int(error) != 0:
        runtime = cudart()
        if error == runtime.cudaError_t.cudaErrorInsufficientDriver:
            raise FidError("there is no NVIDIA driver here, or it is older than the CUDA libraries need.")
        if error == runtime.cudaError_t.cudaErrorNoDevice:
            raise FidError("there is an NVIDIA driver and no GPU that it can use.")
        if error == runtime.cudaError_t.cudaErrorMemoryAllocation:
            raise FidError("the GPU has not enough free memory for this.")
        raise FidError(f"CUDA reports {error.name}.")
    return values[0] if values else None


def gpu() -> Gpu:
    """Return the GPU to run on. Raises FidError in one sentence when there is none, or no driver, or no bindings."""
    runtime = cudart()
    if check(runtime.cudaGetDeviceCount()) == 0:
        raise FidError("there is no NVIDIA GPU here.")
    properties = check(runtime.cudaGetDeviceProperties(0))
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    known = check(runtime.cudaDriverGetVersion())  # 13000 is 13.0
    try:
        driver = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", DRIVER.read_text())
    except OSError:
        driver = None
    return Gpu(
        name=name.rstrip("\0"),
        compute_capability=f"{properties.major}.{properties.minor}",
        driver=driver[0] if driver else "",
        cuda=f"{known // 1000}.{known % 1000 // 10}",
    )


class Stream:
    """A stream of our own: on the default one libraries wait for each other."""

    def __init__(self) -> None:
        self._runtime = cudart()
        self.handle: Any = check(self._runtime.cudaStreamCreateWithFlags(self._runtime.cudaStreamNonBlocking))
        weakref.finalize(self, self._runtime.cudaStreamDestroy, self.handle)

    def wait(self) -> None:
        """Until everything in the stream is done."""
        check(self._runtime.cudaStreamSynchronize(self.handle))

    def capture(self, work: Callable[[], bool]) -> CudaGraph | None:
        """Return what `work` puts into the stream, as a graph that can be launched again; None when it cannot be
        captured."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(self._runtime.cudaStreamBeginCapture(self.handle, mode))
        try:
            worked = work()
        finally:
            error, graph = self._runtime.cudaStreamEndCapture(self.handle)
        if not worked or int(error) != 0:
            self._runtime.cudaGetLastError()  # forget it: what was to be captured runs without a graph
            return None
        return CudaGraph(graph, self)


class CudaGraph:
    """Recorded GPU work, launched with one call."""

    def __init__(self, graph: Any, stream: Stream) -> None:
        self._runtime, self._stream = cudart(), stream
        self._executable = check(self._runtime.cudaGraphInstantiate(graph, 0))
        check(self._runtime.cudaGraphDestroy(graph))
        weakref.finalize(self, self._runtime.cudaGraphExecDestroy, self._executable)

    def launch(self) -> None:
        """Put the recorded work into the stream."""
        check(self._runtime.cudaGraphLaunch(self._executable, self._stream.handle))


class Buffers:
    """Memory for the tensors of one graph at one batch size, allocated once: on the GPU, and page-locked on the host,
    from where a copy needs no detour."""

    def __init__(self, tensors: Mapping[str, tuple[tuple[int, ...], str]], stream: Stream) -> None:
        """`tensors`: name -> shape and dtype."""
        self._runtime, self._stream = cudart(), stream
        self._device: dict[str, int] = {}
        self._pinned: dict[str, Any] = {}
        weakref.finalize(self, _free, self._runtime, self._device, self._pinned)
        self._host: dict[str, NDArray] = {}
        self._sent: set[str] = set()  # inputs whose host copy is what the GPU holds
        for name, (shape, dtype) in tensors.items():
            size = max(1, math.prod(shape) * np.dtype(dtype).itemsize)
            self._device[name] = int(check(self._runtime.cudaMalloc(size)))
            self._pinned[name] = check(self._runtime.cudaMallocHost(size))
            memory = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(self._pinned[name])))
            self._host[name] = memory[: math.prod(shape) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)

    def address(self, name: str) -> int:
        """Return where a tensor lies on the GPU."""
        return self._device[name]

    def send(self, name: str, array: NDArray) -> None:
        """Put the copy of an input to the GPU into the stream. A small one that the GPU already holds stays there: the
        identity code of a live session crosses once."""
        host = self._host[name]
        if name in self._sent and host.nbytes <= COMPARED_BYTES and np.array_equal(host, array):
            return
        self._sent.discard(name)
        np.copyto(host, array)
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        check(
            self._runtime.cudaMemcpyAsync(self._device[name], host.ctypes.data, host.nbytes, kind, self._stream.handle)
        )
        self._sent.add(name)

    def fetch(self, names: tuple[str, ...]) -> dict[str, NDArray]:
        """Return copies of outputs, after everything in the stream is done."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        for name in names:
            host = self._host[name]
            check(
                self._runtime.cudaMemcpyAsync(
                    host.ctypes.data, self._device[name], host.nbytes, kind, self._stream.handle
                )
            )
        self._stream.wait()
        return {name: self._host[name].copy() for name in names}


def _free(runtime: Any, device: dict[str, int], pinned: dict[str, Any]) -> None:
    for pointer in device.values():
        runtime.cudaFree(pointer)
    for pointer in pinned.values():
        runtime.cudaFreeHost(pointer)
