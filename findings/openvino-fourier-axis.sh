#!/usr/bin/env bash
# OpenVINO takes the Fourier transform of an ONNX file of opset 20 or newer along its axis 1, whatever axis the file says, and says nothing.
# openvino 2026.4.1, CPU, Python 3.11, Linux. Since opset 20 the axis of DFT is an input and no longer an attribute. One would have guessed that a newer opset
# is either read or refused. For a batch of pictures [batch, channels, height, width, 1] that is a transform over the channels in place of the rows: an
# answer of the same shape and size, so nothing stops. Up to opset 19 it is right, but for a negative axis, which is taken wrongly too (the last axis is the
# pair of real and imaginary part: -2 is the one before it). ONNX Runtime is right with all of them. What helps: opset 19 and an axis counted from the
# front, moving the axis to place 1 by Transpose, or a product with the matrix of the transform. No issue was found.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openvino==2026.4.1 onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import sys

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
from onnx import TensorProto, helper, numpy_helper

SHAPE = (2, 8, 8, 8, 1)  # batch, channels, height, width, the real part
x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


def transform(axis):
    y = np.fft.fft(x[..., 0], axis=axis if axis > 0 else axis + x.ndim)
    return np.stack([y.real, y.imag], -1)


def transformed(opset, axis):
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", SHAPE), ("y", (*SHAPE[:-1], 2)))]
    if opset < 20:
        node, constants = helper.make_node("DFT", ["x"], ["y"], axis=axis), []
    else:
        node, constants = helper.make_node("DFT", ["x", "", "axis"], ["y"]), [numpy_helper.from_array(np.array(axis), "axis")]
    graph = helper.make_graph([node], "one", ports[:1], ports[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model)
    data = model.SerializeToString()
    yield ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    yield ov.Core().compile_model(ov.Core().read_model(data), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([x])[0]


def axes_of(y):
    """Which transform this is."""
    return [axis for axis in (1, 2, 3) if y.shape == transform(axis).shape and np.abs(y - transform(axis)).max() < 1e-3]


print("OpenVINO", ov.__version__, "ONNX Runtime", ort.__version__)
found = {}
for opset in (17, 19, 20, 23):
    for axis in (1, 2, 3, -2):
        other, found[opset, axis] = (axes_of(y) for y in transformed(opset, axis))
        print(f"opset {opset}, axis {axis:2}: ONNX Runtime transforms axis {other}, OpenVINO {found[opset, axis]}")
        assert other == [axis if axis > 0 else 3], "ONNX Runtime"
old = all(found[opset, axis] == [axis] for opset in (17, 19) for axis in (1, 2, 3))
new = all(found[opset, axis] == [1] for opset in (20, 23) for axis in (1, 2, 3, -2))
sys.exit(0 if old and new and found[19, -2] != [3] else "It is otherwise now.")
PY
