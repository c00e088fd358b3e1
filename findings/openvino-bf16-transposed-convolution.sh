#!/usr/bin/env bash
# In bfloat16 OpenVINO runs a grouped transposed convolution (2 x 2, stride 2, as an inverse wavelet) several times slower than in float32.
# openvino 2026.4.1, CPU plugin, Python 3.11, on a CPU with avx512_bf16 or AMX (on others it stops with a note and exit 0: there is
# nothing to see). One would have guessed half the time, for half the bytes: float32 takes jit_avx512_f32, bfloat16 the kernel for
# dense ones (brgconv), one group at a time. A grouped 1 x 1 convolution and DepthToSpace compute the same at the expected speed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openvino==2026.4.1 numpy==2.4.6
cat > "$folder/run.py" <<'PY'
import sys
import time
import numpy as np
import openvino as ov
from openvino import opset8 as ops

GROUPS, SIDE = 128, 64
core = ov.Core()
print(f"openvino {ov.__version__}")
if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
    print("this CPU has no bfloat16: nothing to see here")
    sys.exit(0)


def model(form):
    """1 x 1 convolutions around it, so that it is computed in the precision that is asked for."""
    rng = np.random.default_rng(0)
    x = ops.parameter([1, 64, SIDE, SIDE], np.float32, "x")
    plain = [1, 1], [0, 0], [0, 0], [1, 1]
    y = ops.convolution(x, rng.standard_normal((3 * GROUPS, 64, 1, 1)).astype(np.float32), *plain)
    taps = rng.standard_normal((GROUPS, 3, 1, 2, 2)).astype(np.float32)
    if form == "transposed":
        y = ops.group_convolution_backprop_data(y, ops.constant(taps), [2, 2], None, [0, 0], [0, 0], [1, 1])
    else:
        kernel = taps.reshape(GROUPS, 3, 4).transpose(0, 2, 1)[..., None, None].copy()
        y = ops.depth_to_space(ops.group_convolution(y, ops.constant(kernel), *plain), "depth_first", 2)
    y = ops.convolution(y, rng.standard_normal((64, GROUPS, 1, 1)).astype(np.float32), *plain)
    return ov.Model([ops.convolution(y, rng.standard_normal((8, 64, 1, 1)).astype(np.float32), *plain)], [x], "m")


picture = np.random.default_rng(2).standard_normal((1, 64, SIDE, SIDE)).astype(np.float32)
ms, kernels = {}, {}
for form in ("transposed", "grouped"):
    for precision in ("f32", "bf16"):
        options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1, "PERF_COUNT": True}
        request = core.compile_model(model(form), "CPU", options).create_infer_request()
        best = {}
        for _ in range(30):
            request.infer([picture])
            for node in request.get_profiling_info():
                if node.node_type in ("GroupConvolutionBackpropData", "GroupConvolution", "DepthToSpace"):
                    took = node.real_time.total_seconds() * 1e3
                    best[node.node_name, node.exec_type] = min(took, best.get((node.node_name, node.exec_type), 1e9))
        ms[form, precision], kernels[form, precision] = sum(best.values()), sorted({kernel for _, kernel in best})
        print(f"{form:10} {precision:4} {ms[form, precision]:7.2f} ms by {', '.join(kernels[form, precision])}")
slower = ms["transposed", "bf16"] / ms["transposed", "f32"]
print(f"transposed: bfloat16 takes {slower:.1f} times float32's time, and {ms['transposed', 'bf16'] / ms['grouped', 'bf16']:.1f} times the grouped form's")
sys.exit(0 if slower > 1.5 and ms["transposed", "bf16"] > 2 * ms["grouped", "bf16"] else 1)
PY
"$folder/venv/bin/python" "$folder/run.py"
