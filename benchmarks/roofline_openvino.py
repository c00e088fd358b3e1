"""The nodes of a graph as OpenVINO runs them, for `roofline.py`, in the form of its profile of ONNX Runtime."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
from engines import NotHereError, graph_path, noise

KINDS = {"FullyConnected": "Gemm", "Reorder": "ReorderInput", "Transpose": "Transpose", "DepthToSpace": "DepthToSpace"}
VIEWS = ("Reshape", "Input", "Output", "Const")
NOT_MOVED = ("Input", "Output", "Const")


def profile(graph: str, threads: int, runs: int, precision: str) -> list[dict[str, Any]]:
    """Nodes as OpenVINO runs them in "f32" or "bf16": name, kind, median ms, GFLOP, MB, output, and whether it computes
    in bfloat16. Raises NotHereError where that cannot be had."""
    try:
        import openvino
        from fid.runtime.engines.forms import with_grouped_wavelets, with_noise_apart
    except ImportError as error:
        raise NotHereError("OpenVINO is not installed") from error
    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise NotHereError("this CPU has no bfloat16")
    model = core.read_model(str(graph_path(graph)))
    with_grouped_wavelets(model)
    with_noise_apart(model)
    arrays = noise(graph, 1)
    model.reshape({name: list(array.shape) for name, array in arrays.items()})
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERF_COUNT": True}
    compiled = core.compile_model(model, "CPU", {**options, "PERFORMANCE_HINT": "LATENCY"})
    request, times = compiled.create_infer_request(), defaultdict(list)
    for number in range(runs):
        request.infer(arrays)
        if number >= runs // 4:
            for node in request.get_profiling_info():
                times[node.node_name].append(node.real_time.total_seconds() * 1e3)
    nodes = compiled.get_runtime_model().get_ordered_ops()
    return [
        count(node, float(np.median(times[node.get_friendly_name()] or [0.0]))) for node in nodes if _computes(node)
    ]


def count(node: Any, ms: float) -> dict[str, Any]:
    """Kind, GFLOP and MB of a node of a runtime model."""
    about = {key: node.get_rt_info()[key].astype(str) for key in ("layerType", "primitiveType", "runtimePrecision")}
    shape = list(node.get_output_shape(0))
    inputs = [list(node.get_input_shape(i)) for i in range(node.get_input_size())]
    layer, size = about["layerType"], math.prod(shape)
    kind, flop = KINDS.get(layer, layer), float(size)
    if layer in ("Convolution", "Deconvolution"):
        kernel = inputs[1]
        groups, *weight = kernel if len(kernel) == 5 else (1, *kernel)
        kind = "Conv 1x1" if math.prod(weight[2:]) == 1 else "Conv dense"
        if groups > 1:
            kind = "ConvTranspose" if math.prod(weight[2:]) == 1 else "Conv depthwise"  # of a wavelet
        flop = 2 * size * math.prod(weight[1:])
    elif layer == "FullyConnected":
        flop = 2 * size * inputs[0][-1]
    elif kind in ("ReorderInput", "Transpose", "DepthToSpace") or layer in VIEWS:
        flop = 0.0
    low = about["primitiveType"].endswith("bf16")
    moved = 0 if layer in VIEWS else (2 if low else 4) * (size + sum(map(math.prod, inputs)))
    return {
        "name": node.get_friendly_name(),
        "kind": kind,
        "ms": ms,
        "output": "x".join(map(str, shape)),
        "gflop": flop / 1e9,
        "mb": moved / 1e6,
        "bf16": low,
    }


def _computes(node: Any) -> bool:
    return node.get_rt_info()["layerType"].astype(str) not in NOT_MOVED
