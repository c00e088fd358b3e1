#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in one go: the GPU tests, then torch eager, compiled and as CUDA graph in FP32, TF32,
# FP16 and BF16 at 256 and 1024 px, ONNX Runtime on CUDA and TensorRT where they are installed, and the whole frame on the
# fastest. They become a run in OUT.json, a record as in benchmarks/results/, for benchmarks/report.py --record OUT.json.
#
#   benchmarks/gpu.sh OUT.json                       ten minutes at most; OUT.json grows as it goes
#   benchmarks/gpu.sh OUT.json --device cpu --quick  the same on a CPU, to see that it works
#
# Runs from plain files, with no network and nothing installed of fid: needs Python 3.11 or newer with PyTorch 2.9 or newer and
# NumPy. With `onnx` it reads the weights of the shipped bundle, without it they are random, which changes no time. For the
# 1024 px generator, the whole frame and the tests that need fetched models, FID_MODELS may name a folder with the archives.
# FP16 graphs are measured with --bundle bundle16/, made by `fid-export --fp16 -o bundle16/`.
#   PYTHON=python3.12 benchmarks/gpu.sh OUT.json
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
if [ $# -lt 1 ] || [ "${1#-}" != "$1" ]; then
    echo "usage: benchmarks/gpu.sh OUT.json [--device cuda|cpu] [--quick] [--minutes N] [--bundle DIR]" >&2
    exit 2
fi
output=$1
shift
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/fid"
for folder in runtime trainer export; do ln -s "$root/$folder" "$work/fid/$folder"; done
export PYTHONPATH=$work${PYTHONPATH:+:$PYTHONPATH} PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
export FID_CACHE=${FID_CACHE:-$work/cache} PIP_NO_INDEX=1
timeout -k 10 600 "$python" "$root/benchmarks/gpu.py" "$output" "$@"
