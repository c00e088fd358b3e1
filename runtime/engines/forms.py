"""Forms of a graph that OpenVINO computes quicker, in less memory, or rightly, where the exporter's is not.

Inverse wavelets. The exporter writes an inverse Haar transform as two grouped transposed convolutions, of the low band
and of the details, whose results are added: ONNX Runtime's quickest form. OpenVINO has a good kernel for it in float32
and none in bfloat16, where it takes a third of a picture's time. Both transforms write four pixels for four channels,

    y[g, 2i + a, 2j + b] = sum over bands k of H[g, a, b, k] * x[k(g), i, j]

which is a 1 x 1 convolution from the group's four channels to four others, and these laid out as pixels. The four bands
of a group have to stand beside each other, so the weights that make them are put in that order: what comes before is
one convolution, styles and constants, down to which the order is carried.

Other grouped transposed convolutions. The same kernel takes them in bfloat16: what is left of the wavelets, means of
squares backwards, and depthwise convolutions with stride 2 backwards, all of which a graph with a gradient has. Where
squares do not overlap, a grouped 1 x 1 convolution with one output for each pixel of a square does it, laid out as
pixels; where 3 x 3 taps with stride 2 overlap, four depthwise convolutions of 2 x 2 taps, one for each pixel of four.

Noise. OpenVINO adds a layer's bias [1, C, 1, 1] and its noise [1, 1, H, W] up to one constant [1, C, H, W], 45 MB for
the light generator, and keeps it several times. Noise that is multiplied by a one made of an input stays as it is.

Weights of two products. OpenVINO in float32 packs the weights of a matrix product once, and takes the same packed form
for another product with the same square matrix even where one of the two takes it transposed: that one is wrong, by
more than its own size (findings/openvino-square-matrix-twice.sh). A graph with a gradient in it has such pairs, so each
product gets a matrix of its own.

The graphs of a bundle are left alone: this is done in memory while a session opens. Figures: benchmarks/LOG.md.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

Edit = tuple[Any, int]
"""An input of a node that takes a constant, and the axis along which the constant is put in order."""


def with_grouped_wavelets(model: Any) -> int:
    """Rewrite the inverse wavelets of an `openvino.Model` in place; returns how many.

    One is left as it is when something else needs its channels, or when they come from another kind of node.
    """
    found = 0
    for node in model.get_ordered_ops():
        pair = [port.get_source_output().get_node() for port in node.inputs()]
        kinds = [part.get_type_name() for part in pair]
        if node.get_type_name() != "Add" or kinds != ["GroupConvolutionBackpropData"] * 2:
            continue
        low, details = pair
        bands = low.input_value(0).get_node().input_value(0)
        weights = [weight for part in pair if (weight := _constant(part.input_value(1))) is not None]
        if len(weights) < 2 or not _fits(low, details, bands):
            continue
        taps = np.concatenate([weight.reshape(len(weights[0]), -1, 4) for weight in weights], 1)
        order = _order(len(taps))
        edits = _carried(bands, 1, len(order))
        if edits is None:
            continue
        _replace(node, bands, taps, order, edits)
        found += 1
    if found:
        model.validate_nodes_and_infer_types()
    return found


def with_pixels_apart(model: Any) -> int:
    """Rewrite grouped transposed convolutions with one output a group of an `openvino.Model` as convolutions and pixels
    laid out, in place; returns how many."""
    found = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "GroupConvolutionBackpropData":
            continue
        taps = _constant(node.input_value(1))
        shape = node.input_value(1).get_partial_shape()
        pixels = None if taps is None or shape.is_dynamic else _pixels(node, taps.reshape(shape.to_shape()))
        if pixels is None:
            continue
        pixels.set_friendly_name(node.get_friendly_name())
        for user in list(node.output(0).get_target_inputs()):
            user.replace_source_output(pixels.output(0))
        found += 1
    if found:
        model.validate_nodes_and_infer_types()
    return found


def _pixels(node: Any, taps: NDArray) -> Any:
    """What does the same as a transposed convolution with `taps` [groups, inputs, outputs, k, k]; None for one of a
    kind that is not known."""
    from openvino import opset8 as ops

    given, settings = node.input_value(0), node.get_attributes()
    groups, inputs, outputs, *kernel = taps.shape
    stride, pads = settings["strides"], [*settings["pads_begin"], *settings["pads_end"]]
    sizes = [node.get_output_partial_shape(0)[axis] for axis in (2, 3)]
    before = [given.get_partial_shape()[axis] for axis in (2, 3)]
    if outputs != 1 or node.get_input_size() != 2 or settings["dilations"] != [1, 1]:
        return None
    if any(size.is_dynamic for size in (*sizes, *before)):
        return None
    times = [size.get_length() / old.get_length() for size, old in zip(sizes, before, strict=True)]
    if kernel == stride == times and kernel[0] == kernel[1] and not any(pads):
        square = np.ascontiguousarray(taps.reshape(groups, inputs, -1).transpose(0, 2, 1))[..., None, None]
        mixed = ops.group_convolution(given, ops.constant(square), [1, 1], [0, 0], [0, 0], [1, 1])
        return ops.depth_to_space(mixed, "depth_first", kernel[0])
    if kernel == [3, 3] and stride == times == [2, 2] and inputs == 1 and pads[:2] == [1, 1]:
        of = np.zeros((2, 2, 3), taps.dtype)  # pixel of two, one of the two places that it is made of, tap
        of[0, 0, 1] = of[1, 0, 2] = of[1, 1, 0] = 1
        four = np.einsum("apt,bqu,gtu->abgpq", of, of, taps[:, 0, 0]).reshape(4 * groups, 1, 1, 2, 2)
        copies = ops.concat([given] * 4, 1)
        mixed = ops.group_convolution(copies, ops.constant(four), [1, 1], [0, 0], [1, 1], [1, 1])
        return ops.depth_to_space(mixed, "blocks_first", 2)
    return None


def without_steady(model: Any, steady: Collection[str]) -> tuple[Any, Any] | None:
    """Return what of an `openvino.Model` hangs on the inputs `steady` alone as a model of its own, and the rest, whose
    last inputs are the former's results; None when there is nothing. The model itself is used up."""
    import openvino
    from openvino import opset8 as ops

    make: Any = openvino.Model  # takes more than its stub knows
    kinds: dict[str, str] = {}
    cut: dict[tuple[str, int], tuple[Any, list[Any]]] = {}
    for node in model.get_ordered_ops():
        name = node.get_name()
        if node.get_type_name() == "Parameter":
            kinds[name] = "steady" if node.output(0).get_any_name() in steady else "varying"
            continue
        sources = [port.get_source_output() for port in node.inputs()]
        found = {kinds[source.get_node().get_name()] for source in sources}
        kinds[name] = next((kind for kind in ("varying", "steady") if kind in found), "constant")
        for port, source in zip(node.inputs(), sources, strict=True):
            if kinds[name] == "varying" and kinds[source.get_node().get_name()] == "steady":
                key = (source.get_node().get_name(), source.get_index())
                cut.setdefault(key, (source, []))[1].append(port)
    ends = [kinds[result.get_name()] for result in model.get_results()]
    if not cut or "steady" in ends or any(source.get_partial_shape().is_dynamic for source, _ in cut.values()):
        return None
    made = []
    for source, ports in cut.values():
        made.append(ops.parameter(source.get_partial_shape(), source.get_element_type(), f"kept {len(made)}"))
        for port in ports:
            port.replace_source_output(made[-1].output(0))
    own = {kind: [p for p in model.get_parameters() if kinds[p.get_name()] == kind] for kind in ("steady", "varying")}
    first = make([source for source, _ in cut.values()], own["steady"], "first")
    return first, make(model.get_results(), [*own["varying"], *made], "rest")


def with_noise_apart(model: Any) -> int:
    """Keep OpenVINO from spreading the noise of an `openvino.Model` over all channels, in place; returns how many."""
    from openvino import opset8 as ops

    code = next((port for port in model.get_parameters() if port.get_element_type().is_real()), None)
    noises = [
        port
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Add"
        for port in node.inputs()
        if _is_map(port.get_source_output()) and _is_constant(port.get_source_output())
    ]
    if code is None or not noises:
        return 0
    axes = np.arange(1, code.get_partial_shape().rank.get_length())
    bounds = (0 * axes, 0 * axes + 1, 0 * axes + 1, axes)  # the first number of each code
    first = ops.slice(code, *(ops.constant(bound) for bound in bounds))
    one = ops.reshape(ops.clamp(first, 1.0, 1.0), ops.constant(np.array([0, 1, 1, 1])), True)
    for port in noises:
        port.replace_source_output(ops.multiply(port.get_source_output(), one).output(0))
    model.validate_nodes_and_infer_types()
    return len(noises)


def with_matrices_apart(model: Any) -> int:
    """Give each product with a square matrix of an `openvino.Model` that others use too a copy of its own, in place;
    returns how many copies."""
    taken: set[str] = set()
    copies = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        for port in node.inputs():
            matrix = _matrix(port.get_source_output().get_node())
            if matrix is not None and matrix in taken:
                port.replace_source_output(_copy(port.get_source_output().get_node()).output(0))
                copies += 1
            elif matrix is not None:
                taken.add(matrix)
    if copies:
        model.validate_nodes_and_infer_types()
    return copies


def _matrix(node: Any) -> str | None:
    """The name of the square constant that a node is, or a cast or transpose of; None when it is none."""
    while node.get_type_name() in ("Convert", "Transpose"):
        node = node.input_value(0).get_node()
    shape = list(node.get_output_shape(0)) if node.get_type_name() == "Constant" else []
    return node.get_name() if len(shape) == 2 and shape[0] == shape[1] > 1 else None


def _copy(node: Any) -> Any:
    """A copy of a constant, or of a cast or transpose of one."""
    from openvino import opset8 as ops

    if node.get_type_name() == "Constant":
        return ops.constant(np.array(node.get_data()))
    source = _copy(node.input_value(0).get_node())
    if node.get_type_name() == "Convert":
        return ops.convert(source, node.get_output_element_type(0).to_dtype())
    return ops.transpose(source, node.input_value(1))


def _is_map(output: Any) -> bool:
    """Whether an output is [1, 1, H, W] with more than one place."""
    shape = output.get_partial_shape()
    if shape.is_dynamic or shape.rank.get_length() != 4:
        return False
    batch, channels, height, width = shape.get_min_shape()
    return (batch, channels) == (1, 1) and height * width > 1


def _replace(node: Any, bands: Any, taps: NDArray, order: NDArray, edits: list[Edit]) -> None:
    """Put the one convolution in the place of `node`, the sum of two. `taps`: float32 [groups, 4 bands, 4 pixels]."""
    from openvino import opset8 as ops

    for port, axis in edits:
        ordered = ops.gather(port.get_source_output(), ops.constant(order), ops.constant(np.int64(axis)))
        port.replace_source_output(ordered.output(0))
    kernel = np.ascontiguousarray(taps.transpose(0, 2, 1))[..., None, None]
    mixed = ops.group_convolution(bands, ops.constant(kernel), [1, 1], [0, 0], [0, 0], [1, 1])
    pixels = ops.depth_to_space(mixed, "depth_first", 2)
    pixels.set_friendly_name(node.get_friendly_name())
    for user in list(node.output(0).get_target_inputs()):
        user.replace_source_output(pixels.output(0))


def _order(groups: int) -> NDArray[np.int64]:
    """int64 [4 * groups]: of each group the low band and its three details, given all low bands and then triples."""
    group = np.arange(groups)
    return np.stack([group, *(groups + 3 * group + k for k in range(3))], 1).ravel()


def _fits(low: Any, details: Any, bands: Any) -> bool:
    """Whether two transposed convolutions are an inverse wavelet of the channels of `bands`, and its only users."""
    groups, *shape = low.input_value(1).get_partial_shape().get_min_shape()
    others = details.input_value(1).get_partial_shape().get_min_shape()
    channels = bands.get_partial_shape()[1]
    sources = [part.input_value(0).get_node().input_value(0) for part in (low, details)]
    alike = all(part.get_attributes()["strides"] == [2, 2] for part in (low, details))
    return (
        alike
        and shape == [1, 1, 2, 2]
        and list(others) == [groups, 3, 1, 2, 2]
        and channels.is_static
        and channels.get_length() == 4 * groups
        and sources[0] == sources[1]
        and len(_users(bands)) == 2
        and _starts(low, 0)
        and _starts(details, groups)
    )


def _starts(part: Any, channel: int) -> bool:
    """Whether a transposed convolution takes the channels from `channel` on: a slice with step 1 along axis 1."""
    cut = part.input_value(0).get_node()
    if cut.get_type_name() != "Slice":
        return False
    begin, _, step, axis = (_constant(cut.input_value(i)) for i in range(1, 5))
    wanted = ((begin, channel), (step, 1), (axis, 1))
    return all(value is not None and value.ravel().tolist() == [number] for value, number in wanted)


def _carried(output: Any, axis: int, channels: int) -> list[Edit] | None:
    """The constants whose order along `axis` is the order of the channels of `output`; None when there are others that
    decide, or when anything else uses what lies between."""
    node = output.get_node()
    kind = node.get_type_name()
    if kind == "Convolution" and axis == 1:
        return [(node.input(1), 0)]
    if kind == "MatMul" and axis == 1 and _is_constant(node.input_value(1)):
        return [(node.input(1), 0 if node.get_attributes()["transpose_b"] else 1)]
    if kind in ("PRelu", "Unsqueeze"):
        ports = [node.input(0)]
    elif kind in ("Add", "Multiply"):
        ports = node.inputs()
    else:
        return None
    rank, edits = output.get_partial_shape().rank.get_length(), []
    for port in ports:
        source = port.get_source_output()
        shape = source.get_partial_shape()
        place = axis - (rank - shape.rank.get_length()) if len(ports) == 2 else axis
        if place < 0 or shape[place] == 1:
            continue  # the same for every channel
        if shape[place] != channels:
            return None
        if _is_constant(source):
            edits.append((port, place))
            continue
        before = _carried(source, place, channels) if len(_users(source)) == 1 else None
        if before is None:
            return None
        edits += before
    return edits


def _users(output: Any) -> list[Any]:
    """The inputs that take the values of an output, and not only its shape."""
    return [port for port in output.get_target_inputs() if port.get_node().get_type_name() != "ShapeOf"]


def _is_constant(output: Any) -> bool:
    """Whether an output is the same in every run; shapes count as fixed."""
    node = output.get_node()
    kind = node.get_type_name()
    if kind in ("Constant", "ShapeOf"):
        return True
    return kind != "Parameter" and all(_is_constant(port.get_source_output()) for port in node.inputs())


def _constant(output: Any) -> NDArray | None:
    """The values of a constant, reshaped or not; None when it is none."""
    node = output.get_node()
    while node.get_type_name() == "Reshape":
        node = node.input_value(0).get_node()
    return np.array(node.get_data()) if node.get_type_name() == "Constant" else None
