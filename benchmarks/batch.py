"""What do two workers bring over one, what does Ray cost per picture, how much memory has a worker, how long is a list?

One process with one thread, two processes and two actors of Ray with one thread each compose the same photos
(`fid-run batch compose`), in turns. Rates are those after every worker has delivered its first file: sessions are open
by then. What a worker's seconds do not explain is overhead. Memory is the largest resident set of a worker. A folder of
10,000 files is listed, and listed again when all are done, without a model.

    python benchmarks/batch.py --files 24 --rounds 2 -o benchmarks/results/batch.json
"""

import json
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
import psutil
from fid.runtime.assets import FACES
from fid.runtime.batch.jobs import Compose, Identify
from fid.runtime.batch.on_ray import Cluster, work_on_ray
from fid.runtime.batch.places import Folder
from fid.runtime.batch.processes import work_in_processes
from fid.runtime.batch.run import Tally, make_plan, run
from fid.runtime.batch.worker import Setup, work_here
from fid.runtime.commands.options import Settings
from machine import machine_record
from records import write_json

LISTED = 10_000


def settings() -> Settings:
    """Return the options of `fid-run batch` with one thread and the engine that every install has."""
    plain = {"require": None, "resolution": None, "refine": None, "provenance": True, "mark": True}
    signing = {"sign_cert": None, "sign_key": None, "as_json": True}
    return Settings(bundle=None, engine="onnxruntime", threads=1, **plain, **signing)  # type: ignore[arg-type]


@contextmanager
def largest_mb(found: list[float]) -> Iterator[None]:
    """Watch the processes below this one, and this one, and add the largest resident set of any worker at the end."""
    peaks: dict[int, float] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            for process in psutil.Process().children(recursive=True):
                try:
                    words = " ".join(process.cmdline())
                    if "spawn_main" in words or words.startswith("ray::Remote"):
                        peaks[process.pid] = max(peaks.get(process.pid, 0.0), process.memory_info().rss / 1e6)
                except psutil.Error:
                    continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        found.append(round(max(peaks.values(), default=psutil.Process().memory_info().rss / 1e6), 1))


def measure(name: str, source: Path, target: Path) -> dict[str, float]:
    """Compose all photos one way; files per second after the first of each worker, and overhead per file."""
    job = Compose((FACES / "identity-ada.jpg",))
    setup = Setup(job, settings(), Folder(source), Folder(target))
    doing, workers = {
        "one process": (partial(work_here, setup), 1),
        "two processes": (partial(work_in_processes, setup, count=2), 2),
        "two actors of Ray": (partial(work_on_ray, setup, cluster=Cluster("local", 2)), 2),
    }[name]
    plan = make_plan(job, setup.source, setup.target, setup.opening.made_of())  # type: ignore[attr-defined]
    came: list[tuple[float, float]] = []  # when, and the worker's seconds
    memory: list[float] = []
    with largest_mb(memory):
        run(
            plan.tasks, doing, setup.target, None, Tally(len(plan.tasks)),
            lambda tally, line: came.append((time.perf_counter(), line.seconds)),
        )  # fmt: skip
    settled = 2 * workers  # files after which all sessions are open and warm
    wall_s = came[-1][0] - came[settled - 1][0]
    work_s = sum(seconds for _, seconds in came[settled:])
    count = len(came) - settled
    overhead_ms = 1e3 * (workers * wall_s - work_s) / count
    return {
        "files_per_s": count / wall_s, "seconds_per_file": work_s / count, "overhead_ms": overhead_ms,
        "worker_mb": memory[0],
    }  # fmt: skip


def listing(folder: Path) -> dict[str, float]:
    """Seconds to list a folder of 10,000 files, and to find that all of them are done."""
    source, target = Folder(folder / "many"), Folder(folder / "done")
    for number in range(LISTED):
        path = source.path / f"{number // 500:02d}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no picture is needed for a list")
    target.path.mkdir()
    job, made_of = Identify(), settings().made_of()

    def doing(tasks: Iterator[Any]) -> Iterator[Any]:
        for task in tasks:
            with target.writing(task.output) as path:
                path.touch()
            yield task.line()

    start = time.perf_counter()
    plan = make_plan(job, source, target, made_of)
    listed = time.perf_counter() - start
    run(plan.tasks, doing, target, None, Tally(len(plan.tasks)))
    start = time.perf_counter()
    assert make_plan(job, source, target, made_of).tasks == ()
    return {"files": LISTED, "listed_s": round(listed, 3), "resumed_s": round(time.perf_counter() - start, 3)}


@click.command()
@click.option("--files", default=24, show_default=True, help="Photos of each run.")
@click.option("--rounds", default=2, show_default=True, help="Turns of all three ways.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The record, JSON.")
def main(files: int, rounds: int, output: Path) -> None:
    """Measure, print and write the record."""
    ways = ("one process", "two processes", "two actors of Ray")
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    machine = machine_record()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "in").mkdir()
        faces = sorted(FACES.glob("*.jpg"))
        for number in range(files):
            shutil.copy(faces[number % len(faces)], folder / "in" / f"{number:03d}.jpg")
        for turn in range(rounds):
            for name in ways:
                (folder / f"{name} {turn}").mkdir()
                figures[name].append(measure(name, folder / "in", folder / f"{name} {turn}"))
        lists = listing(folder)
    rows = {
        name: {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}
        for name, runs in figures.items()
    }
    one = rows["one process"]["files_per_s"]
    ratios = {name: round(row["files_per_s"] / one, 2) for name, row in rows.items()}
    record = {
        "machine": machine, "settings": {"files": files, "rounds": rounds, "threads": 1}, "ways": rows,
        "times_one_process": ratios, "list": lists,
    }  # fmt: skip
    write_json(output, record)
    click.echo(json.dumps(record))


if __name__ == "__main__":
    main()
