#!/usr/bin/env bash
# On a CPU PyTorch takes fifteen to forty times as long for a norm, an argmax or a max over the channels of a picture as for a sum or amax over them, so F.normalize(x, dim=1) costs six to ten times what writing it out costs, and cosine_similarity five.
# torch 2.13.0, float32, one thread, [1, 64, 128, 128] in the usual layout, Python 3.11. One would have guessed that all of these are one pass over 4 MB. Sums, amax and
# amin go through the channels plane by plane, with the vector unit; vector_norm (all orders), max and min with indices, argmax, aminmax and var
# gather every pixel's channels by themselves. Features are normalized over channels in LPIPS, in a pixel norm and in maps of
# descriptors; argmax over channels ends every segmentation. What helps: x * (x * x).sum(1, keepdim=True).rsqrt() with an epsilon, amax
# where the place is not asked for, and for the place as well a running comparison over x.unbind(1).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import sys
import time

import torch
import torch.nn.functional as F

torch.set_num_threads(1)
torch.manual_seed(0)
x, other = torch.randn(2, 1, 64, 128, 128)


def written_out(x):
    return x * (x * x).sum(1, keepdim=True).add_(1e-24).rsqrt_()


def running_argmax(x):
    planes = x.unbind(1)
    best, place = planes[0], torch.zeros_like(planes[0])
    for number, plane in enumerate(planes[1:], 1):
        better = torch.maximum(best, plane)
        place = torch.maximum(place, (plane > best).to(x.dtype) * number)
        best = better
    return place.long()


def cosine(x, other):
    return (written_out(x) * written_out(other)).sum(1)


ways = {
    "sum(1)": lambda: x.sum(1),
    "amax(1)": lambda: x.amax(1),
    "(x * x).sum(1).sqrt()": lambda: (x * x).sum(1).sqrt(),
    "vector_norm(dim=1)": lambda: torch.linalg.vector_norm(x, dim=1),
    "max(1)": lambda: x.max(1),
    "argmax(1)": lambda: x.argmax(1),
    "running argmax": lambda: running_argmax(x),
    "normalize(dim=1)": lambda: F.normalize(x, dim=1),
    "normalize, written out": lambda: written_out(x),
    "cosine_similarity(dim=1)": lambda: F.cosine_similarity(x, other, dim=1),
    "cosine, written out": lambda: cosine(x, other),
}
took = dict.fromkeys(ways, float("inf"))
with torch.inference_mode():
    assert torch.equal(running_argmax(x), x.argmax(1))
    assert torch.allclose(written_out(x), F.normalize(x, dim=1), atol=1e-5)
    assert torch.allclose(cosine(x, other), F.cosine_similarity(x, other, dim=1), atol=1e-5)
    for _ in range(60):  # in turns
        for name, way in ways.items():
            begin = time.process_time()
            way()
            took[name] = min(took[name], 1e3 * (time.process_time() - begin))
print("torch", torch.__version__, torch.backends.cpu.get_cpu_capability(), "ms of processor time:")
for name, ms in took.items():
    print(f"{name:26} {ms:6.2f}")
pairs = {"vector_norm(dim=1)": "(x * x).sum(1).sqrt()", "max(1)": "amax(1)", "argmax(1)": "amax(1)",
         "normalize(dim=1)": "normalize, written out", "cosine_similarity(dim=1)": "cosine, written out"}
sys.exit(0 if all(took[slow] > 2.5 * took[quick] for slow, quick in pairs.items()) else "It is otherwise now.")
PY
