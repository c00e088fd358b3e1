"""Quicker forms of graphs for ONNX Runtime: the same numbers, and only where the pattern is met."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from fid.runtime.engines.open import open_session
from fid.runtime.engines.ort_forms import LARGEST_GRAPH, quick_forms, rewrite, with_slopes, without_steady
from onnx import TensorProto, helper, numpy_helper

C_IN, C_OUT, SIDE = 6, 5, 8


def modulated(*, depthwise: bool = True, bias: bool = True, noise: bool = True, style: str = "w") -> onnx.ModelProto:
    """x * s, perhaps a depthwise convolution, a pointwise one, perhaps noise: the parts of a generator's layer."""
    random = np.random.default_rng(0)
    tensors = {
        "gain": random.standard_normal((1, C_IN, 1, 1)),
        "deep": random.standard_normal((C_IN, 1, 3, 3)),
        "weight": random.standard_normal((C_OUT, C_IN, 1, 1)),
        "bias": random.standard_normal(C_OUT),
        "noise": random.standard_normal((1, 1, SIDE, SIDE)),
    }
    factor = "style" if style == "w" else "gain"
    nodes = [
        helper.make_node("Unsqueeze", ["w", "axes"], ["style"]),
        helper.make_node("Mul", ["x", factor], ["scaled"]),
        helper.make_node("Conv", ["scaled", "deep"], ["filtered"], group=C_IN, pads=[1, 1, 1, 1]),
        helper.make_node(
            "Conv", ["filtered" if depthwise else "scaled", "weight", *(["bias"] if bias else [])], ["mixed"]
        ),
        helper.make_node("Add" if noise else "Identity", ["mixed", *(["noise"] if noise else [])], ["shifted"]),
        helper.make_node("LeakyRelu", ["shifted"], ["y"], alpha=0.2),
    ]
    nodes = [node for node in nodes if depthwise or node.output[0] != "filtered"]
    graph = helper.make_graph(
        nodes,
        "layer",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", C_IN, SIDE, SIDE]),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, ["batch", C_IN]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", C_OUT, SIDE, SIDE])],
        [
            *(numpy_helper.from_array(array.astype(np.float32), name) for name, array in tensors.items()),
            numpy_helper.from_array(np.array([2, 3], np.int64), "axes"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model: onnx.ModelProto, batch: int) -> np.ndarray:
    random = np.random.default_rng(1)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = random.standard_normal((batch, C_IN, SIDE, SIDE)).astype(np.float32)
    return session.run(None, {"x": x, "w": random.standard_normal((batch, C_IN)).astype(np.float32)})[0]


@pytest.mark.parametrize("depthwise", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("noise", [True, False])
def test_every_batch_gives_the_same_numbers(depthwise, bias, noise) -> None:
    original = modulated(depthwise=depthwise, bias=bias, noise=noise)
    changed = onnx.ModelProto()
    changed.CopyFrom(original)
    assert rewrite(changed) == 1
    onnx.checker.check_model(changed, full_check=True)
    kinds = [node.op_type for node in changed.graph.node]
    assert kinds.count("Conv") == int(depthwise)
    assert kinds.count("MatMul") == 1
    for batch in (1, 3):
        # float32 sums of six products in another order
        np.testing.assert_allclose(run(changed, batch), run(original, batch), rtol=1e-4, atol=1e-5)


def test_constant_factors_and_values_used_twice_stay_as_they_are() -> None:
    assert rewrite(modulated(style="constant")) == 0
    shared = modulated()
    shared.graph.node.append(helper.make_node("Relu", ["scaled"], ["also"]))
    shared.graph.output.append(helper.make_tensor_value_info("also", TensorProto.FLOAT, ["batch", C_IN, SIDE, SIDE]))
    before = shared.SerializeToString()
    assert rewrite(shared) == 0
    assert shared.SerializeToString() == before


def test_files_that_hold_their_weights_or_are_no_graph_are_left_to_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(b"\0" * (LARGEST_GRAPH + 1))
    assert quick_forms(path, products=True, steady=["x"]) == (b"", b"")
    path.write_bytes(b"not a graph")
    assert quick_forms(path, products=True) == (b"", b"")
    onnx.save(modulated(style="constant"), path)
    assert quick_forms(path, products=True) == (b"", b"")
    onnx.save(modulated(), path)
    assert quick_forms(path, products=False) == (b"", b"")
    rewritten, first = quick_forms(path, products=True)
    assert b"MatMul" in rewritten
    assert first == b""


def backwards(*, below: float | None = 0.1) -> onnx.ModelProto:
    """The gradient of sum(g * PRelu(x - mean(photo))), beside the value: as `export.gradient` writes it. `below`: the
    slope where x is negative, one for all channels; None for a slope of each."""
    slope = np.linspace(0.1, 1.4, 3).reshape(3, 1, 1) if below is None else np.array(below)
    tensors = {"slope": slope, "zero": np.array(0.0), "one": np.array(1.0)}
    value = "PRelu" if below is None else "LeakyRelu"
    nodes = [
        helper.make_node("Relu", ["photo"], ["seen"]),
        helper.make_node("ReduceMean", ["seen"], ["level"], axes=[2, 3], keepdims=1),
        helper.make_node("Sub", ["x", "level"], ["apart"]),
        helper.make_node("PRelu", ["apart", "slope"], ["y"])
        if value == "PRelu"
        else helper.make_node("LeakyRelu", ["apart"], ["y"], alpha=below),
        helper.make_node("Greater", ["apart", "zero"], ["positive"]),
        helper.make_node("Where", ["positive", "one", "slope"], ["factor"]),
        helper.make_node("Mul", ["g", "factor"], ["gradient"]),
    ]
    port, shape = helper.make_tensor_value_info, [1, 3, 4, 4]
    graph = helper.make_graph(
        nodes,
        "gradient",
        [port(name, TensorProto.FLOAT, shape) for name in ("photo", "x", "g")],
        [port(name, TensorProto.FLOAT, shape) for name in ("y", "gradient")],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def arrays(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.standard_normal((1, 3, 4, 4)).astype(np.float32) for name in ("photo", "x", "g")}


def by_hand(below: float | None, given: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    slope = np.linspace(0.1, 1.4, 3).reshape(3, 1, 1) if below is None else below
    apart = given["x"] - np.maximum(given["photo"], 0).mean((2, 3), keepdims=True)
    factor = np.where(apart > 0, 1, slope)
    return apart * factor, given["g"] * factor


@pytest.mark.parametrize("below", [0.1, 1.7, None])
def test_slopes_of_a_gradient_are_the_same_numbers(below: float | None) -> None:
    model = backwards(below=below)
    assert with_slopes(model) == 1
    onnx.checker.check_model(model, full_check=True)
    kinds = {node.op_type for node in model.graph.node}
    assert ("Clip" in kinds) == (below == 0.1)
    assert "PRelu" not in kinds
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for got, expected in zip(session.run(None, arrays(0)), by_hand(below, arrays(0)), strict=True):
        np.testing.assert_allclose(np.asarray(got), expected, rtol=1e-5, atol=1e-6)


def test_a_graph_is_cut_where_an_input_that_stays_is_joined_by_others() -> None:
    model = backwards()
    first = without_steady(model, ["photo"])
    assert first is not None
    for part in (first, model):
        onnx.checker.check_model(part, full_check=True)
    assert [node.op_type for node in first.graph.node] == ["Relu", "ReduceMean"]
    assert [port.name for port in model.graph.input] == ["x", "g", "level"]
    assert without_steady(backwards(), ["x"]) is None  # where it is joined at once, there is nothing to keep


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_what_stays_is_computed_again_when_it_changes(engine: str, tmp_path: Path) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    path = tmp_path / "gradient.onnx"
    onnx.save(backwards(below=None), path)
    session = open_session(path, engine=engine, threads=1, steady=["photo"])
    assert {tensor.name for tensor in session.inputs} == {"photo", "x", "g"}
    first, second = arrays(0), arrays(1)
    for given in (first, first | {"x": second["x"]}, second, first, arrays(2), second, first):
        got = session.run(**given)
        for name, expected in zip(("y", "gradient"), by_hand(None, given), strict=True):
            np.testing.assert_allclose(got[name], expected, rtol=1e-5, atol=1e-6)
