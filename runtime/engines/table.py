"""One table of engines and devices: what there is, how it is installed, and what was run on hardware by us.

The table is data and imports no engine, so that a command line can be read quickly.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec

DISTRIBUTION = "fid-face"


@dataclass(frozen=True)
class Engine:
    """One row: what `--engine` takes, and what is behind it."""

    name: str  # of `--engine`; after a colon the device, or after "ep:" the plug-in
    title: str  # as its maker writes it
    module: str  # that has to be importable
    packages: tuple[str, ...]  # distributions whose versions decide what it does
    install: str  # a command
    devices: str  # that it computes on
    precisions: str  # of the arithmetic
    static: bool  # whether it is built for one batch size at a time
    platforms: tuple[str, ...] = ()  # values of sys.platform; () for all
    on_hardware: bool = False  # whether we have run it on such a device
    provider: str = ""  # ONNX Runtime's name of it, where a build or a plug-in of ONNX Runtime holds it


TABLE = (
    Engine(
        "tensorrt", "TensorRT", "tensorrt", ("tensorrt", "cuda-bindings"), f"pip install '{DISTRIBUTION}[tensorrt]'",
        "NVIDIA GPU", "FP16, FP32", False,
    ),
    Engine(
        "tensorrt-rtx", "TensorRT-RTX", "tensorrt_rtx", ("tensorrt-rtx", "cuda-bindings"),
        f"pip install '{DISTRIBUTION}[tensorrt-rtx]'", "NVIDIA RTX GPU", "FP16, FP32", False,
    ),
    Engine(
        "cuda", "ONNX Runtime CUDA", "onnxruntime", ("onnxruntime-gpu", "cuda-bindings"),
        f"pip install '{DISTRIBUTION}[gpu]' && pip install --force-reinstall --no-deps onnxruntime-gpu",
        "NVIDIA GPU", "FP16, FP32", False, on_hardware=True, provider="CUDAExecutionProvider",
    ),
    Engine(
        "onnxruntime", "ONNX Runtime", "onnxruntime", ("onnxruntime",), f"pip install {DISTRIBUTION}", "CPU", "FP32",
        False, on_hardware=True, provider="CPUExecutionProvider",
    ),
    Engine(
        "openvino", "OpenVINO", "openvino", ("openvino",), f"pip install '{DISTRIBUTION}[openvino]'", "CPU", "FP32",
        True, on_hardware=True,
    ),
    Engine(
        "openvino-bf16", "OpenVINO bfloat16", "openvino", ("openvino",), f"pip install '{DISTRIBUTION}[openvino]'",
        "CPU with bfloat16", "BF16", True, on_hardware=True,
    ),
    Engine(
        "openvino-int8", "OpenVINO int8", "openvino", ("openvino",), f"pip install '{DISTRIBUTION}[openvino]'",
        "CPU with VNNI or AMX", "INT8", True, on_hardware=True,
    ),
    Engine(
        "openvino:gpu", "OpenVINO GPU", "openvino", ("openvino",), f"pip install '{DISTRIBUTION}[openvino]'",
        "Intel GPU", "FP16", True,
    ),
    Engine(
        "openvino:npu", "OpenVINO NPU", "openvino", ("openvino",), f"pip install '{DISTRIBUTION}[openvino]'",
        "Intel NPU", "FP16", True, ("linux", "win32"),
    ),
    Engine(
        "coreml", "ONNX Runtime CoreML", "onnxruntime", ("onnxruntime",), f"pip install {DISTRIBUTION}",
        "Apple GPU, Neural Engine", "FP16, FP32", True, ("darwin",), provider="CoreMLExecutionProvider",
    ),
    Engine(
        "directml", "ONNX Runtime DirectML", "onnxruntime", ("onnxruntime-directml",),
        "pip install onnxruntime-directml --force-reinstall --no-deps", "any GPU with DirectX 12", "FP32", False,
        ("win32",), provider="DmlExecutionProvider",
    ),
    Engine(
        "ep:webgpu", "WebGPU plug-in", "onnxruntime_ep_webgpu", ("onnxruntime", "onnxruntime-ep-webgpu"),
        "pip install onnxruntime-ep-webgpu", "any GPU", "FP32", False, provider="WebGpuExecutionProvider",
    ),
    Engine(
        "ep:openvino", "OpenVINO plug-in", "onnxruntime_ep_openvino", ("onnxruntime", "onnxruntime-ep-openvino"),
        "pip install onnxruntime-ep-openvino", "Intel CPU, GPU, NPU", "FP32, FP16", False, ("linux", "win32"),
        provider="OpenVINOExecutionProvider",
    ),
    Engine(
        "ep:tensorrt-rtx", "TensorRT-RTX plug-in", "onnxruntime_ep_nv_tensorrt_rtx",
        ("onnxruntime", "onnxruntime-ep-nv-tensorrt-rtx"), "pip install onnxruntime-ep-nv-tensorrt-rtx",
        "NVIDIA RTX GPU", "FP32", False, ("linux", "win32"), provider="NvTensorRTRTXExecutionProvider",
    ),
)  # fmt: skip
"""In the order of `ENGINES`."""

ENGINES = ("auto", *(row.name for row in TABLE))
"""What `--engine` takes."""

DEVICE_ENGINES = tuple(row.name for row in TABLE if ":" in row.name or row.name in ("coreml", "directml"))
"""Engines that `auto` takes only where `fid-run bench` has measured one faster, and near enough, on this device."""


def is_remote(name: str) -> bool:
    """Return whether an engine is a Triton server: triton://HOST:PORT, or triton+http://HOST:PORT."""
    scheme, found, host = name.partition("://")
    return bool(found and host) and scheme in ("triton", "triton+http")


def engine_row(name: str) -> Engine:
    """Return the row of an engine; KeyError for a name that is not in the table."""
    return {row.name: row for row in TABLE}[name]


def fits_platform(name: str) -> bool:
    """Return whether an engine exists for this operating system."""
    return not (platforms := engine_row(name).platforms) or sys.platform in platforms


def has_module(name: str) -> bool:
    """Return whether the module of an engine is installed here; a device, or its part of the module, may be missing."""
    return fits_platform(name) and find_spec(engine_row(name).module) is not None
