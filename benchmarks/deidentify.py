"""How much of a face does de-identification leave, and what does it keep, beside `deface`?

    pip install deface==1.5.0
    python benchmarks/deidentify.py --frames 8 -o deidentify.json

Clips are made of generated people whose places are known: upright, turned by 45, 90 and 180 degrees, small, and coming
in from the left and from above. A face is left in a frame when its middle has changed by less than 6 grey levels, or
when SFace and dlib both take it for the same person; faces of which less than half is in the frame count by the middle
alone. Kept is pose and expression where YuNet still finds a face at the place: distance of its five points from the
original's, in distances between the eyes. CPU seconds, because other work on the machine then matters less.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import av
import click
import cv2
import numpy as np
from fid.runtime import Composer
from fid.runtime.assets import FACES
from fid.runtime.deidentify.hide import middle_difference
from fid.runtime.deidentify.judges import Judges, likeness
from fid.runtime.deidentify.run import Options, open_worker
from fid.runtime.deidentify.verdict import UNCHANGED
from fid.runtime.face.align import align, transform
from fid.runtime.face.detect import Detector, Face
from fid.runtime.face.search import visible_part
from fid.runtime.media.images import read_image
from fid.runtime.media.video import open_clip, read_frames
from machine import machine_record

HEIGHT, WIDTH, FPS = 360, 640, 25
KINDS: dict[str, tuple[str, float, float, tuple[float, float], tuple[float, float]]] = {
    # person, width of the face in px, degrees, middle in the first frame, px from one frame to the next
    "upright": ("ada", 80, 0, (300, 180), (2, 0)),
    "45 degrees": ("dave", 80, 45, (300, 180), (2, 0)),
    "90 degrees": ("eve", 80, 90, (300, 180), (2, 0)),
    "180 degrees": ("ben", 80, 180, (300, 180), (2, 0)),
    "small": ("carl", 30, 0, (300, 180), (2, 0)),
    "from the left": ("ben", 80, 0, (-30, 180), (10, 0)),
    "from above": ("ada", 80, 0, (300, -30), (0, 10)),
}


def made_clip(detector: Detector, kind: str, count: int) -> tuple[list[np.ndarray], list[Face]]:
    """Return frames RGB uint8 [HEIGHT, WIDTH, 3] of a kind, and where the face is in each."""
    person, width, degrees, start, step = KINDS[kind]
    picture = read_image(FACES / f"identity-{person}.jpg")
    own = max(detector.faces(picture), key=lambda face: face.area)
    y, x = np.mgrid[:256, :256]
    opaque = np.clip((1 - np.hypot((x - 127.5) / 118, (y - 127.5) / 126)) * 12, 0, 1).astype(np.float32)
    wall = np.random.default_rng(1).integers(60, 200, (6, 10, 3)).astype(np.uint8)
    wall = cv2.resize(wall, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    scale, turn = width / own.box[2], np.radians(degrees)
    matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    centre = np.array([own.box[0] + own.box[2] / 2, own.box[1] + own.box[3] / 2])
    side = width * (1 + own.box[3] / own.box[2]) / 2
    frames, faces = [], []
    for number in range(count):
        middle = np.array(start) + number * np.array(step)
        placed = np.column_stack([matrix, middle - matrix @ centre])
        small = cv2.GaussianBlur(picture, (0, 0), 0.4 / scale) if scale < 0.8 else picture
        shown, part = (cv2.warpAffine(one, placed, (WIDTH, HEIGHT)) for one in (small, opaque))
        frames.append((wall * (1 - part[..., None]) + shown * part[..., None]).astype(np.uint8))
        corner = middle - side / 2
        faces.append(Face((*corner.tolist(), side, side), transform(placed, own.points), 1.0))
    return frames, faces


def by_fid(composer: Composer, folder: Path) -> Callable[[list[np.ndarray]], list[np.ndarray]]:
    """Return what de-identifies frames as `fid-run deidentify` does a file."""

    @contextmanager
    def progress(text: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda count: None

    worker = open_worker(composer, Options(allow_none=True), note=None, progress=progress)

    def work(frames: list[np.ndarray]) -> list[np.ndarray]:
        source, result = folder / "in.mp4", folder / "out.mp4"
        with av.open(str(source), "w") as file:
            stream = file.add_stream("libx264", rate=FPS, options={"crf": "12"})
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for frame in [*frames, None]:
                picture = None if frame is None else av.VideoFrame.from_ndarray(frame, format="rgb24")
                file.mux(stream.encode(picture))
        worker.file(source, result)
        with closing(read_frames(open_clip(result))) as found:
            return [image for _, image in found]

    return work


def by_deface() -> Callable[[list[np.ndarray]], list[np.ndarray]]:
    """Return what de-identifies frames as `deface` does by default: CenterFace, threshold 0.2, blurred ellipses."""
    from deface.centerface import CenterFace  # pyright: ignore[reportMissingImports]
    from deface.deface import anonymize_frame  # pyright: ignore[reportMissingImports]

    net = CenterFace()

    def work(frames: list[np.ndarray]) -> list[np.ndarray]:
        results = [frame.copy() for frame in frames]
        for frame in results:
            found, _ = net(frame, threshold=0.2)
            anonymize_frame(found, frame, 1.3, "blur", True, False, None, 20)
        return results

    return work


def look(
    detector: Detector, judges: Judges, frames: list[np.ndarray], faces: list[Face], results: list[np.ndarray]
) -> dict[str, Any]:
    """Return frames, those in which the face is left, those in which a face can be found, and distances of points."""
    left, kept, apart, count = 0, 0, [], 0
    for frame, face, result in zip(frames, faces, results, strict=True):
        part = visible_part(face, frame.shape)
        if part < 0.2:
            continue
        count += 1
        same = middle_difference(frame, result, face.box) < UNCHANGED
        alignment = align(face.points)
        if part >= 0.5 and not same:
            codes = judges.look(alignment.crop(frame))
            same = likeness([codes], judges.look(alignment.crop(result))).matches
        left += same
        found = detector.measure(result, face.points, 256)
        before = detector.measure(frame, face.points, 256)
        if found is not None and before is not None:
            kept += 1
            eyes = np.linalg.norm(before[1] - before[0])
            apart.append(float(np.linalg.norm(found - before, axis=1).mean() / eyes))
    return {"frames": count, "left": left, "face_found": kept, "apart": apart}


@click.command(help=__doc__)
@click.option("--frames", "count", default=8, show_default=True, help="Of each clip.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Record, JSON.")
def main(count: int, output: Path | None) -> None:
    machine, composer = machine_record(), Composer(engine="onnxruntime", threads=1)
    detector, judges = composer.detector, Judges(composer)
    clips = {kind: made_clip(detector, kind, count) for kind in KINDS}
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, work in (("fid", by_fid(composer, Path(folder))), ("deface", by_deface())):
            work(clips["upright"][0][:2])  # what is opened at first use is not counted
            kinds, apart, spent_s = {}, [], 0.0
            for kind, (frames, faces) in clips.items():
                start = time.process_time()
                results = work(frames)
                spent_s += time.process_time() - start
                seen = look(detector, judges, frames, faces, results)
                apart += seen.pop("apart")
                kinds[kind] = seen
                click.echo(f"{name} {kind}: {seen}", err=True)
            totals = {what: sum(seen[what] for seen in kinds.values()) for what in ("frames", "left", "face_found")}
            told[name] = {**totals, "leak_rate": round(totals["left"] / totals["frames"], 3), "kinds": kinds}
            told[name] |= {"points_apart": round(float(np.mean(apart)), 3) if apart else None}
            told[name] |= {"cpu_ms_per_frame": round(1e3 * spent_s / (count * len(clips)))}
    result = {"benchmark": "deidentify", "frames_of_each": count, "height": HEIGHT, "width": WIDTH, **told}
    result |= {"recognisers": judges.names, "provider": composer.provider, "machine": machine}
    if output:
        output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
