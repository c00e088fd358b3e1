"""FP16 as hardware computes it, on a CPU: FP16 in, sums in FP32, every FP16 result rounded, infinite past 65504.

ONNX Runtime computes a typed FP16 graph in FP32 on a CPU, and so hides both rounding and overflow. `emulated` gives it
a graph in FP32 in which the rounding is spelled out: a Cast to FP16 and one back behind every node whose result is
FP16. That it keeps these casts, and rounds, is tried before the first graph.
"""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from ...runtime.engines.open import open_session
from ...runtime.engines.session import Session
from ...runtime.errors import FidError

PROBES = {1 + 2.0**-12: 1.0, 1 + 3 * 2.0**-12: 1 + 2.0**-10, 65519.0: 65504.0, 65520.0: np.inf, 2.0**-26: 0.0}
"""Numbers and what FP16 makes of them: to nearest, overflow, underflow."""


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the typed graph in FP32 with its rounding spelled out; inputs and outputs are the same.

    Raises FidError when a node mixes FP16 and FP32, which TensorRT refuses, or an input or output is FP16.
    """
    try:
        inferred = shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except shape_inference.InferenceError as error:
        raise FidError(f"the typed graph is not one: {str(error).strip().splitlines()[-1]}") from error
    graph = inferred.graph
    if any(port.type.tensor_type.elem_type == TensorProto.FLOAT16 for port in (*graph.input, *graph.output)):
        raise FidError("the typed graph has an FP16 input or output; those have to stay as they are in FP32.")
    typed = {v.name for v in graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    del graph.value_info[:]
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    nodes = []
    for node in graph.node:
        nodes.append(node)
        for i, name in enumerate(node.output):
            if name in typed:
                exact = name if node.op_type == "Cast" else f"{name}.exact"
                rounded = f"{name}.rounded"
                if node.op_type == "Cast":
                    node.output[i] = rounded
                else:
                    node.output[i] = exact
                    nodes.append(helper.make_node("Cast", [exact], [rounded], to=TensorProto.FLOAT16))
                nodes.append(helper.make_node("Cast", [rounded], [name], to=TensorProto.FLOAT))
    _replace(graph.node, nodes)
    return result


def open_emulated(model: onnx.ModelProto, threads: int) -> Session:
    """Return a session that runs the typed graph with FP16 rounding. Raises FidError when ONNX Runtime does not
    round."""
    _check_rounding()
    return _open(emulated(model), threads)


@cache
def _check_rounding() -> None:
    port = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    nodes = [helper.make_node("Cast", ["x"], ["fp16"], to=TensorProto.FLOAT16)]
    nodes += [helper.make_node("Cast", ["fp16"], ["y"], to=TensorProto.FLOAT)]
    model = helper.make_model(
        helper.make_graph(nodes, "probe", port[:1], port[1:]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    got = _open(model, 1).run(x=np.array(list(PROBES), np.float32))["y"]
    if not np.array_equal(got, np.array(list(PROBES.values()), np.float32)):
        raise FidError(
            "this version of ONNX Runtime leaves out the rounding to FP16, so FP16 graphs cannot be checked."
        )


def _open(model: onnx.ModelProto, threads: int) -> Session:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        path.write_bytes(model.SerializeToString())
        return open_session(path, engine="onnxruntime", threads=threads)


def _replace(field: Any, nodes: list[onnx.NodeProto]) -> None:
    """Put other nodes into a repeated field, whose own may be among them."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del field[:]
    field.extend(copies)
