"""Tracks, durations and sound of what is written: as in the source, in every container, trimmed or not."""

import errno
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from fid.runtime.errors import FidError, InputError
from fid.runtime.media import video_rework
from fid.runtime.media.video import Reading, open_clip, read_frames
from fid.runtime.media.video_rework import rework
from fid.runtime.media.video_write import CLOCK, Recorder, to_frame

from .test_video import CONSTANT, Invert, Same, picture, sound_packets, write_clip

LATE_LAST = [0, 3600, 7200, 9000, 12600, 30000, 33000, 90000]  # in 1/90000 s


def write_times(
    path: Path, stamps: list[int], last: int, base: Fraction = CLOCK, rate: Fraction = Fraction(25)
) -> Path:
    """A clip with those time stamps; its last frame is shown for `last`, both in units of `base`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"bf": "0", "crf": "20"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.time_base = stream.time_base = base
        packets = [p for n, stamp in enumerate(stamps) for p in stream.encode(to_frame(picture(n), stamp, base))]
        for packet, begin, end in zip(
            [*packets, *stream.encode()], stamps, [*stamps[1:], stamps[-1] + last], strict=True
        ):
            packet.duration = end - begin
            container.mux(packet)
    return path


def timing(path: Path) -> tuple[list[float], float, float]:
    """When frames begin, until when the last is shown, s, and the mean rate that the file states, frames/s."""
    clip, reading = open_clip(path), Reading()
    begins = [float(stamp * clip.time_base) for stamp, _ in read_frames(clip, reading=reading)]
    return begins, begins[-1] + float(reading.shown * clip.time_base), clip.fps


class Never(Same):
    """Work that must not begin."""

    def picture(self, image: np.ndarray, time_s: float) -> np.ndarray:
        raise AssertionError


SOURCES = {
    "15360": ([512 * n for n in range(10)], 512, Fraction(1, 15360), Fraction(30)),
    "90000": (CONSTANT[:10], 3003, CLOCK, Fraction(30000, 1001)),
    "25 fps": ([512 * n for n in range(24)], 512, Fraction(1, 12800), Fraction(25)),
}


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("container", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize("kind", SOURCES)
def test_rate_and_duration_are_those_of_the_source(kind: str, container: str, suffix: str, tmp_path: Path) -> None:
    stamps, last, base, rate = SOURCES[kind]
    source = write_times(tmp_path / f"in{container}", stamps, last, base, rate)
    rework(open_clip(source), tmp_path / f"out{suffix}", Same(), settings={})
    begins, end, fps = timing(tmp_path / f"out{suffix}")
    assert fps == pytest.approx(float(rate), rel=1e-6)
    np.testing.assert_allclose(begins, [float(stamp * base) for stamp in stamps], atol=1.1e-3)
    assert end == pytest.approx(float((stamps[-1] + last) * base), abs=1.1e-3)
    with av.open(str(tmp_path / f"out{suffix}")) as written:
        assert written.duration / 1e6 == pytest.approx(end, abs=2e-3)
        if suffix != ".mkv" and container == ".mp4":
            assert written.streams.video[0].time_base == base


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_the_last_frame_is_shown_as_long_as_in_the_source(suffix: str, tmp_path: Path) -> None:
    source = write_times(tmp_path / "in.mp4", LATE_LAST, 180_000)
    rework(open_clip(source), tmp_path / f"out{suffix}", Same(), settings={})
    begins, end, _ = timing(tmp_path / f"out{suffix}")
    np.testing.assert_allclose(begins, np.array(LATE_LAST) / 90000, atol=1.1e-3)
    assert end == pytest.approx(3.0, abs=1.1e-3)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(
    ("kind", "span", "count", "lasts"),
    [
        ("15360", (0.1, 0.25), 5, 5 / 30),  # the last of them at its full length
        ("25 fps", (0.0, 0.4), 10, 0.4),
        ("25 fps", (0.4, None), 14, 14 / 25),
    ],
)
def test_a_trim_keeps_rate_and_length_of_frames(
    kind: str, span: tuple[float, float | None], count: int, lasts: float, suffix: str, tmp_path: Path
) -> None:
    stamps, last, base, rate = SOURCES[kind]
    clip = open_clip(write_times(tmp_path / "in.mp4", stamps, last, base, rate))
    assert rework(clip, tmp_path / f"out{suffix}", Same(), settings={}, trim=span) == (count, 0)
    begins, end, fps = timing(tmp_path / f"out{suffix}")
    assert begins[0] == 0
    assert end == pytest.approx(lasts, abs=1.1e-3)
    assert fps == pytest.approx(float(rate), rel=1e-6)


def test_a_long_frame_ends_at_the_trim(tmp_path: Path) -> None:
    clip = open_clip(write_times(tmp_path / "in.mp4", LATE_LAST, 180_000))
    rework(clip, tmp_path / "out.mp4", Same(), settings={}, trim=(0.1, 0.9))
    assert timing(tmp_path / "out.mp4")[1] == pytest.approx(0.8, abs=1e-3)  # the next would begin at 0.9


def test_a_resumed_run_keeps_the_last_duration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_rework, "PART_FRAMES", 4)  # the last part is full, so nothing is left to read
    clip = open_clip(write_times(tmp_path / "in.mp4", LATE_LAST, 180_000))
    real = video_rework._join
    monkeypatch.setattr(video_rework, "_join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt, match=r"2 parts are kept in .*, and the same command goes on from there"):
        rework(clip, tmp_path / "out.mp4", Same(), settings={})
    monkeypatch.setattr(video_rework, "_join", real)
    rework(clip, tmp_path / "out.mp4", Same(), settings={})
    assert timing(tmp_path / "out.mp4")[1] == pytest.approx(3.0, abs=1e-3)


def test_a_browsers_recording_keeps_its_uneven_times(tmp_path: Path) -> None:
    stamps = [0, 33, 67, 117, 237, 254, 271, 321, 441, 474]
    clip = open_clip(write_times(tmp_path / "in.mkv", stamps, 33, Fraction(1, 1000), Fraction(30)))
    for suffix in (".mp4", ".mkv"):
        rework(clip, tmp_path / f"out{suffix}", Same(), settings={})
        begins, end, _ = timing(tmp_path / f"out{suffix}")
        np.testing.assert_allclose(begins, np.array(stamps) / 1000, atol=1e-6)
        assert end == pytest.approx(0.507, abs=1e-6)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("fps", [12, 30])
def test_a_recording_has_the_rate_at_which_pictures_came(fps: int, suffix: str, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / f"out{suffix}")
    for number in range(12):
        recorder.write(picture(number), 5.0 + number / fps)
    recorder.close()
    begins, end, rate = timing(tmp_path / f"out{suffix}")
    assert recorder.count == 12
    np.testing.assert_allclose(begins, np.arange(12) / fps, atol=1.1e-3)
    assert end == pytest.approx(12 / fps, abs=1.5e-3)
    assert rate == pytest.approx(fps, rel=5e-3)


@pytest.mark.parametrize("count", [1, 2, 8, 9])
def test_a_short_recording(count: int, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "out.mp4")
    for number in range(count):
        recorder.write(picture(number), number / 25)
    recorder.close()
    assert len(timing(tmp_path / "out.mp4")[0]) == count


def test_a_recording_fits_pictures_of_another_size(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "out.mp4")
    for number in range(12):
        recorder.write(np.full((64, 96, 3) if number < 6 else (96, 48, 3), 200, np.uint8), number / 25)
    recorder.close()
    pictures = [image for _, image in read_frames(open_clip(tmp_path / "out.mp4"))]
    assert len(pictures) == 12
    assert pictures[-1].shape == (64, 96, 3)
    assert pictures[-1][:, :28].max() < 40  # 32 x 64 in the middle, borders of 32
    assert pictures[-1][:, 36:60].min() > 180


def with_cover(path: Path, default_cover: bool) -> Path:
    """A film with a green cover as its first video track."""
    film = write_times(path.with_name("film.mp4"), [512 * n for n in range(6)], 512, Fraction(1, 12800))
    green = np.zeros((32, 32, 3), np.uint8)
    green[..., 1] = 255
    with av.open(str(film)) as source, av.open(str(path), "w") as target:
        cover = target.add_stream("mjpeg", rate=25)
        cover.width = cover.height = 32
        cover.pix_fmt = "yuvj420p"
        disposition = av.stream.Disposition
        cover.disposition = disposition.attached_pic | (disposition.default if default_cover else disposition(0))
        stream = target.add_stream_from_template(source.streams.video[0])
        frame = av.VideoFrame.from_ndarray(green, format="rgb24").reformat(format="yuvj420p")
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        target.mux(cover.encode(frame))
        target.mux(cover.encode())
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return path


@pytest.mark.parametrize("default_cover", [False, True])
def test_a_cover_is_not_the_film(default_cover: bool, tmp_path: Path) -> None:
    clip = open_clip(with_cover(tmp_path / "in.mp4", default_cover))
    assert (clip.width, clip.height) == (96, 64)
    assert rework(clip, tmp_path / "out.mp4", Same(), settings={}) == (6, 0)


def test_of_several_tracks_the_default_one_is_taken(tmp_path: Path) -> None:
    path, disposition = tmp_path / "in.mkv", av.stream.Disposition
    with av.open(str(path), "w") as target:
        streams = []
        for side, flags in ((32, disposition(0)), (64, disposition.default)):
            stream = target.add_stream("libx264", rate=25)
            stream.width = stream.height = side
            stream.pix_fmt, stream.disposition = "yuv420p", flags
            streams.append(stream)
        for number in range(4):
            for stream in streams:
                image = np.full((stream.height, stream.width, 3), 100, np.uint8)
                target.mux(stream.encode(to_frame(image, number, Fraction(1, 25))))
        for stream in streams:
            target.mux(stream.encode())
    assert open_clip(path).width == 64


def test_sound_with_a_cover_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "in.mp4"
    with av.open(str(path), "w") as target:
        cover = target.add_stream("mjpeg", rate=25)
        cover.width = cover.height = 32
        cover.pix_fmt, cover.disposition = "yuvj420p", av.stream.Disposition.attached_pic
        tone = target.add_stream("aac", rate=44100, layout="mono")
        frame = av.VideoFrame(32, 32, "yuvj420p")
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        target.mux(cover.encode(frame))
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate, sound.pts = 44100, 0
        target.mux(tone.encode(sound))
        target.mux(tone.encode())
    with pytest.raises(InputError, match="no moving pictures in it, only sound"):
        open_clip(path)


def test_an_unknown_codec_is_one_sentence(tmp_path: Path) -> None:
    data = write_times(tmp_path / "in.mp4", [0, 512], 512, Fraction(1, 12800)).read_bytes()
    (tmp_path / "odd.mp4").write_bytes(data.replace(b"avc1", b"zzz1"))
    with pytest.raises(InputError, match="in a codec that this build of PyAV does not know"):
        open_clip(tmp_path / "odd.mp4")


def test_sound_that_cannot_be_kept_is_told_before_the_work(tmp_path: Path) -> None:
    """Of an unknown codec, or one that the output does not hold."""
    data = write_clip(tmp_path / "in.mp4", CONSTANT[:4]).read_bytes()
    (tmp_path / "odd.mp4").write_bytes(data.replace(b"mp4a", b"zzz1").replace(b"esds", b"zzz2"))
    write_clip(tmp_path / "flac.mkv", CONSTANT[:30], sound="flac")
    never = Never()
    with pytest.raises(InputError, match=r"the sound of .* is in a codec that PyAV does not know"):
        rework(open_clip(tmp_path / "odd.mp4"), tmp_path / "out.mp4", never, settings={})
    with pytest.raises(InputError, match=r"\.mov files cannot hold flac sound unchanged"):
        rework(open_clip(tmp_path / "flac.mkv"), tmp_path / "out.mov", never, settings={})


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_sound_that_an_edit_list_cuts_away_stays_away(suffix: str, tmp_path: Path) -> None:
    """Half a second before the picture begins: an MP4 file keeps it, hidden; no other may bring it back."""
    whole = write_clip(tmp_path / "whole.mp4", CONSTANT[:40])
    with av.open(str(whole)) as source, av.open(str(tmp_path / "in.mp4"), "w") as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                if packet.stream.type == "audio":
                    shift = round(Fraction(1, 2) / packet.time_base)
                    packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    with av.open(str(tmp_path / "in.mp4")) as source:
        assert sum(packet.is_discard for packet in source.demux(audio=0)) > 15
    rework(open_clip(tmp_path / "in.mp4"), tmp_path / f"out{suffix}", Same(), settings={})
    heard = [
        [sound for time, sound in sound_packets(path) if time >= 0]
        for path in (tmp_path / "in.mp4", tmp_path / f"out{suffix}")
    ]
    assert heard[0] == heard[1]
    if suffix == ".mkv":
        assert sound_packets(tmp_path / "out.mkv")[0][0] >= 0


@pytest.mark.parametrize("kept", [0, 2])
def test_a_full_disk_says_what_is_kept(kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_rework, "PART_FRAMES", 10)
    clip, real = open_clip(write_times(tmp_path / "in.mp4", CONSTANT[:30], 3003)), np.savez_compressed
    done: list[int] = []

    def full(*arguments: object, **arrays: object) -> None:
        if len(done) == kept:
            raise OSError(errno.ENOSPC, "No space left on device")
        done.append(1)
        real(*arguments, **arrays)  # type: ignore[arg-type]

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(FidError, match=r"out\.mp4 could not be written: No space left on device; ") as caught:
        rework(clip, tmp_path / "out.mp4", Invert(), settings={})
    sentence = str(caught.value)
    monkeypatch.setattr(np, "savez_compressed", real)
    if kept:
        assert "2 parts are kept in " in sentence
        assert sentence.endswith("and the same command goes on from there.")
    else:
        assert sentence.endswith("nothing is kept, because no part was ready.")
        assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]
    ticks: list[int] = []
    assert rework(clip, tmp_path / "out.mp4", Invert(), settings={}, tick=ticks.append) == (30, 0)
    assert ticks[0] == 10 * kept
