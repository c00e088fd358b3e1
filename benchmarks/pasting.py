"""How much of the driver is left in pasted clips, how steady is what is put behind the head, and what does it take?

    python benchmarks/pasting.py --clip a.mp4 --clip b.mp4 --crowd one.mp4 --crowd three.mp4 --frames 40 -o record.json

Each clip is reenacted once with a shipped face, and its frames are pasted with every mask. In px of the aligned crop
(256 x 256): hair of the driver that the network of parts still finds in the result, away from the composed head.
In levels of 255: the difference to the frame where the driver's head, the composed one and their surroundings are not
(as many px of the frame as were changed beyond the wide view: none), the step at the border of what was taken away, and
the flicker of what was put there, beside that of the wall itself. Times are CPU ms of one thread, masks interleaved.
Clips given with --crowd show different numbers of people, all of whom are replaced: CPU ms a frame, everything counted.
"""

import json
import time
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
from fid.runtime import Composer
from fid.runtime.commands.bench import read_frames
from fid.runtime.face.align import transform
from fid.runtime.face.parts import BACKGROUND, BODY, FACE, HAIR, NECK, WIDER
from fid.runtime.live.crowd import Cast, Crowd
from fid.runtime.live.layout import Wishes
from fid.runtime.live.reenact import Reenactor
from machine import ROOT, machine_record

FPS = 25.0
WARM = 3  # frames that are not counted
MASKS = ("square", "head", "face")
APART = np.ones((13, 13), np.uint8)  # px of 128: what is nearer to a head than half of it is not counted as away


def measure(composer: Composer, frames: list[np.ndarray]) -> dict[str, Any]:
    """Return the figures of one clip, for each mask."""
    assert composer.identity is not None
    reenactor = Reenactor(composer)
    pasters = {mask: composer.paster(mask) for mask in MASKS}
    found: dict[str, dict[str, list[float]]] = {mask: {} for mask in MASKS}
    before: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for number, frame in enumerate(frames):
        step = reenactor.step(frame, number / FPS, composer.identity)
        if step is None:
            continue
        wide = step.alignment.widened(WIDER)
        small = wide.resized(128)
        driver, new = composer.parts(np.stack((wide.crop(frame), step.image)))
        head = _in_wide(new[FACE] + new[HAIR] + new[NECK])
        near = cv2.dilate(np.maximum(driver[HAIR] + driver[FACE] + driver[NECK] + driver[BODY], head), APART)
        free = (driver[HAIR] + driver[FACE] > 0.9) & (cv2.dilate(head, APART) < 0.1)
        outside = np.ones(frame.shape[:2], np.uint8)
        corners = transform(wide.inverse, np.array([[0, 0], [255, 0], [255, 255], [0, 255]]) + 0.0)
        cv2.fillConvexPoly(outside, np.rint(corners).astype(np.int32), 0)
        outside = cv2.erode(outside, np.ones((9, 9), np.uint8)) > 0
        for mask, paster in pasters.items():
            start = time.thread_time()
            shown = paster.paste(frame, step.image, step.alignment, step_s=1 / FPS, crop=step.crop)
            own = found[mask]
            own.setdefault("cpu_ms", []).append(1e3 * (time.thread_time() - start))
            parts = composer.parts(wide.crop(shown)[None])[0]
            left = (parts[HAIR] > 0.5) & (cv2.dilate(head, APART) < 0.1)
            own.setdefault("driver_hair_px", []).append(float(left.sum()) * (2 * WIDER) ** 2)
            own.setdefault("changed_outside", []).append(float((shown != frame).any(-1)[outside].sum()))
            view, real = small.crop(shown).astype(float), small.crop(frame).astype(float)
            away = (near < 0.05) & (driver[BACKGROUND] > 0.95)
            if away.any():
                own.setdefault("background_difference", []).append(float(np.abs(view - real).mean(-1)[away].mean()))
            ring = cv2.dilate(free.astype(np.uint8), APART[:9, :9]) - cv2.dilate(free.astype(np.uint8), APART[:5, :5])
            band = (ring > 0) & (driver[BACKGROUND] > 0.5)
            if band.any() and free.any():
                gradient = np.hypot(cv2.Sobel(view.mean(-1), -1, 1, 0), cv2.Sobel(view.mean(-1), -1, 0, 1)) / 8
                own.setdefault("border_step", []).append(float(gradient[band].mean()))
            if mask in before:
                old, was = before[mask]
                both = free & was
                if both.any():
                    own.setdefault("flicker", []).append(float(np.abs(view - old).mean(-1)[both].mean()))
                if away.any():
                    own.setdefault("flicker_of_the_wall", []).append(float(np.abs(view - old).mean(-1)[away].mean()))
            before[mask] = view, free
    return {m: {k: round(float(np.median(v) if k == "cpu_ms" else np.mean(v)), 2) for k, v in own.items()}
            for m, own in found.items()}  # fmt: skip


def measure_crowd(composer: Composer, frames: list[np.ndarray]) -> dict[str, Any]:
    """Return how many people a clip shows, and CPU ms a frame and a head where all of them are replaced."""
    assert composer.identity is not None
    crowd = Crowd(composer, Cast(others=composer.identity), Wishes(composer.identity))
    spent = []
    for number, frame in enumerate(frames):
        start = time.process_time()
        crowd.show(frame, number / FPS)
        spent.append(1e3 * (time.process_time() - start))
    found = {"people": crowd.people, "cpu_ms": round(float(np.mean(spent[WARM:])), 1)}
    return found | {"heads": round(crowd.replaced / len(frames), 2)}


def _in_wide(crop: np.ndarray) -> np.ndarray:
    """A map of the aligned crop, float32 [128, 128], in the wide view."""
    middle = 63.5
    matrix = np.array([[1, 0, middle * (WIDER - 1)], [0, 1, middle * (WIDER - 1)]]) / WIDER
    return cv2.warpAffine(np.ascontiguousarray(crop), matrix, (128, 128))


@click.command(help=__doc__)
@click.option("--clip", "clips", type=click.Path(exists=True, path_type=Path), multiple=True)
@click.option("--crowd", "crowds", type=click.Path(exists=True, path_type=Path), multiple=True)
@click.option("--frames", default=40, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Record, JSON.")
def main(clips: tuple[Path, ...], crowds: tuple[Path, ...], frames: int, output: Path | None) -> None:
    composer = Composer(engine="onnxruntime", threads=1)
    cv2.setNumThreads(1)
    composer.set_identity(ROOT / "runtime" / "faces" / "identity-ada.jpg")
    figures = {clip.stem: measure(composer, read_frames(clip, frames)) for clip in clips}
    people = [measure_crowd(composer, read_frames(clip, frames)) for clip in crowds]
    result = {"benchmark": "pasting", "frames": frames, "clips": figures, "crowds": people}
    result["provider"] = composer.provider
    result |= {"machine": machine_record()}
    if output:
        output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
