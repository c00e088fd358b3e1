#!/usr/bin/env bash
# torch.onnx.export writes adaptive_avg_pool2d, adaptive_max_pool2d and interpolate(mode="area") for the size of the example alone, though height and width are exported as dynamic: pictures of another size give other shapes, or the pool of their upper left corner.
# torch 2.13.0, onnxscript 0.7.2, onnxruntime 1.32.0, CPU, Python 3.11. dynamic_shapes names both sides with a range, torch.export agrees, the program that it makes is
# right at every size, and the file's input says [1, 3, h, w]. One would have guessed an error, as for a size that a graph cannot follow. The step from the program to
# ONNX takes the pool apart with the numbers of the example: a kernel of 8 for 32 px and 4 cells. With 64 px the result has 8 x 8 cells and not
# 4 x 4; with 39 px the shape is right and the last rows are never seen. Where the example is no multiple of the cells, indices are frozen: ONNX
# Runtime mostly stops with "invalid index", or is silently wrong. One cell is right (it becomes ReduceMean), and so is bilinear
# interpolation. What helps: a graph of fixed sizes, one export for each, or one average pool of a known kernel and then a bilinear interpolation.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 onnxscript==0.7.2 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import contextlib
import io
import sys

import numpy as np
import onnxruntime as ort
import torch
import torch.nn.functional as F

EXAMPLE = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SIZES = (32, 39, 64)


class Net(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function


nets = {
    "adaptive_avg_pool2d(x, 4)": lambda x: F.adaptive_avg_pool2d(x, 4),
    "adaptive_max_pool2d(x, 4)": lambda x: F.adaptive_max_pool2d(x, 4),
    'interpolate(x, (4, 4), mode="area")': lambda x: F.interpolate(x, (4, 4), mode="area"),
    "adaptive_avg_pool2d(x, 1)": lambda x: F.adaptive_avg_pool2d(x, 1),
    'interpolate(x, (4, 4), mode="bilinear")': lambda x: F.interpolate(x, (4, 4), mode="bilinear"),
}
sides = {2: torch.export.Dim("h", min=8, max=512), 3: torch.export.Dim("w", min=8, max=512)}
said = {}
print("torch", torch.__version__, "ONNX Runtime", ort.__version__)
for name, function in nets.items():
    with contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(Net(function).eval(), (EXAMPLE,), dynamic_shapes=(sides,), dynamo=True)
    exported = torch.export.export(Net(function).eval(), (EXAMPLE,), dynamic_shapes=(sides,)).module()
    session = ort.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    said[name] = []
    for side in SIZES:
        x = torch.rand(1, 3, side, side) + torch.arange(side) / side
        right = function(x).numpy()
        assert np.allclose(exported(x).numpy(), right, atol=1e-5), "the program of torch.export"
        found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        if found.shape != right.shape:
            said[name].append(f"{side} px: {found.shape[2:]} in place of {right.shape[2:]}")
        elif np.abs(found - right).max() > 1e-4:
            corner = np.abs(found - function(x[:, :, :32, :32]).numpy()).max() < 1e-4
            said[name].append(f"{side} px: off by {np.abs(found - right).max():.2f}{', the corner of 32 px' if corner else ''}")
        else:
            said[name].append(f"{side} px: right")
    print(f"{name:40}", session.get_inputs()[0].shape[2:], "; ".join(said[name]))
wrong, fair = list(said.values())[:3], list(said.values())[3:]
frozen = all(a.endswith("right") and "the corner" in b and "in place of" in c for a, b, c in wrong)
sys.exit(0 if frozen and all(line.endswith("right") for lines in fair for line in lines) else "It is otherwise now.")
PY
