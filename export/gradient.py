"""Reverse-mode differentiation of an ONNX graph: the same graph with one more output, a gradient.

So an engine without PyTorch can optimise an input. Every shape of the graph has to be fixed. Each operator between the
input and the scalar has its vector-Jacobian product below, made of plain operators, weights shared with the forward
pass: a convolution of stride 1 is undone by one with turned kernels, which engines run as fast as the forward one.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper, shape_inference

from ..runtime.errors import FidError

Shape = tuple[int, ...]


def with_gradient(model: onnx.ModelProto, of: str, wrt: str, name: str) -> onnx.ModelProto:
    """Return the model with the output `name` more: the gradient of the scalar `of` with respect to the input `wrt`.

    Raises FidError for an operator without a rule here and for a shape that is not fixed.
    """
    model = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    backward = _Backward(model.graph, wrt)
    gradient = backward.run(of)
    graph = model.graph
    graph.node.extend([*backward.nodes, helper.make_node("Identity", [gradient], [name])])
    graph.initializer.extend(backward.constants)
    graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, backward.shapes[wrt]))
    graph.ClearField("value_info")
    onnx.checker.check_model(model)
    return model


class _Backward:
    """The nodes of the backward pass, last operator first. `gradients` are known by the name of the forward tensor."""

    def __init__(self, graph: onnx.GraphProto, wrt: str) -> None:
        self.graph = graph
        self.constants: list[TensorProto] = []
        self.nodes: list[NodeProto] = []
        self.gradients: dict[str, str] = {}
        self.wrt = wrt
        self._made: dict[Any, str] = {}  # so that equal nodes and constants are made once
        self._values = {tensor.name: tensor for tensor in graph.initializer}
        self.shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        for value in (*graph.input, *graph.output, *graph.value_info):
            self.shapes[value.name] = tuple(side.dim_value for side in value.type.tensor_type.shape.dim)
        self.active = {wrt}  # tensors that depend on the input
        for node in graph.node:
            if self.active.intersection(node.input):
                self.active.update(node.output)

    def run(self, of: str) -> str:
        """Differentiate everything between; returns the name of the gradient."""
        self.gradients[of] = self.constant(np.ones(self.shapes[of], np.float32))
        for node in reversed(self.graph.node):
            output = node.output[0]
            if output not in self.gradients or not self.active.intersection(node.input):
                continue
            rule = _RULES.get(node.op_type)
            if rule is None:
                raise FidError(f"the operator {node.op_type} cannot be differentiated: it has no rule.")
            touched = [output, *(name for name in node.input if name in self.active)]
            if not all(0 not in self.shapes.get(name, (0,)) for name in touched):
                raise FidError(f"the graph cannot be differentiated: {node.name or node.op_type} has no fixed shape.")
            options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            rule(self, node, self.gradients[output], options)
        if self.wrt not in self.gradients:
            raise FidError(f"{of} does not depend on {self.wrt}.")
        return self.gradients[self.wrt]

    def constant(self, array: np.ndarray) -> str:
        """Return a constant tensor's name."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._made:
            name = self._made[key] = f"gradient.constant_{len(self.constants)}"
            self.constants.append(numpy_helper.from_array(array, name))
            self.shapes[name] = array.shape
        return self._made[key]

    def value(self, name: str) -> np.ndarray:
        """Return what a constant of the forward graph holds."""
        return numpy_helper.to_array(self._values[name])

    def make(self, operator: str, inputs: Sequence[str], shape: Sequence[int], **options: Any) -> str:
        """Add one node; returns the name of its output, which has `shape`."""
        key = (operator, tuple(inputs), repr(sorted(options.items())))
        if key not in self._made:
            name = self._made[key] = f"gradient.{operator.lower()}_{len(self.nodes)}"
            self.nodes.append(helper.make_node(operator, inputs, [name], **options))
            self.shapes[name] = tuple(shape)
        return self._made[key]

    def give(self, name: str, gradient: str) -> None:
        """Add to the gradient of a forward tensor; sums over the axes along which the tensor was broadcast."""
        if name not in self.active:
            return
        gradient = self._reduced(gradient, self.shapes[name])
        if name in self.gradients:
            gradient = self.make("Add", [self.gradients[name], gradient], self.shapes[name])
        self.gradients[name] = gradient

    def scaled(self, gradient: str, factor: float) -> str:
        """Return the gradient times a number."""
        return self.product(gradient, self.constant(np.array(factor, np.float32)))

    def product(self, gradient: str, other: str) -> str:
        """Return the gradient times a tensor that can be broadcast to its shape."""
        return self.make("Mul", [gradient, other], self.shapes[gradient])

    def reshaped(self, gradient: str, shape: Shape) -> str:
        """Return the gradient in another shape of as many numbers."""
        return self.make("Reshape", [gradient, self.constant(np.array(shape, np.int64))], shape)

    def _reduced(self, gradient: str, shape: Shape) -> str:
        wide = self.shapes[gradient]
        if wide == shape:
            return gradient
        aligned = (1,) * (len(wide) - len(shape)) + shape
        axes = [axis for axis, (a, b) in enumerate(zip(wide, aligned, strict=True)) if a != b]
        if axes:
            kept = tuple(1 if axis in axes else side for axis, side in enumerate(wide))
            gradient = self.make("ReduceSum", [gradient, self.constant(np.array(axes, np.int64))], kept, keepdims=1)
        return gradient if self.shapes[gradient] == shape else self.reshaped(gradient, shape)


_Rule = Callable[[_Backward, NodeProto, str, dict[str, Any]], None]


def _add(b: _Backward, node: NodeProto, g: str, _: dict[str, Any]) -> None:
    for name in node.input:
        b.give(name, g)


def _sub(b: _Backward, node: NodeProto, g: str, _: dict[str, Any]) -> None:
    b.give(node.input[0], g)
    if node.input[1] in b.active:
        b.give(node.input[1], b.make("Neg", [g], b.shapes[g]))


def _mul(b: _Backward, node: NodeProto, g: str, _: dict[str, Any]) -> None:
    left, right = node.input
    for name, other in ((left, right), (right, left)):
        if name in b.active:
            b.give(name, b.product(g, other))


def _div(b: _Backward, node: NodeProto, g: str, _: dict[str, Any]) -> None:
    above, below = node.input
    ratio = b.make("Div", [g, below], b.shapes[g])
    b.give(above, ratio)
    if below in b.active:  # d(a / b) = -(a / b) / b
        b.give(below, b.make("Neg", [b.product(ratio, node.output[0])], b.shapes[g]))


def _pow(b: _Backward, node: NodeProto, g: str, _: dict[str, Any]) -> None:
    if b.value(node.input[1]) != 2:
        raise FidError("of powers only the square can be differentiated here.")
    b.give(node.input[0], b.scaled(b.product(g, node.input[0]), 2))


def _sqrt(b: _Backward, node: NodeProto, g: str, _: dict[str, Any]) -> None:
    b.give(node.input[0], b.scaled(b.make("Div", [g, node.output[0]], b.shapes[g]), 0.5))


def _abs(b: _Backward, node: NodeProto, g: str, _: dict[str, Any]) -> None:
    b.give(node.input[0], b.product(g, b.make("Sign", [node.input[0]], b.shapes[g])))


def _leaky(b: _Backward, node: NodeProto, g: str, options: dict[str, Any]) -> None:
    """LeakyRelu, and PRelu of constant slopes."""
    alpha = np.array(options.get("alpha", 0.01), np.float32)
    slope = node.input[1] if node.op_type == "PRelu" else b.constant(alpha)
    x, shape, zero, one = node.input[0], b.shapes[g], *(b.constant(np.array(n, np.float32)) for n in (0, 1))
    positive = b.make("Greater", [x, zero], shape)
    b.give(x, b.product(g, b.make("Where", [positive, one, slope], shape)))


def _relu(b: _Backward, node: NodeProto, g: str, _: dict[str, Any]) -> None:
    zero, shape = b.constant(np.array(0, np.float32)), b.shapes[g]
    positive = b.make("Greater", [node.input[0], zero], shape)
    b.give(node.input[0], b.make("Where", [positive, g, zero], shape))


def _gemm(b: _Backward, node: NodeProto, g: str, options: dict[str, Any]) -> None:
    """x @ W, or x @ W', for a constant W."""
    if options.get("transA") or options.get("alpha", 1.0) != 1 or node.input[1] in b.active:
        raise FidError("of matrix products only those with constant weights can be differentiated here.")
    b.give(
        node.input[0], b.make("Gemm", [g, node.input[1]], b.shapes[node.input[0]], transB=1 - options.get("transB", 0))
    )


def _matmul(b: _Backward, node: NodeProto, g: str, _: dict[str, Any]) -> None:
    """A @ B, one of both constant; either may be broadcast."""
    left, right = node.input
    rows, columns = b.shapes[g][:-2], b.shapes[g][-2:]
    if left in b.active:
        shape = (*rows, columns[0], b.shapes[left][-1])
        b.give(left, b.make("MatMul", [g, _transposed(b, right)], shape))
    if right in b.active:
        shape = (*rows, b.shapes[right][-2], columns[1])
        b.give(right, b.make("MatMul", [_transposed(b, left), g], shape))


def _transposed(b: _Backward, name: str) -> str:
    *front, rows, columns = b.shapes[name]
    axes = range(len(front))
    return b.make("Transpose", [name], (*front, columns, rows), perm=[*axes, len(front) + 1, len(front)])


def _same_numbers(b: _Backward, node: NodeProto, g: str, _: dict[str, Any]) -> None:
    """Reshape and its like."""
    if node.input[0] in b.active:
        b.give(node.input[0], b.reshaped(g, b.shapes[node.input[0]]))


def _transpose(b: _Backward, node: NodeProto, g: str, options: dict[str, Any]) -> None:
    order = [int(axis) for axis in np.argsort(options["perm"])]
    b.give(node.input[0], b.make("Transpose", [g], b.shapes[node.input[0]], perm=order))


def _expand(b: _Backward, node: NodeProto, g: str, _: dict[str, Any]) -> None:
    b.give(node.input[0], g)


def _reduce(b: _Backward, node: NodeProto, g: str, _: dict[str, Any]) -> None:
    """ReduceSum and ReduceMean."""
    shape = b.shapes[node.input[0]]
    given = b.value(node.input[1]) if len(node.input) > 1 and node.input[1] else range(len(shape))
    axes = [int(axis) % len(shape) for axis in given]
    g = b.reshaped(g, tuple(1 if axis in axes else side for axis, side in enumerate(shape)))
    if node.op_type == "ReduceMean":
        g = b.scaled(g, 1 / math.prod(shape[axis] for axis in axes))
    b.give(node.input[0], b.make("Expand", [g, b.constant(np.array(shape, np.int64))], shape))


def _slice(b: _Backward, node: NodeProto, g: str, _: dict[str, Any]) -> None:
    shape = b.shapes[node.input[0]]
    starts, ends, axes, *steps = (b.value(name) for name in node.input[1:])
    if any((step != 1).any() for step in steps):
        raise FidError("of slices only those without steps can be differentiated here.")
    pads = np.zeros((2, len(shape)), np.int64)
    for start, end, axis in zip(starts, ends, axes, strict=True):
        first, last = slice(int(start), int(end)).indices(shape[axis])[:2]
        pads[:, axis] = first, shape[axis] - last
    b.give(node.input[0], b.make("Pad", [g, b.constant(pads.flatten())], shape))


def _average_pool(b: _Backward, node: NodeProto, g: str, options: dict[str, Any]) -> None:
    kernel, shape = list(options["kernel_shape"]), b.shapes[node.input[0]]
    if kernel != list(options["strides"]) or any(options.get("pads", ())):
        raise FidError("of average pooling only that of separate windows can be differentiated here.")
    share = b.constant(np.full((shape[1], 1, *kernel), 1 / math.prod(kernel), np.float32))
    spread = b.make("ConvTranspose", [g, share], shape, group=shape[1], strides=kernel, kernel_shape=kernel)
    b.give(node.input[0], spread)


def _max_pool(b: _Backward, node: NodeProto, g: str, options: dict[str, Any]) -> None:
    """Maxima of windows, which may overlap; equal maxima of a window share its gradient.

    A convolution lays every place of a window beside the others, its adjoint brings them back.
    """
    kernel, strides, (_, channels, *sides) = list(options["kernel_shape"]), list(options["strides"]), b.shapes[g]
    x, shape, places = node.input[0], b.shapes[node.input[0]], math.prod(kernel)
    if any(options.get("pads", ())) or options.get("ceil_mode") or list(options.get("dilations", (1, 1))) != [1, 1]:
        raise FidError("of maximum pooling only that without padding can be differentiated here.")
    each = b.constant(np.tile(np.eye(places, dtype=np.float32).reshape(places, 1, *kernel), (channels, 1, 1, 1)))
    window = {"group": channels, "kernel_shape": kernel, "strides": strides}
    wide, apart = (1, channels * places, *sides), (1, channels, places, *sides)
    laid = b.reshaped(b.make("Conv", [x, each], wide, **window), apart)
    one = (1, channels, 1, *sides)
    equal = b.make("Equal", [laid, b.reshaped(node.output[0], one)], apart)
    largest = b.make("Cast", [equal], apart, to=TensorProto.FLOAT)
    count = b.make("ReduceSum", [largest, b.constant(np.array([2], np.int64))], one, keepdims=1)
    share = b.product(largest, b.make("Div", [b.reshaped(g, one), count], one))
    rest = [shape[2 + i] - (sides[i] - 1) * strides[i] - kernel[i] for i in (0, 1)]
    b.give(x, b.make("ConvTranspose", [b.reshaped(share, wide), each], shape, output_padding=rest, **window))


def _conv(b: _Backward, node: NodeProto, g: str, options: dict[str, Any]) -> None:
    """A convolution with constant weights, dense or depthwise; its adjoint."""
    x, weight = node.input[:2]
    shape, kernel, group = b.shapes[x], list(options["kernel_shape"]), int(options.get("group", 1))
    strides, pads = list(options.get("strides", (1, 1))), list(options.get("pads", (0, 0, 0, 0)))
    if weight in b.active or list(options.get("dilations", (1, 1))) != [1, 1]:
        raise FidError("of convolutions only those with constant, undilated weights can be differentiated here.")
    if strides == [1, 1] and group in (1, shape[1]):
        pads = [kernel[i % 2] - 1 - pad for i, pad in enumerate(pads)]
        turned = _turned(b, weight, dense=group == 1)
        b.give(x, b.make("Conv", [g, turned], shape, group=group, kernel_shape=kernel, pads=pads))
        return
    covered = [(b.shapes[g][2 + i] - 1) * strides[i] + kernel[i] - pads[i] - pads[2 + i] for i in (0, 1)]
    rest = [shape[2 + i] - covered[i] for i in (0, 1)]
    window = {"kernel_shape": kernel, "pads": pads, "strides": strides, "output_padding": rest}
    b.give(x, b.make("ConvTranspose", [g, weight], shape, group=group, **window))


def _turned(b: _Backward, weight: str, dense: bool) -> str:
    """Kernels [out, in, H, W] turned by 180 degrees, out and in exchanged for a dense convolution."""
    shape = b.shapes[weight]
    if shape[2:] != (1, 1):
        parts = [b.constant(np.array(v, np.int64)) for v in ((-1, -1), (-(1 << 31),) * 2, (2, 3), (-1, -1))]
        weight = b.make("Slice", [weight, *parts], shape)
    return b.make("Transpose", [weight], (shape[1], shape[0], *shape[2:]), perm=[1, 0, 2, 3]) if dense else weight


def _conv_transpose(b: _Backward, node: NodeProto, g: str, options: dict[str, Any]) -> None:
    x, weight = node.input[:2]
    if any(options.get("output_padding", ())) or weight in b.active:
        raise FidError("of transposed convolutions only those with constant weights can be differentiated here.")
    window = {name: options[name] for name in ("kernel_shape", "strides", "pads", "group") if name in options}
    b.give(x, b.make("Conv", [g, weight], b.shapes[x], **window))


_RULES: dict[str, _Rule] = {
    "Add": _add,
    "Sub": _sub,
    "Mul": _mul,
    "Div": _div,
    "Pow": _pow,
    "Sqrt": _sqrt,
    "Abs": _abs,
    "Relu": _relu,
    "LeakyRelu": _leaky,
    "PRelu": _leaky,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Reshape": _same_numbers,
    "Unsqueeze": _same_numbers,
    "Squeeze": _same_numbers,
    "Flatten": _same_numbers,
    "Transpose": _transpose,
    "Expand": _expand,
    "ReduceSum": _reduce,
    "ReduceMean": _reduce,
    "Slice": _slice,
    "AveragePool": _average_pool,
    "MaxPool": _max_pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
}
