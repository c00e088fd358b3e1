"""Long work that is killed at ten random moments, and the same command again: as if nothing had been. Not part of the
default run, for it takes half an hour on two cores:

    pytest -n 0 -m slow -s tests/test_killed.py
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from fid.runtime.assets import FACES
from fid.runtime.commands.bench import made_frames
from fid.runtime.media.images import read_image
from fid.runtime.weights.cache import cache_folder
from fid.runtime.weights.prepare import prepared
from tiny_stylegan2 import random_weights, write_rosinality

from .runtime.media.test_video import write_clip
from .runtime.test_sample import write_bundle_with_mapping

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")]

KILLS = 10
ADA = str(FACES / "identity-ada.jpg")
# Parts of few frames and a checkpoint after each step, so that there is something to go on from in a minute's work;
# and the encoder without the one feature that codes pictures a little differently one time in a hundred.
RUN = """
from fid.runtime.media import video_rework, video_write
video_rework.PART_FRAMES, video_write.QUALITY["x264-params"] = 6, "force-cfr=1:mbtree=0"
from fid.runtime.commands.cli import main
main()
"""
TRAIN = """
from fid.trainer.fit import run
run.SAVE_EVERY_S = 0.0
from fid.trainer.cli import main
main()
"""
EXPORT = "from fid.export.cli import main; main()"
SMALL = {"warm_steps": 1, "self_batch": 2, "cross_batch": 1, "cross_every": 2, "probe_steps": 2, "probe_faces": 8}


@dataclass(frozen=True)
class Command:
    """One command, run in a folder and with a cache of its own."""

    start: str  # Python that runs it
    arguments: tuple[str, ...]
    folder: Path
    results: Callable[[Path], dict[str, str]]  # of the folder: what has to be equal at the end

    def popen(self) -> subprocess.Popen[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", self.start, *self.arguments],
            cwd=self.folder,
            env={**os.environ, "FID_CACHE": str(self.folder.parent / "cache"), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, limit_s: float = 1500) -> tuple[float, str]:
        """Run it undisturbed; seconds and what it said."""
        start = time.monotonic()
        process = self.popen()
        said, _ = process.communicate(timeout=limit_s)
        assert process.returncode in (0, 3), said  # 3: deidentify is not content with the toy's people
        return time.monotonic() - start, said

    def killed(self, after_s: float) -> bool:
        """Start it and kill it and all that it started; whether it was still at work."""
        process = self.popen()
        try:
            process.communicate(timeout=after_s)
            assert process.returncode in (0, 3)
            return False
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return True


def names(folder: Path) -> list[str]:
    """All that lies in a folder and those in it, but TensorBoard's files, one for each start."""
    found = (str(path.relative_to(folder)) for path in folder.rglob("*"))
    return sorted(name for name in found if "tfevents" not in name)


def digests(*patterns: str) -> Callable[[Path], dict[str, str]]:
    """SHA-256 of the files that match."""

    def results(folder: Path) -> dict[str, str]:
        paths = [path for pattern in patterns for path in folder.glob(pattern) if path.is_file()]
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}

    return results


def caches(folder: Path) -> None:
    """A cache that has what can be fetched and nothing that fid makes of it."""
    prepared("recogniser")  # fetches
    shutil.copytree(cache_folder("models"), folder / "cache" / "models", copy_function=_linked)


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def endure(
    start: str,
    arguments: tuple[str, ...],
    folder: Path,
    results: Callable[[Path], dict[str, str]],
    whole: Callable[[Path], bool] = lambda folder: True,
) -> str:
    """Run a command in peace; then kill it ten times and run it once more; tell what came of it.

    `whole`: whether everything in the folder that has the name of a result is one, asked after each kill.
    """
    faulthandler.cancel_dump_traceback_later()  # this takes longer than a test that hangs may
    caches(folder)
    peace = Command(start, arguments, folder / "peace", results)
    war = Command(start, arguments, folder / "war", results)
    seconds, said = peace.run()
    expected, listed = results(peace.folder), names(peace.folder)
    assert expected, said
    name = Path(arguments[0]).name
    rng, kills, ended = random.Random(name), 0, 0
    while kills < KILLS:
        if war.killed(rng.uniform(0.1, 1.0) * seconds):
            kills += 1
            assert whole(war.folder), names(war.folder)
        else:  # what was done before made it short: from the beginning
            ended += 1
            assert results(war.folder) == expected
            shutil.rmtree(war.folder)
            assert ended < 3 * KILLS
    again, said = war.run(limit_s=max(120.0, 5 * seconds))  # a stale lock would hold it for ever
    assert results(war.folder) == expected, said
    assert names(war.folder) == listed
    return f"{name}: {seconds:.0f} s in peace, {kills} kills, {ended} ended before, {again:.0f} s at last"


def equal_or_absent(output: str) -> Callable[[Path], bool]:
    """Whether a file is the undisturbed run's or not there."""

    def whole(folder: Path) -> bool:
        path = folder / output
        return not path.exists() or path.read_bytes() == (folder.parent / "peace" / output).read_bytes()

    return whole


@pytest.fixture
def toy(tmp_path: Path) -> tuple[str, str]:
    """A bundle of a few kB, and a clip of a face for 48 frames."""
    frames = made_frames(read_image(FACES / "identity-ada.jpg"), 48)
    clip = write_clip(tmp_path / "clip.mp4", [3000 * n for n in range(48)], pictures=frames.__getitem__)
    return str(write_bundle_with_mapping(tmp_path / "bundle").folder), str(clip)


@pytest.fixture
def generator(tmp_path: Path) -> str:
    """A StyleGAN2 of 128 px with a few thousand weights."""
    return str(write_rosinality(tmp_path / "tiny.pt", random_weights((16, 16, 8, 8, 8, 8), layers=2)))


def fit_arguments(generator: str, steps: int, resolution: int = 128) -> tuple[str, ...]:
    own = (part for name, value in SMALL.items() for part in ("--set", f"{name}={value}"))
    shared = ("--generator", generator, "--resolution", str(resolution), "--steps", str(steps), "--resume")
    return ("fit", "-o", "run", *shared, *own)


def test_video(toy: tuple[str, str], tmp_path: Path) -> None:
    bundle, clip = toy
    arguments = ("video", "--bundle", bundle, "--identity", ADA, "--driving", clip, "--paste", "-o", "out.mp4")
    report = endure(RUN, arguments, tmp_path / "work", digests("out.mp4"), equal_or_absent("out.mp4"))
    print(report)
    assert f"{KILLS} kills" in report


def test_deidentify(toy: tuple[str, str], tmp_path: Path) -> None:
    bundle, clip = toy
    arguments = ("deidentify", "--bundle", bundle, clip, "-o", "out.mp4")
    report = endure(RUN, arguments, tmp_path / "work", digests("out.mp4"), equal_or_absent("out.mp4"))
    print(report)
    figures = [json.loads((tmp_path / "work" / one / "out.mp4.json").read_text()) for one in ("peace", "war")]
    assert figures[0]["files"][0]["verdict"] == figures[1]["files"][0]["verdict"]


def test_fit(generator: str, tmp_path: Path) -> None:
    """Checkpoints are whole, and the last one's weights are those of a run that was never stopped."""

    def whole(folder: Path) -> bool:
        steps = folder.glob("run/step_*")
        return all(
            {"checkpoint.json", "weights.safetensors"} <= {file.name for file in step.iterdir()} for step in steps
        )

    weights = digests("run/step_000006/weights.safetensors", "run/step_000006/state.safetensors")
    report = endure(TRAIN, fit_arguments(generator, 6), tmp_path / "work", weights, whole)
    print(report)
    assert f"{KILLS} kills" in report


def test_dataset(generator: str, tmp_path: Path) -> None:
    arguments = ("dataset", "-o", "faces", "-n", "600", "--resolution", "128", "--generator", generator)
    report = endure(TRAIN, arguments, tmp_path / "work", digests("faces/*.npz"))
    print(report)
    assert f"{KILLS} kills" in report


@pytest.fixture
def learnt(tmp_path: Path) -> tuple[str, str]:
    """A checkpoint of one step, and its generator of 256 px."""
    large = str(write_rosinality(tmp_path / "large.pt", random_weights((16, 16, 8, 8, 8, 8, 8), layers=2)))
    caches(tmp_path)
    learning = Command(TRAIN, fit_arguments(large, 1, 256), tmp_path / "learning", digests())
    learning.run()
    return str(learning.folder / "run"), large


def test_personalize(learnt: tuple[str, str], tmp_path: Path) -> None:
    """It keeps nothing on the way, begins anew, and writes nothing before it is done."""
    arguments = ("personalize", ADA, "--checkpoint", learnt[0], "--generator", learnt[1], "--steps", "3", "-o", "a.npz")
    report = endure(TRAIN, arguments, tmp_path / "work", digests("a.npz"), equal_or_absent("a.npz"))
    print(report)
    assert f"{KILLS} kills" in report


def test_export(learnt: tuple[str, str], tmp_path: Path) -> None:
    """So does an export."""
    graphs = digests("bundle/*.onnx", "bundle/*.bin")

    def whole(folder: Path) -> bool:
        return not (folder / "bundle").exists() or graphs(folder) == graphs(folder.parent / "peace")

    report = endure(
        EXPORT, (learnt[0], "--generator", learnt[1], "--faces", "0", "-o", "bundle"), tmp_path / "work", graphs, whole
    )
    print(report)
    assert f"{KILLS} kills" in report
