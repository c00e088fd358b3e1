"""FP16 as hardware computes it: rounding, overflow, types."""

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from fid.export.fp16 import emulate
from fid.export.fp16.emulate import emulated, open_emulated
from fid.runtime.engines.open import open_session
from fid.runtime.errors import FidError
from onnx import TensorProto, helper, numpy_helper


def model(nodes: list[onnx.NodeProto], *tensors: np.ndarray) -> onnx.ModelProto:
    """x float32 [batch, 4, 8, 8] -> y float32; tensors are called t0, t1, ..."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", None, None, None])],
        [numpy_helper.from_array(tensor, f"t{i}") for i, tensor in enumerate(tensors)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def to(name: str, result: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [name], [result], to=kind)


def chain(*middle: onnx.NodeProto) -> list[onnx.NodeProto]:
    """x to FP16, the nodes, back to FP32."""
    return [to("x", "a", TensorProto.FLOAT16), *middle, to(middle[-1].output[0], "y", TensorProto.FLOAT)]


def test_every_result_is_rounded_as_torch_rounds_it():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 4, 8, 8)).astype(np.float32) * 10
    weight, slope = rng.standard_normal((4, 4, 3, 3)).astype(np.float16), 0.2
    graph = model(
        chain(
            helper.make_node("Conv", ["a", "t0"], ["b"], pads=[1, 1, 1, 1]),
            helper.make_node("LeakyRelu", ["b"], ["c"], alpha=slope),
            helper.make_node("Add", ["c", "a"], ["d"]),
        ),
        weight,
    )
    got = open_emulated(graph, 1).run(x=x)["y"]
    a = torch.from_numpy(x).half()
    conv = F.conv2d(a.float(), torch.from_numpy(weight).float(), padding=1).half()
    expected = (F.leaky_relu(conv.float(), slope).half().float() + a.float()).half().float().numpy()
    off = got != expected  # sums in another order may fall on the other side of a rounding
    assert off.mean() < 0.01
    np.testing.assert_allclose(got, expected, rtol=2**-9, atol=2**-9)
    assert np.array_equal(got, got.astype(np.float16).astype(np.float32))


def test_overflow_is_infinite_here_and_hidden_by_the_plain_engine(tmp_path):
    graph = model(chain(helper.make_node("Mul", ["a", "a"], ["b"]), helper.make_node("Sqrt", ["b"], ["c"])))
    onnx.save(graph, tmp_path / "typed.onnx")
    x = np.full((1, 4, 8, 8), 300, np.float32)
    assert np.isinf(open_emulated(graph, 1).run(x=x)["y"]).all()
    assert np.array_equal(open_session(tmp_path / "typed.onnx", engine="onnxruntime", threads=1).run(x=x)["y"], x)


def test_mixed_types_are_refused_as_tensorrt_refuses_them():
    mixed = model([to("x", "a", TensorProto.FLOAT16), helper.make_node("Add", ["a", "x"], ["y"])])
    with pytest.raises(FidError, match="the typed graph is not one"):
        emulated(mixed)


def test_an_fp16_border_is_refused():
    graph = model(chain(helper.make_node("Relu", ["a"], ["b"])))
    graph.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    graph.graph.node[-1].attribute[0].i = TensorProto.FLOAT16
    with pytest.raises(FidError, match="FP16 input or output"):
        emulated(graph)


def test_an_engine_that_does_not_round_is_noticed(monkeypatch):
    monkeypatch.setattr(emulate, "PROBES", {1 + 2.0**-12: 1 + 2.0**-12})
    emulate._check_rounding.cache_clear()
    with pytest.raises(FidError, match="leaves out the rounding"):
        open_emulated(model(chain(helper.make_node("Relu", ["a"], ["b"]))), 1)
