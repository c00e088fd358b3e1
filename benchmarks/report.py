"""What do all the measurements say? Markdown tables and one HTML page with plots, out of the records in results/.

python benchmarks/report.py                       tables.md and index.html in out/benchmarks/, of the newest record
python benchmarks/report.py --all                 measures everything first; the README says how long
python benchmarks/report.py --readme              writes the short table into the README as well
"""

import html
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from fid.trainer.evaluate.page import STYLE
from fid.trainer.evaluate.tables import Table
from machine import ROOT
from records import QUICK_RESULTS, RESULTS, last_runs, records

SCRIPTS = (  # in the order in which --all runs them
    ("latency",),
    ("roofline",),
    ("scaling",),
    ("peers", "--own-environment"),
    ("quality",),
)
README_BEFORE = "## How it works\n"
README_MARK = re.compile(
    r"((?:On .*; ratios are to PyTorch eager:\n\n)?<!-- speed: (benchmarks/results/[\w.-]+\.json) -->\n)(?:\|.*\n)+"
)
ACCURACY = {"PSNR, dB": ("psnr_db", 100.0), "identity cosine": ("identity_cosine_mean", 1.0)}
"""Measures of a picture against PyTorch's in the plots -> key, and what stands for equal pictures."""
NONE = "–"
Runs = Mapping[str, Mapping[str, Any]]


def tables(runs: Runs) -> Iterator[Table]:
    """All tables of the last runs of one machine and commit."""
    if "latency" in runs:
        yield from latency_tables(runs["latency"])
    if "quality" in runs:
        yield from quality_tables(runs["quality"])
    if "scaling" in runs:
        yield from scaling_tables(runs["scaling"])
    if "roofline" in runs:
        yield from roofline_tables(runs["roofline"])
    if "peers" in runs:
        yield from peers_tables(runs["peers"])
    if "gpu" in runs:
        yield from gpu_tables(runs["gpu"])


def latency_tables(run: Mapping[str, Any]) -> Iterator[Table]:
    """One table for each graph and batch, one for the whole frame, one for load and memory."""
    settings = run["settings"]
    note = f"{settings['threads']} threads; {settings['plan']}. Times are of a call, pictures a second at the median."
    for title, rows in run["graphs"].items():
        picture = any("psnr_db" in row.get("against_torch", {}) for row in rows.values())
        accuracy = ("max", "mean", "PSNR dB", "LPIPS", "identity cosine") if picture else ("max", "mean", "cosine")
        body = []
        for engine, row in _by_speed(rows):
            times = [_times(row), *(_number(row.get(key), 2) for key in ("p50_ms", "p95_ms", "p99_ms", "min_ms"))]
            body.append([engine, *times, _number(row.get("per_second"), 1), *_accuracy(row, picture)])
        unit = "grey levels" if picture else "share of the code's length"
        yield Table(
            f"{title[0].upper()}{title[1:]}",
            ("engine", "against torch", "p50 ms", "p95", "p99", "min", "a second", *accuracy),
            body,
            (
                note,
                f"Accuracy is against PyTorch in float32 with the same weights; max and mean in {unit}.",
                *_reasons(rows),
            ),
        )
    if run["frame"]:
        stages = next((row["stages_ms"] for row in run["frame"].values() if "stages_ms" in row), {})
        body = [
            [
                engine,
                _times(row),
                *(_number(row.get(key), 1) for key in ("p50_ms", "p95_ms", "p99_ms")),
                _number(row.get("per_second"), 1),
                *(_number(row.get("stages_ms", {}).get(s), 1) for s in stages),
            ]
            for engine, row in _by_speed(run["frame"])
        ]
        height, width = settings["frame_px"]
        yield Table(
            "Whole frame",
            ("engine", "against torch", "p50 ms", "p95", "p99", "a second", *stages),
            body,
            (
                f"{width} x {height} JPEG in and out, in memory. Only reenact changes its engine. Stages are medians.",
                *_reasons(run["frame"]),
            ),
        )
    body = [
        [f"{graph}, {engine}", *(_number(row.get(key), 2) for key in ("cold_start_s", "open_s")), *_memory(row)]
        for graph, rows in run["fresh_process"].items()
        for engine, row in rows.items()
    ]
    if body:
        yield Table(
            "Load and memory",
            ("", "cold start s", "open s", "peak RAM MB", "of it before opening", "peak VRAM MB"),
            body,
            ("A fresh process each: start to third output, opening and building alone, peak of the process.",),
        )


def quality_tables(run: Mapping[str, Any]) -> Iterator[Table]:
    """The paper's Table 1 and Table 2, by engine. Of dlib's codes, whose cosines are all near 1, what it accepts."""
    rows, again = [], []
    for engine, row in run["engines"].items():
        if "reason" in row:
            rows.append([engine, "does not run", *[""] * 8])
            continue
        sface, dlib = row["identity"]["SFace"], row["identity"].get("dlib")
        points = "dlib" if "dlib" in row["expression"] else "face mesh"
        difference, own = row["against_torch"], row["reconstruction"]
        rows.append(
            [engine, *(_number(sface[of]["cosine"]["mean"], 4) for of in ("output", "leak"))]
            + [_number(dlib and dlib["output"]["accept"], 3), _number(row["frechet_distance"]["output"], 4)]
            + [_number(row["expression"][points]["output"]["mean"], 4)]
            + [_number(row["pose"][points]["output"]["mean"], 3)]
            + [_number(difference[key], digits) for key, digits in (("psnr_db", 1), ("lpips", 5))]
            + [_number(difference["identity_cosine_min"], 5)]
        )
        again.append(
            [
                engine,
                *(_number(own[key]["mean"], digits) for key, digits in (("rmse", 3), ("psnr", 2), ("lpips", 4))),
                _number(own["identity"]["SFace"]["cosine"]["mean"], 4),
            ]
        )
    settings = run["settings"]
    pairs = f"{settings['pairs']} generated pairs, psi {settings['psi']}, the same for all"
    note = f"{pairs}; expression is a share of the crop."
    if "threads" in settings:
        note = f"{settings['threads']} threads; {note}"
    measures = ("SFace cosine", "SFace leak", "dlib accepts", "Fréchet distance", "expression", "pose deg")
    yield Table(
        "Table 1 by engine",
        ("engine", *measures, "PSNR to torch", "LPIPS", "identity min"),
        rows,
        (note, *_reasons(run["engines"])),
    )
    yield Table("Table 2 by engine", ("engine", "RMSE", "PSNR dB", "LPIPS", "SFace cosine"), again, (note,))


def scaling_tables(run: Mapping[str, Any]) -> Iterator[Table]:
    """One table for each thing that grows."""
    for name, engines in run["by"].items():
        if name in ("clip_length", "faces"):
            keys = ("resident_mb", "growth_mb", "ms_a_frame") if name == "clip_length" else ("found", "p50_ms")
            header = (name.replace("_", " "), *(key.replace("_", " ") for key in keys))
            body = [[size, *(_number(row.get(key), 1) for key in keys)] for size, row in engines.items()]
        else:
            header = (name, "engine", "p50 ms", "a second")
            body = [
                [size, engine, row.get("reason") or _number(row.get("p50_ms"), 2), _number(row.get("per_second"), 2)]
                for engine, rows in engines.items()
                for size, row in rows.items()
            ]
        yield Table(f"Scaling with {name.replace('_', ' ')}", header, body)


def roofline_tables(run: Mapping[str, Any]) -> Iterator[Table]:
    """The groups of every graph, its verdict, and the layers with most to gain."""
    roof = run["roof"]
    note = f"Roof: {roof['matrix_gflops']:.0f} GFLOP/s in matrix products, {roof['copy_gb_s']:.1f} GB/s in copies."
    verdicts = [figures["verdict"] for figures in run["graphs"].values() if "verdict" in figures]
    body = [
        [
            f"{graph}: {name}",
            *(_number(group[key], 2) for key in ("ms", "gflop", "mb", "floor_ms")),
            _percent(group["of_roof"]),
        ]
        for graph, figures in run["graphs"].items()
        for name, group in {"all": figures["total"], **figures["groups"]}.items()
    ]
    yield Table(
        "Roofline", ("graph and layers", "ms", "GFLOP", "MB", "floor ms", "of the roof"), body, (note, *verdicts)
    )
    body = [
        [graph, node.get("layer", node["name"]), node["output"], _number(node["ms"], 2), _number(node["floor_ms"], 2)]
        for graph, figures in run["graphs"].items()
        for node in figures["most_to_gain"]
    ]
    yield Table("Most to gain", ("graph", "layer", "output", "ms", "floor ms"), body, (note,))


def peers_tables(run: Mapping[str, Any]) -> Iterator[Table]:
    """What a user would take instead."""
    versions = ", ".join(f"{name} {version}" for name, version in run["settings"]["versions"].items() if version)
    for title, rows in run["peers"].items():
        if "reason" in rows or "p50_ms" in rows:
            rows = {title: rows}
        body, notes = [], [f"{name} ran {row['note']}" for name, row in rows.items() if "note" in row]
        for name, row in rows.items():
            difference = row.get("against_random_face") or row.get("against_opencv") or {}
            near = f"LPIPS {difference['lpips']}" if "lpips" in difference else _number(difference.get("cosine_min"), 5)
            times = [row.get("reason") or _number(row["p50_ms"], 2), _number(row.get("per_second"), 2)]
            body.append([name, *times, _ratio(row.get("speedup")), near])
        yield Table(
            f"Peers: {title}", ("", "p50 ms", "a second", "against the peer", "its output"), body, (versions, *notes)
        )


def gpu_tables(run: Mapping[str, Any]) -> Iterator[Table]:
    """What gpu.py measured: fid's sessions, the whole frame, PyTorch in its forms and precisions."""
    header = ("p50 ms", "p95", "p99", "a second", "ready s")
    tests = run["tests"].get("last_line") or run["tests"].get("reason", "did not run")
    sessions = {f"{graph}, {engine}": row for engine, rows in run["sessions"].items() for graph, row in rows.items()}
    yield Table(
        "GPU: sessions",
        ("graph and engine", *header, "provider"),
        [[name, *_gpu_times(row), row.get("provider", "does not run")] for name, row in sessions.items()],
        (
            "Host memory to host memory, batch 1.",
            f"tests/gpu: {tests}",
            *(f"{name}: {row['fallback']}" for name, row in sessions.items() if row.get("fallback")),
            *_reasons(sessions),
        ),
    )
    if run["frame"]:
        body = [
            [name, *_gpu_times(row)[:4], *(_number(ms, 1) for ms in row.get("stages_ms", {}).values())]
            for name, row in run["frame"].items()
        ]
        stages = [stage for row in run["frame"].values() for stage in row.get("stages_ms", {})]
        yield Table("GPU: whole frame", ("session", *header[:4], *stages), body, _reasons(run["frame"]))
    forms = {
        f"{graph}, {batch}, {form}, {precision}": row
        for graph, batches in run["torch"].items()
        for batch, found in batches.items()
        for form, precisions in found.items()
        for precision, row in precisions.items()
    }
    yield Table(
        "GPU: PyTorch",
        ("graph and form", *header, "PSNR to FP32", "peak VRAM MB"),
        [
            [name, *_gpu_times(row), _number(row.get("psnr_db"), 1), _number(row.get("peak_vram_mb"), 0)]
            for name, row in _by_speed(forms)
            if "reason" not in row
        ],
        [f"Weights: {', '.join(f'{side} px {origin}' for side, origin in run['weights'].items())}", *_reasons(forms)],
    )


def _gpu_times(row: Mapping[str, Any]) -> list[str]:
    per_second = row.get("per_second", 1e3 / row["p50_ms"] if row.get("p50_ms") else None)
    times = [_number(row.get(key), 2) for key in ("p50_ms", "p95_ms", "p99_ms")]
    return [*times, _number(per_second, 1), _number(row.get("ready_s"), 2)]


def short_table(record: Mapping[str, Any]) -> str:
    """The README's table, in Markdown, out of one record: reenactment and the whole frame by engine."""
    run = last_runs(record)["latency"]
    lines = ["| engine | reenact | whole frame | identity cosine, PSNR to torch |", "|---|---|---|---|"]
    for engine, row in _by_speed(run["graphs"]["reenact batch 1"]):
        if "reason" in row:
            continue
        near, frame = row["against_torch"], run["frame"].get(engine, {})
        psnr = "equal" if near["psnr_db"] is None else f"{near['psnr_db']:.1f} dB"
        reenact = f"{row['p50_ms']:.1f} ms, {row['speedup']:.2f}x"
        whole = f"{frame['p50_ms']:.1f} ms, {frame['speedup']:.2f}x" if "p50_ms" in frame else NONE
        lines.append(f"| {engine} | {reenact} | {whole} | {near['identity_cosine_min']:.4f}, {psnr} |")
    return "\n".join(lines) + "\n"


def write_readme(record: Path, readme: Path = ROOT / "README.md") -> None:
    """Put the short table of a record, and its machine, in the place of the README's, or before `README_BEFORE`."""
    text, content = readme.read_text(), json.loads(record.read_text())
    if last_runs(content).get("latency", {"partial": True}).get("partial"):
        raise click.UsageError(f"{record.name} has no full run of latency.py, which the README's table is made of.")
    table = f"{machine_line(content)}\n\n<!-- speed: benchmarks/results/{record.name} -->\n{short_table(content)}"
    if README_MARK.search(text):
        readme.write_text(README_MARK.sub(lambda _: table, text))
    elif README_BEFORE in text:
        readme.write_text(text.replace(README_BEFORE, f"{table}\n{README_BEFORE}", 1))
    else:
        raise click.UsageError(f"{readme.name} has neither the mark of the table nor the heading before which it goes.")


def machine_line(record: Mapping[str, Any]) -> str:
    """The sentence before the README's table: on what it was measured."""
    machine = record["machine"]
    features = ", ".join(name.upper().replace("_", "-") for name in machine["cpu_features"])
    cpu = f"{machine['cpu']}, {machine['cpus']} CPUs{f' with {features}' if features else ''}"
    return f"On {cpu}, at 256 px, batch 1; ratios are to PyTorch eager:"


def markdown(record: Mapping[str, Any]) -> str:
    """All tables in Markdown."""
    intro = "# Benchmarks\n\n" + "".join(f"- {line}\n" for line in setting(record))
    return "\n".join([intro, *(table.markdown() for table in tables(last_runs(record)))])


def page(record: Mapping[str, Any]) -> str:
    """One HTML page that needs no other file."""
    runs = last_runs(record)
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in setting(record))
    plots = [f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>" for caption, svg in _plots(runs)]
    body = "\n".join(table.html() for table in tables(runs))
    return (
        f"<!doctype html><meta charset=utf-8><title>fid: benchmarks</title><style>{STYLE}"
        "figure svg{max-width:100%;height:auto}</style>\n"
        f"<h1>Benchmarks</h1><ul class=notes>{lines}</ul>\n<div class=plots>{''.join(plots)}</div>\n{body}\n"
    )


def setting(record: Mapping[str, Any]) -> list[str]:
    """Machine, versions, bundle."""
    machine, bundle = record["machine"], record["bundle"]
    device = f"{machine['cpu']}, {machine['cpus']} CPUs, {', '.join(machine['cpu_features'])}"
    loads = ", ".join(f"{run['benchmark']} {run['load_1min']}" for run in record["runs"])
    lines = [
        f"{device}{', ' + machine['gpu'] if machine['gpu'] else ''}; commit {machine['commit']}, {machine['date']}",
        f"bundle {bundle['name']} {bundle['version']}, {bundle['precision']}, {bundle['sha256']}",
        ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
        f"load of the machine when each began: {loads}",
    ]
    for name, run in last_runs(record).items():
        if "machine" in run:
            apart = {**run["machine"], **run["machine"].get("versions", {})}
            told = ", ".join(f"{key} {value}" for key, value in apart.items() if not isinstance(value, dict))
            lines.append(f"otherwise when {name} ran: {told}")
    if any(run.get("quick") for run in record["runs"]):
        lines.append("A trial with few runs: its figures say nothing.")
    return lines


def _plots(runs: Runs) -> Iterator[tuple[str, str]]:
    """(caption, SVG)."""
    if "latency" in runs:
        graphs = runs["latency"]["graphs"]
        for graph in ("reenact batch 1", "synthesis batch 1"):
            rows = {name: row for name, row in graphs.get(graph, {}).items() if "ms" in row}
            if rows:
                yield f"Latency of {graph}: share of the runs that took no longer.", _svg(_distribution, rows)
                for measure in ACCURACY:
                    caption = f"{graph}: {measure} against speed. Right and up is better."
                    yield caption, _svg(_accuracy_speed, (measure, rows))
    if "scaling" in runs:
        for name in ("batch", "threads", "processes", "resolution"):
            yield f"Pictures a second with {name}.", _svg(_scaling, (name, runs["scaling"]["by"][name]))
        by = runs["scaling"]["by"]
        yield "Memory along a clip.", _svg(_line, ("frames", "resident MB", "resident_mb", by["clip_length"]))
        yield "Time of a frame with faces.", _svg(_line, ("faces", "ms a frame", "p50_ms", by["faces"]))
    if "roofline" in runs:
        for graph in ("reenact", "synthesis-1024"):
            figures = runs["roofline"]["graphs"].get(graph)
            if figures:
                yield (
                    f"{graph} under ONNX Runtime: every node against the roof; the area of a dot is its time.",
                    _svg(_roofline, (figures["nodes"], runs["roofline"]["roof"])),
                )


def _svg(draw: Callable[[Any, Any], None], data: Any) -> str:
    """A plot as an SVG element."""
    try:
        import matplotlib
    except ImportError as error:
        raise click.ClickException("matplotlib is not installed: `pip install 'fid-face[bench]'`.") from error
    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.2, 3.6), layout="constrained")
    draw(axes, data)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        legend = axes.legend(fontsize=7, frameon=False)
        for handle in legend.legend_handles:
            if hasattr(handle, "set_sizes"):
                handle.set_sizes([20])
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def _distribution(axes: Any, rows: Mapping[str, Any]) -> None:
    for name, row in rows.items():
        count = len(row["ms"])
        axes.step(row["ms"], [(i + 1) / count for i in range(count)], where="post", label=name)
    axes.set(xscale="log", xlabel="ms", ylabel="share of runs", ylim=(0, 1.02))


def _accuracy_speed(axes: Any, data: tuple[str, Mapping[str, Any]]) -> None:
    measure, rows = data
    key, equal = ACCURACY[measure]
    for name, row in rows.items():
        if "against_torch" in row:
            found = row["against_torch"].get(key)
            value = equal if found is None else min(found, equal)
            axes.scatter(row["speedup"], value, s=24)
            axes.annotate(name, (row["speedup"], value), xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.margins(0.2)
    axes.set(xlabel="times as fast as torch", ylabel=f"{measure} to torch (equal: {equal:g})")


def _scaling(axes: Any, data: tuple[str, Mapping[str, Any]]) -> None:
    name, engines = data
    for engine, rows in engines.items():
        points = [(int(size), row["per_second"]) for size, row in rows.items() if "per_second" in row]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=engine)
    axes.set(xlabel=name, ylabel="pictures a second", ylim=(0, None))


def _line(axes: Any, data: tuple[str, str, str, Mapping[str, Any]]) -> None:
    xlabel, ylabel, key, rows = data
    points = [(int(size), row[key]) for size, row in rows.items() if key in row]
    axes.plot(*zip(*points, strict=True), marker="o", markersize=4)
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, None))


def _roofline(axes: Any, data: tuple[Sequence[Mapping[str, Any]], Mapping[str, float]]) -> None:
    nodes, roof = data
    intensity = [0.01, roof["matrix_gflops"] / roof["copy_gb_s"], 1000]
    axes.plot(intensity, [min(x * roof["copy_gb_s"], roof["matrix_gflops"]) for x in intensity], color="#444")
    for group in dict.fromkeys(node["group"] for node in nodes):
        own = [n for n in nodes if n["group"] == group and n["gflop"] > 0 and n["mb"] > 0 and n["ms"] > 0]
        if own:
            x, y = [1e3 * n["gflop"] / n["mb"] for n in own], [1e3 * n["gflop"] / n["ms"] for n in own]
            axes.scatter(x, y, s=[12 * n["ms"] for n in own], alpha=0.6, label=group)
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="GFLOP/s")


def _by_speed(rows: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Engines that run, the fastest first, then those that do not."""
    return sorted(rows.items(), key=lambda item: item[1].get("p50_ms", float("inf")))


def _times(row: Mapping[str, Any]) -> str:
    return "does not run" if "reason" in row else _ratio(row.get("speedup"))


def _reasons(rows: Mapping[str, Any]) -> list[str]:
    """One note for each engine that does not run here."""
    return [f"{name} does not run here: {row['reason']}" for name, row in rows.items() if "reason" in row]


def _accuracy(row: Mapping[str, Any], picture: bool) -> list[str]:
    found = row.get("against_torch")
    if found is None:
        return [""] * (5 if picture else 3)
    parts = [f"{found['max']:.3g}", f"{found['mean']:.3g}"]
    if not picture:
        return [*parts, _number(found["cosine_min"], 6)]
    psnr = "equal" if found["psnr_db"] is None else f"{found['psnr_db']:.1f}"
    return [*parts, psnr, f"{found['lpips']:.2g}", _number(found["identity_cosine_min"], 5)]


def _memory(row: Mapping[str, Any]) -> list[str]:
    return [_number(row.get(key), 0) for key in ("peak_ram_mb", "peak_ram_before_mb", "peak_vram_mb")]


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def measure_all(quick: bool, output: Path) -> None:
    """Run every script, one after the other; stops at the first that fails."""
    for script, *options in SCRIPTS:
        start = time.perf_counter()
        click.echo(f"== {script}", err=True)
        words = [sys.executable, str(Path(__file__).with_name(f"{script}.py")), "-o", str(output)]
        options = [option for option in options if not quick]
        done = subprocess.run([*words, *options, *(["--quick"] if quick else [])])
        if done.returncode:
            raise click.ClickException(f"{script}.py ended with {done.returncode}.")
        click.echo(f"   {time.perf_counter() - start:.0f} s", err=True)


@click.command(help=__doc__)
@click.option("--all", "everything", is_flag=True, help="Measure everything first.")
@click.option("--quick", is_flag=True, help="With --all: few runs, to see that it works; kept apart from the records.")
@click.option("--record", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Default: the newest one.")
@click.option("--readme", is_flag=True, help="Write the short table into the README.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), default=QUICK_RESULTS)
def main(everything: bool, quick: bool, record: Path | None, readme: bool, output: Path) -> None:
    folder = QUICK_RESULTS if quick else RESULTS
    if everything:
        measure_all(quick, folder)
    if record is None:
        found = [path for path, _ in records(folder)]
        if not found:
            raise click.UsageError(f"{folder} holds no record; measure first, with --all.")
        record = found[-1]
    content = json.loads(record.read_text())
    output.mkdir(parents=True, exist_ok=True)
    (output / "tables.md").write_text(markdown(content))
    (output / "index.html").write_text(page(content))
    if readme:
        write_readme(record)
    click.echo(f"{output / 'index.html'}, from {record.name}")


if __name__ == "__main__":
    main()
