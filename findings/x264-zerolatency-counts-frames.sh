#!/usr/bin/env bash
# libx264 with tune=zerolatency ignores the frames' time stamps in its rate control: at 8 frames a second in a context of 30 it sends a quarter of bit_rate, and x264-params=force-cfr=0, which mends that, keeps each frame back until the next one comes.
# PyAV 18.1.0 (its wheel's FFmpeg and x264), Python 3.11. One would have guessed that time_base and pts, which FFmpeg hands to x264, say how
# long a frame lasts, tune or not, as they do without the tune. WebRTC servers in Python (aiortc) open H.264 so, with 30 frames a second fixed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import sys
from fractions import Fraction

import av
import numpy as np

BIT_RATE, SIDE = 1_000_000, 320
rng = np.random.default_rng(0)
scene = np.kron(rng.integers(0, 256, (30, 30, 3)), np.ones((16, 16, 1)))


def sent(fps, options, count=64):
    """Megabits a second of a moving, noisy picture, after the first quarter, and how many frames wait in the encoder."""
    codec = av.CodecContext.create("libx264", "w")
    codec.width = codec.height = SIDE
    codec.bit_rate, codec.pix_fmt = BIT_RATE, "yuv420p"
    codec.framerate, codec.time_base = Fraction(30), Fraction(1, 90_000)
    codec.options = options
    bits, late = 0, 0
    for number in range(count):
        shift = int(70 + 60 * np.sin(3 * number / fps))
        noisy = scene[shift : shift + SIDE, shift : shift + SIDE] + rng.normal(0, 10, (SIDE, SIDE, 3))
        frame = av.VideoFrame.from_ndarray(noisy.clip(0, 255).astype(np.uint8), format="rgb24")
        frame.pts, frame.time_base = 90_000 * number // fps, Fraction(1, 90_000)
        packets = codec.encode(frame)
        late += not packets
        bits += 8 * sum(packet.size for packet in packets) if number >= count // 4 else 0
    return bits / (0.75 * count / fps) / 1e6, late


tuned = {"tune": "zerolatency"}
print(f"PyAV {av.__version__}, FFmpeg's libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}")
found, waiting = {}, []
for fps in (8, 15, 30):
    for name, options in (("tuned", tuned), ("tuned, force-cfr=0", {**tuned, "x264-params": "force-cfr=0"})):
        found[fps, name], late = sent(fps, options)
        waiting += [late]
        print(f"{fps:2} frames a second, {name:18}: {found[fps, name]:.2f} of {BIT_RATE / 1e6:.0f} Mbit/s, {late} frame waits")
low = found[8, "tuned"] < 0.4 and found[15, "tuned"] < 0.65
mended = all(0.75 < found[fps, "tuned, force-cfr=0"] < 1.3 for fps in (8, 15))
sys.exit(0 if low and mended and waiting == [0, 1] * 3 else "this has changed")
PY
