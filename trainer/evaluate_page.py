"""Writes an evaluation down: Markdown tables, and one HTML page that holds its pictures and plots.

The figures of the paper and of those it compares itself with are quoted from Nitzan et al. 2020; what differs stands
beneath every table.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..runtime.errors import FidError
from .checkpoint import write_json
from .evaluate import AXES, Report

PAPER = "Nitzan et al. 2020"
COLOURS = ("#8a8f98", "#1f6fd6", "#d9730d", "#2f9e5f", "#8e44ad", "#c0392b")
CAPTIONS = {
    "Generated people": "Identity from the top row, everything else from the left column (the paper's Fig. 4).",
    "Generated pairs": "Identity image, attribute image, output. From the left: the three pairs whose identity is kept "
    "worst, the three in the middle, the three best.",
    "Reconstruction of generated faces": "The image, and what comes out when it gives identity and attributes.",
    "Ablations": "Identity image, attribute image, ours, then the ablations in the order of the table (Fig. 10).",
    "Photographs": "Identity from the top row, everything else from the left column (Fig. 5).",
    "Pairs of photographs": "Identity photo, attribute photo, output: worst, middle and best by identity, as above.",
    "Personalised people": "From above: the photo, an attribute photo, straight from the mapper, personalised, and the "
    "photo inverted, which is the ceiling.",
    "Reconstruction of photographs": "The photo, and what comes out when it gives identity and attributes (Fig. 8).",
}
CLIP_CAPTION = "Above: frames of the driving clip. Below: each identity, and its outputs, frame by frame (Fig. 13)."


@dataclass(frozen=True)
class Table:
    """A table, its cells ready to print."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        """The table in Markdown, with its notes as a list."""
        lines = [f"## {self.title}", "", _line(self.header), _line(["---"] * len(self.header))]
        lines += [_line(row) for row in self.rows]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)]).rstrip() + "\n"

    def html(self) -> str:
        """The table in HTML."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.header)
        body = "".join(
            f"<tr{' class=quoted' if row[0].startswith('*') else ''}>"
            + "".join(f"<td>{html.escape(cell.strip('*'))}</td>" for cell in row)
            + "</tr>"
            for row in self.rows
        )
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return (
            f"<h2>{html.escape(self.title)}</h2><div class=wide><table><tr>{head}</tr>{body}</table></div>"
            f"<ul class=notes>{notes}</ul>"
        )


def tables(figures: Mapping[str, Any]) -> list[Table]:
    """All tables of an evaluation's figures, as in the JSON file."""
    found = [_table_1(figures), _identity(figures), _attributes(figures), _table_2(figures)]
    if "refined" in figures:
        found.append(_refined(figures["refined"]))
    if "ablations" in figures:
        found.append(_table_3(figures))
    found.append(_w_space(figures))
    if "clips" in figures:
        found.append(_clips(figures))
    return found


def markdown(figures: Mapping[str, Any]) -> str:
    """The tables in Markdown."""
    intro = f"# Evaluation of {figures['evaluated']}\n\n" + "".join(f"- {line}\n" for line in _setting(figures))
    return "\n".join([intro, *(table.markdown() for table in tables(figures))])


def write_page(folder: Path, report: Report) -> Path:
    """Writes index.html (which needs no other file), tables.md and evaluate.json; returns the page's path."""
    figures = report.figures
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "evaluate.json", figures)
        (folder / "tables.md").write_text(markdown(figures))
        (folder / "index.html").write_text(page(report))
    except OSError as error:
        raise FidError(f"the page could not be written to {folder}: {error.strerror or error}.") from error
    return folder / "index.html"


def page(report: Report) -> str:
    """The page: tables, plots, pictures."""
    figures = report.figures
    title = f"Evaluation of {figures['evaluated']}"
    setting = "".join(f"<li>{html.escape(line)}</li>" for line in _setting(figures))
    parts = [f"<h1>{html.escape(title)}</h1><ul class=notes>{setting}</ul>"]
    by_title = {table.title.partition(":")[0]: table for table in tables(figures)}

    def add(*names: str) -> None:
        parts.extend(by_title[name].html() for name in names if name in by_title)

    def show(*titles: str) -> None:
        parts.extend(
            _figure(t, CAPTIONS.get(t, CLIP_CAPTION), report.pictures[t]) for t in titles if t in report.pictures
        )

    add("Table 1")
    show("Generated people", "Generated pairs", "Photographs", "Pairs of photographs")
    add("Identity")
    histograms = [_plot(title, histogram(groups)) for title, groups in report.identity.items()]
    parts.append(f"<div class=plots>{''.join(histograms)}</div>")
    add("Attributes", "Table 2")
    show("Reconstruction of generated faces", "Reconstruction of photographs")
    add("Personalised people")
    show("Personalised people")
    add("Table 3")
    show("Ablations")
    add("Fig. 9")
    parts.append(f"<div class=plots>{_plot('w on the two widest axes of the generator', scatter(report.clouds))}</div>")
    add("Figs 13 and 15")
    for name, clip in figures.get("clips", {}).items():
        show(f"Clip {name}")
        parts.append(f"<div class=plots>{''.join(_clip_plots(clip))}</div>")
    body = "\n".join(parts)
    return f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>\n{body}\n"


STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1120px;margin:2em auto;padding:0 1em;color:#222;background:#fff}
h1{font-size:1.6em}h2{font-size:1.2em;margin:2em 0 .5em}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9em}
td,th{padding:.25em .7em;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}
td:first-child,th:first-child{text-align:left}.quoted{color:#777}
.wide{overflow-x:auto}.notes{color:#555;font-size:.88em}
figure{margin:1.5em 0}figure img{max-width:100%;height:auto}figcaption{color:#555;font-size:.88em}
.plots{display:flex;flex-wrap:wrap;gap:1em}.plots figure{margin:.5em 0}
"""


def _setting(figures: Mapping[str, Any]) -> list[str]:
    """What was measured on what."""
    config, judges = figures["configuration"], figures["judges"]
    lines = [
        f"Generated pairs: {config['pairs']}, psi {config['psi']}, seed {config['seed']}, {figures['resolution']} px, "
        f"generator: {figures['generator']}. Pictures are judged as 8-bit crops of 256 px.",
    ]
    if "photos" in figures:
        photos = figures["photos"]
        skipped = f", {len(photos['skipped'])} photos skipped" if photos["skipped"] else ""
        lines.append(
            f"Photographs: {photos['photos']} of {photos['people']} people, {photos['pairs']} pairs of different "
            f"people{skipped}."
        )
    lines.append(
        "SFace and the face mesh were part of training, so they flatter; dlib's networks were not. dlib's cosines are "
        "high for anybody: its measure is the distance, and 0.6 or less counts as one person."
    )
    lines += [f"Not measured: {name} ({how})." for name, how in judges["not_measured"].items()]
    return lines


def _settings(figures: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    found = [("generated pairs", figures["generated"])]
    return [*found, ("photographs", figures["photos"])] if "photos" in figures else found


def _best(measured: Mapping[str, Any]) -> str:
    """The judge among those that measured who knows least of training."""
    return next(name for name in ("ArcFace", "dlib", "SFace", "face mesh") if name in measured)


def _cosine_judge(measured: Mapping[str, Any]) -> str:
    return "ArcFace" if "ArcFace" in measured else "SFace"


def _table_1(figures: Mapping[str, Any]) -> Table:
    quoted = [
        ["*LORD (quoted)*", "23.08", "0.20 ± 0.11", "0.085 ± 0.018", "13.34 ± 15.00"],
        ["*FSGAN (quoted)*", "8.90", "0.35 ± 0.19", "0.013 ± 0.013", "6.73 ± 13.62"],
        [f"*{PAPER} (quoted)*", "4.28", "0.60 ± 0.09", "0.017 ± 0.019", "9.74 ± 13.16"],
    ]
    rows, notes = [], []
    for name, part in _settings(figures):
        judge, points, pose = _cosine_judge(part["identity"]), _best(part["expression"]), _best(part["pose"])
        distance = part["frechet_distance"]
        rows.append(
            [
                f"fid, {name}",
                _significant(distance["output"]),
                _spread(part["identity"][judge]["output"]["cosine"], 2),
                _spread(part["expression"][points]["output"], 3),
                _spread(part["pose"][pose]["output"], 2),
            ]
        )
        notes.append(
            f"fid, {name}: cosine by {judge}; points by {points}; angles from {POSE_BY[pose]}; Frechet distance of "
            f"{distance['n']} face crops, floor between two sets of that many inputs {_significant(distance['floor'])}."
        )
    notes += [
        "Quoted rows: 10,000 pairs of FFHQ photographs, ArcFace, dlib's points, Inception features (FID), StyleGAN at "
        "256 px. Ours are other images and, where named, other networks: compare the orders of magnitude only.",
        f"Our features: {figures['judges']['features']}. The two scales of Frechet distances have nothing in common; "
        "ours depends on the number of crops.",
    ]
    return Table(
        "Table 1: identity, expression, pose",
        ["method", "Frechet distance ↓", "identity ↑", "expression ↓", "pose, degrees ↓"],
        [*quoted, *rows],
        notes,
    )


POSE_BY = {"dlib": "dlib's points by solvePnP", "face mesh": "a rigid fit of the face mesh"}


def _identity(figures: Mapping[str, Any]) -> Table:
    rows = []
    for name, part in _settings(figures):
        same = figures["photos"].get("same_person", {}) if name == "photographs" else {}
        for judge in part["identity"]:
            kinds = {**part["identity"][judge], **({"same": same[judge]} if judge in same else {})}
            for measure in ("cosine", "distance", "accept"):
                if measure in kinds["output"]:
                    cells = [_value(kinds.get(kind), measure) for kind in ("output", "leak", "random", "same")]
                    unit = {"cosine": "cosine ↑", "distance": "distance ↓", "accept": "one person at 0.6, share"}
                    rows.append([f"{name}, {judge} {unit[measure]}", *cells])
        if "dlib" in figures["judges"]["not_measured"]:
            missing = figures["judges"]["not_measured"]["dlib"]
            rows.append([f"{name}, dlib", f"not measured: {missing}", "", "", ""])
    return Table(
        "Identity: output against its two inputs",
        ["pairs, judge", "identity image", "attribute image (leak)", "two random people", "same person, two photos"],
        rows,
        [
            "The first column should be near the last, the second near the third.",
            "SFace is the network that training used; dlib's and ArcFace's never took part.",
        ],
    )


def _attributes(figures: Mapping[str, Any]) -> Table:
    rows = []
    for name, part in _settings(figures):
        for network in part["expression"]:
            points, pose = part["expression"][network], part["pose"][network]
            rows.append(
                [
                    f"{name}, {network}",
                    _spread(points["output"], 4),
                    _spread(points["random"], 4),
                    f"{points['output']['mean'] / points['random']['mean']:.2f}",
                    _spread(pose["output"], 1),
                    _spread(pose["random"], 1),
                    *(_number(pose[axis], 2) for axis in AXES[:2]),
                ]
            )
    return Table(
        "Attributes: output against attribute image",
        [
            *("pairs, judge", "points, share of side ↓", "random pair", "ratio ↓", "pose, degrees ↓", "random pair"),
            *("pitch corr. ↑", "yaw corr. ↑"),
        ],
        rows,
        [
            "dlib: 68 points; face mesh: those of the inner face. Mean distance of the points, divided by 256 px.",
            "Pose: Euclidean distance of (pitch, yaw, roll); by dlib from 13 points by solvePnP, by the face mesh "
            "from a rigid fit of 27 points in 3-D. Roll is taken out by the alignment.",
        ],
    )


def _table_2(figures: Mapping[str, Any]) -> Table:
    quoted = [
        ["*ALAE (quoted)*", "0.192", "14.90", "", "0.300", "", "0.014", "6.92"],
        ["*pSp (quoted)*", "0.095", "21.00", "", "0.821", "", "0.008", "4.53"],
        [f"*{PAPER} (quoted)*", "0.202", "14.16", "", "0.600", "", "0.013", "6.94"],
    ]
    rows = []
    for name, part in _settings(figures):
        r = part["reconstruction"]
        judge, points, pose = _cosine_judge(r["identity"]), _best(r["expression"]), _best(r["pose"])
        accept = f"{r['identity']['dlib']['accept']:.2f}" if "dlib" in r["identity"] else "not measured"
        rows.append(
            [
                f"fid, {'generated faces' if name.startswith('gen') else name} ({r['n']})",
                _spread(r["rmse"], 3),
                _spread(r["psnr"], 2),
                _spread(r["lpips"], 3),
                f"{_spread(r['identity'][judge]['cosine'], 3)} ({judge})",
                accept,
                f"{_spread(r['expression'][points], 3)} ({points})",
                f"{_spread(r['pose'][pose], 2)} ({pose})",
            ]
        )
    return Table(
        "Table 2: reconstruction, the same image gives identity and attributes",
        [
            *("method", "RMSE ↓", "PSNR, dB ↑", "LPIPS ↓", "identity ↑", "one person by dlib ↑", "expression ↓"),
            "pose, degrees ↓",
        ],
        [*quoted, *rows],
        [
            "Quoted rows: 5,000 photographs of CelebA-HQ, methods trained on FFHQ, ArcFace, dlib's points.",
            "RMSE of the whole aligned crop, pixels in 0..1; LPIPS v0.1 with AlexNet, which the paper does not give.",
        ],
    )


def _refined(refined: Mapping[str, Any]) -> Table:
    rows = []
    kinds = {
        "straight": f"straight from the mapper ({refined['pairs']} pairs)",
        "personalised": f"personalised ({refined['pairs']} pairs)",
        "ceiling": f"photo inverted ({len(refined['people'])} photos)",
    }
    for kind, name in kinds.items():
        part, pairs = refined[kind], kind != "ceiling"
        identity = {judge: values["output"] if pairs else values for judge, values in part["identity"].items()}
        points, pose = part["expression"][_best(part["expression"])], part["pose"][_best(part["pose"])]
        dlib = identity.get("dlib")
        judge = _cosine_judge(identity)
        rows.append(
            [
                name,
                _spread(identity[judge]["cosine"], 2),
                _spread(part["identity"][judge]["leak"]["cosine"], 2) if pairs else "",
                *((_spread(dlib["distance"], 2), f"{dlib['accept']:.2f}") if dlib else ("not measured", "")),
                _spread(points["output"] if pairs else points, 3),
                _spread(pose["output"] if pairs else pose, 2),
            ]
        )
    return Table(
        "Personalised people: photographs straight from the mapper, personalised, and inverted",
        [
            *("method", "identity ↑", "leak ↓", "distance by dlib ↓", "one person by dlib ↑", "expression ↓"),
            "pose, degrees ↓",
        ],
        rows,
        [
            f"{len(refined['people'])} people, one photo of each, with the attributes of photos of others. Inverted: w "
            "is optimised for the photo alone, its own attributes kept; no mapper can be expected to do better.",
        ],
    )


def _table_3(figures: Mapping[str, Any]) -> Table:
    rows = [
        ["*LORD (quoted)*", "", "0.20 ± 0.11", "", "", "0.085 ± 0.018", "13.34 ± 15.00"],
        [f"*{PAPER} without landmarks (quoted)*", "", "0.63 ± 0.08", "", "", "0.023 ± 0.017", "13.90 ± 13.36"],
        [f"*{PAPER} without D_W (quoted)*", "6.96", "", "", "", "", ""],
        [f"*{PAPER} (quoted)*", "4.28", "0.60 ± 0.09", "", "", "0.017 ± 0.019", "9.74 ± 13.16"],
    ]
    for name, part in {"fid": figures["generated"], **figures["ablations"]}.items():
        judge, points, pose = _cosine_judge(part["identity"]), _best(part["expression"]), _best(part["pose"])
        dlib = part["identity"].get("dlib")
        rows.append(
            [
                name,
                _significant(part["frechet_distance"]["output"]),
                _spread(part["identity"][judge]["output"]["cosine"], 2),
                _spread(part["identity"][judge]["leak"]["cosine"], 2),
                f"{dlib['output']['accept']:.2f}" if dlib else "not measured",
                _spread(part["expression"][points]["output"], 3),
                _spread(part["pose"][pose]["output"], 2),
            ]
        )
    return Table(
        "Table 3: ablations, on the same generated pairs through the same generator",
        [
            *("method", "Frechet distance ↓", "identity ↑", "leak ↓", "one person by dlib ↑", "expression ↓"),
            "pose, degrees ↓",
        ],
        rows,
        ["Judges as in Table 1. Ablations that were trained for different times do not compare."],
    )


def _w_space(figures: Mapping[str, Any]) -> Table:
    rows = [
        [
            name,
            str(cloud["n"]),
            *(f"{cloud['mean'][k]:+.2f} ± {cloud['std'][k]:.2f}" for k in range(2)),
            f"{cloud['deviation']:.2f}",
        ]
        for name, cloud in figures["w_space"]["clouds"].items()
    ]
    share = " and ".join(f"{value:.0%}" for value in figures["w_space"]["axes_share"])
    return Table(
        "Fig. 9: where w lies in W",
        ["w of", "n", "first axis", "second axis", "all 512, standard deviations"],
        rows,
        [
            f"Axes: PCA of the generator's w at the same psi ({share} of its variance), in its standard deviations. "
            "The paper has a picture and no figures: its w lie where StyleGAN's do, without D_W elsewhere.",
            "A deviation below the generator's means outputs nearer the mean face.",
        ],
    )


def _clips(figures: Mapping[str, Any]) -> Table:
    rows = []
    for name, clip in figures["clips"].items():
        driving = clip["driving"]
        judges = list(driving["identity_drift"])
        judge = _best(driving["identity_drift"])
        points, agree = "face mesh", driving["pose_agreement"]
        rows.append(
            [
                f"{name}: driving clip",
                *(_drift(driving, "SFace"), _drift(driving, judge) if judge in judges else ""),
                _number(driving["jitter"][points], 2),
                *(_number(agree.get(axis), 2) for axis in AXES),
                *[""] * 3,
            ]
        )
        for person, part in clip["people"].items():
            identity = part["identity"][_cosine_judge(part["identity"])]
            rows.append(
                [
                    f"{name}: {person}",
                    *(_drift(part, "SFace"), _drift(part, judge)),
                    _number(part["jitter"][points], 2),
                    *(_number(part["pose_correlation"][points][axis], 2) for axis in AXES),
                    _number(part["mouth_correlation"], 2),
                    f"{identity['output']['cosine']['mean']:.2f}",
                    f"{identity['leak']['cosine']['mean']:.2f}",
                ]
            )
    spreads = [clip["driving"]["pose_spread"]["face mesh"] for clip in figures["clips"].values()]
    moved = "; ".join(
        f"{name}: " + ", ".join(f"{axis} {spread[axis]:.1f}" for axis in AXES)
        for name, spread in zip(figures["clips"], spreads, strict=True)
    )
    counts = "; ".join(f"{name}: {clip['faces']} of {clip['frames']}" for name, clip in figures["clips"].items())
    judged = _best(next(iter(figures["clips"].values()))["driving"]["identity_drift"])
    return Table(
        "Figs 13 and 15: identity and attributes along a driving clip",
        [
            *(
                "clip, identity",
                "drift by SFace ↓",
                f"drift by {judged} ↓",
                "jitter, px ↓",
                "pitch ↑",
                "yaw ↑",
                "roll ↑",
            ),
            *("mouth ↑", "identity cosine ↑", "leak cosine ↓"),
        ],
        rows,
        [
            "Every frame is aligned and composed on its own, without smoothing. Drift: 1 - cosine to the mean code of "
            "the clip, mean over frames (largest). Jitter: mean length of the landmarks' second difference in time, in "
            "px of the 256 px crop.",
            "Pitch, yaw, roll, mouth (gap between the lips): correlation with the driving frames, by the face mesh. "
            f"Standard deviation of the driving pose in degrees: {moved}. What hardly moves cannot be followed. "
            "In the rows of the driving clips: the face mesh against dlib on the driving frames themselves.",
            f"Frames with a usable face: {counts}. The paper gives pictures and no figures here.",
        ],
    )


def _drift(part: Mapping[str, Any], judge: str) -> str:
    value = part["identity_drift"][judge]
    return f"{value['mean']:.3f} ({value['max']:.3f})"


def _value(kind: Mapping[str, Any] | None, measure: str) -> str:
    if kind is None:
        return ""
    return f"{kind['accept']:.2f}" if measure == "accept" else _spread(kind[measure], 3)


def _spread(value: Mapping[str, float], digits: int) -> str:
    return f"{value['mean']:.{digits}f} ± {value['std']:.{digits}f}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"


def _significant(value: float | None) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.4g}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _figure(title: str, caption: str, image: np.ndarray) -> str:
    """A picture RGB uint8 [H, W, 3] inside the page, as JPEG."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])
    source = base64.b64encode(data.tobytes()).decode()
    return (
        f'<figure><img alt="{html.escape(title)}" width={image.shape[1]} src="data:image/jpeg;base64,{source}">'
        f"<figcaption><b>{html.escape(title)}.</b> {html.escape(caption)}</figcaption></figure>"
    )


def _plot(title: str, svg: str) -> str:
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


def _clip_plots(clip: Mapping[str, Any]) -> list[str]:
    names = {"pitch": "Pitch, degrees", "yaw": "Yaw, degrees", "mouth": "Gap between the lips, px"}
    plots = []
    for column in clip["driving"]["series"]:
        if column == "roll":
            continue
        series = {"driving": clip["driving"]["series"][column]}
        series |= {name: part["series"][column] for name, part in clip["people"].items()}
        title = names.get(column, column.capitalize() if column != column.upper() else column)
        plots.append(_plot(f"{title}, over the frames with a face", lines(series)))
    return plots
