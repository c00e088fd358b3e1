"""The live path under a slow model, and the webcam on top of it: keys, window, recording."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import fid.runtime.commands.cli
import numpy as np
import pytest
import toy
from click.testing import CliRunner
from fid.runtime.assets import FACES
from fid.runtime.commands.bench import read_frames as first_frames
from fid.runtime.errors import FidError, InputError
from fid.runtime.identity import Identity
from fid.runtime.labels.badge import draw_badge
from fid.runtime.live import pipeline as live_module
from fid.runtime.live import webcam as webcam_module
from fid.runtime.live.ages import Ages
from fid.runtime.live.layout import BLANK, Layout, Picture, Reenactment, Wishes
from fid.runtime.live.pipeline import Live
from fid.runtime.live.reenact import Step
from fid.runtime.live.webcam import Sinks, open_virtual_camera, resident_mb
from fid.runtime.media.camera import Camera
from fid.runtime.media.images import read_image
from fid.runtime.media.video import open_clip, read_frames
from fid.runtime.media.window import KEYS, Window, draw_text, help_lines
from filming import SlowWork, show_of, write_clip

SOMEBODY = Identity(np.eye(1, 128, dtype=np.float32)[0], "toy")


@pytest.mark.parametrize(
    "seconds", [5, pytest.param(120, marks=pytest.mark.slow), pytest.param(600, marks=pytest.mark.slow)]
)
def test_a_slow_model_makes_nothing_late(tmp_path: Path, seconds: int) -> None:
    """60 frames a second come and 25 can be composed: ages stay below two frames and the work, and do not grow."""
    work_s, frame_s = 0.040, 1 / 60
    camera, work = Camera(write_clip(tmp_path / "clip.mp4", 120, 60), again=True), SlowWork(work_s)
    live: Any = Live(camera, work)  # type: ignore[arg-type]
    live.start()
    numbers, memory, worked_ms = [], [], []
    while time.perf_counter() - live.started_s < seconds:
        shown = live.take(0.1)
        if shown is not None:
            numbers.append(shown.number)
            memory.append(resident_mb())
            worked_ms.append(live._recent[-1][2]["synthesis"])  # on a busy machine it may be longer than asked for
    live.stop()
    assert numbers == sorted(set(numbers))  # the order is kept, nothing comes twice
    assert live.dropped > 0.3 * numbers[-1]
    assert live.ages.percentile(50) <= 1e3 * (2 * frame_s + work_s) + 10  # 10 ms for threads that wake up late
    # A queue would grow by 0.6 s every second, to 2.9 s in the shortest run; a tenth of that is left to a busy machine.
    assert live.ages.percentile(99) <= 1e3 * 2 * frame_s + float(np.percentile(worked_ms, 99)) + 290
    assert abs(live.ages.slope_ms_per_s) * seconds < 1e3 * (frame_s + work_s)  # over the whole run, less than a frame
    settled = memory[len(memory) // 2]  # by then the file was opened a second time, even in the shortest run
    assert max(memory[len(memory) // 2 :]) < 1.01 * settled


def test_ages_in_closed_form() -> None:
    ages = Ages()
    assert ages.summary() == {"p50": 0.0, "p95": 0.0, "p99": 0.0}
    for n in range(1000):
        ages.add(n / 10, n / 100)
    assert ages.percentile(50) == pytest.approx(50, abs=0.6)
    assert ages.percentile(99) == pytest.approx(99, abs=0.6)
    assert ages.slope_ms_per_s == pytest.approx(10)
    ages.add(1e9, 10)
    assert ages.percentile(100) <= 10_001


FAILURES = [FidError("the engine is gone."), cv2.error("a size is wrong"), KeyError("w"), IndexError("no face")]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda error: type(error).__name__)
def test_a_failure_of_the_composing_thread_reaches_the_caller(tmp_path: Path, failure: Exception) -> None:
    class Broken(SlowWork):
        def show(self, image: np.ndarray, time_s: float, wishes: Wishes) -> Picture:
            raise failure

    live = Live(Camera(write_clip(tmp_path / "clip.mp4", 10, 30)), Broken(0))  # type: ignore[arg-type]
    live.start()
    live._thread.join(10)
    assert not live.ended
    with pytest.raises(type(failure)) as raised:
        live.take(0.1)
    assert raised.value is failure
    live.stop()


@pytest.mark.parametrize("failure", FAILURES, ids=lambda error: type(error).__name__)
def test_a_failure_of_the_camera_is_not_lost_while_a_picture_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def broken(self: Camera, *_: object) -> None:
        raise failure

    monkeypatch.setattr(Camera, "_put", broken)
    live = Live(Camera(write_clip(tmp_path / "clip.mp4", 10, 30)), SlowWork(0))  # type: ignore[arg-type]
    live.start()
    live._thread.join(10)  # as while a picture is written to a slow disk
    assert not live.ended
    with pytest.raises(type(failure)) as raised:
        live.take(0.1)
    assert raised.value is failure
    live.stop()


def test_the_rate_can_be_capped(tmp_path: Path) -> None:
    live = Live(Camera(write_clip(tmp_path / "clip.mp4", 90, 60)), SlowWork(0), fps_cap=10)  # type: ignore[arg-type]
    live.start()
    while not live.ended:
        live.take(0.05)
    seconds = time.perf_counter() - live.started_s
    live.stop()
    assert 3 <= live.taken <= 10 * seconds + 2
    assert live.dropped > live.taken


def test_figures_of_now_and_of_the_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "RECENT_S", 0.2)
    live = Live(Camera(write_clip(tmp_path / "clip.mp4", 20, 60)), SlowWork(0.002))  # type: ignore[arg-type]
    assert live.recent()["fps"] == 0
    live.start()
    now = {}
    while not live.ended:
        if live.take(0.05) is not None:
            now = live.recent()
    assert now["fps"] > 0
    assert now["frame_age_ms"]["p50"] <= now["frame_age_ms"]["p99"]
    assert now["stage_ms"]["synthesis"] >= 2
    time.sleep(0.25)  # as in a pause
    assert live.recent() == {"fps": 0, "frame_age_ms": {"p50": 0, "p95": 0, "p99": 0}, "stage_ms": {}}
    assert live.stage_ms["synthesis"] >= 2
    assert live.ages.count == live.taken
    live.stop()


def test_every_key_has_an_action_that_works(tmp_path: Path) -> None:
    show, _, said = show_of(tmp_path, Sinks(window=False, folder=tmp_path))
    effects: dict[str, Callable[[], bool]] = {
        "identity 1": lambda: show.live.wishes.identity == "ada",
        "identity 2": lambda: show.live.wishes.identity == "ben",
        **{f"identity {n}": lambda: said[-1].endswith("there are 2 identities.") for n in range(3, 10)},
        "overlay": lambda: not show.overlay,
        "view": lambda: show.live.wishes.view == "side-by-side",
        "mirror": lambda: show.live.wishes.mirror,
        "recalibrate": show.live._reset.is_set,
        "smoother": lambda: show.live.wishes.smooth == 1.25,
        "livelier": lambda: show.live.wishes.smooth == 1.0,
        "screenshot": lambda: True,
        "record": lambda: show._recorder is not None,
        "pause": lambda: show.live.paused,
        "help": lambda: show.help,
        "quit": lambda: show.over,
    }
    for action in dict.fromkeys(action for action, _ in KEYS.values()):
        show.do(action)
        assert effects[action](), action
    show.do("record")  # off again: nothing was recorded, nothing is left
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]
    assert {action for action, text in KEYS.values() if text} == effects.keys()
    assert any(line.startswith("h  ") for line in help_lines())


def test_the_recording_is_what_was_shown(tmp_path: Path) -> None:
    pytest.importorskip("av")
    show, _, said = show_of(tmp_path, Sinks(window=False, record=tmp_path / "out.mp4"))
    shown = []
    sink = show._sink
    show._sink = lambda one: (shown.append(one), sink(one))[1]  # type: ignore[method-assign]
    show.run()
    clip = open_clip(tmp_path / "out.mp4")
    recorded = list(read_frames(clip))
    assert len(recorded) == len(shown) > 5
    for (stamp, image), one in zip(recorded, shown, strict=True):
        assert float(stamp * clip.time_base) == pytest.approx(one.time_s - shown[0].time_s, abs=1e-3)
        assert np.abs(image.astype(int) - one.image).mean() < 4
    assert "out.mp4 is saved" in said[-1]
    assert clip.time_base == Fraction(1, 90000)


def test_the_window_without_a_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SDL's own dummy screen: the picture is drawn, keys come as actions, the closed window ends the show."""
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    window = Window("test")
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:, 32:] = (200, 100, 50)
    window.show(picture)
    surface = pygame.display.get_surface()
    wide, high = surface.get_size()
    assert surface.get_at((wide * 3 // 4, high // 2))[:3] == (200, 100, 50)
    assert surface.get_at((wide // 4, high // 2))[:3] == (0, 0, 0)
    for key, unicode in ((pygame.K_2, "2"), (pygame.K_o, "o"), (pygame.K_SPACE, " "), (pygame.K_ESCAPE, "\x1b")):
        pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=key, unicode=unicode))
    pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_F5, unicode=""))
    pygame.event.post(pygame.event.Event(pygame.QUIT))
    assert window.actions() == ["identity 2", "overlay", "pause", "quit", "quit"]
    window.close()
    show, _, _ = show_of(tmp_path, Sinks(window=True), frames=8)
    show.run()
    assert show.report()["frames"] > 0


def test_the_overlay_is_drawn_on_a_copy(tmp_path: Path) -> None:
    picture = np.full((240, 320, 3), 128, np.uint8)
    show, _, _ = show_of(tmp_path, Sinks(window=False))
    drawn = draw_text(picture, show.overlay_lines())
    assert (picture == 128).all()
    assert (drawn != 128).any()
    assert any("toy CPU" in line for line in show.overlay_lines())
    assert np.array_equal(draw_text(picture, []), picture)


def test_a_missing_virtual_camera_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def __init__(self, **options: Any) -> None:
            raise RuntimeError("no loopback device")

    monkeypatch.setitem(sys.modules, "pyvirtualcam", None)
    with pytest.raises(FidError, match=r"pip install 'fid-face\[vcam\]'"):
        open_virtual_camera((48, 64, 3))
    monkeypatch.setitem(sys.modules, "pyvirtualcam", SimpleNamespace(Camera=Refusing))  # type: ignore[arg-type]
    monkeypatch.setattr(webcam_module.sys, "platform", "linux")
    with pytest.raises(FidError, match="sudo modprobe v4l2loopback"):
        open_virtual_camera((48, 64, 3))
    monkeypatch.setattr(webcam_module.sys, "platform", "darwin")
    with pytest.raises(FidError, match="install OBS"):
        open_virtual_camera((48, 64, 3))


def composer_of(resolution: int) -> SimpleNamespace:
    """In the place of a composer: pastes squares."""
    from fid.runtime.face.paste import Paster

    return SimpleNamespace(resolution=resolution, paster=lambda mask: Paster())


@pytest.mark.parametrize(
    ("view", "shape"), [("paste", (40, 60, 3)), ("side-by-side", (40, 100, 3)), ("result-only", (32, 32, 3))]
)
def test_layouts_and_what_is_shown_without_a_face(view: str, shape: tuple[int, ...]) -> None:
    from fid.runtime.face.align import Alignment

    frame = np.full((40, 60, 3), 90, np.uint8)
    step = Step(np.full((32, 32, 3), 200, np.uint8), frame[:32, :32], Alignment(np.eye(2, 3), 32), None)
    pictures = {}
    for no_face in ("hold", "pass", "blank"):
        layout = Layout(composer_of(32), "square")  # type: ignore[arg-type]
        wishes = Wishes(SOMEBODY, view, no_face, mask="square")
        before = layout.picture(frame, None, 0.0, wishes)
        with_face = layout.picture(frame, step, 0.1, wishes)
        pictures[no_face] = layout.picture(frame, None, 0.2, wishes)
        assert before.shape == with_face.shape == pictures[no_face].shape == shape
        if no_face == "hold":
            assert np.array_equal(pictures[no_face], with_face)
            assert (before[:, -1] == BLANK).all()  # nothing to hold yet
    assert (pictures["blank"][:, -1] == BLANK).all()
    assert (pictures["pass"][:, -1] == 90).all()


def test_a_picture_says_what_came_of_its_frame_and_is_mirrored_at_the_end() -> None:
    from fid.runtime.face.align import Alignment

    frame = np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)
    steps = iter([Step(frame[:32, :32], frame[:32, :32], Alignment(np.eye(2, 3), 32), None), None])
    reenactor = SimpleNamespace(composer=composer_of(32), light=False, step=lambda *_: next(steps))
    work = Reenactment(reenactor, Wishes(SOMEBODY, "result-only", "blank", mirror=True))  # type: ignore[arg-type]
    with_face, without = work.show(frame, 0.0), work.show(frame, 0.1)
    assert (with_face.seen, without.seen) == (True, False)
    assert np.array_equal(with_face.image, frame[:32, :32][:, ::-1])
    assert (without.image == BLANK).all()
    assert with_face.timings.keys() == {"paste"}


def test_the_badge_is_on_what_is_shown_and_not_in_what_is_held() -> None:
    from fid.runtime.face.align import Alignment

    frame = np.arange(128 * 128 * 3, dtype=np.uint8).reshape(128, 128, 3)
    steps = iter([Step(frame, frame, Alignment(np.eye(2, 3), 128), None), None, None])
    reenactor = SimpleNamespace(composer=composer_of(128), light=False, step=lambda *_: next(steps))
    plain = Wishes(SOMEBODY, "result-only")
    work = Reenactment(reenactor, replace(plain, badge=True))  # type: ignore[arg-type]
    for time_s in (0.0, 0.1):
        assert np.array_equal(work.show(frame, time_s).image, draw_badge(frame))
    assert np.array_equal(work.show(frame, 0.2, plain).image, frame)
    assert not np.array_equal(frame, draw_badge(frame))


@pytest.mark.parametrize(
    "wrong", [{"view": "upside-down"}, {"no_face": "cry"}, {"smooth": -0.1}, {"smooth": 10.5}, {"mask": "cap"}]
)
def test_wishes_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Wishes(SOMEBODY, **wrong)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A shipped face that moves, as a video file."""
    from fid.runtime.commands.bench import made_frames

    path = tmp_path / "face.mp4"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 25, (640, 480))
    for frame in made_frames(read_image(FACES / "identity-ada.jpg"), 16):
        writer.write(frame[..., ::-1])
    writer.release()
    return path


def run(*arguments: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(fid.runtime.commands.cli.main, list(arguments))
    assert result.exit_code == exit_code, result.output
    return result.stdout if exit_code == 0 else result.stderr


def test_the_webcam_command_without_a_window(
    clip: Path, tmp_path: Path, toy_bundle: Path, fetched: Callable[[str], Path]
) -> None:
    fetched("yunet")
    common = ["--bundle", str(toy_bundle), "--identity", str(FACES / "identity-ben.jpg"), "--camera", str(clip)]
    said = run("webcam", *common, "--headless", "--json", "--side-by-side", "--record", str(tmp_path / "r.mp4"))
    report = json.loads(said.splitlines()[-1])
    assert {"fps", "frame_age_ms", "stage_ms", "provider", "dropped"} <= report.keys()
    assert report["frame_age_ms"].keys() == {"p50", "p95", "p99"}
    assert report["frames"] + report["dropped"] <= 16
    assert report["first_frame_s"] >= report["ready_s"] > 0
    assert report["resident_mb"] > 0
    assert report["provider"] == "onnxruntime CPU"
    assert open_clip(tmp_path / "r.mp4").width == 640 + 480
    assert report["generator"] == "full"
    text = run("webcam", *common, "--headless", "--duration", "1", "--mirror", "--smooth", "0")
    assert "frame age p50" in text
    refused = run("webcam", *common, "--headless", "--light", exit_code=2)
    assert "the bundle toy has no light generator for 256 px; leave --light out" in refused


def test_live_pictures_on_a_cpu_come_from_the_light_generator(
    clip: Path, tmp_path: Path, fetched: Callable[[str], Path]
) -> None:
    fetched("yunet")
    bundle = toy.write_bundle(tmp_path / "both", light=True).folder
    common = ["--bundle", str(bundle), "--identity", str(FACES / "identity-ben.jpg"), "--json"]
    live = ["webcam", *common, "--camera", str(clip), "--headless", "--duration", "0.5"]
    for option, generator in (((), "light"), (("--light",), "light"), (("--full",), "full")):
        assert json.loads(run(*live, *option).splitlines()[-1])["generator"] == generator
    film = ["video", *common, "--driving", str(clip), "--result-only", "--trim", "0:0.2", "-o"]
    bright, dim = tmp_path / "full.mp4", tmp_path / "light.mp4"
    run(*film, str(bright))
    run(*film, str(dim), "--light")
    means = [float(np.std(first_frames(path, 1)[0])) for path in (bright, dim)]
    assert means[1] < 0.7 * means[0]  # the toy's light generator has half the contrast


def test_the_video_command_and_resuming(
    clip: Path, tmp_path: Path, toy_bundle: Path, fetched: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched("yunet")
    from fid.runtime.media import video_rework

    monkeypatch.setattr(video_rework, "PART_FRAMES", 5)
    ben, a, b = str(FACES / "identity-ben.jpg"), tmp_path / "a.mp4", tmp_path / "b.mp4"
    common = ["video", "--bundle", str(toy_bundle), "--identity", ben, "--driving", str(clip), "--paste", "-o"]
    report = json.loads(run(*common, str(a), "--json"))
    assert report["frames"] == 16
    picture, count = Reenactment.picture, iter(range(100))

    def killed(self: Reenactment, image: np.ndarray, time_s: float) -> np.ndarray:
        if next(count) == 12:
            raise KeyboardInterrupt
        return picture(self, image, time_s)

    monkeypatch.setattr(Reenactment, "picture", killed)
    run(*common, str(b), exit_code=130)
    monkeypatch.setattr(Reenactment, "picture", picture)
    run(*common, str(b))
    assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "sentence"),
    [
        (["webcam"], 2, "Missing option '--identity'"),
        (["webcam", "--identity", "x.jpg", "--camera", "none.mp4"], 2, "none.mp4 does not exist"),
        (["webcam", "--identity", "x.jpg", "--size", "big"], 2, "give WIDTHxHEIGHT"),
        (["video", "--identity", "x.jpg", "--driving", "none.mp4", "-o", "out.mp4"], 2, "none.mp4 does not exist"),
        (["video", "--identity", "x.jpg", "--driving", "none.mp4", "-o", "out.gif"], 2, "must end in .mp4"),
        (["video", "--identity", "x.jpg", "--driving", "a.mp4", "--trim", "5:1", "-o", "o.mp4"], 2, "leaves nothing"),
        (["deidentify", "none.jpg", "-o", "out.png"], 2, "none.jpg does not exist"),
        (["bench", "--camera", "none.mp4"], 2, "none.mp4 does not exist"),
    ],
)
def test_mistakes_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], exit_code: int, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sentence in run(*arguments, exit_code=exit_code)
