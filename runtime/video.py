"""Video files through PyAV: every frame keeps its time stamp, sound is copied as it is, and long work resumes.

The frames are composed in parts of `PART_FRAMES`. Each part is a small file beside the output, with what tracker and
the filters remember at its end, so that a run that was stopped or killed goes on after its last whole part and gives
the same file as one that was not. At the end the parts are joined and the sound is copied, in one pass; nothing holds
more than a few frames in memory. There are no B-frames, so that decoding order is the order of time across parts.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
import queue
import shutil
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .errors import FidError, InputError
from .images import check_output, replacing
from .provenance import Note, append_note

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv")  # what can be written
VIDEO_INPUTS = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ts")  # what is looked for
PART_FRAMES = 120
BACK_S = 10  # seconds; how long before a time its keyframe is looked for in files without an index
MAX_STRETCH = 4  # wide pixels are made square up to this; what says more is no picture for anybody
CLOCK = Fraction(1, 90000)  # seconds; the unit of a recording's time stamps
MISSING = "PyAV is not installed, which reads and writes videos: `pip install 'fid-face[video]'`."
SOFTWARE = "libx264"
ENCODERS = (
    "h264_nvenc",
    "h264_videotoolbox",
    "h264_qsv",
    "h264_amf",
    SOFTWARE,
)  # tried in this order for live pictures
BT709, LIMITED = 1, 1  # FFmpeg's numbers of the colour space of HD video and of its range 16..235
EXACT = 4 | 0x2000 | 0x4000 | 0x40000  # swscale: bicubic, colour of every pixel, rounded; else all turns 1 to 2 darker
QUALITY = {"crf": "18", "preset": "veryfast", "bf": "0"}  # of libx264; 18 is called visually lossless by its makers


class FrameWork(Protocol):
    """What is done to each frame, with a memory that can be kept."""

    def picture(self, image: np.ndarray, time_s: float) -> np.ndarray:
        """The frame RGB uint8 [height, width, 3] at its time in seconds -> RGB uint8, always of one size."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """What it remembers, as arrays."""
        ...

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Remember what `state` gave."""
        ...


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


def rework(
    clip: Clip,
    output: Path,
    work: FrameWork,
    *,
    settings: dict[str, Any],
    trim: tuple[float, float | None] = (0.0, None),
    note: Note | None = None,
    tick: Callable[[int], None] = lambda frames: None,
) -> tuple[int, int]:
    """Write `output`: the clip with every frame through `work`; returns how many frames it has, and how many are
    missing in it because the clip is damaged.

    `trim`: seconds after the clip's first frame. `settings`, a JSON object, names everything that the pictures depend
    on: parts that a former run left are used again when theirs are equal. `tick` hears how many frames are ready. The
    output appears complete or not at all.
    """
    check_output(output, VIDEO_SUFFIXES)
    folder = output.with_name(f".{output.name}.parts")
    try:
        parts = _resumable_parts(folder, {**settings, "clip": _fingerprint(clip.path), "trim": list(trim)})
        if parts:
            work.restore(_read_state(parts[-1]))
        done = sum(int(_read_state(part)["part.frames"]) for part in parts)
        tick(done)
        start, stop = (None if not at else clip.first + math.ceil(Fraction(at) / clip.time_base) for at in trim)
        start = int(_read_state(parts[-1])["part.last"]) + 1 if parts else start
        losses = Losses()
        with closing(read_frames(clip, start, stop, losses)) as frames:
            path = folder / f"{len(parts):06d}.nut"
            while _write_part(clip, path, frames, losses, work, lambda n, d=done: tick(d + n)):
                parts.append(path)
                done += int(_read_state(path)["part.frames"])
                path = folder / f"{len(parts):06d}.nut"
        if not parts:
            shutil.rmtree(folder)
            raise InputError(f"{clip.path} has no frames between {trim[0]:g} s and {trim[1] or 'its end'}.")
        with replacing(output) as temporary:
            _join(clip, parts, temporary, bool(trim[0]), stop)
            if note is not None:
                append_note(temporary, note)
        missing = sum(int(_read_state(part)["part.missing"]) for part in parts) + losses.take(stop)
        if losses.damaged and trim == (0.0, None):
            missing = max(missing, clip.frames - done)  # the rest of a file that is cut off
        shutil.rmtree(folder)
    except OSError as error:
        raise FidError(f"{output} could not be written: {error.strerror or error}.") from error
    return done, missing


def _write_part(
    clip: Clip,
    part: Path,
    frames: Iterator[tuple[int, np.ndarray]],
    losses: Losses,
    work: FrameWork,
    tick: Callable[[int], None],
) -> bool:
    """The next part as a file; False when there are no more frames."""
    av = pyav()
    count, first, last = 0, 0, 0
    temporary = part.with_suffix(".unfinished")
    container = stream = None
    for stamp, image in frames:
        picture = work.picture(image, float(stamp * clip.time_base))
        if container is None or stream is None:
            first = stamp
            container = av.open(str(temporary), "w", format="nut")  # keeps any time base exactly
            stream = add_picture_stream(container, picture.shape, clip.time_base, clip.fps, (SOFTWARE,))
        for packet in stream.encode(to_frame(picture, stamp - first, clip.time_base)):
            container.mux(packet)
        count, last = count + 1, stamp
        tick(count)
        if count == PART_FRAMES:
            break
    if container is None or stream is None:
        return False
    for packet in stream.encode():
        container.mux(packet)
    container.close()
    temporary.replace(part)
    own = {"part.frames": np.array(count), "part.first": np.array(first), "part.last": np.array(last)}
    own |= {"part.missing": np.array(losses.take(last))}
    with replacing(part.with_suffix(".npz")) as state:  # last: without it the part does not count
        np.savez_compressed(state, allow_pickle=False, **work.state(), **own)
    return True


def add_picture_stream(
    container: Any, shape: tuple[int, ...], time_base: Fraction, fps: float, encoders: tuple[str, ...] = ENCODERS
) -> Any:
    """An H.264 stream for pictures [height, width, 3], by the first encoder that works here.

    Odd sides lose their last row or column: H.264 stores colour for blocks of 2 x 2.
    """
    av = pyav()
    for name in encoders:
        try:
            av.codec.Codec(name, "w")
        except av.codec.codec.UnknownCodecError:
            continue
        if name != SOFTWARE and not _encodes(name):
            continue
        stream = container.add_stream(name, rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = shape[1] // 2 * 2, shape[0] // 2 * 2, "yuv420p"
        stream.codec_context.time_base = stream.time_base = time_base
        stream.codec_context.options = QUALITY if name == SOFTWARE else {"bf": "0"}
        for what in ("colorspace", "color_primaries", "color_trc"):
            setattr(stream.codec_context, what, BT709)
        stream.codec_context.color_range = LIMITED
        return stream
    raise FidError("this build of PyAV has no H.264 encoder; `pip install --force-reinstall av` brings one.")


def _encodes(name: str) -> bool:
    """Whether a hardware encoder really opens on this machine."""
    av = pyav()
    try:
        context = av.CodecContext.create(name, "w")
        context.width, context.height, context.pix_fmt = 256, 256, "yuv420p"
        context.time_base = Fraction(1, 30)
        context.open()
    except (av.error.FFmpegError, ValueError):
        return False
    return True


def to_frame(picture: np.ndarray, stamp: int, time_base: Fraction) -> Any:
    """RGB uint8 [height, width, 3] as a frame for the encoder, in BT.709."""
    even = np.ascontiguousarray(picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2])
    frame = pyav().VideoFrame.from_ndarray(even, format="rgb24")
    frame = frame.reformat(format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED, interpolation=EXACT)
    frame.pts, frame.time_base = stamp, time_base
    return frame


def _join(clip: Clip, parts: list[Path], output: Path, trimmed: bool, stop: int | None) -> None:
    """Copy the packets of all parts and of the clip's sound into one file, in order of time."""
    av = pyav()
    with _open(clip.path) as source, av.open(str(parts[0]), format="nut") as head, av.open(str(output), "w") as target:
        shift = int(_read_state(parts[0])["part.first"]) * clip.time_base if trimmed else _zero(source)
        picture = target.add_stream_from_template(head.streams.video[0])
        picture.time_base = clip.time_base
        try:
            tracks = {
                track.index: target.add_stream_from_template(track) for track in source.streams.audio if clip.sound
            }
            target.start_encoding()  # writes the head
        except (av.error.FFmpegError, ValueError) as error:
            codec = source.streams.audio[0].codec_context.name if clip.sound else "no"
            raise InputError(
                f"{output.suffix} files cannot hold {codec} sound unchanged; write a .mkv file."
            ) from error
        flows = [_picture_packets(clip, parts, picture, shift)]
        if tracks:
            flows.append(_sound_packets(source, tracks, (shift, None if stop is None else stop * clip.time_base)))
        try:
            for _, packet in heapq.merge(*flows, key=lambda timed: timed[0]):
                target.mux_one(packet)
        except (av.error.FFmpegError, ValueError) as error:
            raise FidError(f"the parts could not be joined: {error}.") from error


def _picture_packets(clip: Clip, parts: list[Path], stream: Any, shift: Fraction) -> Iterator[tuple[Fraction, Any]]:
    av = pyav()
    offset = round(shift / clip.time_base)
    for part in parts:
        first = int(_read_state(part)["part.first"])
        with av.open(str(part), format="nut") as container:
            for packet in container.demux(container.streams.video[0]):
                if packet.pts is None:
                    continue
                stamp = round(packet.pts * packet.time_base / clip.time_base) + first - offset
                packet.stream, packet.time_base = stream, clip.time_base
                packet.pts = packet.dts = stamp
                yield stamp * clip.time_base, packet


def _sound_packets(
    source: Any, tracks: dict[int, Any], span: tuple[Fraction, Fraction | None]
) -> Iterator[tuple[Fraction, Any]]:
    """The sound's packets of a span of time as they are, their time stamps less its start."""
    start, stop = span
    for packet in source.demux([source.streams[index] for index in tracks]):
        if packet.dts is None:
            continue
        time_s = (packet.pts if packet.pts is not None else packet.dts) * packet.time_base
        if (start and time_s < start) or (stop is not None and time_s >= stop):
            continue
        offset = round(start / packet.time_base)
        packet.dts -= offset
        packet.pts = None if packet.pts is None else packet.pts - offset
        packet.stream = tracks[packet.stream.index]
        yield packet.dts * packet.time_base, packet


def _zero(source: Any) -> Fraction:
    """What a file calls time 0, in seconds: a broadcast's clock starts anywhere."""
    started = source.format.name in ("mpegts", "mpeg") and source.start_time
    return Fraction(started or 0, 1_000_000)


def _resumable_parts(folder: Path, settings: dict[str, Any]) -> list[Path]:
    """The whole parts that a run with equal settings left; the folder made anew when there is none."""
    record, text = folder / "settings.json", json.dumps(settings, sort_keys=True, default=str)
    if not record.is_file() or record.read_text() != text:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        record.write_text(text)
    parts: list[Path] = []
    while (part := folder / f"{len(parts):06d}.nut").is_file() and part.with_suffix(".npz").is_file():
        parts.append(part)
    return parts


def _read_state(part: Path) -> dict[str, np.ndarray]:
    with np.load(part.with_suffix(".npz"), allow_pickle=False) as arrays:
        return dict(arrays)


def _fingerprint(path: Path) -> str:
    """Size, time of change and first MB of a file: enough to notice another one of the same name."""
    status = path.stat()
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(1 << 20)).hexdigest()
    return f"{status.st_size}-{status.st_mtime_ns}-{digest[:16]}"


def _open(path: Path) -> Any:
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
        with _open(path) as container:
            stream = _picture_stream(container, path)
            packets = _sought(container, stream, start)
            if packets is not None:
                yield container, stream, packets
                return
    with _open(path) as container:
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


class Recorder:
    """Writes live pictures into a file as they come, in a thread of its own; the file appears when it is closed."""

    def __init__(self, output: Path, fps: float = 30.0, note: Note | None = None) -> None:
        """Raises `InputError` for a name that cannot be written and `FidError` when PyAV is missing."""
        pyav()
        check_output(output, VIDEO_SUFFIXES)
        self.output, self.encoder, self.count = output, "", 0
        self._fps, self._note = fps, note
        self._pictures: queue.Queue[tuple[np.ndarray, float] | None] = queue.Queue(8)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="record", daemon=True)
        self._thread.start()

    def write(self, picture: np.ndarray, time_s: float) -> None:
        """One picture RGB uint8 [height, width, 3] at its time in seconds; waits when the encoder is behind."""
        if self._error is not None:
            raise FidError(f"{self.output} could not be written: {self._error}.") from self._error
        self._pictures.put((picture, time_s))

    def close(self) -> None:
        """Finish the file. Nothing is written when there was no picture."""
        self._pictures.put(None)
        self._thread.join()
        if self._error is not None:
            raise FidError(f"{self.output} could not be written: {self._error}.") from self._error

    def _run(self) -> None:
        try:
            self._record()
        except Exception as error:  # told by the next `write` or by `close`, in the caller's thread
            self._error = error
            while self._pictures.get() is not None:
                pass

    def _record(self) -> None:
        first = self._pictures.get()
        if first is None:
            return
        av, item, begin_s, last = pyav(), first, first[1], -1
        shape = first[0].shape
        with replacing(self.output) as temporary:
            with av.open(str(temporary), "w") as container:
                stream = add_picture_stream(container, shape, CLOCK, self._fps)
                self.encoder = stream.codec_context.name
                while item is not None:
                    picture, time_s = item
                    stamp = max(last + 1, round((time_s - begin_s) / CLOCK))
                    if picture.shape == shape:  # another view may be chosen while it records; a file has one size
                        container.mux(stream.encode(to_frame(picture, stamp, CLOCK)))
                        self.count, last = self.count + 1, stamp
                    item = self._pictures.get()
                container.mux(stream.encode())
            if self._note is not None:
                append_note(temporary, self._note)
