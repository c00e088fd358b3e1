"""Cameras through OpenCV, and files that play one (PyAV): one thread reads, and only the newest frame waits.

A camera that is read slower than it delivers queues frames in its driver, and the picture is late by more and more. So
a thread of its own reads all the time and puts each frame into a mailbox with room for one: whoever asks gets the
newest, and the rest are counted as dropped. A file is paced by its own time stamps, so that all of this runs without a
camera. What a camera does wrong is told as a notice: gone, back, black, frozen, silent.
"""

from __future__ import annotations

import sys
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..errors import FidError
from .camera_list import capture_backend, describe_cameras, list_cameras, why_not
from .mailbox import Mailbox
from .video import Clip, Reading, open_clip, read_frames

BLACK_MEAN, BLACK_SPREAD = 12.0, 4.0  # 0..255; darker and flatter than this is black
SUSPECT_S = 1.0  # seconds of black pictures before it is told
FROZEN_S = 3.0  # seconds of one and the same picture before it is told; a real sensor has noise
SILENT_S = 2.0  # seconds in which a driver neither gives a picture nor fails, before it is told
RETRY_S = 0.5  # between two attempts to open a camera that went away
BLACK = (
    "the camera gives black pictures; is its cover closed, is another program using it, or does the system forbid it "
    "(privacy settings, camera)?"
)
FROZEN = "the camera gives the same picture again and again; unplug it and plug it in again."


@dataclass(frozen=True)
class Frame:
    """One picture of a camera."""

    image: np.ndarray  # RGB uint8 [height, width, 3]
    number: int  # counted from 0, those that nobody took included
    captured_s: float  # `time.perf_counter()` when it was there
    time_s: float  # of the picture itself, from the first on


class Camera:
    """A camera, or a file in its place, read by a thread of its own from `start` to `stop`.

    camera = Camera(0)
    camera.start()
    frame = camera.mailbox.take(1.0)
    """

    def __init__(
        self,
        source: int | Path,
        *,
        width: int | None = None,
        height: int | None = None,
        fps: float | None = None,
        again: bool = False,
        notice: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`width`, `height` px and `fps`: what is asked of a camera, which may give something else. `again`: a file
        starts over at its end. `notice` is called from the reading thread with one sentence for what is wrong."""
        self.mailbox: Mailbox[Frame] = Mailbox()
        self.error: Exception | None = None  # why it ended, if it did not end well
        self._source, self._again, self._notice = source, again, notice
        self._wish = (width, height, fps)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)
        self._watch = Watch(notice)
        self._number = 0
        self._capture: Any = None
        self._clip: Clip | None = None
        self._read_s = 0.0  # `time.perf_counter()` when the driver answered last
        self._name, self._others = "", set[int]()  # what it is called, and the numbers of the other cameras

    def start(self) -> None:
        """Open it and begin. Raises `InputError` or `FidError` in one sentence when it gives no picture."""
        if isinstance(self._source, Path):
            self._clip = open_clip(self._source)
        else:
            self._capture = self._opened(self._source)
        if isinstance(self._source, int) and sys.platform.startswith("linux"):  # elsewhere a list is slow to come
            names = {camera.index: camera.name for camera in list_cameras()}
            self._name, self._others = names.get(self._source, ""), set(names) - {self._source}
        self._read_s = time.perf_counter()
        self._thread.start()

    def stop(self) -> None:
        """End the thread and give the camera back."""
        self._stop.set()
        self.mailbox.close()
        if self._thread.is_alive():
            self._thread.join(5)

    @property
    def trouble(self) -> str:
        """Return what is wrong with it now, in one sentence; empty when nothing is."""
        return ["", *self._watch.troubles.values()][-1]

    def check(self) -> None:
        """Tell when the driver hangs. Another thread has to ask, because the one that reads hangs with it."""
        silent = time.perf_counter() - self._read_s > SILENT_S and "gone" not in self._watch.troubles
        if isinstance(self._source, int):
            sentence = f"camera {self._source} gives no picture any more; unplug it and plug it in again."
            self._watch.tell("silent", sentence if silent else "")

    def _opened(self, number: int) -> Any:
        capture = cv2.VideoCapture(number, capture_backend()[0])
        if not capture.isOpened():
            capture.release()
            raise FidError(why_not(number))
        width, height, fps = self._wish
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))  # raw pictures of 1080p come at 5 a second
        for what, value in ((cv2.CAP_PROP_FRAME_WIDTH, width), (cv2.CAP_PROP_FRAME_HEIGHT, height)):
            if value is not None:
                capture.set(what, value)
        capture.set(cv2.CAP_PROP_FPS, fps or 30)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        if not capture.read()[0]:
            capture.release()
            raise FidError(
                f"camera {number} opens and gives no picture; is another program using it? Close that one, "
                "or choose another camera (--list)."
            )
        return capture

    def _run(self) -> None:
        try:
            if self._clip is not None:
                self._play(self._clip)
            else:
                self._film()
        except Exception as error:  # raised again by `Live.take`, in the caller's thread
            self.error = error
        finally:
            if self._capture is not None:
                self._capture.release()
            self.mailbox.close()

    def _film(self) -> None:
        begin = time.perf_counter()
        while not self._stop.is_set():
            there, image = self._capture.read()
            now = self._read_s = time.perf_counter()
            if not there or image is None:
                self._wait_for_return()
                continue
            self._watch.look(image, now)
            self._put(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), now, now - begin)

    def _wait_for_return(self) -> None:
        self._watch.tell("gone", f"camera {self._source} is gone; plug it in again, and the picture comes back.")
        self._capture.release()
        while not self._stop.wait(RETRY_S):
            try:
                self._source = number = self._number_now()
                self._capture = self._opened(number)
            except (FidError, OSError):  # OSError: the list changes while it is read
                continue
            self._read_s = time.perf_counter()
            self._watch.tell("gone", "")
            self._notice(f"camera {self._source} is back.")
            return

    def _number_now(self) -> int:
        """Its number now: a camera that is plugged in again may get another one, and another camera its former one."""
        assert isinstance(self._source, int)
        if not self._name:
            return self._source
        cameras = list_cameras()
        numbers = [one.index for one in cameras if one.name == self._name and one.index not in self._others]
        if not numbers:
            raise FidError(f"there is no camera called {self._name!r} now; {describe_cameras(cameras)}")
        return self._source if self._source in numbers else numbers[0]

    def _play(self, clip: Clip) -> None:
        """Every frame of the file at its own time; those that are late are put all the same, as a camera would."""
        begin, base_s, end_s = time.perf_counter(), 0.0, 0.0
        while not self._stop.is_set():
            reading = Reading()
            with closing(read_frames(clip, reading=reading, exact=False)) as frames:
                for stamp, image in frames:
                    own_s = base_s + float((stamp - clip.first) * clip.time_base)
                    if self._stop.wait(max(0.0, begin + own_s - time.perf_counter())):
                        return
                    self._put(image, time.perf_counter(), own_s)
                    end_s = own_s + float(reading.shown * clip.time_base)
            if not self._again or end_s <= base_s:
                return
            base_s = end_s

    def _put(self, image: np.ndarray, captured_s: float, time_s: float) -> None:
        self.mailbox.put(Frame(image, self._number, captured_s, time_s))
        self._number += 1


class Watch:
    """Notices a black and a frozen picture, and tells each trouble once until it is over."""

    def __init__(self, notice: Callable[[str], None]) -> None:
        self.troubles: dict[str, str] = {}  # what is wrong now, with its sentence; the newest is the last
        self._notice = notice
        self._black_s: float | None = None
        self._same_s: float | None = None
        self._sum = -1

    def look(self, image: np.ndarray, now_s: float) -> None:
        """Look at one picture uint8 [height, width, 3], taken at a time in seconds."""
        small = image[::8, ::8]
        black = small.mean() < BLACK_MEAN and small.std() < BLACK_SPREAD
        self._black_s = (self._black_s if self._black_s is not None else now_s) if black else None
        total = zlib.crc32(np.ascontiguousarray(small).data)
        self._same_s = (self._same_s if self._same_s is not None else now_s) if total == self._sum else None
        self._sum = total
        long_black = self._black_s is not None and now_s - self._black_s >= SUSPECT_S
        frozen = not black and self._same_s is not None and now_s - self._same_s >= FROZEN_S
        self.tell("black", BLACK if long_black else "")
        self.tell("frozen", FROZEN if frozen else "")

    def tell(self, what: str, sentence: str) -> None:
        """Tell a trouble, in one sentence; an empty one says that it is over."""
        if not sentence:
            self.troubles.pop(what, None)
        elif what not in self.troubles:
            self.troubles[what] = sentence
            self._notice(sentence)
