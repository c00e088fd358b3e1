"""The commands `video` and `bench` from end to end with the toy bundle."""

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from fid.runtime import Composer
from fid.runtime.assets import FACES
from fid.runtime.commands import moving as cli_moving
from fid.runtime.commands.bench import made_frames
from fid.runtime.deidentify import run
from fid.runtime.errors import FidError
from fid.runtime.media import video_rework
from fid.runtime.media.images import read_image
from PIL import Image

from ..media.test_video import sound_packets, write_clip
from .test_photos import ADA, fid_run, one_line

FALLBACK = "cuda does not work here: no driver; onnxruntime CPU runs in its place."


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetched: Callable[[str], Path]) -> None:
    fetched("yunet")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A face that moves for 8 frames, 2 seconds, with a tone."""
    frames = made_frames(read_image(FACES / "identity-ada.jpg"), 8)
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return str(write_clip(path, [22500 * number for number in range(8)], pictures=frames.__getitem__))


@pytest.fixture
def falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator's session, once it is open, is not what was asked for."""
    monkeypatch.setattr(
        Composer, "fallbacks", property(lambda self: [FALLBACK] if "synthesis" in self._sessions else [])
    )
    monkeypatch.setattr("fid.runtime.commands.options.said_today", lambda sentence: False)


def never(*arguments: object, **options: object) -> None:
    raise FidError("the work began.")


def test_video(bundle: str, clip: str) -> None:
    arguments = ("video", "--bundle", bundle, "--identity", ADA, "--driving", clip, "-o", "out.mp4")
    report = json.loads(fid_run(*arguments, "--paste", "--json").stdout)
    assert (report["frames"], report["missing"], report["sound_tracks"]) == (8, 0, 1)
    assert sound_packets(Path("out.mp4")) == sound_packets(Path(clip))
    assert "missing" not in fid_run(*arguments, "--trim", "0.5:1").stdout


def test_a_preview_shows_five_places_and_writes_no_video(bundle: str, clip: str) -> None:
    arguments = ("video", "--bundle", bundle, "--identity", ADA, "--driving", clip, "-o", "out.mp4")
    report = json.loads(fid_run(*arguments, "--preview", "look.png", "--json").stdout)
    assert report["frames"] == 8
    assert 0 < report["seconds"] < 3600
    height, width = made_frames(read_image(FACES / "identity-ada.jpg"), 1)[0].shape[:2]
    factor = 480 / max(height, width)
    assert read_image("look.png").shape == (5 * (round(height * factor) + 4), 2 * round(width * factor), 3)
    assert not Path("out.mp4").exists()
    assert "about" in fid_run(*arguments, "--preview", "look.png", "--trim", "0.5:1", "--result-only").stdout
    assert one_line(fid_run(*arguments, "--preview", clip, exit_code=2))


def test_a_damaged_video_is_told(bundle: str, clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_rework, "rework", lambda *_, **__: (7, 1))
    result = fid_run("video", "--bundle", bundle, "--identity", ADA, "--driving", clip, "-o", "out.mp4")
    assert f"{clip} is damaged, frames missing: 1" in result.stdout


@pytest.mark.usefixtures("falls_back")
def test_a_fallback_is_told_before_the_work(bundle: str, clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_rework, "rework", never)
    arguments = ("video", "--bundle", bundle, "--identity", ADA, "--driving", clip, "-o", "out.mp4")
    lines = fid_run(*arguments, exit_code=1).stderr.splitlines()
    assert lines == [f"fid-run: {FALLBACK}", "fid-run: the work began."]
    monkeypatch.setattr(run.Worker, "file", never)
    lines = fid_run("deidentify", "--bundle", bundle, ADA, "-o", "out.png", exit_code=1).stderr.splitlines()
    assert lines == [f"fid-run: {FALLBACK}", "fid-run: left out: the work began."]


def test_the_original_is_not_written_over(bundle: str, clip: str) -> None:
    Path("clip.mp4").write_bytes(Path(clip).read_bytes())
    for arguments in (("video", "--identity", ADA, "--driving", "clip.mp4"), ("deidentify", "clip.mp4")):
        result = fid_run(*arguments, "--bundle", bundle, "-o", "./clip.mp4", exit_code=2)
        assert "clip.mp4 is the original itself" in one_line(result)
    assert Path("clip.mp4").read_bytes() == Path(clip).read_bytes()


def test_ctrl_c_says_what_is_kept(bundle: str, clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_rework, "PART_FRAMES", 3)
    arguments = ("video", "--bundle", bundle, "--identity", ADA, "--driving", clip, "-o", "out.mp4")

    def stops(ready: int) -> None:
        if ready == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(cli_moving, "frame_progress", lambda *_: nullcontext(stops))
    said = one_line(fid_run(*arguments, exit_code=130))
    assert said == "fid-run: stopped; 2 parts are kept in .out.mp4.parts, and the same command goes on from there."
    monkeypatch.setattr(cli_moving, "frame_progress", lambda *_: nullcontext(lambda ready: None))
    assert "8 frames" in fid_run(*arguments).stdout


def test_a_missing_pyav_is_one_error_and_no_result(clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("in").mkdir()
    Path("in", "a.mp4").write_bytes(Path(clip).read_bytes())
    monkeypatch.setitem(sys.modules, "av", None)
    for arguments in (
        ("video", "--identity", ADA, "--driving", clip, "-o", "out.mp4"),
        ("deidentify", clip, "-o", "out.mp4"),
        ("deidentify", "in", "-o", "out"),
        ("webcam", "--identity", ADA, "--camera", clip, "--headless", "--record", "out.mp4"),
    ):
        result = fid_run(*arguments, exit_code=1)
        assert "pip install 'fid-face[video]'" in one_line(result)
        assert result.stdout == ""
    assert sorted(path.name for path in Path().iterdir()) == ["in"]


def test_an_animation_is_not_deidentified_as_a_photo(bundle: str) -> None:
    pictures = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    pictures[0].save("a.webp", save_all=True, append_images=pictures[1:])
    result = fid_run("deidentify", "--bundle", bundle, "a.webp", "-o", "out.png", exit_code=1)
    assert "a.webp is an animation" in result.stderr
    assert not Path("out.png").exists()


def test_an_unfinished_video_of_another_bundle_is_not_gone_on_with(
    bundle: str, clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even one that calls itself the same version: what the pictures depend on holds the hashes of all its graphs."""
    seen: list[str] = []

    def look(*_: object, settings: dict, **__: object) -> tuple[int, int]:
        seen.append(json.dumps(settings, default=str))
        return 1, 0

    monkeypatch.setattr(video_rework, "rework", look)
    fid_run("video", "--bundle", bundle, "--identity", ADA, "--driving", clip, "-o", "out.mp4")
    record = json.loads(Path(bundle, "bundle.json").read_text())
    assert all(graph["sha256"] in seen[0] for graph in record["graphs"].values() if graph["file"])
    assert "onnxruntime CPU" in seen[0]


def test_bench(bundle: str, clip: str) -> None:
    arguments = ("bench", "--bundle", bundle, "--engine", "onnxruntime", "--seconds", "0.3")
    assert fid_run(*arguments).stdout.splitlines()[1].startswith("onnxruntime ")
    report = json.loads(fid_run(*arguments, "--camera", clip, "--json").stdout)
    row = report["engines"][0]
    assert row["fps"] > 0
    assert row["psnr_db"] == 99
    assert row["live"].keys() == {"fps", "frame_age_ms", "dropped"}
    assert report["auto"] == {}  # nothing is kept for a bundle of one's own
