"""`fid-run batch` from end to end with the toy bundle: every file once, as the other commands make it."""

import json
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from fid.runtime.assets import FACES
from fid.runtime.batch import jobs, worker
from fid.runtime.batch import run as batch_run
from fid.runtime.batch.jobs import Compose
from fid.runtime.commands.bench import made_frames
from fid.runtime.composer import Composer
from fid.runtime.deidentify import judges, verdict
from fid.runtime.deidentify import run as deidentify_run
from fid.runtime.deidentify.verdict import Verdict
from fid.runtime.face.detect import Face
from fid.runtime.identity import Identity
from fid.runtime.live import spans
from fid.runtime.media import video_rework
from fid.runtime.media.images import read_image
from fid.runtime.media.video import open_clip, read_frames
from fid.runtime.timing import stage
from PIL import Image

from ..media.test_video import write_clip
from .test_photos import ADA, BEN, LAUGHING, fid_run, one_line


@pytest.fixture(scope="module")
def people(bundle: str, fetched: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Identity files of Ada and Ben, which are read where photos are looked at in a process of their own."""
    for name in ("yunet", "dlib"):
        fetched(name)
    folder, composer = tmp_path_factory.mktemp("people"), Composer(bundle, engine="onnxruntime", threads=1)
    for name, photo in (("ada", ADA), ("ben", BEN)):
        composer.identify(photo).save(folder / f"{name}.npz")
    return folder


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, people: Path) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(people, ".", dirs_exist_ok=True)
    Path("in/more").mkdir(parents=True)
    for place in ("in/laughing.jpg", "in/more/laughing.png"):
        shutil.copy(LAUGHING, place)
    Path("in/broken.jpg").write_bytes(b"no picture")


def batch(job: str, bundle: str, *options: str, exit_code: int = 0) -> dict[str, Any]:
    """The report of a batch from `in` to `out`."""
    settings = ("--bundle", bundle, "--threads", "1", "--json")
    return json.loads(fid_run("batch", job, "-i", "in", "-o", "out", *settings, *options, exit_code=exit_code).stdout)


def lines() -> dict[str, dict[str, Any]]:
    return {line["input"]: line for line in map(json.loads, Path("out/manifest.jsonl").read_text().splitlines())}


def test_compose_is_compose_file_by_file(bundle: str) -> None:
    report = batch("compose", bundle, "--identity", "ada.npz", exit_code=3)
    assert (report["files"], report["done"], report["failed"], report["before"]) == (3, 2, 1, 0)
    assert report["errors"] == [f"broken.jpg: {Path('in/broken.jpg').absolute()} is not a picture that can be read: it "
                                "is broken, cut off, or of another format."]  # fmt: skip
    fid_run("compose", "--bundle", bundle, "--identity", ADA, "--attributes", LAUGHING, "-o", "alone.jpg")
    assert Path("out/laughing.jpg").read_bytes() == Path("alone.jpg").read_bytes()
    assert sorted(path.name for path in Path("out").rglob("*") if path.is_file()) == [
        "laughing.jpg", "laughing.png", "manifest.jsonl",
    ]  # fmt: skip
    line = lines()["more/laughing.png"]
    assert (line["output"], line["faces"], line["error"]) == ("more/laughing.png", 1, None)
    assert line["engine"] == "onnxruntime CPU"
    assert len(line["sha256"]) == 64
    Path("in/broken.jpg").unlink()
    report = batch("compose", bundle, "--identity", "ada.npz")
    assert (report["files"], report["done"], report["before"]) == (2, 0, 2)


def test_jobs_look_as_the_commands_of_their_names_do(bundle: str) -> None:
    """A photo that shows more than the head comes back whole; a clip shows the head in its frames."""
    shutil.rmtree("in")
    frame = made_frames(read_image(ADA), 1)[0]
    Path("in").mkdir()
    Image.fromarray(frame).save("in/wide.png")
    for options in ((), ("--mask", "square"), ("--crop",)):
        batch("compose", bundle, "--identity", "ben.npz", *options)
        one = ("--bundle", bundle, "--identity", "ben.npz", "--attributes", "in/wide.png", "-o", "one.png")
        fid_run("compose", *one, *options)
        made = read_image(Path("out/wide.png"))
        np.testing.assert_array_equal(made, read_image(Path("one.png")))
        assert made.shape == ((256, 256, 3) if options == ("--crop",) else frame.shape)
    write_clip(Path("in/clip.mp4"), [0, 22500], pictures=lambda number: frame)
    for options in ((), ("--side-by-side", "--badge")):
        batch("video", bundle, "--identity", "ben.npz", *options)
        fid_run(
            "video", "--bundle", bundle, "--identity", "ben.npz", "--driving", "in/clip.mp4", "-o", "one.mp4", *options
        )
        made, one = ([picture for _, picture in read_frames(open_clip(Path(p)))] for p in ("out/clip.mp4", "one.mp4"))
        np.testing.assert_array_equal(made, one)


def test_a_dry_run_only_counts(bundle: str) -> None:
    report = batch("compose", bundle, "--identity", "ada.npz", "--dry-run")
    assert (report["files"], report["left"], report["done"]) == (3, 3, 0)
    assert list(Path("out").iterdir()) == []


def test_identify_then_pairs(bundle: str) -> None:
    Path("people").mkdir()
    shutil.copy(BEN, "people/laughing.jpg")
    fid_run("batch", "identify", "--bundle", bundle, "-i", "people", "-o", "codes")
    assert Identity.load(Path("codes/laughing.npz")).code.shape == (128,)
    Path("in/broken.jpg").rename("in/alone.jpg")
    shutil.rmtree("in/more")
    report = batch("pairs", bundle, "--identity", "codes", exit_code=3)
    assert report["errors"] == [f"alone.jpg: alone.jpg has no partner of its name in {Path('codes').absolute()}."]
    fid_run("compose", "--bundle", bundle, "--identity", BEN, "--attributes", LAUGHING, "-o", "alone.png")
    assert Path("out/laughing.png").read_bytes() == Path("alone.png").read_bytes()
    shutil.copy(ADA, "people/laughing.jpg")
    fid_run("batch", "identify", "--bundle", bundle, "-i", "people", "-o", "codes")
    assert batch("pairs", bundle, "--identity", "codes", exit_code=3)["done"] == 1, "somebody else: it is made again"


def test_clips(bundle: str) -> None:
    shutil.rmtree("in/more")
    pictures = [np.full((64, 64, 3), 10 * number, np.uint8) for number in range(4)]
    write_clip(Path("in/clip.mp4"), [22500 * number for number in range(4)], pictures=pictures.__getitem__)
    report = batch("video", bundle, "--identity", "ada.npz", "--no-face", "blank")
    assert (report["files"], report["done"]) == (1, 1), "photos are no clips"
    assert lines()["clip.mp4"]["more"] == {"frames": 4, "missing": 0}
    assert open_clip(Path("out/clip.mp4")).frames == 4


def test_deidentify_tells_whether_somebody_is_left(bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree("in/more")
    monkeypatch.setattr(judges, "MATCH", 1.01)  # nobody matches
    batch("deidentify", bundle, exit_code=3)
    report = json.loads(Path("out/laughing.jpg.json").read_text())
    assert (report["people"], report["still_matching"], report["files"][0]["input"]) == (1, 0, "laughing.jpg")
    Path("in/broken.jpg").unlink()
    assert batch("deidentify", bundle)["still_matching"] == 0
    monkeypatch.setattr(verdict, "UNCHANGED", 256.0)  # whatever is there is the original
    monkeypatch.setattr(verdict, "LEFT", -9.0)
    assert batch("deidentify", bundle, "--seed", "9", exit_code=3)["still_matching"] == 1
    assert batch("deidentify", bundle, "--seed", "9", exit_code=3)["left"] == 0, "it is still told the next time"


def test_a_bug_in_one_file_is_a_line(bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(self: Compose, opening: object, composer: object) -> Callable[[Path, Path], object]:
        def work(photo: Path, output: Path) -> object:
            with stage("read"):
                raise KeyError(photo.name)

        return work

    monkeypatch.setattr(Compose, "open", opened)
    monkeypatch.setattr(worker.Worker, "__init__", init_without_composer)
    report = batch("compose", bundle, "--identity", "ada.npz", exit_code=3)
    assert report["errors"][0].startswith("broken.jpg: this met a bug in fid: KeyError: 'broken.jpg' (work, line")


def init_without_composer(self: worker.Worker, setup: worker.Setup) -> None:
    self._setup = setup
    self._composer = SimpleNamespace(provider="toy CPU", fallbacks=[])  # type: ignore[assignment]
    self._work = setup.job.open(setup.opening, self._composer)


def test_two_processes_of_which_one_is_killed(bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both make every file once, byte for byte as one process does."""
    for number in range(6):
        shutil.copy(LAUGHING, f"in/{number}.jpg")
    batch("compose", bundle, "--identity", "ada.npz", exit_code=3)
    Path("out").rename("alone")
    killed = []

    def add(self: batch_run.Tally, line: object) -> None:
        if not killed:
            killed.extend(multiprocessing.active_children()[:1])
            killed[0].kill()
        real(self, line)  # type: ignore[arg-type]

    real = batch_run.Tally.add
    monkeypatch.setattr(batch_run.Tally, "add", add)
    report = batch("compose", bundle, "--identity", ADA, "--workers", "2", exit_code=3)
    assert (report["done"], report["failed"]) == (8, 1)
    assert len(killed) == 1
    made = {path.relative_to("out"): path.read_bytes() for path in Path("out").rglob("*.*g")}
    assert made == {path.relative_to("alone"): path.read_bytes() for path in Path("alone").rglob("*.*g")}
    rows = [json.loads(row)["input"] for row in Path("out/manifest.jsonl").read_text().splitlines()]
    assert len(rows) == len(set(rows)) == 9
    assert multiprocessing.active_children() == []


def test_mistakes_are_one_line(bundle: str) -> None:
    common = ("--bundle", bundle, "-o", "out")
    no_face = str(FACES.parent / "web" / "icon.svg")
    cases = [
        (("compose", "--identity", "ada.npz", "-i", "nowhere"), "nowhere does not exist"),
        (("compose", "--identity", "nobody.jpg", "-i", "in"), "nobody.jpg does not exist"),
        (("compose", "--identity", no_face, "-i", "in"), "is not a picture that can be read"),
        (("pairs", "--identity", "nowhere", "-i", "in"), "nowhere is not a folder"),
        (("video", "--identity", "ada.npz", "-i", "in"), "there is nothing in"),
        (("identify", "-i", "in", "--shard", "4/4"), "give I/N with I from 0 to N - 1"),
    ]
    for arguments, sentence in cases:
        assert sentence in one_line(fid_run("batch", *arguments, *common, exit_code=2)), arguments


def test_long_clips_are_shared_out_in_spans(bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans that are done when a run is stopped are not done again; the result is that of one worker."""
    for module in (spans, video_rework):
        monkeypatch.setattr(module, "PART_FRAMES", 20)
    shutil.rmtree("in")
    Path("in").mkdir()
    frames = [np.ascontiguousarray(frame[::2, ::2]) for frame in made_frames(read_image(LAUGHING), 60)]
    write_clip(Path("in/clip.mp4"), [18000 * number for number in range(60)], pictures=frames.__getitem__)
    Path("in/broken.mp4").write_bytes(b"no clip")
    batch("video", bundle, "--identity", "ada.npz", exit_code=3)
    Path("out").rename("whole")
    real = jobs.FilmWork.span

    def stopped(self: jobs.FilmWork, path: Path, prepared: Path, folder: Path, span: tuple[int, int]) -> None:
        if span[0] == 40:
            raise KeyboardInterrupt
        real(self, path, prepared, folder, span)

    monkeypatch.setattr(jobs.FilmWork, "span", stopped)
    fid_run("batch", "video", "-i", "in", "-o", "out", "--bundle", bundle, "--threads", "1", "--identity", "ada.npz",
            "--chunk", "4", exit_code=130)  # fmt: skip
    assert len(list(Path("out/.spans").rglob("*.tar"))) == 3  # with what is known of the whole
    monkeypatch.setattr(jobs.FilmWork, "span", real)
    report = batch("video", bundle, "--identity", "ada.npz", "--chunk", "4", exit_code=3)
    assert (report["done"], report["failed"]) == (1, 1)
    assert lines()["clip.mp4"]["more"] == {"frames": 60, "missing": 0, "spans": 3}
    assert not list(Path("out").rglob("*.tar"))
    whole, joined = (read_frames(open_clip(Path(folder) / "clip.mp4")) for folder in ("whole", "out"))
    for (stamp, left), (same, right) in zip(whole, joined, strict=True):
        assert stamp == same
        assert np.mean((left.astype(float) - right) ** 2) < 255**2 / 10**4.5, "45 dB"


@pytest.mark.slow
def test_a_long_clip_is_deidentified_in_spans_as_in_one_piece(bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is who is decided once for the whole clip; and all is done once more where the verdict finds somebody who was
    missed."""
    for module in (spans, video_rework):
        monkeypatch.setattr(module, "PART_FRAMES", 12)
    monkeypatch.setattr(deidentify_run, "SHOWN", 20)
    shutil.rmtree("in")
    Path("in").mkdir()
    write_clip(Path("in/clip.mp4"), [22500 * number for number in range(48)], pictures=two_people)
    shutil.copy(LAUGHING, "in/photo.jpg")
    batch("deidentify", bundle)
    Path("out").rename("whole")
    batch("deidentify", bundle, "--chunk", "4")
    assert lines()["clip.mp4"]["more"]["spans"] == 4
    one, other = (json.loads((Path(name) / "clip.mp4.json").read_text()) for name in ("whole", "out"))
    assert one["replaced"] > 60
    for name in ("people", "replaced", "hidden", "unsure", "still_matching", "gone"):
        assert one[name] == other[name], name
    assert one["files"][0]["stand_ins"] == other["files"][0]["stand_ins"]
    whole, joined = (read_frames(open_clip(Path(folder) / "clip.mp4")) for folder in ("whole", "out"))
    errors = []
    for (stamp, left), (same, right) in zip(whole, joined, strict=True):
        assert stamp == same
        errors.append(np.mean((left.astype(float) - right) ** 2))
    assert max(errors) < 255**2 / 10**4.5, f"45 dB: {errors}"
    real, verdicts = deidentify_run.Worker._verdict, []

    def missed(self: deidentify_run.Worker, *arguments: Any) -> Verdict:
        verdicts.append(real(self, *arguments))
        points = np.array([[145.0, 108.0], [155.0, 108.0], [150.0, 113.0], [146.0, 118.0], [154.0, 118.0]])
        verdicts[0].missed = {20: [Face((140.0, 100.0, 20.0, 24.0), points, 0.5)]}
        return verdicts[-1]

    monkeypatch.setattr(deidentify_run.Worker, "_verdict", missed)
    Path("in/photo.jpg").unlink()
    shutil.rmtree("out")
    assert batch("deidentify", bundle, "--chunk", "4")["done"] == 1
    assert len(verdicts) == 2
    assert json.loads(Path("out/clip.mp4.json").read_text())["files"][0]["tracks"] == one["files"][0]["tracks"] + 1
    assert not list(Path("out").rglob("*.tar"))


def two_people(number: int) -> np.ndarray:
    """A frame RGB uint8 [160, 320, 3] of two who move; one of them is away in the middle."""
    frame = np.full((160, 320, 3), 90, np.uint8)
    for place, photo, there in ((8, ADA, True), (168, BEN, not 14 <= number < 36)):
        if there:
            x, y = place + round(6 * np.sin(number / 4)), 8 + round(6 * np.cos(number / 4))
            frame[y : y + 144, x : x + 144] = cv2.resize(read_image(photo), (144, 144), interpolation=cv2.INTER_AREA)
    return frame
