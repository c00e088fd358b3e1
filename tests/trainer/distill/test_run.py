"""Distillation: the closed form is exact where it can be, training falls, resuming goes on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fid.runtime.errors import FidError, InputError
from fid.trainer.distill import run as distill
from fid.trainer.networks.mobilestylegan import Mapping, Synthesis
from rich.console import Console

CONFIG = distill.DistillConfig(resolution=128, images=4, held_out=4, batch=2, steps=3, lpips=0)


@pytest.fixture(scope="module")
def teacher(fetched):
    """A 128 px generator whose head is linear: a random skip, no detail, no colour from w."""
    network = Synthesis.load(128, fetched("generator"))
    torch.nn.init.normal_(network.to_image.skip, std=0.02, generator=torch.Generator().manual_seed(0))
    torch.nn.init.zeros_(network.to_image.detail.weight)
    return network


@pytest.fixture(scope="module")
def targets(teacher, fetched, tmp_path_factory):
    """Targets that the teacher made itself, so that they can be reached; averaging halves their 256 px again."""
    folder = tmp_path_factory.mktemp("targets")
    mapping, random = Mapping.load(fetched("generator")), torch.Generator().manual_seed(0)
    for index in range(2):
        w = mapping(torch.randn(4, 512, generator=random))
        with torch.no_grad():
            images = torch.nn.functional.interpolate(teacher(w), scale_factor=2).half()
        np.savez(folder / f"shard_{index:04d}.npz", w=w.numpy(), image=images.numpy())
    return folder


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(distill, "SHARD", 4)


@pytest.mark.usefixtures("small_shards")
def test_the_closed_form_finds_a_linear_head(targets, teacher):
    (w, images), held_out = distill.read_targets(targets, CONFIG)
    network = Synthesis.load(128)
    before = distill.measure(network, *held_out)["psnr_mean"]
    distill.closed_form_head(network, w, images)
    after = distill.measure(network, *held_out)
    # Targets are kept in half precision, which alone costs 89 dB; the ridge takes some more.
    assert after["psnr_mean"] > 70 > before
    assert after["colour_drift"] < 0.01
    # of a head of 0.02; the ridge draws directions in which the activations hardly vary towards zero
    torch.testing.assert_close(network.to_image.skip, teacher.to_image.skip, atol=5e-3, rtol=0)


@pytest.mark.usefixtures("small_shards")
def test_training_saves_and_resumes(targets, tmp_path):
    console = Console(quiet=True)
    run = tmp_path / "run"
    first = distill.distill(run, CONFIG, targets=targets, max_minutes=0, console=console)
    assert first.name == "step_000000"
    last = distill.distill(run, CONFIG, targets=targets, resume=True, console=console)
    assert last.name == "step_000003"
    assert distill.read_record(last)["figures"]["psnr_mean"] > 40


def test_targets_are_kept_and_are_the_averaged_large_image(tmp_path, monkeypatch):
    class Teacher(torch.nn.Module):
        def forward(self, w):
            return w[:, :1, None, None].expand(-1, 3, 1024, 1024)

    monkeypatch.setattr(distill, "SHARD", 2)
    monkeypatch.setattr(distill.Synthesis, "load", classmethod(lambda cls, resolution: Teacher()))
    monkeypatch.setattr(distill, "mean_w", lambda mapping: torch.zeros(512))
    config = distill.DistillConfig(images=2, held_out=2)
    lines = []
    distill.write_targets(tmp_path, config, log=lines.append)
    assert len(lines) == 2
    (w, images), _ = distill.read_targets(tmp_path, config)
    torch.testing.assert_close(images[:, 0, 0, 0].float(), w[:, 0], atol=1e-3, rtol=1e-3)
    distill.write_targets(tmp_path, config, log=lines.append)
    assert len(lines) == 2
    half = distill.DistillConfig(images=2, held_out=2, resolution=128)
    assert distill.read_targets(tmp_path, half)[0][1].shape == (2, 3, 128, 128)


def test_broken_and_unwritable_targets(tmp_path, monkeypatch):
    config = distill.DistillConfig(images=2, held_out=2)
    for name in ("shard_0000.npz", "shard_0001.npz"):
        (tmp_path / name).write_bytes(b"PK half a file")
    with pytest.raises(InputError, match=r"shard_0001.npz is broken .* delete it"):
        distill.read_targets(tmp_path, config)

    for path in tmp_path.iterdir():
        path.unlink()

    class Teacher(torch.nn.Module):
        def forward(self, w):
            return torch.zeros(len(w), 3, 1024, 1024)

    def full(file, **arrays):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(distill, "SHARD", 2)
    monkeypatch.setattr(distill.Synthesis, "load", classmethod(lambda cls, resolution: Teacher()))
    monkeypatch.setattr(distill, "mean_w", lambda mapping: torch.zeros(512))
    monkeypatch.setattr(distill.np, "savez", full)
    with pytest.raises(FidError, match="the disk is full; what was there before is untouched"):
        distill.write_targets(tmp_path, config)
    assert list(tmp_path.iterdir()) == []


def test_steps_are_relative_to_the_size_of_a_tensor():
    assert distill.typical_size(torch.full((4, 3), -2.0)) == 2
    assert distill.typical_size(torch.zeros(8, 16, 1, 1)) == 0.25


def test_lpips_sees_the_same_square_of_both_images_and_another_at_each_step():
    seen = []

    def perceptual(output, target):
        seen.append((output, target))
        return torch.zeros(len(output))

    config = replace(CONFIG, lpips=1.0, lpips_window=32)
    image = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    for step in (1, 2, 3, 1):
        distill.image_loss(image, image + 1, perceptual, config, step)
    assert all(output.shape == (2, 3, 32, 32) and torch.equal(output + 1, target) for output, target in seen)
    assert len({output.sum().item() for output, _ in seen}) == 3
    assert torch.equal(seen[0][0], seen[3][0])  # a resumed run goes on with the same squares
    distill.image_loss(image[..., :16, :16], image[..., :16, :16], perceptual, config)
    assert seen[-1][0].shape[-1] == 16  # a smaller image is seen whole
