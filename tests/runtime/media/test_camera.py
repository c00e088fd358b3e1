"""Cameras that are simulated: absent, busy, forbidden, unplugged, black, frozen; and files that play one."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
from fid.runtime.errors import FidError, InputError
from fid.runtime.live.webcam import Sinks
from fid.runtime.media import camera as module
from fid.runtime.media import camera_list
from fid.runtime.media.camera import Camera, Watch
from fid.runtime.media.camera_list import CameraInfo, describe_cameras, find_camera, list_cameras, why_not
from fid.runtime.media.mailbox import Mailbox
from filming import ScriptedWindow, show_of, wait, write_clip

BLACK, GREY = np.zeros((48, 64, 3), np.uint8), np.full((48, 64, 3), 120, np.uint8)


class FakeCapture:
    """A camera after a script: each read takes the next picture; None is a failure. Empty: a new one for ever."""

    script: ClassVar[list[np.ndarray | None]] = []
    opens: ClassVar[list[bool]] = []
    wishes: ClassVar[dict[int, float]] = {}
    sources: ClassVar[list[Any]] = []

    def __init__(self, source: Any, backend: int = 0) -> None:
        FakeCapture.sources.append(source)
        self.open = FakeCapture.opens.pop(0) if FakeCapture.opens else True

    def isOpened(self) -> bool:  # noqa: N802
        return self.open

    def set(self, what: int, value: float) -> bool:
        FakeCapture.wishes[what] = value
        return True

    def read(self) -> tuple[bool, np.ndarray | None]:
        time.sleep(0.002)
        image = (
            FakeCapture.script.pop(0) if FakeCapture.script else np.random.default_rng().integers(60, 200, (48, 64, 3))
        )
        return image is not None, None if image is None else image.astype(np.uint8)

    def release(self) -> None:
        self.open = False


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeCapture]:
    FakeCapture.script, FakeCapture.opens, FakeCapture.wishes, FakeCapture.sources = [], [], {}, []
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    return FakeCapture


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    assert condition()


def test_the_newest_wins_and_the_rest_is_counted() -> None:
    mailbox: Mailbox[int] = Mailbox()
    assert mailbox.take(0.01) is None
    for number in range(5):
        mailbox.put(number)
    assert mailbox.take(0.01) == 4
    assert mailbox.take(0.01) is None
    assert mailbox.dropped == 4
    mailbox.put(7)
    mailbox.close()
    assert not mailbox.ended
    assert mailbox.take() == 7
    assert mailbox.ended
    assert mailbox.take() is None


def test_who_waits_is_woken() -> None:
    mailbox: Mailbox[str] = Mailbox()
    threading.Timer(0.05, mailbox.put, ["here"]).start()
    assert mailbox.take(10) == "here"


def test_a_camera_is_asked_for_mjpg_and_a_size(fake: type[FakeCapture]) -> None:
    camera = Camera(0, width=1280, height=720, fps=25)
    camera.start()
    frame = camera.mailbox.take(5)
    camera.stop()
    assert frame is not None
    assert frame.image.shape == (48, 64, 3)
    assert fake.wishes[cv2.CAP_PROP_FOURCC] == cv2.VideoWriter.fourcc(*"MJPG")
    assert (fake.wishes[cv2.CAP_PROP_FRAME_WIDTH], fake.wishes[cv2.CAP_PROP_FRAME_HEIGHT]) == (1280, 720)
    assert (fake.wishes[cv2.CAP_PROP_FPS], fake.wishes[cv2.CAP_PROP_BUFFERSIZE]) == (25, 1)


def test_a_busy_camera_is_told(fake: type[FakeCapture]) -> None:
    fake.script = [None]
    with pytest.raises(FidError, match="opens and gives no picture; is another program using it"):
        Camera(0).start()


def test_a_camera_that_is_unplugged_comes_back(fake: type[FakeCapture]) -> None:
    told: list[str] = []
    fake.script, fake.opens = [GREY, GREY, GREY, None], [True, False, False, True]
    camera = Camera(0, notice=told.append)
    camera.start()
    wait_for(lambda: len(told) >= 2)
    camera.mailbox.take(1)
    assert camera.mailbox.take(5) is not None
    camera.stop()
    assert "camera 0 is gone" in told[0]
    assert told[1] == "camera 0 is back."


def test_black_and_frozen_pictures_are_told_once() -> None:
    told: list[str] = []
    watch = Watch(told.append)
    for n in range(60):
        watch.look(BLACK, n / 30)
    assert len(told) == 1
    assert "black pictures" in told[0]
    for n in range(60, 180):
        watch.look(GREY, n / 30)
    assert len(told) == 2
    assert "same picture" in told[1]
    rng = np.random.default_rng(0)
    for n in range(180, 360):
        watch.look(rng.integers(0, 255, GREY.shape, np.uint8), n / 30)
    assert len(told) == 2
    for n in range(360, 420):
        watch.look(BLACK, n / 30)
    assert len(told) == 3  # it was well in between


def test_a_driver_that_hangs_is_told(tmp_path: Path, fake: type[FakeCapture], monkeypatch: pytest.MonkeyPatch) -> None:
    """`read` neither gives a picture nor fails; the one who shows pictures notices."""
    monkeypatch.setattr(module, "SILENT_S", 0.1)
    told: list[str] = []
    hangs, plain = threading.Event(), fake.read

    def read(self: FakeCapture) -> tuple[bool, np.ndarray | None]:
        while hangs.is_set():
            time.sleep(0.01)
        return plain(self)

    monkeypatch.setattr(fake, "read", read)
    camera = Camera(0, notice=told.append)
    show, _, _ = show_of(tmp_path, Sinks(window=False), camera=camera)
    drawn: list[np.ndarray] = []

    def scene(window: ScriptedWindow) -> Iterator[str]:
        yield from wait(lambda: show.live.taken > 3)
        assert camera.trouble == ""
        hangs.set()
        yield from wait(lambda: camera.trouble != "")
        drawn.append(window.pictures[-1])
        assert show.news() == told
        count = len(window.pictures)
        yield from wait(lambda: len(window.pictures) > count)  # though no picture comes
        hangs.clear()
        yield from wait(lambda: camera.trouble == "")

    show._window = ScriptedWindow(scene)  # type: ignore[assignment]
    show.run()
    assert told == ["camera 0 gives no picture any more; unplug it and plug it in again."]


@pytest.mark.parametrize(("picture", "what"), [(BLACK, "black pictures"), (GREY, "same picture")])
def test_a_black_and_a_frozen_camera_are_told_in_the_window(
    tmp_path: Path, fake: type[FakeCapture], monkeypatch: pytest.MonkeyPatch, picture: np.ndarray, what: str
) -> None:
    monkeypatch.setattr(module, "SUSPECT_S", 0.1)
    monkeypatch.setattr(module, "FROZEN_S", 0.1)
    told: list[str] = []
    fake.script = [picture] * 200
    show, _, _ = show_of(tmp_path, Sinks(window=False), camera=Camera(0, notice=told.append))

    def scene(window: ScriptedWindow) -> Iterator[str]:
        yield "overlay"
        yield from wait(lambda: len(told) > 0)
        assert show.news() == told
        count = len(window.pictures)
        yield from wait(lambda: len(window.pictures) > count + 2)
        assert (window.pictures[-1] != picture).any()  # there are letters on it
        yield from wait(lambda: show.news() == [])  # the script is at its end, and the camera well

    show._window = ScriptedWindow(scene)  # type: ignore[assignment]
    show.run()
    assert len(told) == 1
    assert what in told[0]


def test_an_error_of_the_driver_is_raised_where_pictures_are_taken(
    tmp_path: Path, fake: type[FakeCapture], monkeypatch: pytest.MonkeyPatch
) -> None:
    show, _, _ = show_of(tmp_path, Sinks(window=False), camera=Camera(0))
    plain = fake.read

    def read(self: FakeCapture) -> tuple[bool, np.ndarray | None]:
        if show.live.taken > 2:
            raise cv2.error("the driver sent nonsense")
        return plain(self)

    monkeypatch.setattr(fake, "read", read)
    with pytest.raises(cv2.error, match="nonsense"):
        show.run(20)


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two cameras as Linux shows them; the first has a second node with its metadata."""
    for number, name, index in ((0, "Integrated Webcam: HD", 0), (1, "Integrated Webcam: HD", 1), (2, "Brio 4K", 0)):
        folder = tmp_path / "class" / f"video{number}"
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "index").write_text(f"{index}\n")
        (tmp_path / f"video{number}").touch()
    monkeypatch.setattr(camera_list, "VIDEO4LINUX", tmp_path / "class")
    monkeypatch.setattr(camera_list, "DEVICES", tmp_path)
    monkeypatch.setattr(module.sys, "platform", "linux")
    return tmp_path


def test_cameras_are_listed_and_found_by_number_and_name(devices: Path) -> None:
    assert list_cameras() == [CameraInfo(0, "Integrated Webcam: HD", "V4L2"), CameraInfo(2, "Brio 4K", "V4L2")]
    assert find_camera("2") == 2
    assert find_camera("brio") == 2
    assert find_camera("integrated webcam: hd") == 0
    assert find_camera("/dev/video2") == 2
    assert find_camera(str(devices / "video0")) == devices / "video0"  # any file may play a camera
    with pytest.raises(
        InputError, match=r"no camera is called 'obs'; there are 0 \(Integrated Webcam: HD\), 2 \(Brio 4K\)"
    ):
        find_camera("obs")
    with pytest.raises(InputError, match="2 cameras are called 'r'"):
        find_camera("r")
    with pytest.raises(InputError, match=r"clip\.mp4 does not exist"):
        find_camera("clip.mp4")
    assert "--camera FILE" in describe_cameras([])


def test_a_camera_that_comes_back_under_another_number_is_found_by_its_name(
    devices: Path, fake: type[FakeCapture]
) -> None:
    """And another one that was given its number is left alone."""
    told: list[str] = []

    def write(number: int, name: str) -> None:
        (devices / "class" / f"video{number}").mkdir(exist_ok=True)
        (devices / "class" / f"video{number}" / "name").write_text(f"{name}\n")

    camera = Camera(2, notice=told.append)
    camera.start()
    write(2, "Phone")
    fake.script = [None]
    wait_for(lambda: len(told) == 1)
    time.sleep(0.1)
    assert fake.sources == [2]
    assert "camera 2 is gone" in camera.trouble
    write(4, "Brio 4K")
    wait_for(lambda: len(told) == 2)
    camera.stop()
    assert fake.sources == [2, 4]
    assert told[1] == "camera 4 is back."
    assert camera.trouble == ""


def test_a_twin_of_a_camera_that_is_gone_is_left_alone(devices: Path, fake: type[FakeCapture]) -> None:
    (devices / "class" / "video0" / "name").write_text("Brio 4K\n")
    told: list[str] = []
    camera = Camera(2, notice=told.append)
    camera.start()
    (devices / "class" / "video2" / "name").write_text("\n")
    fake.script = [None]
    wait_for(lambda: len(told) == 1)
    time.sleep(0.1)
    camera.stop()
    assert fake.sources == [2]


def test_why_a_camera_does_not_open(devices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_not(5).startswith("there is no camera 5; there are 0 (Integrated Webcam: HD)")
    assert "another program" in why_not(0)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "usermod -aG video" in why_not(0)
    monkeypatch.setattr(module.sys, "platform", "win32")
    assert "privacy settings" in why_not(0)


def test_a_file_plays_at_its_own_pace_and_ends(tmp_path: Path) -> None:
    camera = Camera(write_clip(tmp_path / "clip.mp4", 15, 30))
    start = time.perf_counter()
    camera.start()
    frames = []
    while not camera.mailbox.ended:
        frame = camera.mailbox.take(0.2)
        if frame is not None:
            frames.append(frame)
    assert time.perf_counter() - start > 0.4  # 15 frames at 30 a second
    assert [frame.number for frame in frames] == sorted({frame.number for frame in frames})
    for frame in frames:
        assert frame.time_s == pytest.approx(frame.number / 30, abs=2e-3)
        assert frame.captured_s >= start + frame.time_s - 2e-3  # never before its time
    camera.stop()


def test_a_file_of_a_variable_rate_plays_by_its_time_stamps(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    stamps_ms = [0, 20, 140, 160, 400, 410, 500]
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for stamp in stamps_ms:
            frame = av.VideoFrame.from_ndarray(GREY, format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    camera = Camera(tmp_path / "clip.mp4")
    frames: list[Any] = []
    camera.mailbox.put = frames.append  # type: ignore[method-assign] - a mailbox would drop those that nobody takes
    start = time.perf_counter()
    camera.start()
    wait_for(lambda: camera.mailbox.ended)
    camera.stop()
    assert [1e3 * frame.time_s for frame in frames] == pytest.approx(stamps_ms, abs=1)
    for frame in frames:
        assert frame.captured_s >= start + frame.time_s - 2e-3  # never before its time


def test_a_file_may_start_over(tmp_path: Path) -> None:
    camera = Camera(write_clip(tmp_path / "clip.mp4", 5, 50), again=True)
    camera.start()
    times: list[float] = []
    while len(times) < 8:
        frame = camera.mailbox.take(5)
        assert frame is not None
        times.append(frame.time_s)
    camera.stop()
    assert times == sorted(times)
    assert len(set(times)) == 8


def test_a_file_that_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("nothing")
    with pytest.raises(InputError, match="is not a video that can be read"):
        Camera(tmp_path / "text.mp4").start()
