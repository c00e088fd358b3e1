#!/usr/bin/env bash
# torch.onnx.export gives a graph for one batch size, without an error, where forward says len(x) in place of x.shape[0].
#
# Seen with PyTorch 2.13.0 (dynamo exporter), onnxscript 0.7.2, Python 3.11, Linux.
# With dynamic_shapes={"x": {0: Dim("batch")}} one would guess that a graph comes out whose batch is free, or an error, as
# torch.export.export gives for the very same module and shapes ("Constraints violated (batch)"). len() makes a plain number of
# the size. The ONNX exporter hears the refusal, tries another way of capturing on its own, and returns a program whose
# input is [2, 3, 4]; ONNX Runtime refuses every other batch when it is too late. x.shape[0] and x.size(0) stay free.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0
env/bin/pip install --quiet onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0 numpy==2.4.6
env/bin/python - <<'PYTHON' 2>/dev/null
import logging
import sys
import warnings

import numpy as np
import onnxruntime
import torch

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
onnxruntime.set_default_logger_severity(4)
print("torch", torch.__version__)


class ByLen(torch.nn.Module):
    def forward(self, x):
        return x.reshape(len(x), -1) * 2


class ByShape(torch.nn.Module):
    def forward(self, x):
        return x.reshape(x.shape[0], -1) * 2


seen = {}
for module in (ByLen().eval(), ByShape().eval()):
    x, shapes = torch.zeros(2, 3, 4), {"x": {0: torch.export.Dim("batch")}}
    try:
        torch.export.export(module, (x,), dynamic_shapes=shapes)
        exports = True
    except Exception as error:
        exports = False
        print("torch.export.export:", str(error).splitlines()[0])
    program = torch.onnx.export(
        module, (x,), dynamo=True, dynamic_shapes=shapes, input_names=["x"], output_names=["y"], verbose=False
    )
    first = program.model_proto.graph.input[0].type.tensor_type.shape.dim[0]
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    try:
        session.run(None, {"x": np.zeros((5, 3, 4), np.float32)})
        runs = True
    except Exception:
        runs = False
    name = type(module).__name__
    print(f"{name}: torch.export {'takes' if exports else 'refuses'} it; torch.onnx.export: first axis "
          f"{first.dim_param or first.dim_value}; ONNX Runtime with 5 of them: {'runs' if runs else 'refuses'}")
    seen[name] = (exports, first.dim_value, runs)
sys.exit(0 if seen == {"ByLen": (False, 2, False), "ByShape": (True, 0, True)} else 1)
PYTHON
