"""Read video files through PyAV: upright frames with their own time stamps, and what a damaged file does not give."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FidError, InputError

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv")  # what can be written
VIDEO_INPUTS = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ts")  # what is looked for
BACK_S = 10  # seconds; how long before a time its keyframe is looked for in files without an index
MAX_STRETCH = 4  # wide pixels are made square up to this; what says more is no picture for anybody
MISSING = "PyAV is not installed, which reads and writes videos: `pip install 'fid-face[video]'`."
EXACT = 4 | 0x2000 | 0x4000 | 0x40000  # swscale: bicubic, colour of every pixel, rounded; else all turns 1 to 2 darker


@dataclass(frozen=True)
class Clip:
    """What a video file says of itself."""

    path: Path
    width: int  # px, upright, each as wide as high
    height: int  # px, upright
    fps: float  # mean, frames/s
    frames: int  # as far as the file tells; else estimated from its duration
    time_base: Fraction  # seconds in one unit of its time stamps
    sound: int  # how many sound tracks; 0 leaves them out
    first: int = 0  # time stamp of its first frame


@dataclass
class Losses:
    """The frames that a reader waits for in vain, because a file is damaged."""

    start: int | None = None  # time stamp from which on they count
    awaited: set[int] = field(default_factory=set)  # time stamps of packets whose frame has not come
    damaged: bool = False  # whether a packet could not be decoded; without, some packets just hold no frame

    def take(self, stop: int | None) -> int:
        """How many frames before this time stamp did not come, since this was asked last."""
        gone = {stamp for stamp in self.awaited if stop is None or stamp < stop}
        self.awaited -= gone
        return len(gone) if self.damaged else 0


def pyav() -> Any:
    """The package `av`; `FidError` with the pip line when it is missing."""
    try:
        import av
    except ImportError as error:
        raise FidError(MISSING) from error
    return av


def open_clip(path: Path) -> Clip:
    """Look at a video file. Raises `InputError` when it is none, or when nothing in it can be decoded."""
    with _packets(path, None) as (container, stream, packets):
        first = next(_decoded(packets, path, Losses()), None)
        if first is None:
            raise InputError(f"{path} has no frame that can be decoded.")
        fps = float(stream.average_rate or stream.guessed_rate or 25)
        duration_s = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
        height, width = upright(first, stream).shape[:2]
        frames = stream.frames or max(1, round(duration_s * fps))
        begin = _stamp(first, container) or 0
        return Clip(path, width, height, fps, frames, stream.time_base, len(container.streams.audio), begin)


def read_frames(
    clip: Clip, start: int | None = None, stop: int | None = None, losses: Losses | None = None
) -> Generator[tuple[int, np.ndarray], None, None]:
    """(time stamp in units of `clip.time_base`, RGB uint8 [height, width, 3], upright) of each frame in order of time.

    `start`: only frames with this time stamp or later. `stop`: only those before this one. Damaged packets are passed
    over; `losses` hears of them.
    """
    losses = losses or Losses()
    losses.start = start
    with _packets(clip.path, start) as (container, stream, packets):
        last: int | None = None
        step = max(1, round(1 / (clip.fps * float(clip.time_base))))
        for frame in _decoded(packets, clip.path, losses):
            stamp = _stamp(frame, container)
            if stamp is None:
                stamp = 0 if last is None else last + step
            if last is not None and stamp <= last:
                continue  # a damaged file: time stands still or runs backwards
            if stop is not None and stamp >= stop:
                return
            last = stamp
            if start is None or stamp >= start:
                yield stamp, upright(frame, stream)


def upright(frame: Any, stream: Any) -> np.ndarray:
    """A decoded frame as RGB uint8 [height, width, 3], turned as the file demands, and with square pixels: a face that
    is squeezed is another face."""
    stretch = stream.sample_aspect_ratio or 1
    width = round(frame.width * stretch) if 1 / MAX_STRETCH <= stretch <= MAX_STRETCH else frame.width
    image = frame.reformat(width=width, format="rgb24", interpolation=EXACT).to_ndarray()
    quarters = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, quarters)) if quarters else image


def parse_trim(text: str) -> tuple[float, float | None]:
    """ "a:b" in seconds, either left out, as (start, stop or None); `InputError` for anything else."""
    parts = text.split(":")
    try:
        start, stop = (float(part) if part.strip() else None for part in parts)
    except ValueError:
        start = stop = math.nan
    if not all(math.isfinite(time_s) for time_s in (start, stop) if time_s is not None):
        raise InputError(f"--trim {text} is not understood; give seconds as START:STOP, such as 2.5:10.")
    if (start or 0.0) < 0 or (stop is not None and stop <= (start or 0.0)):
        raise InputError(f"--trim {text} leaves nothing; give seconds as START:STOP with STOP after START.")
    return start or 0.0, stop


def open_container(path: Path) -> Any:
    """Open a video file with PyAV; `InputError` for what cannot be read."""
    av = pyav()
    if not path.is_file():
        raise InputError(f"{path} does not exist." if not path.exists() else f"{path} is not a file.")
    try:
        return av.open(str(path), metadata_errors="ignore")
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise InputError(
            f"{path} is not a video that can be read: it is broken, cut off, or of another kind."
        ) from error


def _picture_stream(container: Any, path: Path) -> Any:
    if not container.streams.video:
        raise InputError(f"{path} has no pictures in it, only sound.")
    return container.streams.video[0]


@contextmanager
def _packets(path: Path, start: int | None) -> Iterator[tuple[Any, Any, Iterator[Any]]]:
    """A file's container, its stream of pictures and the packets of that, from a keyframe not later than the time stamp
    `start`; from the first where none can be found."""
    if start is not None:
        with open_container(path) as container:
            stream = _picture_stream(container, path)
            packets = _sought(container, stream, start)
            if packets is not None:
                yield container, stream, packets
                return
    with open_container(path) as container:
        stream = _picture_stream(container, path)
        yield container, stream, container.demux(stream)


def _sought(container: Any, stream: Any, start: int) -> Iterator[Any] | None:
    """The packets from a keyframe not later than a time stamp; None where the file does not lead to one."""
    if container.format.name in ("avi", "mpeg"):
        return None  # the same frame may have another time stamp when reading begins elsewhere
    for back_s in (0, BACK_S):
        try:
            container.seek(start - round(back_s / stream.time_base), stream=stream)
            packets = container.demux(stream)
            head = next((packet for packet in packets if packet.is_keyframe), None)
        except pyav().error.FFmpegError:  # no index, no time stamps
            return None
        if head is not None and head.pts is not None and head.pts <= start:
            return chain([head], packets)
    return None


def _stamp(frame: Any, container: Any) -> int | None:
    """When a frame is shown. AVI tells only when it is decoded, and that grows with every frame that comes out."""
    return frame.dts if container.format.name == "avi" else frame.pts


def _decoded(packets: Iterator[Any], path: Path, losses: Losses) -> Iterator[Any]:
    """The frames of the packets; without those of damaged ones, and a file that is cut off ends where it ends."""
    av = pyav()
    try:
        for packet in packets:
            if packet.size and packet.pts is not None and (losses.start is None or packet.pts >= losses.start):
                losses.awaited.add(packet.pts)
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                losses.damaged = True
                continue
            for frame in frames:
                losses.awaited.discard(frame.pts)
                yield frame
    except av.error.InvalidDataError:
        losses.damaged = True
    except av.error.FFmpegError as error:
        raise InputError(f"{path} cannot be decoded: {error}.") from error
