"""An evaluation written down: Markdown tables, and one HTML page that holds its pictures and plots.

The figures of the paper and of those it compares itself with are quoted from Nitzan et al. 2020; what differs stands
beneath every table.
"""

from pathlib import Path

from ...runtime.errors import FidError
from ..weights.checkpoint import write_json, writing
from .compose import Report
from .plots import clip_plots, histogram, scatter
from .render import Picture, Plots, data_url, render
from .tables import Table, markdown, setting_lines, tables

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
    """Write index.html (which needs no other file), tables.md and evaluate.json; return the page's path."""
    figures = report.figures
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "evaluate.json", report.record())
        for name, text in (("tables.md", markdown(figures)), ("index.html", page(report))):
            with writing(folder / name) as partial:
                partial.write_text(text)
    except OSError as error:
        raise FidError(f"the page could not be written to {folder}: {error.strerror or error}.") from error
    return folder / "index.html"


def page(report: Report) -> str:
    """Return the page: tables, plots, pictures."""
    figures = report.figures
    by_title = {table.title.partition(":")[0]: table for table in tables(figures)}

    def table(*names: str) -> list[Table]:
        return [by_title[name] for name in names if name in by_title]

    def pictures(*titles: str) -> list[Picture]:
        found = [(title, report.pictures[title]) for title in titles if title in report.pictures]
        return [Picture(t, CAPTIONS.get(t, CLIP_CAPTION), i.shape[1], data_url(i, ".jpg")) for t, i in found]

    parts = [
        *table("Table 1"),
        *pictures("Generated people", "Generated pairs", "Photographs", "Pairs of photographs"),
        *table("Identity"),
        Plots([(title, histogram(groups)) for title, groups in report.identity.items()]),
        *table("Attributes", "Table 2"),
        *pictures("Reconstruction of generated faces", "Reconstruction of photographs"),
        *table("Personalised people"),
        *pictures("Personalised people"),
        *table("Table 3"),
        *pictures("Ablations"),
        *table("Fig. 9"),
        Plots([("w on the two widest axes of the generator", scatter(report.clouds))]),
        Plots([(f"Our w there, coloured by {name}", scatter(levels)) for name, levels in report.factors.items()]),
        *table("Figs 13 and 15"),
    ]
    for name, clip in figures.get("clips", {}).items():
        parts += [*pictures(f"Clip {name}"), Plots(clip_plots(clip))]
    return render(f"Evaluation of {figures['evaluated']}", setting_lines(figures), parts)
