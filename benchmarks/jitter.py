"""How much does the smoothing steady a still face, and what does a moving one lose by it?

    python benchmarks/jitter.py --clip talking.mp4 --frames 90

A still clip is made from the first frame, with noise as of a small sensor. On it, standard deviation and mean step of
the crop's corners and of w tell the jitter. On the moving clip, the cosine of the compositions' identity codes with
their mean tells how much the person drifts, and the lag is how far the smoothed corners stay behind the others.
Without --clip a face that ships with fid moves.
"""

import json
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
from fid.runtime import Composer
from fid.runtime.commands.bench import made_frames, read_frames
from fid.runtime.face.align import transform
from fid.runtime.face.track import Tracker
from fid.runtime.live.reenact import Reenactor
from fid.runtime.media.images import read_image
from machine import ROOT, machine_record

FACES = ROOT / "runtime" / "faces"
FPS = 30.0
NOISE = 5.0  # 0..255, standard deviation
SETTLED = 20  # frames until detections have pulled the points to where they stay
CORNERS = np.array([[0.0, 0], [255, 0], [255, 255], [0, 255]])


def still_clip(frame: np.ndarray, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return noisy copies of a frame RGB uint8."""
    return [np.clip(frame + rng.normal(0, NOISE, frame.shape), 0, 255).astype(np.uint8) for _ in range(count)]


def follow(composer: Composer, frames: list[np.ndarray], smooth: float, codes: bool) -> dict[str, np.ndarray]:
    """Return corners of the crop [n, 8] px of the frame, side [n] px, w [n, w_size], and identity codes of the
    results."""
    tracker, reenactor, who = Tracker(composer.detector, smooth=smooth), Reenactor(composer), composer.identity
    filtered: dict[str, list[Any]] = {"corners": [], "side": [], "w": [], "code": []}
    for number, frame in enumerate(frames):
        alignment = tracker.follow(frame, number / FPS)
        if alignment is None or who is None:
            continue
        w = composer.w(who, composer.attribute_code(alignment.crop(frame, quick=True)))
        w = reenactor.smooth_w(w, number / FPS, smooth)
        filtered["corners"].append(transform(alignment.inverse, CORNERS).ravel())
        filtered["side"].append(alignment.side_px)
        filtered["w"].append(w)
        if codes and number % 5 == 0:
            image = cv2.resize(composer.image(w), (256, 256), interpolation=cv2.INTER_AREA)
            filtered["code"].append(composer.identity_code(image))
    return {name: np.array(values) for name, values in filtered.items()}


@click.command(help=__doc__)
@click.option("--clip", type=click.Path(exists=True, path_type=Path))
@click.option("--frames", "count", default=90, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Record, JSON.")
def main(clip: Path | None, count: int, output: Path | None) -> None:
    machine = machine_record()
    composer = Composer()
    composer.set_identity(FACES / "identity-ada.jpg")
    face = read_image(FACES / "identity-ben.jpg")
    moving = made_frames(face, count) if clip is None else read_frames(clip, count)
    still = still_clip(moving[0], count, np.random.default_rng(0))
    figures: dict[str, Any] = {}
    unsmoothed: dict[str, np.ndarray] = {}
    for name, smooth in (("off", 0.0), ("on", 1.0)):
        rest = follow(composer, still, smooth, codes=False)
        corners = rest["corners"][SETTLED:] * (256 / rest["side"].mean())
        w = rest["w"][SETTLED:]
        run = follow(composer, moving, smooth, codes=True)
        mean = run["code"].mean(axis=0)
        figures[name] = {
            "corner_std_px": round(float(corners.std(axis=0).mean()), 3),
            "corner_step_px": round(float(np.abs(np.diff(corners, axis=0)).mean()), 3),
            "w_std": round(float(w.std(axis=0).mean()), 5),
            "w_step": round(float(np.abs(np.diff(w, axis=0)).mean()), 5),
            "identity_drift": round(float(1 - (run["code"] @ (mean / np.linalg.norm(mean))).mean()), 4),
        }
        if smooth == 0:
            unsmoothed = run
        else:
            behind = np.abs(run["corners"] - unsmoothed["corners"]).mean() / run["side"].mean() * 256
            figures[name]["lag_px"] = round(float(behind), 3)
    clip_kind = "made" if clip is None else "filmed"
    result = {"benchmark": "jitter", "frames": count, "clip": clip_kind, "smoothing": figures}
    result |= {"provider": composer.provider, "machine": machine}
    if output:
        output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
