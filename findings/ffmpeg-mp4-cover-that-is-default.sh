#!/bin/sh
# A cover picture whose disposition is attached_pic and default is written by FFmpeg's MP4 muxer as a film track, and comes back as the default film.
# PyAV 18.1.0 (FFmpeg 8.1, libavformat 62.12). One would guess: attached_pic alone decides, and `default` is one more flag. The muxer
# compares the whole value with attached_pic, so the flag is lost and a one-frame MJPEG track stands before the film.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet av==18.1.0 numpy==2.4.6
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
from fractions import Fraction
import av, numpy as np

print("PyAV", av.__version__, "libavformat", av.library_versions["libavformat"])
Flag = av.stream.Disposition


def written(flags):
    path = sys.argv[1] + "/a.mp4"
    with av.open(path, "w") as target:
        cover = target.add_stream("mjpeg", rate=25)
        cover.width = cover.height = 32
        cover.pix_fmt, cover.disposition = "yuvj420p", flags
        film = target.add_stream("mpeg4", rate=25)
        film.width = film.height = 64
        film.pix_fmt = "yuv420p"
        for stream, count, side in ((cover, 1, 32), (film, 5, 64)):
            for number in range(count):
                frame = av.VideoFrame.from_ndarray(np.zeros((side, side, 3), np.uint8), format="rgb24")
                frame = frame.reformat(format=stream.pix_fmt)
                frame.pts, frame.time_base = number, Fraction(1, 25)
                target.mux(stream.encode(frame))
            target.mux(stream.encode())
    with av.open(path) as source:
        cover = next(stream for stream in source.streams.video if stream.codec_context.name == "mjpeg")
        return bool(cover.disposition & Flag.attached_pic), source.streams.best("video").codec_context.name


alone, both = written(Flag.attached_pic), written(Flag.attached_pic | Flag.default)
print("attached_pic:           a cover after reading: %s, best video stream: %s" % alone)
print("attached_pic | default: a cover after reading: %s, best video stream: %s" % both)
sys.exit(not (alone[0] and not both[0]))
PYTHON
