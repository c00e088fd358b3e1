"""Is this checkout faster than an earlier commit, in how much less memory, and how soon is the first picture there?

    python benchmarks/against.py 9f22320 --clip talking.mp4 -o against.json

The earlier commit is installed without its dependencies (its build needs the package index) into an environment of its
own that sees this one's packages, so both run on the same libraries. Everything is measured in turns, old new new old,
and a ratio is the median over turns of the ratios within a turn. "cpu" is the processor time of the process, which
other work on the machine disturbs least; where a machine is not quiet, that column counts. A graph runs in a process of
its side; `fid-run webcam --headless` is started anew each time, and its processor time a frame is what a longer run
takes more than a shorter one. It runs from compiled modules, as an installed fid does, without looking closer at the
identity photo, and pastes a square, as commits did that knew no other way; what the default of today takes is measured
beside it.

The table is measured in parts, and each is kept as soon as it is there: a run that was stopped, or that `--minutes`
ended, goes on with what is missing, and the table is printed of all that there is. `--again` measures anew what other
code has measured; every part says at which commit and load it was.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np
from against_table import SIDES, Record, table
from engines import CPU_ENGINES, NotHereError, as_w_plus, noise, open_engine
from fid.runtime.engines.machine import physical_cores
from machine import ROOT, commit, machine_record
from peers import random_face
from records import QUICK_RESULTS, write_json
from startup import install_mb

ENGINES = (*CPU_ENGINES, "openvino-int8")
INSTEAD = {"openvino-int8": "openvino-bf16"}
"""What the old side runs on where it lacks an engine."""

GRAPHS = ("reenact", "synthesis-light", "synthesis-1024")
FACE = "identity-ada.jpg"
AS_BEFORE = ("--refine", "0", "--mask", "square")
SIDE = Path(__file__).with_name("against_side.py")
LIVE = """
try:
    from fid.runtime.commands.cli import main
except ImportError:  # before the folders
    from fid.runtime.cli import main
main()
"""


@dataclass(frozen=True)
class Plan:
    """What is compared, and how often."""

    pythons: Mapping[str, Path]
    sources: Mapping[str, Path]  # a checkout of each side
    clip: Path | None
    turns: int
    seconds: float  # of a live run
    threads: int


@contextmanager
def checked_out(name: str) -> Iterator[Path]:
    """A folder with the files of a commit, for as long as it is needed."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", name], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        yield Path(folder)


@contextmanager
def installed(source: Path) -> Iterator[Path]:
    """The Python of a fresh environment with fid of `source`, and for all else this environment's packages."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        (packages,) = Path(folder).glob("lib/python*/site-packages")
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


def in_turns(runs: Mapping[str, Callable[[], Record]], turns: int) -> Record:
    """Median ms of both sides in every turn, wall and processor time: the least of each, and the ratios. A side's run
    gives {"wall": [ms, ...], "cpu": [ms, ...]}."""
    times: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in SIDES} for clock in ("wall", "cpu")}
    for order in turns_of(turns):
        for name in order:
            answer = runs[name]()
            for clock in times:
                times[clock][name].append(float(np.median(answer[clock])))
    best = {f"{clock}_ms": {n: round(min(t), 2) for n, t in own.items()} for clock, own in times.items()}
    return best | {f"{clock}_ratio": ratio(own) for clock, own in times.items()}


def _engine(side: str, engine: str) -> str:
    return INSTEAD.get(engine, engine) if side == "old" else engine


def graph_times(plan: Plan, engine: str, graph: str) -> Record:
    """What `in_turns` says of a graph on an engine."""
    with ExitStack() as ends:
        sides = {name: Side(python) for name, python in plan.pythons.items()}
        for side in sides.values():
            ends.callback(side.close)
        opened = {name: s.ask({"open": [_engine(name, engine), graph, plan.threads]}) for name, s in sides.items()}
        reasons = {name: answer["reason"] for name, answer in opened.items() if "reason" in answer}
        if reasons:
            return {"missing": str(reasons)}
        row = in_turns({name: partial(side.ask, {"run": 3}) for name, side in sides.items()}, plan.turns)
        return row | {"provider": opened["new"]["provider"]}


def timed(run: Callable[[], object]) -> Record:
    """Three runs in this process, after one that does not count, as `against_side` times them."""
    answer: Record = {"wall": [], "cpu": []}
    run()
    for _ in range(3):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        answer["wall"].append(1e3 * (time.perf_counter() - wall))
        answer["cpu"].append(1e3 * (time.process_time() - cpu))
    return answer


def beside(plan: Plan, graph: str, other: Callable[[], Callable[[], object]]) -> Record:
    """What `in_turns` says of a graph on this checkout's quickest engine for it, with something else as the old
    side."""
    run = other()
    engine = "openvino-bf16"  # which is float32 on a CPU without bfloat16
    side = Side(plan.pythons["new"])
    try:
        opened = side.ask({"open": [engine, graph, plan.threads]})
        if "reason" in opened:
            return {"missing": opened["reason"]}
        runs = {"old": partial(timed, run), "new": partial(side.ask, {"run": 3})}
        return in_turns(runs, plan.turns) | {"provider": opened["provider"]}
    finally:
        side.close()


def beside_torch(plan: Plan, engine: str) -> Record:
    """Reenactment in PyTorch, eager or compiled, and here."""

    def other() -> Callable[[], object]:
        opened, arrays = open_engine(engine, "reenact", plan.threads), noise("reenact", 1)
        return lambda: opened.run(arrays)

    return beside(plan, "reenact", other)


def beside_random_face(plan: Plan) -> Record:
    """Random-face's generator of 1024 px on OpenVINO, and here."""

    def other() -> Callable[[], object]:
        infer = random_face(plan.threads)
        code = 0.3 * np.random.default_rng(0).standard_normal((1, 512)).astype(np.float32)
        assert as_w_plus(code, "synthesis-1024").shape == (1, 23, 512)  # the same form of code
        return lambda: infer(code)

    return beside(plan, "synthesis-1024", other)


def live_run(python: Path, engine: str, clip: Path, seconds: float, more: tuple[str, ...]) -> Record:
    """What one `fid-run webcam` reports, with `cpu_s`, the processor time of its process."""
    command: list[object] = [
        "webcam",
        "--identity",
        ROOT / "runtime" / "faces" / FACE,
        "--camera",
        clip,
        "--headless",
        "--json",
    ]
    command += ["--duration", seconds, "--engine", engine, "--require", engine, *more]
    compiled = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = os.times()
    done = subprocess.run(
        [python, "-c", LIVE, *map(str, command)], capture_output=True, text=True, cwd="/", env=compiled
    )
    after = os.times()
    if done.returncode:
        return {"missing": (done.stderr.strip().splitlines() or ["?"])[-1]}
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return json.loads(done.stdout.strip().splitlines()[-1]) | {"cpu_s": cpu}


def live(plan: Plan, engine: str, as_before: bool) -> Record:
    """The live command of both sides in turns: frames a second, their age, memory, the first frame, processor time;
    `as_before`: doing no more than the old side."""
    assert plan.clip is not None
    kinds = ("fps", "age_p99_ms", "resident_mb", "first_frame_s", "cpu_ms_a_frame")
    found: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in SIDES} for kind in kinds}
    for order in turns_of(max(2, plan.turns // 4)):
        for name in order:
            lengths = (0.4 * plan.seconds, plan.seconds)
            python, own = plan.pythons[name], _engine(name, engine)
            more = AS_BEFORE if as_before and name == "new" else ()
            short, long = (live_run(python, own, plan.clip, seconds, more) for seconds in lengths)
            for run in (short, long):
                if "missing" in run:
                    return {"missing": f"{name}: {run['missing']}"}
            frames = max(1, long["frames"] - short["frames"])
            cpu = 1e3 * (long["cpu_s"] - short["cpu_s"]) / frames
            first = min(short["first_frame_s"], long["first_frame_s"])
            row = (long["fps"], long["frame_age_ms"]["p99"], long["resident_mb"], first, cpu)
            for kind, value in zip(kinds, row, strict=True):
                found[kind][name].append(value)
    middle = {kind: {n: round(float(np.median(v)), 2) for n, v in own.items()} for kind, own in found.items()}
    return middle | {f"{kind}_ratio": ratio(own) for kind, own in found.items()}


def install(plan: Plan) -> Record:
    """MB on disk of a plain install of both sides."""
    return {"mb": {name: install_mb(source)["total"] for name, source in plan.sources.items()}}


def parts_of(clip: Path | None) -> dict[str, Callable[[Plan], Record]]:
    """All parts of the table, by name."""
    parts: dict[str, Callable[[Plan], Record]] = {
        f"{graph} {engine}": partial(graph_times, engine=engine, graph=graph) for graph in GRAPHS for engine in ENGINES
    }
    if clip:
        parts |= {f"live {engine}": partial(live, engine=engine, as_before=True) for engine in ENGINES}
        parts |= {f"default live {engine}": partial(live, engine=engine, as_before=False) for engine in ENGINES}
    parts |= {f"reenact beside {engine}": partial(beside_torch, engine=engine) for engine in ("torch", "torch-compile")}
    return parts | {"1024 px beside random-face": beside_random_face, "install": install}


@click.command(help=__doc__)
@click.argument("commit_name", metavar="COMMIT")
@click.option(
    "--clip", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A face that talks; else no live runs."
)
@click.option("--part", "wanted", multiple=True, help="Measure these parts alone, by the beginning of their names.")
@click.option("--again", is_flag=True, help="Measure what is there already anew.")
@click.option("--minutes", type=click.FloatRange(min=0.0), help="Begin no other part after so many.")
@click.option("--turns", type=click.IntRange(min=1), default=10, show_default=True, help="Of a graph; live a quarter.")
@click.option("--seconds", default=12.0, show_default=True, help="Of a live run.")
@click.option("--python", type=click.Path(exists=True, path_type=Path), help="One that has the earlier commit already.")
@click.option("--threads", type=click.IntRange(min=1), help="Default: one per physical core.")
@click.option("--quick", is_flag=True, help="Two turns, to see that it works; kept apart from the others.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Record of all there is, JSON.")
def main(
    commit_name: str,
    clip: Path | None,
    wanted: tuple[str, ...],
    again: bool,
    minutes: float | None,
    turns: int,
    seconds: float,
    python: Path | None,
    threads: int | None,
    quick: bool,
    output: Path | None,
) -> None:
    machine, code, begin = machine_record(), commit(), time.perf_counter()
    threads, turns = threads or physical_cores(), 2 if quick else turns
    kept = QUICK_RESULTS / f"against-{commit_name}{'-quick' if quick else ''}.json"
    figures: Record = json.loads(kept.read_text()) if kept.exists() else {}
    parts = parts_of(clip)
    chosen = [name for name in parts if not wanted or name.startswith(wanted)]
    missing = [name for name in chosen if again or name not in figures]
    with ExitStack() as ends:
        if missing:
            source = ends.enter_context(checked_out(commit_name))
            old = python or ends.enter_context(installed(source))
            pythons, sources = {"old": old, "new": Path(sys.executable)}, {"old": source, "new": ROOT}
            plan = Plan(pythons, sources, clip and clip.resolve(), turns, seconds, threads)
        for name in missing:
            if minutes is not None and time.perf_counter() - begin > 60 * minutes:
                break
            load = round(os.getloadavg()[0], 1)
            try:
                row = parts[name](plan)
            except (NotHereError, subprocess.CalledProcessError) as error:
                row = {"missing": str(error)}
            figures[name] = row | {"commit": code, "load_1min": load}
            click.echo(f"{name}: {json.dumps(figures[name])}", err=True)
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_json(kept, figures)
    click.echo("\n".join(table(figures)))
    older = [name for name in parts if figures.get(name, {}).get("commit", code) != code]
    left = [name for name in parts if name not in figures]
    for names, what in ((older, "measured at another commit"), (left, "not measured yet")):
        if names:
            click.echo(f"{what}: {', '.join(names)}")
    if output is not None:
        settings = {"threads": threads, "turns": turns, "seconds": seconds}
        run = {"benchmark": "against", "against": commit_name, "settings": settings, "not_measured": left}
        write_json(output, run | {"parts": figures, "machine": machine})


if __name__ == "__main__":
    main()
