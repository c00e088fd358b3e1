"""In which order the parts of a long clip are given out, without a model."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fid.runtime.batch import split
from fid.runtime.batch.manifest import Line
from fid.runtime.batch.places import Folder, Item
from fid.runtime.batch.split import Sharing
from fid.runtime.batch.worker import PREPARED, PREPARING, Task

SPANS = [(0, 120), (120, 240), (240, 400)]
CLIP = Task(Item("film.mp4", 1, "0"), "film.mp4", "x")


@pytest.fixture(autouse=True)
def three_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "open_clip", lambda path: path)
    monkeypatch.setattr(split, "spans_of", lambda clip, seconds: SPANS)


def given(sharing: Sharing, folder: Path, *, again: int = 0, fails: int | None = None) -> Iterator[tuple[str, int]]:
    """Do all tasks as they come, without any work; `again`: how often the joining says so. Ends with the line."""
    for task in sharing:
        if task.span is None:
            yield task.item.name, -9
            continue
        number, line = task.span.number, task.line()
        yield task.item.name, number
        if number == fails:
            line = replace(line, error="it failed.")
        elif number == task.span.count:
            line = replace(line, more={"again": True} if again else {"spans": 3})
            again -= 1
        else:
            line = replace(line, more={"span": number})
            path = folder / task.spans / f"{PREPARED if number == PREPARING else number}.tar"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        if line.more.get("again"):
            for path in (folder / task.spans).glob("[0-9].tar"):
                path.unlink()
        whole: Line | None = sharing.seen(line)
        if whole is not None:
            yield f"{whole.input} {whole.error}", number


def sharing_of(folder: Path, *tasks: Task) -> Sharing:
    return Sharing(iter(tasks), Folder(folder), Folder(folder), 4.0)


def test_spans_then_the_joining_and_others_as_they_are(tmp_path: Path) -> None:
    photo = replace(CLIP, item=Item("a.jpg", 1, "0"))
    came = list(given(sharing_of(tmp_path, photo, CLIP), tmp_path))
    assert came == [("a.jpg", -9), *(("film.mp4", number) for number in range(-1, 4)), ("film.mp4 None", 3)]


def test_what_all_spans_need_comes_first_and_all_may_come_again(tmp_path: Path) -> None:
    came = [number for _, number in given(sharing_of(tmp_path, CLIP), tmp_path, again=1)]
    assert came == [PREPARING, 0, 1, 2, 3, 0, 1, 2, 3, 3]


def test_what_a_stopped_run_did_is_not_done_again(tmp_path: Path) -> None:
    parts = given(sharing_of(tmp_path, CLIP), tmp_path)
    assert [next(parts)[1] for _ in range(3)] == [PREPARING, 0, 1]  # killed within span 1
    came = [number for _, number in given(sharing_of(tmp_path, CLIP), tmp_path)]
    assert came == [1, 2, 3, 3]


@pytest.mark.parametrize("fails", [PREPARING, 1, 3])
def test_a_part_that_fails_is_the_error_of_its_clip(tmp_path: Path, fails: int) -> None:
    came = list(given(sharing_of(tmp_path, CLIP), tmp_path, fails=fails))
    assert came[-1][0] == "film.mp4 it failed."
    assert [name for name, _ in came].count("film.mp4 it failed.") == 1
