#!/bin/sh
# FFmpeg's decoder option max_pixels refuses small frames that are well within it, by three different errors, and larger ones pass at exactly their size.
# PyAV 18.1.0 (FFmpeg 8.1.2, libavcodec 62). One would guess: a limit of 320 x 240 px admits a frame of 320 x 240. The limit is also asked
# for the padded buffers (edges around the frame, and MPEG-4's tables), so it has to be half again or twice as much there:
# MPEG-4 at 320 x 240 fails with "Cannot allocate memory" even at 1.5 times its pixels, 96 x 64 with EINVAL or invalid data.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet av==18.1.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import io
import sys
import av, numpy as np

print("PyAV", av.__version__, "libavcodec", av.library_versions["libavcodec"])


def decoded(codec, width, height, limit):
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as target:
        stream = target.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 90, np.uint8), format="rgb24")
            frame.pts = number
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
    file.seek(0)
    with av.open(file) as source:
        stream = source.streams.video[0]
        stream.codec_context.options = {"max_pixels": str(int(limit))}
        try:
            return len(list(source.decode(stream)))
        except (av.error.FFmpegError, MemoryError) as error:
            return type(error).__name__


found = {}
for codec in ("libx264", "mpeg4", "libvpx-vp9"):
    for width, height in ((96, 64), (320, 240), (640, 480), (1280, 720)):
        found[codec, width] = [decoded(codec, width, height, width * height * factor) for factor in (1, 1.5, 2)]
        print(f"{codec} {width} x {height}: limit of 1, 1.5 and 2 times its pixels:", *found[codec, width])
large = all(found[codec, width][0] == 3 for codec in ("libx264", "mpeg4", "libvpx-vp9") for width in (640, 1280))
small = all(found[codec, 96][0] != 3 for codec in ("libx264", "mpeg4", "libvpx-vp9"))
sys.exit(not (large and small and found["mpeg4", 320] == ["MemoryError", "MemoryError", 3]))
PYTHON
