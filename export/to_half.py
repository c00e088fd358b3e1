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
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from ..runtime.errors import FidError

CLAMP = 16384.0
"""Maps are clipped to +-CLAMP where they turn FP16. The shipped generator's reach some 2000 at psi 1."""

LIMIT = 60000.0
"""No FP16 tensor can be larger. The largest FP16 number is 65504; the rest is for rounding in an FP16 accumulator."""

CONVOLUTIONS = {"Conv", "ConvTranspose"}
MOVES = {"Slice", "Reshape", "Squeeze", "Unsqueeze", "Concat", "DepthToSpace", "SpaceToDepth", "Transpose"}
ACTIVATIONS = {"LeakyRelu", "Relu", "PRelu", "Clip"}
POOLS = {"AveragePool", "MaxPool", "GlobalAveragePool"}
TAIL = (
    MOVES | POOLS | {"Cast", "Clip", "Round", "Add", "Sub", "Mul", "Div", "Resize"}
)  # from the last layers to the image
COLOURS = 12  # channels of a picture or of its four wavelet bands; wider maps are not the picture yet


@dataclass(frozen=True)
class HalfModel:
    """The typed graph and what is known of it without running it."""

    model: onnx.ModelProto
    layers: tuple[str, ...]  # convolutions and wavelet transforms in FP16, by name, in the order of the graph
    raised: tuple[str, ...]  # those that were kept FP32 by request
    bound: float  # no FP16 tensor can be larger


def to_half(model: onnx.ModelProto, raised: Collection[str] = ()) -> HalfModel:
    """Type a float32 graph in FP16; inputs and outputs stay what they are. `raised`: layers to keep FP32, by name.

    Raises FidError when the graph has a convolution whose weights are not constant, for which nothing can be proven.
    """
    return _Converter(model, raised).convert()


class _Converter:
    """One conversion. Values are tensors by name; a layer is a convolution or a DepthToSpace node."""

    def __init__(self, model: onnx.ModelProto, raised: Collection[str]) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        del self.model.graph.value_info[:]
        cast_at_borders(self.model.graph)
        self.raised = frozenset(raised)
        self.constants = {t.name: numpy_helper.to_array(t) for t in self.model.graph.initializer}
        self.nodes = list(self.model.graph.node)
        self.producer = {out: i for i, node in enumerate(self.nodes) for out in node.output}
        self.consumers: dict[str, list[int]] = defaultdict(list)
        for i, node in enumerate(self.nodes):
            for name in node.input:
                self.consumers[name].append(i)
        self.types, self.shapes = _inferred(self.model)
        self.outputs = {port.name for port in self.model.graph.output}
        self.extra: list[onnx.NodeProto] = []
        self.bounds: dict[str, float] = {}  # of values in FP16, under their FP32 names
        self.halves: dict[tuple[str, int], onnx.TensorProto] = {}  # FP16 weights by name and node
        self.modulated: set[int] = set()  # FP16 layers whose map was multiplied by a style
        self._cached: dict[tuple, str] = {}

    # What is FP16

    def convert(self) -> HalfModel:
        image = self._image_tail()
        layers = {
            i: self.layer_name(i)
            for i, node in enumerate(self.nodes)
            if node.op_type in CONVOLUTIONS | {"DepthToSpace"} and i not in image
        }
        for i in layers:
            if self.nodes[i].op_type in CONVOLUTIONS and self.nodes[i].input[1] not in self.constants:
                raise FidError(
                    f"the convolution {self.nodes[i].name} computes its weights, which cannot be FP16 safely."
                )
        half = {i for i, name in layers.items() if name not in self.raised and self._fits(i)}
        self.modulated = {i for i in half if self._style_behind(i)}
        half |= self._moves_before(half)
        half |= self._cheap_after(half)
        half = {i for part in self._components(half) if self._convert_component(part) for i in part}
        self._rewrite(half)
        # The exporter stores equal weights once, so two layers may have one name; they are raised together.
        names = tuple(dict.fromkeys(layers[i] for i in sorted(half) if i in layers))
        raised = tuple(dict.fromkeys(name for i, name in sorted(layers.items()) if i not in half))
        return HalfModel(self.model, names, raised, max(self.bounds.values(), default=0.0))

    def _fits(self, i: int) -> bool:
        """Whether FP16 holds the numbers of a layer."""
        constants = [self.constants[name] for name in self.nodes[i].input if name in self.constants]
        return all(np.abs(c).max() <= LIMIT / 2 for c in constants if c.dtype == np.float32)

    def layer_name(self, i: int) -> str:
        """A convolution goes by the name of its weight's module, another layer by its node's."""
        node = self.nodes[i]
        if node.op_type in CONVOLUTIONS:
            return node.input[1].removesuffix(".weight")
        return node.name or node.output[0]

    def _image_tail(self) -> set[int]:
        """The nodes from the last convolutions to the image: linear, and too visible to be rounded."""
        found: set[int] = set()
        todo = [name for name in self.outputs if self.types.get(name) == TensorProto.UINT8]
        while todo:
            i = self.producer.get(todo.pop())
            if i is None or i in found:
                continue
            node = self.nodes[i]
            if node.op_type in CONVOLUTIONS:
                found.add(i)
                if self._channels(i) <= COLOURS:  # resampling of a smaller picture
                    todo.append(node.input[0])
            elif node.op_type in TAIL:
                found.add(i)
                todo.extend(node.input)
        return found

    def _channels(self, i: int) -> int:
        """How many channels a convolution takes."""
        node = self.nodes[i]
        weight = self.constants.get(node.input[1])
        if weight is None:
            return COLOURS + 1
        return weight.shape[0] if node.op_type == "ConvTranspose" else weight.shape[1] * _attribute(node, "group", 1)

    def _floats(self, i: int) -> list[str]:
        """The inputs of a node that are float32 and no constants."""
        return [n for n in self.nodes[i].input if n not in self.constants and self.types.get(n) == TensorProto.FLOAT]

    def _scalars_only(self, i: int) -> bool:
        """Whether the float constants that a node takes are single numbers."""
        constants = [self.constants[n] for n in self.nodes[i].input if n in self.constants]
        return all(c.size == 1 for c in constants if c.dtype == np.float32)

    def _is_linear_move(self, i: int) -> bool:
        """Whether a node gives a sum of its input's numbers, moved about or scaled by a constant."""
        node = self.nodes[i]
        if node.op_type in MOVES:
            return True
        floats = len(self._floats(i))
        if node.op_type in ("Add", "Sub"):
            return floats == 2 and all(self._is_map(name) for name in self._floats(i))
        return node.op_type == "Mul" and floats == 1 and self._scalars_only(i)

    def _is_map(self, name: str) -> bool:
        shape = self.shapes.get(name)
        return shape is not None and len(shape) >= 4 and shape[-2:] != (1, 1)

    def _style_of(self, name: str) -> tuple[str, str] | None:
        """(map, style) when a value is the product of a map and one factor for each sample and channel."""
        i = self.producer.get(name)
        if i is None or self.nodes[i].op_type != "Mul" or len(self._floats(i)) != 2:
            return None
        a, b = self.nodes[i].input
        if self._is_style(b) and self._is_map(a):
            return a, b
        return (b, a) if self._is_style(a) and self._is_map(b) else None

    def _is_style(self, name: str) -> bool:
        shape = self.shapes.get(name)
        return shape is not None and len(shape) == 4 and shape[-2:] == (1, 1)

    def _style_behind(self, i: int) -> bool:
        """Whether the map that a layer takes was multiplied by a style, with nothing but linear nodes between."""
        todo, seen = self._floats(i)[:1], set()
        while todo:
            name = todo.pop()
            if self._style_of(name) is not None:
                return True
            j = self.producer.get(name)
            if j is None or j in seen:
                continue
            seen.add(j)
            node = self.nodes[j]
            if self._is_linear_move(j) or (node.op_type in CONVOLUTIONS and not self._has_bias(j)):
                todo.extend(self._floats(j))
        return False

    def _has_bias(self, i: int) -> bool:
        return len(self.nodes[i].input) > 2 and bool(self.nodes[i].input[2])

    def _moves_before(self, half: set[int]) -> set[int]:
        """Linear nodes that serve FP16 layers alone."""
        found: set[int] = set()
        for i in reversed(range(len(self.nodes))):
            out = self.nodes[i].output[0]
            users = self.consumers[out]
            if (
                i not in half
                and users
                and out not in self.outputs
                and self._is_linear_move(i)
                and self._floats(i)
                and all(j in half or j in found for j in users)
            ):
                found.add(i)
        return found

    def _cheap_after(self, half: set[int]) -> set[int]:
        """Activations, pools, sums and moves that take nothing but FP16 maps of layers without styles."""
        found: set[int] = set()
        plain = {i for i in half if not self._modulated_part(i)}
        for i, node in enumerate(self.nodes):
            floats = self._floats(i)
            if i in half or not floats or self.types.get(node.output[0]) != TensorProto.FLOAT:
                continue
            if not all(self.producer.get(n) in plain | found for n in floats):
                continue
            if (
                self._is_linear_move(i)
                or node.op_type in POOLS
                or (node.op_type in ACTIVATIONS and (node.op_type == "PRelu" or self._scalars_only(i)))
            ):
                found.add(i)
        return found

    def _modulated_part(self, i: int) -> bool:
        return i in self.modulated or (self.nodes[i].op_type not in CONVOLUTIONS and self._style_behind(i))

    def _components(self, half: set[int]) -> Iterator[list[int]]:
        """FP16 nodes that are joined by FP16 values, in graph order. A modulated convolution with a bias ends one."""
        parent = {i: i for i in half}

        def root(i: int) -> int:
            while parent[i] != i:
                i = parent[i]
            return i

        for i in sorted(half):
            if i in self.modulated and self._has_bias(i):
                continue
            for j in self.consumers[self.nodes[i].output[0]]:
                if j in half:
                    parent[root(j)] = root(i)
        parts: dict[int, list[int]] = defaultdict(list)
        for i in sorted(half):
            parts[root(i)].append(i)
        yield from parts.values()

    # One component

    def _convert_component(self, part: list[int]) -> bool:
        """Make the nodes around one component; False when it has to stay FP32."""
        inside = set(part)
        entries = dict.fromkeys(
            name for i in part for name in self._floats(i) if self.producer.get(name, -1) not in inside
        )
        styles = {name: self._style_of(name) for name in entries} if any(i in self.modulated for i in part) else {}
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
        while (gains := self._scale(part, entry, min(clamp, self._bound(x)))) is None:
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
            if out in self.outputs or any(j not in inside for j in self.consumers[out]):
                back = f"{out}.scaled"
                factor = largest
                if (rest := 1 / gains[out]) != 1:
                    factor = self._once(
                        (largest, rest), lambda name, by=rest: self._node("Mul", [largest, self._number(by)], name)
                    )
                cast = self._node("Cast", [_half(out)], f"{out}.wide", to=TensorProto.FLOAT)
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
                norm = _largest_sum(self.constants[node.input[1]], node)
                k = 2.0 ** math.floor(math.log2(target / (self.bounds[node.input[0]] * max(norm, 1e-30))))
                self._weight(i, k)
                gain *= k
            gains[node.output[0]] = gain
            self.bounds[node.output[0]] = self._answer(i)
        return gains if all(self.bounds[self.nodes[i].output[0]] <= LIMIT for i in part) else None

    def _convert_plain(self, part: list[int], entries: Mapping[str, str]) -> None:
        """`entries`: FP32 values and the names that the part has for them."""
        for entry, own in entries.items():
            self.bounds[own] = min(CLAMP, self._bound(entry))
            self._cast(own, self._clipped(entry, CLAMP))
        inside = set(part)
        for i in part:
            node = self.nodes[i]
            if node.op_type in CONVOLUTIONS:
                self._weight(i, 1.0)
                weight = self.constants[node.input[1]]
                bias = np.abs(self.constants[node.input[2]]).max() if self._has_bias(i) else 0.0
                allowed = (LIMIT - float(bias)) / max(_largest_sum(weight, node), 1e-30)
                if self.bounds[node.input[0]] > allowed:
                    self._clip_inside(i, 2.0 ** math.floor(math.log2(allowed)))
            elif (answer := self._answer(i)) > LIMIT:  # a sum, a steep slope
                for slot, name in enumerate(node.input):
                    if name in self.bounds:
                        self._clip_inside(i, 2.0 ** math.floor(math.log2(self.bounds[name] * LIMIT / answer)), slot)
            self.bounds[node.output[0]] = self._answer(i)
            out = node.output[0]
            if out in self.outputs or any(j not in inside for j in self.consumers[out]):
                self._node("Cast", [_half(out)], out, to=TensorProto.FLOAT)

    def _clip_inside(self, i: int, limit: float, slot: int = 0) -> None:
        """Clip an FP16 input of a node."""
        name = self.nodes[i].input[slot]
        ends = [self._number(sign * limit, np.float16) for sign in (-1, 1)]
        clipped = self._once(
            (name, "clip16", limit), lambda out: self._node("Clip", [_half(name), *ends], _half(out))
        ).removesuffix(".half")
        self.bounds[clipped] = min(limit, self.bounds[name])
        self.nodes[i].input[slot] = clipped

    def _answer(self, i: int) -> float:
        """The bound of a node's output from those of its inputs."""
        node = self.nodes[i]
        given = [self.bounds[name] for name in node.input if name in self.bounds]
        if node.op_type in CONVOLUTIONS:
            weight = numpy_helper.to_array(self.halves[node.input[1], i]).astype(np.float64)
            bias = np.abs(self.constants[node.input[2]]).max() if self._keeps_bias(i) else 0.0
            return given[0] * _largest_sum(weight, node) + float(bias)
        if node.op_type in ("Add", "Sub"):
            return sum(given)
        if node.op_type == "Mul":
            (factor,) = (float(np.abs(self.constants[n]).max()) for n in node.input if n in self.constants)
            return given[0] * factor
        if node.op_type == "PRelu":
            return given[0] * max(1.0, float(np.abs(self.constants[node.input[1]]).max()))
        if node.op_type == "LeakyRelu":
            return given[0] * max(1.0, abs(_attribute(node, "alpha", 0.01)))
        return max(given)

    # Pieces

    def _keeps_bias(self, i: int) -> bool:
        return self._has_bias(i) and i not in self.modulated

    def _weight(self, i: int, k: float) -> None:
        """The FP16 weight k W of a convolution, which keeps the name of W."""
        name = self.nodes[i].input[1]
        scaled = (self.constants[name].astype(np.float64) * k).astype(np.float16)
        key = _half(name) if k == 1 else f"{_half(name)}.times{k:g}"
        self.halves[name, i] = numpy_helper.from_array(scaled, key)

    def _bias(self, i: int) -> str | None:
        """The bias that a modulated convolution leaves to FP32, shaped for its map."""
        if i not in self.modulated or not self._has_bias(i):
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
        if self._bound(name) <= limit:
            return name
        ends = [self._number(sign * limit) for sign in (-1, 1)]
        return self._once((name, "clip", limit), lambda out: self._node("Clip", [name, *ends], out))

    def _cast(self, entry: str, source: str) -> None:
        """FP16 nodes that take `entry` get `source`, rounded."""
        self._node("Cast", [source], _half(entry), to=TensorProto.FLOAT16)

    def _bound(self, name: str) -> float:
        """The largest that a float32 value can be, as far as the graph tells."""
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
            return self._bound(node.input[0])
        if node.op_type in ("Add", "Sub") and known:
            return self._bound(node.input[0]) + known[0]
        if node.op_type == "Mul" and known:
            return self._bound(node.input[0]) * known[0]
        if node.op_type == "Div" and known:
            return self._bound(node.input[0]) / float(np.abs(self.constants[node.input[1]]).min())
        return math.inf

    def _once(self, key: tuple, make) -> str:
        """Makes a value the first time that it is asked for."""
        if key not in self._cached:
            self._cached[key] = make("half." + ".".join(map(str, key)))
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

    def _rewrite(self, half: set[int]) -> None:
        tensors: dict[str, onnx.TensorProto] = {}
        for i in half:
            node = self.nodes[i]
            for slot, name in enumerate(node.input):
                if name in self.constants and self.constants[name].dtype == np.float32:
                    tensor = self.halves.get((name, i))
                    if tensor is None:
                        tensor = numpy_helper.from_array(self.constants[name].astype(np.float16), _half(name))
                    tensors[tensor.name] = tensor
                    node.input[slot] = tensor.name
                elif name in self.bounds:
                    node.input[slot] = _half(name)
            if node.op_type in CONVOLUTIONS and i in self.modulated and self._has_bias(i):
                del node.input[2:]
            node.output[0] = _half(out := node.output[0])
            node.doc_string = f"|y| <= {self.bounds[out]:.6g}"
        for node in self.extra:
            if (name := node.output[0].removesuffix(".half")) != node.output[0]:
                node.doc_string = f"|y| <= {self.bounds[name]:.6g}"
        graph = self.model.graph
        graph.initializer.extend(tensors.values())
        known = {tensor.name for tensor in graph.initializer} | {port.name for port in graph.input}
        nodes = _sorted([*self.nodes, *self.extra], known, self.outputs)
        del graph.node[:]
        graph.node.extend(nodes)
        used = {name for node in graph.node for name in node.input} | self.outputs
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
        to_uint8 = first.op_type == "Cast" and _attribute(first, "to", 0) == TensorProto.UINT8
        if entering or (to_uint8 and second.op_type == "Transpose"):
            attributes = [list(first.attribute), list(second.attribute)]
            first.op_type, second.op_type = second.op_type, first.op_type
            for node, swapped in zip((second, first), attributes, strict=True):
                copies = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in swapped]
                del node.attribute[:]
                node.attribute.extend(copies)


def _inferred(model: onnx.ModelProto) -> tuple[dict[str, int], dict[str, tuple[int | str, ...]]]:
    """Element type and shape of every value, as far as ONNX can tell."""
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    types: dict[str, int] = {}
    shapes: dict[str, tuple[int | str, ...]] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
        if value.type.tensor_type.HasField("shape"):
            shapes[value.name] = tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
    return types, shapes


def _sorted(nodes: list[onnx.NodeProto], known: Collection[str], outputs: Collection[str]) -> list[onnx.NodeProto]:
    """The nodes that the outputs need, each behind those that it takes from; otherwise in the order given."""
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


def _largest_sum(weight: np.ndarray, node: onnx.NodeProto) -> float:
    """max over output channels of sum |W|: how much a convolution can enlarge a bounded map."""
    size = np.abs(weight.astype(np.float64))
    if node.op_type == "Conv":
        return float(size.reshape(len(size), -1).sum(1).max())
    group = _attribute(node, "group", 1)  # ConvTranspose: [C_in, C_out / group, ...]
    return float(size.reshape(group, len(size) // group, size.shape[1], -1).sum((1, 3)).max())


def _attribute(node: onnx.NodeProto, name: str, default):
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _half(name: str) -> str:
    """The name of a value's FP16 form."""
    return f"{name}.half"
