"""The bench with the toy bundle: speed and accuracy of each engine, on whatever frames it is given."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from fid.runtime import Composer
from fid.runtime.assets import FACES
from fid.runtime.commands.bench import bench as run_bench
from fid.runtime.commands.bench import crops_of, made_frames, read_frames, render, stages
from fid.runtime.errors import FidError, InputError
from fid.runtime.media import video
from fid.runtime.media.images import read_image

from ..media.test_video import write_kind


@pytest.fixture
def composer(toy_bundle: Path, fetched: Callable[[str], Path]) -> Composer:
    fetched("yunet")
    return Composer(toy_bundle)


@pytest.mark.usefixtures("composer")
def test_the_bench_tells_speed_and_accuracy_of_each_engine(toy_bundle: Path) -> None:
    rows = run_bench(["onnxruntime", "cuda"], FACES / "identity-ada.jpg", None, 0.3, {"bundle": toy_bundle})
    own, cuda = rows
    assert (own["provider"], own["generator"]) == ("onnxruntime CPU", "full")  # the toy has no light one
    assert own["psnr_db"] == 99  # equal to itself
    assert own["identity_cosine"] == pytest.approx(1, abs=1e-5)
    assert own["frame_ms"].keys() == {"p50", "p95", "p99"}
    assert {"track", "align", "attributes", "mapper", "synthesis", "paste"} <= own["stage_ms"].keys()
    assert own["fps"] > 0
    assert "missing" in cuda or cuda["provider"] == "onnxruntime CUDA"
    lines = render(rows)
    assert lines[1].startswith("onnxruntime")
    json.dumps(rows)


def test_frames_without_a_face_are_left_out_of_a_bench(composer: Composer) -> None:
    frames = made_frames(read_image(FACES / "identity-ada.jpg"), 2)
    wall = np.full_like(frames[0], 150)
    assert len(crops_of(composer, [wall, *frames, wall])) == 2
    with pytest.raises(InputError, match="show nobody; the last one: The photo: no face was found"):
        crops_of(composer, [wall, wall])
    who = composer.identify(FACES / "identity-ben.jpg")
    with pytest.raises(FidError, match="no face could be followed"):
        stages(composer, who, [wall], 0.01, light=False)


def test_a_bench_reads_clips_as_every_command_does(tmp_path: Path) -> None:
    """Pixels that are not square become square; OpenCV's reader leaves them."""
    path = write_kind(tmp_path / "in.mp4", "libx264", stretch=Fraction(2), count=5)
    frames = read_frames(path, 3)
    assert [frame.shape for frame in frames] == [(64, 192, 3)] * 3
    np.testing.assert_array_equal(frames[0], next(video.read_frames(video.open_clip(path)))[1])
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(InputError, match=r"text\.mp4 is not a video that can be read"):
        read_frames(tmp_path / "text.mp4", 3)


def test_a_bench_holds_a_bounded_number_of_bytes(tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "in.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 30, (64, 48))
    for _ in range(10):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    size = 48 * 64 * 3
    assert len(read_frames(tmp_path / "in.avi", 8)) == 8
    assert len(read_frames(tmp_path / "in.avi", 8, 3 * size)) == 3
    assert len(read_frames(tmp_path / "in.avi", 8, 1)) == 1
