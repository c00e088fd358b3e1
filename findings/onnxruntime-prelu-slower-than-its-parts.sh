#!/usr/bin/env bash
# ONNX Runtime takes about six times as long for PRelu between two convolutions as for the same function put together of Relu, Neg, Mul and Sub.
# onnxruntime 1.32.0, CPU, one thread, Python 3.11. One would have guessed that one operator, which passes over the map once, is at
# least as quick as five that pass over it again and again; PRelu is what PyTorch's exporter writes for torch.nn.PReLU.
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

CHANNELS, SIDE = 64, 56
rng = np.random.default_rng(0)
image = rng.standard_normal((1, CHANNELS, SIDE, SIDE)).astype(np.float32)
tensors = {
    "w": (rng.standard_normal((CHANNELS, CHANNELS, 1, 1)) / 8).astype(np.float32),
    "slope": rng.uniform(0.1, 0.4, (CHANNELS, 1, 1)).astype(np.float32),
}


def opened(middle):
    shape = [1, CHANNELS, SIDE, SIDE]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), *middle, helper.make_node("Conv", ["b", "w"], ["y"])]
    constants = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "one", ports[:1], ports[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


sessions = {
    "nothing": opened([helper.make_node("Identity", ["a"], ["b"])]),
    "PRelu": opened([helper.make_node("PRelu", ["a", "slope"], ["b"])]),
    "its parts": opened(
        [
            helper.make_node("Relu", ["a"], ["above"]),
            helper.make_node("Neg", ["a"], ["turned"]),
            helper.make_node("Relu", ["turned"], ["below"]),
            helper.make_node("Mul", ["below", "slope"], ["scaled"]),
            helper.make_node("Sub", ["above", "scaled"], ["b"]),
        ]
    ),
}
results = {name: session.run(None, {"x": image})[0] for name, session in sessions.items()}
assert np.abs(results["PRelu"] - results["its parts"]).max() < 1e-5, "not the same function"
took = dict.fromkeys(sessions, np.inf)
for _ in range(200):  # in turns
    for name, session in sessions.items():
        begin = time.process_time()
        session.run(None, {"x": image})
        took[name] = min(took[name], time.process_time() - begin)
own = {name: 1e3 * (took[name] - took["nothing"]) for name in ("PRelu", "its parts")}
print("onnxruntime", ort.__version__, f"two convolutions alone: {1e3 * took['nothing']:.2f} ms of processor time")
for name, ms in own.items():
    print(f"{name}: {ms:.2f} ms more")
if not own["PRelu"] > 1.5 * own["its parts"]:
    sys.exit("it is otherwise now")
PY
"$folder/venv/bin/python" "$folder/run.py"
