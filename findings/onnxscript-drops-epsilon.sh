#!/usr/bin/env bash
# onnxscript's optimizer, which torch.onnx.export runs by default, takes `+ 1e-8` and less for `+ 0` and drops it, so the epsilon that guards a division is lost and 0 / 0 becomes NaN.
# onnxscript 0.7.2, onnx 1.23.2, Python 3.11; also through torch.onnx.export of torch 2.13 (x / (y.sqrt() + 1e-10), Adam's step). One
# would have guessed that only an exact zero is neutral: comparing the constant with a tolerance (1e-8) looks at its size beside 1
# and not beside the other operand, which may be 0. `optimize=False` and `y.sqrt().clamp_min(1e-10)` keep it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxscript==0.7.2 onnx==1.23.2
cat > "$folder/run.py" <<'PY'
import sys

import numpy as np
import onnx
import onnxscript
import onnxscript.optimizer
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator


def quotient(epsilon):
    """z = x / (sqrt(y) + epsilon)."""
    ports = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in "xyz"}
    nodes = [
        helper.make_node("Sqrt", ["y"], ["root"]),
        helper.make_node("Add", ["root", "epsilon"], ["guarded"]),
        helper.make_node("Div", ["x", "guarded"], ["z"]),
    ]
    constant = numpy_helper.from_array(np.array(epsilon, np.float32), "epsilon")
    graph = helper.make_graph(nodes, "g", [ports["x"], ports["y"]], [ports["z"]], [constant])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


print(f"onnxscript {onnxscript.__version__}, onnx {onnx.__version__}")
nothing = {"x": np.zeros(3, np.float32), "y": np.zeros(3, np.float32)}
dropped = {}
with np.errstate(all="ignore"):
    for epsilon in (1e-6, 1e-8, 1e-10):
        model = quotient(epsilon)
        optimised = onnxscript.optimizer.optimize(model)
        before, after = (ReferenceEvaluator(m).run(None, nothing)[0] for m in (model, optimised))
        kinds = [node.op_type for node in optimised.graph.node]
        dropped[epsilon] = "Add" not in kinds
        print(f"epsilon {epsilon:g}: {kinds}; 0 / (0 + epsilon) is {before[0]} before and {after[0]} after")
sys.exit(0 if dropped == {1e-6: False, 1e-8: True, 1e-10: True} else 1)
PY
"$folder/venv/bin/python" "$folder/run.py"
