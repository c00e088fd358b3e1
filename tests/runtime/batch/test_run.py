"""Which files a run takes: shards, what a former run did, and names; without a model."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fid.runtime.batch.jobs import Compose, Deidentify, Identify, Pairs, Video
from fid.runtime.batch.manifest import Line, Manifest, manifest_name, read_manifests, sha256_of
from fid.runtime.batch.places import Folder, source_place, target_place
from fid.runtime.batch.run import Plan, Tally, in_shard, make_plan, parse_shard, run
from fid.runtime.errors import InputError

NAMES = [f"{folder}{number:04d}.jpg" for folder in ("", "a/", "a/b/") for number in range(40)]


@pytest.fixture
def places(tmp_path: Path) -> tuple[Folder, Folder]:
    """A folder of 120 files and an empty one."""
    for name in NAMES:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(name.encode())
    return Folder(tmp_path / "in"), Folder(target_place(str(tmp_path / "out")).path)  # type: ignore[attr-defined]


def plan_of(places: tuple[Folder, Folder], shard: tuple[int, int] | None = None, **made_of: int) -> Plan:
    return make_plan(Identify(), *places, made_of, shard)


def do(places: tuple[Folder, Folder], plan: Plan, shard: tuple[int, int] | None = None, fails: str = "") -> Tally:
    """Do the tasks of a plan, without any work: files that are named by `fails` end in an error."""

    def doing(tasks):
        for task in tasks:
            error = "it failed." if task.item.name == fails else None
            if error is None:
                with places[1].writing(task.output) as path:
                    path.write_text("done")
            yield task.line(error)

    return run(plan.tasks, doing, places[1], shard, Tally(len(plan.tasks)))


def test_shards_are_disjoint_complete_and_stable_when_files_are_added(places: tuple[Folder, Folder]) -> None:
    shards = [{task.item.name for task in plan_of(places, (i, 7)).tasks} for i in range(7)]
    assert sorted(name for shard in shards for name in shard) == sorted(NAMES)
    assert all(shards), "with 120 files, the chance of an empty one is 7 (6/7)^120 < 1e-7"
    (places[0].path / "0000-more.jpg").write_bytes(b"")
    for i, shard in enumerate(shards):
        assert {task.item.name for task in plan_of(places, (i, 7)).tasks} - {"0000-more.jpg"} == shard
    assert all(in_shard(name, (0, 1)) for name in NAMES)


@pytest.mark.parametrize("text", ["", "1", "4/4", "-1/4", "a/b", "1/0", "1/4/2"])
def test_a_shard_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="give I/N with I from 0 to N - 1"):
        parse_shard(text)
    assert parse_shard("3/4") == (3, 4)


def test_a_second_run_does_only_what_is_missing(places: tuple[Folder, Folder]) -> None:
    tally = do(places, plan_of(places), fails="0007.jpg")
    assert (tally.done, tally.failed) == (120, 1)
    assert [task.item.name for task in plan_of(places).tasks] == ["0007.jpg"], "what failed is tried again"
    do(places, plan_of(places))
    assert plan_of(places).tasks == ()
    (places[1].path / "0001.npz").unlink()
    (places[0].path / "0002.jpg").write_bytes(b"other bytes, and more of them")
    assert [task.item.name for task in plan_of(places).tasks] == ["0001.jpg", "0002.jpg"]
    assert len(plan_of(places, bundle=2).tasks) == 120, "other settings, other results"


def test_the_bytes_decide_when_a_file_was_only_written_again(places: tuple[Folder, Folder]) -> None:
    def doing(tasks):
        for task in tasks:
            with places[1].writing(task.output) as path:
                path.write_text("done")
            with places[0].reading(task.item.name) as path:
                yield replace(task.line(), sha256=sha256_of(path))

    plan = plan_of(places)
    run(plan.tasks, doing, places[1], None, Tally(len(plan.tasks)))
    (places[0].path / "0003.jpg").write_bytes(b"0003.jpg")
    (places[0].path / "0004.jpg").write_bytes(b"4000.jpg")
    assert [task.item.name for task in plan_of(places).tasks] == ["0004.jpg"]


def test_shards_share_what_is_done_and_write_manifests_of_their_own(places: tuple[Folder, Folder]) -> None:
    for i in range(3):
        do(places, plan_of(places, (i, 3)), (i, 3))
    assert plan_of(places).tasks == ()
    assert sorted(path.name for path in places[1].path.glob("manifest*")) == [manifest_name((i, 3)) for i in range(3)]


def test_half_a_line_of_a_killed_run_is_passed_over(places: tuple[Folder, Folder]) -> None:
    do(places, plan_of(places))
    path = places[1].path / "manifest.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:-1]) + whole[-1][:25])
    plan = plan_of(places)
    assert [task.item.name for task in plan.tasks] == [json.loads(whole[-1])["input"]]
    do(places, plan)
    assert plan_of(places).tasks == ()
    lines = read_manifests(places[1], [path.name])
    assert len(lines) == 120


def test_an_error_does_not_undo_what_is_done(tmp_path: Path) -> None:
    line = Line("a.jpg", "a.png", 1, "0", "x")
    with Manifest(Folder(tmp_path), "manifest.jsonl") as manifest:
        manifest.add(line)
        manifest.add(replace(line, error="the disk was full."))
    assert read_manifests(Folder(tmp_path), ["manifest.jsonl"])["a.jpg"].error is None


def test_outputs_are_named_after_their_inputs() -> None:
    ada = (Path("ada.jpg"),)
    assert [Compose(ada).output(name) for name in ("a/b.JPG", "b.bmp")] == ["a/b.JPG", "b.bmp.png"]
    assert [Video(ada).output(name) for name in ("a/b.mp4", "b.webm")] == ["a/b.mp4", "b.webm.mkv"]
    assert [Deidentify().output(name) for name in ("a/b.mov", "b.tif")] == ["a/b.mov", "b.tif.png"]
    assert Identify().output("a/b.tif") == "a/b.npz"
    assert Pairs(Path("people")).output("a/b.tif") == "a/b.png"


def test_results_may_lie_below_the_inputs_and_are_none(tmp_path: Path) -> None:
    for name in ("in/a.jpg", "in/out/a.png", "in/.hidden.jpg", "in/.parts/b.jpg", "in/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    places = Folder(tmp_path / "in"), Folder(tmp_path / "in" / "out")
    assert [task.item.name for task in plan_of(places).tasks] == ["a.jpg"]


def test_what_cannot_be_is_refused_before_the_work(places: tuple[Folder, Folder], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is the folder of the originals"):
        make_plan(Identify(), places[0], places[0], {})
    with pytest.raises(InputError, match=r"there is nothing in .*out for this job"):
        make_plan(Identify(), places[1], places[0], {})
    (places[0].path / "0001.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"0001.jpg and 0001.png would both become 0001.npz"):
        plan_of(places)
    with pytest.raises(InputError, match="nowhere does not exist"):
        source_place(str(tmp_path / "nowhere"))
    for open_place in (source_place, target_place):
        with pytest.raises(InputError, match="is a file"):
            open_place(str(places[0].path / "0001.jpg"))
