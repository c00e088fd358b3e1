"""`fid-train` on the command line: plans, exit codes, one sentence for every mistake."""

import pytest
from fid.trainer import cli


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    return stop.value.code, *capsys.readouterr()


def test_dry_run_prints_the_resolved_configuration(capsys, tmp_path):
    code, out, _ = run(capsys, "fit", "-o", str(tmp_path / "run"), "--steps", "7", "--dry-run")
    assert code == 0
    assert "steps                7\n" in out
    assert "E_attr               5,820,160 parameters\n" in out
    assert "M                    3,280,384 parameters\n" in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["fit"], "Missing option '-o'"),
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
