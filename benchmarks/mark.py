"""Does the invisible mark stay through what happens to pictures, is it not seen, and is it never found where it is not?

    python benchmarks/mark.py --photos FACES --count 500 --others 10000 -o mark.json

Each picture is marked, then compressed, made smaller, cropped; clips of a moving crop go through H.264. The detector
looks at the size that the file has. Others are crops of pictures without a mark (at random places, sizes and
mirrored), noise, and noise made smooth; the highest figure of all these looks, in standard deviations, stands beside
the threshold. Without --photos it takes the faces that ship with fid.

--rivagan DIR sets RivaGAN beside it, whose two ONNX files are in the wheel of invisible-watermark 0.2.0 (unpack it,
DIR/rivagan_encoder.onnx): the share of its 32 bits that are read rightly, and of pictures in which at least 27 of them
are, so many as chance reads rightly in one of 10,000 pictures. It takes long, so give it fewer pictures:

    python benchmarks/mark.py --photos FACES --count 24 --clips 0 --others 0 --rivagan DIR -o mark_rivagan.json
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import click
import cv2
import numpy as np
from fid.runtime.assets import FACES
from fid.runtime.labels.mark import FOUND, detect_mark, embed_mark
from fid.runtime.media.images import find_photos, read_image
from machine import machine_record

CROP = 0.9  # of both sides
CLIP_FRAMES, CRF = 30, 28
RIVAGAN_FOUND = 27  # bits of 32 that must be right: by chance, in 5.7e-5 of all pictures


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Return a picture RGB uint8 as it comes out of a JPEG file."""
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))


def halved(image: np.ndarray) -> np.ndarray:
    """Return a picture RGB uint8 made half as large, and as large as before."""
    small = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)


def cropped(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a part of a picture RGB uint8, `CROP` of both sides, from anywhere."""
    height, width = (round(CROP * side) for side in image.shape[:2])
    top, left = (rng.integers(0, full - part + 1) for full, part in zip(image.shape, (height, width), strict=False))
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def through_h264(frames: list[np.ndarray]) -> list[np.ndarray]:
    """Return frames RGB uint8 of even sides as they come out of H.264 at `CRF`."""
    coder, reader = av.CodecContext.create("libx264", "w"), av.CodecContext.create("h264", "r")
    coder.height, coder.width = frames[0].shape[:2]
    coder.pix_fmt, coder.framerate, coder.options = "yuv420p", 25, {"crf": str(CRF), "threads": "1"}
    packets = []
    for frame in [*frames, None]:
        packets += coder.encode(None if frame is None else av.VideoFrame.from_ndarray(frame, format="rgb24"))
    return [frame.to_ndarray(format="rgb24") for packet in [*packets, None] for frame in reader.decode(packet)]


def others(pictures: list[np.ndarray], count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield pictures RGB uint8 without a mark: eight of ten are crops, the others noise, plain and smooth."""
    for number in range(count):
        if number % 10 >= 8:
            noise = rng.integers(0, 256, (192, 192, 3), np.uint8)
            yield noise if number % 2 else cv2.GaussianBlur(noise, (0, 0), float(rng.uniform(0.5, 4)))
            continue
        picture = pictures[number % len(pictures)]
        side = int(rng.integers(96, min(picture.shape[:2]) + 1))
        top, left = (int(rng.integers(0, full - side + 1)) for full in picture.shape[:2])
        part = np.ascontiguousarray(picture[top : top + side, left : left + side, :: -1 if number % 3 else 1])
        size = int(rng.integers(96, 257))
        yield cv2.resize(part, (size, size), interpolation=cv2.INTER_LINEAR)


def evenly(paths: list[Path], count: int) -> list[Path]:
    """Return so many of the paths, from all over them."""
    return paths if len(paths) <= count else [paths[index * len(paths) // count] for index in range(count)]


def attacks(rng: np.random.Generator) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return what happens to pictures RGB uint8, by name."""
    return {
        "as_it_is": lambda image: image,
        "jpeg_75": lambda image: jpeg(image, 75),
        "jpeg_50": lambda image: jpeg(image, 50),
        "half_and_back": halved,
        "crop": lambda image: cropped(image, rng),
    }


def rivagan(folder: Path, pictures: list[np.ndarray], rng: np.random.Generator) -> dict[str, Any]:
    """Return PSNR, share of bits and of pictures after each attack, and ms to embed, of RivaGAN."""
    import onnxruntime

    encoder, decoder = (
        onnxruntime.InferenceSession(folder / f"rivagan_{part}.onnx") for part in ("encoder", "decoder")
    )
    psnr_db, took_ms, right = [], [], {name: [] for name in attacks(rng)}
    for picture in pictures:
        bits = rng.integers(0, 2, (1, 32)).astype(np.float32)
        frame = (picture[..., ::-1].astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None, :, None]  # it takes BGR
        start = time.perf_counter()
        (out,) = encoder.run(None, {"frame": frame, "data": bits})
        took_ms.append(1e3 * (time.perf_counter() - start))
        marked = np.ascontiguousarray(
            ((out.clip(-1, 1)[0, :, 0].transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)[..., ::-1]
        )
        psnr_db.append(10 * np.log10(255**2 / np.mean((marked.astype(float) - picture) ** 2)))
        for name, attack in attacks(rng).items():
            view = (attack(marked)[..., ::-1].astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None, :, None]
            right[name].append(float(np.mean((decoder.run(None, {"frame": view})[0] > 0.52) == bits)))
    bits_right = {name: round(float(np.mean(values)), 3) for name, values in right.items()}
    found = {name: round(float(np.mean(np.array(v) >= RIVAGAN_FOUND / 32)), 3) for name, v in right.items()}
    told = {"pictures": len(pictures), "psnr_db": round(float(np.mean(psnr_db)), 2), "bits_right": bits_right}
    return told | {"found": found, "embed_ms": round(float(np.median(took_ms)))}


def attacked(pictures: list[np.ndarray], rng: np.random.Generator) -> tuple[dict[str, float], list[float]]:
    """Return the share that is found after each attack, and PSNR of each marked picture in dB."""
    found, psnr_db = dict.fromkeys(attacks(rng), 0), []
    for picture in pictures:
        marked = embed_mark(picture)
        psnr_db.append(10 * np.log10(255**2 / np.mean((marked.astype(float) - picture) ** 2)))
        for name, attack in attacks(rng).items():
            found[name] += detect_mark(attack(marked), sizes=False).marked
    return {name: round(count / len(pictures), 4) for name, count in found.items()}, psnr_db


@click.command(help=__doc__)
@click.option("--photos", type=click.Path(exists=True, file_okay=False, path_type=Path), default=FACES)
@click.option("--count", default=500, show_default=True, help="Pictures that are marked, at most.")
@click.option("--clips", default=20, show_default=True, help="Clips that are made of some of them.")
@click.option("--others", "unmarked", default=10_000, show_default=True)
@click.option("--rivagan", "peer", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Record, JSON.")
def main(photos: Path, count: int, clips: int, unmarked: int, peer: Path | None, output: Path | None) -> None:
    machine, rng = machine_record(), np.random.default_rng(0)
    pictures = [read_image(path) for path in evenly(find_photos([photos], ()), count)]
    shares, psnr_db = attacked(pictures, rng)
    videos = []
    for picture in pictures[:clips]:
        wide = np.hstack([picture, picture[:, ::-1]])
        frames = [embed_mark(np.ascontiguousarray(np.roll(wide, 2 * n, axis=1)[:, :256])) for n in range(CLIP_FRAMES)]
        videos.append(detect_mark(through_h264(frames), sizes=False).marked)
    took_ms = []
    for _ in range(30):
        start = time.perf_counter()
        embed_mark(pictures[0])
        took_ms.append(1e3 * (time.perf_counter() - start))
    sigmas = np.array([detect_mark(picture, sizes=False).sigma for picture in others(pictures, unmarked, rng)])
    result = {
        "benchmark": "mark",
        "pictures": len(pictures),
        "side_px": pictures[0].shape[0],
        "psnr_db": {"mean": round(float(np.mean(psnr_db)), 2), "lowest": round(float(np.min(psnr_db)), 2)},
        "found": shares | ({"h264_crf_28": round(float(np.mean(videos)), 4)} if videos else {}),
        "clips": len(videos),
        "embed_ms": {"median": round(float(np.median(took_ms)), 2), "least": round(min(took_ms), 2)},
        "unmarked": {
            "looks": unmarked,
            "found": int((sigmas >= FOUND).sum()),
            "highest_sigma": round(float(sigmas.max(initial=0)), 2),
            "mean_sigma": round(float(sigmas.mean()) if len(sigmas) else 0.0, 2),
            "threshold_sigma": FOUND,
        },
        "rivagan": None if peer is None else rivagan(peer, pictures, rng),
        "machine": machine,
    }
    if output:
        output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
