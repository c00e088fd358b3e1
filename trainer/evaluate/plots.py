"""Histograms, scatter plots and curves of an evaluation, as SVG."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...runtime.errors import FidError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#8a8f98", "#1f6fd6", "#d9730d", "#2f9e5f", "#8e44ad", "#c0392b")


def check_matplotlib() -> None:
    """Raise FidError with the pip line where matplotlib is missing: before minutes of measuring, not after."""
    try:
        import matplotlib  # noqa: F401 - only looks whether it is there
    except ImportError as error:
        raise FidError("plots need matplotlib, which is not installed: `pip install 'fid-face[eval]'`.") from error


def svg(draw: Callable[["Axes"], None], width: float = 5.2, height: float = 3.0) -> str:
    """Return what `draw` puts on a pair of axes as an SVG element, of a size in inches of 72 px."""
    check_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=7, frameon=False)
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none"}):  # letters stay letters
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def histogram(groups: Mapping[str, np.ndarray], bins: int = 30) -> str:
    """Return the SVG of the distributions of several groups of values [N], as shares in shared bins."""
    edges = np.histogram_bin_edges(np.concatenate(list(groups.values())), bins)

    def draw(axes: "Axes") -> None:
        for (name, values), colour in zip(groups.items(), (COLOURS[1], COLOURS[2], COLOURS[0]), strict=False):
            share = np.histogram(values, edges)[0] / max(len(values), 1)
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.15)
            axes.stairs(share, edges, color=colour, label=name)
        axes.set_ylabel("share")

    return svg(draw)


def scatter(clouds: Mapping[str, np.ndarray], shown: int = 1000) -> str:
    """Return the SVG of clouds of points [N, 2], the first at the back, in one scale."""

    def draw(axes: "Axes") -> None:
        for (name, points), colour in zip(clouds.items(), COLOURS, strict=False):
            axes.plot(*points[:shown].T, ".", color=colour, alpha=0.55, markersize=3, label=name)
        axes.set_aspect("equal")

    return svg(draw, 6.4, 4.8)


def lines(series: Mapping[str, Sequence[float]]) -> str:
    """Return the SVG of series over the frames of a clip."""

    def draw(axes: "Axes") -> None:
        for (name, values), colour in zip(series.items(), COLOURS, strict=False):
            axes.plot(values, color=colour, label=name, marker="." if len(values) == 1 else None)
        axes.set_xlabel("frame")

    return svg(draw)


def clip_plots(clip: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (caption, SVG) of pose, mouth and identity over the frames of a clip."""
    names = {"pitch": "Pitch, degrees", "yaw": "Yaw, degrees", "mouth": "Gap between the lips, px"}
    plots = []
    for column in clip["driving"]["series"]:
        if column == "roll":
            continue
        series = {"driving": clip["driving"]["series"][column]}
        series |= {name: part["series"][column] for name, part in clip["people"].items()}
        title = names.get(column, column.capitalize() if column != column.upper() else column)
        plots.append((f"{title}, over the frames with a face", lines(series)))
    return plots
