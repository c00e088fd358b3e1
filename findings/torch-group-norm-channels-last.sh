#!/usr/bin/env bash
# PyTorch's GroupNorm on a CPU is a thousand times less exact for a tensor in channels_last: with a mean of 20 and a deviation of 0.05 it is wrong by a quarter of a deviation, and with a mean of 1000 and a deviation of 1 by a thousand of them.
# torch 2.13.0, float32, Python 3.11, Linux. One would have guessed that memory_format changes the speed and the last digits. The usual layout
# goes by Welford's method; channels_last takes the mean of the squares less the square of the mean, which cancels. Activations that ride on a
# bias (a stem without a norm before it, pictures of 0..255, a nearly flat map) reach such ratios. torch.onnx.export and whatever runs its
# file give what the usual layout gives, so a network trained in channels_last seems to be exported wrongly. x.contiguous() before
# the norm, or taking the group's mean off first, mends it; InstanceNorm is as exact in either layout, and BatchNorm nearly.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import sys

import torch
import torch.nn.functional as F

SHAPE, GROUPS = (2, 32, 64, 64), 4
torch.manual_seed(0)
print("torch", torch.__version__)


def off(norm, x):
    """How far the norm of float32 is from that of float64, at most, for the two layouts."""
    right = norm(x.double())
    return [(norm(x.to(memory_format=kind)) - right).abs().max().item() for kind in (torch.contiguous_format, torch.channels_last)]


norms = {
    "group_norm": lambda x: F.group_norm(x, GROUPS),
    "instance_norm": F.instance_norm,
    "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
}
found = {}
for mean, deviation in ((0, 1), (20, 1), (20, 0.05), (1000, 1)):
    x = mean + deviation * torch.randn(SHAPE)
    for name, norm in norms.items():
        found[name, mean, deviation] = usual, last = off(norm, x)
        print(f"{name:14} mean {mean:4}, deviation {deviation:4}: off by {usual:.6f} usual, {last:.6f} channels_last")
usual, last = found["group_norm", 20, 0.05]
far = found["group_norm", 1000, 1]
same = all(max(pair) < 0.02 for (name, *_), pair in found.items() if name != "group_norm")
sys.exit(0 if usual < 1e-3 and last > 0.05 and far[0] < 1e-3 and far[1] > 0.5 and same else "It is otherwise now.")
PY
