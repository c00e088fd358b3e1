"""The window of the webcam: on a small desktop, with long sentences, and once on a real X server."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from fid.runtime.media.window import ON_DESKTOP, Window, _broken, draw_text

XVFB = shutil.which("Xvfb")


@pytest.mark.parametrize("size", [(3000, 4000), (3000, 1000), (100, 4000), (48, 64)])
def test_the_window_fits_on_the_desktop(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    window = Window("test")
    monkeypatch.setattr(pygame.display, "get_desktop_sizes", lambda: [(1366, 768)])
    window.show(np.zeros((*size, 3), np.uint8))
    wide, high = pygame.display.get_surface().get_size()
    window.close()
    assert wide <= ON_DESKTOP * 1366
    assert high <= ON_DESKTOP * 768
    assert abs(wide - high * size[1] / size[0]) <= max(1, size[1] / size[0])  # whole px


def test_a_new_size_asks_for_a_new_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    window = Window("test")
    window.show(np.zeros((48, 64, 3), np.uint8))
    window.actions()
    pygame.event.post(pygame.event.Event(pygame.WINDOWSIZECHANGED, x=300, y=200))
    assert window.actions() == ["redraw"]
    window.close()


def test_a_long_sentence_is_broken_into_lines_that_fit() -> None:
    sentence = "the camera gives black pictures; is its cover closed, is another program using it, or is it forbidden?"
    for wide in (160, 320, 640):
        scale = min(0.5, wide / 640)
        pieces = _broken(sentence, wide - 12, scale)
        assert " ".join(pieces) == sentence
        widths = [cv2.getTextSize(piece, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0] for piece in pieces]
        assert max(widths) <= wide - 12
    assert _broken("short", 600, 0.5) == ["short"]
    picture = np.full((200, 320, 3), 128, np.uint8)
    changed = (draw_text(picture, [sentence]) != picture).any((1, 2))
    assert changed.nonzero()[0].max() > 50  # three lines at least


@pytest.fixture
def screen() -> Iterator[str]:
    """The name of an X display of its own, 1024 x 768."""
    if XVFB is None:
        pytest.skip("no Xvfb is installed here")
    read, write = os.pipe()
    command = [XVFB, "-displayfd", str(write), "-screen", "0", "1024x768x24", "-nolisten", "tcp"]
    server = subprocess.Popen(command, pass_fds=[write], stderr=subprocess.DEVNULL)
    os.close(write)
    try:
        with os.fdopen(read) as told:
            yield f":{told.readline().strip()}"
    finally:
        server.terminate()
        server.wait(30)


SCRIPT = """
import sys
from pathlib import Path
import pygame
sys.path.insert(0, sys.argv[1])
from filming import show_of, write_clip
from fid.runtime.media.camera import Camera
from fid.runtime.live.webcam import Sinks
folder = Path(sys.argv[2])
show, _, _ = show_of(folder, Sinks(), camera=Camera(write_clip(folder / "in.mp4", 30, 30), again=True))
draw, seen = show._draw, []
def look(window, changed):
    draw(window, changed)
    surface = pygame.display.get_surface()
    if surface is not None:
        seen.append(surface.get_at((surface.get_width() - 20, surface.get_height() - 20))[:3])
    if len(seen) == 10:
        pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_h, unicode="h"))
    if len(seen) == 20:
        pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_q, unicode="q"))
show._draw = look
show.run(50)
print(pygame.display.get_driver() if pygame.display.get_init() else "closed", show.over, show.help, max(map(max, seen)))
"""


def test_the_window_on_an_x_server(screen: str, tmp_path: Path) -> None:
    pytest.importorskip("pygame")
    tests = str(Path(__file__).parents[2])
    quiet = {name: value for name, value in os.environ.items() if name != "SDL_VIDEODRIVER"}
    quiet |= {"DISPLAY": screen, "SDL_VIDEODRIVER": "x11", "PYTHONWARNINGS": "ignore", "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tests, str(tmp_path)], env=quiet, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    closed, over, helped, brightest = done.stdout.split()[-4:]
    assert (closed, over, helped) == ("closed", "True", "True")
    assert 110 < int(brightest) < 230  # the clip's right half
