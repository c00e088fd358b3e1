"""A clip that is composed in spans and joined equals the clip that is composed in one, within a stated bound."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fid.runtime import Composer
from fid.runtime.assets import FACES
from fid.runtime.live import spans
from fid.runtime.live.film import Film
from fid.runtime.live.layout import Wishes
from fid.runtime.media import video_rework
from fid.runtime.media.images import read_image
from fid.runtime.media.video import frame_stamps, open_clip, read_frames

from ..media.test_video import write_clip

LEAST_DB = 45.0  # of every frame: what the page on scale states


@pytest.fixture
def film(toy_bundle: Path, fetched: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Film:
    fetched("yunet")
    for module in (spans, video_rework):
        monkeypatch.setattr(module, "PART_FRAMES", 20)
    composer = Composer(toy_bundle, engine="onnxruntime", threads=1)
    return Film(composer, Wishes(composer.identify(FACES / "identity-ada.jpg")))


def moving(count: int, without: range = range(0)) -> list[np.ndarray]:
    """A face that goes round, and is away for a while: `count` frames RGB uint8 [256, 256, 3]."""
    face = read_image(FACES / "attributes-shade.jpg")
    frames = []
    for number in range(count):
        turn = 2 * np.pi * number / 40
        shift = round(6 * np.sin(turn)), round(6 * np.cos(turn))
        frames.append(np.zeros_like(face) if number in without else np.roll(face, shift, axis=(0, 1)))
    return frames


def write(path: Path, frames: list[np.ndarray]) -> Path:
    """At 10 frames a second."""
    return write_clip(path, [9000 * number for number in range(len(frames))], pictures=frames.__getitem__)


def in_spans(film: Film, path: Path, output: Path, seconds: float) -> tuple[int, int]:
    clip, prepared = open_clip(path), output.parent / "prepared"
    folders, parts = [], spans.spans_of(clip, seconds)
    prepared.mkdir()
    spans.prepare(film, clip, prepared, [first for first, _ in parts])
    for number, span in enumerate(parts):
        folders.append(output.parent / f"span{number}")
        folders[-1].mkdir()
        spans.write_span(film, clip, prepared, folders[-1], span, marked=False)
    return video_rework.join_spans(clip, folders, output, None)


def least_psnr(one: Path, other: Path) -> float:
    """Of any frame, dB; the time stamps have to be the same."""
    found = []
    pairs = zip(read_frames(open_clip(one)), read_frames(open_clip(other)), strict=True)
    for (stamp, left), (same, right) in pairs:
        assert stamp == same
        error = float(np.mean((left.astype(np.float64) - right) ** 2))
        found.append(99.0 if error == 0 else 10 * np.log10(255**2 / error))
    return min(found)


@pytest.mark.slow
@pytest.mark.parametrize("view", ["result-only", "paste"])
def test_the_joined_clip_is_the_whole_one(film: Film, view: str, tmp_path: Path) -> None:
    """The last span begins 320 frames after the start, of which the last 40 are composed again."""
    film = replace(film, wishes=replace(film.wishes, view=view))
    path = write(tmp_path / "in.mp4", moving(480))
    assert spans.spans_of(open_clip(path), 16.0) == [(0, 160), (160, 320), (320, 480)]
    assert film.write(open_clip(path), tmp_path / "whole.mp4") == (480, 0)
    assert in_spans(film, path, tmp_path / "joined.mp4", 16.0) == (480, 0)
    assert least_psnr(tmp_path / "whole.mp4", tmp_path / "joined.mp4") >= LEAST_DB


def test_a_picture_is_held_across_a_span_without_anybody(
    film: Film, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans, "SHOWN", 10)
    monkeypatch.setattr(spans, "SHOWN_S", 0.5)
    path = write(tmp_path / "in.mp4", moving(100, without=range(30, 90)))
    film.write(open_clip(path), tmp_path / "whole.mp4")
    in_spans(film, path, tmp_path / "joined.mp4", 2.0)
    assert (
        least_psnr(tmp_path / "whole.mp4", tmp_path / "joined.mp4") > 20
    )  # of grey: 10; 20 frames are too few for more


def test_short_clips_and_those_without_time_stamps_are_not_split(film: Film, tmp_path: Path) -> None:
    path = write(tmp_path / "in.mp4", moving(30))
    assert len(frame_stamps(open_clip(path)) or ()) == 30
    assert spans.spans_of(open_clip(path), 2.0) == [(0, 30)], "30 frames are less than two spans of 20"
    assert spans.spans_of(open_clip(path), 0.1) == [(0, 30)], "spans are not shorter than a part"
