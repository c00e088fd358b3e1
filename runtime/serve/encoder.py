"""H.264 for live video whose rate changes: the encoder goes by the frames' time stamps, not by a fixed rate.

aiortc opens x264 with `tune=zerolatency`, which makes x264 count every frame as a 30th of a second, whatever its time
stamp says. At 8 frames a second a quarter of the bits that the connection could carry would be used. With `force-cfr=0`
the time stamps count again, and the latency stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiortc.codecs.base import Encoder
    from av import VideoFrame
    from av.video.codeccontext import VideoCodecContext

OPTIONS = {"level": "31", "tune": "zerolatency", "x264-params": "force-cfr=0"}
LEAST_CHANGE = 0.1  # of the wanted bit rate; below it the encoder stays: a new one begins with a whole picture


def use_time_stamps() -> None:
    """Let connections that are made from now on encode H.264 by time stamps. More than once does no harm."""
    import aiortc.rtcrtpsender
    from aiortc.codecs import get_encoder
    from aiortc.codecs.h264 import H264Encoder

    class TimedH264Encoder(H264Encoder):
        """aiortc's encoder, around a codec that we open."""

        def _encode_frame(self, frame: VideoFrame, force_keyframe: bool) -> Iterator[bytes]:
            if not _still_fits(self.codec, frame, self.target_bitrate):
                self.codec = _opened(frame, self.target_bitrate)
            yield from super()._encode_frame(frame, force_keyframe)

    def encoder(codec: Any) -> Encoder:
        return TimedH264Encoder() if codec.mimeType.lower() == "video/h264" else get_encoder(codec)

    aiortc.rtcrtpsender.get_encoder = encoder  # pyright: ignore[reportPrivateImportUsage]


def _still_fits(codec: VideoCodecContext | None, frame: VideoFrame, bit_rate: int) -> bool:
    if codec is None or (codec.width, codec.height) != (frame.width, frame.height):
        return False
    return abs(bit_rate - (codec.bit_rate or 0)) <= LEAST_CHANGE * bit_rate


def _opened(frame: VideoFrame, bit_rate: int) -> VideoCodecContext:
    """Return an H.264 codec for frames like this one, at `bit_rate` bits per second."""
    from fractions import Fraction

    import av

    codec = av.CodecContext.create("libx264", "w")
    codec.width, codec.height = frame.width, frame.height
    codec.bit_rate, codec.pix_fmt, codec.profile = bit_rate, "yuv420p", "Baseline"
    codec.framerate, codec.time_base = Fraction(30), Fraction(1, 90_000)  # the rate is a first guess
    codec.options = OPTIONS
    return codec
