"""Video files: time stamps, sound packets, rotation and resuming, with clips made here."""

import hashlib
import io
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from fid.runtime.errors import FidError, InputError
from fid.runtime.labels.provenance import Note, read_note
from fid.runtime.media import video, video_rework, video_write
from fid.runtime.media.frame import BT709
from fid.runtime.media.video import Clip, Reading, open_clip, parse_trim, read_frames
from fid.runtime.media.video_rework import rework

CONSTANT = [n * 3003 for n in range(60)]  # 29.97 frames/s in units of 1/90000 s
VARIABLE = np.cumsum(np.random.default_rng(3).integers(900, 9000, 60)).tolist()


def picture(number: int, width: int = 96, height: int = 64) -> np.ndarray:
    """A frame that says its number: a soft gradient, brighter with every frame."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.linspace(30, 200, width), np.linspace(40, 180, height)[:, None]
    image[..., 2] = 20 + 3 * number
    return image


def write_clip(
    path: Path,
    stamps: list[int] = CONSTANT,
    sound: str | None = "aac",
    rotation: int = 0,
    codec: str = "libx264",
    pictures: Callable[[int], np.ndarray] = picture,
) -> Path:
    """A clip with those time stamps in 1/90000 s, B-frames, and a tone as long as it."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options={"bf": "2", "crf": "10"})
        stream.height, stream.width = pictures(0).shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 90000)
        stream.codec_context.colorspace, stream.codec_context.color_range = BT709, video_write.LIMITED
        if rotation:
            stream.set_display_rotation(rotation)
        tone = container.add_stream(sound, rate=44100, layout="mono") if sound else None
        for number, stamp in enumerate(stamps):
            container.mux(stream.encode(video_write.to_frame(pictures(number), stamp, Fraction(1, 90000))))
        container.mux(stream.encode())
        if tone is not None:
            samples = int(44100 * stamps[-1] / 90000)
            wave = np.sin(np.arange(samples) / 20).astype(np.float32)[None] / 4
            for start in range(0, samples - 1024, 1024):
                frame = av.AudioFrame.from_ndarray(wave[:, start : start + 1024], format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 44100, start
                container.mux(tone.encode(frame))
            container.mux(tone.encode())
    return path


def write_kind(path: Path, codec: str, late: int = 0, stretch: Fraction = Fraction(1), count: int = 60) -> Path:
    """A clip of 30 frames a second with a keyframe every 12 and B-frames, its stamps `late` frames late."""
    options = {"g": "12"} | ({"bf": "2", "crf": "10", "sc_threshold": "0"} if codec == "libx264" else {"b": "1M"})
    head_first = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=head_first) as container:
        stream = container.add_stream(codec, rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.time_base, stream.codec_context.sample_aspect_ratio = Fraction(1, 30), stretch
        for number in range(count):
            container.mux(stream.encode(video_write.to_frame(picture(number), number + late, Fraction(1, 30))))
        container.mux(stream.encode())
    return path


def damaged(source: Path, *numbers: int) -> Path:
    """A copy of a clip in which the packets of these numbers, in the order of decoding, are nonsense."""
    with av.open(str(source)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(source.read_bytes())
    for at, size in (packets[number] for number in numbers):
        assert at is not None
        data[at : at + size] = b"\xff" * size
    copy = source.with_name(f"damaged{source.suffix}")
    copy.write_bytes(data)
    return copy


@dataclass(frozen=True)
class Seen:
    """What `Invert` remembers: frames."""

    seen: int


@dataclass(frozen=True)
class Nothing:
    """What `Same` remembers."""


class Invert:
    """Work with a memory: every frame is inverted, and a dot moves on by one pixel."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.seen, self._left = 0, stop_after

    def picture(self, image: np.ndarray, time_s: float) -> np.ndarray:
        if self._left is not None:
            if self._left == 0:
                raise KeyboardInterrupt
            self._left -= 1
        result = 255 - image
        cv2.circle(result, (10 + self.seen, 30), 6, (255, 255, 255), cv2.FILLED)
        self.seen += 1
        return result

    @property
    def state(self) -> Seen:
        return Seen(self.seen)

    @state.setter
    def state(self, state: Seen) -> None:
        self.seen = state.seen


class Same:
    """Work that changes nothing."""

    def picture(self, image: np.ndarray, time_s: float) -> np.ndarray:
        return image

    state = Nothing()


def times(path: Path) -> list[Fraction]:
    clip = open_clip(path)
    return [stamp * clip.time_base for stamp, _ in read_frames(clip)]


def sound_packets(path: Path) -> list[tuple[Fraction, str]]:
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(audio=0) if packet.dts is not None]
        return [(packet.pts * packet.time_base, hashlib.sha256(bytes(packet)).hexdigest()) for packet in packets]


def frames(path: Path) -> np.ndarray:
    return np.stack([image for _, image in read_frames(open_clip(path))])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return open_clip(write_clip(tmp_path_factory.mktemp("clip") / "in.mp4"))


@pytest.mark.parametrize("stamps", [CONSTANT, VARIABLE], ids=["constant", "variable"])
@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_time_stamps_and_sound_are_those_of_the_source(tmp_path: Path, stamps: list[int], suffix: str) -> None:
    source = write_clip(tmp_path / "in.mp4", stamps)
    output = tmp_path / f"out{suffix}"
    assert rework(open_clip(source), output, Same(), settings={}) == (60, 0)
    assert times(output) == times(source)
    assert sound_packets(output) == sound_packets(source)
    assert len(sound_packets(output)) > 40


def test_matroska_keeps_times_to_its_millisecond(clip: Clip, tmp_path: Path) -> None:
    output = tmp_path / "out.mkv"
    rework(clip, output, Same(), settings={})
    own, written = (np.array([float(t) for t in times(path)]) for path in (clip.path, output))
    np.testing.assert_allclose(written, own, atol=1.1e-3)
    heard = [(time, sound) for time, sound in sound_packets(clip.path) if time >= 0]  # the rest only warms a decoder up
    assert [sound for _, sound in sound_packets(output)] == [sound for _, sound in heard]
    assert abs(sound_packets(output)[0][0] - heard[0][0]) < Fraction(2, 1000)


def test_pictures_and_their_colours_come_through(clip: Clip, tmp_path: Path) -> None:
    rework(clip, tmp_path / "out.mp4", Same(), settings={})
    own = np.stack([picture(number) for number in range(60)]).astype(float)
    assert np.abs(frames(clip.path) - own).mean() < 1.5
    assert np.abs(frames(tmp_path / "out.mp4") - own).mean() < 3.5
    assert np.abs((frames(tmp_path / "out.mp4") - own).mean(axis=(0, 1, 2))).max() < 2.0  # no shift of colour


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_a_turned_clip_is_read_upright(tmp_path: Path, rotation: int) -> None:
    """As OpenCV reads it, which follows the file's rotation by itself."""
    source = write_clip(tmp_path / "in.mp4", CONSTANT[:5], sound=None, rotation=rotation)
    turned = open_clip(source)
    assert (turned.width, turned.height) == ((96, 64) if rotation == 180 else (64, 96))
    capture = cv2.VideoCapture(str(source))
    reference = cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB)
    capture.release()
    assert np.abs(next(read_frames(turned))[1].astype(int) - reference).mean() < 3
    rework(turned, tmp_path / "out.mp4", Same(), settings={})
    assert np.abs(frames(tmp_path / "out.mp4")[0].astype(int) - reference).mean() < 4


def test_a_run_that_was_stopped_goes_on_and_gives_the_same_file(
    clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_rework, "PART_FRAMES", 16)
    whole, resumed = tmp_path / "whole.mp4", tmp_path / "resumed.mp4"
    rework(clip, whole, Invert(), settings={"of": 1})
    for stop_after in (37, 20):
        with pytest.raises(KeyboardInterrupt):
            rework(clip, resumed, Invert(stop_after), settings={"of": 1})
        assert not resumed.exists()
    ticks: list[int] = []
    assert rework(clip, resumed, Invert(), settings={"of": 1}, tick=ticks.append) == (60, 0)
    assert ticks[0] == 48  # three whole parts were there
    assert ticks[-1] == 60
    assert resumed.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resumed.mp4", "whole.mp4"]


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from fid.runtime.media import video, video_rework

class Dying:
    left = 37

    def picture(self, image, time_s):
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        return image

    state = None

video_rework.PART_FRAMES = 16
video_rework.rework(video.open_clip(Path(sys.argv[1])), Path(sys.argv[2]), Dying(), settings={})
"""


def test_the_same_pictures_are_written_as_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """libx264's AVX-512 code depends on what memory held: seldom with fid's options, nearly always with these."""
    for name in ("preset", "bf"):
        monkeypatch.delitem(video_write.QUALITY, name)
    draw = np.random.default_rng(0)
    still = np.kron(draw.integers(0, 255, (12, 16, 3)), np.ones((20, 20, 1)))
    noisy = [np.roll(still, 3 * number, 1) + draw.normal(0, 6, still.shape) for number in range(24)]
    pictures = [np.clip(image, 0, 255).astype(np.uint8) for image in noisy]

    def written() -> bytes:
        file, base = io.BytesIO(), Fraction(1, 25)
        with av.open(file, "w", format="mp4") as container:
            stream = video_write.add_picture_stream(container, still.shape, base, Fraction(25), (video_write.SOFTWARE,))
            for number, image in enumerate(pictures):
                container.mux(stream.encode(video_write.to_frame(image, number, base)))
            container.mux(stream.encode())
        return file.getvalue()

    assert len({written() for _ in range(6)}) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_run_that_was_killed_goes_on_and_gives_the_same_file(
    clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_rework, "PART_FRAMES", 16)
    whole, resumed = tmp_path / "whole.mp4", tmp_path / "resumed.mp4"
    rework(clip, whole, Same(), settings={})
    killed = subprocess.run([sys.executable, "-c", KILLED, str(clip.path), str(resumed)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not resumed.exists()
    ticks: list[int] = []
    assert rework(clip, resumed, Same(), settings={}, tick=ticks.append) == (60, 0)
    assert ticks[0] == 32
    assert resumed.read_bytes() == whole.read_bytes()


KINDS = [
    ("libx264", ".avi"),
    ("mpeg4", ".avi"),
    ("libx264", ".ts"),
    ("mpeg2video", ".ts"),
    ("mpeg2video", ".mpg"),
    ("libx264", ".mkv"),
    ("libvpx-vp9", ".webm"),
    ("wmv2", ".wmv"),
    ("libx264", ".h264"),  # no time stamps and no way to seek
]


@pytest.mark.parametrize(("codec", "suffix"), KINDS)
def test_every_kind_of_file_is_read_whole_and_resumed_in_the_middle(
    codec: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_rework, "PART_FRAMES", 16)  # 12 are from one keyframe to the next
    monkeypatch.setitem(video_write.QUALITY, "crf", "8")  # so that steps of 3 levels stay
    source = open_clip(write_kind(tmp_path / f"in{suffix}", codec))
    whole, resumed = tmp_path / "whole.mp4", tmp_path / "resumed.mp4"
    assert rework(source, whole, Same(), settings={}) == (60, 0)
    blue = frames(whole)[..., 2].mean(axis=(1, 2))
    assert np.diff(blue).min() > 1  # 3 less what the codec loses: none is missing, none in the place of another
    assert np.diff(blue).max() < 5
    steps = np.diff([float(time) for time in times(whole)])
    np.testing.assert_allclose(steps, 1 / source.fps, atol=1.1e-3)  # some count ms
    with pytest.raises(KeyboardInterrupt):
        rework(source, resumed, Invert(36), settings={"of": 1})
    assert rework(source, resumed, Invert(), settings={"of": 1}) == (60, 0)
    rework(source, whole, Invert(), settings={"of": 1})
    assert resumed.read_bytes() == whole.read_bytes()


def test_a_reader_finds_its_way_from_every_frame(tmp_path: Path) -> None:
    for suffix in (".ts", ".mp4"):
        clip = open_clip(write_kind(tmp_path / f"in{suffix}", "libx264"))
        stamps = [stamp for stamp, _ in read_frames(clip)]
        for number in (1, 11, 35, 59):
            assert [stamp for stamp, _ in read_frames(clip, stamps[number])] == stamps[number:]


def test_frames_are_read_when_they_are_composed(clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that memory does not grow with the clip."""
    real, counts, ahead = video.fitted, [0, 0], []

    def counting(*arguments: object) -> np.ndarray:
        counts[0] += 1
        return real(*arguments)

    class Counted(Same):
        def picture(self, image: np.ndarray, time_s: float) -> np.ndarray:
            counts[1] += 1
            ahead.append(counts[0] - counts[1])
            return image

    monkeypatch.setattr(video, "fitted", counting)
    reading = Reading()
    monkeypatch.setattr(video_rework, "Reading", lambda: reading)
    rework(clip, tmp_path / "out.mp4", Counted(), settings={})
    assert len(ahead) == 60
    assert max(ahead) == 0
    assert not reading.awaited


def test_other_settings_start_anew(clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_rework, "PART_FRAMES", 16)
    with pytest.raises(KeyboardInterrupt):
        rework(clip, tmp_path / "out.mp4", Invert(40), settings={"of": 1})
    ticks: list[int] = []
    rework(clip, tmp_path / "out.mp4", Invert(), settings={"of": 2}, tick=ticks.append)
    assert ticks[0] == 0


def test_trim_keeps_the_frames_and_the_sound_between(clip: Clip, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    count = rework(clip, output, Same(), settings={}, trim=(0.5, 1.25))
    kept = [t for t in times(clip.path) if Fraction(1, 2) <= t < Fraction(5, 4)]
    assert count == (len(kept), 0)
    assert times(output) == [t - kept[0] for t in kept]  # the first frame is at 0
    sound, cut = sound_packets(clip.path), sound_packets(output)
    skipped = next(n for n, (time, _) in enumerate(sound) if time >= kept[0])
    same = sound[skipped : skipped + len(cut)]
    assert [value for _, value in cut] == [value for _, value in same]
    off = [float(new - (old - kept[0])) for (new, _), (old, _) in zip(cut, same, strict=True)]
    np.testing.assert_allclose(off, 0, atol=1e-3)  # MP4 counts the head start of a track in ms
    assert cut[0][0] < Fraction(1, 20)
    assert cut[-1][0] > Fraction(7, 10)


@pytest.mark.parametrize("late", [0, 40])
def test_a_trim_counts_from_the_first_frame(late: int, tmp_path: Path) -> None:
    """A transport stream begins at any time; the output begins at 0, trimmed or not."""
    clip = open_clip(write_kind(tmp_path / "in.ts", "libx264", late))
    assert clip.first * clip.time_base >= Fraction(late, 30)
    assert rework(clip, tmp_path / "out.mp4", Same(), settings={}, trim=(0.5, 1.5)) == (30, 0)
    assert np.abs(frames(tmp_path / "out.mp4")[0] - frames(clip.path)[15].astype(int)).mean() < 1.5
    assert rework(clip, tmp_path / "start.mp4", Same(), settings={}, trim=(0.0, 0.5)) == (15, 0)
    assert times(tmp_path / "start.mp4")[0] == 0


def test_damaged_packets_are_passed_over_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_rework, "PART_FRAMES", 16)
    clip = open_clip(damaged(write_kind(tmp_path / "in.mp4", "libx264"), 5, 24, 59))
    count, missing = rework(clip, tmp_path / "out.mp4", Same(), settings={})
    assert missing >= 3
    assert count + missing == 60
    assert times(tmp_path / "out.mp4")[-1] >= Fraction(58, 30)
    with pytest.raises(KeyboardInterrupt):
        rework(clip, tmp_path / "again.mp4", Invert(40), settings={})
    assert rework(clip, tmp_path / "again.mp4", Same(), settings={}) == (count, missing)
    third = rework(clip, tmp_path / "trim.mp4", Same(), settings={}, trim=(1.3, 1.8))
    assert third == (15, 0)  # frames 39 to 53 are whole


def test_a_file_that_is_cut_off_tells_how_many_frames_are_missing(tmp_path: Path) -> None:
    data = write_kind(tmp_path / "in.mp4", "libx264").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 5 // 6])
    count, missing = rework(open_clip(tmp_path / "cut.mp4"), tmp_path / "out.mp4", Same(), settings={})
    assert missing > 1
    assert count + missing == 60


def test_pixels_that_are_not_square_become_square(tmp_path: Path) -> None:
    clip = open_clip(write_kind(tmp_path / "in.mp4", "libx264", stretch=Fraction(4, 3), count=5))
    assert (clip.width, clip.height) == (128, 64)
    rework(clip, tmp_path / "out.mp4", Same(), settings={})
    written = open_clip(tmp_path / "out.mp4")
    assert (written.width, written.height) == (128, 64)
    wide = open_clip(write_kind(tmp_path / "wide.mp4", "libx264", stretch=Fraction(500, 1), count=5))
    assert wide.width == 96  # nonsense


def test_parts_of_a_trim() -> None:
    assert parse_trim("1.5:4") == (1.5, 4.0)
    assert parse_trim(":4") == (0.0, 4.0)
    assert parse_trim("2:") == (2.0, None)
    for text in ("3", "a:b", "4:2", "-1:2", "1:2:3", "nan:", "nan:2", ":inf", "inf:", "1:nan"):
        with pytest.raises(InputError, match="--trim"):
            parse_trim(text)
    with pytest.raises(InputError, match="START:STOP"):
        parse_trim("")


def test_a_trim_beyond_the_end(clip: Clip, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no frames between 100 s"):
        rework(clip, tmp_path / "out.mp4", Same(), settings={}, trim=(100.0, None))
    assert not (tmp_path / "out.mp4").exists()


def test_the_note_is_at_the_end_of_the_file(clip: Clip, tmp_path: Path) -> None:
    note = Note("toy", "1", "reenactment")
    rework(clip, tmp_path / "out.mp4", Same(), settings={}, note=note)
    assert read_note(tmp_path / "out.mp4") == note
    assert len(times(tmp_path / "out.mp4")) == 60


def test_sound_that_the_output_cannot_hold_is_named(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mkv", CONSTANT[:30], sound="flac")
    clip = open_clip(source)
    with pytest.raises(InputError, match=r"\.mov files cannot hold flac sound unchanged; write a \.mkv file"):
        rework(clip, tmp_path / "out.mov", Same(), settings={})
    assert not (tmp_path / "out.mov").exists()
    rework(clip, tmp_path / "out.mkv", Same(), settings={})
    assert [sound for _, sound in sound_packets(tmp_path / "out.mkv")] == [s for _, s in sound_packets(source)]


def test_what_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video at all")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(InputError, match="does not exist"):
        open_clip(tmp_path / "none.mp4")
    for name in ("text.mp4", "empty.mp4"):
        with pytest.raises(InputError, match="is not a video that can be read"):
            open_clip(tmp_path / name)
    with pytest.raises(InputError, match="is not a file"):
        open_clip(tmp_path)


def test_a_clip_that_is_cut_off_ends_where_it_ends(clip: Clip, tmp_path: Path) -> None:
    rework(clip, tmp_path / "whole.mkv", Same(), settings={})
    data = (tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) * 2 // 3])
    count, _ = rework(open_clip(tmp_path / "cut.mkv"), tmp_path / "out.mkv", Same(), settings={})
    assert 10 < count < 60


def test_without_pyav_the_pip_line_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "in.mp4").touch()
    with pytest.raises(FidError, match=r"pip install 'fid-face\[video\]'"):
        open_clip(tmp_path / "in.mp4")
