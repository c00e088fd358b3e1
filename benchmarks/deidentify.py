"""How much of a face does de-identification leave, and what does it keep, beside `deface`?

    pip install deface==1.5.0
    python benchmarks/deidentify.py --frames 8 -o deidentify.json
    python benchmarks/deidentify.py --frames 24 --clip film.mp4 --clip talk.mp4 -o deidentify_clips.json

Clips are made of generated people whose places are known: upright, turned by 45, 90 and 180 degrees, small, and coming
in from the left and from above; or --clip gives real ones, in whose first frames YuNet says where faces are. A face is
left in a frame when its middle has changed by less than 6 grey levels, or
when SFace and dlib both take it for the same person; faces of which less than half is in the frame count by the middle
alone. Kept is pose and expression where YuNet still finds a face at the place: distance of its five points from the
original's, in distances between the eyes; and sex and age as the codes of dlib and SFace tell them
(`benchmarks/traits.py`). CPU
seconds, because other work on the machine then matters less.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
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
from fid.runtime.deidentify.traits import read_traits
from fid.runtime.deidentify.verdict import UNCHANGED
from fid.runtime.face.align import align, transform
from fid.runtime.face.detect import SURE_SCORE, Detector, Face
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


def made_clip(detector: Detector, kind: str, count: int) -> tuple[list[np.ndarray], list[list[Face]]]:
    """Return frames RGB uint8 [HEIGHT, WIDTH, 3] of a kind, and the face in each."""
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
        faces.append([Face((*corner.tolist(), side, side), transform(placed, own.points), 1.0)])
    return frames, faces


def real_clip(detector: Detector, path: Path, count: int) -> tuple[list[np.ndarray], list[list[Face]]]:
    """Return the first frames RGB uint8 of a clip, of even sides, and the faces that YuNet is sure of in each."""
    frames = []
    with closing(read_frames(open_clip(path))) as found:
        for _, image in islice(found, count):
            frames.append(np.ascontiguousarray(image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]))
    return frames, [[face for face in detector.faces(frame) if face.score >= SURE_SCORE] for frame in frames]


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
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = "yuv420p"
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


@dataclass
class Seen:
    """What was seen of the faces of one clip."""

    faces: int = 0
    left: int = 0  # those still there
    face_found: int = 0  # those in whose place a face can be found
    apart: list[float] = field(default_factory=list)  # of the five points, in distances between the eyes
    sex_kept: list[float] = field(default_factory=list)
    years: list[float] = field(default_factory=list)  # by which the age differs


def look(detector: Detector, judges: Judges, frame: np.ndarray, face: Face, result: np.ndarray, seen: Seen) -> None:
    """Compare one face of a frame with what is in its place."""
    part = visible_part(face, frame.shape)
    if part < 0.2:
        return
    seen.faces += 1
    same = middle_difference(frame, result, face.box) < UNCHANGED
    alignment = align(face.points)
    codes = judges.look(alignment.crop(frame))
    if part >= 0.5 and not same:
        same = likeness([codes], judges.look(alignment.crop(result))).matches
    seen.left += same
    found = detector.measure(result, face.points, 256)
    before = detector.measure(frame, face.points, 256)
    if found is None or before is None:
        return
    seen.face_found += 1
    seen.apart.append(float(np.linalg.norm(found - before, axis=1).mean() / np.linalg.norm(before[1] - before[0])))
    other = judges.look(align(found).crop(result))
    if codes.dlib is not None and other.dlib is not None:
        was, now = read_traits(codes.dlib, codes.sface), read_traits(other.dlib, other.sface)
        seen.sex_kept.append(float((was.male > 0.5) == (now.male > 0.5)))
        seen.years.append(abs(was.age - now.age))


def totals(seen: list[Seen]) -> dict[str, Any]:
    """Return the figures of all clips together."""
    faces, left, found = (sum(getattr(one, name) for one in seen) for name in ("faces", "left", "face_found"))
    told: dict[str, Any] = {"faces": faces, "left": left, "leak_rate": round(left / faces, 3), "face_found": found}
    for name, what in (("apart", "points_apart"), ("sex_kept", "sex_kept"), ("years", "age_off_years")):
        values = [value for one in seen for value in getattr(one, name)]
        told[what] = round(float(np.mean(values)), 3) if values else None
    return told


@click.command(help=__doc__)
@click.option("--frames", "count", default=8, show_default=True, help="Of each clip.")
@click.option("--clip", "paths", multiple=True, type=click.Path(exists=True, path_type=Path), help="A real one.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Record, JSON.")
def main(count: int, paths: tuple[Path, ...], output: Path | None) -> None:
    machine, composer = machine_record(), Composer(engine="onnxruntime", threads=1)
    detector, judges = composer.detector, Judges(composer)
    clips = {path.stem: real_clip(detector, path, count) for path in paths}
    clips = clips or {kind: made_clip(detector, kind, count) for kind in KINDS}
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, work in (("fid", by_fid(composer, Path(folder))), ("deface", by_deface())):
            work(next(iter(clips.values()))[0][:2])  # what is opened at first use is not counted
            kinds, spent_s = {}, 0.0
            for kind, (frames, faces) in clips.items():
                start = time.process_time()
                results = work(frames)
                spent_s += time.process_time() - start
                kinds[kind] = Seen()
                for frame, there, result in zip(frames, faces, results, strict=True):
                    for face in there:
                        look(detector, judges, frame, face, result, kinds[kind])
                click.echo(f"{name} {kind}: {totals([kinds[kind]])}", err=True)
            told[name] = {
                **totals(list(kinds.values())),
                "clips": {kind: totals([seen]) for kind, seen in kinds.items()},
            }
            told[name] |= {"cpu_ms_per_frame": round(1e3 * spent_s / sum(len(frames) for frames, _ in clips.values()))}
    size = sorted({frames[0].shape[:2] for frames, _ in clips.values()})
    result = {"benchmark": "deidentify", "frames_of_each": count, "height_width": size, "real": bool(paths), **told}
    result |= {"recognisers": judges.names, "provider": composer.provider, "machine": machine}
    if output:
        output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
