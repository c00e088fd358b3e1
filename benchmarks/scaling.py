"""How does the cost grow: with batch, threads, processes, resolution, length of a clip, number of faces, the size of a
frame, people who are live at once?

Batch, threads and resolution take turns within each question; the others are timed one after another. A clip goes
through the whole path of a frame; its memory must not grow. Frames of all sizes show a face of one size. Live people
take turns on one thread, as in `fid-run serve`.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --only frame_size --only users
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
from engines import CPU_ENGINES, NotHereError, inputs, noise, open_engine
from fid.runtime.composer import Composer
from fid.runtime.engines.machine import physical_cores
from fid.runtime.engines.open import open_detector
from fid.runtime.face.align import align
from fid.runtime.face.paste import Paster
from fid.runtime.face.track import Tracker
from fid.runtime.live.reenact import Reenactor
from fid.runtime.media.images import read_image
from latency import Clip, a_person
from machine import ROOT, machine_record
from records import QUICK_RESULTS, RESULTS, add_run
from timing import FULL, QUICK, Plan, interleaved, summary

WORKER, CLIP = "--worker", "--clip"  # first arguments of the processes of `by_processes` and `by_clip_length`


def by_batch(threads: int, plan: Plan, batches: tuple[int, ...]) -> dict[str, Any]:
    """Measure reenactment by batch size: ms a call, pictures a second."""
    return _turns(
        {(engine, size): (engine, "reenact", threads, size) for engine in CPU_ENGINES for size in batches}, plan
    )


def by_threads(plan: Plan, counts: tuple[int, ...]) -> dict[str, Any]:
    """Measure reenactment by number of threads."""
    return _turns({(engine, count): (engine, "reenact", count, 1) for engine in CPU_ENGINES for count in counts}, plan)


def by_resolution(threads: int, plan: Plan) -> dict[str, Any]:
    """Measure synthesis by side of the picture, px."""
    graphs = {256: "synthesis", 1024: "synthesis-1024"}
    return _turns({(e, side): (e, graph, threads, 1) for e in CPU_ENGINES for side, graph in graphs.items()}, plan)


def _turns(cases: dict[tuple[str, int], tuple[str, str, int, int]], plan: Plan) -> dict[str, Any]:
    """Engine -> size -> figures, all cases in turns."""
    calls, batches, result = {}, {}, {}
    for key, (engine, graph, threads, batch) in cases.items():
        try:
            opened = open_engine(engine, graph, threads, batch)
        except NotHereError as problem:
            result.setdefault(key[0], {})[str(key[1])] = {"reason": str(problem)}
            continue
        arrays = inputs(graph, batch)
        calls[str(key)], batches[str(key)] = (lambda run=opened.run, arrays=arrays: run(arrays)), batch
    turns = interleaved(calls, plan)
    for key in cases:
        if str(key) in turns:
            result.setdefault(key[0], {})[str(key[1])] = summary(turns[str(key)], batches[str(key)])
    return result


def by_processes(counts: tuple[int, ...], seconds: float) -> dict[str, Any]:
    """Return pictures a second of several processes, one thread each, that reenact for so long at the same time.

    One count after the other, once each: whole pictures that all made from the common beginning on, by the seconds.
    """
    result = {}
    for count in counts:
        command = [sys.executable, __file__, WORKER, str(seconds), str(time.time() + 4 + count)]
        workers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(count)]
        done = [worker.communicate()[0] for worker in workers]
        result[str(count)] = {"per_second": round(sum(int(out) for out in done) / seconds, 2)}
    return {"onnxruntime": result}


def work(seconds: float, begin: float) -> int:
    """Return how many faces one thread reenacts from the clock time `begin` on, for so many seconds."""
    opened, arrays = open_engine("onnxruntime", "reenact", 1), noise("reenact", 1)
    time.sleep(max(0.0, begin - time.time()))
    count, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        opened.run(arrays)
        count += 1
    return count


def by_clip_length(threads: int, lengths: tuple[int, ...]) -> dict[str, Any]:
    """Return the resident memory after so many moving frames, how much that is above the shortest clip's, and ms a
    frame.

    Each length in a fresh process: what an allocator keeps from earlier work would hide growth.
    """
    result: dict[str, Any] = {}
    for length in lengths:
        done = subprocess.run([sys.executable, __file__, CLIP, str(length), str(threads)], stdout=subprocess.PIPE)
        if done.returncode:
            result[str(length)] = {"reason": f"the process ended with {done.returncode}"}
            continue
        row = json.loads(done.stdout.decode().splitlines()[-1])
        shortest = next((one["resident_mb"] for one in result.values() if "resident_mb" in one), row["resident_mb"])
        result[str(length)] = row | {"growth_mb": round(row["resident_mb"] - shortest, 1)}
    return result


def clip(length: int, threads: int) -> dict[str, float]:
    """Run in this process so many frames of a moving face, each through the whole path."""
    film, opened, person = Clip(), open_engine("onnxruntime", "reenact", threads), a_person()
    start = time.perf_counter()
    for _ in range(length):
        film.frame(opened, person)
    ms = 1e3 * (time.perf_counter() - start) / length
    return {"resident_mb": round(_resident_mb(), 1), "ms_a_frame": round(ms, 2)}


def by_faces(threads: int, counts: tuple[int, ...], runs: int) -> dict[str, Any]:
    """Measure a 720p frame with so many faces, all of them found, aligned, reenacted and pasted back.

    One count after the other: the median of `runs` frames, after one that does not count.
    """
    detector, opened = open_detector(), open_engine("onnxruntime", "reenact", threads)
    person, result = a_person(), {}
    face = read_image(ROOT / "runtime" / "faces" / "attributes-speaking.jpg")
    for count in counts:
        frame = np.full((720, 1280, 3), 110, np.uint8)
        for i in range(count):
            top, left = 30 + 340 * (i // 4), 10 + 317 * (i % 4)
            frame[top : top + 300, left : left + 300] = cv2.resize(face, (300, 300), interpolation=cv2.INTER_CUBIC)
        times, found = [], 0
        for _ in range(runs + 1):
            start = time.perf_counter()
            picture, faces = frame, detector.faces(frame)
            for one in faces:
                alignment = align(detector.refine(frame, one).points)
                made = opened.run({"crop": alignment.crop(frame)[None], **person})[0]
                picture = Paster().paste(picture, made, alignment)
            times.append(1e3 * (time.perf_counter() - start))
            found = len(faces)
        result[str(count)] = {"found": found, "p50_ms": round(float(np.median(times[1:])), 2)}
    return result


def by_frame_size(sizes: tuple[tuple[int, int], ...], frames: int) -> dict[str, Any]:
    """Return ms of processor time of one thread for what is done to a frame between camera and networks, in frames of
    some sizes (width, height) that show a face of 300 px: the median of `frames`, for tracking the mean, since every
    fourth frame is searched."""
    composer, result = Composer(engine="onnxruntime", threads=1, refine=0), {}
    face = cv2.resize(read_image(ROOT / "runtime" / "faces" / "attributes-speaking.jpg"), (400, 400))
    for width, height in sizes:
        seen = []
        for step in range(4):
            frame = np.full((height, width, 3), 110, np.uint8)
            top, left = (height - 400) // 2, (width - 400) // 2 + 2 * step
            frame[top : top + 400, left : left + 400] = face
            seen.append(frame)
        tracker = Tracker(composer.detector)
        pasters = {"paste square": composer.paster("square"), "paste head": composer.paster("head")}
        ms: dict[str, list[float]] = {name: [] for name in ("track", "align", *pasters)}
        for number in range(frames + 4):
            frame, marks = seen[number % 4], [time.process_time()]
            alignment = tracker.follow(frame, number / 25)
            assert alignment is not None
            marks.append(time.process_time())
            crop = alignment.crop(frame, quick=True)
            marks.append(time.process_time())
            for paster in pasters.values():
                paster.paste(frame, crop, alignment, crop=crop)
                marks.append(time.process_time())
            for name, before, after in zip(ms, marks, marks[1:], strict=False):
                ms[name].append(1e3 * (after - before))
        averages = {name: float((np.mean if name == "track" else np.median)(own[4:])) for name, own in ms.items()}
        result[f"{width}x{height}"] = {name: round(value, 2) for name, value in averages.items()}
    return result


def by_users(counts: tuple[int, ...], frames: int) -> dict[str, Any]:
    """Return frames a second, of the wall and of the processor, of so many live people together, and the memory."""
    composer, result = Composer(refine=0), {}
    photos = sorted((ROOT / "runtime" / "faces").glob("identity-*.jpg"))
    people = [composer.identify(photo) for photo in photos]
    frame = read_image(ROOT / "runtime" / "faces" / "attributes-speaking.jpg")
    for count in counts:
        users = [Reenactor(composer, light=None) for _ in range(count)]
        for user, person in zip(users, people, strict=False):
            user.step(frame, 0.0, person)
        wall, cpu = time.perf_counter(), time.process_time()
        for number in range(frames):
            for user, person in zip(users, people, strict=False):
                user.step(frame, (1 + number) / 25, person)
        made = count * frames
        row = {"per_second": made / (time.perf_counter() - wall), "cpu_ms": 1e3 * (time.process_time() - cpu) / made}
        result[str(count)] = {k: round(v, 2) for k, v in row.items()} | {"resident_mb": round(_resident_mb(), 1)}
    return {composer.provider: result}


def _resident_mb() -> float:
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def parts_of(threads: int, quick: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return all questions, by name."""
    plan, cores = QUICK if quick else FULL, physical_cores()
    counts = tuple(sorted({1, 2, cores, *(n for n in (4, 8, 16) if n <= cores)}))
    sizes = ((854, 480), (1280, 720), (1920, 1080), (3840, 2160))
    return {
        "batch": lambda: by_batch(threads, plan, (1, 2) if quick else (1, 2, 4, 8)),
        "threads": lambda: by_threads(plan, counts),
        "resolution": lambda: by_resolution(threads, plan),
        "processes": lambda: by_processes(counts, 2 if quick else 8),
        "clip_length": lambda: by_clip_length(threads, (5, 10, 20) if quick else (50, 100, 200, 400)),
        "faces": lambda: by_faces(threads, (1, 2) if quick else (1, 2, 4, 8), 2 if quick else 10),
        "frame_size": lambda: by_frame_size(sizes[:2] if quick else sizes, 4 if quick else 24),
        "users": lambda: by_users((1, 2) if quick else (1, 2, 4), 2 if quick else 12),
    }


QUESTIONS = tuple(parts_of(1, True))


@click.command(help=__doc__)
@click.option("--threads", type=click.IntRange(min=1), help="Default: one per physical core.")
@click.option("--only", multiple=True, type=click.Choice(QUESTIONS), help="May be repeated. Default: all.")
@click.option("--quick", is_flag=True, help="Few runs, to see that it works; kept apart from the records.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="Default: benchmarks/results/.")
def main(threads: int | None, only: tuple[str, ...], quick: bool, output: Path | None) -> None:
    machine, threads, figures = machine_record(), threads or physical_cores(), {}
    for name, measure in parts_of(threads, quick).items():
        if not only or name in only:
            click.echo(name, err=True)
            figures[name] = measure()
    settings = {"threads": threads, "plan": (QUICK if quick else FULL).text}
    run = {"benchmark": "scaling", "quick": quick, "partial": bool(only), "settings": settings, "by": figures}
    path = add_run(output or (QUICK_RESULTS if quick else RESULTS), run, machine)
    shown = [name for name in figures if name not in ("batch", "threads", "resolution", "processes")]
    click.echo(json.dumps({"record": path.name, **{name: figures[name] for name in shown}}))


if __name__ == "__main__":
    if sys.argv[1:2] == [WORKER]:
        print(work(float(sys.argv[2]), float(sys.argv[3])))
    elif sys.argv[1:2] == [CLIP]:
        print(json.dumps(clip(int(sys.argv[2]), int(sys.argv[3]))))
    else:
        main()
