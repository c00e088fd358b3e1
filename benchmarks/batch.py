"""What do two workers bring over one, what does Ray cost per picture, how much memory has a worker, how long is a list?

One process with one thread, two processes and two actors of Ray with one thread each compose the same photos
(`fid-run batch compose`), in turns. Rates are those after every worker has delivered its first files: sessions are open
by then. On a machine that does other things as well, CPU seconds per file tell more than rates. Overhead is what lies
between two files and no worker's seconds explain. Memory is the largest resident set of a worker when a file is done. A
folder of 10,000 files is listed, and listed again when all are done, without a model.

    python benchmarks/batch.py --files 24 --rounds 2 -o benchmarks/results/batch.json
"""

import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import MISSING, fields
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import psutil
from fid.runtime.assets import FACES
from fid.runtime.batch.jobs import Compose, Identify, with_people
from fid.runtime.batch.manifest import Line
from fid.runtime.batch.on_ray import Cluster, work_on_ray
from fid.runtime.batch.places import Folder, Item
from fid.runtime.batch.processes import work_in_processes
from fid.runtime.batch.run import Tally, make_plan, run
from fid.runtime.batch.worker import Setup, Task, work_here
from fid.runtime.commands.options import Settings
from fid.runtime.face.detect import MIN_SCORE
from machine import machine_record
from records import write_json

LISTED = 10_000  # files
TRIPS = 200  # to a worker and back


def settings() -> Settings:
    """Return the options of `fid-run batch` with one thread and the engine that every install has."""
    chosen: dict[str, Any] = {"engine": "onnxruntime", "threads": 1, "provenance": True, "mark": True}
    chosen |= {"min_confidence": MIN_SCORE, "as_json": True}
    needed = [one.name for one in fields(Settings) if one.default is MISSING and one.default_factory is MISSING]
    return Settings(**{**dict.fromkeys(needed), **chosen})


def workers_now(alone: bool) -> list[psutil.Process]:
    """The processes that compose: this one, or those below it that hold a worker."""
    if alone:
        return [psutil.Process()]
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            words = " ".join(process.cmdline())
            found += [process] if "spawn_main" in words or words.startswith("ray::Remote") else []
        except psutil.Error:
            continue
    return found


def cpu_and_mb(alone: bool) -> tuple[float, float]:
    """CPU seconds of all workers so far, and the largest resident set of one, MB."""
    seconds, sizes = 0.0, [0.0]
    for process in workers_now(alone):
        times = process.cpu_times()
        seconds += times.user + times.system
        sizes.append(process.memory_info().rss / 1e6)
    return seconds, max(sizes)


def measure(name: str, job: Compose, source: Path, target: Path) -> dict[str, float]:
    """Compose all photos one way; files per second after the first of each worker, and overhead per file."""
    setup = Setup(job, settings(), Folder(source), Folder(target))
    doing, workers = {
        "one process": (partial(work_here, setup), 1),
        "two processes": (partial(work_in_processes, setup, count=2), 2),
        "two actors of Ray": (partial(work_on_ray, setup, cluster=Cluster("local", 2)), 2),
    }[name]
    plan = make_plan(job, setup.source, setup.target, setup.opening.made_of())  # type: ignore[attr-defined]
    came: list[tuple[float, float, float, float]] = []  # when, the worker's seconds, CPU s of all workers, MB

    def watch(tally: Tally, line: Line) -> None:
        came.append((time.perf_counter(), line.seconds, *cpu_and_mb(workers == 1)))

    run(plan.tasks, doing, setup.target, None, Tally(len(plan.tasks)), watch)
    settled = 2 * workers  # files after which all sessions are open and warm
    first, last = came[settled - 1], came[-1]
    count, work_s = len(came) - settled, sum(row[1] for row in came[settled:])
    return {
        "files_per_s": count / (last[0] - first[0]),
        "worker_s_per_file": work_s / count,
        "cpu_s_per_file": (last[2] - first[2]) / count,
        "worker_mb": max(row[3] for row in came),
    }


def round_trips(folder: Path) -> dict[str, float]:
    """Milliseconds from one file to the next that no worker's seconds explain, median: of files that are not there, so
    that nothing but the way to a worker and back is left."""
    setup = Setup(Identify(), settings(), Folder(folder / "nowhere"), Folder(folder / "nothing"))
    tasks = [Task(Item(f"{number}.jpg", 1, "0"), f"{number}.npz", "x") for number in range(TRIPS)]
    found = {}
    for name, doing in (
        ("processes", partial(work_in_processes, setup, count=1)),
        ("ray", partial(work_on_ray, setup, cluster=Cluster("local", 1))),
    ):
        came = [(time.perf_counter(), line.seconds) for line in doing(iter(tasks))]
        gaps = [1e3 * (b[0] - a[0] - b[1]) for a, b in pairwise(came[20:])]
        found[name] = round(statistics.median(gaps), 3)
    return found


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
        trips = round_trips(folder)
        (folder / "in").mkdir()
        job = with_people(Compose((FACES / "identity-ada.jpg",)), settings())
        faces = sorted(FACES.glob("*.jpg"))
        for number in range(files):
            shutil.copy(faces[number % len(faces)], folder / "in" / f"{number:03d}.jpg")
        for turn in range(rounds):
            for name in ways:
                (folder / f"{name} {turn}").mkdir()
                figures[name].append(measure(name, job, folder / "in", folder / f"{name} {turn}"))
        lists = listing(folder)
    rows = {
        name: {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}
        for name, runs in figures.items()
    }
    one = rows["one process"]["files_per_s"]
    ratios = {name: round(row["files_per_s"] / one, 2) for name, row in rows.items()}
    cpu = {name: round(rows["one process"]["cpu_s_per_file"] / row["cpu_s_per_file"], 2) for name, row in rows.items()}
    record = {
        "machine": machine,
        "settings": {"files": files, "rounds": rounds, "threads": 1},
        "ways": rows,
        "times_one_process": ratios,
        "cpu_of_one_process": cpu,
        "overhead_ms": trips,
        "list": lists,
    }
    write_json(output, record)
    click.echo(json.dumps(record))


if __name__ == "__main__":
    main()
