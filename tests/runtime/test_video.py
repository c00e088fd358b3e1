"""Video files: time stamps, sound packets, rotation and resuming, with clips made here."""

import hashlib
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from fid.runtime import video
from fid.runtime.errors import FidError, InputError
from fid.runtime.provenance import Note, read_note
from fid.runtime.video import Clip, open_clip, parse_trim, read_frames, rework

CONSTANT = [n * 3003 for n in range(60)]  # 29.97 frames/s in units of 1/90000 s
VARIABLE = np.cumsum(np.random.default_rng(3).integers(900, 9000, 60)).tolist()


def picture(number: int, width: int = 96, height: int = 64) -> np.ndarray:
    """A frame that says its number: a soft gradient, brighter with every frame."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.linspace(30, 200, width), np.linspace(40, 180, height)[:, None]
    image[..., 2] = 20 + 3 * number
    return image


def write_clip(
    path: Path, stamps: list[int] = CONSTANT, sound: str | None = "aac", rotation: int = 0, codec: str = "libx264"
) -> Path:
    """A clip with those time stamps in 1/90000 s, B-frames, and a tone as long as it."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options={"bf": "2", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 90000)
        stream.codec_context.colorspace, stream.codec_context.color_range = video.BT709, video.LIMITED
        if rotation:
            stream.set_display_rotation(rotation)
        tone = container.add_stream(sound, rate=44100, layout="mono") if sound else None
        for number, stamp in enumerate(stamps):
            container.mux(stream.encode(video.to_frame(picture(number), stamp, Fraction(1, 90000))))
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

    def state(self) -> dict[str, np.ndarray]:
        return {"seen": np.array(self.seen)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self.seen = int(state["seen"])


class Same:
    """Work that changes nothing."""

    def picture(self, image: np.ndarray, time_s: float) -> np.ndarray:
        return image

    def state(self) -> dict[str, np.ndarray]:
        return {}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        del state


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
    assert rework(open_clip(source), output, Same(), settings={}) == 60
    assert times(output) == times(source)
    assert sound_packets(output) == sound_packets(source)
    assert len(sound_packets(output)) > 40


def test_matroska_keeps_times_to_its_millisecond(clip: Clip, tmp_path: Path) -> None:
    output = tmp_path / "out.mkv"
    rework(clip, output, Same(), settings={})
    own, written = (np.array([float(t) for t in times(path)]) for path in (clip.path, output))
    np.testing.assert_allclose(written - written[0], own - own[0], atol=1.1e-3)
    start_of_sound = [sound_packets(path)[0][0] - times(path)[0] for path in (clip.path, output)]
    assert abs(start_of_sound[0] - start_of_sound[1]) < Fraction(2, 1000)  # Matroska has no time before 0: both move
    assert [sound for _, sound in sound_packets(output)] == [sound for _, sound in sound_packets(clip.path)]


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
    monkeypatch.setattr(video, "PART_FRAMES", 16)
    whole, resumed = tmp_path / "whole.mp4", tmp_path / "resumed.mp4"
    rework(clip, whole, Invert(), settings={"of": 1})
    for stop_after in (37, 20):
        with pytest.raises(KeyboardInterrupt):
            rework(clip, resumed, Invert(stop_after), settings={"of": 1})
        assert not resumed.exists()
    ticks: list[int] = []
    assert rework(clip, resumed, Invert(), settings={"of": 1}, tick=ticks.append) == 60
    assert ticks[0] == 48  # three whole parts were there
    assert ticks[-1] == 60
    assert resumed.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resumed.mp4", "whole.mp4"]


def test_other_settings_start_anew(clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "PART_FRAMES", 16)
    with pytest.raises(KeyboardInterrupt):
        rework(clip, tmp_path / "out.mp4", Invert(40), settings={"of": 1})
    ticks: list[int] = []
    rework(clip, tmp_path / "out.mp4", Invert(), settings={"of": 2}, tick=ticks.append)
    assert ticks[0] == 0


def test_trim_keeps_the_frames_and_the_sound_between(clip: Clip, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    count = rework(clip, output, Same(), settings={}, trim=(0.5, 1.25))
    kept = [t for t in times(clip.path) if Fraction(1, 2) <= t < Fraction(5, 4)]
    assert count == len(kept)
    assert times(output) == [t - kept[0] for t in kept]  # the first frame is at 0
    sound, cut = sound_packets(clip.path), sound_packets(output)
    skipped = next(n for n, (time, _) in enumerate(sound) if time >= kept[0])
    same = sound[skipped : skipped + len(cut)]
    assert [value for _, value in cut] == [value for _, value in same]
    off = [float(new - (old - kept[0])) for (new, _), (old, _) in zip(cut, same, strict=True)]
    np.testing.assert_allclose(off, 0, atol=1e-3)  # MP4 counts the head start of a track in ms
    assert cut[0][0] < Fraction(1, 20)
    assert cut[-1][0] > Fraction(7, 10)


def test_parts_of_a_trim() -> None:
    assert parse_trim("1.5:4") == (1.5, 4.0)
    assert parse_trim(":4") == (0.0, 4.0)
    assert parse_trim("2:") == (2.0, None)
    for text in ("3", "a:b", "4:2", "-1:2", "1:2:3"):
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
    count = rework(open_clip(tmp_path / "cut.mkv"), tmp_path / "out.mkv", Same(), settings={})
    assert 10 < count < 60


def test_without_pyav_the_pip_line_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "in.mp4").touch()
    with pytest.raises(FidError, match=r"pip install 'fid-face\[video\]'"):
        open_clip(tmp_path / "in.mp4")
