"""A batch on a real Ray on this machine: every file once, as one process makes it, whoever is killed meanwhile."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from fid.runtime.assets import FACES
from fid.runtime.batch.places import Address
from fid.runtime.commands.bench import made_frames
from fid.runtime.composer import Composer
from fid.runtime.errors import FidError
from fid.runtime.media.images import read_image

from ..commands.test_photos import ADA, LAUGHING, fid_run
from ..media.test_video import write_clip
from ..test_sample import write_bundle_with_mapping

ray = pytest.importorskip("ray")
QUIET = {**os.environ, "PYTHONWARNINGS": "ignore"}
COMMAND = [sys.executable, "-c", "from fid.runtime.commands.cli import main; main()"]


@dataclass(frozen=True)
class Archive:
    """Many files, and what is to come of them."""

    count: int  # that are whole; one more is broken
    command: list[str]  # all but where results go and who does them
    alone: dict[str, bytes]  # what a single process makes


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetched: Callable[[str], Path]) -> None:
    for name in ("yunet", "dlib"):
        fetched(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_bundle_with_mapping(tmp_path_factory.mktemp("toy") / "bundle").folder)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False,
             logging_level="error")  # fmt: skip
    yield
    ray.shutdown()


def made(folder: str, *endings: str) -> dict[str, bytes]:
    files = (path for path in Path(folder).rglob("*") if path.suffix in endings)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def manifest(folder: str = "out") -> list[dict]:
    return [json.loads(row) for row in (Path(folder) / "manifest.jsonl").read_text().splitlines()]


def actors(process: psutil.Process) -> list[psutil.Process]:
    """The processes of Ray below one that hold a worker of a batch."""
    found = []
    for child in process.children(recursive=True):
        try:
            found += [child] if child.cmdline() and child.cmdline()[0].startswith("ray::Remote") else []
        except psutil.Error:
            continue
    return found


@pytest.mark.usefixtures("cluster")
def test_two_actors_make_what_one_process_makes_from_an_address_to_an_address(bundle: str) -> None:
    Path("in").mkdir()
    for number in range(4):
        shutil.copy(LAUGHING, f"in/{number}.jpg")
    Path("in/broken.jpg").write_bytes(b"no picture")
    here = Path.cwd()
    common = ("batch", "compose", "--identity", ADA, "--bundle", bundle, "--threads", "1", "--json")
    fid_run(*common, "-i", "in", "-o", "alone", exit_code=3)
    places = ("-i", f"file://{here}/in", "-o", f"file://{here}/out")
    report = json.loads(fid_run(*common, *places, "--ray", "auto", exit_code=3).stdout)
    assert (report["done"], report["failed"]) == (4, 1)
    assert made("out", ".jpg") == made("alone", ".jpg")
    assert json.loads(fid_run(*common, *places, "--ray", "auto", exit_code=3).stdout)["before"] == 4


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_what_cannot_open_is_one_sentence(bundle: str) -> None:
    Path("in").mkdir()
    shutil.copy(LAUGHING, "in/a.jpg")
    Path("nobody.jpg").write_bytes(b"no picture")
    common = ("batch", "compose", "-i", "in", "-o", "out", "--bundle", bundle, "--ray", "auto")
    said = fid_run(*common, "--identity", "nobody.jpg", exit_code=2).stderr
    assert "nobody.jpg is not a picture that can be read" in said
    assert not list(Path("out").glob("*.jpg"))


@pytest.fixture(scope="module")
def who(bundle: str, fetched: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ada's identity file."""
    fetched("yunet")
    path = tmp_path_factory.mktemp("who") / "ada.npz"
    Composer(bundle, engine="onnxruntime", threads=1).identify(ADA).save(path)
    return str(path)


@pytest.fixture(scope="module", params=["compose", "video"])
def archive(request: pytest.FixtureRequest, bundle: str, who: str, tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """200 pictures, or 6 clips of a face that moves, and one broken file; and what a single process makes of them."""
    job, folder = request.param, tmp_path_factory.mktemp("archive")
    (folder / "in/more").mkdir(parents=True)
    if job == "compose":
        faces = sorted(FACES.glob("*.jpg"))
        for number in range(200):
            shutil.copy(faces[number % len(faces)], folder / f"in/{number:03d}.jpg")
        (folder / "in/more/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more of it")
    else:
        for number in range(6):
            frames = made_frames(read_image(FACES / f"identity-{('ada', 'ben')[number % 2]}.jpg"), 12 + number)
            small = [np.ascontiguousarray(frame[::2, ::2]) for frame in frames]
            path = folder / f"in/more/{number}.mp4"
            write_clip(path, [1500 * n for n in range(12)], pictures=small.__getitem__)
        (folder / "in/broken.mp4").write_bytes(b"no clip")
    command = [*COMMAND, "batch", job, "-i", str(folder / "in"), "--identity", who, "--bundle", bundle]
    command += ["--threads", "1", "--json"]
    alone = subprocess.run([*command, "-o", str(folder / "alone")], env=QUIET, capture_output=True, text=True)
    assert alone.returncode == 3, alone.stderr
    return Archive(200 if job == "compose" else 6, command, made(str(folder / "alone"), ".jpg", ".mp4"))


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--ray", "local"), ()], ids=["ray", "processes"])
def test_killed_workers_and_a_killed_driver_lose_nothing(archive: Archive, options: tuple[str, ...]) -> None:
    """A worker is killed in the middle, then who started it all; run again, everything is there once."""
    count, command = archive.count, archive.command
    options = ("-o", "out", "--workers", "2", *options)
    driver = subprocess.Popen([*command, *options], env=QUIET, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    seen = psutil.Process(driver.pid)
    wait_for(count // 5, driver)
    workers = actors(seen) or [child for child in seen.children() if "spawn_main" in " ".join(child.cmdline())]
    workers[0].send_signal(signal.SIGKILL)
    wait_for(count // 2, driver)
    workers = actors(seen) or seen.children()
    driver.kill()
    driver.communicate()
    _, left = psutil.wait_procs(workers, timeout=60)
    assert workers
    assert not left, "nobody stays behind"  # Ray's own agents take a minute more
    before = {row["input"] for row in manifest() if row["error"] is None}
    assert count // 2 - 1 <= len(before) < count
    again = subprocess.run([*command, *options], env=QUIET, capture_output=True, text=True)
    assert again.returncode == 3, again.stderr
    report = json.loads(again.stdout)
    assert (report["files"], report["failed"], report["left"]) == (count + 1, 1, 0)
    assert report["before"] == len(before)
    done = [row["input"] for row in manifest() if row["error"] is None]
    assert len(done) == len(set(done)) == count, "every output once"
    assert {Path(row["input"]).stem for row in manifest() if row["error"]} == {"broken"}
    assert made("out", ".jpg", ".mp4") == archive.alone
    assert len(archive.alone) == count
    assert not [path for path in Path("out").rglob("*") if path.name.startswith(".") and path.is_file()]


def wait_for(lines: int, driver: subprocess.Popen) -> None:
    """Until the manifest has so many lines."""
    end = time.monotonic() + 900
    path = Path("out/manifest.jsonl")
    while not path.is_file() or path.read_bytes().count(b"\n") < lines:
        assert driver.poll() is None, driver.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.05)


def test_without_ray_it_is_one_sentence(bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("in").mkdir()
    shutil.copy(LAUGHING, "in/a.jpg")
    monkeypatch.setitem(sys.modules, "ray", None)
    common = ("batch", "compose", "--identity", ADA, "-i", "in", "-o", "out", "--bundle", bundle)
    said = fid_run(*common, "--ray", "auto", exit_code=1).stderr
    assert said == "fid-run: Ray is not installed: `pip install 'fid-face[ray]'`.\n"
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(FidError, match="need the ray extra"):
        list(Address("s3://bucket/folder").items())
