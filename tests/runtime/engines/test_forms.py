"""Forms of a generator for OpenVINO: the same numbers, only where the pattern is met, and whether OpenVINO still needs
them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fid.runtime.assets import BUNDLE
from fid.runtime.engines.forms import (
    with_grouped_wavelets,
    with_matrices_apart,
    with_noise_apart,
    with_pixels_apart,
)
from fid.runtime.engines.open import open_session

openvino = pytest.importorskip("openvino")
from openvino import opset8 as ops  # noqa: E402

GROUPS, SIDE, STYLE = 6, 5, 7


def haar_taps() -> np.ndarray:
    """float32 [low, vertical, horizontal, diagonal; 2 x 2 pixels]."""
    return 0.5 * np.array([[[1, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]]], np.float32)


def inverse_haar(x: np.ndarray) -> np.ndarray:
    """[n, 4 C, h, w] -> [n, C, 2 h, 2 w] by its definition: C low bands, then C triples of details."""
    n, channels, h, w = x.shape
    groups = channels // 4
    bands = np.concatenate([x[:, :groups, None], x[:, groups:].reshape(n, groups, 3, h, w)], 2)
    pixels = np.einsum("ngkij,kab->ngiajb", bands, haar_taps())
    return pixels.reshape(n, groups, 2 * h, 2 * w)


def styled_wavelet(*, shared: bool = False) -> openvino.Model:
    """A convolution, noise, leaky ReLU, a style made of w, and an inverse wavelet, as the exporter writes them."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    x, w = ops.parameter([-1, 3, SIDE, SIDE], np.float32, "x"), ops.parameter([-1, STYLE], np.float32, "w")
    channels = 4 * GROUPS
    conv = ops.convolution(x, ops.constant(normal(channels, 3, 1, 1)), [1, 1], [0, 0], [0, 0], [1, 1])
    y = ops.add(ops.add(conv, ops.constant(normal(1, channels, 1, 1))), ops.constant(normal(1, 1, SIDE, SIDE)))
    y = ops.prelu(y, ops.constant(np.array([0.2], np.float32)))
    product = ops.matmul(w, ops.constant(normal(channels, STYLE)), False, True)
    style = ops.add(product, ops.constant(normal(1, channels)))
    y = ops.multiply(y, ops.unsqueeze(style, ops.constant(np.array([2, 3]))))

    def cut(start: int, stop: int) -> openvino.Node:
        numbers = (ops.constant(np.array([number])) for number in (start, stop, 1, 1))
        return ops.slice(y, *numbers)

    taps = haar_taps()
    low = np.repeat(taps[None, :1, None], GROUPS, 0)
    details = np.repeat(taps[None, 1:, None], GROUPS, 0)
    pads = [0, 0], [0, 0], [1, 1]
    first = ops.group_convolution_backprop_data(cut(0, GROUPS), ops.constant(low), [2, 2], None, *pads)
    second = ops.group_convolution_backprop_data(cut(GROUPS, channels), ops.constant(details), [2, 2], None, *pads)
    outputs = [ops.add(first, second), *([ops.relu(y)] if shared else [])]
    return openvino.Model(outputs, [x, w], "layer")


def run(model: openvino.Model, batch: int) -> np.ndarray:
    rng = np.random.default_rng(batch)
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    x = rng.standard_normal((batch, 3, SIDE, SIDE)).astype(np.float32)
    return compiled([x, rng.standard_normal((batch, STYLE)).astype(np.float32)])[0]


def compiled(model: openvino.Model) -> Any:
    return openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def kinds(model: openvino.Model) -> list[str]:
    return [node.get_type_name() for node in model.get_ordered_ops()]


@pytest.mark.parametrize("batch", [1, 3])
def test_the_same_numbers_without_transposed_convolutions(batch: int) -> None:
    model = styled_wavelet()
    expected = run(model, batch)
    assert with_grouped_wavelets(model) == 1
    assert "GroupConvolutionBackpropData" not in kinds(model)
    assert kinds(model).count("GroupConvolution") == kinds(model).count("DepthToSpace") == 1
    np.testing.assert_allclose(run(model, batch), expected, rtol=1e-5, atol=1e-5)


def test_the_pattern_is_the_inverse_wavelet_of_its_definition() -> None:
    rng = np.random.default_rng(3)
    bands = rng.standard_normal((1, 4 * GROUPS, SIDE, SIDE)).astype(np.float32)
    x = ops.parameter([1, 4 * GROUPS, SIDE, SIDE], np.float32, "x")
    eye = np.eye(4 * GROUPS, dtype=np.float32)[..., None, None]
    y = ops.convolution(x, ops.constant(eye), [1, 1], [0, 0], [0, 0], [1, 1])
    at = [ops.constant(np.array([number])) for number in (0, GROUPS, 4 * GROUPS, 1)]
    taps, pads = haar_taps(), ([0, 0], [0, 0], [1, 1])
    parts = [
        ops.group_convolution_backprop_data(
            ops.slice(y, at[i], at[i + 1], at[3], at[3]),
            ops.constant(np.repeat(band[None, :, None], GROUPS, 0)),
            [2, 2],
            None,
            *pads,
        )
        for i, band in enumerate((taps[:1], taps[1:]))
    ]
    model = openvino.Model([ops.add(*parts)], [x], "wavelet")
    assert with_grouped_wavelets(model) == 1
    found = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([bands])[0]
    np.testing.assert_allclose(found, inverse_haar(bands), rtol=1e-5, atol=1e-6)


def test_channels_that_something_else_needs_stay_in_their_order() -> None:
    model = styled_wavelet(shared=True)
    before = kinds(model)
    assert with_grouped_wavelets(model) == 0
    assert kinds(model) == before


@pytest.mark.parametrize("graph", ["synthesis", "synthesis-light", "reenact"])
def test_every_wavelet_of_the_shipped_graphs_is_met(graph: str) -> None:
    model = openvino.Core().read_model(str(BUNDLE / f"{graph}.onnx"))
    assert with_grouped_wavelets(model) == 6
    assert "GroupConvolutionBackpropData" not in kinds(model)


@pytest.mark.parametrize(
    ("groups", "inputs", "stride", "taps"), [(4, 1, 2, 3), (3, 3, 2, 2), (3, 1, 8, 8), (2, 2, 4, 4)]
)
def test_pixels_apart_are_the_same_numbers(groups: int, inputs: int, stride: int, taps: int) -> None:
    rng = np.random.default_rng(taps)
    x = ops.parameter([1, groups * inputs, 5, 7], np.float32, "x")
    kernel = rng.standard_normal((groups, inputs, 1, taps, taps)).astype(np.float32)
    pads, more = ([1, 1], [1, 1]) if taps == 3 else ([0, 0], [0, 0])
    y = ops.group_convolution_backprop_data(
        x, ops.constant(kernel), [stride] * 2, None, pads, pads, [1, 1], output_padding=more
    )
    model = openvino.Model([y], [x], "transposed")
    given = rng.standard_normal((1, groups * inputs, 5, 7)).astype(np.float32)
    expected = compiled(model)([given])[0]
    assert with_pixels_apart(model) == 1
    assert "GroupConvolutionBackpropData" not in kinds(model)
    np.testing.assert_allclose(compiled(model)([given])[0], expected, rtol=1e-5, atol=1e-5)


def test_other_transposed_convolutions_stay_as_they_are() -> None:
    x = ops.parameter([1, 2, 5, 7], np.float32, "x")
    two, ragged = np.ones((1, 2, 2, 2, 2), np.float32), np.ones((2, 1, 1, 3, 3), np.float32)
    for kernel, pads in ((two, [0, 0]), (ragged, [1, 1])):  # two outputs a group; an odd size
        y = ops.group_convolution_backprop_data(x, ops.constant(kernel), [2, 2], None, pads, pads, [1, 1])
        assert with_pixels_apart(openvino.Model([y], [x], "transposed")) == 0


def test_of_a_round_of_refine_only_two_small_poolings_have_grouped_transposed_convolutions() -> None:
    model = openvino.Core().read_model(str(BUNDLE / "refine.onnx"))
    with_grouped_wavelets(model)
    with_pixels_apart(model)
    left = [node for node in model.get_ops() if node.get_type_name() == "GroupConvolutionBackpropData"]
    assert {tuple(node.output(0).shape) for node in left} == {(1, 64, 31, 31), (1, 192, 15, 15)}  # 2 % of a round


def test_the_shipped_light_generator_gives_the_same_picture_as_onnx_runtime() -> None:
    path = Path(BUNDLE) / "synthesis-light.onnx"
    w_plus = np.random.default_rng(0).standard_normal((1, 17, 512)).astype(np.float32) * 0.3
    pictures = [open_session(path, engine=engine).run(w_plus=w_plus)["image"] for engine in ("onnxruntime", "openvino")]
    # measured: 1 grey level where a rounding falls the other way
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() <= 1


def test_openvino_has_no_kernel_of_its_own_for_transposed_wavelets_in_bfloat16() -> None:
    """Says so when a newer OpenVINO takes another kernel: then measure anew whether the rewriting still pays."""
    core = openvino.Core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bfloat16")
    model = core.read_model(str(BUNDLE / "synthesis-light.onnx"))
    model.reshape({"w_plus": [1, 17, 512]})
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    kernels = [
        node.get_rt_info()["primitiveType"].astype(str)
        for node in compiled.get_runtime_model().get_ordered_ops()
        if node.get_rt_info()["layerType"].astype(str) == "Deconvolution"
    ]
    # the kernel for dense ones, and none for one channel a group, as float32 has; what follows the last is float32
    assert sum(kernel.startswith("brgconv") and kernel.endswith("bf16") for kernel in kernels) == 10, kernels


def constant_mb(model: openvino.Model) -> float:
    """MB of float32 constants that a built model holds."""
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    nodes = compiled.get_runtime_model().get_ordered_ops()
    constants = [node for node in nodes if node.get_rt_info()["layerType"].astype(str) == "Const"]
    return sum(4 * np.prod(node.get_output_shape(0)) for node in constants) / 1e6


def test_noise_apart_gives_the_same_numbers_and_is_not_spread_over_all_channels() -> None:
    model = styled_wavelet()
    expected = run(model, 2)
    before = constant_mb(model)
    assert with_noise_apart(model) == 1
    np.testing.assert_allclose(run(model, 2), expected, rtol=1e-5, atol=1e-5)
    # one constant [1, C, H, W] less; should OpenVINO stop making it, the form is needed no more
    assert before - constant_mb(model) == pytest.approx(4 * (4 * GROUPS - 1) * SIDE * SIDE / 1e6, rel=0.2)


def test_noise_of_every_batch_and_of_codes_for_every_layer() -> None:
    noise = np.random.default_rng(0).standard_normal((1, 1, 5, 1)).astype(np.float32)
    code = ops.parameter([-1, 3, 5], np.float32, "w_plus")
    model = openvino.Model([ops.add(ops.unsqueeze(code, ops.constant(np.array([3]))), noise)], [code], "n")
    codes = np.random.default_rng(1).standard_normal((2, 3, 5)).astype(np.float32)
    assert with_noise_apart(model) == 1
    found = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([codes])[0]
    np.testing.assert_allclose(found, codes[..., None] + noise, rtol=1e-6)


def test_graphs_without_noise_stay_as_they_are() -> None:
    model = openvino.Core().read_model(str(BUNDLE / "attributes.onnx"))
    assert with_noise_apart(model) == 0


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("written", ["flag", "transpose"])
def test_two_products_with_one_square_matrix_are_both_right(cast: bool, written: str) -> None:
    """OpenVINO in float32 computes the second wrongly as long as they share the matrix."""
    rng = np.random.default_rng(0)
    x, matrix = rng.standard_normal((1, 8)).astype(np.float32), rng.standard_normal((8, 8)).astype(np.float32)
    if cast:
        matrix = matrix.astype(np.float16)
    given = ops.parameter([1, 8], np.float32, "x")
    shared = ops.convert(ops.constant(matrix), "f32") if cast else ops.constant(matrix)
    if written == "flag":
        first = ops.matmul(given, shared, False, True)
    else:
        first = ops.matmul(given, ops.transpose(shared, ops.constant(np.array([1, 0]))), False, False)
    second = ops.matmul(first, shared, False, False)
    model = openvino.Model([first, second], [given], "products")
    assert with_matrices_apart(model) == 1
    found = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([x])
    values = matrix.astype(np.float32)
    np.testing.assert_allclose(found[0], x @ values.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], x @ values.T @ values, rtol=1e-4, atol=1e-5)


def test_matrices_of_one_product_each_stay_as_they_are() -> None:
    assert with_matrices_apart(openvino.Core().read_model(str(BUNDLE / "mapper.onnx"))) == 0


def test_a_round_of_refine_steps_where_onnx_runtime_steps() -> None:
    rng = np.random.default_rng(0)
    session, other = (open_session(BUNDLE / "refine.onnx", engine=engine) for engine in ("onnxruntime", "openvino"))
    shapes = {tensor.name: tuple(map(int, tensor.shape)) for tensor in session.inputs}
    values = {
        "crop": rng.integers(0, 255, shapes["crop"]).astype(np.uint8),
        "own": np.ones(shapes["own"], np.float32),
        "w": 0.3 * rng.standard_normal(shapes["w"]).astype(np.float32),
        "state": np.zeros(shapes["state"], np.float32),
        "round": np.zeros(1, np.float32),
        "rounds": np.ones(1, np.float32),
    }
    slopes = [s.run(**values)["next_state"][0, 1].ravel() for s in (session, other)]
    cosine = slopes[0] @ slopes[1] / np.linalg.norm(slopes[0]) / np.linalg.norm(slopes[1])
    assert cosine > 0.999  # measured: 0.99999; it was 0.96, and half as long, with shared matrices
