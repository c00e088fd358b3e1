"""The typed FP16 converter: what becomes FP16, that it computes the same, and that it cannot overflow."""

import numpy as np
import onnx
import pytest
import styled
from fid.export.fp16.convert import CLAMP, LIMIT, to_fp16
from fid.export.fp16.emulate import emulated, open_emulated
from fid.runtime.engines.open import open_session
from fid.runtime.errors import FidError
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator


def latents(count: int = 4) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, 512)).astype(np.float32)


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    return {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)} | {
        t.name: t.data_type for t in graph.initializer
    }


def test_convolutions_are_fp16_and_the_rest_is_not(tmp_path):
    typed = to_fp16(styled.synthesis(tmp_path))
    assert typed.layers == styled.LAYERS
    found = types(typed.model)
    for node in typed.model.graph.node:
        kinds = {found[name] for name in (*node.input, *node.output) if found.get(name) in (1, 10)}
        if node.op_type == "Conv":
            last = node.input[1] == "g.to_image.weight"
            assert kinds == {TensorProto.FLOAT if last else TensorProto.FLOAT16}, node.input[1]
        elif node.op_type in ("Gemm", "MatMul", "Sqrt", "Reciprocal", "LeakyRelu", "Add"):
            assert kinds == {TensorProto.FLOAT}, node.op_type  # styles, demodulation, noise and bias
    onnx.checker.check_model(typed.model, full_check=True)


def test_an_encoder_is_fp16_up_to_its_code(tmp_path):
    typed = to_fp16(styled.encoder(tmp_path))
    assert typed.layers == ("e.stem", "e.conv")
    found = types(typed.model)
    for kind, wanted in (("LeakyRelu", 10), ("AveragePool", 10), ("Gemm", 1), ("Div", 1)):
        assert {found[n.output[0]] for n in typed.model.graph.node if n.op_type == kind} == {wanted}, kind
    assert sum(n.op_type == "Cast" for n in typed.model.graph.node) == 3  # in, to FP16, back


@pytest.mark.parametrize("gain", [1.0, 1e-4, 300.0])
def test_it_computes_the_same_picture(tmp_path, gain):
    model = styled.synthesis(tmp_path, gain)
    w = latents()
    expected = open_session(tmp_path / "synthesis.onnx", engine="onnxruntime", threads=1).run(w=w)["image"]
    got = open_emulated(to_fp16(model).model, 1).run(w=w)["image"]
    assert expected.std() > 20
    assert np.abs(got.astype(int) - expected).max() <= 2  # of 255: a dozen roundings of 2^-11 each


def test_it_computes_the_same_code(tmp_path):
    model = styled.encoder(tmp_path)
    crop = np.random.default_rng(2).integers(0, 256, (3, 256, 256, 3), np.uint8)
    expected = open_session(tmp_path / "encoder.onnx", engine="onnxruntime", threads=1).run(crop=crop)["attributes"]
    got = open_emulated(to_fp16(model).model, 1).run(crop=crop)["attributes"]
    np.testing.assert_allclose(got, expected, atol=4e-3 * np.abs(expected).max())


def test_without_rounding_nothing_changes(tmp_path):
    """The rewriting is exact: with FP32 in the place of FP16 both graphs give the same numbers."""
    model = styled.synthesis(tmp_path)
    wide = emulated(to_fp16(model).model)
    for node in wide.graph.node:
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT16:
            node.attribute[0].i = TensorProto.FLOAT
    w = latents()
    images = [ReferenceEvaluator(m).run(None, {"w": w})[0] for m in (model, wide)]
    assert np.abs(images[0].astype(int) - images[1]).max() <= 1  # a .5 may round either way
    assert (images[0] != images[1]).mean() < 1e-3


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3, 1e12])
def test_no_latent_comes_past_the_bounds(tmp_path, scale):
    typed = to_fp16(styled.synthesis(tmp_path))
    bounds = styled.all_fp16(typed.model)
    assert max(bound for _, bound in bounds.values()) == pytest.approx(typed.bound, rel=1e-5)
    assert typed.bound <= LIMIT
    names = sorted(bounds)
    wide = styled.with_outputs(emulated(typed.model), names)
    values = ReferenceEvaluator(wide).run(names, {"w": latents() * np.float32(scale)})
    for name, value in zip(names, values, strict=True):
        assert np.isfinite(value).all(), name
        assert np.abs(value).max() <= bounds[name][1] * (1 + 2**-10), name


def test_no_picture_comes_past_the_bounds(tmp_path):
    """Weights so large that the clip before a convolution has to act: the sign of the weight in every pixel."""
    model = styled.encoder(tmp_path, gain=3e3)
    typed = to_fp16(model)
    bounds = styled.all_fp16(typed.model)
    assert "Clip" in {kind for kind, _ in bounds.values()}
    assert typed.bound <= LIMIT
    weight = next(t for t in model.graph.initializer if t.name == "e.stem.weight")
    worst = np.where(numpy_helper.to_array(weight) > 0, 255, 0).astype(np.uint8)  # [8, 3, 16, 16]
    crop = np.tile(worst.transpose(0, 2, 3, 1), (1, 16, 16, 1))
    names = sorted(bounds)
    values = ReferenceEvaluator(styled.with_outputs(emulated(typed.model), names)).run(names, {"crop": crop})
    for name, value in zip(names, values, strict=True):
        assert np.abs(value).max() <= bounds[name][1] * (1 + 2**-10), name
    reached = max(np.abs(v).max() for n, v in zip(names, values, strict=True) if bounds[n][0] == "Conv")
    assert reached > 0.5 * typed.bound  # and it is no loose bound


def test_weights_are_scaled_by_powers_of_two_and_lose_nothing(tmp_path):
    model = styled.synthesis(tmp_path)
    before = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    typed = to_fp16(model)
    after = {t.name: numpy_helper.to_array(t) for t in typed.model.graph.initializer}
    for name in styled.LAYERS:
        (scaled,) = (a for n, a in after.items() if n.startswith(f"{name}.weight.fp16"))
        assert scaled.dtype == np.float16
        k = scaled.astype(np.float64).ravel()[0] / before[f"{name}.weight"].astype(np.float64).ravel()[0]
        assert np.log2(k) == round(np.log2(k))
        np.testing.assert_allclose(scaled / k, before[f"{name}.weight"], atol=2**-24 / k)
        constant = np.abs(before["g.constant"]).max()  # what the first layer takes is known
        largest = np.abs(scaled.astype(np.float64)).sum((1, 2, 3)).max()
        assert LIMIT / 2 < largest * (constant if name == "g.conv0" else CLAMP) <= LIMIT


def test_kept_layers_are_fp32(tmp_path):
    typed = to_fp16(styled.synthesis(tmp_path), kept_fp32=["g.conv1"])
    assert typed.layers == ("g.conv0", "g.conv2")
    assert typed.kept_fp32 == ("g.conv1",)
    found = types(typed.model)
    assert found["g.conv1.weight"] == TensorProto.FLOAT
    everything = to_fp16(styled.synthesis(tmp_path), kept_fp32=styled.LAYERS)
    assert everything.layers == ()
    assert TensorProto.FLOAT16 not in types(everything.model).values()


def test_pictures_are_uint8_beside_a_cast_only(tmp_path):
    for model, picture in ((styled.synthesis(tmp_path), "image"), (styled.encoder(tmp_path), "crop")):
        typed = to_fp16(model).model
        touching = {n.op_type for n in typed.graph.node if picture in (*n.input, *n.output)}
        assert touching == {"Cast"}


def test_a_graph_without_convolutions_stays_as_it_is(tmp_path):
    gemm = helper.make_node("Gemm", ["w", "a"], ["y"])
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 512]) for name in "wy"]
    tensor = numpy_helper.from_array(np.eye(512, dtype=np.float32), "a")
    graph = helper.make_graph([gemm], "g", ports[:1], ports[1:], [tensor])
    typed = to_fp16(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
    assert typed.layers == ()
    assert TensorProto.FLOAT16 not in types(typed.model).values()


def test_weights_that_are_computed_are_refused(tmp_path):
    model = styled.synthesis(tmp_path)
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    model.graph.node.insert(0, helper.make_node("Abs", [conv.input[1]], ["computed"]))
    conv.input[1] = "computed"
    with pytest.raises(FidError, match="computes its weights"):
        to_fp16(model)


def small(nodes: list[onnx.NodeProto], **tensors: np.ndarray) -> onnx.ModelProto:
    """x [batch, 4, 8, 8], s [batch, 4, 1, 1] -> y, a map of any size."""
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4, side, side])
        for name, side in (("x", 8), ("s", 1), ("y", None))
    ]
    stored = [numpy_helper.from_array(tensor.astype(np.float32), name) for name, tensor in tensors.items()]
    graph = helper.make_graph(nodes, "g", ports[:2], ports[2:], stored)
    for i, node in enumerate(graph.node):
        node.name = f"node_{i}"
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def arrays(scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        "x": (rng.standard_normal((2, 4, 8, 8)) * scale).astype(np.float32),
        "s": (rng.standard_normal((2, 4, 1, 1)) * scale).astype(np.float32),
    }


def agreement(model: onnx.ModelProto, typed: onnx.ModelProto) -> float:
    """Largest difference, as a share of the largest number."""
    expected = ReferenceEvaluator(model).run(None, arrays())[0]
    return float(np.abs(open_emulated(typed, 1).run(**arrays())["y"] - expected).max() / np.abs(expected).max())


def test_a_map_that_leaves_between_two_convolutions_keeps_its_scale():
    weights = np.random.default_rng(4).standard_normal((2, 4, 4, 3, 3))
    model = small(
        [
            helper.make_node("Mul", ["x", "s"], ["a"]),
            helper.make_node("Conv", ["a", "w0"], ["b"], pads=[1, 1, 1, 1]),
            helper.make_node("Conv", ["b", "w1"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Tanh", ["b"], ["d"]),
            helper.make_node("Add", ["c", "d"], ["y"]),
        ],
        w0=weights[0] / 10,
        w1=weights[1],
    )
    typed = to_fp16(model)
    assert typed.layers == ("w0", "w1")
    assert agreement(model, typed.model) < 3e-3


def test_sums_of_differently_scaled_maps_stay_fp32():
    weights = np.random.default_rng(4).standard_normal((2, 4, 4, 1, 1))
    model = small(
        [
            helper.make_node("Mul", ["x", "s"], ["a"]),
            helper.make_node("Conv", ["a", "w0"], ["b"]),
            helper.make_node("Add", ["a", "b"], ["c"]),
            helper.make_node("Conv", ["c", "w1"], ["y"]),
        ],
        w0=weights[0] * 100,
        w1=weights[1],
    )
    typed = to_fp16(model)
    assert agreement(model, typed.model) < 3e-3


@pytest.mark.parametrize("slope", [0.25, 3.0])
def test_steep_slopes_are_kept_in_bounds(slope):
    weights = np.random.default_rng(4).standard_normal((2, 4, 4, 1, 1)) * 3
    model = small(
        [
            helper.make_node("Conv", ["x", "w0"], ["a"]),
            helper.make_node("PRelu", ["a", "slope"], ["b"]),
            helper.make_node("Add", ["a", "b"], ["c"]),
            helper.make_node("Conv", ["c", "w1"], ["d"]),
            helper.make_node("Mul", ["d", "s"], ["y"]),
        ],
        w0=weights[0],
        w1=weights[1],
        slope=np.full((4, 1, 1), slope),
    )
    typed = to_fp16(model)
    assert typed.layers == ("w0", "w1")
    assert max(bound for _, bound in styled.all_fp16(typed.model).values()) <= LIMIT
    assert agreement(model, typed.model) < 3e-3
    got = open_emulated(typed.model, 1).run(**arrays(scale=1e6))["y"]
    assert np.isfinite(got).all()


def test_weights_that_fp16_cannot_hold_stay_fp32():
    model = small([helper.make_node("Conv", ["x", "w0"], ["y"])], w0=np.full((4, 4, 1, 1), 1e5))
    typed = to_fp16(model)
    assert typed.layers == ()
    assert typed.kept_fp32 == ("w0",)


def test_what_nothing_needs_is_left_out(tmp_path):
    typed = to_fp16(styled.synthesis(tmp_path)).model
    used = {name for node in typed.graph.node for name in node.input} | {port.name for port in typed.graph.output}
    assert [node.op_type for node in typed.graph.node if used.isdisjoint(node.output)] == []
    assert [tensor.name for tensor in typed.graph.initializer if tensor.name not in used] == []


def test_a_modulated_convolution_with_a_bias_hands_on_what_it_means():
    """The FP16 answer is scaled and lacks the bias; the layer behind it, FP16 as well, takes the real one."""
    model = small(
        [
            helper.make_node("Mul", ["x", "s"], ["a"]),
            helper.make_node("Conv", ["a", "w0", "b0"], ["b"], pads=[1, 1, 1, 1]),
            helper.make_node("DepthToSpace", ["b"], ["c"], blocksize=2),
            helper.make_node("Tanh", ["c"], ["y"]),
        ],
        w0=np.random.default_rng(4).standard_normal((16, 4, 3, 3)) / 10,
        b0=np.random.default_rng(5).standard_normal(16),
    )
    typed = to_fp16(model)
    assert typed.layers == ("w0", "node_2")
    assert agreement(model, typed.model) < 3e-3


def test_one_map_for_a_styled_layer_and_a_plain_one():
    weights = np.random.default_rng(4).standard_normal((2, 4, 4, 1, 1))
    model = small(
        [
            helper.make_node("Mul", ["x", "s"], ["a"]),
            helper.make_node("Conv", ["a", "w0"], ["b"]),
            helper.make_node("Tanh", ["b"], ["c"]),
            helper.make_node("Conv", ["x", "w1"], ["d"]),
            helper.make_node("Conv", ["a", "w1"], ["e"]),
            helper.make_node("Add", ["d", "e"], ["f"]),
            helper.make_node("Add", ["c", "f"], ["y"]),
        ],
        w0=weights[0],
        w1=weights[1],
    )
    assert agreement(model, to_fp16(model).model) < 3e-3
