#!/usr/bin/env bash
# A wheel with an ONNX model and its external weights cannot be read by onnx.load when uv has installed it as it does by default, because the weights then have two names; as symbolic links OpenVINO refuses them as well, and ONNX Runtime reads all.
# uv 0.13.9, onnx 1.23.2, onnxruntime 1.32.0, openvino 2026.4.1, Python 3.11, Linux. One would have guessed that an installed file is
# a file, whoever installed it: pip and `--link-mode copy` work, uv's default (hard links into its cache) fails in onnx.load with
# "multiple hard links, indicating a potential hardlink attack", and resolving the path, which mends symbolic links, does not help there.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  uv==0.13.9 onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1 numpy==2.4.6 setuptools==84.2.1 wheel

mkdir -p "$folder/source/weighty"
cd "$folder/source"
touch weighty/__init__.py
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

weight = numpy_helper.from_array(np.eye(64, dtype=np.float32), "weight")
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64]) for name in "xy")
graph = helper.make_graph([helper.make_node("MatMul", ["x", "weight"], ["y"])], "g", [x], [y], [weight])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
onnx.save(model, "weighty/model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
PY
cat > setup.py <<'PY'
from setuptools import setup

setup(name="weighty", version="1.0", packages=["weighty"], package_data={"weighty": ["model.onnx", "weights.bin"]})
PY
"$folder/venv/bin/pip" wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w "$folder/dist" . > /dev/null

cat > "$folder/read.py" <<'PY'
import os
import sys
from pathlib import Path

def tried(read, path):
    try:
        read(path)
    except Exception as error:
        return type(error).__name__ + ": " + " ".join(str(error).split())[-110:]
    return "reads it"

import onnx
import onnxruntime
import openvino

path = Path(sys.argv[1])
found = {
    "onnx.load": tried(onnx.load, path),
    "onnx.load, resolved": tried(onnx.load, path.resolve()),
    "ONNX Runtime": tried(lambda p: onnxruntime.InferenceSession(str(p)), path),
    "OpenVINO": tried(lambda p: openvino.Core().compile_model(openvino.Core().read_model(str(p)), "CPU"), path),
}
weights = path.parent / "weights.bin"
print(f"{sys.argv[2]}: weights.bin {'is a link' if weights.is_symlink() else f'has {os.stat(weights).st_nlink} names'}")
for name, said in found.items():
    print(f"  {name:20} {said}")
print("CODE", *("+" if said == "reads it" else "-" for said in found.values()))
PY

"$folder/venv/bin/uv" --version
result=""
for mode in copy default symlink; do
  python3 -m venv --without-pip "$folder/$mode"
  options=(--link-mode "$mode")
  [ "$mode" = default ] && options=()
  UV_CACHE_DIR="$folder/cache-$mode" "$folder/venv/bin/uv" pip install --quiet --offline --no-index --python "$folder/$mode/bin/python" "${options[@]}" "$folder"/dist/*.whl
  model=$(echo "$folder/$mode"/lib/python*/site-packages/weighty/model.onnx)
  said=$("$folder/venv/bin/python" "$folder/read.py" "$model" "$mode" 2>&1)
  echo "$said" | grep -v '^CODE'
  result="$result|$(echo "$said" | sed -n 's/^CODE //p')"
done
[ "$result" = "|+ + + +|- - + +|- + + -" ] || { echo "this has changed: $result"; exit 1; }
