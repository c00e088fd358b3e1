"""Modulated pointwise convolutions as matrix products: the same numbers, and only where the pattern is met."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from fid.runtime.engines.matmul import LARGEST_GRAPH, rewrite, with_matrix_products
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
    assert with_matrix_products(path) is None
    path.write_bytes(b"not a graph")
    assert with_matrix_products(path) is None
    onnx.save(modulated(style="constant"), path)
    assert with_matrix_products(path) is None
    onnx.save(modulated(), path)
    assert with_matrix_products(path) is not None
