"""Write pictures as H.264: the encoder that works here, and a recorder of live pictures."""

from __future__ import annotations

import queue
import statistics
import threading
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..errors import FidError
from ..files import replacing
from ..labels.mark import embed_mark
from ..labels.provenance import Note, append_note, check_label
from .frame import BT709, EXACT, fitted, pyav
from .images import check_output
from .video import VIDEO_SUFFIXES

CLOCK = Fraction(1, 90000)  # seconds; the unit of a recording's time stamps
SOFTWARE = "libx264"
ENCODERS = (
    "h264_nvenc",
    "h264_videotoolbox",
    "h264_qsv",
    "h264_amf",
    SOFTWARE,
)  # tried in this order for live pictures
LIMITED = 1  # FFmpeg's number of the range 16..235
COUNTED = 8  # pictures of a recording after which its rate is known
# Of libx264; 18 is called visually lossless by its makers. Without force-cfr it writes one unit of the time stamps as
# the rate into the pictures, 15360 or 90000 frames/s, and players and Matroska believe it.
# Its AVX-512 code writes other bytes for the same pictures (findings/x264-avx512-depends-on-heap.sh); AVX2's, as fast,
# does not.
AVX512 = 256  # OpenCV's number of the AVX-512 that libx264 would take (CV_CPU_AVX512_SKX of cvdef.h)
PARAMS = "force-cfr=1:asm=AVX2" if cv2.checkHardwareSupport(AVX512) else "force-cfr=1"
QUALITY = {"crf": "18", "preset": "veryfast", "bf": "0", "x264-params": PARAMS}


def add_picture_stream(
    container: Any, shape: tuple[int, ...], time_base: Fraction, rate: Fraction, encoders: tuple[str, ...] = ENCODERS
) -> Any:
    """Add an H.264 stream for pictures [height, width, 3], by the first encoder that works here.

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
        stream = container.add_stream(name, rate=rate.limit_denominator(1001))
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
    """Return RGB uint8 [height, width, 3] as a frame for the encoder, in BT.709."""
    even = np.ascontiguousarray(picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2])
    frame = pyav().VideoFrame.from_ndarray(even, format="rgb24")
    frame = frame.reformat(format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED, interpolation=EXACT)
    frame.pts, frame.time_base = stamp, time_base
    return frame


class Recorder:
    """Writes live pictures into a file as they come, in a thread of its own; the file appears when it is closed."""

    def __init__(self, output: Path, note: Note | None = None) -> None:
        """Raises `InputError` for a name that cannot be written and `FidError` when PyAV is missing."""
        pyav()
        check_output(output, VIDEO_SUFFIXES)
        check_label(output, note)
        self.output, self.encoder, self.count = output, "", 0
        self._note = note
        self._pictures: queue.Queue[tuple[np.ndarray, float] | None] = queue.Queue(8)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="record", daemon=True)
        self._thread.start()

    def write(self, picture: np.ndarray, time_s: float) -> None:
        """Write one picture RGB uint8 [height, width, 3] at its time in seconds; waits when the encoder is behind.

        A picture of another size than the first, another view for instance, is fitted into that one's.
        """
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
        begun: list[tuple[np.ndarray, float]] = []
        while len(begun) < COUNTED and (item := self._pictures.get()) is not None:
            begun.append(item)
        if not begun:
            return
        later = chain(begun, iter(self._pictures.get, None) if len(begun) == COUNTED else ())  # None ends it
        times, shape, last = [time_s for _, time_s in begun], begun[0][0].shape, -1
        step_s = max(1e-3, statistics.median(b - a for a, b in pairwise(times))) if len(times) > 1 else 1 / 30
        with replacing(self.output) as temporary:
            with pyav().open(str(temporary), "w") as container:
                stream = add_picture_stream(container, shape, CLOCK, Fraction(round(1e3 / step_s), 1000))
                self.encoder = stream.codec_context.name
                for picture, time_s in later:
                    last = max(last + 1, round((time_s - times[0]) / CLOCK))
                    picture = embed_mark(picture) if self._note is not None and self._note.mark else picture
                    container.mux(stream.encode(to_frame(fitted(picture, shape), last, CLOCK)))
                    self.count += 1
                container.mux(stream.encode())
            if self._note is not None:
                append_note(temporary, self._note)
