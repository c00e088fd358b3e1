#!/bin/sh
# Looking at VideoFrame.side_data once, even where there is none, puts the frame into a reference cycle: reading a clip of 4K frames that way holds hundreds of decoded frames, gigabytes, until Python's cycle collector happens to run, and dropping the frame frees nothing.
# PyAV 18.1.0 (its wheel), Python 3.11. One would have guessed that a property which only reads leaves the frame as it was, freed by its last
# reference: the container that it returns holds the frame, and the frame holds the container. The collector counts objects and not bytes, and
# a frame is three of them, so about 230 frames pile up, and more in a program with many objects. Making the container oneself
# (av.sidedata.sidedata.SideDataContainer(frame)) reads the same and keeps nothing.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6
FOLDER="$folder" "$folder/venv/bin/python" - <<'PY'
import gc
import os
import sys
from fractions import Fraction

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer

WIDTH, HEIGHT, COUNT = 1920, 1080, 100
path = os.environ["FOLDER"] + "/clip.mp4"
with av.open(path, "w") as container:
    stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
    stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    for number in range(COUNT):
        frame = av.VideoFrame.from_ndarray(np.full((HEIGHT, WIDTH, 3), 2 * number, np.uint8), format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, 25)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def resident_mb():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def grown(look):
    """MB by which the process grows while it reads the clip and keeps nothing, and objects that the collector then finds."""
    gc.collect()
    before = resident_mb()
    with av.open(path) as container:
        for frame in container.decode(video=0):
            look(frame)
        del frame
        return resident_mb() - before, gc.collect()


ways = {
    "not looked at": lambda frame: None,
    "SideDataContainer(frame)": lambda frame: list(SideDataContainer(frame)),
    "frame.side_data": lambda frame: list(frame.side_data),
}
grown(ways["not looked at"])  # what the decoder itself takes
found = {name: grown(look) for name, look in ways.items()}
print(f"PyAV {av.__version__}, Python {sys.version.split()[0]}: {COUNT} frames of {WIDTH * HEIGHT * 1.5 / 1e6:.1f} MB")
for name, (megabytes, objects) in found.items():
    print(f"{name:26}: {megabytes:5.0f} MB more, {objects} objects in cycles")
kept = found["frame.side_data"]
free = [found[name] for name in list(ways)[:2]]
sys.exit(0 if kept[0] > 150 and kept[1] >= COUNT and all(a < 60 and b < 10 for a, b in free) else "this has changed")
PY
