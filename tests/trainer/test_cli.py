"""`fid-train` on the command line: plans, exit codes, one sentence for every mistake."""

import re

import pytest
from fid.trainer import cli
from fid.trainer.expressions.directions import ExpressionsConfig


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    return stop.value.code, *capsys.readouterr()


def test_dry_run_prints_the_resolved_configuration(capsys, tmp_path):
    code, out, _ = run(capsys, "fit", "-o", str(tmp_path / "run"), "--steps", "7", "--init", "default", "--dry-run")
    assert code == 0
    assert "steps                7\n" in out
    assert "E_attr               5,820,160 parameters\n" in out
    assert "M                    3,354,160 parameters\n" in out
    assert not (tmp_path / "run").exists()


def test_fit_is_the_default_command_and_presets_can_be_changed(capsys, tmp_path):
    arguments = ["-o", str(tmp_path / "run"), "--preset", "paper", "--set", "psi=0.7", "--set", "w_plus=true"]
    code, out, _ = run(capsys, *arguments, "--set", "adversarial_rate=none", "--dry-run")
    assert code == 0
    assert "psi                  0.7\n" in out
    assert "w_plus               True\n" in out
    assert "attribute_encoder    inception\n" in out
    assert "adversarial_rate     None\n" in out
    assert "memory               about " in out


@pytest.mark.parametrize("command", ["distill", "dataset", "fit"])
def test_every_plan_says_how_much_memory_it_needs(capsys, tmp_path, command):
    code, out, _ = run(capsys, command, "-o", str(tmp_path / "out"), "--dry-run")
    assert code == 0
    gibibytes = float(re.findall(r"memory +about ([\d.]+) GiB\n", out)[0])
    assert 0.2 < gibibytes < 20
    assert not (tmp_path / "out").exists()


def test_a_resumed_run_keeps_its_configuration(capsys, tmp_path):
    from dataclasses import asdict

    from fid.trainer.presets import PRESETS
    from fid.trainer.weights import checkpoint

    checkpoint.save(tmp_path, 5, {}, {}, {"kind": "fit", "configuration": asdict(PRESETS["no-landmarks"])})
    code, out, _ = run(capsys, "-o", str(tmp_path), "--resume", "--set", "seed=9", "--dry-run")
    assert code == 0
    assert "landmarks_weight     0.0\n" in out
    assert "seed                 9\n" in out


def test_expressions_go_on_with_the_configuration_of_their_run(capsys, tmp_path):
    (tmp_path / "run.json").write_text('{"configuration": {"steps": 77, "bf16": true}}')
    arguments = ("expressions", "-o", str(tmp_path), "--dataset", str(tmp_path), "--set", "gain=1.2", "--dry-run")
    code, out, _ = run(capsys, *arguments, "--resume")
    assert code == 0
    assert "steps                77\n" in out
    assert "bf16                 True\n" in out
    assert "gain                 1.2\n" in out
    assert f"steps                {ExpressionsConfig().steps}\n" in run(capsys, *arguments)[1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-o", "run", "--set", "magic=1"], "--set magic=1: expected NAME=VALUE with NAME one of resolution,"),
        (["-o", "run", "--set", "steps=few"], "steps is a value of type int, which 'few' is not"),
        (["-o", "run", "--set", "bf16=maybe"], "bf16 is a value of type bool, which 'maybe' is not"),
        (["fit"], "Missing option '-o'"),
        (["fit", "-o", "run", "--init", "nowhere"], "Path 'nowhere' does not exist"),
        (["fit", "-o", "run", "--resolution", "200"], "'200' is not one of"),
        (["fit", "-o", "run", "--steps", "0"], "0 is not in the range"),
        (["evaluate", "nowhere"], "does not exist"),
        (["paint"], "No such command"),
    ],
)
def test_bad_usage_is_exit_2(capsys, arguments, sentence):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert sentence in err


def test_without_torch_one_sentence_with_the_pip_line(capsys, monkeypatch):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    code, _, err = run(capsys, "fit", "-o", "run")
    assert code == 1
    assert err == "fid-train: PyTorch is not installed; run: pip install 'fid-face[train]'\n"


def test_a_folder_without_checkpoint(capsys, tmp_path):
    (tmp_path / "run").mkdir()
    code, _, err = run(capsys, "evaluate", str(tmp_path / "run"), "--generator", str(tmp_path / "run"))
    assert code == 2
    assert "holds no checkpoint" in err
    assert "Traceback" not in err
