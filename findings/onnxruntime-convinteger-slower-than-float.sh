#!/usr/bin/env bash
# ONNX Runtime takes three to four times as long for a pointwise ConvInteger as for the same convolution in float32, while QLinearConv, the same products with one rounding more, is quicker than float32.
# onnxruntime 1.32.0, CPU with AVX512-VNNI, one thread, Python 3.11. One would have guessed that both run the same product of eight-bit
# numbers, so that whoever needs the sums unrounded (ConvInteger, then a scale in float32) pays one pass over the result more, and that
# eight bits are not slower than 32 on a CPU made for them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cat > "$folder/run.py" <<'PY'
import sys
import time
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

CHANNELS, SIDE = 320, 64
rng = np.random.default_rng(0)
weight = rng.integers(-127, 128, (CHANNELS, CHANNELS, 1, 1)).astype(np.int8)
image = rng.integers(0, 256, (1, CHANNELS, SIDE, SIDE)).astype(np.uint8)
ort.set_default_logger_severity(3)


def opened(node, kinds, tensors):
    ports = [helper.make_tensor_value_info(n, k, [1, CHANNELS, SIDE, SIDE]) for n, k in zip(("x", "y"), kinds)]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()]
    graph = helper.make_graph([node], "one", ports[:1], ports[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


U8, I32, F32 = TensorProto.UINT8, TensorProto.INT32, TensorProto.FLOAT
zero = {"z": np.uint8(128)}
scale = np.float32(CHANNELS**0.5 * 150)
quantised = {"s": np.float32(1), "w": weight, "sw": np.full(CHANNELS, 1, np.float32), "zw": np.zeros(CHANNELS, np.int8)}
sessions = {
    "Conv": opened(helper.make_node("Conv", ["x", "w"], ["y"]), (F32, F32), {"w": weight.astype(np.float32)}),
    "ConvInteger": opened(helper.make_node("ConvInteger", ["x", "w", "z"], ["y"]), (U8, I32), {"w": weight, **zero}),
    "QLinearConv": opened(
        helper.make_node("QLinearConv", ["x", "s", "z", "w", "sw", "zw", "so", "z"], ["y"]),
        (U8, U8),
        {**quantised, **zero, "so": scale},
    ),
}
inputs = {name: image.astype(np.float32) - 128 if name == "Conv" else image for name in sessions}
results = {name: session.run(None, {"x": inputs[name]})[0] for name, session in sessions.items()}
assert np.array_equal(results["ConvInteger"], results["Conv"].astype(np.int32)), "not the same sums"
assert np.abs((results["QLinearConv"] - 128.0) * scale - results["Conv"]).mean() < scale, "not the same products"
took = dict.fromkeys(sessions, np.inf)
for _ in range(25):  # in turns
    for name, session in sessions.items():
        begin = time.process_time()
        session.run(None, {"x": inputs[name]})
        took[name] = min(took[name], time.process_time() - begin)
ratios = {name: took[name] / took["Conv"] for name in took}
print("onnxruntime", ort.__version__, "ConvInteger gives float32's sums, number for number")
for name, ratio in ratios.items():
    print(f"{name}: {1e3 * took[name]:.2f} ms of processor time, {ratio:.2f} of float32's")
flags = open("/proc/cpuinfo").read()
if "avx512_vnni" not in flags and "avx_vnni" not in flags:
    print("this CPU has no VNNI: nothing is claimed of it")
elif not (ratios["ConvInteger"] > 1.8 and ratios["QLinearConv"] < 1):
    sys.exit("it is otherwise now")
PY
"$folder/venv/bin/python" "$folder/run.py"
