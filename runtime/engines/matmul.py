"""Modulated pointwise convolutions as matrix products, for ONNX Runtime on a CPU.

A style scales the channels that go into a convolution. Scaling the weights instead is the same arithmetic,

    conv1x1(depthwise(x * s), W) = (W * s) @ depthwise(x)

and costs Cout * Cin products for a whole picture. ONNX Runtime cannot put changing weights into its blocked
convolutions, but as a matrix product it need not: there is no pass over the picture for the scaling and no change of
layout around the convolution, and its matrix product is the faster kernel. Other engines fuse the scaling and keep the
graph as it is.

The graphs of a bundle are left alone: this is done in memory while a session opens. Figures: benchmarks/LOG.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx


LARGEST_GRAPH = 1 << 20
"""Bytes. A larger file holds its weights itself: it is none of our generators, and reading it would take time."""

LARGEST_SHIFT = 20_000_000
"""Bytes. Noise and bias become one constant of the size of the map up to here, and stay two above."""


def with_matrix_products(path: Path | str) -> bytes | None:
    """The ONNX graph at `path` with its modulated pointwise convolutions as matrix products; None when it has none.

    Its external weights stay where they are, in files beside `path`.
    """
    if Path(path).stat().st_size > LARGEST_GRAPH:
        return None
    import onnx  # here: takes 0.4 s, and graphs without external weights do without
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError:
        return None  # ONNX Runtime will say what is wrong with it
    return model.SerializeToString() if rewrite(model) else None


def rewrite(model: onnx.ModelProto) -> int:
    """Rewrite a graph in place; returns how many convolutions became matrix products."""
    from onnx import helper, numpy_helper

    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    outputs = {port.name for port in graph.output}
    constants = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    constants |= {  # half-precision weights are cast while loading
        node.output[0]: constants[node.input[0]]
        for node in graph.node
        if node.op_type == "Cast" and node.input[0] in constants
    }
    shapes = _shapes(model)

    def alone(name: str) -> bool:
        return len(users.get(name, [])) == 1 and name not in outputs

    plan: dict[str, tuple[onnx.NodeProto, onnx.NodeProto | None]] = {}  # pointwise output -> (Mul, depthwise or None)
    for node in graph.node:
        if node.op_type != "Conv" or constants.get(node.input[1], ())[2:] != (1, 1) or _option(node, "group", 1) != 1:
            continue
        if (
            None in shapes.get(node.output[0], (None,))[2:]
            or set(_option(node, "strides", [1])) != {1}
            or any(_option(node, "pads", [0]))
        ):
            continue
        source = makers.get(node.input[0])
        depthwise = None
        if source is not None and source.op_type == "Conv" and alone(node.input[0]):
            shape = constants.get(source.input[1], ())
            same = shape[:2] == (_option(source, "group", 1), 1) and len(source.input) == 2
            depthwise, source = (source, makers.get(source.input[0])) if same else (None, None)
            if depthwise is not None and not alone(depthwise.input[0]):
                continue
        elif not alone(node.input[0]):
            continue
        channels = constants[node.input[1]][1]
        if source is None or source.op_type != "Mul" or source.input[1] in constants:
            continue
        if shapes.get(source.input[1], ())[1:] == (channels, 1, 1):
            plan[node.output[0]] = (source, depthwise)
    if not plan:
        return 0

    def constant(name: str, values: list[int]) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    dropped = {id(multiply) for multiply, _ in plan.values()}
    shifted = {}  # output of an Add of noise that is folded into one constant with the bias -> what stands for it
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if id(node) in dropped:
            continue
        if node.output[0] in shifted:
            node.input[:] = shifted[node.output[0]]
        if node.output[0] not in plan:
            nodes.append(node)
            continue
        multiply, depthwise = plan[node.output[0]]
        if depthwise is None:
            node.input[0] = multiply.input[0]
        else:
            depthwise.input[0] = multiply.input[0]
        out, weight = node.output[0], node.input[1]
        c_out, c_in = constants[weight][:2]
        height, width = (int(size or 0) for size in shapes[out][2:])  # fixed, or it were not planned
        nodes += [
            helper.make_node("Reshape", [weight, constant(f"{out}/plane", [c_out, c_in])], [f"{out}/weight"]),
            helper.make_node("Reshape", [multiply.input[1], constant(f"{out}/row", [-1, 1, c_in])], [f"{out}/style"]),
            helper.make_node("Mul", [f"{out}/weight", f"{out}/style"], [f"{out}/modulated"]),
            helper.make_node("Reshape", [node.input[0], constant(f"{out}/flat", [0, c_in, -1])], [f"{out}/columns"]),
            helper.make_node("MatMul", [f"{out}/modulated", f"{out}/columns"], [f"{out}/product"]),
        ]
        back = constant(f"{out}/map", [0, c_out, height, width])
        if len(node.input) < 3:
            nodes.append(helper.make_node("Reshape", [f"{out}/product", back], [out]))
            continue
        shift = f"{out}/shift"
        nodes.append(helper.make_node("Reshape", [node.input[2], constant(f"{out}/tall", [c_out, 1, 1])], [shift]))
        following = users[out][0] if alone(out) else None
        noise = next((n for n in following.input if n != out), "") if following is not None else ""
        small = 4 * c_out * height * width <= LARGEST_SHIFT
        fits = constants.get(noise, ())[-3:] == (1, height, width)
        if following is not None and following.op_type == "Add" and small and fits:
            nodes.append(helper.make_node("Add", [noise, shift], [f"{out}/noise"]))
            nodes.append(helper.make_node("Reshape", [f"{out}/product", back], [out]))
            shifted[following.output[0]] = [out, f"{out}/noise"]
        else:
            nodes.append(helper.make_node("Reshape", [f"{out}/product", back], [f"{out}/unshifted"]))
            nodes.append(helper.make_node("Add", [f"{out}/unshifted", shift], [out]))
    del graph.node[:]
    graph.node.extend(nodes)
    return len(plan)


def _option(node: onnx.NodeProto, name: str, otherwise: Any) -> Any:
    from onnx import helper

    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), otherwise)


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Shape of every result of a graph as far as it is fixed; None for a size that is not."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model)
    return {
        value.name: tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)
        for value in (*inferred.graph.value_info, *inferred.graph.output)
    }
