"""Damage pictures and videos in every way that a seed gives, and tell what came of it: all must be read or refused.

`python tests/damaged_media.py [--count N] [--first N] [pictures] [videos]`. Every mutant is its number: the same number
gives the same bytes, so one that fails can be made again with `--first NUMBER --count 1 --keep DIR`.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing.connection import Connection
from pathlib import Path

import av
import cv2
import numpy as np
from fid.runtime.errors import FidError
from fid.runtime.media.images import decode_image
from fid.runtime.media.video import open_clip
from fid.runtime.media.video_rework import rework
from fid.runtime.media.video_write import to_frame
from PIL import Image, ImageCms

HANG_S = 20.0
VALUES = (0, 1, 127, 128, 254, 255)


def damaged(data: bytes, number: int) -> bytes:
    """Return the bytes with one to six faults: other bytes, large numbers, cut off, a part lost, doubled or moved."""
    rng = np.random.default_rng(number)
    mutant = bytearray(data)
    for _ in range(int(rng.integers(1, 7))):
        near_head = rng.random() < 0.5
        at = int(rng.integers(0, max(1, min(len(mutant), 512) if near_head else len(mutant))))
        length = int(rng.integers(1, 65))
        match int(rng.integers(0, 8)):
            case 0 | 1 | 2:
                mutant[at : at + 1] = bytes([int(rng.integers(0, 256))])
            case 3:
                mutant[at : at + 1] = bytes([VALUES[int(rng.integers(0, len(VALUES)))]])
            case 4:
                mutant[at : at + 4] = int(rng.choice([0, 1, 0x7FFF, 0xFFFF, 2**31 - 1, 2**32 - 1])).to_bytes(4, "big")
            case 5:
                del mutant[at : at + length]
            case 6:
                mutant[at:at] = mutant[at : at + length]
            case _:
                if rng.random() < 0.3:
                    del mutant[max(1, at) :]
                else:
                    mutant[at : at + length] = rng.integers(0, 256, length, np.uint8).tobytes()
    return bytes(mutant)


def pictures() -> list[bytes]:
    """Return one small picture of every kind that is read."""
    y, x = np.mgrid[0:48, 0:64]
    image = Image.fromarray(np.stack([4 * x, 5 * y, 2 * (x + y)], -1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    kinds: list[tuple[str, str, dict[str, object]]] = [
        ("RGB", "JPEG", {"exif": exif, "icc_profile": srgb}),
        ("RGB", "JPEG", {"progressive": True}),
        ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {"icc_profile": srgb}),
        ("RGBA", "PNG", {"exif": exif}),
        ("P", "PNG", {}),
        ("I;16", "PNG", {}),
        ("RGB", "WEBP", {"exif": exif}),
        ("RGBA", "WEBP", {"lossless": True}),
        ("RGB", "AVIF", {"exif": exif, "icc_profile": srgb}),
        ("RGBA", "TIFF", {"compression": "tiff_lzw"}),
        ("RGB", "TIFF", {"compression": "tiff_adobe_deflate", "exif": exif}),
        ("F", "TIFF", {}),
        ("P", "GIF", {}),
        ("RGB", "BMP", {}),
        ("RGB", "JPEG2000", {}),
        ("RGB", "PPM", {}),
    ]
    files = []
    for mode, kind, options in kinds:
        file = io.BytesIO()
        image.convert("L" if mode == "I;16" else mode).convert(mode).save(file, kind, **options)
        files.append(file.getvalue())
    floats = np.stack([x / 64, y / 48, x / 64], -1).astype(np.float32)
    return [*files, cv2.imencode(".tiff", floats)[1].tobytes()]


def videos() -> list[bytes]:
    """Return small MP4 files: of two codecs with sound, fragmented, and with the head first."""
    files = []
    for codec, options in (
        ("libx264", {}),
        ("libx264", {"movflags": "faststart"}),
        ("libx264", {"movflags": "frag_keyframe+empty_moov"}),
        ("mpeg4", {}),
    ):
        folder = tempfile.TemporaryDirectory()  # to put its head first, a file is read again
        file = Path(folder.name) / "a.mp4"
        with av.open(str(file), "w", options=options) as container:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            tone = container.add_stream("aac", rate=44100, layout="mono")
            for number in range(8):
                image = np.full((48, 64, 3), 40 + 20 * number, np.uint8)
                container.mux(stream.encode(to_frame(image, number, Fraction(1, 25))))
            container.mux(stream.encode())
            for number in range(12):
                sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                sound.sample_rate, sound.pts = 44100, 1024 * number
                container.mux(tone.encode(sound))
            container.mux(tone.encode())
        files.append(file.read_bytes())
        folder.cleanup()
    return files


@dataclass(frozen=True)
class Nothing:
    """What `Same` remembers."""


class Same:
    """Work that changes nothing."""

    state = Nothing()

    def picture(self, image: np.ndarray, time_s: float) -> np.ndarray:
        """Return the picture."""
        return image


def read_picture(data: bytes) -> str:
    """Decode, and look at what came out."""
    image = decode_image(data, "the mutant", max_pixels=50_000_000)
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    return "read"


def rework_video(data: bytes) -> str:
    """Rework the whole clip into another file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.mp4"
        path.write_bytes(data)
        rework(open_clip(path), Path(folder) / "out.mp4", Same(), settings={})
        assert sorted(file.name for file in Path(folder).iterdir()) == ["in.mp4", "out.mp4"]
    return "read"


KINDS: dict[str, tuple[Callable[[], list[bytes]], Callable[[bytes], str]]] = {
    "pictures": (pictures, read_picture),
    "videos": (videos, rework_video),
}


def work(kind: str, pipe: Connection) -> None:
    """Run one mutant after another for the other end of the pipe: what came of it, or a traceback."""
    act = KINDS[kind][1]
    os.environ["OPENCV_LOG_LEVEL"] = "SILENT"  # as the commands set it
    while True:
        try:
            data = pipe.recv_bytes()
        except EOFError:
            return
        try:
            outcome = act(data)
        except FidError as error:
            outcome = "refused" if "\n" not in str(error) else f"FAILED: more than one line: {error}"
        except BaseException:
            outcome = "FAILED: " + traceback.format_exc()
        pipe.send(outcome)


def run(kind: str, first: int, count: int, keep: Path | None = None) -> tuple[Counter[str], list[str]]:
    """Try mutants `first` to `first + count`; returns how many were read and refused, and what failed."""
    context, originals = multiprocessing.get_context("spawn"), KINDS[kind][0]()
    outcomes: Counter[str] = Counter()
    failed: list[str] = []
    process = None
    for number in range(first, first + count):
        if process is None:
            pipe, far = context.Pipe()
            process = context.Process(target=work, args=(kind, far), daemon=True)
            process.start()
            far.close()
        mutant = damaged(originals[number % len(originals)], number)
        if keep is not None:
            (keep / f"{kind}-{number}").write_bytes(mutant)
        start = time.monotonic()
        pipe.send_bytes(mutant)
        try:
            outcome = pipe.recv() if pipe.poll(HANG_S) else f"FAILED: no answer in {HANG_S:g} s"
        except EOFError:
            outcome = "FAILED: the process crashed"
        if outcome.startswith("FAILED"):
            failed.append(f"{kind} {number} after {time.monotonic() - start:.1f} s: {outcome}")
        if "crashed" in outcome or "no answer" in outcome:
            process.kill()
            process = None
        outcomes[outcome.split(":")[0]] += 1
    if process is not None:
        process.kill()
    return outcomes, failed


def main() -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], default=list(KINDS))
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    bad = 0
    for kind in options.kinds:
        outcomes, failed = run(kind, options.first, options.count, options.keep)
        print(kind, dict(outcomes))
        print(*failed, sep="\n")
        bad += len(failed)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
