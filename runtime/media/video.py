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

from ..errors import InputError
from .frame import FrameReader, deinterlaced, fitted, pyav
from .images import TooLargeError

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv")  # what can be written
VIDEO_INPUTS = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ts")  # what is looked for
BACK_S = 10  # seconds; how long before a time its keyframe is looked for in files without an index
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own do not see the transparency of WebM
FORMATS = (  # FFmpeg's names of containers that hold the film themselves: no playlist and no list of other files
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,asf,flv,ogg,nut,h264,hevc,vvc,obu,av1,ivf,m4v,mjpeg,dv,mxf,gif,apng,"
    "rm,wtv,yuv4mpegpipe,mp3,wav,flac,aac"  # those of sound are told to be sound
)
MOST_PIXELS = 1 << 27  # px of a frame that is decoded: 16K
EDGES = 1 << 16  # px that decoders put around a small frame
UNSOUGHT = ("avi", "mpeg")  # formats in which reading begins at the first frame
STILLS = ("mjpeg", "png", "bmp", "gif", "webp", "tiff")  # codecs of covers


@dataclass(frozen=True)
class Clip:
    """What a video file says of itself."""

    path: Path
    width: int  # px, upright, each as wide as high
    height: int  # px, upright
    rate: Fraction  # mean, frames/s
    frames: int  # as far as the file tells; else estimated from its duration
    time_base: Fraction  # seconds in one unit of its time stamps
    sound: int  # how many sound tracks; 0 leaves them out
    first: int = 0  # time stamp of its first frame
    max_pixels: int = MOST_PIXELS  # larger frames are passed over as damaged ones are

    @property
    def fps(self) -> float:
        """Return the mean rate, frames/s."""
        return float(self.rate)

    @property
    def step(self) -> int:
        """Return how long a frame is shown by the mean rate, in units of `time_base`."""
        return max(1, round(1 / (self.rate * self.time_base)))


@dataclass
class Reading:
    """What reading a clip tells beside its frames: how long the newest is shown, and which ones a damaged file lost."""

    shown: int = 0  # in units of the clip's time base
    start: int | None = None  # time stamp from which on losses count
    awaited: set[int] = field(default_factory=set)  # time stamps of packets whose frame has not come
    damaged: bool = False  # whether a packet could not be decoded; without, some packets just hold no frame

    def take(self, stop: int | None) -> int:
        """Return how many frames before this time stamp did not come, since this was asked last."""
        gone = {stamp for stamp in self.awaited if stop is None or stamp < stop}
        self.awaited -= gone
        return len(gone) if self.damaged else 0


def open_clip(path: Path, max_pixels: int = MOST_PIXELS) -> Clip:
    """Look at a video file. Raises `InputError` when it is none, when nothing in it can be decoded, and `TooLargeError`
    when its frames have more than `max_pixels`, which are not decoded then."""
    with _packets(path, None, max_pixels) as (container, stream, packets):
        first = next(_decoded(packets, stream, path, Reading()), None)
        if first is None:
            raise InputError(f"{path} has no frame that can be decoded.")
        rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
        duration_s = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
        height, width = FrameReader().picture(first, stream.sample_aspect_ratio).shape[:2]
        frames = stream.frames or max(1, round(duration_s * rate))
        sound = len(container.streams.audio)
        return Clip(path, width, height, rate, frames, stream.time_base, sound, first.pts or 0, max_pixels)


def read_frames(
    clip: Clip,
    start: int | None = None,
    stop: int | None = None,
    reading: Reading | None = None,
    *,
    exact: bool = True,
) -> Generator[tuple[int, np.ndarray], None, None]:
    """Yield (time stamp in units of `clip.time_base`, RGB uint8 [height, width, 3]) of each frame in order of time:
    BT.709, upright, with square pixels, deinterlaced, on white, in the clip's size (`frame.FrameReader`).

    `start`: only frames with this time stamp or later. `stop`: only those before this one. Damaged packets are passed
    over; `reading` hears of them. `exact`: see `frame.FrameReader`.
    """
    reading = reading or Reading()
    reading.start = start
    before = None if start is None else start - clip.step  # what is interlaced is joined with the frame before
    with _packets(clip.path, before, clip.max_pixels) as (_, stream, packets):
        last: int | None = None
        reader, shape = FrameReader(exact), (clip.height, clip.width, 3)
        shortest = round(1 / (Fraction(stream.guessed_rate or clip.rate) * clip.time_base))
        for frame in deinterlaced(_decoded(packets, stream, clip.path, reading)):
            stamp = frame.pts
            if stamp is None:
                stamp = 0 if last is None else last + clip.step
            if last is not None and stamp <= last:
                continue  # a damaged file: time stands still or runs backwards
            if stop is not None and stamp >= stop:
                if last is not None:  # until the next, but not much beyond the stop
                    reading.shown = min(stamp - last, max(stop - last, shortest))
                return
            last, reading.shown = stamp, frame.duration or clip.step
            if start is None or stamp >= start:
                yield stamp, fitted(reader.picture(frame, stream.sample_aspect_ratio), shape)


def frame_stamps(clip: Clip) -> list[int] | None:
    """Return the time stamp of every frame in order, in units of `clip.time_base`, without decoding any; None for a
    file that does not tell them, or in which reading cannot begin anywhere."""
    with _packets(clip.path, None, clip.max_pixels) as (container, _, packets):
        if container.format.name in UNSOUGHT:
            return None
        stamps = [packet.pts for packet in packets if packet.size and not packet.is_discard]
    known = sorted({stamp for stamp in stamps if stamp is not None})
    return known if len(known) == len(stamps) else None


def parse_trim(text: str) -> tuple[float, float | None]:
    """Read "a:b" in seconds, either left out, as (start, stop or None); `InputError` for anything else."""
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
        return av.open(str(path), metadata_errors="ignore", container_options={"format_whitelist": FORMATS})
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise InputError(
            f"{path} is not a video that can be read: it is broken, cut off, or of another kind."
        ) from error


def _picture_stream(container: Any, path: Path, max_pixels: int) -> Any:
    """The film: not its cover, and of several tracks the one that players show when nobody chooses.

    `TooLargeError` when its frames have more than `max_pixels`.
    """
    disposition = pyav().stream.Disposition
    tracks = [track for track in container.streams.video if not track.disposition & disposition.attached_pic]
    if not tracks:
        raise InputError(f"{path} has no moving pictures in it, only sound.")
    tracks = [track for track in tracks if track.codec_context is not None]
    if not tracks:
        raise InputError(f"{path} is in a codec that this build of PyAV does not know; convert it to H.264 first.")
    moving = [track for track in tracks if track.codec_context.name not in STILLS or track.frames > 1]
    tracks = moving or tracks  # some programs write a cover as a plain track
    film = next((track for track in tracks if track.disposition & disposition.default), tracks[0])
    pixels = film.codec_context.width * film.codec_context.height
    if pixels > max_pixels:
        raise TooLargeError(
            f"{path} has frames of {pixels / 1e6:.4g} megapixels, and {max_pixels / 1e6:.4g} are the limit; make it "
            "smaller."
        )
    wall = max_pixels + max_pixels // 4 + EDGES  # the second one: a file's head may say something else
    film.codec_context.options = {"max_pixels": str(wall)}
    return film


@contextmanager
def _packets(path: Path, start: int | None, max_pixels: int) -> Iterator[tuple[Any, Any, Iterator[Any]]]:
    """A file's container, its stream of pictures and the packets of that, from a keyframe not later than the time stamp
    `start`; from the first where none can be found."""
    if start is not None:
        with open_container(path) as container:
            stream = _picture_stream(container, path, max_pixels)
            packets = _sought(container, stream, start)
            if packets is not None:
                yield container, stream, packets
                return
    with open_container(path) as container:
        stream = _picture_stream(container, path, max_pixels)
        yield container, stream, container.demux(stream)


def _sought(container: Any, stream: Any, start: int) -> Iterator[Any] | None:
    """The packets from a keyframe not later than a time stamp; None where the file does not lead to one."""
    if container.format.name in UNSOUGHT:
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


def _decoded(packets: Iterator[Any], stream: Any, path: Path, reading: Reading) -> Iterator[Any]:
    """The frames of the packets, shown at their `pts`; without those of damaged ones, and a file that is cut off ends
    where it ends."""
    av = pyav()
    decoder = _alpha_decoder(stream) or stream.codec_context
    by_dts = stream.container.format.name == "avi"  # it tells only when a frame is decoded; that grows with each
    try:
        for packet in packets:
            stamp = packet.pts if packet.size and not packet.is_discard else None
            if stamp is not None and (reading.start is None or stamp >= reading.start):
                reading.awaited.add(stamp)
            try:
                frames = decoder.decode(packet)
            except av.error.InvalidDataError:
                reading.damaged = True
                continue
            for frame in frames:
                reading.awaited.discard(frame.pts)
                if by_dts:
                    frame.pts = frame.dts
                yield frame
    except av.error.InvalidDataError:
        reading.damaged = True
    except av.error.FFmpegError as error:
        raise InputError(f"{path} cannot be decoded: {error}.") from error


def _alpha_decoder(stream: Any) -> Any:
    """The decoder that sees the transparency of a WebM file; None for any other file."""
    av, name = pyav(), ALPHA_DECODERS.get(stream.codec_context.name)
    if name is None or stream.metadata.get("alpha_mode") != "1":
        return None
    try:
        decoder = av.CodecContext.create(name, "r")
        decoder.options = stream.codec_context.options
        return decoder
    except av.codec.codec.UnknownCodecError:
        return None
