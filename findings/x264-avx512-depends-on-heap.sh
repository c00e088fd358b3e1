#!/bin/sh
# On a CPU with AVX-512, libx264 with one thread writes other bytes for the same frames and options, by what memory held before: its AVX-512 code reads bytes that nobody wrote.
# PyAV 18.1.0 (FFmpeg 8.1.2) and the libx264 164 of Debian 12. One would guess: an encoder with one thread and a fixed
# CRF is a function of its frames; x264 says so of itself, and promises it even for several threads. It holds up to AVX2
# (asm=AVX2, as fast here) and without assembly. In a process that encodes again and again, nearly every file differs.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet av==18.1.0 numpy==2.4.6
cat > "$folder/encode.py" <<'PYTHON'
import hashlib
import io
import sys
import av, numpy as np

draw = np.random.default_rng(0)
still = np.kron(draw.integers(0, 255, (12, 16)), np.ones((20, 20)))
digest = hashlib.sha256()
with av.open(io.BytesIO(), "w", format="mp4") as target:
    stream = target.add_stream("libx264", rate=25, options={"crf": "18", "x264-params": sys.argv[1]})
    stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
    stream.codec_context.thread_count = 1
    for number in range(24):
        luma = np.clip(np.roll(still, 3 * number, 1) + draw.normal(0, 6, still.shape), 0, 255).astype(np.uint8)
        frame = np.concatenate([luma, np.full((120, 320), 128, np.uint8)])
        for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="yuv420p")):
            digest.update(bytes(packet))
    for packet in stream.encode():
        digest.update(bytes(packet))
print(digest.hexdigest()[:12])
PYTHON
encoded() { # options: how many different files come of fresh memory filled by glibc with five values
    for filling in 1 37 77 128 200; do
        MALLOC_PERTURB_=$filling "$folder/venv/bin/python" "$folder/encode.py" "$1"
    done | sort -u | wc -l
}
"$folder/venv/bin/python" -c 'import av; print("PyAV", av.__version__, "FFmpeg", av.ffmpeg_version_info)'
if ! grep -q avx512vl /proc/cpuinfo; then
    echo "this CPU has no AVX-512: nothing to see here"
    exit 0
fi
automatic=$(encoded force-cfr=1) avx2=$(encoded asm=AVX2) plain=$(encoded asm=0)
echo "different files of 5: $automatic with the assembly that x264 chooses, $avx2 with asm=AVX2, $plain with asm=0"
[ "$automatic" -gt 1 ] && [ "$avx2" -eq 1 ] && [ "$plain" -eq 1 ]
