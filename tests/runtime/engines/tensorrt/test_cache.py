"""The cache of engines: edited manifests, foreign plans, killed builds, two processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from dataclasses import fields, replace

import pytest
from fid.runtime.engines.tensorrt import cache as engine_cache
from fid.runtime.engines.tensorrt.build import Batch
from fid.runtime.engines.tensorrt.cache import Key, mark, obtain, similar
from fid.runtime.errors import FidError, InputError
from fid.runtime.weights import cache

KEY = Key(
    graph="0" * 64,
    precision="fp32",
    batch="1:1:4",
    flags="strongly typed, tf32",
    library="tensorrt",
    version="11.4.0.106",
    compute_capability="8.9",
    gpu="Toy GPU",
    driver="580.95.05",
    cuda="13.0",
)


@pytest.fixture(autouse=True)
def engines(empty_cache):
    """The private folder."""
    return empty_cache / "engines"


class Builder:
    """Counts builds; every plan is another one, as the libraries' are."""

    def __init__(self):
        self.builds = 0

    def __call__(self, watch):
        self.builds += 1
        watch(0.5)
        return b"plan %d" % self.builds


@pytest.fixture
def build():
    return Builder()


def test_an_engine_is_built_once(build, engines, capsys):
    first = obtain(KEY, "synthesis", build)
    second = obtain(KEY, "synthesis", build)
    assert (first.plan, second.plan, build.builds) == (b"plan 1", b"plan 1", 1)
    assert capsys.readouterr().err == (
        "fid: building the TensorRT engine of synthesis, fp32, batch 1:1:4: up to some minutes\n"
    )
    assert stat.S_IMODE(engines.stat().st_mode) == 0o700
    assert stat.S_IMODE((engines / "secret").stat().st_mode) & 0o077 == 0


@pytest.mark.parametrize("field", [field.name for field in fields(Key)])
def test_every_part_of_the_key_counts(build, field):
    obtain(KEY, "synthesis", build)
    value = getattr(KEY, field)
    others = {"recipe": 2, "library": "tensorrt-rtx"}
    other = replace(KEY, **{field: others.get(field, f"{value}0")})
    assert other.digest != KEY.digest
    obtain(other, "synthesis", build)
    assert build.builds == 2


def test_what_changed_is_said_in_one_line(build, capsys):
    obtain(KEY, "synthesis", build)
    capsys.readouterr()
    obtain(replace(KEY, driver="585.10", version="11.5.0"), "synthesis", build)
    assert capsys.readouterr().err == (
        "fid: building the TensorRT engine of synthesis, fp32, batch 1:1:4 (version was 11.4.0.106 and is 11.5.0, "
        "driver was 580.95.05 and is 585.10): about 1 s, as the last time\n"
    )


@pytest.mark.parametrize(
    "field", [*KEY.__dataclass_fields__, "name", "plan_sha256", "build_s", "checked", "refused", "seal"]
)
def test_an_edited_manifest_is_not_believed(build, engines, capsys, field):
    obtain(KEY, "synthesis", build)
    path = engines / KEY.digest / "manifest.json"
    record = json.loads(path.read_text())
    record[field] = {"checked": {"image_psnr_db": 99.0}, "recipe": 2, "build_s": 3.0}.get(field, "00")
    path.write_text(json.dumps(record))
    capsys.readouterr()
    assert obtain(KEY, "synthesis", build).plan == b"plan 2"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "(the manifest in the cache is not the one that was written here)" in lines[0]


@pytest.mark.parametrize("damage", ["no json", "[]", "{}", '{"seal": 5}', '{"seal": "xx"}', None])
def test_a_damaged_manifest(build, engines, damage):
    obtain(KEY, "synthesis", build)
    path = engines / KEY.digest / "manifest.json"
    path.unlink() if damage is None else path.write_text(damage)
    assert obtain(KEY, "synthesis", build).plan == b"plan 2"
    assert obtain(KEY, "synthesis", build).plan == b"plan 2"


def test_a_changed_plan_is_never_loaded(build, engines, capsys):
    obtain(KEY, "synthesis", build)
    (engines / KEY.digest / "engine.plan").write_bytes(b"evil")
    assert obtain(KEY, "synthesis", build).plan == b"plan 2"
    assert "(the plan in the cache is not the one that was built here)" in capsys.readouterr().err


def test_a_foreign_plan_is_refused_even_with_its_own_manifest(build, engines, monkeypatch, tmp_path):
    # made by the same fid, for the same key, on another machine
    monkeypatch.setenv("FID_CACHE", str(tmp_path / "theirs"))
    obtain(KEY, "synthesis", lambda watch: b"their plan")
    monkeypatch.setenv("FID_CACHE", str(engines.parent))
    obtain(replace(KEY, gpu="another"), "synthesis", build)  # our cache is there, with its secret
    shutil.copytree(tmp_path / "theirs" / "engines" / KEY.digest, engines / KEY.digest)
    assert obtain(KEY, "synthesis", build).plan == b"plan 2"


def test_a_folder_that_others_could_write_to_is_not_trusted(build, engines):
    obtain(KEY, "synthesis", build)
    os.chmod(engines, 0o777)
    assert obtain(KEY, "synthesis", build).plan == b"plan 2"
    assert stat.S_IMODE(engines.stat().st_mode) == 0o700


def test_a_folder_of_somebody_else(build, engines, monkeypatch):
    obtain(KEY, "synthesis", build)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(FidError, match="is not a folder of yours"):
        obtain(KEY, "synthesis", build)


def test_a_link_in_the_place_of_the_folder(build, engines, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    engines.parent.mkdir(parents=True)
    engines.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FidError, match="is not a folder of yours"):
        obtain(KEY, "synthesis", build)


def test_a_build_that_fails_leaves_nothing(engines, build):
    def fail(watch):
        raise FidError("no.")

    with pytest.raises(FidError, match="no"):
        obtain(KEY, "synthesis", fail)
    assert {path.name for path in engines.iterdir()} <= {"secret"}
    assert obtain(KEY, "synthesis", build).plan == b"plan 1"


def test_ctrl_c_leaves_nothing(engines):
    def stopped(watch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        obtain(KEY, "synthesis", stopped)
    assert {path.name for path in engines.iterdir()} <= {"secret"}


def test_a_refused_engine_is_remembered_without_its_plan(build, engines):
    first = obtain(KEY, "synthesis", build)
    mark(first, {"image_psnr_db": 20.0}, "too far from FP32")
    again = obtain(KEY, "synthesis", build)
    assert (again.refused, again.plan, again.checked) == ("too far from FP32", b"", {"image_psnr_db": 20.0})
    assert build.builds == 1


def test_other_batch_sizes_serve_as_well(build):
    exported = replace(KEY, batch="1:8:16")
    assert similar(KEY) == KEY
    obtain(exported, "synthesis", build)
    obtain(replace(KEY, batch="8:8:8"), "synthesis", build)  # useless for one picture
    obtain(replace(KEY, batch="1:2:2", driver="1.0"), "synthesis", build)  # of another driver
    assert similar(KEY) == exported
    obtain(KEY, "synthesis", build)
    assert similar(KEY) == KEY


def test_old_engines_make_room(build, engines, monkeypatch):
    keys = [replace(KEY, gpu=f"GPU {i}") for i in range(4)]
    for i, key in enumerate(keys[:3]):
        obtain(key, "synthesis", lambda watch: bytes(1000))
        os.utime(engines / key.digest / "manifest.json", (i, i))
    monkeypatch.setattr(engine_cache, "MAX_BYTES", 4000)
    obtain(keys[0], "synthesis", build)  # used: now the newest
    obtain(keys[3], "synthesis", lambda watch: bytes(1000))
    left = [key.gpu for key in keys if (engines / key.digest).exists()]
    assert left == ["GPU 0", "GPU 3"]


def test_a_full_disk_is_one_sentence(monkeypatch, build):
    import errno

    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(cache.os, "rename", full)
    with pytest.raises(FidError, match="the disk is full"):
        obtain(KEY, "synthesis", build)


def test_sealed_files_are_read_where_they_were_written(engines, tmp_path, monkeypatch):
    engine_cache.write_sealed("timings-1", b"content")
    assert engine_cache.read_sealed("timings-1") == b"content"
    assert engine_cache.read_sealed("timings-2") == b""
    content = (engines / "timings-1").read_bytes()
    (engines / "timings-1").write_bytes(content[:-1] + b"!")
    assert engine_cache.read_sealed("timings-1") == b""


PROGRAM = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_engine_cache_key import KEY
from fid.runtime.engines.tensorrt.cache import obtain

def build(watch):
    with open({log!r}, "a") as log:
        log.write("build\\n")
    time.sleep(float(sys.argv[1]))
    return b"plan of " + sys.argv[2].encode()

print(obtain(KEY, "synthesis", build).plan.decode(), flush=True)
"""


@pytest.fixture
def process(tmp_path, empty_cache):
    """Start a process that wants the engine, and takes some time to build it."""
    (tmp_path / "test_engine_cache_key.py").write_text(
        f"from fid.runtime.engines.tensorrt.cache import Key\nKEY = {KEY!r}\n"
    )
    program = PROGRAM.format(tests=str(tmp_path), log=str(tmp_path / "log"))

    def start(seconds, name):
        return subprocess.Popen(
            [sys.executable, "-c", program, str(seconds), name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"FID_CACHE": str(empty_cache)},
        )

    return start


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_two_processes_build_once(process, tmp_path):
    first = process(1.5, "first")
    wait_for((tmp_path / "log").exists)
    second = process(0, "second")
    out, err = first.communicate(timeout=60)
    assert (first.returncode, out) == (0, "plan of first\n"), err
    out, err = second.communicate(timeout=60)
    assert (second.returncode, out) == (0, "plan of first\n"), err
    assert err == (
        "fid: waiting for another process, which builds the TensorRT engine of synthesis, fp32, batch 1:1:4\n"
    )
    assert (tmp_path / "log").read_text() == "build\n"


def test_a_killed_build_leaves_no_engine_and_no_lock(process, tmp_path, engines):
    victim = process(60, "victim")
    wait_for((tmp_path / "log").exists)
    victim.kill()
    victim.communicate(timeout=60)
    assert not (engines / KEY.digest).exists()
    heir = process(0, "heir")
    out, err = heir.communicate(timeout=60)
    assert (heir.returncode, out) == (0, "plan of heir\n"), err
    assert sorted(path.name for path in engines.iterdir()) == sorted([KEY.digest, "secret"])


def test_ctrl_c_in_a_process(process, tmp_path, engines):
    victim = process(60, "victim")
    wait_for((tmp_path / "log").exists)
    victim.send_signal(signal.SIGINT)
    victim.communicate(timeout=60)
    assert victim.returncode != 0
    assert not (engines / KEY.digest).exists()


def test_two_threads_build_once(build):
    def slow(watch):
        time.sleep(0.2)
        return build(watch)

    plans = []
    threads = [threading.Thread(target=lambda: plans.append(obtain(KEY, "w", slow).plan)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert plans == [b"plan 1"] * 3


@pytest.mark.parametrize(
    ("text", "batch"), [("1:1:4", Batch(1, 1, 4)), ("8", Batch(8, 8, 8)), ("2:4:16", Batch(2, 4, 16))]
)
def test_batch_sizes(text, batch):
    assert Batch.parse(text) == batch
    assert Batch.parse(str(batch)) == batch


@pytest.mark.parametrize("text", ["", "1:4", "4:1:4", "0:1:1", "1:5:4", "a:b:c", "1:1:4:8", "-1", "1:1:1000000"])
def test_wrong_batch_sizes(text):
    with pytest.raises(InputError, match=r"1:1:4"):
        Batch.parse(text)
