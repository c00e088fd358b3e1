"""The cameras of this machine, by number and by name."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2

from ..errors import InputError

VIDEO4LINUX = Path("/sys/class/video4linux")
DEVICES = Path("/dev")
PROBED = 6  # cameras 0 to 5 are tried where the system cannot be asked for a list


@dataclass(frozen=True)
class CameraInfo:
    """One camera of this machine."""

    index: int  # what OpenCV calls it
    name: str  # what its maker calls it
    backend: str  # what reads it: V4L2, DSHOW, AVFOUNDATION


def list_cameras() -> list[CameraInfo]:
    """Return the cameras of this machine. Only Linux and macOS tell names without further software; elsewhere the first
    few numbers are tried one by one."""
    backend = capture_backend()[1]
    if sys.platform.startswith("linux"):
        found = []
        for entry in sorted(VIDEO4LINUX.glob("video*"), key=lambda path: int(path.name[5:] or 0)):
            second = (entry / "index").read_text().strip() if (entry / "index").is_file() else "0"
            if second == "0":  # further nodes of one camera carry its metadata
                found.append(CameraInfo(int(entry.name[5:]), (entry / "name").read_text().strip(), backend))
        return found
    if sys.platform == "darwin":
        return [CameraInfo(number, name, backend) for number, name in enumerate(_names_on_macos())]
    return [CameraInfo(n, f"camera {n}", backend) for n in range(PROBED) if _probe(n)]


def find_camera(text: str) -> int | Path:
    """Return the number of the camera that is meant by a number or a part of its name, or the file that plays one.

    Raises `InputError`, naming the cameras that are there, when there is none or more than one of that name.
    """
    if text.isdecimal():
        return int(text)
    if Path(text).is_file():
        return Path(text)
    if text.startswith("/dev/video") and text[10:].isdecimal():
        return int(text[10:])
    cameras = list_cameras()
    exact = [camera for camera in cameras if camera.name.lower() == text.lower()]
    named = exact or [camera for camera in cameras if text.lower() in camera.name.lower()]
    if len(named) == 1:
        return named[0].index
    if Path(text).suffix and not named:
        raise InputError(f"{text} does not exist; --camera takes a camera's number, its name, or a video file.")
    many = "no camera is" if not named else f"{len(named)} cameras are"
    raise InputError(f"{many} called {text!r}; {describe_cameras(named or cameras)}")


def describe_cameras(cameras: list[CameraInfo]) -> str:
    """Return one sentence that lists cameras."""
    if not cameras:
        return "this machine has no camera that can be seen; a video file can play one: --camera FILE."
    return "there are " + ", ".join(f"{camera.index} ({camera.name})" for camera in cameras) + "."


def why_not(index: int) -> str:
    """Return one sentence on why camera `index` does not open, with what to do."""
    if sys.platform.startswith("linux"):
        device = DEVICES / f"video{index}"
        if not device.exists():
            return f"there is no camera {index}; {describe_cameras(list_cameras())}"
        if not os.access(device, os.R_OK | os.W_OK):
            return (
                f"this user may not open {device}; `sudo usermod -aG video $USER`, then log in again, gives the "
                "permission."
            )
        return f"camera {index} does not open; another program may be using it, or it records no pictures (--list)."
    return (
        f"camera {index} does not open; it may not exist (--list), another program may be using it, or the system's "
        "privacy settings forbid it."
    )


def capture_backend() -> tuple[int, str]:
    """Return OpenCV's number and name of what reads cameras here, whose numbers stay the same at every start."""
    if sys.platform.startswith("linux"):
        return cv2.CAP_V4L2, "V4L2"
    if sys.platform == "darwin":
        return cv2.CAP_AVFOUNDATION, "AVFOUNDATION"
    return cv2.CAP_DSHOW, "DSHOW"  # it opens at once; Media Foundation may take minutes and counts differently


def _probe(index: int) -> bool:
    capture = cv2.VideoCapture(index, capture_backend()[0])
    try:
        return capture.isOpened()
    finally:
        capture.release()


def _names_on_macos() -> list[str]:
    done = subprocess.run(["system_profiler", "SPCameraDataType"], capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("    ") and not line.startswith("     ")]
    return [line.strip().rstrip(":") for line in lines]
