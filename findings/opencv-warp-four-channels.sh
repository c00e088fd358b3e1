#!/usr/bin/env bash
# OpenCV 5's linear warpAffine takes half the time for four channels of uint8 that it takes for three.
# opencv-python-headless 5.0.0.93, x86-64, one thread, Python 3.11. One would have guessed 4/3 of the time. So a picture with its
# opacity as a fourth channel is warped sooner than the picture alone, and ALGO_HINT_APPROX, new in OpenCV 5, changes neither this
# nor cubic warping, which takes three to four times as long.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check opencv-python-headless==5.0.0.93 numpy==2.4.6
cat > "$folder/run.py" <<'PY'
import sys
import time
import cv2
import numpy as np

cv2.setNumThreads(1)
rng = np.random.default_rng(0)
three, four = (rng.integers(0, 256, (512, 512, channels), np.uint8) for channels in (3, 4))
turn = cv2.getRotationMatrix2D((256, 256), 7, 0.9)


def ms(picture, flags, hint=cv2.ALGO_HINT_DEFAULT):
    times = []
    for _ in range(60):
        start = time.process_time()
        cv2.warpAffine(picture, turn, (450, 450), flags=flags, hint=hint)
        times.append(1e3 * (time.process_time() - start))
    return min(times)


print(f"opencv {cv2.__version__}")
a, b = ms(three, cv2.INTER_LINEAR), ms(four, cv2.INTER_LINEAR)
print(f"linear, 450 x 450: three channels {a:.2f} ms, four channels {b:.2f} ms")
same = np.array_equal(cv2.warpAffine(four, turn, (450, 450))[..., :3], cv2.warpAffine(four[..., :3].copy(), turn, (450, 450)))
print(f"the first three channels are the same either way: {same}")
c, d = ms(three, cv2.INTER_CUBIC), ms(three, cv2.INTER_CUBIC, cv2.ALGO_HINT_APPROX)
print(f"cubic: {c:.2f} ms, with ALGO_HINT_APPROX {d:.2f} ms")
sys.exit(0 if b < 0.8 * a and d > 0.8 * c else 1)
PY
"$folder/venv/bin/python" "$folder/run.py"
