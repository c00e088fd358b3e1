#!/usr/bin/env bash
# OpenVINO adds a convolution's bias [C] and a per-pixel constant [1, 1, H, W] behind it up to one constant [1, C, H, W]: 0.1 MB of weights become 17 MB.
# openvino 2026.4.1, CPU plugin, Python 3.11. One would have guessed that two broadcast additions stay two small constants, as
# folding them costs C times the memory and as many more bytes to read in every run. A factor that is 1 and depends on an input
# (clamp(x, 1, 1)) keeps them apart, with the same result.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openvino==2026.4.1 numpy==2.4.6
cat > "$folder/run.py" <<'PY'
import sys
import numpy as np
import openvino as ov
from openvino import opset8 as ops

C, SIDE = 256, 128
rng = np.random.default_rng(0)


def model(apart):
    x = ops.parameter([1, C, SIDE, SIDE], np.float32, "x")
    weight = rng.standard_normal((16, C, 1, 1))
    weight2, noise = rng.standard_normal((C, 16, 1, 1)), rng.standard_normal((1, 1, SIDE, SIDE))
    plain = [1, 1], [0, 0], [0, 0], [1, 1]
    y = ops.convolution(x, weight.astype(np.float32), *plain)
    y = ops.convolution(y, weight2.astype(np.float32), *plain)
    y = ops.add(y, ops.constant(np.full((1, C, 1, 1), 0.5, np.float32)))
    n = ops.constant(noise.astype(np.float32))
    if apart:
        first = ops.slice(x, *(ops.constant(np.array(v)) for v in ([0, 0, 0], [1, 1, 1], [1, 1, 1], [1, 2, 3])))
        n = ops.multiply(n, ops.clamp(first, 1.0, 1.0))
    return ov.Model([ops.relu(ops.add(y, n))], [x], "m")


picture = rng.standard_normal((1, C, SIDE, SIDE)).astype(np.float32)
sizes, results = {}, {}
for apart in (False, True):
    rng = np.random.default_rng(1)
    compiled = ov.Core().compile_model(model(apart), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    constants = [n for n in compiled.get_runtime_model().get_ordered_ops() if n.get_rt_info()["layerType"].astype(str) == "Const"]
    sizes[apart] = sum(4 * np.prod(n.get_output_shape(0)) for n in constants) / 1e6
    results[apart] = compiled([picture])[0]
off = np.abs(results[True] - results[False]).max()
print(f"openvino {ov.__version__}")
print(f"constants as given: {sizes[False]:.1f} MB; with the noise kept apart: {sizes[True]:.1f} MB; results differ by {off:.1e}")
sys.exit(0 if sizes[False] > 16 and sizes[True] < 1 and off < 1e-3 else 1)
PY
"$folder/venv/bin/python" "$folder/run.py"
