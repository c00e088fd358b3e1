"""Forms of a graph that ONNX Runtime computes quicker on a CPU than the exporter's.

Modulated pointwise convolutions as matrix products. A style scales the channels that go into a convolution. Scaling the
weights instead is the same arithmetic,

    conv1x1(depthwise(x * s), W) = (W * s) @ depthwise(x)

and costs Cout * Cin products for a whole picture. ONNX Runtime cannot put changing weights into its blocked
convolutions, but as a matrix product it need not: there is no pass over the picture for the scaling and no change of
layout around the convolution, and its matrix product is the faster kernel; not so with AVX-512, whose blocked
convolutions are the faster ones. Other engines fuse the scaling and keep the graph as it is.

Slopes of a gradient. What `refine` differentiates, PRelu and LeakyRelu, comes with a factor for the gradient, 1 or the
slope by the sign of x. PRelu itself is a slow kernel and x times that factor, so it becomes this product; where the
slope is one number in 0..1 the factor is clip(x * 1e30, slope, 1), which takes less than a comparison and a choice.

Steady inputs. What hangs on inputs alone that stay the same over many runs is a graph of its own, to be run once.

The graphs of a bundle are left alone: this is done in memory while a session opens. Figures: benchmarks/LOG.md.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx


LARGEST_GRAPH = 1 << 20
"""Bytes. A larger file holds its weights itself: it is none of our generators, and reading it would take time."""

STEEP = 1e30
"""By which x is multiplied so that only its sign remains when it is cut to 0..1."""


def quick_forms(path: Path | str, *, products: bool, steady: Collection[str] = ()) -> tuple[bytes, bytes]:
    """Return the ONNX graph at `path` in its quicker form, and what of it hangs on the inputs `steady` alone as a graph
    of its own; b"" for either where there is nothing to be changed.

    products: modulated pointwise convolutions as matrix products. External weights stay where they are, in files
    beside `path`.
    """
    if Path(path).stat().st_size > LARGEST_GRAPH:
        return b"", b""
    import onnx  # here: takes 0.4 s, and graphs without external weights do without
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError:
        return b"", b""  # ONNX Runtime will say what is wrong with it
    first = without_steady(model, steady) if steady else None
    changed = with_slopes(model) + (rewrite(model) if products else 0) + (first is not None)
    return model.SerializeToString() if changed else b"", first.SerializeToString() if first is not None else b""


def with_slopes(model: onnx.ModelProto) -> int:
    """Rewrite PRelu and the slopes of its gradient and of LeakyRelu's, in place; returns how many slopes."""
    from onnx import helper, numpy_helper

    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    users: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            users[name] = users.get(name, 0) + 1
    numbers = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if not tensor.external_data}
    slopes = {}  # x -> the choice by its sign
    for node in graph.node:
        test = makers.get(node.input[0]) if node.op_type == "Where" else None
        if test is None or test.op_type != "Greater" or users[node.input[0]] != 1:
            continue
        bound, above = (numbers.get(name) for name in (test.input[1], node.input[1]))
        if bound is not None and above is not None and not bound.any() and (above == 1).all():
            slopes[test.input[0]] = node
    tests = {node.input[0] for node in slopes.values()}
    choices = {node.output[0]: x for x, node in slopes.items()}
    pending = dict(slopes)
    nodes: list[onnx.NodeProto] = []

    def put_slope(x: str) -> None:
        choice = pending.pop(x, None)
        if choice is None:
            return
        name, below = choice.output[0], numbers.get(choice.input[2])
        if below is not None and below.size == 1 and 0 <= float(below) <= 1:
            graph.initializer.append(numpy_helper.from_array(np.array(STEEP, np.float32), f"{name}/steep"))
            nodes.append(helper.make_node("Mul", [x, f"{name}/steep"], [f"{name}/steeper"]))
            nodes.append(helper.make_node("Clip", [f"{name}/steeper", choice.input[2], choice.input[1]], [name]))
        else:
            nodes.extend((makers[choice.input[0]], choice))

    for node in graph.node:
        if node.output[0] in tests:
            continue
        if node.output[0] in choices:
            put_slope(choices[node.output[0]])
        elif node.op_type == "PRelu" and node.input[0] in slopes:
            put_slope(node.input[0])
            factor = slopes[node.input[0]].output[0]
            nodes.append(helper.make_node("Mul", [node.input[0], factor], [node.output[0]], name=node.name))
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return len(slopes)


def without_steady(model: onnx.ModelProto, steady: Collection[str]) -> onnx.ModelProto | None:
    """Take what hangs on the inputs `steady` alone out of a graph and return it as a graph of its own, whose results
    become inputs of the rest in the place of `steady`; None when there is nothing, and the graph stays as it is."""
    import onnx

    graph = model.graph
    varying = {port.name for port in graph.input} - set(steady)
    fixed: set[str] = set(steady)
    cut: dict[str, None] = {}
    for node in graph.node:
        if varying & set(node.input):
            varying |= set(node.output)
            cut |= dict.fromkeys(name for name in node.input if name in fixed)
        elif fixed & set(node.input):
            fixed |= set(node.output)
    if not cut or cut.keys() & {*steady} or any(port.name in fixed for port in graph.output):
        return None
    inferred = onnx.shape_inference.infer_shapes(model).graph
    ports = {value.name: value for value in inferred.value_info}
    first = onnx.ModelProto()
    first.CopyFrom(model)
    _keep(first, [port for port in graph.input if port.name in steady], [ports[name] for name in cut])
    rest = [port for port in graph.input if port.name not in steady]
    _keep(model, [*rest, *(ports[name] for name in cut)], list(graph.output))
    return first


def _keep(model: onnx.ModelProto, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    """Leave in a graph what leads from some values to others, in place."""
    graph = model.graph
    given, wanted = {port.name for port in inputs}, {port.name for port in outputs}
    nodes: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            nodes.append(node)
            wanted |= set(node.input) - given
    tensors = [tensor for tensor in graph.initializer if tensor.name in wanted]
    kept: tuple[tuple[Any, list[Any]], ...] = (
        (graph.node, nodes[::-1]),
        (graph.initializer, tensors),
        (graph.input, list(inputs)),
        (graph.output, list(outputs)),
        (graph.value_info, []),
    )
    for field, values in [(field, [_copied(value) for value in values]) for field, values in kept]:
        del field[:]
        field.extend(values)


def _copied(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def rewrite(model: onnx.ModelProto) -> int:
    """Rewrite a graph in place; returns how many convolutions became matrix products."""
    view = _View(model)
    plan = {node.output[0]: found for node in model.graph.node if (found := view.modulation_of(node)) is not None}
    if not plan:
        return 0
    dropped = {id(multiply) for multiply, _ in plan.values()}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if id(node) in dropped:
            continue
        if node.output[0] not in plan:
            nodes.append(node)
            continue
        multiply, depthwise = plan[node.output[0]]
        (node if depthwise is None else depthwise).input[0] = multiply.input[0]
        nodes += view.product(node, multiply.input[1])
        nodes += view.back(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return len(plan)


class _View:
    """A graph to be rewritten: who makes and who takes a value, and the shapes that are fixed."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = graph = model.graph
        self.makers = {name: node for node in graph.node for name in node.output}
        self.users: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.outputs = {port.name for port in graph.output}
        self.constants = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        self.constants |= {  # FP16 weights are cast while loading
            node.output[0]: self.constants[node.input[0]]
            for node in graph.node
            if node.op_type == "Cast" and node.input[0] in self.constants
        }
        self.shapes = _shapes(model)

    def alone(self, name: str) -> bool:
        """Tell whether a value goes into one node and nowhere else."""
        return len(self.users.get(name, [])) == 1 and name not in self.outputs

    def is_pointwise(self, node: onnx.NodeProto) -> bool:
        """Tell whether a node is a plain 1x1 convolution to a map of fixed size."""
        if node.op_type != "Conv" or self.constants.get(node.input[1], ())[2:] != (1, 1):
            return False
        plain = _option(node, "group", 1) == 1 and set(_option(node, "strides", [1])) == {1}
        return (
            plain and not any(_option(node, "pads", [0])) and None not in self.shapes.get(node.output[0], (None,))[2:]
        )

    def modulation_of(self, node: onnx.NodeProto) -> tuple[onnx.NodeProto, onnx.NodeProto | None] | None:
        """Return the Mul by a style before a pointwise convolution, and the depthwise convolution between or None."""
        if not self.is_pointwise(node) or not self.alone(node.input[0]):
            return None
        source, depthwise = self.makers.get(node.input[0]), None
        if source is not None and source.op_type == "Conv":
            shape = self.constants.get(source.input[1], ())
            if (
                shape[:2] != (_option(source, "group", 1), 1)
                or len(source.input) != 2
                or not self.alone(source.input[0])
            ):
                return None
            depthwise, source = source, self.makers.get(source.input[0])
        if source is None or source.op_type != "Mul" or source.input[1] in self.constants:
            return None
        channels = self.constants[node.input[1]][1]
        return (source, depthwise) if self.shapes.get(source.input[1], ())[1:] == (channels, 1, 1) else None

    def product(self, node: onnx.NodeProto, style: str) -> list[onnx.NodeProto]:
        """Return the nodes of (W * s) @ x for a pointwise convolution of x by W."""
        from onnx import helper

        out, weight = node.output[0], node.input[1]
        c_out, c_in = self.constants[weight][:2]
        plane, row, flat = (
            self.constant(f"{out}/{name}", sizes)
            for name, sizes in (("plane", [c_out, c_in]), ("row", [-1, 1, c_in]), ("flat", [0, c_in, -1]))
        )
        return [
            helper.make_node("Reshape", [weight, plane], [f"{out}/weight"]),
            helper.make_node("Reshape", [style, row], [f"{out}/style"]),
            helper.make_node("Mul", [f"{out}/weight", f"{out}/style"], [f"{out}/modulated"]),
            helper.make_node("Reshape", [node.input[0], flat], [f"{out}/columns"]),
            helper.make_node("MatMul", [f"{out}/modulated", f"{out}/columns"], [f"{out}/product"]),
        ]

    def back(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return the nodes from the product to the convolution's result: its shape, its bias."""
        from onnx import helper

        out = node.output[0]
        c_out = self.constants[node.input[1]][0]
        height, width = (int(size or 0) for size in self.shapes[out][2:])  # fixed, or it were not planned
        back = self.constant(f"{out}/map", [0, c_out, height, width])
        if len(node.input) < 3:
            return [helper.make_node("Reshape", [f"{out}/product", back], [out])]
        tall = self.constant(f"{out}/tall", [c_out, 1, 1])
        return [
            helper.make_node("Reshape", [f"{out}/product", back], [f"{out}/unshifted"]),
            helper.make_node("Reshape", [node.input[2], tall], [f"{out}/shift"]),
            helper.make_node("Add", [f"{out}/unshifted", f"{out}/shift"], [out]),
        ]

    def constant(self, name: str, values: list[int]) -> str:
        """Add a constant of whole numbers to the graph; returns its name."""
        from onnx import numpy_helper

        self.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name


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
