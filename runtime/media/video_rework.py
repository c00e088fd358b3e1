"""Rework a whole clip, picture by picture: frames keep their time stamps, sound is copied as it is, long work resumes.

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
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import FidError, InputError
from .images import check_output, replacing
from .mark import embed_mark
from .provenance import Note, append_note, check_label
from .state import flatten, unflatten
from .video import VIDEO_SUFFIXES, Clip, Losses, open_container, pyav, read_frames
from .video_write import SOFTWARE, add_picture_stream, to_frame

PART_FRAMES = 120


class FrameWork(Protocol):
    """What is done to each frame, with a memory that can be kept."""

    def picture(self, image: np.ndarray, time_s: float) -> np.ndarray:
        """The frame RGB uint8 [height, width, 3] at its time in seconds -> RGB uint8, always of one size."""
        ...

    state: Any
    """What it remembers, a dataclass as in `state.flatten`; may be set to what another one of its kind remembered."""


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
    check_label(output, note)
    marked = note is not None and note.mark
    folder = output.with_name(f".{output.name}.parts")
    try:
        parts = _resumable_parts(
            folder, {**settings, "mark": marked, "clip": _fingerprint(clip.path), "trim": list(trim)}
        )
        if parts:
            work.state = unflatten(type(work.state), _read_state(parts[-1]))
        done = sum(int(_read_state(part)["part.frames"]) for part in parts)
        tick(done)
        start, stop = (None if not at else clip.first + math.ceil(Fraction(at) / clip.time_base) for at in trim)
        start = int(_read_state(parts[-1])["part.last"]) + 1 if parts else start
        losses = Losses()
        with closing(read_frames(clip, start, stop, losses)) as frames:
            path = folder / f"{len(parts):06d}.nut"
            while _write_part(clip, path, frames, losses, work, marked, lambda n, d=done: tick(d + n)):
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
    marked: bool,
    tick: Callable[[int], None],
) -> bool:
    """The next part as a file; False when there are no more frames."""
    av = pyav()
    count, first, last = 0, 0, 0
    temporary = part.with_suffix(".unfinished")
    container = stream = None
    for stamp, image in frames:
        picture = work.picture(image, float(stamp * clip.time_base))
        picture = embed_mark(picture) if marked else picture
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
    temporary.chmod(0o600)
    temporary.replace(part)
    own = {"part.frames": np.array(count), "part.first": np.array(first), "part.last": np.array(last)}
    own |= {"part.missing": np.array(losses.take(last))}
    with replacing(part.with_suffix(".npz")) as state:  # last: without it the part does not count
        state.touch(mode=0o600)
        np.savez_compressed(state, allow_pickle=False, **flatten(work.state), **own)
    return True


def _join(clip: Clip, parts: list[Path], output: Path, trimmed: bool, stop: int | None) -> None:
    """Copy the packets of all parts and of the clip's sound into one file, in order of time."""
    av = pyav()
    with (
        open_container(clip.path) as source,
        av.open(str(parts[0]), format="nut") as head,
        av.open(str(output), "w") as target,
    ):
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
        folder.mkdir(mode=0o700)  # what it holds is nobody else's business
        record.touch(mode=0o600)
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
