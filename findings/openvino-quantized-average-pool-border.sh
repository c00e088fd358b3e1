#!/usr/bin/env bash
# In a quantized network OpenVINO's average pool with count_include_pad takes the border for the lowest number there is and not for 0: every pixel along the edge is wrong, a corner by half the range.
# openvino 2026.4.1, CPU, float32, Python 3.11, Linux; QuantizeLinear and DequantizeLinear with a zero point, and FakeQuantize whose range does not begin at 0,
# as quantizers write them for activations of both signs. One would have guessed that the pool's zeros are zeros of real numbers: a map of 10 everywhere gives
# 4.44 in the corner, as in float32 and in ONNX Runtime. The pool is moved in front of the dequantization and pads with the byte 0, which stands for
# -64 here. count_include_pad is what PyTorch's AvgPool2d does by itself (Inception, 3 x 3 with padding 1). With a zero point of 0 and with
# count_include_pad=0 it is right; a Pad node of zeros in front does not help, for it is fused into the pool. So: quantize what
# goes into such a pool symmetrically, or leave the pool out of the quantization. No issue was found.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openvino==2026.4.1 onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import sys

import numpy as np
import onnxruntime as ort
import openvino as ov
from onnx import TensorProto, helper, numpy_helper
from openvino import opset13 as ops

SHAPE = (1, 8, 6, 6)
x = np.full(SHAPE, 10, np.float32)


def openvino(model):
    found = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([x])
    return found[0][0, 0, 0]


def quantized(zero, padded=False, include=1):
    """The first row after the pool, by ONNX Runtime and by OpenVINO."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", SHAPE), ("y", None))]
    constants = {"scale": np.float32(0.5), "zero": zero, **({"sides": np.array([0, 0, 1, 1] * 2)} if padded else {})}
    pads = [0, 0, 0, 0] if padded else [1, 1, 1, 1]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["a"]),
        helper.make_node("DequantizeLinear", ["a", "scale", "zero"], ["b"]),
        *([helper.make_node("Pad", ["b", "sides"], ["c"])] if padded else []),
        helper.make_node("AveragePool", ["c" if padded else "b"], ["y"], kernel_shape=[3, 3], pads=pads, count_include_pad=include),
    ]
    initial = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "one", ports[:1], ports[1:], initial), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    ).SerializeToString()
    other = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0][0, 0, 0]
    return other, openvino(ov.Core().read_model(model))


print("OpenVINO", ov.__version__, "ONNX Runtime", ort.__version__, "the first row of a map that is 10 everywhere")
cases = {
    "uint8, zero point 128": quantized(np.uint8(128)),
    "uint8, zero point 10": quantized(np.uint8(10)),
    "uint8, 128, by Pad": quantized(np.uint8(128), padded=True),
    "int8, zero point -20": quantized(np.int8(-20)),
    "uint8, zero point 0": quantized(np.uint8(0)),
    "int8, zero point 0": quantized(np.int8(0)),
    "uint8, 128, borders not counted": quantized(np.uint8(128), include=0),
}
for name, rows in cases.items():
    print(f"{name:32}", *(np.round(row[:3], 2) for row in rows))
wrong = {name: np.abs(rows[0] - rows[1]).max() > 1 for name, rows in cases.items()}
given = ops.parameter(SHAPE, np.float32)
ends = [ops.constant(np.float32(value)) for value in (-5, 122.5)]
faked = ops.avg_pool(ops.fake_quantize(given, *ends, *ends, 256), [1, 1], [1, 1], [1, 1], [3, 3], False)
row = openvino(ov.Model([faked], [given], "faked"))
print(f"{'FakeQuantize of -5 to 122.5':32}", np.round(row[:3], 2))
expected = [True] * 4 + [False] * 3
sys.exit(0 if list(wrong.values()) == expected and abs(row[0] - 40 / 9) > 1 else "It is otherwise now.")
PY
