#!/usr/bin/env bash
# OpenVINO on a CPU builds a grouped transposed convolution of two groups, and not the same with one group of several channels.
#
# Seen with OpenVINO 2026.4.1 on x86-64 (AVX512), Python 3.11, Linux.
# A number of groups is often a parameter, and one group is then an ordinary case: GroupConvolution takes it, and the weights
# [1, C, D, k, k] are valid by the operation's specification. One would guess that GroupConvolutionBackpropData takes it as
# well, or is turned into ConvolutionBackpropData, which computes it. It is built for two groups, and for one group of one
# channel; for one group of two channels and more compiling fails ("could not create a primitive descriptor"). ConvTranspose
# of ONNX with group=1 is not concerned: its reader makes ConvolutionBackpropData.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet openvino==2026.4.1 numpy==2.3.5
env/bin/python - <<'PYTHON'
import sys

import numpy as np
import openvino as ov
from openvino import opset8 as ops

print("OpenVINO", ov.__version__)
rng = np.random.default_rng(0)


def computed(groups, channels, plain=False, forwards=False):
    """Whether the CPU computes 2 x 2 taps with stride 2 for so many groups of so many input channels, one output each."""
    x = rng.standard_normal((1, groups * channels, 5, 7)).astype(np.float32)
    taps = rng.standard_normal((groups, channels, 1, 2, 2)).astype(np.float32)
    given = ops.parameter(x.shape, np.float32)
    if forwards:
        y = ops.group_convolution(given, ops.constant(taps.swapaxes(1, 2).copy()), [2, 2], [0, 0], [0, 0], [1, 1])
    elif plain:
        y = ops.convolution_backprop_data(given, ops.constant(taps[0]), [2, 2])
    else:
        y = ops.group_convolution_backprop_data(given, ops.constant(taps), [2, 2], None, [0, 0], [0, 0], [1, 1])
    try:
        found = ov.Core().compile_model(ov.Model([y], [given], "m"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x)[0]
    except RuntimeError as error:
        return next(line for line in str(error).splitlines() if "primitive descriptor" in line)[:90]
    if not forwards:
        wanted = np.einsum("ngchw,gcoab->ngohawb", x.reshape(1, groups, channels, 5, 7), taps).reshape(found.shape)
        assert np.allclose(found, wanted, atol=1e-4)
    return "computed"


cases = {
    "two groups of two channels": computed(2, 2),
    "one group of one channel": computed(1, 1),
    "one group of two channels, not as grouped": computed(1, 2, plain=True),
    "one group of two channels, forwards": computed(1, 2, forwards=True),
    "one group of two channels": computed(1, 2),
    "one group of sixteen channels": computed(1, 16),
}
for name, outcome in cases.items():
    print(f"{name:42s} {outcome}")
*fine, two, sixteen = cases.values()
sys.exit(not (all(outcome == "computed" for outcome in fine) and "could not" in two and "could not" in sixteen))
PYTHON
