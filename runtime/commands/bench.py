"""`fid-run bench`: how fast each engine is on this machine, stage by stage and end to end, and how accurate.

Every engine that works composes the same frames. Accuracy stands beside speed: the pictures are compared with those of
ONNX Runtime in float32 on the CPU and the same generator, the reference, and so are the identity codes of the pictures.
Without a camera file the frames show a face that ships with fid, moving.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..composer import Composer
from ..engines.compare import psnr_db
from ..errors import FidError, InputError
from ..identity import Identity
from ..labels.mark import embed_mark
from ..live.ages import percentiles
from ..live.layout import Reenactment, Wishes
from ..live.pipeline import Live
from ..live.reenact import Reenactor
from ..media import video
from ..media.camera import Camera

REFERENCE = "onnxruntime"
COMPARED = 8  # frames whose pictures are compared with the reference
LEAST_FRAMES = 30  # of an engine, for its median to be worth remembering
WARM_UP = 3  # frames that are not counted
KEPT = 120  # frames held in memory at most, used over and over
KEPT_BYTES = 256 << 20  # of them: 10 frames in 4K
FPS = 30.0  # of the frames that fid makes itself
SIZE = 480, 640  # px, height and width of those


def made_frames(face: np.ndarray, count: int) -> list[np.ndarray]:
    """Return a face RGB uint8 [256, 256, 3] moving, turning and growing in front of a wall: RGB uint8 [480, 640, 3]
    each."""
    frames = []
    for number in range(count):
        phase = 2 * np.pi * number / 60
        scale, turn = 1.2 + 0.1 * np.sin(phase), 0.12 * np.sin(0.7 * phase)
        cosine, sine = scale * np.cos(turn), scale * np.sin(turn)
        centre = np.array([320 + 40 * np.sin(0.5 * phase), 240.0])
        matrix = np.array([[cosine, -sine, 0], [sine, cosine, 0]])
        matrix[:, 2] = centre - matrix[:, :2] @ (127.5, 127.5)
        wall = np.full((*SIZE, 3), 150, np.uint8)
        frames.append(cv2.warpAffine(face, matrix, SIZE[::-1], wall, borderMode=cv2.BORDER_TRANSPARENT))
    return frames


def read_frames(path: Path, count: int, limit_bytes: float = np.inf) -> list[np.ndarray]:
    """Return the first frames of a video file, RGB uint8, upright, in the colours of a screen, and one at least.

    Raises `InputError` when it is no video, and `FidError` when PyAV is missing.
    """
    frames: list[np.ndarray] = []
    with closing(video.read_frames(video.open_clip(path))) as found:
        for _, image in found:
            frames.append(image)
            if len(frames) == count or sum(frame.nbytes for frame in frames) >= limit_bytes:
                break
    return frames


def crops_of(composer: Composer, frames: list[np.ndarray]) -> list[np.ndarray]:
    """Return the aligned crops RGB uint8 [256, 256, 3] of those frames that have a usable face. `InputError` without
    any."""
    crops, reason = [], InputError("there are no frames.")
    for frame in frames:
        try:
            crops.append(composer.crop(frame))
        except InputError as error:
            reason = error
    if not crops:
        raise InputError(f"the frames that were looked at show nobody; the last one: {reason}")
    return crops


def pictures(composer: Composer, who: Identity, crops: list[np.ndarray], light: bool) -> list[np.ndarray]:
    """Return the compositions of aligned crops, with nothing smoothed: RGB uint8 [R, R, 3] each."""
    return [composer.image(composer.w(who, composer.attribute_code(crop)), light=light) for crop in crops]


def accuracy(images: list[np.ndarray], references: list[np.ndarray], judge: Composer) -> dict[str, float]:
    """Return how near pictures RGB uint8 [R, R, 3] are to their references: worst PSNR in dB, worst identity cosine."""
    psnr, cosine = [], []
    for image, reference in zip(images, references, strict=True):
        psnr.append(float(psnr_db(image[None], reference[None])[0]))
        views = [cv2.resize(one, (256, 256), interpolation=cv2.INTER_AREA) for one in (image, reference)]
        cosine.append(float(judge.identity_code(views[0]) @ judge.identity_code(views[1])))
    return {"psnr_db": round(min(psnr), 2), "identity_cosine": round(min(cosine), 5)}


def stages(composer: Composer, who: Identity, frames: list[np.ndarray], seconds: float, light: bool) -> dict[str, Any]:
    """Compose frames one after another for some seconds: ms of each stage and of the whole frame, fps;
    and under "mark_ms" what the invisible mark takes, which live pictures do without and recordings bear."""
    show = Reenactment(Reenactor(composer, light=light), Wishes(who))
    parts: dict[str, list[float]] = {}
    whole, marking = list[float](), list[float]()
    begin, number = time.perf_counter(), 0
    while number <= WARM_UP or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        picture = show.show(frames[number % len(frames)], number / FPS)
        if number >= WARM_UP:
            whole.append(1e3 * (time.perf_counter() - start))
            for stage, ms in picture.timings.items():
                parts.setdefault(stage, []).append(ms)
            start = time.perf_counter()
            embed_mark(picture.image)
            marking.append(1e3 * (time.perf_counter() - start))
        number += 1
    if "synthesis" not in parts:
        raise FidError("no face could be followed in these frames; give a clip that shows one, or more seconds.")
    figures = {"stage_ms": {stage: percentiles(values, 2) for stage, values in parts.items()}}
    figures |= {"mark_ms": percentiles(marking, 2), "frames": len(whole)}
    return figures | {"frame_ms": percentiles(whole, 2), "fps": round(1e3 / float(np.mean(whole)), 2)}


def live(composer: Composer, who: Identity, path: Path, seconds: float, light: bool) -> dict[str, Any]:
    """Measure the whole live path with a file in the place of the camera: pictures a second, ages, dropped frames."""
    show = Reenactment(Reenactor(composer, light=light), Wishes(who))
    path_of_frames = Live(Camera(path, again=True), show)
    path_of_frames.start()
    try:
        while time.perf_counter() - path_of_frames.started_s < seconds:
            path_of_frames.take(0.1)
    finally:
        path_of_frames.stop()
    return {
        "fps": round(path_of_frames.taken / seconds, 2),
        "frame_age_ms": path_of_frames.ages.summary(),
        "dropped": path_of_frames.dropped,
    }


def bench(
    engines: Sequence[str],
    identity: Path,
    camera: Path | None,
    seconds: float,
    options: dict[str, Any],
    light: bool | None = None,
    tell: Callable[[str], None] = lambda engine: None,
) -> list[dict[str, Any]]:
    """Return one row for each engine: its figures, or under "missing" why it does not work here.

    `options` go to every `Composer` (bundle, threads, resolution). `light`: by the light generator; None for where it
    pays. `tell` hears which engine is at work.
    """
    reference = Composer(engine=REFERENCE, **options)
    who = reference.identify(identity)
    if camera is not None:
        frames = read_frames(camera, KEPT, KEPT_BYTES)
    else:
        frames = made_frames(reference.crop(identity), KEPT)
    crops = crops_of(reference, frames[:: max(1, len(frames) // COMPARED)][:COMPARED])
    expected: dict[bool, list[np.ndarray]] = {}
    rows = []
    for engine in engines:
        tell(engine)
        try:
            composer = Composer(engine=engine, **options)
            start = time.perf_counter()
            chosen = Reenactor(composer, light=light).light
            composer.warm_up(who, light=chosen)
            ready_s = round(time.perf_counter() - start, 2)
            if composer.fallbacks:
                raise FidError(composer.fallbacks[0])
            row = {"engine": engine, "provider": composer.provider, "ready_s": ready_s}
            row |= {"generator": "light" if chosen else "full"}
            if chosen not in expected:
                expected[chosen] = pictures(reference, who, crops, chosen)
            row |= accuracy(pictures(composer, who, crops, chosen), expected[chosen], reference)
            row |= stages(composer, who, frames, seconds, chosen)
            if camera is not None:
                row["live"] = live(composer, who, camera, seconds, chosen)
        except FidError as error:
            row = {"engine": engine, "missing": str(error)}
        rows.append(row)
    return rows


def render(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the rows as lines of a table for people."""
    lines = [
        "engine          frame ms p50/p95/p99     fps  generator ms  mark ms  PSNR dB  identity  live fps  age p99 ms"
    ]
    for row in rows:
        if "missing" in row:
            lines.append(f"{row['engine']:<15} {row['missing']}")
            continue
        frame, shown = row["frame_ms"], row.get("live")
        text = f"{row['engine']:<15} {frame['p50']:6.1f} {frame['p95']:6.1f} {frame['p99']:6.1f}  {row['fps']:7.1f}"
        text += f"  {row['stage_ms']['synthesis']['p50']:12.1f}  {row['mark_ms']['p50']:7.1f}"
        text += f"  {row['psnr_db']:7.1f}  {row['identity_cosine']:8.4f}"
        text += f"  {shown['fps']:8.1f}  {shown['frame_age_ms']['p99']:10.1f}" if shown else ""
        lines.append(text)
    return lines
