"""A dataset drawn by actors on a real Ray is the one that a single process draws."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fid.trainer.data.dataset import Shards

pytest.importorskip("ray")


@pytest.mark.slow
def test_shards_from_ray_are_those_of_one_process(tmp_path: Path) -> None:
    start = [sys.executable, "-c", "from fid.trainer.cli import main; main()", "dataset", "-n", "300", "--rare", "0.5"]
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    for name, more in (("alone", []), ("shared", ["--ray", "local", "--workers", "2"])):
        done = subprocess.run([*start, "-o", str(tmp_path / name), *more], env=quiet, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    names = [path.name for path in sorted((tmp_path / "alone").iterdir())]
    assert names == ["dataset.json", "faces_00000.npz", "faces_00001.npz"]
    for name in names:
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_the_rare_shards_are_the_last_and_wait_for_the_first(tmp_path: Path) -> None:
    shards = Shards(tmp_path, 2600, 0.8, 1, 0.25)
    assert (shards.count, shards.plain) == (11, 8)
    shards.path(3).touch()
    assert shards.missing() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]
