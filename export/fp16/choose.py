"""Which nodes of a graph compute in FP16: layers with a kernel for it, and what only moves or sums their maps."""

from collections import defaultdict
from collections.abc import Collection, Iterator

import numpy as np
from onnx import TensorProto

from ...runtime.errors import FidError
from .view import CONVOLUTIONS, MOVES, POOLS, GraphView

LIMIT = 60000.0
"""No FP16 tensor can be larger. The largest FP16 number is 65504; the rest is for rounding in an FP16 accumulator."""

ACTIVATIONS = {"LeakyRelu", "Relu", "PRelu", "Clip"}
TAIL = (
    MOVES | POOLS | {"Cast", "Clip", "Round", "Add", "Sub", "Mul", "Div", "Resize"}
)  # from the last layers to the image
COLOURS = 12  # channels of a picture or of its four wavelet bands; wider maps are not the picture yet


def layers_of(view: GraphView) -> dict[int, str]:
    """Return the layers that FP16 is for, number -> name: all before the image's tail.

    Raises FidError for a convolution whose weights are not constant, for which nothing can be proven.
    """
    image = image_tail(view)
    layers = {
        i: view.layer_name(i)
        for i, node in enumerate(view.nodes)
        if node.op_type in CONVOLUTIONS | {"DepthToSpace"} and i not in image
    }
    for i in layers:
        if view.nodes[i].op_type in CONVOLUTIONS and view.nodes[i].input[1] not in view.constants:
            raise FidError(f"the convolution {view.nodes[i].name} computes its weights, which cannot be FP16 safely.")
    return layers


def image_tail(view: GraphView) -> set[int]:
    """Return the nodes from the last convolutions to the image: linear, and too visible to be rounded."""
    found: set[int] = set()
    todo = [name for name in view.outputs if view.types.get(name) == TensorProto.UINT8]
    while todo:
        i = view.producer.get(todo.pop())
        if i is None or i in found:
            continue
        node = view.nodes[i]
        if node.op_type in CONVOLUTIONS:
            found.add(i)
            if view.channels(i) <= COLOURS:  # resampling of a smaller picture
                todo.append(node.input[0])
        elif node.op_type in TAIL:
            found.add(i)
            todo.extend(node.input)
    return found


def choose(view: GraphView, layers: Collection[int]) -> tuple[set[int], set[int]]:
    """Return the nodes that compute in FP16 when these layers shall, and those of the layers that take a style."""
    chosen = {i for i in layers if _fits(view, i)}
    modulated = {i for i in chosen if view.style_behind(i)}
    chosen |= _moves_before(view, chosen)
    return chosen | _cheap_after(view, chosen, modulated), modulated


def components(view: GraphView, chosen: set[int], modulated: set[int]) -> Iterator[list[int]]:
    """Yield the nodes that are joined by FP16 values, in graph order. A modulated convolution with a bias ends one."""
    parent = {i: i for i in chosen}

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for i in sorted(chosen):
        if i in modulated and view.has_bias(i):
            continue
        for j in view.consumers[view.nodes[i].output[0]]:
            if j in chosen:
                parent[root(j)] = root(i)
    parts: dict[int, list[int]] = defaultdict(list)
    for i in sorted(chosen):
        parts[root(i)].append(i)
    yield from parts.values()


def _fits(view: GraphView, i: int) -> bool:
    """Tell whether FP16 holds the numbers of a layer."""
    constants = [view.constants[name] for name in view.nodes[i].input if name in view.constants]
    return all(np.abs(c).max() <= LIMIT / 2 for c in constants if c.dtype == np.float32)


def _moves_before(view: GraphView, chosen: set[int]) -> set[int]:
    """Return the linear nodes that serve FP16 layers alone."""
    found: set[int] = set()
    for i in reversed(range(len(view.nodes))):
        out = view.nodes[i].output[0]
        users = view.consumers[out]
        if (
            i not in chosen
            and users
            and out not in view.outputs
            and view.is_linear_move(i)
            and view.floats(i)
            and all(j in chosen or j in found for j in users)
        ):
            found.add(i)
    return found


def _cheap_after(view: GraphView, chosen: set[int], modulated: set[int]) -> set[int]:
    """Return activations, pools, sums and moves that take nothing but FP16 maps of layers without styles."""
    found: set[int] = set()
    plain = {i for i in chosen if not _takes_style(view, i, modulated)}
    for i, node in enumerate(view.nodes):
        floats = view.floats(i)
        if i in chosen or not floats or view.types.get(node.output[0]) != TensorProto.FLOAT:
            continue
        if not all(view.producer.get(n) in plain | found for n in floats):
            continue
        if (
            view.is_linear_move(i)
            or node.op_type in POOLS
            or (node.op_type in ACTIVATIONS and (node.op_type == "PRelu" or view.scalars_only(i)))
        ):
            found.add(i)
    return found


def _takes_style(view: GraphView, i: int, modulated: set[int]) -> bool:
    return i in modulated or (view.nodes[i].op_type not in CONVOLUTIONS and view.style_behind(i))
