"""How fast is every engine against PyTorch, graph by graph and for a whole frame, and how far off are its outputs?

Engines take turns in one process (A B C, A B C, ...), so that ratios hold on a machine that is not quiet; load, build
and memory are measured in a fresh process each. Accuracy is against PyTorch in float32 with the same weights. A whole
frame is one of a clip, as `fid-run` goes through it: decode, track (a detection at every fourth frame), align, reenact,
paste, encode; only `reenact` changes its engine.

    python benchmarks/latency.py                                     everything, about a quarter of an hour
    python benchmarks/latency.py --quick --engines torch --engines onnxruntime --graphs reenact
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
from accuracy import compare
from engines import ENGINES, GRAPHS, NotHereError, Opened, inputs, open_engine
from fid.runtime.commands.bench import made_frames
from fid.runtime.engines.machine import physical_cores
from fid.runtime.engines.open import open_detector
from fid.runtime.face.crop import CROP_SIZE
from fid.runtime.face.paste import Paster
from fid.runtime.face.track import Tracker
from fid.runtime.media.images import read_image
from machine import ROOT, machine_record
from records import QUICK_RESULTS, RESULTS, add_run
from timing import FULL, QUICK, Plan, interleaved, quantiles, speedup, summary

BATCHED = ("reenact",)  # graphs that are measured at larger batches too, where none is asked for
FRAME = (720, 1280)  # px, height and width of the frame in the whole-frame measurement
MOVING = 24  # frames of the clip, which goes to and fro
STAGES = ("decode", "track", "align", "reenact", "paste", "encode")
Choices = tuple[str, ...]


def measure_graph(graph: str, engines: Choices, batch: int, threads: int, plan: Plan, checked: int) -> dict[str, Any]:
    """Measure all engines on one graph: figures, or the reason why not, by engine."""
    opened, rows = {}, {}
    for engine in engines:
        try:
            opened[engine] = open_engine(engine, graph, threads, batch)
        except NotHereError as problem:
            rows[engine] = {"reason": str(problem)}
    arrays = inputs(graph, batch)
    turns = interleaved({name: _call(engine, arrays) for name, engine in opened.items()}, plan)
    expected = outputs(opened["torch"], graph, batch, checked) if "torch" in opened else None
    for name, engine in opened.items():
        rows[name] = {"provider": engine.provider, **summary(turns[name], batch), "open_s": engine.open_s}
        if expected is not None:
            rows[name]["speedup"] = speedup(turns["torch"], turns[name])
            rows[name]["against_torch"] = compare(outputs(engine, graph, batch, checked), expected)
        rows[name]["quantiles_ms"] = quantiles(turns[name])
    return {name: rows[name] for name in engines}


def outputs(engine: Opened, graph: str, batch: int, count: int) -> np.ndarray:
    """Return outputs for `count` inputs, or for one batch when that is more."""
    arrays = inputs(graph, max(count, batch), seed=2)
    parts = range(0, max(count, batch) // batch * batch, batch)
    return np.concatenate([engine.run({name: a[i : i + batch] for name, a in arrays.items()}) for i in parts])


def measure_frame(engines: Choices, threads: int, plan: Plan) -> dict[str, Any]:
    """Measure the whole frame, by engine: figures with the median of every stage, or the reason why not."""
    cv2.setNumThreads(threads)
    person, opened, rows = a_person(), {}, {}
    stages: dict[str, list[dict[str, float]]] = {}
    for name in engines:
        try:
            opened[name] = open_engine(name, "reenact", threads)
        except NotHereError as problem:
            rows[name] = {"reason": str(problem)}
    calls = {}
    for name, engine in opened.items():
        stages[name], clip = [], Clip()
        calls[name] = lambda engine=engine, clip=clip, kept=stages[name]: kept.append(clip.frame(engine, person))
    turns = interleaved(calls, plan)
    for name, engine in opened.items():
        rows[name] = {"provider": engine.provider, **summary(turns[name])}
        rows[name]["stages_ms"] = {
            stage: round(float(np.median([one[stage] for one in stages[name]])), 2) for stage in STAGES
        }
        if "torch" in turns:
            rows[name]["speedup"] = speedup(turns["torch"], turns[name])
        rows[name]["quantiles_ms"] = quantiles(turns[name])
    return {name: rows[name] for name in engines}


def a_person() -> dict[str, np.ndarray]:
    """Return what `reenact` takes of an identity, by name."""
    return {name: array for name, array in inputs("reenact", 1).items() if name != "crop"}


class Clip:
    """A 720p clip of a moving face, one frame after the other through the whole path. Endless."""

    def __init__(self) -> None:
        face = read_image(ROOT / "runtime" / "faces" / "attributes-speaking.jpg")
        height, width = FRAME
        large = [cv2.resize(one, (height * 4 // 3, height)) for one in made_frames(face, MOVING)]
        border = (width - large[0].shape[1]) // 2
        wide = [cv2.copyMakeBorder(one, 0, 0, border, border, cv2.BORDER_REPLICATE) for one in large]
        self._encoded = [cv2.imencode(".jpg", one[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1] for one in wide]
        self._encoded += self._encoded[-2:0:-1]
        self._tracker, self._paster, self._number = Tracker(open_detector()), Paster(), 0

    def frame(self, engine: Opened, person: dict[str, np.ndarray]) -> dict[str, float]:
        """Take the JPEG of the next frame and give the JPEG with the composed face pasted back; return ms of
        every stage."""
        encoded, time_s = self._encoded[self._number % len(self._encoded)], self._number / 25
        self._number += 1
        marks = [time.perf_counter()]
        frame = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
        marks.append(time.perf_counter())
        alignment = self._tracker.follow(frame, time_s)
        assert alignment is not None
        marks.append(time.perf_counter())
        crop = alignment.crop(frame, quick=True)
        marks.append(time.perf_counter())
        picture = engine.run({"crop": crop[None], **person})[0]
        marks.append(time.perf_counter())
        pasted = self._paster.paste(frame, picture, alignment, crop=crop)
        marks.append(time.perf_counter())
        cv2.imencode(".jpg", pasted[..., ::-1])
        marks.append(time.perf_counter())
        return {stage: 1e3 * (b - a) for stage, a, b in zip(STAGES, marks, marks[1:], strict=False)}


def fresh_process(engine: str, graph: str) -> dict[str, Any]:
    """Start to first output in a process of its own, seconds, and its peak of memory; or the reason why not."""
    start = time.perf_counter()
    script = Path(__file__).with_name("engines.py")
    done = subprocess.run([sys.executable, script, engine, graph], capture_output=True)
    if done.returncode:
        return {"reason": f"the process ended with {done.returncode}"}
    record = json.loads(done.stdout.decode().splitlines()[-1])
    return record if "reason" in record else {**record, "cold_start_s": round(time.perf_counter() - start, 2)}


def _call(engine: Opened, arrays: Any) -> Callable[[], object]:
    return lambda: engine.run(arrays)


@click.command(help=__doc__)
@click.option("--engines", multiple=True, type=click.Choice(ENGINES), help="May be repeated. Default: all.")
@click.option("--graphs", multiple=True, type=click.Choice([*GRAPHS, "frame"]), help="May be repeated. Default: all.")
@click.option(
    "--batch", multiple=True, type=click.IntRange(min=1), help="May be repeated. Default: 1, and for reenact 4 and 8."
)
@click.option(
    "--resolution", multiple=True, type=click.Choice(("256", "1024")), help="Only graphs of it, px; may be repeated."
)
@click.option("--threads", type=click.IntRange(min=1), help="Default: one per physical core.")
@click.option("--quick", is_flag=True, help="Few runs, to see that it works; kept apart from the records.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="Default: benchmarks/results/.")
def main(
    engines: Choices,
    graphs: Choices,
    batch: tuple[int, ...],
    resolution: Choices,
    threads: int | None,
    quick: bool,
    output: Path | None,
) -> None:
    machine, plan = machine_record(), QUICK if quick else FULL
    threads = threads or physical_cores()
    partial = bool(engines or graphs or batch or resolution)
    engines = engines or ENGINES
    graphs = tuple(g for g in graphs or (*GRAPHS, "frame") if not resolution or str(resolution_of(g)) in resolution)
    if not graphs:
        raise click.UsageError("None of these graphs has this resolution, so there is nothing to measure.")
    checked = 2 if quick else 16
    figures: dict[str, Any] = {}
    for graph in (g for g in graphs if g != "frame"):
        for size in batch or ((1, 4, 8) if graph in BATCHED and not quick else (1,)):
            click.echo(f"{graph}, batch {size}", err=True)
            count = 4 if graph.endswith("1024") else checked
            figures[f"{graph} batch {size}"] = measure_graph(graph, engines, size, threads, plan, count)
    frame: dict[str, Any] = {}
    if "frame" in graphs:
        click.echo("whole frame", err=True)
        frame = measure_frame(engines, threads, plan)
    memory: dict[str, Any] = {}
    for graph in (g for g in graphs if g != "frame"):
        click.echo(f"{graph}, fresh processes", err=True)
        here = [e for e, row in figures.get(f"{graph} batch 1", {}).items() if "reason" not in row]
        memory[graph] = {engine: fresh_process(engine, graph) for engine in here}
    run = {
        "benchmark": "latency",
        "quick": quick,
        "partial": partial,
        "settings": {"threads": threads, "plan": plan.text, "accuracy_inputs": checked, "frame_px": FRAME},
        "graphs": figures,
        "frame": frame,
        "fresh_process": memory,
    }
    path = add_run(output or (QUICK_RESULTS if quick else RESULTS), run, machine)
    click.echo(json.dumps({"record": path.name, "graphs": {g: _headline(rows) for g, rows in figures.items()}}))


def resolution_of(graph: str) -> int:
    """Return the side of a graph's picture in px; of the crop that the others and the whole frame work with."""
    return 1024 if graph.endswith("1024") else CROP_SIZE


def _headline(rows: dict[str, Any]) -> dict[str, Any]:
    return {name: row.get("speedup", row.get("p50_ms", row.get("reason"))) for name, row in rows.items()}


if __name__ == "__main__":
    main()
