"""Write pictures as H.264: the encoder that works here, and a recorder of live pictures."""

from __future__ import annotations

import queue
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FidError
from .images import check_output, replacing
from .mark import embed_mark
from .provenance import Note, append_note, check_label
from .video import EXACT, VIDEO_SUFFIXES, pyav

CLOCK = Fraction(1, 90000)  # seconds; the unit of a recording's time stamps
SOFTWARE = "libx264"
ENCODERS = (
    "h264_nvenc",
    "h264_videotoolbox",
    "h264_qsv",
    "h264_amf",
    SOFTWARE,
)  # tried in this order for live pictures
BT709, LIMITED = 1, 1  # FFmpeg's numbers of the colour space of HD video and of its range 16..235
QUALITY = {"crf": "18", "preset": "veryfast", "bf": "0"}  # of libx264; 18 is called visually lossless by its makers


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


class Recorder:
    """Writes live pictures into a file as they come, in a thread of its own; the file appears when it is closed."""

    def __init__(self, output: Path, fps: float = 30.0, note: Note | None = None) -> None:
        """Raises `InputError` for a name that cannot be written and `FidError` when PyAV is missing."""
        pyav()
        check_output(output, VIDEO_SUFFIXES)
        check_label(output, note)
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
                    picture = embed_mark(picture) if self._note is not None and self._note.mark else picture
                    if picture.shape == shape:  # another view may be chosen while it records; a file has one size
                        container.mux(stream.encode(to_frame(picture, stamp, CLOCK)))
                        self.count, last = self.count + 1, stamp
                    item = self._pictures.get()
                container.mux(stream.encode())
            if self._note is not None:
                append_note(temporary, self._note)
