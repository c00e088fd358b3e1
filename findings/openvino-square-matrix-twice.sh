#!/usr/bin/env bash
# OpenVINO on a CPU in float32 computes a product wrongly when another one takes the same square matrix transposed.
#
# Seen with OpenVINO 2026.4.1 on x86-64 (AVX512), Python 3.11 and newer, Linux.
# y = x A^T and z = y A, as in tied weights, an autoencoder, or a layer and its gradient in one graph. One would guess that
# a matrix may be used twice. In float32 the packed form of A that the first product made is taken for the second too,
# as both are [n, n] and of the same constant, so z is x A^T A^T: wrong by its own size, without a word. With two copies
# of A, in bfloat16 or float16, or where A is not square, z is right.
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


def errors(rows, columns, precision, copies=False):
    """How far y and z are off, of their own size, and whether z is x A^T A^T."""
    x = rng.standard_normal((1, columns)).astype(np.float32)
    a = rng.standard_normal((rows, columns)).astype(np.float32)
    given, first = ops.parameter([1, columns], np.float32), ops.constant(a)
    second = ops.constant(a.copy()) if copies else first
    y = ops.matmul(given, first, False, True)
    z = ops.matmul(y, second, False, False)
    model = ov.Model([y, z], [given], "twice")
    found = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})([x])
    wanted = x @ a.T, x @ a.T @ a
    off = [float(np.linalg.norm(found[i] - w) / np.linalg.norm(w)) for i, w in enumerate(wanted)]
    transposed = rows == columns and np.allclose(found[1], x @ a.T @ a.T, rtol=1e-3, atol=1e-3)
    print(f"A [{rows}, {columns}] {precision:5s} {'two copies' if copies else 'one':10s} "
          f"y off by {off[0]:.4f}, z by {off[1]:.4f}{', z is x A^T A^T' if transposed else ''}")
    return off, transposed


seen = []
for n in (8, 64, 512):
    off, transposed = errors(n, n, "f32")
    seen.append(off[0] < 1e-3 and off[1] > 0.3 and transposed)
    seen.append(max(errors(n, n, "f32", copies=True)[0]) < 1e-3)
seen.append(max(errors(8, 16, "f32")[0]) < 1e-3)
if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
    seen.append(max(errors(64, 64, "bf16")[0]) < 0.05)
sys.exit(0 if all(seen) else "It is otherwise now.")
PYTHON
