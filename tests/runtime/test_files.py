"""Files are whole or not there, and what a killed process left goes with the next write."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fid.runtime.errors import FidError
from fid.runtime.files import MACHINE, new_file, replacing
from fid.runtime.weights.cache import new_folder

LEFT_BY = f".a.{MACHINE}-%d.part%s"

KILLED = """
import os, signal, sys
from pathlib import Path
from fid.runtime.files import new_file
with new_file(Path(sys.argv[1])) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def half(path: Path) -> None:
    path.write_text("half")
    raise KeyError


def test_the_name_stands_for_the_former_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with new_file(path) as partial:
        assert (partial.parent, partial.suffix) == (tmp_path, ".txt")
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(KeyError), new_file(path) as partial:
        half(partial)
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_a_user_hears_one_sentence(tmp_path: Path) -> None:
    sentence = r"a\.txt could not be written: No such file or directory\.$"
    with pytest.raises(FidError, match=sentence), replacing(tmp_path / "none" / "a.txt") as partial:
        partial.write_text("new")
    with pytest.raises(FileNotFoundError), new_file(tmp_path / "none" / "a.txt") as partial:
        partial.write_text("new")


@pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL")
def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 2
    assert path.read_text() == "old"
    with new_file(path) as partial:
        partial.write_text("new")
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.skipif(os.name != "posix", reason="only there a process can be asked whether it runs")
def test_what_others_write_is_left_alone(tmp_path: Path) -> None:
    """Another process that runs, this one's own other file, another machine, and a name that only looks alike."""
    others = [LEFT_BY % (os.getppid(), ".txt"), LEFT_BY % (os.getpid(), ".png"), ".a.elsewhere-999999999.part.txt"]
    others += [".a.txt", f".a.{MACHINE}-x.part.txt", f".{MACHINE}-999999999.part"]
    for name in others:
        (tmp_path / name).touch()
    with new_file(tmp_path / "a.txt") as partial:
        partial.write_text("new")
    assert names(tmp_path) == sorted([*others, "a.txt"])


def test_a_folder_whose_exchange_was_killed_between_two_names_is_not_lost(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    (tmp_path / ".bundle" / "new").mkdir(parents=True)
    (tmp_path / ".bundle" / "old").mkdir()
    (tmp_path / ".bundle" / "old" / "weights").write_text("old")
    with pytest.raises(FileNotFoundError), new_folder(target) as folder:  # the same command again, and it fails
        (folder / "none" / "weights").write_text("new")
    assert (target / "weights").read_text() == "old"
    assert names(tmp_path) == ["bundle"]
