#!/bin/sh
# FFmpeg 8's `scale` filter turns PQ into BT.709, but its first frame costs seconds of CPU time, even for a picture of 16 x 16 pixels.
# PyAV 18.1.0 (FFmpeg 8.1, libswscale 9.5). One would guess: a cost in proportion to the pixels. It fills a three-dimensional
# colour table first, in every filter graph anew; the second frame takes less than a millisecond. `lut3d` with a ready
# table has no such start.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet av==18.1.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys, time
from fractions import Fraction
import av, numpy as np

print("PyAV", av.__version__, "libswscale", av.library_versions["libswscale"])


def cpu_s(options):
    """CPU seconds of the first and of the second frame, BT.2020 PQ, 16 x 16 pixels."""
    frame = av.VideoFrame(16, 16, "yuv420p10le")
    for plane in frame.planes:
        plane.update(np.full(plane.buffer_size // 2, 500, np.uint16).tobytes())
    frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range = 9, 9, 16, 1
    frame.pts, frame.time_base = 0, Fraction(1, 25)
    graph = av.filter.Graph()
    nodes = [graph.add_buffer(width=16, height=16, format=frame.format, time_base=frame.time_base)]
    nodes += [graph.add("scale", options), graph.add("format", "rgb24"), graph.add("buffersink")]
    for one, other in zip(nodes, nodes[1:]):
        one.link_to(other)
    graph.configure()
    times = []
    for _ in range(2):
        start = time.process_time()
        graph.push(frame)
        graph.pull()
        times.append(time.process_time() - start)
    return times


plain = cpu_s("out_range=pc")
toned = cpu_s("out_range=pc:out_primaries=bt709:out_transfer=bt709")
print("without a change of transfer: first %.4f s, second %.4f s" % tuple(plain))
print("PQ to BT.709:                 first %.4f s, second %.4f s" % tuple(toned))
sys.exit(not (toned[0] > 200 * plain[0] and toned[0] > 200 * toned[1]))
PYTHON
