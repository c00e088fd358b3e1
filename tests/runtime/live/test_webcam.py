"""What the webcam does with pictures: keys act on what is seen and on files, sinks get what is shown."""

import errno
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import fid.runtime.commands.cli
import numpy as np
import pytest
from click.testing import CliRunner
from fid.runtime.assets import FACES
from fid.runtime.commands import options
from fid.runtime.composer import Composer
from fid.runtime.errors import FidError
from fid.runtime.labels.mark import FOUND, detect_mark, embed_mark
from fid.runtime.labels.provenance import Note
from fid.runtime.live import webcam as webcam_module
from fid.runtime.live.layout import Picture
from fid.runtime.live.webcam import Sinks, Webcam, fitted, process_age_s
from fid.runtime.media import camera_list, video_write
from fid.runtime.media.camera import Camera
from fid.runtime.media.camera_list import CameraInfo
from fid.runtime.media.images import read_image
from fid.runtime.media.video import open_clip, read_frames
from filming import ScriptedWindow, show_of, wait, write_clip


def play(show: Webcam, scene: Callable[[ScriptedWindow], Iterator[str]]) -> list[np.ndarray]:
    """The pictures of a window whose user does what the scene says."""
    window: Any = ScriptedWindow(scene)
    show._window = window
    show.run()
    return window.pictures


def endless(tmp_path: Path) -> Camera:
    return Camera(write_clip(tmp_path / "in.mp4", 30, 60), again=True)


def brighter_right(picture: np.ndarray) -> bool:
    middle = picture.shape[1] // 2
    return bool(picture[-8:, middle:].mean() > picture[-8:, :middle].mean())


def test_keys_act_on_what_is_seen_and_on_files(tmp_path: Path) -> None:
    pytest.importorskip("av")
    folder = tmp_path / "saved"
    folder.mkdir()
    show, _, _ = show_of(tmp_path, Sinks(window=False, folder=folder), camera=endless(tmp_path))
    seen: dict[str, Any] = {}
    shown = shown_by(show)

    def scene(window: ScriptedWindow) -> Iterator[str]:
        def more(count: int) -> Iterator[str]:
            former = show.live.taken
            return wait(lambda: show.live.taken >= former + count)

        yield "overlay"
        yield from more(2)
        seen["before"] = brighter_right(window.pictures[-1])
        yield "screenshot"
        yield "mirror"
        yield from more(4)
        seen["mirrored"] = brighter_right(window.pictures[-1])
        yield "record"
        yield from more(5)
        yield "record"
        yield "pause"
        yield from wait(lambda: show.live.take(0.2) is None)  # what was composed before
        seen["paused at"] = show.live.taken
        for _ in range(10):
            yield ""
        seen["paused until"] = show.live.taken
        yield "pause"
        yield from more(1)

    play(show, scene)
    assert (seen["before"], seen["mirrored"]) == (True, False)
    assert seen["paused at"] == seen["paused until"] < show.live.taken
    (picture,), (video,) = folder.glob("*.png"), folder.glob("*.mp4")
    shot = read_image(picture)
    assert any(np.array_equal(shot, embed_mark(image)) for image in shown)
    assert open_clip(video).frames >= 5
    assert len(list(folder.iterdir())) == 2


def test_a_pause_is_no_reason_not_to_answer(tmp_path: Path) -> None:
    """Help, figures and a new size of the window are drawn while no picture comes."""
    show, _, _ = show_of(tmp_path, Sinks(window=False), camera=endless(tmp_path))
    drawn: dict[str, np.ndarray] = {}

    def scene(window: ScriptedWindow) -> Iterator[str]:
        yield from wait(lambda: len(window.pictures) > 2)
        yield "pause"
        yield from wait(lambda: show.live.take(0.2) is None)
        for action in ("overlay", "help", "redraw", "overlay"):
            count = len(window.pictures)
            yield action
            assert len(window.pictures) > count
            drawn[action] = window.pictures[-1]
        count = len(window.pictures)
        yield from wait(lambda: len(window.pictures) > count)  # the figures, twice a second

    play(show, scene)
    assert not np.array_equal(drawn["overlay"], drawn["help"])
    assert np.array_equal(drawn["help"], drawn["redraw"])


def test_quick_presses_all_count(tmp_path: Path) -> None:
    show, _, said = show_of(tmp_path, Sinks(window=False))
    for action in ("smoother", "smoother", "view", "view"):  # before the composing thread comes to the first of them
        show.do(action)
    assert (show.live.wishes.smooth, show.live.wishes.view) == (1.5, "result-only")
    assert said == ["smoothing 1.25.", "smoothing 1.5."]


def test_a_folder_that_cannot_be_written_does_not_end_the_show(tmp_path: Path) -> None:
    pytest.importorskip("av")
    show, _, said = show_of(tmp_path, Sinks(window=False, folder=tmp_path / "none"), camera=endless(tmp_path))

    def scene(window: ScriptedWindow) -> Iterator[str]:
        yield from wait(lambda: len(window.pictures) > 2)
        yield "screenshot"
        assert show.news() == said[-1:]  # for those who look at the window and not at the terminal
        yield "record"
        assert show.news() == said[-1:]
        count = show.live.taken
        yield from wait(lambda: show.live.taken > count)

    play(show, scene)
    assert len(said) == 2
    assert all("none does not exist; create it first" in sentence for sentence in said)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(video_write, "to_frame", refuse)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_ends_a_recording_that_a_key_began_and_nothing_else(tmp_path: Path) -> None:
    show, _, said = show_of(tmp_path, Sinks(window=False, folder=tmp_path), camera=endless(tmp_path))

    def scene(window: ScriptedWindow) -> Iterator[str]:
        yield "record"
        yield from wait(lambda: show._recorder is None)
        count = show.live.taken
        yield from wait(lambda: show.live.taken > count)

    play(show, scene)
    assert "could not be written: No space left on device" in said[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_an_error_for_the_recording_that_was_asked_for(tmp_path: Path) -> None:
    show, _, _ = show_of(tmp_path, Sinks(window=False, record=tmp_path / "out.mp4"), camera=endless(tmp_path))
    with pytest.raises(FidError, match="could not be written: No space left"):
        show.run(20)


class VirtualCamera:
    """In the place of pyvirtualcam's."""

    device = "/dev/video9"

    def __init__(self, width: int, height: int, fps: float) -> None:
        self.size, self.sent, self.closed = (height, width, 3), [], False
        VirtualCamera.last = self

    def send(self, picture: np.ndarray) -> None:
        assert not self.closed
        assert picture.shape == self.size
        assert picture.flags.c_contiguous
        self.sent.append(picture.copy())

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def pyvirtualcam(monkeypatch: pytest.MonkeyPatch) -> type[VirtualCamera]:
    monkeypatch.setitem(sys.modules, "pyvirtualcam", SimpleNamespace(Camera=VirtualCamera))  # type: ignore[arg-type]
    return VirtualCamera


def shown_by(show: Webcam) -> list[np.ndarray]:
    """What a show will hand to its sinks."""
    shown: list[np.ndarray] = []
    sink = show._sink
    show._sink = lambda one: (shown.append(one.image), sink(one))[1]  # type: ignore[method-assign]
    return shown


def test_the_virtual_camera_gets_what_is_shown(tmp_path: Path, pyvirtualcam: type[VirtualCamera]) -> None:
    show, _, said = show_of(tmp_path, Sinks(window=False, virtual_camera=True), mirror=True)
    shown = shown_by(show)
    show.run()
    assert len(shown) > 5
    np.testing.assert_array_equal(pyvirtualcam.last.sent, shown)
    assert not brighter_right(shown[0])
    assert pyvirtualcam.last.closed
    assert said == ["the virtual camera is /dev/video9."]


def test_the_invisible_mark_is_in_what_is_saved_and_nowhere_in_the_way_of_live_output(
    tmp_path: Path, pyvirtualcam: type[VirtualCamera]
) -> None:
    pytest.importorskip("av")
    faces = np.hstack([read_image(FACES / f"identity-{name}.jpg") for name in ("ada", "ben")])

    def sigma(note: Note | None) -> tuple[float, float, float]:
        """Of the mark in the window, in the virtual camera and in the recording."""
        path = tmp_path / f"{note is None}.mp4"
        sinks = Sinks(window=False, record=path, virtual_camera=True)
        show, work, _ = show_of(tmp_path, sinks, frames=3, note=lambda kind, view: note)
        work.show = lambda image, *_: Picture(faces, True, {})  # type: ignore[method-assign]
        show.overlay = False
        window = play(show, lambda window: wait(lambda: False))
        with closing(read_frames(open_clip(path))) as recorded:
            places = window[-1], pyvirtualcam.last.sent[-1], next(recorded)[1]
        return tuple(detect_mark(picture, sizes=False).sigma for picture in places)  # type: ignore[return-value]

    live, sent, saved = sigma(Note("toy", "1", "reenactment"))
    assert max(live, sent) < 6
    assert saved > FOUND
    assert max(sigma(None)) < 6


def test_a_frame_of_another_size_fits_into_what_was_begun(tmp_path: Path, pyvirtualcam: type[VirtualCamera]) -> None:
    """As of a camera that comes back in another mode."""
    pytest.importorskip("av")
    sinks = Sinks(window=False, record=tmp_path / "out.mp4", virtual_camera=True)
    show, work, _ = show_of(tmp_path, sinks)
    numbers = iter(range(1000))
    work.show = lambda image, *_: Picture(image if next(numbers) % 2 == 0 else image[:20], True, {})  # type: ignore[method-assign]
    shown = shown_by(show)
    show.run()
    assert {image.shape for image in shown} == {(48, 64, 3), (20, 64, 3)}
    assert len(pyvirtualcam.last.sent) == len(shown) == open_clip(tmp_path / "out.mp4").frames


def test_fitting_keeps_all_of_a_picture_and_its_shape() -> None:
    wide = np.full((20, 60, 3), 200, np.uint8)
    inside = fitted(wide, (48, 30, 3))
    assert inside.shape == (48, 30, 3)
    assert (inside[19:29] == 200).all()
    assert not inside[:19].any()
    assert not inside[29:].any()
    assert fitted(wide, (20, 60, 3)) is wide
    assert (fitted(wide, (40, 120, 3)) == 200).all()


def test_a_virtual_camera_that_fails_at_the_end_does_not_take_the_recording_along(
    tmp_path: Path, pyvirtualcam: type[VirtualCamera], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av")

    def broken(self: VirtualCamera) -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(pyvirtualcam, "close", broken)
    show, _, said = show_of(tmp_path, Sinks(window=False, record=tmp_path / "out.mp4", virtual_camera=True))
    with pytest.raises(RuntimeError, match="the device is gone"):
        show.run()
    assert open_clip(tmp_path / "out.mp4").frames == show.live.taken
    assert "out.mp4 is saved" in said[-1]


def test_who_lacks_the_virtual_camera_learns_of_it_before_models_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyvirtualcam", None)
    clip = write_clip(tmp_path / "in.mp4", 2, 30)
    arguments = ["webcam", "--identity", "x.jpg", "--camera", str(clip), "--vcam", "--bundle", str(tmp_path / "none")]
    result = CliRunner().invoke(fid.runtime.commands.cli.main, arguments)
    assert result.exit_code == 1
    assert "pip install 'fid-face[vcam]'" in result.stderr


def test_what_a_frame_needs_is_waited_for_while_the_camera_runs(tmp_path: Path) -> None:
    show, _, _ = show_of(tmp_path, Sinks(window=False), camera=endless(tmp_path))
    found = {}

    def ready() -> None:
        found["frame"] = show._camera.mailbox.take(10)
        found["taken"], found["began_s"] = show.live.taken, show.live.started_s

    show.run(0.3, ready)
    assert found["frame"] is not None  # the camera runs
    assert found["taken"] == 0  # and nothing is shown yet
    assert show.live.started_s > found["began_s"]  # nor does its rate count what was waited


def test_an_engine_that_does_not_work_is_told_before_the_first_picture(
    tmp_path: Path, toy_bundle: Path, fetched: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched("yunet")
    monkeypatch.setattr(Composer, "fallbacks", ["CUDA does not work here; the CPU computes instead."])
    monkeypatch.setattr(options, "said_today", lambda sentence: False)

    def run(show: Webcam, duration_s: float | None, ready: Callable[[], None]) -> None:
        ready()
        click.echo("the show begins", err=True)

    monkeypatch.setattr(Webcam, "run", run)
    clip = write_clip(tmp_path / "in.mp4", 2, 30)
    common = ["--bundle", str(toy_bundle), "--identity", str(FACES / "identity-ben.jpg"), "--headless"]
    result = CliRunner().invoke(fid.runtime.commands.cli.main, ["webcam", *common, "--camera", str(clip)])
    assert result.exit_code == 0, result.output
    said = result.stderr.splitlines()
    assert said.index("fid-run: CUDA does not work here; the CPU computes instead.") < said.index("the show begins")


def test_the_list_of_cameras_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    cameras = [CameraInfo(0, "Integrated Webcam: HD", "V4L2"), CameraInfo(2, "Brio 4K", "V4L2")]
    for there in (cameras, []):
        monkeypatch.setattr(camera_list, "list_cameras", lambda there=there: there)
        result = CliRunner().invoke(fid.runtime.commands.cli.main, ["webcam", "--list", "--json"])
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout) == [vars(camera) for camera in there]


def test_the_age_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import time; from fid.runtime.live.webcam import process_age_s; time.sleep(0.3); print(process_age_s(1e9))"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    spent_s = time.perf_counter() - start
    if sys.platform.startswith("linux"):
        assert 0.3 < float(done.stdout) < spent_s + 0.02  # 0.01 s is how fine the system counts

    def refuse(*_: Any) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(webcam_module.Path, "read_text", refuse)
    assert process_age_s(4.5) == 4.5
