"""Lines are wrapped where a person sees them in a window, and nowhere else."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fid.runtime.terminal import make_console

LONG = "/" + "/".join(["a folder with [brackets] in its name"] * 20) + "/picture.png"


class Window(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_every_line_in_one_piece(capsys: pytest.CaptureFixture[str]) -> None:
    make_console().print(f"saved {LONG}")
    assert capsys.readouterr().out == f"saved {LONG}\n"


def test_a_stream_that_is_set_later_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    console = make_console(stderr=True)  # as at import
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys, "stderr", Window())
    console.print("word " * 50)
    assert max(map(len, sys.stderr.getvalue().splitlines())) <= 60  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    console.print("word " * 50)
    assert len(sys.stderr.getvalue().splitlines()) == 1  # type: ignore[attr-defined]


def test_colours_that_are_forced_do_not_wrap(tmp_path: Path) -> None:
    call = "import sys; from fid.runtime.terminal import make_console; make_console().print(sys.argv[1])"
    environment = os.environ | {"FORCE_COLOR": "1", "COLUMNS": "40", "TTY_COMPATIBLE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", call, LONG], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout == LONG + "\n"
