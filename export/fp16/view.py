"""An ONNX graph as the conversion to FP16 reads it: who makes and who takes a value, its shape, how large it can be.

Values are tensors by name, nodes are numbered in the order of the graph; a layer is a convolution or a DepthToSpace
node.
"""

import math
from collections import defaultdict
from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

CONVOLUTIONS = {"Conv", "ConvTranspose"}
MOVES = {"Slice", "Reshape", "Squeeze", "Unsqueeze", "Concat", "DepthToSpace", "SpaceToDepth", "Transpose"}
POOLS = {"AveragePool", "MaxPool", "GlobalAveragePool"}


class GraphView:
    """A float32 graph, to be asked about its nodes by number and its values by name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.nodes = list(model.graph.node)
        self.producer = {out: i for i, node in enumerate(self.nodes) for out in node.output}
        self.consumers: dict[str, list[int]] = defaultdict(list)
        for i, node in enumerate(self.nodes):
            for name in node.input:
                self.consumers[name].append(i)
        self.types, self.shapes = _inferred(model)
        self.outputs = {port.name for port in model.graph.output}

    def layer_name(self, i: int) -> str:
        """Return the name of a convolution's weight's module; another layer goes by its node's."""
        node = self.nodes[i]
        if node.op_type in CONVOLUTIONS:
            return node.input[1].removesuffix(".weight")
        return node.name or node.output[0]

    def channels(self, i: int) -> float:
        """Return how many channels a convolution takes; infinite where its weights are computed."""
        node = self.nodes[i]
        weight = self.constants.get(node.input[1])
        if weight is None:
            return math.inf
        return weight.shape[0] if node.op_type == "ConvTranspose" else weight.shape[1] * attribute(node, "group", 1)

    def floats(self, i: int) -> list[str]:
        """Return the inputs of a node that are float32 and no constants."""
        return [n for n in self.nodes[i].input if n not in self.constants and self.types.get(n) == TensorProto.FLOAT]

    def scalars_only(self, i: int) -> bool:
        """Tell whether the float constants that a node takes are single numbers."""
        constants = [self.constants[n] for n in self.nodes[i].input if n in self.constants]
        return all(c.size == 1 for c in constants if c.dtype == np.float32)

    def is_linear_move(self, i: int) -> bool:
        """Tell whether a node gives a sum of its input's numbers, moved about or scaled by a constant."""
        node = self.nodes[i]
        if node.op_type in MOVES:
            return True
        floats = len(self.floats(i))
        if node.op_type in ("Add", "Sub"):
            return floats == 2 and all(self.is_map(name) for name in self.floats(i))
        return node.op_type == "Mul" and floats == 1 and self.scalars_only(i)

    def is_map(self, name: str) -> bool:
        """Tell whether a value has a picture's plane."""
        shape = self.shapes.get(name)
        return shape is not None and len(shape) >= 4 and shape[-2:] != (1, 1)

    def is_style(self, name: str) -> bool:
        """Tell whether a value is one factor for each sample and channel, [N, C, 1, 1]."""
        shape = self.shapes.get(name)
        return shape is not None and len(shape) == 4 and shape[-2:] == (1, 1)

    def style_of(self, name: str) -> tuple[str, str] | None:
        """Return (map, style) when a value is the product of a map and a style."""
        i = self.producer.get(name)
        if i is None or self.nodes[i].op_type != "Mul" or len(self.floats(i)) != 2:
            return None
        a, b = self.nodes[i].input
        if self.is_style(b) and self.is_map(a):
            return a, b
        return (b, a) if self.is_style(a) and self.is_map(b) else None

    def style_behind(self, i: int) -> bool:
        """Tell whether the map that a layer takes was multiplied by a style, with only linear nodes between."""
        todo, seen = self.floats(i)[:1], set()
        while todo:
            name = todo.pop()
            if self.style_of(name) is not None:
                return True
            j = self.producer.get(name)
            if j is None or j in seen:
                continue
            seen.add(j)
            node = self.nodes[j]
            if self.is_linear_move(j) or (node.op_type in CONVOLUTIONS and not self.has_bias(j)):
                todo.extend(self.floats(j))
        return False

    def has_bias(self, i: int) -> bool:
        """Tell whether a convolution adds a bias."""
        return len(self.nodes[i].input) > 2 and bool(self.nodes[i].input[2])

    def bound(self, name: str) -> float:
        """Return the largest that a float32 value can be, as far as the graph tells; else infinity."""
        if name in self.constants:
            return float(np.abs(self.constants[name]).max())
        if self.types.get(name) == TensorProto.UINT8:
            return 255.0
        i = self.producer.get(name)
        if i is None:
            return math.inf
        node = self.nodes[i]
        known = [float(np.abs(self.constants[n]).max()) for n in node.input[1:] if n in self.constants]
        if node.op_type in MOVES - {"Concat"} | POOLS | {"Cast", "Expand", "Relu"}:
            return self.bound(node.input[0])
        if node.op_type in ("Add", "Sub") and known:
            return self.bound(node.input[0]) + known[0]
        if node.op_type == "Mul" and known:
            return self.bound(node.input[0]) * known[0]
        if node.op_type == "Div" and known:
            return self.bound(node.input[0]) / float(np.abs(self.constants[node.input[1]]).min())
        return math.inf


def attribute(node: onnx.NodeProto, name: str, default):
    """Return an attribute of a node, or what it is by default."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def largest_sum(weight: np.ndarray, node: onnx.NodeProto) -> float:
    """Return max over output channels of sum |W|: how much a convolution can enlarge a bounded map."""
    size = np.abs(weight.astype(np.float64))
    if node.op_type == "Conv":
        return float(size.reshape(len(size), -1).sum(1).max())
    group = attribute(node, "group", 1)  # ConvTranspose: [C_in, C_out / group, ...]
    return float(size.reshape(group, len(size) // group, size.shape[1], -1).sum((1, 3)).max())


def in_order(nodes: list[onnx.NodeProto], known: Collection[str], outputs: Collection[str]) -> list[onnx.NodeProto]:
    """Return the nodes that the outputs need, each behind those that it takes from; otherwise in the order given."""
    producer = {out: node for node in nodes for out in node.output}
    needed, todo = set(), list(outputs)
    while todo:
        name = todo.pop()
        if name in producer and name not in needed:
            needed.add(name)
            todo.extend(producer[name].input)
    done, result = {*known, ""}, []
    for start in nodes:
        stack = [start] if start.output[0] in needed else []
        while stack:
            node = stack[-1]
            missing = [] if node.output[0] in done else [producer[name] for name in node.input if name not in done]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            if node.output[0] not in done:
                result.append(node)
                done.update(node.output)
    return result


def _inferred(model: onnx.ModelProto) -> tuple[dict[str, int], dict[str, tuple[int | str, ...]]]:
    """Return element type and shape of every value, as far as ONNX can tell."""
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    types: dict[str, int] = {}
    shapes: dict[str, tuple[int | str, ...]] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
        if value.type.tensor_type.HasField("shape"):
            shapes[value.name] = tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
    return types, shapes
