"""Histograms, scatter plots and curves of an evaluation."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

COLOURS = ("#8a8f98", "#1f6fd6", "#d9730d", "#2f9e5f", "#8e44ad", "#c0392b")


def plot(title: str, svg: str) -> str:
    """Return a plot with its title beneath, in HTML."""
    return f"<figure>{svg}<figcaption>{html.escape(title)}</figcaption></figure>"


@dataclass(frozen=True)
class _Frame:
    """The axes of a plot: data coordinates to px."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: int = 520
    height: int = 240
    left: int = 48
    bottom: int = 26

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point of the data stands, px."""
        right, top = self.width - 10, 22
        return (
            self.left + (x - self.x[0]) / (self.x[1] - self.x[0]) * (right - self.left),
            self.height - self.bottom - (y - self.y[0]) / (self.y[1] - self.y[0]) * (self.height - self.bottom - top),
        )

    def svg(self, marks: str, names: Sequence[str], colours: Sequence[str]) -> str:
        """The plot: ticks, `marks`, and a legend."""
        parts = []
        for value in _ticks(*self.x):
            x, y = self.at(value, self.y[0])
            parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{value:g}</text>')
        for value in _ticks(*self.y):
            x, y = self.at(self.x[0], value)
            parts.append(f'<path d="M{x:.1f} {y:.1f}H{self.width - 10}" stroke="#e4e4e4"/>')
            parts.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
        legend, x = [], self.left
        for name, colour in zip(names, colours, strict=False):
            legend.append(f'<rect x="{x}" y="5" width="10" height="10" fill="{colour}"/>')
            legend.append(f'<text x="{x + 14}" y="14">{html.escape(name)}</text>')
            x += 26 + 6 * len(name)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}" font-family="sans-serif" font-size="11" fill="#444">'
            f"{''.join(parts)}{marks}{''.join(legend)}</svg>"
        )


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two."""
    raw = (high - low) / 5
    power = 10 ** np.floor(np.log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw)
    return [round(float(value), 10) + 0.0 for value in np.arange(np.ceil(low / step) * step, high + step / 1e6, step)]


def histogram(groups: Mapping[str, np.ndarray], bins: int = 30) -> str:
    """SVG of the distributions of several groups of values [N], as steps over shared bins."""
    every = np.concatenate(list(groups.values()))
    edges = np.linspace(every.min(), every.max() + 1e-9, bins + 1)
    shares = [np.histogram(values, edges)[0] / max(len(values), 1) for values in groups.values()]
    frame = _Frame((edges[0], edges[-1]), (0, max(share.max() for share in shares) * 1.05))
    marks, colours = "", (COLOURS[1], COLOURS[2], COLOURS[0])
    for share, colour in zip(shares, colours, strict=False):
        points = [(edges[0], 0.0)]
        for k, value in enumerate(share):
            points += [(edges[k], value), (edges[k + 1], value)]
        points.append((edges[-1], 0.0))
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (frame.at(*point) for point in points))
        marks += f'<polyline points="{path}" fill="{colour}" fill-opacity=".15" stroke="{colour}" stroke-width="1.5"/>'
    return frame.svg(marks, list(groups), colours)


def scatter(clouds: Mapping[str, np.ndarray], shown: int = 1000) -> str:
    """SVG of clouds of points [N, 2], the first at the back, in one scale."""
    every = np.concatenate(list(clouds.values()))
    low, high = every.min(axis=0) - 0.2, every.max(axis=0) + 0.2
    frame = _Frame((low[0], high[0]), (low[1], high[1]), width=640, height=480)
    marks = ""
    for points, colour in zip(clouds.values(), COLOURS, strict=False):
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2"/>' for x, y in (frame.at(*p) for p in points[:shown]))
        marks += f'<g fill="{colour}" fill-opacity=".55">{dots}</g>'
    return frame.svg(marks, list(clouds), COLOURS)


def lines(series: Mapping[str, Sequence[float]]) -> str:
    """SVG of series over the frames of a clip."""
    every = np.concatenate([np.asarray(values, float) for values in series.values()])
    low, high = float(every.min()), float(every.max())
    margin = max(0.05 * (high - low), 1e-6)
    last = max(1, *(len(values) - 1 for values in series.values()))
    frame = _Frame((0, last), (low - margin, high + margin))
    marks = ""
    for values, colour in zip(series.values(), COLOURS, strict=False):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (frame.at(i, v) for i, v in enumerate(values)))
        marks += f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
    return frame.svg(marks, list(series), COLOURS)


def clip_plots(clip: Mapping[str, Any]) -> list[str]:
    """Return plots of pose, mouth and identity over the frames of a clip, in HTML."""
    names = {"pitch": "Pitch, degrees", "yaw": "Yaw, degrees", "mouth": "Gap between the lips, px"}
    plots = []
    for column in clip["driving"]["series"]:
        if column == "roll":
            continue
        series = {"driving": clip["driving"]["series"][column]}
        series |= {name: part["series"][column] for name, part in clip["people"].items()}
        title = names.get(column, column.capitalize() if column != column.upper() else column)
        plots.append(plot(f"{title}, over the frames with a face", lines(series)))
    return plots
