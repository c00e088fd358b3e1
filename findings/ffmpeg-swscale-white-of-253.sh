#!/usr/bin/env bash
# FFmpeg's scaler makes pictures of a camera (YUYV), of a hardware decoder (NV12) and of 10-bit video two levels too dark, white 253, where the same picture as yuv420p is white 255; let it change the size as well, and yuv420p is dark too.
# PyAV 18.1.0 with its FFmpeg 8 (libswscale 9.5), x86-64, Python 3.11. One would have guessed that a change of layout changes no grey, or that rounding is even. yuv420p
# at its own size goes by a table of its own; all the rest through a stage that keeps 8 bits and cuts. The kind of interpolation changes nothing; nor does
# accurate_rnd alone, nor a finer picture. full_chroma_int does (in PyAV the number 0x2000 added to that of the interpolation, in the command
# line flags=full_chroma_int), for one and a half to two times the time. cv2.VideoCapture, which has FFmpeg inside, gives such white as
# (255, 253, 255), a breath of pink. A comparison of "the same" video decoded by two paths finds a difference of 1 to 2 everywhere.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6 opencv-python-headless==5.0.0.93
FOLDER="$folder" "$folder/venv/bin/python" - <<'PY'
import os
import sys
from fractions import Fraction

import av
import cv2
import numpy as np

BICUBIC, FULL_CHROMA, ACCURATE = 4, 0x2000, 0x40000
WIDTH, HEIGHT, LEVELS = 320, 192, (16, 50, 126, 180, 235)  # of luma; 16 is black and 235 white


def grey(level, layout):
    frame = av.VideoFrame(WIDTH, HEIGHT, "yuv444p")
    for plane, value in zip(frame.planes, (level, 128, 128), strict=True):
        plane.update(np.full(plane.buffer_size, value, np.uint8).tobytes())
    return frame.reformat(format=layout)


def shown(layout, side=WIDTH, flags=BICUBIC):
    pictures = [grey(level, layout).to_ndarray(format="rgb24", width=side, interpolation=flags) for level in LEVELS]
    return [int(picture[100, 100, 0]) for picture in pictures]


print("PyAV", av.__version__, "libswscale", av.library_versions["libswscale"], "OpenCV", cv2.__version__)
right = [round((level - 16) * 255 / 219) for level in LEVELS]
print(f"{'right':30}", right)
dark = {layout: shown(layout) for layout in ("nv12", "yuyv422", "yuv420p10le", "p010le", "yuv422p10le")}
dark["yuv420p, half as wide"] = shown("yuv420p", side=WIDTH // 2)
dark["nv12, accurate_rnd"] = shown("nv12", flags=BICUBIC | ACCURATE)
fair = {layout: shown(layout) for layout in ("yuv420p", "yuv422p", "yuv444p")}
fair["nv12, full_chroma_int"] = shown("nv12", flags=BICUBIC | FULL_CHROMA)
fair["yuv420p10le, full_chroma_int"] = shown("yuv420p10le", flags=BICUBIC | FULL_CHROMA)
for name, levels in (dark | fair).items():
    print(f"{name:30}", levels)

path = os.environ["FOLDER"] + "/white.mkv"
with av.open(path, "w") as container:
    stream = container.add_stream("libx264", rate=25, options={"crf": "5"})
    stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p10le"
    for number in range(8):
        frame = grey(235, "yuv420p10le")
        frame.pts, frame.time_base = number, Fraction(1, 25)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())
capture = cv2.VideoCapture(path)
white = capture.read()[1][100, 100].tolist()
capture.release()
print("white of a 10-bit film by cv2.VideoCapture, BGR:", white)
kept = all(levels[-1] == 255 and levels[2] == 128 for levels in fair.values())
lost = all(levels[-1] == 253 and levels[2] == 126 for levels in dark.values())
sys.exit(0 if kept and lost and white != [255] * 3 else "It is otherwise now.")
PY
