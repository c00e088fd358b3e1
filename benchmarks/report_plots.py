"""What plots do the records of the benchmarks give? For `report.py`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fid.trainer.evaluate.plots import svg

ACCURACY = {"PSNR, dB": ("psnr_db", 100.0), "identity cosine": ("identity_cosine_mean", 1.0)}
"""Measures of a picture against PyTorch's in the plots -> key, and what stands for equal pictures."""


def plots(runs: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield (caption, SVG) of every plot of the last runs of one machine and commit."""
    if "latency" in runs:
        graphs = runs["latency"]["graphs"]
        for graph in ("reenact batch 1", "synthesis batch 1"):
            rows = {name: row for name, row in graphs.get(graph, {}).items() if "quantiles_ms" in row}
            if rows:
                yield f"Latency of {graph}: share of the runs that took no longer.", _svg(_distribution, rows)
                for measure in ACCURACY:
                    caption = f"{graph}: {measure} against speed. Right and up is better."
                    yield caption, _svg(_accuracy_speed, (measure, rows))
    if "scaling" in runs:
        by = runs["scaling"]["by"]  # all questions, or some
        for name in ("batch", "threads", "processes", "resolution"):
            if name in by:
                yield f"Pictures a second with {name}.", _svg(_scaling, (name, by[name]))
        if "clip_length" in by:
            yield "Memory along a clip.", _svg(_line, ("frames", "resident MB", "resident_mb", by["clip_length"]))
        if "faces" in by:
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
    """Return a plot as an SVG element."""
    return svg(lambda axes: draw(axes, data), height=3.6)


def _distribution(axes: Any, rows: Mapping[str, Any]) -> None:
    for name, row in rows.items():
        steps = len(row["quantiles_ms"]) - 1
        axes.plot(row["quantiles_ms"], [i / steps for i in range(steps + 1)], label=name)
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
            axes.scatter(x, y, s=[12 * n["ms"] for n in own], alpha=0.6)
            axes.plot([], [], ".", color=axes.collections[-1].get_facecolor(), label=group)  # one size in the legend
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="GFLOP/s")
