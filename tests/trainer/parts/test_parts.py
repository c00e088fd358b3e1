"""The network of parts: what it gives, what it is taught with, and that it learns."""

import io
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from fid.runtime.face.parts import HAIR, OCCLUDER, PARTS, PARTS_SIDE
from fid.trainer.parts.labels import guided
from fid.trainer.parts.network import PartsNetwork
from fid.trainer.parts.run import PartsConfig, augmented, export, train
from rich.console import Console

QUIET = Console(file=io.StringIO())


def picture() -> tuple[np.ndarray, np.ndarray]:
    """A red square (hair) on blue, uint8 [256, 256, 3], and its labels uint8 [5, 128, 128]."""
    image = np.full((256, 256, 3), (30, 40, 200), np.uint8)
    image[60:200, 60:200] = (200, 30, 30)
    labels = np.zeros((5, 128, 128), np.uint8)
    labels[0] = 255
    labels[0, 30:100, 30:100], labels[HAIR, 30:100, 30:100] = 0, 255
    return image, labels


def test_a_guided_filter_keeps_what_is_linear_in_the_colours() -> None:
    image = np.random.default_rng(1).random((32, 32, 3)).astype(np.float32)
    values = image @ np.array([0.5, -0.2, 0.3], np.float32) + np.float32(0.1)
    filtered = guided(image, values, np.ones((32, 32), np.float32))
    assert np.abs(filtered - values).max() < 0.02  # less than its smoothness takes off


def test_a_view_shows_what_its_labels_say() -> None:
    image, labels = picture()
    config, random = PartsConfig(occluded=0.0, swapped=0.0), np.random.default_rng(3)
    for _ in range(8):
        view, parts = augmented(image, labels, image, config, random)
        assert view.shape == (3, PARTS_SIDE, PARTS_SIDE)
        np.testing.assert_allclose(parts.sum(0), 1, atol=1e-4)
        hair = parts[HAIR] > 0.9
        assert hair.any()
        assert view[0][hair].mean() > view[2][hair].mean() + 0.2  # red


def test_something_before_the_face_is_labelled() -> None:
    image, labels = picture()
    config, random = PartsConfig(occluded=1.0, swapped=1.0), np.random.default_rng(4)
    found = [augmented(image, labels, image, config, random)[1] for _ in range(12)]
    assert sum(float(parts[OCCLUDER].max()) > 0.9 for parts in found) > 8
    for parts in found:
        np.testing.assert_allclose(parts.sum(0), 1, atol=1e-4)


def test_it_learns_and_its_graph_gives_the_same(tmp_path: Path) -> None:
    image, labels = picture()
    config = PartsConfig(steps=40, batch=4, rate=1e-2, occluded=0.0, swapped=0.0)
    network = train(image[None], labels[None], config, QUIET)
    with torch.no_grad():
        parts = network(torch.from_numpy(image)[None]).numpy()
    assert parts.shape == (1, len(PARTS), PARTS_SIDE, PARTS_SIDE)
    assert parts[0, HAIR, 40:90, 40:90].mean() > 0.6 > 0.3 > parts[0, HAIR, :16, :16].mean()
    export(network, tmp_path / "parts.onnx", config)
    session = onnxruntime.InferenceSession(str(tmp_path / "parts.onnx"), providers=["CPUExecutionProvider"])
    for count in (1, 3):
        given = session.run(None, {"crop": np.repeat(image[None], count, 0)})[0]
        assert np.abs(given - parts).max() < 0.02  # float16 weights


def test_the_network_takes_whole_batches_of_bytes() -> None:
    with torch.no_grad():
        out = PartsNetwork().eval()(torch.zeros(2, 256, 256, 3, dtype=torch.uint8))
    torch.testing.assert_close(out.sum(1), torch.ones(2, PARTS_SIDE, PARTS_SIDE))
    assert out.dtype == torch.float32


def test_a_plan_of_training_is_printed_and_nothing_done(tmp_path: Path) -> None:
    from click.testing import CliRunner
    from fid.trainer.cli import main_group

    result = CliRunner().invoke(main_group, ["parts", "-o", str(tmp_path / "p.onnx"), "--dry-run"])
    assert result.exit_code == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_seed_gives_the_same_views(seed: int) -> None:
    image, labels = picture()
    one, other = (augmented(image, labels, image, PartsConfig(), np.random.default_rng(seed)) for _ in range(2))
    np.testing.assert_array_equal(one[0], other[0])
