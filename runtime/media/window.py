"""The window of `fid-run webcam`: SDL through pygame-ce, the keys as one table, and the overlay of figures."""

from __future__ import annotations

import os
import textwrap
from typing import Any

import cv2
import numpy as np

from ..errors import FidError

MISSING = "pygame-ce is not installed, which opens the window: `pip install 'fid-face[video]'`, or use --headless."
ON_DESKTOP = 0.9  # at most so much of the desktop's width and height; the rest is for its bars and the title

KEYS: dict[str, tuple[str, str]] = {  # key as SDL calls it -> (action of `webcam.Webcam.do`, what it does)
    **{str(number): (f"identity {number}", f"identity {number}") for number in range(1, 10)},
    "o": ("overlay", "figures on and off"),
    "v": ("view", "pasted in, side by side, result only"),
    "m": ("mirror", "mirror on and off"),
    "c": ("recalibrate", "look for the face anew"),
    "+": ("smoother", "more smoothing"),
    "=": ("smoother", ""),
    "-": ("livelier", "less smoothing"),
    "s": ("screenshot", "save the picture"),
    "r": ("record", "recording on and off"),
    "space": ("pause", "pause"),
    "h": ("help", "these keys on and off"),
    "q": ("quit", "quit"),
    "escape": ("quit", ""),
}


def help_lines() -> list[str]:
    """Return the keys and what they do, a line each."""
    lines = ["1-9  identity"]
    return lines + [f"{key}  {text}" for key, (_, text) in KEYS.items() if text and not key.isdecimal()]


def draw_text(picture: np.ndarray, lines: list[str]) -> np.ndarray:
    """Return a copy of a picture RGB uint8 [height, width, 3] with lines of text on a dark field at its top left."""
    picture = picture.copy()
    if not lines:
        return picture
    scale = min(0.5, picture.shape[1] / 640)
    step = max(9, round(34 * scale))
    room = picture.shape[1] - 12
    lines = [part for line in lines for part in _broken(line, room, scale)]
    widest = max(cv2.getTextSize(line, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0] for line in lines)
    field = picture[: step * len(lines) + step // 2, : widest + 12]
    field[:] = field // 4
    for row, line in enumerate(lines, start=1):
        place = (6, step * row)
        cv2.putText(picture, line, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (235, 235, 235), 1, cv2.LINE_AA)
    return picture


def _broken(line: str, room: int, scale: float) -> list[str]:
    """A line of text in pieces that fit into `room` px; a tenth is left for pieces with many wide letters."""
    wide = cv2.getTextSize(line, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0]
    return textwrap.wrap(line, max(8, int(0.9 * len(line) * room / wide))) if wide > room else [line]


class Window:
    """A window that can be resized. For the main thread."""

    def __init__(self, title: str) -> None:
        """Raises `FidError` when pygame-ce is missing or there is no screen."""
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        try:
            import pygame
        except ImportError as error:
            raise FidError(MISSING) from error
        self._pygame: Any = pygame
        self._screen: Any = None
        self._title = title
        try:
            pygame.display.init()
        except pygame.error as error:
            raise FidError(f"no window can be opened here ({error}); use --headless or --record.") from error

    def show(self, picture: np.ndarray) -> None:
        """Show a picture RGB uint8 [height, width, 3], as large as the window allows."""
        pygame = self._pygame
        height, width = picture.shape[:2]
        if self._screen is None:
            desktop = pygame.display.get_desktop_sizes()[0]
            fitting = min(ON_DESKTOP * desktop[0] / width, ON_DESKTOP * desktop[1] / height)
            grown = min(max(1, 512 // height), fitting)
            self._screen = pygame.display.set_mode((int(width * grown), int(height * grown)), pygame.RESIZABLE)
            pygame.display.set_caption(self._title)
        wide, high = self._screen.get_size()
        factor = min(wide / width, high / height)
        size = max(1, round(width * factor)), max(1, round(height * factor))
        surface = pygame.image.frombuffer(np.ascontiguousarray(picture).data, (width, height), "RGB")
        self._screen.fill((0, 0, 0))
        self._screen.blit(pygame.transform.smoothscale(surface, size), ((wide - size[0]) // 2, (high - size[1]) // 2))
        pygame.display.flip()

    def actions(self) -> list[str]:
        """Return what the user asked for since the last call: actions of `KEYS`, "quit" for the closed window, and
        "redraw" when it has another size or was uncovered."""
        pygame = self._pygame
        asked = []
        for event in pygame.event.get():
            if event.type == pygame.QUIT:
                asked.append("quit")
            elif event.type in (pygame.WINDOWSIZECHANGED, pygame.WINDOWEXPOSED):
                asked.append("redraw")
            elif event.type == pygame.KEYDOWN:
                key = event.unicode if event.unicode in KEYS else pygame.key.name(event.key)
                if key in KEYS:
                    asked.append(KEYS[key][0])
        return asked

    def close(self) -> None:
        """Close the window."""
        self._pygame.display.quit()
