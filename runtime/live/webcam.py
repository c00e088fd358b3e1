"""`fid-run webcam`: a camera, composed live, in a window, a file, a virtual camera, or for figures only."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..engines.machine import return_freed_memory
from ..errors import FidError
from ..identity import Identity
from ..labels.provenance import Note
from ..media.camera import Camera
from ..media.frame import fitted
from ..media.images import write_image
from ..media.video_write import Recorder
from ..media.window import Window, draw_text, help_lines
from .closer import Closer
from .crowd import Crowd
from .layout import MAX_SMOOTH, VIEWS, Reenactment
from .pipeline import Live, Shown

VCAM_MISSING = "pyvirtualcam is not installed: `pip install 'fid-face[vcam]'`."
VCAM_ABSENT = {
    "linux": "there is no virtual camera; `sudo apt install v4l2loopback-dkms`, then `sudo modprobe v4l2loopback "
    "devices=1 exclusive_caps=1`, makes one.",
    "darwin": "there is no virtual camera; install OBS 30 or newer, and start and stop its virtual camera once.",
    "win32": "there is no virtual camera; install OBS, and start and stop its virtual camera once.",
}
SMOOTH_STEP = 0.25
OVERLAY_EVERY_S = 0.5  # time from one renewal of its figures to the next
TOLD_S = 5.0  # time for which the overlay shows what was said
SETTLED = 10  # pictures after which nothing is done for the first time any more


@dataclass(frozen=True)
class Sinks:
    """Where the pictures go."""

    window: bool = True
    record: Path | None = None
    virtual_camera: bool = False
    folder: Path = Path()  # of screenshots and of recordings that a key starts


class Webcam:
    """The loop of `fid-run webcam`, and what its keys do."""

    def __init__(
        self,
        camera: Camera,
        reenactment: Reenactment | Crowd,
        identities: Sequence[Identity],
        sinks: Sinks,
        *,
        fps_cap: float | None = None,
        note: Callable[[str, str], Note | None] = lambda kind, view: None,
        say: Callable[[str], None] = lambda text: None,
        closer: Closer | None = None,
    ) -> None:
        """`note` gives the provenance note for a kind of picture and a view; `say` hears what happens; `closer` looks
        closer at the photos of `identities` while pictures are shown."""
        self.live = Live(camera, reenactment, fps_cap=fps_cap)
        self.overlay, self.help, self.over = True, False, False
        self._camera, self._composer, self._identities = camera, reenactment.composer, list(identities)
        self._sinks, self._note, self._tell, self._closer = sinks, note, say, closer
        self._window = Window("fid") if sinks.window else None
        self._recorder = Recorder(sinks.record, note=self._made()) if sinks.record else None
        self._virtual: Any = None
        self._shape: tuple[int, ...] | None = None  # of all that is recorded or sent to the virtual camera
        self._latest: Shown | None = None
        self._said, self._said_s = "", 0.0
        self._overlay_lines: list[str] = []
        self._overlay_due_s = 0.0

    def run(self, duration_s: float | None = None, ready: Callable[[], None] = lambda: None) -> None:
        """Show pictures until the user quits, the file ends, or the time is over. Errors come in one sentence.

        `ready` may wait for the sessions of a frame while the camera begins and its first face is looked for."""
        with ExitStack() as ends:  # all of them happen, even if one fails
            if self._window is not None:
                ends.callback(self._window.close)
            ends.callback(self._close_virtual)
            ends.callback(self._stop_recording)
            ends.callback(self.live.stop)
            if self._closer is not None:
                ends.callback(self._closer.stop)
            self.live.start()
            ready()
            self.live.started_s = time.perf_counter()
            end_s = None if duration_s is None else time.perf_counter() + duration_s
            while not self.over and not self.live.ended and (end_s is None or time.perf_counter() < end_s):
                shown = self.live.take(0.02)
                if shown is not None:
                    self._latest = shown
                    self._sink(shown)
                    self._look_closer()
                    if self.live.taken == SETTLED:
                        return_freed_memory()
                if self._window is not None:
                    actions = self._window.actions()
                    for action in actions:
                        self.do(action)
                    self._draw(self._window, shown is not None or bool(actions))

    def do(self, action: str) -> None:
        """One action of `Window.actions`."""
        if action.startswith("identity "):
            self._choose(int(action.split()[1]))
        elif action == "overlay":
            self.overlay = not self.overlay
        elif action == "help":
            self.help = not self.help
        elif action == "mirror":
            self.live.change(mirror=not self.live.wishes.mirror)
        elif action == "pause":
            self.live.paused = not self.live.paused
        elif action == "recalibrate":
            self.live.reset()
            self._say("looking for the face anew.")
        elif action in ("smoother", "livelier"):
            change = SMOOTH_STEP if action == "smoother" else -SMOOTH_STEP
            strength = float(np.clip(self.live.wishes.smooth + change, 0, MAX_SMOOTH))
            self.live.change(smooth=strength)
            self._say(f"smoothing {strength:g}.")
        elif action == "view":
            if not self._identities:
                self._say("several people are always shown pasted into the frame.")
                return
            if self._recorder is not None or self._virtual is not None:
                self._say("the view stays while it is recorded or sent to the virtual camera.")
                return
            self.live.change(view=VIEWS[(VIEWS.index(self.live.wishes.view) + 1) % len(VIEWS)])
        elif action == "screenshot":
            self._try(self._screenshot)
        elif action == "record":
            self._try(self._start_recording if self._recorder is None else self._stop_recording)
        elif action == "quit":
            self.over = True

    def report(self) -> dict[str, Any]:
        """Return fps, frame_age_ms, stage_ms, dropped, frames, and the slope of the age."""
        live = self.live
        seconds = max(time.perf_counter() - live.started_s, 1e-9) if live.started_s else 1.0
        return {
            "fps": round(live.taken / seconds, 2),
            "frame_age_ms": live.ages.summary(),
            "age_slope_ms_per_s": round(live.ages.slope_ms_per_s, 3),
            "stage_ms": live.stage_ms,
            "dropped": live.dropped,
            "frames": live.taken,
        }

    def _sink(self, shown: Shown) -> None:
        if self._recorder is None and not self._sinks.virtual_camera:
            self._shape = None
            return
        if self._shape is None:
            self._shape = shown.image.shape
        image = fitted(shown.image, self._shape)
        if self._recorder is not None:
            try:
                self._recorder.write(image, shown.time_s)
            except FidError:
                if self._recorder.output == self._sinks.record:
                    raise
                self._try(self._stop_recording)  # which says why
        if self._sinks.virtual_camera:
            if self._virtual is None:
                self._virtual = open_virtual_camera(image.shape)
                self._say(f"the virtual camera is {self._virtual.device}.")
            self._virtual.send(np.ascontiguousarray(image))

    def _draw(self, window: Window, changed: bool) -> None:
        """The newest picture, and what is written on it, when one of them is new."""
        now = time.perf_counter()
        due = now >= self._overlay_due_s
        if self._latest is None or not (changed or due):
            return
        if due:
            self._overlay_lines, self._overlay_due_s = self.overlay_lines(), now + OVERLAY_EVERY_S
        lines = self._overlay_lines if self.overlay else []
        window.show(draw_text(self._latest.image, self.news() + lines + (help_lines() if self.help else [])))

    def news(self) -> list[str]:
        """Return what is wrong with the camera, and what was said a moment ago."""
        said = self._said if time.perf_counter() < self._said_s + TOLD_S else ""
        return [line for line in (self._camera.trouble, said) if line]

    def overlay_lines(self) -> list[str]:
        """Return the figures of the overlay: of the last seconds."""
        now = self.live.recent()
        age = now["frame_age_ms"]
        states = "  paused" * self.live.paused + "  recording" * (self._recorder is not None)
        lines = [
            f"{now['fps']:.1f} fps  {self._composer.provider}",
            f"age ms  p50 {age['p50']:.0f}  p95 {age['p95']:.0f}  p99 {age['p99']:.0f}",
            "  ".join(f"{stage} {ms:.0f}" for stage, ms in now["stage_ms"].items()),
            f"dropped {self.live.dropped}{states}",
        ]
        if self._latest is not None and not self._latest.seen:
            lines.append("no face is seen")
        return lines

    def _choose(self, number: int) -> None:
        if not self._identities:
            self._say("with several people, who becomes whom stays as it is.")
            return
        if number > len(self._identities):
            there = "is 1 identity" if len(self._identities) == 1 else f"are {len(self._identities)} identities"
            self._say(f"identity {number} was asked for and there {there}.")
            return
        self.live.change(identity=self._identities[number - 1])
        self._say(f"identity {number}.")

    def _look_closer(self) -> None:
        """Begin with it after the first picture, and from then on exchange everybody who has been looked at."""
        if self._closer is None:
            return
        if self.live.taken == 1:
            self._closer.start()
        for place, identity in self._closer.found():
            before, self._identities[place] = self._identities[place], identity
            if self.live.wishes.identity is before:
                self.live.change(identity=identity)

    def _made(self) -> Note | None:
        """The note for what is shown now."""
        return self._note("reenactment", self.live.wishes.view)

    def _screenshot(self) -> None:
        if self._latest is None:
            return
        path = self._sinks.folder / f"fid-{_now()}.png"
        write_image(path, self._latest.image, self._made())
        self._say(f"{path} is saved.")

    def _start_recording(self) -> None:
        self._recorder = Recorder(self._sinks.folder / f"fid-{_now()}.mp4", note=self._made())
        self._say(f"recording to {self._recorder.output}.")

    def _try(self, work: Callable[[], None]) -> None:
        """What a key asked for: a disk that refuses must not end the show."""
        try:
            work()
        except FidError as error:
            self._say(str(error))

    def _say(self, sentence: str) -> None:
        self._said, self._said_s = sentence, time.perf_counter()
        self._tell(sentence)

    def _close_virtual(self) -> None:
        if self._virtual is not None:
            self._virtual.close()

    def _stop_recording(self) -> None:
        if self._recorder is not None:
            recorder, self._recorder = self._recorder, None
            recorder.close()
            if recorder.count:
                self._say(f"{recorder.output} is saved ({recorder.count} pictures, {recorder.encoder}).")


def virtual_cameras() -> Any:
    """Return pyvirtualcam; `FidError`, with the pip line, when it is missing."""
    try:
        import pyvirtualcam  # pyright: ignore[reportMissingImports] - an extra, under the GPL
    except ImportError as error:
        raise FidError(VCAM_MISSING) from error
    return pyvirtualcam


def open_virtual_camera(shape: tuple[int, ...], fps: float = 30.0) -> Any:
    """Return a virtual camera for pictures RGB uint8 of that shape [height, width, 3]; `FidError` says how to get
    one."""
    pyvirtualcam = virtual_cameras()
    try:
        return pyvirtualcam.Camera(width=shape[1], height=shape[0], fps=fps)
    except RuntimeError as error:
        absent = VCAM_ABSENT.get("linux" if sys.platform.startswith("linux") else sys.platform, VCAM_ABSENT["win32"])
        raise FidError(absent) from error


def process_age_s(fallback_s: float) -> float:
    """Return the seconds since this process was started; `fallback_s` where the system does not tell, which is all but
    Linux."""
    try:
        ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return fallback_s
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")


def resident_mb() -> float:
    """Return the memory of this process that is really in use, in MB; the peak where the system tells no more."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        import resource

        return pages * resource.getpagesize() / 1e6
    except OSError:
        try:
            import resource
        except ImportError:
            return 0.0
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


def _now() -> str:
    return datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
