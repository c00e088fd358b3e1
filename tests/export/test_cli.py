"""`fid-export` as a command: its exit codes and sentences."""

import sys

import pytest
from fid.export import cli
from fid.runtime.errors import FidError, InputError


def run(monkeypatch, *arguments: str) -> int:
    """Exit code of `fid-export ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["fid-export", *arguments])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    assert isinstance(leaving.value.code, int)
    return leaving.value.code


def test_help(monkeypatch, capsys):
    assert run(monkeypatch, "--help") == 0
    assert "--self-contained" in capsys.readouterr().out


def test_a_wrong_command_line(monkeypatch, capsys):
    assert run(monkeypatch, "somewhere") == 2
    assert "--output" in capsys.readouterr().err


def test_a_folder_without_checkpoint(monkeypatch, capsys, tmp_path):
    assert run(monkeypatch, str(tmp_path), "--generator", str(tmp_path), "-o", str(tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert error.startswith("fid-export: ")
    assert "holds no checkpoint" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["CHECKPOINT", "--generator", "--light", "--web"])
def test_what_is_read_is_not_replaced(monkeypatch, capsys, toy_bundle, tmp_path, option):
    """A bundle can be the generator, too, and an export replaces bundles."""
    (tmp_path / "link").symlink_to(toy_bundle)
    named = [str(toy_bundle)] if option == "CHECKPOINT" else [option, str(toy_bundle)]
    assert run(monkeypatch, *named, "-o", str(tmp_path / "link")) == 2
    assert capsys.readouterr().err.endswith("link is the original itself; give another name for the result.\n")
    assert (toy_bundle / "bundle.json").is_file()


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (FidError("the export differs."), 1, "fid-export: the export differs.\n"),
        (InputError("no such thing."), 2, "fid-export: no such thing.\n"),
        (KeyboardInterrupt(), 130, "fid-export: stopped.\n"),
    ],
)
def test_failures_are_one_sentence(monkeypatch, capsys, tmp_path, error, code, sentence):
    def fail(*arguments):
        raise error

    monkeypatch.setattr("fid.export.read.read_networks", fail)
    assert run(monkeypatch, "-o", str(tmp_path / "out")) == code
    assert capsys.readouterr().err.lstrip("\n") == sentence


def test_without_torch_there_is_a_pip_line(monkeypatch, capsys):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    assert run(monkeypatch, "-o", "out") == 1
    assert capsys.readouterr().err == "fid-export: torch is not installed: `pip install 'fid-face[train]'`.\n"
