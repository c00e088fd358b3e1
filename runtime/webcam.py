"""`fid-run webcam`: a camera, composed live, in a window, a file, a virtual camera, or for figures only."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from .camera import Camera
from .errors import FidError
from .identity import Identity
from .images import write_image
from .live import Live, Shown
from .provenance import Note
from .reenact import VIEWS, Reenactment
from .video import Recorder
from .window import Window, draw_text, help_lines

VCAM_MISSING = "pyvirtualcam is not installed: `pip install 'fid-face[vcam]'`."
VCAM_ABSENT = {
    "linux": "there is no virtual camera; `sudo apt install v4l2loopback-dkms`, then `sudo modprobe v4l2loopback "
    "devices=1 exclusive_caps=1`, makes one.",
    "darwin": "there is no virtual camera; install OBS 30 or newer, and start and stop its virtual camera once.",
    "win32": "there is no virtual camera; install OBS, and start and stop its virtual camera once.",
}
SMOOTH_STEP = 0.25
OVERLAY_EVERY_S = 0.5  # so often its figures are renewed


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
        reenactment: Reenactment,
        identities: Sequence[Identity],
        sinks: Sinks,
        *,
        mirror: bool = False,
        fps_cap: float | None = None,
        note: Callable[[str], Note | None] = lambda kind: None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`note` gives the provenance note for a kind of picture; `say` hears one sentence for what happened."""
        self.live = Live(camera, reenactment, mirror=mirror, fps_cap=fps_cap)
        self.overlay, self.help, self.over = True, False, False
        self._reenactment, self._identities, self._sinks = reenactment, list(identities), sinks
        self._note, self._say = note, say
        self._window = Window("fid") if sinks.window else None
        self._recorder = Recorder(sinks.record, note=note("reenactment")) if sinks.record else None
        self._virtual: Any = None
        self._latest: Shown | None = None
        self._overlay_lines: list[str] = []
        self._overlay_due_s = 0.0

    def run(self, duration_s: float | None = None) -> None:
        """Show pictures until the user quits, the file ends, or the time is over. Errors come in one sentence."""
        try:
            self.live.start()
            end_s = None if duration_s is None else time.perf_counter() + duration_s
            while not self.over and not self.live.ended and (end_s is None or time.perf_counter() < end_s):
                shown = self.live.take(0.02)
                if shown is not None:
                    self._latest = shown
                    self._sink(shown)
                if self._window is not None:
                    for action in self._window.actions():
                        self.do(action)
        finally:
            self.live.stop()
            if self._window is not None:
                self._window.close()
            if self._virtual is not None:
                self._virtual.close()
            self._stop_recording()

    def do(self, action: str) -> None:
        """One action of `window.KEYS`."""
        reenactment = self._reenactment
        if action.startswith("identity "):
            self._choose(int(action.split()[1]))
        elif action == "overlay":
            self.overlay = not self.overlay
        elif action == "help":
            self.help = not self.help
        elif action == "mirror":
            self.live.mirror = not self.live.mirror
        elif action == "pause":
            self.live.paused = not self.live.paused
        elif action == "recalibrate":
            self.live.order(reenactment.reset)
            self._say("looking for the face anew.")
        elif action in ("smoother", "livelier"):
            change = SMOOTH_STEP if action == "smoother" else -SMOOTH_STEP
            strength = float(np.clip(reenactment.reenactor.smooth + change, 0, 10))
            self.live.order(lambda: setattr(reenactment.reenactor, "smooth", strength))
            self._say(f"smoothing {strength:g}.")
        elif action == "view":
            if self._recorder is not None or self._virtual is not None:
                self._say("the view stays while it is recorded or sent to the virtual camera.")
                return
            following = VIEWS[(VIEWS.index(reenactment.layout.view) + 1) % len(VIEWS)]
            self.live.order(lambda: setattr(reenactment.layout, "view", following))
        elif action == "screenshot":
            self._screenshot()
        elif action == "record":
            self._toggle_recording()
        elif action == "quit":
            self.over = True

    def report(self) -> dict[str, Any]:
        """fps, frame_age_ms, stage_ms, dropped, frames, and the slope of the age."""
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
        if self._recorder is not None:
            self._recorder.write(shown.image, shown.time_s)
        if self._sinks.virtual_camera:
            if self._virtual is None:
                self._virtual = open_virtual_camera(shown.image.shape)
                self._say(f"the virtual camera is {self._virtual.device}.")
            self._virtual.send(np.ascontiguousarray(shown.image))
        if self._window is not None:
            self._window.show(draw_text(shown.image, self._lines()))

    def _lines(self) -> list[str]:
        lines = list(help_lines()) if self.help else []
        if self.overlay:
            if time.perf_counter() >= self._overlay_due_s:
                self._overlay_lines = self.overlay_lines()
                self._overlay_due_s = time.perf_counter() + OVERLAY_EVERY_S
            lines = self._overlay_lines + lines
        return lines

    def overlay_lines(self) -> list[str]:
        """What the overlay says."""
        now = self.report()
        age = now["frame_age_ms"]
        lines = [
            f"{now['fps']:.1f} fps  {self._reenactment.reenactor.composer.provider}",
            f"age ms  p50 {age['p50']:.0f}  p95 {age['p95']:.0f}  p99 {age['p99']:.0f}",
            "  ".join(f"{stage} {ms:.0f}" for stage, ms in now["stage_ms"].items()),
            f"dropped {now['dropped']}" + ("  recording" if self._recorder is not None else ""),
        ]
        if self._latest is not None and not self._latest.seen:
            lines.append("no face is seen")
        return lines

    def _choose(self, number: int) -> None:
        if number > len(self._identities):
            there = "is 1 identity" if len(self._identities) == 1 else f"are {len(self._identities)} identities"
            self._say(f"identity {number} was asked for and there {there}.")
            return
        composer = self._reenactment.reenactor.composer
        self.live.order(lambda: setattr(composer, "identity", self._identities[number - 1]))
        self._say(f"identity {number}.")

    def _screenshot(self) -> None:
        if self._latest is None:
            return
        path = self._sinks.folder / f"fid-{_now()}.png"
        write_image(path, self._latest.image, self._note("reenactment"))
        self._say(f"{path} is saved.")

    def _toggle_recording(self) -> None:
        if self._recorder is not None:
            self._stop_recording()
            return
        try:
            self._recorder = Recorder(self._sinks.folder / f"fid-{_now()}.mp4", note=self._note("reenactment"))
        except FidError as error:  # a key must not end the show
            self._say(str(error))
            return
        self._say(f"recording to {self._recorder.output}.")

    def _stop_recording(self) -> None:
        if self._recorder is not None:
            recorder, self._recorder = self._recorder, None
            recorder.close()
            if recorder.count:
                self._say(f"{recorder.output} is saved ({recorder.count} pictures, {recorder.encoder}).")


def open_virtual_camera(shape: tuple[int, ...], fps: float = 30.0) -> Any:
    """A virtual camera for pictures RGB uint8 of that shape [height, width, 3]; `FidError` says how to get one."""
    try:
        import pyvirtualcam  # pyright: ignore[reportMissingImports] - an extra, under the GPL
    except ImportError as error:
        raise FidError(VCAM_MISSING) from error
    try:
        return pyvirtualcam.Camera(width=shape[1], height=shape[0], fps=fps)
    except RuntimeError as error:
        absent = VCAM_ABSENT.get("linux" if sys.platform.startswith("linux") else sys.platform, VCAM_ABSENT["win32"])
        raise FidError(absent) from error


def resident_mb() -> float:
    """Memory of this process that is really in use, in MB; the peak where the system tells no more."""
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
