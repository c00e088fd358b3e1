"""A batch on a real Ray on this machine: every file once, as one process makes it, whoever is killed meanwhile."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from fid.runtime.assets import FACES
from fid.runtime.batch.places import Address
from fid.runtime.commands.bench import made_frames
from fid.runtime.errors import FidError
from fid.runtime.media.images import read_image

from ..commands.test_photos import ADA, LAUGHING, fid_run
from ..media.test_video import write_clip
from ..test_sample import write_bundle_with_mapping

ray = pytest.importorskip("ray")
COMMAND = [sys.executable, "-c", "from fid.runtime.commands.cli import main; main()"]


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


def archive(job: str) -> int:
    """200 pictures, or 6 clips of a face that moves, and one broken file; returns how many are whole."""
    Path("in/more").mkdir(parents=True)
    if job == "compose":
        faces = sorted(FACES.glob("*.jpg"))
        for number in range(200):
            shutil.copy(faces[number % len(faces)], f"in/{number:03d}.jpg")
        Path("in/more/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more of it")
        return 200
    for number in range(6):
        frames = made_frames(read_image(FACES / f"identity-{('ada', 'ben')[number % 2]}.jpg"), 20 + number)
        write_clip(Path(f"in/more/{number}.mp4"), [1500 * n for n in range(20)], pictures=frames.__getitem__)
    Path("in/broken.mp4").write_bytes(b"no clip")
    return 6


@pytest.mark.slow
@pytest.mark.parametrize("job", ["compose", "video"])
@pytest.mark.parametrize("options", [("--ray", "local"), ()], ids=["ray", "processes"])
def test_killed_workers_and_a_killed_driver_lose_nothing(bundle: str, job: str, options: tuple[str, ...]) -> None:
    """A worker is killed in the middle, then who started it all; run again, everything is there once."""
    count = archive(job)
    command = [*COMMAND, "batch", job, "-i", "in", "--identity", ADA, "--bundle", bundle, "--threads", "1", "--json"]
    options = ("-o", "out", "--workers", "2", *options)
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}
    alone = subprocess.run([*command, "-o", "alone"], env=quiet, capture_output=True, text=True)
    assert alone.returncode == 3, alone.stderr
    driver = subprocess.Popen([*command, *options], env=quiet, stderr=subprocess.PIPE)
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
    again = subprocess.run([*command, *options], env=quiet, capture_output=True, text=True)
    assert again.returncode == 3, again.stderr
    report = json.loads(again.stdout)
    assert (report["files"], report["failed"], report["left"]) == (count + 1, 1, 0)
    assert report["before"] == len(before)
    done = [row["input"] for row in manifest() if row["error"] is None]
    assert len(done) == len(set(done)) == count, "every output once"
    assert {Path(row["input"]).stem for row in manifest() if row["error"]} == {"broken"}
    assert made("out", ".jpg", ".mp4") == made("alone", ".jpg", ".mp4")
    assert len(made("out", ".jpg", ".mp4")) == count
    assert not [path for path in Path("out").rglob("*") if path.name.startswith(".") and path.is_file()]


def wait_for(lines: int, driver: subprocess.Popen) -> None:
    """Until the manifest has so many lines."""
    end = time.monotonic() + 300
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
