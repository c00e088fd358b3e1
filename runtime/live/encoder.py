"""H.264 for live video whose rate changes: the encoder is told the rate that the frames really have.

aiortc opens x264 for 30 frames a second with `tune=zerolatency`, which makes x264 count every frame as a 30th of a
second, whatever its time stamp says: at 8 frames a second a quarter of the bits that the connection can carry would be
used. Counting by time stamps (`force-cfr=0`) would keep each frame back until the next one is there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiortc.codecs.base import Encoder
    from av import VideoFrame
    from av.video.codeccontext import VideoCodecContext

OPTIONS = {"level": "31", "tune": "zerolatency"}
FIRST_RATE = 30.0  # frames a second, until some have come
MEASURED = 16  # frames that a rate is measured over
LEAST_CHANGE = 0.1  # of the bit rate; below it the encoder stays: a new one begins with a whole picture
LEAST_RATE_CHANGE = 0.3  # of the rate of frames


def use_true_rate() -> None:
    """Let connections that are made from now on encode H.264 at the rate of their frames. More than once does no
    harm."""
    import aiortc.rtcrtpsender
    from aiortc.codecs import get_encoder
    from aiortc.codecs.h264 import H264Encoder

    class PacedH264Encoder(H264Encoder):
        """aiortc's encoder, around a codec that we open."""

        def __init__(self) -> None:
            super().__init__()
            self._times: deque[float] = deque(maxlen=MEASURED)
            self._told = FIRST_RATE

        def _encode_frame(self, frame: VideoFrame, force_keyframe: bool) -> Iterator[bytes]:
            self._times.append(frame.time or 0.0)
            rate = frame_rate(self._times) or self._told
            other_rate = abs(rate - self._told) > LEAST_RATE_CHANGE * self._told
            if other_rate or not _still_fits(self.codec, frame, self.target_bitrate):
                self.codec, self._told = _opened(frame, self.target_bitrate, rate), rate
            yield from super()._encode_frame(frame, force_keyframe)

    def encoder(codec: Any) -> Encoder:
        return PacedH264Encoder() if codec.mimeType.lower() == "video/h264" else get_encoder(codec)

    aiortc.rtcrtpsender.get_encoder = encoder  # pyright: ignore[reportPrivateImportUsage]


def frame_rate(times: Sequence[float]) -> float | None:
    """Return the frames a second of these times in seconds, 1 to 60; None where too few say it."""
    span = times[-1] - times[0] if times else 0.0
    if len(times) < MEASURED // 2 or span <= 0:
        return None
    return min(60.0, max(1.0, (len(times) - 1) / span))


def _still_fits(codec: VideoCodecContext | None, frame: VideoFrame, bit_rate: int) -> bool:
    if codec is None or (codec.width, codec.height) != (frame.width, frame.height):
        return False
    return abs(bit_rate - (codec.bit_rate or 0)) <= LEAST_CHANGE * bit_rate


def _opened(frame: VideoFrame, bit_rate: int, rate: float) -> VideoCodecContext:
    """Return an H.264 codec for frames like this one, `rate` a second, at `bit_rate` bits per second."""
    from fractions import Fraction

    import av

    codec = av.CodecContext.create("libx264", "w")
    codec.width, codec.height = frame.width, frame.height
    codec.bit_rate, codec.pix_fmt, codec.profile = bit_rate, "yuv420p", "Baseline"
    codec.framerate, codec.time_base = Fraction(round(100 * rate), 100), Fraction(1, 90_000)
    codec.options = OPTIONS
    return codec
