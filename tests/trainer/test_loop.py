"""What training loops share: here, the commit that records name."""

import re
import subprocess
from pathlib import Path

import pytest
from fid.export import read
from fid.trainer import loop


@pytest.fixture
def somebodys_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, and fid installed inside of it."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    author = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false")
    for words in (["init", "-q"], [*author, "commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    installed = tmp_path / "venv" / "site-packages" / "fid"
    installed.mkdir(parents=True)
    return installed


def test_the_commit_of_another_repository_is_never_recorded(somebodys_repository, monkeypatch) -> None:
    monkeypatch.setattr(loop, "ROOT", somebodys_repository)
    assert loop.source_commit() is None
    assert read._environment()["commit"] is None
    assert loop.machine_record()["commit"] is None


def test_changes_are_told_beside_the_commit(somebodys_repository, monkeypatch) -> None:
    checkout = somebodys_repository.parents[2]
    monkeypatch.setattr(loop, "ROOT", checkout)
    assert re.fullmatch("[0-9a-f]{40}", loop.source_commit() or "")
    (checkout / "tracked").write_text("before")
    subprocess.run(["git", "add", "tracked"], cwd=checkout, check=True)
    assert (loop.source_commit() or "").endswith("+changes")
