"""The page holds everything inside itself, and its plots show what they are given."""

import json
import re
import sys

import numpy as np
import pytest
from fid.runtime.errors import FidError
from fid.trainer.evaluate import page as evaluate_page
from fid.trainer.evaluate.compose import Report
from fid.trainer.evaluate.plots import COLOURS, check_matplotlib, histogram, lines, scatter
from fid.trainer.evaluate.render import render
from fid.trainer.evaluate.tables import Table


def points(svg: str) -> list[np.ndarray]:
    """The corners of every coloured line of a plot, px."""
    found = re.findall(r'<path d="([^"]+)"[^>]*style="fill: none; stroke: (#\w+)', svg)
    return [np.array(re.findall(r"-?[\d.]+", path), float).reshape(-1, 2) for path, ink in found if ink in COLOURS]


def test_a_table_in_both_languages():
    table = Table("Table 9: a < b", ["method", "value"], [["*theirs (quoted)*", "1"], ["ours", "2 < 3"]], ["a note"])
    head, body = (
        "## Table 9: a < b\n\n| method | value |\n| --- | --- |\n",
        "| *theirs (quoted)* | 1 |\n| ours | 2 < 3 |\n",
    )
    assert table.markdown() == f"{head}{body}\n- a note\n"
    text = render("<page>", ["a line & another"], [table])
    assert '<tr class="quoted"><td>theirs (quoted)</td>' in text
    for escaped in ("2 &lt; 3", "a &lt; b", "&lt;page&gt;", "a line &amp; another"):
        assert escaped in text


def test_lines_rise_where_values_do():
    svg = lines({"driving": [0.0, 1.0, 2.0], "person": [2.0, 1.0, 0.0]})
    rising, falling, *_ = (line for line in points(svg) if len(line) == 3)  # then those of the legend
    assert (np.diff(rising[:, 0]) > 0).all()
    assert (np.diff(rising[:, 1]) < 0).all()  # px count downwards
    np.testing.assert_allclose(falling[::-1, 1], rising[:, 1])
    assert ">person</text>" in svg


def test_a_line_that_does_not_move_and_one_frame():
    assert points(lines({"driving": [3.0, 3.0]}))
    assert "<use" in lines({"driving": [3.0]})  # a mark


def test_histograms_share_their_bins():
    low, high = (line for line in points(histogram({"a": np.zeros(10), "b": np.ones(10)})) if len(line) > 8)
    assert low[:, 1].argmin() < high[:, 1].argmin()
    assert low[:, 1].min() == high[:, 1].min()


def test_equal_values_have_a_histogram_too():
    assert points(histogram({"a": np.full(10, 0.5)}))


def test_scatter_draws_each_point_of_each_cloud(rng):
    svg = scatter({"generator": rng.normal(size=(30, 2)), "ours": rng.normal(size=(5, 2))})
    marks = [len(re.findall("<use", part)) for part in svg.split('<g id="line2d_') if f"fill: {COLOURS[0]}" in part]
    assert max(marks) == 30


def test_without_matplotlib_there_is_a_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(FidError, match=r"pip install 'fid-face\[eval\]'"):
        check_matplotlib()


def figures() -> dict:
    """Figures with everything in them, of made-up values."""
    value = {"mean": 0.5, "std": 0.1, "n": 4}
    angles = {"pitch": 0.9, "yaw": None, "roll": 0.1}
    judged = {"cosine": value}
    dlib = {"cosine": value, "distance": value, "accept": 0.75}
    kinds = ("output", "leak", "random")
    pairs = {
        "frechet_distance": {"features": "some", "output": 1.25, "floor": 0.5, "n": 4},
        "identity": {"SFace": dict.fromkeys(kinds, judged), "dlib": dict.fromkeys(kinds, dlib)},
        "expression": {"face mesh": {"output": value, "random": value}, "dlib": {"output": value, "random": value}},
        "pose": {name: {"output": value, "random": value, **angles} for name in ("face mesh", "dlib")},
        "reconstruction": {
            **{"n": 4, "rmse": value, "psnr": value, "lpips": value},
            "identity": {"SFace": judged, "dlib": dlib},
            "expression": {"face mesh": value, "dlib": value},
            "pose": {"face mesh": value, "dlib": value},
        },
    }
    sequence = {
        "identity_drift": {"SFace": {**value, "max": 0.6}, "dlib": {**value, "max": 0.7}},
        "jitter": {"face mesh": 1.5, "dlib": None},
        "pose_spread": {"face mesh": {"pitch": 1.0, "yaw": 2.0, "roll": 3.0}},
        "series": {"drift by dlib": [0.1, 0.2], "pitch": [1.0, 2.0], "yaw": [0, 1], "roll": [0, 1], "mouth": [3, 4]},
    }
    person = {
        **sequence,
        "pose_correlation": {"face mesh": angles},
        "mouth_correlation": 0.8,
        "eyes_correlation": 0.7,
        "gaze_correlation": 0.6,
        "identity": {"SFace": {"output": judged, "leak": judged}},
    }
    cloud = {"n": 9, "mean": [0.0, 0.1], "std": [1.0, 1.0], "deviation": 0.8}
    return {
        "evaluated": "run/step_000001",
        "generator": "some <generator>",
        "configuration": {"pairs": 4, "psi": 0.8, "seed": 1},
        "resolution": 256,
        "judges": {"identity": ["SFace", "dlib"], "features": "some features", "not_measured": {"ArcFace": "name it"}},
        "generated": {"pairs": 4, **pairs},
        "photos": {"pairs": 4, "photos": 6, "people": 3, "skipped": ["one"], "same_person": {"SFace": judged}, **pairs},
        "refined": {
            "people": 2,
            **{"pairs": 4, "straight": pairs, "personalised": pairs, "ceiling": pairs["reconstruction"] | {"n": 2}},
        },
        "ablations": {"no-landmarks": {"pairs": 4, **pairs}},
        "w_space": {"axes_share": [0.1, 0.05], "clouds": {"generator": cloud, "ours": cloud}},
        "clips": {
            "d1": {
                "frames": 2,
                "faces": 2,
                "driving": {**sequence, "pose_agreement": angles},
                "people": {"generated 1": person},
            }
        },
    }


def test_tables_of_everything():
    text = evaluate_page.markdown(figures())
    assert text.startswith("# Evaluation of run/step_000001\n")
    for line in (
        "| fid, photographs | 1.25 | 0.50 ± 0.10 | 0.500 ± 0.100 | 0.50 ± 0.10 |",
        "| *pSp (quoted)* | 0.095 | 21.00 |  | 0.821 |  | 0.008 | 4.53 |",
        "| generated pairs, dlib one person at 0.6, share | 0.75 | 0.75 | 0.75 |  |",
        "| no-landmarks | 1.25 | 0.50 ± 0.10 | 0.50 ± 0.10 | 0.75 | 0.500 ± 0.100 | 0.50 ± 0.10 |",
        "| personalised (4 pairs) | 0.50 ± 0.10 | 0.50 ± 0.10 | 0.50 ± 0.10 | 0.75 | 0.500 ± 0.100 | 0.50 ± 0.10 |",
        "| photo inverted (2 photos) | 0.50 ± 0.10 |  | 0.50 ± 0.10 | 0.75 | 0.500 ± 0.100 | 0.50 ± 0.10 |",
        "| d1: generated 1 | 0.500 (0.600) | 0.500 (0.700) | 1.50 | 0.90 | - | 0.10 | 0.80 | 0.70 | 0.60 | 0.50 | "
        "0.50 |",
        "- Not measured: ArcFace (name it).",
    ):
        assert line in text
    for table in evaluate_page.tables(figures()):
        assert {len(row) for row in table.rows} == {len(table.header)}, table.title


def test_the_page_needs_no_other_file(tmp_path, rng):
    picture = rng.integers(0, 256, (20, 30, 3), np.uint8)
    report = Report(
        figures(),
        {"Generated people": picture, "Photographs": picture, "Clip d1": picture},
        {"generator": rng.normal(size=(9, 2)), "ours": rng.normal(size=(9, 2))},
        {"SFace cosine, generated pairs": {"output and identity image": rng.normal(size=9)}},
    )
    path = evaluate_page.write_page(tmp_path / "new" / "page", report)
    text = path.read_text()
    assert text.count("data:image/jpeg;base64,") == 3
    assert text.count("<svg") == 1 + 1 + 4
    assert "some &lt;generator&gt;" in text
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "http" not in re.sub(r'xmlns(:xlink)?="http://www.w3.org/[^"]+"', "", text)
    assert "series" not in json.loads((tmp_path / "new/page/evaluate.json").read_text())["clips"]["d1"]["driving"]
    assert (tmp_path / "new/page/tables.md").read_text() == evaluate_page.markdown(figures())
