"""Seventh stage: a float32 graph to one typed in FP16, in which no FP16 number can overflow whatever the input.

Engines for GPUs take precision from the types in the graph. FP16 here are the convolutions, with their weights and
activations, and what only moves their maps about (the wavelet transform, residual sums, pooling). All else stays FP32:
styles, demodulation, norms, noise and bias of modulated layers, perceptrons, and the last convolutions to the image.

That nothing overflows follows from the graph alone. For every FP16 tensor a bound is computed and stands in the
`doc_string` of its node: a map that is cast to FP16 is first clipped to +-`CLAMP`, and a convolution answers at most
|x| max_o sum |W_o| + |b| (so do its partial sums, in any order and any precision of the accumulator). To keep that
under `LIMIT`,

- a modulated convolution conv(x s, W) runs as conv(x s/m, k W) m/k with m = max |s| for each sample (styles normalised
  as in StyleGAN2-ADA's FP16 layers) and a constant k, a power of two, so that the weights lose nothing; the product
  with m/k is FP32. A wavelet transform of x s does the same with k = 1;
- before any other convolution the map is clipped to what its weights allow.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .choose import LIMIT, choose, components, layers_of
from .view import CONVOLUTIONS, GraphView, attribute, in_order, largest_sum

CLAMP = 16384.0
"""Maps are clipped to +-CLAMP where they turn FP16. The shipped generator's reach some 2000 at psi 1."""


@dataclass(frozen=True)
class FP16Model:
    """The typed graph and what is known of it without running it."""

    model: onnx.ModelProto
    layers: tuple[str, ...]  # convolutions and wavelet transforms in FP16, by name, in the order of the graph
    kept_fp32: tuple[str, ...]  # those that were kept FP32 by request
    bound: float  # no FP16 tensor can be larger


def to_fp16(model: onnx.ModelProto, kept_fp32: Collection[str] = ()) -> FP16Model:
    """Type a float32 graph in FP16; inputs and outputs stay what they are. `kept_fp32`: layers that stay so, by name.

    Raises FidError when the graph has a convolution whose weights are not constant, for which nothing can be proven.
    """
    return _Converter(model, kept_fp32).convert()


class _Converter:
    """One conversion. Values are tensors by name; a layer is a convolution or a DepthToSpace node."""

    def __init__(self, model: onnx.ModelProto, kept_fp32: Collection[str]) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        del self.model.graph.value_info[:]
        cast_at_borders(self.model.graph)
        self.kept = frozenset(kept_fp32)
        self.view = GraphView(self.model)
        self.nodes, self.constants = self.view.nodes, self.view.constants
        self.extra: list[onnx.NodeProto] = []
        self.bounds: dict[str, float] = {}  # of values in FP16, under their FP32 names
        self.weights: dict[tuple[str, int], onnx.TensorProto] = {}  # FP16 weights by name and node
        self.modulated: set[int] = set()  # FP16 layers whose map was multiplied by a style
        self._cached: dict[tuple, str] = {}

    def convert(self) -> FP16Model:
        """Do all of it."""
        layers = layers_of(self.view)
        chosen, self.modulated = choose(self.view, [i for i, name in layers.items() if name not in self.kept])
        parts = components(self.view, chosen, self.modulated)
        converted = {i for part in parts if self._convert_component(part) for i in part}
        self._rewrite(converted)
        # The exporter stores equal weights once, so two layers may have one name; they are kept FP32 together.
        names = tuple(dict.fromkeys(layers[i] for i in sorted(converted) if i in layers))
        kept = tuple(dict.fromkeys(name for i, name in sorted(layers.items()) if i not in converted))
        return FP16Model(self.model, names, kept, max(self.bounds.values(), default=0.0))

    # One component

    def _convert_component(self, part: list[int]) -> bool:
        """Make the nodes around one component; False when it has to stay FP32."""
        inside = set(part)
        entries = dict.fromkeys(
            name for i in part for name in self.view.floats(i) if self.view.producer.get(name, -1) not in inside
        )
        styles = {name: self.view.style_of(name) for name in entries} if any(i in self.modulated for i in part) else {}
        # Each part has FP16 forms of its own: the scale of a style is in them.
        own = {name: f"{name}.for.{self.nodes[part[0]].output[0]}" for name in entries}
        before = {i: list(self.nodes[i].input) for i in part}
        for i in part:
            self.nodes[i].input[:] = [own.get(name, name) for name in before[i]]
        if not any(styles.values()):
            self._convert_plain(part, own)
            return True
        if len(entries) == 1:
            ((entry, style),) = styles.items()
            assert style is not None
            if self._convert_modulated(part, own[entry], *style):
                return True
        for i in part:  # two scales in one sum, or no clip that helps
            self.nodes[i].input[:] = before[i]
        return False

    def _convert_modulated(self, part: list[int], entry: str, x: str, style: str) -> bool:
        """x s -> the linear nodes -> y becomes clip(x) s/m -> the nodes in FP16 -> y m/k, and + b.

        False when no clip keeps the nodes under the limit.
        """
        clamp = CLAMP
        while (gains := self._scale(part, entry, min(clamp, self.view.bound(x)))) is None:
            clamp /= 2
            if clamp < 1:
                return False
        largest = self._once(("largest", style), lambda name: self._largest(style, name))
        unit = self._once(("unit", style), lambda name: self._node("Div", [style, largest], name))
        clipped = self._clipped(x, clamp)
        product = self._once((clipped, unit), lambda name: self._node("Mul", [clipped, unit], name))
        self._cast(entry, product)
        inside = set(part)
        for i in part:
            out = self.nodes[i].output[0]
            if out in self.view.outputs or any(j not in inside for j in self.view.consumers[out]):
                back = f"{out}.scaled"
                factor = largest
                if (rest := 1 / gains[out]) != 1:
                    factor = self._once(
                        (largest, rest), lambda name, by=rest: self._node("Mul", [largest, self._number(by)], name)
                    )
                cast = self._node("Cast", [_fp16(out)], f"{out}.wide", to=TensorProto.FLOAT)
                bias = self._bias(i)
                self._node("Mul", [cast, factor], back if bias else out)
                if bias:
                    self._node("Add", [back, bias], out)
        return True

    def _scale(self, part: list[int], entry: str, bound: float) -> dict[str, float] | None:
        """Choose k for each convolution of a part and compute its bounds from that of its entry.

        Returns by which product of them each value is larger, or None when a bound is past the limit or two values in a
        sum differ in it.
        """
        self.bounds[entry] = bound
        layers = [i for i in part if self.nodes[i].op_type in CONVOLUTIONS]
        gains = {entry: 1.0}
        for i in part:
            node = self.nodes[i]
            (gain, *others) = {gains[name] for name in node.input if name in gains}
            if others:
                return None
            if i in layers:
                # Only the last may use the whole range: numbers in between are best kept where they are.
                target = LIMIT if i == layers[-1] else CLAMP
                norm = largest_sum(self.constants[node.input[1]], node)
                k = 2.0 ** math.floor(math.log2(target / (self.bounds[node.input[0]] * max(norm, 1e-30))))
                self._weight(i, k)
                gain *= k
            gains[node.output[0]] = gain
            self.bounds[node.output[0]] = self._answer(i)
        return gains if all(self.bounds[self.nodes[i].output[0]] <= LIMIT for i in part) else None

    def _convert_plain(self, part: list[int], entries: Mapping[str, str]) -> None:
        """`entries`: FP32 values and the names that the part has for them."""
        for entry, own in entries.items():
            self.bounds[own] = min(CLAMP, self.view.bound(entry))
            self._cast(own, self._clipped(entry, CLAMP))
        inside = set(part)
        for i in part:
            node = self.nodes[i]
            if node.op_type in CONVOLUTIONS:
                self._weight(i, 1.0)
                weight = self.constants[node.input[1]]
                bias = np.abs(self.constants[node.input[2]]).max() if self.view.has_bias(i) else 0.0
                allowed = (LIMIT - float(bias)) / max(largest_sum(weight, node), 1e-30)
                if self.bounds[node.input[0]] > allowed:
                    self._clip_inside(i, 2.0 ** math.floor(math.log2(allowed)))
            elif (answer := self._answer(i)) > LIMIT:  # a sum, a steep slope
                for slot, name in enumerate(node.input):
                    if name in self.bounds:
                        self._clip_inside(i, 2.0 ** math.floor(math.log2(self.bounds[name] * LIMIT / answer)), slot)
            self.bounds[node.output[0]] = self._answer(i)
            out = node.output[0]
            if out in self.view.outputs or any(j not in inside for j in self.view.consumers[out]):
                self._node("Cast", [_fp16(out)], out, to=TensorProto.FLOAT)

    def _clip_inside(self, i: int, limit: float, slot: int = 0) -> None:
        """Clip an FP16 input of a node."""
        name = self.nodes[i].input[slot]
        ends = [self._number(sign * limit, np.float16) for sign in (-1, 1)]
        clipped = self._once(
            (name, "clip16", limit), lambda out: self._node("Clip", [_fp16(name), *ends], _fp16(out))
        ).removesuffix(".fp16")
        self.bounds[clipped] = min(limit, self.bounds[name])
        self.nodes[i].input[slot] = clipped

    def _answer(self, i: int) -> float:
        """The bound of a node's output from those of its inputs."""
        node = self.nodes[i]
        given = [self.bounds[name] for name in node.input if name in self.bounds]
        if node.op_type in CONVOLUTIONS:
            weight = numpy_helper.to_array(self.weights[node.input[1], i]).astype(np.float64)
            bias = np.abs(self.constants[node.input[2]]).max() if self._keeps_bias(i) else 0.0
            return given[0] * largest_sum(weight, node) + float(bias)
        if node.op_type in ("Add", "Sub"):
            return sum(given)
        if node.op_type == "Mul":
            (factor,) = (float(np.abs(self.constants[n]).max()) for n in node.input if n in self.constants)
            return given[0] * factor
        if node.op_type == "PRelu":
            return given[0] * max(1.0, float(np.abs(self.constants[node.input[1]]).max()))
        if node.op_type == "LeakyRelu":
            return given[0] * max(1.0, abs(attribute(node, "alpha", 0.01)))
        return max(given)

    # Pieces

    def _keeps_bias(self, i: int) -> bool:
        return self.view.has_bias(i) and i not in self.modulated

    def _weight(self, i: int, k: float) -> None:
        """The FP16 weight k W of a convolution, which keeps the name of W."""
        name = self.nodes[i].input[1]
        scaled = (self.constants[name].astype(np.float64) * k).astype(np.float16)
        key = _fp16(name) if k == 1 else f"{_fp16(name)}.times{k:g}"
        self.weights[name, i] = numpy_helper.from_array(scaled, key)

    def _bias(self, i: int) -> str | None:
        """The bias that a modulated convolution leaves to FP32, shaped for its map."""
        if i not in self.modulated or not self.view.has_bias(i):
            return None
        name = self.nodes[i].input[2]
        return self._tensor(f"{name}.map", self.constants[name].reshape(1, -1, 1, 1))

    def _largest(self, style: str, name: str) -> str:
        """max |s| over the channels of each sample, never 0."""
        size = self._node("Abs", [style], f"{name}.abs")
        axes = self._tensor("axes.channels", np.array([1, 2, 3]))
        top = self._node("ReduceMax", [size, axes], f"{name}.max", keepdims=1)
        return self._node("Max", [top, self._number(2.0**-24)], name)

    def _clipped(self, name: str, limit: float) -> str:
        if self.view.bound(name) <= limit:
            return name
        ends = [self._number(sign * limit) for sign in (-1, 1)]
        return self._once((name, "clip", limit), lambda out: self._node("Clip", [name, *ends], out))

    def _cast(self, entry: str, source: str) -> None:
        """FP16 nodes that take `entry` get `source`, rounded."""
        self._node("Cast", [source], _fp16(entry), to=TensorProto.FLOAT16)

    def _once(self, key: tuple, make) -> str:
        """Makes a value the first time that it is asked for."""
        if key not in self._cached:
            self._cached[key] = make("fp16." + ".".join(map(str, key)))
        return self._cached[key]

    def _node(self, kind: str, inputs: list[str], output: str, **attributes) -> str:
        self.extra.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def _number(self, value: float, dtype: type = np.float32) -> str:
        return self._tensor(f"number.{np.dtype(dtype).name}.{value:g}", np.array(value, dtype))

    def _tensor(self, name: str, array: np.ndarray) -> str:
        if name not in self.constants:
            self.constants[name] = array
            self.model.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    # The new graph

    def _rewrite(self, converted: set[int]) -> None:
        tensors: dict[str, onnx.TensorProto] = {}
        for i in converted:
            node = self.nodes[i]
            for slot, name in enumerate(node.input):
                if name in self.constants and self.constants[name].dtype == np.float32:
                    tensor = self.weights.get((name, i))
                    if tensor is None:
                        tensor = numpy_helper.from_array(self.constants[name].astype(np.float16), _fp16(name))
                    tensors[tensor.name] = tensor
                    node.input[slot] = tensor.name
                elif name in self.bounds:
                    node.input[slot] = _fp16(name)
            if node.op_type in CONVOLUTIONS and i in self.modulated and self.view.has_bias(i):
                del node.input[2:]
            node.output[0] = _fp16(out := node.output[0])
            node.doc_string = f"|y| <= {self.bounds[out]:.6g}"
        for node in self.extra:
            if (name := node.output[0].removesuffix(".fp16")) != node.output[0]:
                node.doc_string = f"|y| <= {self.bounds[name]:.6g}"
        graph = self.model.graph
        graph.initializer.extend(tensors.values())
        known = {tensor.name for tensor in graph.initializer} | {port.name for port in graph.input}
        nodes = in_order([*self.nodes, *self.extra], known, self.view.outputs)
        del graph.node[:]
        graph.node.extend(nodes)
        used = {name for node in graph.node for name in node.input} | self.view.outputs
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)


def cast_at_borders(graph: onnx.GraphProto) -> None:
    """Transpose pictures as floats: TensorRT takes uint8 at the borders of a graph only, and only for a Cast."""
    pictures = {port.name for port in graph.input if port.type.tensor_type.elem_type == TensorProto.UINT8}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    for first in graph.node:
        if len(after := readers[first.output[0]]) != 1:
            continue
        second = after[0]
        entering = first.op_type == "Transpose" and second.op_type == "Cast" and first.input[0] in pictures
        to_uint8 = first.op_type == "Cast" and attribute(first, "to", 0) == TensorProto.UINT8
        if entering or (to_uint8 and second.op_type == "Transpose"):
            attributes = [list(first.attribute), list(second.attribute)]
            first.op_type, second.op_type = second.op_type, first.op_type
            for node, swapped in zip((second, first), attributes, strict=True):
                copies = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in swapped]
                del node.attribute[:]
                node.attribute.extend(copies)


def _fp16(name: str) -> str:
    """The name of a value's FP16 form."""
    return f"{name}.fp16"
