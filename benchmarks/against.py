"""Is this checkout faster than an earlier commit, in how much less memory, and how soon is the first picture there?

    python benchmarks/against.py 9f22320 --clip talking.mp4

The earlier commit is installed without its dependencies (its build needs the package index) into an environment of its
own that sees this one's packages, so both run on the same libraries. Everything is measured in turns, old new new old,
and a ratio is the median over turns of the ratios within a turn. "cpu" is the processor time of the process, which
other work on the machine disturbs least; where a machine is not quiet, that column counts. A graph runs in a process of
its side; `fid-run webcam --headless` is started anew each time, and its processor time a frame is what a longer run
takes more than a shorter one.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
from engines import CPU_ENGINES, NotHereError, noise, open_engine
from fid.runtime.engines.machine import physical_cores
from machine import ROOT, machine_record
from records import QUICK_RESULTS, RESULTS, add_run
from startup import FIRST_PICTURE

GRAPHS = ("reenact", "synthesis-light", "synthesis-1024")
FACE = "identity-ada.jpg"
SIDE = Path(__file__).with_name("against_side.py")
SIDES = ("old", "new")
LIVE = """
try:
    from fid.runtime.commands.cli import main
except ImportError:  # before the folders
    from fid.runtime.cli import main
main()
"""
Record = dict[str, Any]


@contextmanager
def installed(commit: str) -> Iterator[Path]:
    """The Python of a fresh environment with fid of `commit`, and for all else this environment's packages."""
    with tempfile.TemporaryDirectory() as name:
        folder, source = Path(name) / "environment", Path(name) / "source"
        source.mkdir()
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
        subprocess.run(["tar", "-x", "-C", str(source)], input=archive, check=True)
        venv.create(folder, with_pip=True)
        python = folder / "bin" / "python"
        (packages,) = folder.glob("lib/python*/site-packages")
        seen = [path for path in sys.path if path.endswith("site-packages")]
        (packages / "more.pth").write_text("\n".join(dict.fromkeys([sysconfig.get_path("purelib"), *seen])) + "\n")
        install = [python, "-m", "pip", "install", "--quiet", "--no-deps", source]
        subprocess.run(install, check=True, stdout=sys.stderr)
        yield python


class Side:
    """A process that runs graphs with one of the two versions."""

    def __init__(self, python: Path) -> None:
        self._process = subprocess.Popen(
            [python, SIDE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tempfile.gettempdir()
        )

    def ask(self, order: Record) -> Record:
        """The answer to one order, see `against_side`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        with self._process:  # closes the pipes and waits
            self._process.stdin.close()


def turns_of(number: int) -> Iterator[tuple[str, str]]:
    """The order of the sides in each turn, so that neither always comes first."""
    for turn in range(number):
        yield SIDES if turn % 2 == 0 else (SIDES[1], SIDES[0])


def ratio(values: Mapping[str, list[float]]) -> float | None:
    """How many times less the new side takes: the median over turns; None where a side has nothing."""
    pairs = [old / new for old, new in zip(values["old"], values["new"], strict=True) if new > 0]
    return round(float(np.median(pairs)), 3) if pairs else None


def graph_times(sides: Mapping[str, Side], engine: str, graph: str, turns: int, threads: int) -> Record:
    """Median ms of a graph on an engine in every turn, wall and processor time, of both sides, and their ratios."""
    opened = {name: side.ask({"open": [engine, graph, threads]}) for name, side in sides.items()}
    reasons = {name: answer["reason"] for name, answer in opened.items() if "reason" in answer}
    if reasons:
        return {"missing": reasons}
    times: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in SIDES} for clock in ("wall", "cpu")}
    for order in turns_of(turns):
        for name in order:
            answer = sides[name].ask({"run": 3})
            for clock in times:
                times[clock][name].append(float(np.median(answer[clock])))
    best = {f"{clock}_ms": {n: round(min(t), 2) for n, t in own.items()} for clock, own in times.items()}
    return (
        best | {f"{clock}_ratio": ratio(own) for clock, own in times.items()} | {"provider": opened["new"]["provider"]}
    )


def live_run(python: Path, engine: str, clip: Path, seconds: float) -> Record:
    """What one `fid-run webcam` reports, with `cpu_s`, the processor time of its process."""
    command = ["webcam", "--identity", ROOT / "runtime" / "faces" / FACE, "--camera", clip, "--headless", "--json"]
    command += ["--duration", seconds, "--engine", engine, "--require", engine]
    before = os.times()
    done = subprocess.run([python, "-c", LIVE, *map(str, command)], capture_output=True, text=True, cwd="/")
    after = os.times()
    if done.returncode:
        return {"missing": (done.stderr.strip().splitlines() or ["?"])[-1]}
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return json.loads(done.stdout.strip().splitlines()[-1]) | {"cpu_s": cpu}


def live(pythons: Mapping[str, Path], engine: str, clip: Path, turns: int, seconds: float) -> Record:
    """The live command of both sides in turns: frames a second, their age, memory, the first frame, processor time."""
    kinds = ("fps", "age_p99_ms", "resident_mb", "first_frame_s", "cpu_ms_a_frame")
    found: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in SIDES} for kind in kinds}
    for order in turns_of(turns):
        for name in order:
            short, long = (live_run(pythons[name], engine, clip, part * seconds) for part in (0.3, 1.0))
            for run in (short, long):
                if "missing" in run:
                    return {"missing": {name: run["missing"]}}
            frames = max(1, long["frames"] - short["frames"])
            cpu = 1e3 * (long["cpu_s"] - short["cpu_s"]) / frames
            row = (long["fps"], long["frame_age_ms"]["p99"], long["resident_mb"], long["first_frame_s"], cpu)
            for kind, value in zip(kinds, row, strict=True):
                found[kind][name].append(value)
    middle = {kind: {n: round(float(np.median(v)), 2) for n, v in own.items()} for kind, own in found.items()}
    return middle | {f"{kind}_ratio": ratio(own) for kind, own in found.items()}


def first_pictures(pythons: Mapping[str, Path], turns: int) -> Record:
    """Seconds of a fresh process that composes one shipped face onto another, in turns; wall and processor time."""
    times: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in SIDES} for clock in ("wall", "cpu")}
    for order in [SIDES, *turns_of(turns)]:  # the first does not count: it fills caches
        for name in order:
            before, start = os.times(), time.perf_counter()
            subprocess.run([pythons[name], "-c", FIRST_PICTURE], check=True, stdout=subprocess.DEVNULL, cwd="/")
            after = os.times()
            times["wall"][name].append(time.perf_counter() - start)
            cpu = after.children_user + after.children_system - before.children_user - before.children_system
            times["cpu"][name].append(cpu)
    counted = {clock: {name: values[1:] for name, values in own.items()} for clock, own in times.items()}
    best = {f"{clock}_s": {n: round(min(v), 3) for n, v in own.items()} for clock, own in counted.items()}
    return best | {f"{clock}_ratio": ratio(own) for clock, own in counted.items()}


def torch_times(engine: str, runs: int, threads: int) -> Record:
    """Least ms of reenactment in PyTorch, eager or compiled; the wall's and the process's."""
    try:
        opened = open_engine(engine, "reenact", threads)
    except NotHereError as error:
        return {"missing": str(error)}
    arrays, times = noise("reenact", 1), []
    for _ in range(runs):
        wall, cpu = time.perf_counter(), time.process_time()
        opened.run(arrays)
        times.append((1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)))
    wall, cpu = np.array(times).min(axis=0)
    return {"wall_ms": round(float(wall), 2), "cpu_ms": round(float(cpu), 2)}


def best_of(rows: Mapping[str, Record], graph: str, clock: str, precision: str | None = None) -> float | None:
    """How many times less the best engine of the new side takes than the best of the old side."""
    own = [
        row[f"{clock}_ms"]
        for key, row in rows.items()
        if key.startswith(f"{graph} ") and "missing" not in row and (precision is None or precision in row["provider"])
    ]
    if not own:
        return None
    return round(min(row["old"] for row in own) / min(row["new"] for row in own), 3)


def table(figures: Record) -> Iterator[str]:
    """The lines that are printed: what, old, new, ratio by wall and by processor time."""
    yield f"{'':44}{'old':>10}{'new':>10}{'ratio':>8}{'cpu':>8}"

    def line(name: str, values: Mapping[str, float], wall: float | None, cpu: float | None = None) -> str:
        shown = [f"{wall:.2f}" if wall else "-", f"{cpu:.2f}" if cpu else "-"]
        return f"{name:44}{values['old']:10.1f}{values['new']:10.1f}{shown[0]:>8}{shown[1]:>8}"

    for key, row in figures["graphs"].items():
        if "missing" in row:
            yield f"{key:44}{row['missing']}"
        else:
            yield line(f"{key}, ms", row["wall_ms"], row["wall_ratio"], row["cpu_ratio"])
    for graph, best in figures["best"].items():
        yield f"{graph + ', best engine of each side':64}{best['wall'] or 0:8.2f}{best['cpu'] or 0:8.2f}"
    for engine, row in figures["live"].items():
        if "missing" in row:
            yield f"{engine:44}{row['missing']}"
            continue
        yield line(f"live on {engine}, frames a second", row["fps"], 1 / row["fps_ratio"], row["cpu_ms_a_frame_ratio"])
        yield line("  age p99, ms", row["age_p99_ms"], row["age_p99_ms_ratio"])
        yield line("  resident, MB", row["resident_mb"], row["resident_mb_ratio"])
        yield line("  first frame, s", row["first_frame_s"], row["first_frame_s_ratio"])
    yield line(
        "first picture, s",
        figures["first_picture"]["wall_s"],
        *(figures["first_picture"][f"{c}_ratio"] for c in ("wall", "cpu")),
    )
    for engine, row in figures["torch"].items():
        yield f"{engine:44}" + (row["missing"] if "missing" in row else f"{'':10}{row['wall_ms']:10.1f}")


@click.command(help=__doc__)
@click.argument("commit")
@click.option(
    "--clip", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A face that talks; else no live runs."
)
@click.option("--graphs", multiple=True, type=click.Choice(GRAPHS), help="May be repeated. Default: all.")
@click.option("--engines", multiple=True, type=click.Choice(CPU_ENGINES), help="May be repeated. Default: all.")
@click.option(
    "--turns",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Of a graph; a third, live, and at least 2.",
)
@click.option("--seconds", default=12.0, show_default=True, help="Of a live run.")
@click.option("--torch/--no-torch", default=True, show_default=True, help="PyTorch beside it.")
@click.option("--python", type=click.Path(exists=True, path_type=Path), help="One that has the earlier commit already.")
@click.option("--threads", type=click.IntRange(min=1), help="Default: one per physical core.")
@click.option("--quick", is_flag=True, help="Two turns, to see that it works; kept apart from the records.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="Default: benchmarks/results/.")
def main(
    commit: str,
    clip: Path | None,
    graphs: tuple[str, ...],
    engines: tuple[str, ...],
    turns: int,
    seconds: float,
    torch: bool,
    python: Path | None,
    threads: int | None,
    quick: bool,
    output: Path | None,
) -> None:
    machine, threads, turns = machine_record(), threads or physical_cores(), 2 if quick else turns
    figures: Record = {"graphs": {}, "best": {}, "live": {}, "torch": {}}
    with ExitStack() as ends:
        old = python or ends.enter_context(installed(commit))
        pythons = {"old": old, "new": Path(sys.executable)}
        sides = {name: Side(own) for name, own in pythons.items()}
        for side in sides.values():
            ends.callback(side.close)
        for graph in graphs or GRAPHS:
            for engine in engines or CPU_ENGINES:
                row = figures["graphs"][f"{graph} {engine}"] = graph_times(sides, engine, graph, turns, threads)
                click.echo(f"{graph} {engine}: {json.dumps(row)}", err=True)
            figures["best"][graph] = {clock: best_of(figures["graphs"], graph, clock) for clock in ("wall", "cpu")}
        for engine in (engines or CPU_ENGINES) if clip else ():
            row = figures["live"][engine] = live(pythons, engine, clip, max(2, turns // 3), seconds)
            click.echo(f"live {engine}: {json.dumps(row)}", err=True)
        figures["first_picture"] = first_pictures(pythons, max(1, turns // 2))
        for engine in ("torch", "torch-compile") if torch else ():
            figures["torch"][engine] = torch_times(engine, 3 * turns, threads)
    run = {"benchmark": "against", "quick": quick, "partial": bool(graphs or engines or not clip), "against": commit}
    run |= {"settings": {"threads": threads, "turns": turns, "seconds": seconds}, **figures}
    path = add_run(output or (QUICK_RESULTS if quick else RESULTS), run, machine)
    click.echo("\n".join(table(figures)))
    click.echo(f"record: {path.name}")


if __name__ == "__main__":
    main()
