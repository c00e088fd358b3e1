"""The commands of docs/paper.md, from files of the paper's kinds with random weights to its Tables 1, 2 and 3."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import cv2
import pytest
import torch
from click.testing import CliRunner
from documentation import PAGES, lines
from fid.export.cli import command as fid_export
from fid.runtime.assets import FACES
from fid.runtime.commands.cli import main as fid_run
from fid.trainer.cli import main_group as fid_train
from fid.trainer.networks.inception import InceptionV3
from tiny_stylegan import variables, widths_of, write_tensorflow
from tiny_vggface2 import resnet, write_pickle

from .trainer.evaluate.test_pose_network import bins, write
from .trainer.evaluate.test_run import arcface

PAGE = "docs/paper.md"
PROGRAMS = {"fid-train": fid_train, "fid-export": fid_export, "fid-run": fid_run}
# What is done on less: a part of the line, and what stands there instead.
SMALL = {
    r"-n 70000": "-n 8",
    r"--preset (\S+)": r"--preset \1 --steps 2 --set cross_batch=2",
    r"--pairs 10000": "--pairs 4",
    r"fid-export": "fid-export --threads 1 --faces 24",
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with what the page names."""
    write_tensorflow(tmp_path / "stylegan-ffhq-256.pkl", variables(widths_of(256, 1024, 16)), resolution=256)
    write_pickle(tmp_path / "resnet50_ft_weight.pkl", resnet())
    arcface(tmp_path / "arcface.onnx")
    write(tmp_path / "hopenet.onnx", bins(31.5), bins(-10.0), bins(2.4))
    torch.manual_seed(0)
    torch.save(InceptionV3().state_dict(), tmp_path / "inception.pth")
    for folder in ("ffhq", "people"):
        (tmp_path / folder).mkdir()
        for person in ("ada", "ben"):
            shutil.copy(FACES / f"identity-{person}.jpg", tmp_path / folder / f"{person}_1.jpg")
    return tmp_path


@pytest.mark.slow
def test_the_page_leads_to_the_papers_tables(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    shown = list(lines(PAGE))
    tables = next(line for line in shown if line.startswith("fid-train evaluate"))
    ablations = re.findall(r"--ablation [\w-]+=[\w/-]+", PAGES[PAGE].partition("## Files")[0])
    assert len(ablations) == 2
    shown.remove(tables)
    shown.sort(key=lambda line: line.startswith("fid-run"))  # what others need comes first
    for line in (*shown, " ".join((tables, *ablations))):
        for pattern, instead in SMALL.items():
            line = re.sub(pattern, instead, line)
        program, *words = shlex.split(line)
        done = CliRunner().invoke(PROGRAMS[program], words, catch_exceptions=False)
        assert done.exit_code == 0, f"{line}\n{done.output}"
    for title in ("Table 1", "Table 2", "Table 3"):
        assert title in done.output
    assert "HopeNet" in done.output
    assert "ArcFace" in done.output
    assert cv2.imread("fig2.png") is not None
    page = Path("table1/index.html").read_text()
    for title in ("Table 3", "Ablations", "Fig. 9"):
        assert title in page
