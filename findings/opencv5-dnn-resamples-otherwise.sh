#!/usr/bin/env bash
# OpenCV 5 reads every resampling of an ONNX file without a complaint and computes four of them as another one: Resize of opset 10, scales that do not give whole sizes, antialias, and GridSample's "cubic".
# opencv-python-headless 5.0.0.93 (its ONNX reader was written anew), onnxruntime 1.32.0, CPU, Python 3.11. One would have guessed what the standard says, or an
# error. Resize of opset 10 (the face networks of 2019 and 2020) knows only x / scale and is read with the default of opset 11, half a pixel further; scales
# of 1.7 make 15 of 9 rows, and the rows are spread over 15 in place of 15.3; antialias=1 is passed over, so a picture made four times smaller
# takes one pixel of sixteen where the mean was asked for (OpenVINO 2026.4 passes it over too: openvino issue 35893, which names cubic only);
# and since opset 20 calls the modes of GridSample "linear" and "cubic" in place of "bilinear" and "bicubic", the new "cubic" is computed as linear.
# What helps: opset 16 to 19 for GridSample (there "bicubic" only loses its overshoot), sizes in place of scales, coordinate_transformation_mode said, an
# average pool in front of the resize.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check opencv-python-headless==5.0.0.93 onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import sys

import cv2
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, checker, helper, numpy_helper

rng = np.random.default_rng(0)
picture = cv2.GaussianBlur(rng.standard_normal((36, 36, 1)).astype(np.float32), (0, 0), 1.5)
picture = (picture / np.abs(picture).max()).reshape(1, 1, 36, 36)
grid = np.stack(np.meshgrid(np.linspace(-0.8, 0.8, 60), np.linspace(-0.8, 0.8, 60)), -1)[None].astype(np.float32)


def floats(*values):
    return np.array(values, np.float32)


def sizes(*values):
    return np.array(values, np.int64)


def computed(x, opset, node, **constants):
    """How far OpenCV is from ONNX Runtime, in the range of -1 to 1."""
    initial = [numpy_helper.from_array(value, name) for name, value in constants.items()]

    def model(shape):
        ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, s) for name, s in (("x", x.shape), ("y", shape))]
        graph = helper.make_graph([node], "one", ports[:1], ports[1:], initial)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        checker.check_model(made)
        return made.SerializeToString()

    right = ort.InferenceSession(model(["a", "b", "c", "d"]), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    net = cv2.dnn.readNetFromONNX(np.frombuffer(model(right.shape), np.uint8))
    net.setInput(x)
    found = net.forward()
    assert found.shape == right.shape
    return float(np.abs(found - right).max())


resize, sample = (lambda *names, **said: helper.make_node("Resize", list(names), ["y"], **said)), (
    lambda **said: helper.make_node("GridSample", ["x", "grid"], ["y"], **said))
small = picture[:, :, :9, :9].copy()
off = {
    "Resize, opset 10, linear, twice": computed(picture, 10, resize("x", "s", mode="linear"), s=floats(1, 1, 2, 2)),
    "the same of opset 13, asymmetric": computed(picture, 13, resize("x", "", "s", mode="linear",
        coordinate_transformation_mode="asymmetric"), s=floats(1, 1, 2, 2)),
    "Resize by scales, 1.7 of 9": computed(small, 13, resize("x", "", "s", mode="linear"), s=floats(1, 1, 1.7, 1.7)),
    "Resize by sizes, 15 of 9": computed(small, 13, resize("x", "", "", "s", mode="linear"), s=sizes(1, 1, 15, 15)),
    "Resize, a quarter, antialias": computed(picture, 18, resize("x", "", "", "s", mode="linear", antialias=1), s=sizes(1, 1, 9, 9)),
    "Resize, a quarter": computed(picture, 18, resize("x", "", "", "s", mode="linear"), s=sizes(1, 1, 9, 9)),
    "GridSample, opset 20, cubic": computed(picture, 20, sample(mode="cubic"), grid=grid),
    "GridSample, opset 20, linear": computed(picture, 20, sample(mode="linear"), grid=grid),
}
held = computed(picture, 16, sample(mode="bicubic"), grid=grid)
print("OpenCV", cv2.__version__, "ONNX Runtime", ort.__version__, "largest difference in a picture of -1 to 1:")
for name, value in off.items():
    print(f"{name:34} {value:.5f}")
print(f"{'GridSample, opset 16, bicubic':34} {held:.5f}, where it would leave the range of the sixteen pixels that it reads")
values = list(off.values())
sys.exit(0 if min(values[::2]) > 0.02 and max(values[1::2]) < 1e-3 else "It is otherwise now.")
PY
