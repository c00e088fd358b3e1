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
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import FidError, InputError
from ..files import replacing
from ..labels.mark import embed_mark
from ..labels.provenance import Note, append_note, check_label
from .frame import pyav
from .images import check_output
from .state import flatten, unflatten
from .video import VIDEO_SUFFIXES, Clip, Reading, open_container, read_frames
from .video_write import SOFTWARE, add_picture_stream, to_frame

PART_FRAMES = 120
MILLISECOND = Fraction(1, 1000)


class FrameWork(Protocol):
    """What is done to each frame, with a memory that can be kept."""

    def picture(self, image: np.ndarray, time_s: float) -> np.ndarray:
        """Return the frame RGB uint8 [height, width, 3], shown at a time in s, as RGB uint8, always of one size."""
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
    check_rework(clip, output, note)
    marked = note is not None and note.mark
    folder = output.with_name(f".{output.name}.parts")
    parts: list[Path] = []
    try:
        parts = _resumable_parts(
            folder, {**settings, "mark": marked, "clip": _fingerprint(clip.path), "trim": list(trim)}
        )
        if parts:
            work.state = unflatten(type(work.state), _read_state(parts[-1]))
        done = sum(int(_read_state(part)["part.frames"]) for part in parts)
        tick(done)
        start, stop = (None if not at else clip.first + math.ceil(Fraction(str(at)) / clip.time_base) for at in trim)
        start = int(_read_state(parts[-1])["part.last"]) + 1 if parts else start
        reading = Reading()
        with closing(read_frames(clip, start, stop, reading)) as frames:
            path = folder / f"{len(parts):06d}.nut"
            while _write_part(clip, path, frames, reading, work, marked, lambda n, d=done: tick(d + n)):
                parts.append(path)
                done += int(_read_state(path)["part.frames"])
                path = folder / f"{len(parts):06d}.nut"
        if not parts:
            raise InputError(f"{clip.path} has no frames between {trim[0]:g} s and {trim[1] or 'its end'}.")
        with replacing(output) as temporary:
            _join(clip, parts, temporary, bool(trim[0]), stop, reading.shown)
            if note is not None:
                append_note(temporary, note)
        missing = sum(int(_read_state(part)["part.missing"]) for part in parts) + reading.take(stop)
        if reading.damaged and trim == (0.0, None):
            missing = max(missing, clip.frames - done)  # the rest of a file that is cut off
        shutil.rmtree(folder)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; {_kept(folder, parts)}.") from None
    except (OSError, pyav().error.FFmpegError, FidError) as error:
        failed = error.__cause__ if isinstance(error, FidError) else error
        kept = _kept(folder, parts)
        if isinstance(error, FidError) and not isinstance(failed, OSError):
            raise  # it has said what it is
        raise FidError(
            f"{output} could not be written: {getattr(failed, 'strerror', '') or failed}; {kept}."
        ) from error
    return done, missing


def rework_span(clip: Clip, folder: Path, work: FrameWork, start: int, stop: int | None, *, marked: bool) -> None:
    """Write the parts of one span of a clip into an empty folder: frames with time stamps from `start` on and before
    `stop`, all that are left for None. `marked`: put the invisible mark into each picture."""
    reading, count = Reading(), 0
    with closing(read_frames(clip, start, stop, reading)) as frames:
        while _write_part(clip, folder / f"{count:06d}.nut", frames, reading, work, marked, lambda ready: None):
            count += 1
    record = {"shown": reading.shown, "missing": reading.take(stop)}
    (folder / "span.json").write_text(json.dumps(record))


def join_spans(clip: Clip, folders: Sequence[Path], output: Path, note: Note | None) -> tuple[int, int]:
    """Write `output` from the spans of a whole clip in order, with its sound; returns what `rework` does."""
    parts = [part for folder in folders for part in sorted(folder.glob("*.nut"))]
    records = [json.loads((folder / "span.json").read_text()) for folder in folders]
    with replacing(output) as temporary:
        _join(clip, parts, temporary, False, None, records[-1]["shown"])
        if note is not None:
            append_note(temporary, note)
    states = [_read_state(part) for part in parts]
    missing = sum(int(state["part.missing"]) for state in states) + sum(record["missing"] for record in records)
    return sum(int(state["part.frames"]) for state in states), missing


def check_rework(clip: Clip, output: Path, note: Note | None) -> None:
    """Raise `InputError` for what `rework` refuses before its work."""
    check_output(output, VIDEO_SUFFIXES)
    _check_sound(clip, output)
    check_label(output, note)


def _kept(folder: Path, parts: list[Path]) -> str:
    """What is kept of unfinished work, as half a sentence; nothing stays when there is nothing to go on from."""
    if not parts:
        shutil.rmtree(folder, ignore_errors=True)
        return "nothing is kept, because no part was ready"
    return f"{len(parts)} parts are kept in {folder}, and the same command goes on from there"


def _write_part(
    clip: Clip,
    part: Path,
    frames: Iterator[tuple[int, np.ndarray]],
    reading: Reading,
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
            temporary.unlink(missing_ok=True)  # of a run that was killed
            temporary.touch(mode=0o600)
            container = av.open(str(temporary), "w", format="nut")  # keeps any time base exactly
            stream = add_picture_stream(container, picture.shape, clip.time_base, clip.rate, (SOFTWARE,))
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
    own |= {"part.missing": np.array(reading.take(last))}
    with replacing(part.with_suffix(".npz")) as state:  # last: without it the part does not count
        state.touch(mode=0o600)
        np.savez_compressed(state, allow_pickle=False, **flatten(work.state), **own)
    return True


def _join(clip: Clip, parts: list[Path], output: Path, trimmed: bool, stop: int | None, shown: int) -> None:
    """Copy the packets of all parts and of the clip's sound into one file, in order of time; the last picture is
    `shown` so long, in units of the clip's time base."""
    av = pyav()
    with (
        open_container(clip.path) as source,
        av.open(str(parts[0]), format="nut") as head,
        av.open(str(output), "w") as target,
    ):
        shift = int(_read_state(parts[0])["part.first"]) * clip.time_base if trimmed else _zero(source)
        clock = _clock(clip, [stamp for _, stamp in _part_packets(clip, parts)])
        picture = target.add_stream_from_template(head.streams.video[0])
        picture.codec_context.framerate, picture.time_base = clip.rate, clock
        tracks = _sound_tracks(clip, source, target, output)
        flows = [_picture_packets(clip, parts, picture, clock, shift, shown)]
        if tracks:
            span = (shift, None if stop is None else stop * clip.time_base)
            flows.append(_sound_packets(source, tracks, span, hides=output.suffix.lower() != ".mkv"))
        try:
            for _, packet in heapq.merge(*flows, key=lambda timed: timed[0]):
                target.mux_one(packet)
        except (av.error.FFmpegError, ValueError) as error:
            raise FidError(f"the parts could not be joined: {error}.") from error


def _sound_tracks(clip: Clip, source: Any, target: Any, output: Path) -> dict[int, Any]:
    """The tracks of the output for those of the source's sound, by their number there; the head is written with them.
    `InputError` for sound that the output cannot hold as it is."""
    codec = ""
    try:
        tracks = {}
        for track in source.streams.audio if clip.sound else ():
            if track.codec_context is None:
                raise InputError(f"the sound of {clip.path} is in a codec that PyAV does not know; convert it first.")
            codec = track.codec_context.name
            tracks[track.index] = target.add_stream_from_template(track)
        target.start_encoding()
    except (pyav().error.FFmpegError, ValueError) as error:
        raise InputError(f"{output.suffix} files cannot hold {codec} sound unchanged; write a .mkv file.") from error
    return tracks


def _check_sound(clip: Clip, output: Path) -> None:
    """Raise `InputError` for sound that the output cannot hold: before the work, not after it."""
    if clip.sound:
        kind = {".mkv": "matroska"}.get(output.suffix.lower(), output.suffix.lower()[1:])
        with open_container(clip.path) as source, pyav().open(BytesIO(), "w", format=kind) as target:
            _sound_tracks(clip, source, target, output)


def _clock(clip: Clip, stamps: list[int]) -> Fraction:
    """The unit of the output's time stamps, in seconds: the clip's own, unless that counts ms and these are the rounded
    times of a constant rate. Then it is one that holds those exactly."""
    if clip.time_base != MILLISECOND:
        return clip.time_base
    constant = all(abs(_on_grid(clip, stamp - stamps[0]) - stamp + stamps[0]) <= 1 for stamp in stamps)
    return Fraction(1, math.lcm((1 / clip.rate).denominator, 1000)) if constant else clip.time_base


def _on_grid(clip: Clip, stamp: int) -> Fraction:
    """The time nearest to a time stamp at which a constant rate has a frame, in units of the clip's time base."""
    frame = 1 / (clip.rate * clip.time_base)
    return round(stamp / frame) * frame


def _picture_packets(
    clip: Clip, parts: list[Path], stream: Any, clock: Fraction, shift: Fraction, shown: int
) -> Iterator[tuple[Fraction, Any]]:
    """The pictures' packets at the clip's own times, in units of `clock`; each is shown until the next, the last for
    `shown`, in units of the clip's time base."""
    exact, begin, waiting = clock != clip.time_base, None, None
    for packet, stamp in _part_packets(clip, parts):
        begin = stamp if begin is None else begin
        time_s = (begin + _on_grid(clip, stamp - begin) if exact else stamp) * clip.time_base - shift
        packet.stream, packet.time_base = stream, clock
        packet.pts = packet.dts = round(time_s / clock)
        if waiting is not None:
            waiting.duration = packet.pts - waiting.pts
            yield waiting.pts * clock, waiting
        waiting = packet
    if waiting is not None:
        waiting.duration = round((_on_grid(clip, shown) if exact else shown) * clip.time_base / clock)
        yield waiting.pts * clock, waiting


def _part_packets(clip: Clip, parts: list[Path]) -> Iterator[tuple[Any, int]]:
    """(packet, time stamp in the clip) of all parts one after another."""
    av = pyav()
    for part in parts:
        first = int(_read_state(part)["part.first"])
        with av.open(str(part), format="nut") as container:
            for packet in container.demux(container.streams.video[0]):
                if packet.pts is not None:
                    yield packet, round(packet.pts * packet.time_base / clip.time_base) + first


def _sound_packets(
    source: Any, tracks: dict[int, Any], span: tuple[Fraction, Fraction | None], *, hides: bool
) -> Iterator[tuple[Fraction, Any]]:
    """The sound's packets of a span of time as they are, their time stamps less its start.

    What the source's edit list cuts away is left out, too; where the output `hides` what lies before its start (it has
    edit lists), that is kept, because a decoder warms up with it.
    """
    (start, stop), edits = span, "mp4" in source.format.name
    for packet in source.demux([source.streams[index] for index in tracks]):
        if packet.dts is None:
            continue
        time_s = (packet.pts if packet.pts is not None else packet.dts) * packet.time_base
        if (start and time_s < start) or (stop is not None and time_s >= stop):
            continue
        cut = packet.is_discard or (edits and time_s < start)
        if cut and not (hides and time_s < start):
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
