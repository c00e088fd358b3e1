"""The command `deidentify` from end to end with the toy bundle, whose people all look alike."""

import json
import stat
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from fid.runtime.assets import FACES
from fid.runtime.commands.bench import made_frames
from fid.runtime.deidentify import judges, run, stand_in
from fid.runtime.deidentify.run import plan
from fid.runtime.errors import InputError
from fid.runtime.media import video_rework
from fid.runtime.media.images import read_image, write_image
from fid.runtime.media.video import open_clip

from ..media.test_video import sound_packets, write_clip
from ..test_sample import write_bundle_with_mapping
from .test_photos import ADA, fid_run, one_line


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetched: Callable[[str], Path]) -> None:
    for name in ("yunet", "dlib"):
        fetched(name)
    monkeypatch.setattr(stand_in, "DRAWN", 4)  # they all look alike, and drawing them takes long
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def nobody_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cosines of more than 1 would."""
    monkeypatch.setattr(judges, "MATCH", 1.01)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_bundle_with_mapping(tmp_path_factory.mktemp("toy") / "bundle").folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A face that moves for 8 frames, 2 seconds, with a tone."""
    frames = made_frames(read_image(FACES / "identity-ada.jpg"), 8)
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return str(write_clip(path, [22500 * number for number in range(8)], pictures=frames.__getitem__))


def read_report(path: str = "out.png.json") -> dict:
    return json.loads(Path(path).read_text())


@pytest.mark.usefixtures("nobody_matches")
def test_a_photo(bundle: str) -> None:
    result = fid_run("deidentify", "--bundle", bundle, ADA, "-o", "out.png")
    assert "1 person replaced in 1 place, 0 hidden" in result.stdout
    report = read_report()
    assert (report["people"], report["replaced"], report["still_matching"], report["failed"]) == (1, 1, 0, [])
    assert report["recognisers"] == ["sface", "dlib"]
    assert report["files"][0]["verdict"]["faces"][0]["frames"] == 1
    assert not np.array_equal(read_image("out.png"), read_image(ADA))


def test_somebody_still_recognised_is_exit_code_3(bundle: str) -> None:
    """In her whole picture, and where she is so faint that her place hardly changes when she is hidden."""
    photo = read_image(ADA).astype(np.float32)
    write_image("faint.png", np.rint((photo - photo.mean()) * 0.15 + 190).astype(np.uint8))
    for name in (ADA, "faint.png"):
        arguments = ("deidentify", "--bundle", bundle, name, "-o", "out.png")
        fid_run(*arguments, "--write-tracks", "tracks.json", "--preview", "look.png")
        record = json.loads(Path("tracks.json").read_text())
        for action, exit_code in (("mosaic", 0), ("keep", 3)):
            record["tracks"][0]["action"] = action
            Path("tracks.json").write_text(json.dumps(record))
            result = fid_run(*arguments, "--tracks", "tracks.json", "--json", exit_code=exit_code)
            assert json.loads(result.stdout)["still_matching"] == (action == "keep")
            assert ("somebody is still recognised in out.png (frames 0)" in result.stderr) == (action == "keep")
            assert Path("out.png").is_file()


def test_without_a_face_nothing_is_written(bundle: str) -> None:
    write_image("wall.png", np.full((200, 300, 3), 150, np.uint8))
    result = fid_run("deidentify", "--bundle", bundle, "wall.png", "-o", "out.png", exit_code=1)
    assert "no face was found, so nothing was written" in one_line(result)
    assert not Path("out.png").exists()
    fid_run("deidentify", "--bundle", bundle, "wall.png", "-o", "out.png", "--allow-none")
    assert np.array_equal(read_image("out.png"), read_image("wall.png"))


def test_no_input_of_any_kind_is_written_over() -> None:
    """The photos of --identity and the file of --tracks are originals, too, and so may be the report's name."""
    for name in ("me.jpg", "folder/a.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(Path(ADA).read_bytes())
    Path("out.jpg.json").write_text('{"format": 1, "tracks": []}')
    Path("link.json").symlink_to("out.jpg.json")
    before = {path: path.read_bytes() for path in Path().rglob("*.*") if path.is_file()}
    for options, name in (
        ((ADA, "--identity", "me.jpg", "-o", "me.jpg"), "me.jpg"),
        ((ADA, "--identity", "folder", "-o", "folder/a.jpg"), "folder/a.jpg"),
        ((ADA, "--identity", "me.jpg", "--preview", "me.jpg", "-o", "new.jpg"), "me.jpg"),
        ((ADA, "--tracks", "out.jpg.json", "--write-tracks", "link.json", "-o", "new.jpg"), "link.json"),
        ((ADA, "--tracks", "link.json", "-o", "out.jpg"), "out.jpg.json"),
        (("folder", "--identity", "me.jpg", "-o", "."), None),
    ):
        if name is None:
            Path("a.jpg").symlink_to("me.jpg")
            name = "a.jpg"
        assert f"{name} is the original itself" in one_line(fid_run("deidentify", *options, exit_code=2))
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.usefixtures("nobody_matches")
def test_somebody_who_was_missed_is_replaced_in_a_second_go(bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = run.tracks_of_photo, []

    def blind(*arguments: object) -> list:
        seen.append(arguments)
        return []

    monkeypatch.setattr(run, "tracks_of_photo", blind)
    monkeypatch.setattr(run, "open_heads", lambda threads: lambda image: [])  # else a mosaic hides her
    fid_run("deidentify", "--bundle", bundle, ADA, "-o", "out.png", "--allow-none")
    assert (len(seen), read_report()["replaced"]) == (1, 1)
    assert real is not run.tracks_of_photo


@pytest.mark.usefixtures("nobody_matches")
def test_a_video(bundle: str, clip: str) -> None:
    fid_run("deidentify", "--bundle", bundle, clip, "-o", "out.mp4")
    one = read_report("out.mp4.json")["files"][0]
    assert (one["frames"], one["missing"], one["sound"]) == (8, 0, "unchanged")
    assert one["counts"]["replaced"] + one["counts"]["hidden"] == 8
    assert one["verdict"]["faces"][0]["frames"] == 8
    assert sound_packets(Path("out.mp4")) == sound_packets(Path(clip))
    assert {path.name for path in Path().iterdir()} == {"out.mp4", "out.mp4.json"}
    fid_run("deidentify", "--bundle", bundle, clip, "-o", "mute.mp4", "--mute")
    assert read_report("mute.mp4.json")["files"][0]["sound"] == "none"
    assert open_clip(Path("mute.mp4")).sound == 0


@pytest.mark.usefixtures("nobody_matches")
def test_what_a_stopped_run_leaves_is_private_and_used_again(
    bundle: str, clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_rework, "PART_FRAMES", 3)
    with monkeypatch.context() as patch:
        patch.setattr(video_rework, "_join", stopped)
        result = fid_run("deidentify", "--bundle", bundle, clip, "-o", "out.mp4", exit_code=1)
        assert "stopped" in result.stderr
    left = [path for folder in Path().glob(".out.mp4.*") for path in (folder, *folder.iterdir())]
    assert len(left) > 6
    for path in left:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    for path in Path(".out.mp4.parts").glob("*.npz"):
        with np.load(path, allow_pickle=False) as state:
            assert not [name for name in state if name.endswith("grey")]
    fid_run("deidentify", "--bundle", bundle, clip, "-o", "out.mp4")
    fid_run("deidentify", "--bundle", bundle, clip, "-o", "again.mp4")
    assert Path("out.mp4").read_bytes() == Path("again.mp4").read_bytes()


@pytest.mark.usefixtures("nobody_matches")
def test_a_run_that_is_stopped_says_what_is_left(bundle: str, clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for where, told in (
        ("Scanner.finish", ".out.mp4.faces"),
        ("Verdict.add", "out.mp4 is written, but was not checked"),
    ):
        name, method = where.split(".")
        with monkeypatch.context() as patch:
            patch.setattr(getattr(run, name), method, stop)
            result = fid_run("deidentify", "--bundle", bundle, clip, "-o", "out.mp4", exit_code=130)
        assert told in result.stderr
    assert not Path("out.mp4.json").exists()


def test_what_is_half_written_when_a_run_is_killed_is_private(tmp_path: Path, clip: str) -> None:
    modes: list[int] = []

    class Watch:
        state = None

        def picture(self, image: np.ndarray, time_s: float) -> np.ndarray:
            modes.extend(stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*.unfinished"))
            return image if len(modes) < 3 else stopped()  # type: ignore[return-value]

    with pytest.raises(InputError):
        video_rework.rework(open_clip(Path(clip)), tmp_path / "out.mp4", Watch(), settings={})
    assert modes == [0o600] * len(modes)
    assert modes


def test_a_clip_without_a_face_leaves_nothing(bundle: str, tmp_path: Path) -> None:
    wall = np.full((96, 128, 3), 150, np.uint8)
    write_clip(tmp_path / "wall.mp4", [22500 * number for number in range(3)], pictures=lambda number: wall)
    fid_run("deidentify", "--bundle", bundle, "wall.mp4", "-o", "out.mp4", exit_code=1)
    assert {path.name for path in tmp_path.iterdir()} == {"wall.mp4"}


def stopped(*_: object, **__: object) -> None:
    raise run.InputError("stopped.")


@pytest.mark.usefixtures("nobody_matches")
def test_a_folder_goes_on_after_a_file_that_fails(bundle: str, clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("in").mkdir()
    for name in ("a.jpg", "c.jpg"):
        Path("in", name).write_bytes(Path(ADA).read_bytes())
    Path("in", "b.mp4").write_bytes(Path(clip).read_bytes())
    monkeypatch.setattr(run, "rework", stopped)
    result = fid_run("deidentify", "--bundle", bundle, "in", "-o", "out", exit_code=1)
    assert result.stderr.splitlines() == ["fid-run: left out: stopped."]
    report = read_report("out/report.json")
    assert [Path(file["output"]).name for file in report["files"]] == ["a.jpg", "c.jpg"]
    assert report["failed"] == ["stopped."]


@pytest.mark.usefixtures("nobody_matches")
def test_the_user_chooses_who_stands_in(bundle: str) -> None:
    ben = str(FACES / "identity-ben.jpg")
    fid_run("deidentify", "--bundle", bundle, ADA, "-o", "out.png", "--identity", ben)
    assert read_report()["files"][0]["stand_ins"] == [-1]


@pytest.mark.usefixtures("nobody_matches")
def test_a_track_file_says_what_is_done(bundle: str) -> None:
    arguments = ("deidentify", "--bundle", bundle, ADA, "-o", "out.png")
    fid_run(*arguments, "--preview", "look.png", "--write-tracks", "tracks.json")
    assert not Path("out.png").exists()
    assert read_image("look.png").shape[1] == 256
    record = json.loads(Path("tracks.json").read_text())
    assert (record["tracks"][0]["action"], len(record["tracks"][0]["places"])) == ("replace", 1)
    for action, counts in (("mosaic", [0, 1]), ("replace", [1, 0]), ("keep", [0, 0])):
        record["tracks"][0]["action"] = action
        Path("tracks.json").write_text(json.dumps(record))
        fid_run(*arguments, "--tracks", "tracks.json", exit_code=3 if action == "keep" else 0)
        assert [read_report()[name] for name in ("replaced", "hidden")] == counts
    record["tracks"][0]["action"] = "forget"
    Path("tracks.json").write_text(json.dumps(record))
    assert "known are replace, mosaic, keep" in one_line(fid_run(*arguments, "--tracks", "tracks.json", exit_code=2))
    Path("tracks.json").write_text("{}")
    assert "not a track file" in one_line(fid_run(*arguments, "--tracks", "tracks.json", exit_code=2))


def soft_wall(number: int = 0) -> np.ndarray:
    """A wall out of focus: RGB uint8 [240, 320, 3]."""
    few = np.random.default_rng(number // 100).integers(100, 160, (3, 4, 3)).astype(np.uint8)
    return cv2.resize(few, (320, 240), interpolation=cv2.INTER_CUBIC)


def write_soft_tracks(frames: int) -> None:
    """A face as sure as any in the middle of the wall, which is to be hidden."""
    points = [[150, 100], [170, 100], [160, 110], [152, 122], [168, 122]]
    place = {"box": [140, 80, 40, 50], "points": points, "score": 0.93, "seen": True}
    places = [{"frame": frame, **place} for frame in range(frames)]
    track = {"track": 0, "person": None, "action": "mosaic", "places": places}
    Path("tracks.json").write_text(json.dumps({"format": 1, "tracks": [track]}))


@pytest.mark.parametrize("moving", [False, True])
def test_a_soft_patch_that_is_taken_for_a_face_is_nobody_who_is_recognised(bundle: str, moving: bool) -> None:
    """A mosaic of it hardly differs from it, and both recognisers take the two for one person."""
    frames, name = (4, "wall.mp4") if moving else (1, "wall.png")
    write_soft_tracks(frames)
    if moving:
        write_clip(Path(name), [22500 * number for number in range(frames)], pictures=soft_wall)
    else:
        write_image(name, soft_wall())
    output = f"out{Path(name).suffix}"
    fid_run("deidentify", "--bundle", bundle, name, "-o", output, "--tracks", "tracks.json")
    report = read_report(f"{output}.json")
    assert [report[name] for name in ("hidden", "still_matching", "unknown")] == [frames, 0, 1]
    assert report["recognisers"] == ["sface", "dlib"]


def test_an_animation_is_refused_in_a_sentence(bundle: str) -> None:
    frames = [np.full((64, 64, 3), shade, np.uint8) for shade in (10, 200)]
    animation = cv2.Animation()
    animation.frames, animation.durations = frames, [40, 40]
    cv2.imwriteanimation("a.gif", animation)
    result = fid_run("deidentify", "--bundle", bundle, "a.gif", "-o", "out.png", exit_code=1)
    assert "a.gif is an animation" in one_line(result)


def test_the_plan_for_a_folder(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.mp4", "c.avi", "d.bmp", "notes.txt"):
        (tmp_path / name).touch()
    jobs, record = plan(tmp_path, tmp_path / "out")
    assert [target.name for _, target in jobs] == ["a.jpg", "b.mp4", "c.avi.mkv", "d.bmp.png"]
    assert record == tmp_path / "out" / "report.json"
    with pytest.raises(InputError, match="folder of the originals"):
        plan(tmp_path, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no photos and no videos"):
        plan(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(InputError, match=r"must end in \.mp4"):
        plan(tmp_path / "b.mp4", tmp_path / "out.png")
    for name in ("a.jpg", "b.mp4"):
        with pytest.raises(InputError, match="is the original itself"):
            plan(tmp_path / name, tmp_path / "empty" / ".." / name)
