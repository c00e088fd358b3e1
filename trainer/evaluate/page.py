"""Writes an evaluation down: Markdown tables, and one HTML page that holds its pictures and plots.

The figures of the paper and of those it compares itself with are quoted from Nitzan et al. 2020; what differs stands
beneath every table.
"""

import base64
import html
from pathlib import Path

import cv2
import numpy as np

from ...runtime.errors import FidError
from ..weights.checkpoint import write_json
from .compose import Report
from .plots import clip_plots, histogram, plot, scatter
from .tables import markdown, setting_lines, tables

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
    setting = "".join(f"<li>{html.escape(line)}</li>" for line in setting_lines(figures))
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
    histograms = [plot(title, histogram(groups)) for title, groups in report.identity.items()]
    parts.append(f"<div class=plots>{''.join(histograms)}</div>")
    add("Attributes", "Table 2")
    show("Reconstruction of generated faces", "Reconstruction of photographs")
    add("Personalised people")
    show("Personalised people")
    add("Table 3")
    show("Ablations")
    add("Fig. 9")
    parts.append(f"<div class=plots>{plot('w on the two widest axes of the generator', scatter(report.clouds))}</div>")
    add("Figs 13 and 15")
    for name, clip in figures.get("clips", {}).items():
        show(f"Clip {name}")
        parts.append(f"<div class=plots>{''.join(clip_plots(clip))}</div>")
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


def _figure(title: str, caption: str, image: np.ndarray) -> str:
    """A picture RGB uint8 [H, W, 3] inside the page, as JPEG."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])
    source = base64.b64encode(data.tobytes()).decode()
    return (
        f'<figure><img alt="{html.escape(title)}" width={image.shape[1]} src="data:image/jpeg;base64,{source}">'
        f"<figcaption><b>{html.escape(title)}.</b> {html.escape(caption)}</figcaption></figure>"
    )
