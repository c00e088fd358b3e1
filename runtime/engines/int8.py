"""The generators' large pointwise products in eight bits, for OpenVINO on CPUs that multiply these quicker (VNNI, AMX).

The products are most of a picture's time. Their weights get a scale for each output, what goes into them one scale for
all channels. Channels differ a hundredfold in size, and one scale would leave few of 255 steps to the small ones, so
they are made alike first (SmoothQuant, Xiao et al. 2023): the depthwise convolution before a product divides channel c
by t(c) and the product's weights are multiplied by it, which changes nothing else,

    W x = (W diag(t)) (x / t),   t(c) = a(c)^s / w(c)^(1 - s),

with a(c) the largest value of a channel, w(c) that of the weights which meet it. What a layer's values are is
seen by running the generator for codes that the bundle's mapper makes of drawn inputs, spread somewhat; done once, and
kept in the user's cache. All else of a graph stays as it is. Figures: benchmarks/LOG.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import assets
from ..errors import FidError
from ..files import new_file
from ..weights.cache import cache_folder, locked

LEAST_PRODUCTS = 1 << 25
"""Multiplications of a layer; smaller ones gain less than the passes to eight bits and back take."""

SHARE = 0.85
"""s above, of the differences between channels that the weights take over."""

CUT = 0.9
"""What of the largest value is shown exactly; the few beyond are cut off."""

CODES, SPREAD, ATTRIBUTES_STD = 16, 1.6, 0.14
"""How many codes are looked at, how much further apart than drawn, and how far codes of real photos scatter."""

FINE_SIDE, SIDE = 128, 64
"""Rows of a map from which on every product is in eight bits, and those that widen it are not: smaller maps take little
time, and each place of them is more of a face."""

VERSION = 1
"""Counts up when scales are found in another way, so that kept ones are found anew."""


@dataclass(frozen=True)
class Product:
    """A pointwise convolution of an `openvino.Model` that can be computed in eight bits."""

    node: Any
    depthwise: Any  # the convolution before it, which nothing else uses
    weight: NDArray[np.float32]  # [outputs, inputs]
    key: str  # of the weight's values


Scales = Mapping[str, NDArray[np.float32]]
"""By a product's key the largest value of each channel that goes into it, float32 [inputs]."""


def products_of(model: Any) -> list[Product]:
    """Return the products of a model whose sizes are fixed."""
    found = []
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Convolution" or node.get_output_partial_shape(0).is_dynamic:
            continue
        depthwise = node.input_value(0).get_node()
        weight = _value(node.input_value(1))
        if weight is None or weight.shape[2:] != (1, 1) or depthwise.get_type_name() != "GroupConvolution":
            continue
        _, outputs, height, width = node.get_output_shape(0)
        alone = len(depthwise.output(0).get_target_inputs()) == 1 and _value(depthwise.input_value(1)) is not None
        fine = height >= (SIDE if outputs <= weight.shape[1] else FINE_SIDE)
        if alone and fine and weight.size * height * width >= LEAST_PRODUCTS:
            plane = np.ascontiguousarray(weight[..., 0, 0], np.float32)
            found.append(Product(node, depthwise, plane, hashlib.sha256(plane.tobytes()).hexdigest()[:32]))
    return found


def with_eight_bits(model: Any, products: Sequence[Product], scales: Scales) -> int:
    """Let OpenVINO compute those of a model's products that `scales` knows in eight bits, in place; returns how
    many."""
    from openvino import opset8 as ops

    known = [product for product in products if product.key in scales]
    for product in known:
        largest = np.maximum(scales[product.key], 1e-3 * scales[product.key].max())
        of_weight = np.maximum(np.abs(product.weight).max(0), 1e-6)
        alike = largest**SHARE / of_weight ** (1 - SHARE)
        taps = _value(product.depthwise.input_value(1))
        assert taps is not None
        smaller = taps / alike.reshape(-1, *[1] * (taps.ndim - 1))
        product.depthwise.input(1).replace_source_output(ops.constant(smaller.astype(np.float32)).output(0))
        weight = (product.weight * alike)[..., None, None].astype(np.float32)
        ends = np.maximum(np.abs(weight).max((1, 2, 3), keepdims=True), 1e-12)
        bounds = [ops.constant(sign * ends) for sign in (-1, 1)]
        eight = ops.fake_quantize(ops.constant(weight), *bounds, *bounds, 255)
        top = np.full((1, 1, 1, 1), CUT * (largest / alike).max(), np.float32)
        bounds = [ops.constant(end) for end in (-top * 128 / 127, top)]
        given = ops.fake_quantize(product.node.input_value(0), *bounds, *bounds, 256)
        product.node.input(0).replace_source_output(given.output(0))
        product.node.input(1).replace_source_output(eight.output(0))
    if known:
        model.validate_nodes_and_infer_types()
    return len(known)


def scales_for(core: Any, products: Sequence[Product], generator: Path, read: Callable[[Path], Any]) -> Scales:
    """Return the scales of a model's products, found by running its generator once for each code, or kept from an
    earlier time.

    core: an `openvino.Core`. generator: the ONNX file of the graph from W+ to a picture that has these products. read:
    returns that graph in the form in which it is run.
    """
    keys = {product.key for product in products}
    if not keys:
        return {}
    name = hashlib.sha256("".join([str(VERSION), *sorted(keys)]).encode()).hexdigest()[:32]
    kept = cache_folder("int8", f"{name}.npz")
    with contextlib.suppress(OSError, ValueError, zipfile.BadZipFile), np.load(kept) as file:
        return dict(file)
    found = {key: scale for key, scale in _seen(core, read(generator), _codes(core, generator)).items() if key in keys}
    with contextlib.suppress(OSError, FidError), locked(kept.name):  # a full disk only costs the time again
        kept.parent.mkdir(parents=True, exist_ok=True)
        with new_file(kept) as partial, partial.open("wb") as file:
            np.savez(file, **found)  # pyright: ignore[reportArgumentType] - arrays by name
    return found


def _seen(core: Any, model: Any, codes: NDArray[np.float32]) -> Scales:
    """The scales of a generator that is run for some w, float32 [n, w_size]."""
    import openvino

    port = model.inputs[0]
    model.reshape({port.get_any_name(): [1, *(size.get_length() for size in list(port.get_partial_shape())[1:])]})
    products = products_of(model)
    make: Any = openvino.Model  # takes more than its stub knows
    request = core.compile_model(
        make([product.node.input_value(0) for product in products], model.get_parameters()),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32"},
    ).create_infer_request()
    largest = {product.key: np.zeros(product.weight.shape[1], np.float32) for product in products}
    for code in codes:
        results = request.infer([np.repeat(code[None, None], port.get_shape()[1], axis=1)])
        for number, product in enumerate(products):
            largest[product.key] = np.maximum(largest[product.key], np.abs(results[number][0]).max((1, 2)))
    return largest


def _codes(core: Any, generator: Path) -> NDArray[np.float32]:
    """W of people and attributes that are drawn, by the mapper beside the generator or the shipped one, and spread:
    float32 [CODES, w_size]."""
    own = generator.with_name("mapper.onnx")
    model = core.read_model(str(own if own.is_file() else assets.BUNDLE / "mapper.onnx"))
    random = np.random.default_rng(0)
    given = {}
    for port in model.inputs:
        size = port.get_partial_shape()[1].get_length()
        drawn = random.standard_normal((CODES, size)).astype(np.float32)
        people = port.get_any_name() == "identity"
        given[port.get_any_name()] = (
            drawn / np.linalg.norm(drawn, axis=1, keepdims=True) if people else ATTRIBUTES_STD * drawn
        )
    request = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    w = np.array(request.infer(given)[0])
    return w.mean(0) + SPREAD * (w - w.mean(0))


def _value(output: Any) -> NDArray | None:
    """The values of a constant, cast, reshaped or put in order; None when it is none of these."""
    node = output.get_node()
    kind = node.get_type_name()
    if kind == "Constant":
        return np.array(node.get_data())
    if kind not in ("Convert", "Reshape", "Gather"):
        return None
    value = _value(node.input_value(0))
    if value is None or node.get_output_partial_shape(0).is_dynamic:
        return None
    if kind == "Convert":
        return value.astype(node.get_output_element_type(0).to_dtype())
    if kind == "Reshape":
        return value.reshape(list(node.get_output_shape(0)))
    order, axis = (_value(node.input_value(number)) for number in (1, 2))
    return None if order is None or axis is None else value.take(order, int(axis))
