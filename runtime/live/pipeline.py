"""The live path: camera thread -> mailbox for one frame -> composing thread -> room for one picture -> who shows it.

Every place holds one item, so nothing can pile up and the picture is never later than one frame's wait and one frame's
work; pictures come in the order of their frames. The age of a frame counts from its capture until its picture is handed
over, and is kept as a histogram, so that an hour takes no more memory than a minute. Beside the figures of the whole
run stand those of its last seconds, which tell how it goes now.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..media.camera import Camera, Frame
from ..timing import Timings
from .ages import Ages, percentiles
from .crowd import Crowd
from .layout import Picture, Reenactment

WAIT_S = 0.1  # how often a waiting thread looks whether it should stop
RECENT_S = 3.0  # what counts as now


@dataclass(frozen=True)
class Made:
    """One picture, composed."""

    frame: Frame
    picture: Picture


@dataclass(frozen=True)
class Shown:
    """One picture, handed over."""

    image: np.ndarray  # RGB uint8 [height, width, 3]
    number: int  # of its frame
    time_s: float  # of its frame, from the first on
    age_ms: float  # from capture to hand-over
    seen: bool  # whether there was a face


class Live:
    """A camera through a reenactment, on threads of their own, from `start` to `stop`.

    live = Live(camera, reenactment)
    live.start()
    shown = live.take(0.1)  # None: nothing new yet
    """

    def __init__(self, camera: Camera, reenactment: Reenactment | Crowd, *, fps_cap: float | None = None) -> None:
        """`fps_cap`: at most so many pictures a second."""
        self.wishes, self.paused = reenactment.wishes, False
        self.ages, self.taken = Ages(), 0
        self.started_s = self.first_s = 0.0  # `time.perf_counter()` of the start and of the first picture; 0: not yet
        self._camera, self._reenactment = camera, reenactment
        self._gap_s = 1 / fps_cap if fps_cap else 0.0
        self._pictures: queue.Queue[Made] = queue.Queue(1)
        self._stop, self._reset = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="compose", daemon=True)
        self._error: Exception | None = None
        self._stages: dict[str, tuple[float, int]] = {}  # sum of ms, count
        self._recent: deque[tuple[float, float, Timings]] = deque()  # when handed over, age in ms, timings

    def start(self) -> None:
        """Open the camera and begin; raises what the camera raises."""
        self._camera.start()
        self.started_s = time.perf_counter()
        self._thread.start()

    def stop(self) -> None:
        """End both threads."""
        self._stop.set()
        self._camera.stop()
        if self._thread.is_alive():
            self._thread.join(10)

    def change(self, **wishes: Any) -> None:
        """Wish for something else, from the next frame on: the fields of `layout.Wishes`."""
        self.wishes = replace(self.wishes, **wishes)

    def reset(self) -> None:
        """Forget the face and all smoothing before the next frame."""
        self._reset.set()

    def take(self, timeout_s: float) -> Shown | None:
        """Return the next picture; None when there was none in time. Raises what ended the threads, if anything did."""
        self._camera.check()
        try:
            made = self._pictures.get(timeout=timeout_s)
        except queue.Empty:
            if self._error is not None:
                raise self._error from None
            if self._camera.error is not None:
                raise self._camera.error from None
            return None
        now = time.perf_counter()
        age_ms = 1e3 * (now - made.frame.captured_s)
        self.ages.add(age_ms, now - self.started_s)
        self.taken += 1
        self.first_s = self.first_s or now
        picture = made.picture
        for stage, ms in picture.timings.items():
            total, count = self._stages.get(stage, (0.0, 0))
            self._stages[stage] = total + ms, count + 1
        self._recent.append((now, age_ms, picture.timings))
        self._forget()
        return Shown(picture.image, made.frame.number, made.frame.time_s, age_ms, picture.seen)

    def _forget(self) -> None:
        while self._recent and time.perf_counter() - self._recent[0][0] > RECENT_S:
            self._recent.popleft()

    @property
    def ended(self) -> bool:
        """Whether no picture will come any more, nor an error that `take` has to raise."""
        failed = self._error is not None or self._camera.error is not None
        return not self._thread.is_alive() and self._pictures.empty() and not failed

    @property
    def dropped(self) -> int:
        """Frames that nobody took because a newer one came."""
        return self._camera.mailbox.dropped

    @property
    def stage_ms(self) -> dict[str, float]:
        """Mean ms of every stage so far."""
        return {stage: round(total / count, 2) for stage, (total, count) in self._stages.items()}

    def recent(self) -> dict[str, Any]:
        """Return fps, frame_age_ms and stage_ms of the last `RECENT_S` seconds."""
        self._forget()
        seconds = min(RECENT_S, max(time.perf_counter() - self.started_s, 1e-9))
        stages: dict[str, list[float]] = {}
        for _, _, timings in self._recent:
            for stage, ms in timings.items():
                stages.setdefault(stage, []).append(ms)
        return {
            "fps": len(self._recent) / seconds,
            "frame_age_ms": percentiles([age for _, age, _ in self._recent], 3),
            "stage_ms": {stage: float(np.mean(values)) for stage, values in stages.items()},
        }

    def _run(self) -> None:
        due_s = 0.0
        try:
            while not self._stop.is_set() and not self._camera.mailbox.ended:
                if self._reset.is_set():
                    self._reset.clear()
                    self._reenactment.reset()
                if self._stop.wait(max(0.0, due_s - time.perf_counter())):
                    return
                frame = None if self._pause() else self._camera.mailbox.take(WAIT_S)
                if frame is None:
                    continue
                due_s = max(due_s + self._gap_s, time.perf_counter())
                self._hand_over(Made(frame, self._reenactment.show(frame.image, frame.time_s, self.wishes)))
        except Exception as error:  # raised again by `take`, in the caller's thread
            self._error = error

    def _pause(self) -> bool:
        if self.paused:
            self._stop.wait(WAIT_S)
        return self.paused

    def _hand_over(self, made: Made) -> None:
        while not self._stop.is_set():
            try:
                self._pictures.put(made, timeout=WAIT_S)
                return
            except queue.Full:
                continue
