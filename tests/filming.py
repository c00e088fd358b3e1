"""Clips that play a camera, work that takes its time, and a window that follows a script."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from fid.runtime.assets import FACES
from fid.runtime.live.layout import Picture, Wishes
from fid.runtime.live.webcam import Sinks, Webcam
from fid.runtime.media.camera import Camera
from fid.runtime.media.images import read_image


def write_camera(path: Path) -> Path:
    """A face that moves a little, as the uncompressed video that Chromium's fake camera plays: 320 x 240, 15 fps."""
    face = cv2.resize(read_image(FACES / "attributes-shade.jpg"), (240, 240), interpolation=cv2.INTER_AREA)
    with path.open("wb") as file:
        file.write(b"YUV4MPEG2 W320 H240 F15:1 Ip A1:1 C420jpeg\n")
        for step in range(15):
            shift = round(4 * np.sin(2 * np.pi * step / 15))
            frame = np.roll(np.hstack([face[:, :40][:, ::-1], face, face[:, -40:][:, ::-1]]), shift, axis=1)
            file.write(b"FRAME\n" + cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420).tobytes())
    return path


def write_clip(path: Path, frames: int, fps: float, size: tuple[int, int] = (64, 48)) -> Path:
    """A video whose right half is brighter than its left one; every frame has another brightness."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
    for number in range(frames):
        frame = np.full((size[1], size[0], 3), 40 + number % 100, np.uint8)
        frame[:, size[0] // 2 :] += 80
        writer.write(frame)
    writer.release()
    return path


class SlowWork:
    """In the place of a reenactment: takes its time."""

    def __init__(self, work_s: float, mirror: bool = False) -> None:
        self._work_s = work_s
        self.wishes = Wishes("ada", mirror=mirror)  # type: ignore[arg-type] - anybody
        self.composer, self.light = SimpleNamespace(provider="toy CPU"), False
        self.resets = 0

    def show(self, image: np.ndarray, time_s: float, wishes: Wishes) -> Picture:
        start = time.perf_counter()
        time.sleep(self._work_s)
        image = np.ascontiguousarray(image[:, ::-1]) if wishes.mirror else image  # as a reenactment does
        return Picture(image, True, {"synthesis": 1e3 * (time.perf_counter() - start)})

    def reset(self) -> None:
        self.resets += 1


def show_of(
    tmp_path: Path, sinks: Sinks, frames: int = 20, camera: Camera | None = None, mirror: bool = False, **options: Any
) -> tuple[Webcam, SlowWork, list[str]]:
    """A webcam on a short clip, its work, and what it says."""
    said: list[str] = []
    work = SlowWork(0.001, mirror)
    camera = camera or Camera(write_clip(tmp_path / "in.mp4", frames, 30))
    people: Any = ["ada", "ben"]
    show = Webcam(camera, work, people, sinks, say=said.append, **options)  # type: ignore[arg-type]
    return show, work, said


class ScriptedWindow:
    """In the place of the window: `scene` yields the actions of one look at the keyboard after another, then quits."""

    def __init__(self, scene: Callable[[ScriptedWindow], Iterator[str]]) -> None:
        self.pictures: list[np.ndarray] = []
        self._scene = scene(self)

    def show(self, picture: np.ndarray) -> None:
        self.pictures.append(picture)

    def actions(self) -> list[str]:
        action = next(self._scene, "quit")
        return [action] if action else []

    def close(self) -> None:
        """Nothing is open."""


def wait(condition: Callable[[], bool], seconds: float = 30) -> Iterator[str]:
    """For scenes: no key until it is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        yield ""
