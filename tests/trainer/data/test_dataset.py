"""Faces to train on: kept in shards, drawn online, and the inputs' augmentation."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from fid.runtime.errors import InputError
from fid.trainer.data import augment, statistics
from fid.trainer.data import dataset as data
from tiny_frozen import tiny_frozen


def test_a_draw_is_what_the_networks_say(frozen):
    faces = frozen.draw(3, 0.8, torch.Generator().manual_seed(5), batch=2)
    assert faces.image.dtype == torch.uint8
    assert faces.image.shape == (3, 3, 128, 128)
    again = frozen.draw(3, 0.8, torch.Generator().manual_seed(5), batch=3)
    torch.testing.assert_close(faces.w, again.w)
    with torch.no_grad():
        torch.testing.assert_close(frozen.identity(faces.crop), faces.identity, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(frozen.inner_face(faces.crop), faces.landmarks, atol=1e-2, rtol=1e-3)
    truncated = frozen.draw(3, 0.0, torch.Generator().manual_seed(5))
    torch.testing.assert_close(truncated.w, frozen.w_mean.expand(3, -1))


def test_a_dataset_goes_on_where_it_stopped(frozen, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "SHARD", 2)
    lines = []

    def write(stop_after):
        data.write_dataset(
            tmp_path, 5, frozen, psi=0.8, seed=1, stop=lambda: len(lines) >= stop_after, log=lines.append
        )

    write(stop_after=1)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["dataset.json", "faces_00000.npz"]
    first = (tmp_path / "faces_00000.npz").read_bytes()
    write(stop_after=9)
    assert len(lines) == 3
    assert (tmp_path / "faces_00000.npz").read_bytes() == first
    faces = data.read_dataset(tmp_path)
    assert len(faces) == 5
    assert len(faces[torch.tensor([0, 4])]) == 2
    single = [data.read_dataset(tmp_path, 1), faces[torch.arange(2)]]
    assert all(torch.equal(getattr(single[0], name), getattr(single[1], name)) for name in ("w", "image", "landmarks"))
    with pytest.raises(InputError, match=r"were made with psi 0\.8, not 0\.7: name another folder"):
        data.write_dataset(tmp_path, 9, frozen, psi=0.7, seed=1, stop=lambda: True, log=lines.append)


def test_a_folder_that_is_no_dataset(tmp_path):
    with pytest.raises(InputError, match=r"no faces_.*fid-train dataset"):
        data.read_dataset(tmp_path)
    for broken in (b"PK\x03\x04 half", b"no archive", b""):
        (tmp_path / "faces_00000.npz").write_bytes(broken)
        with pytest.raises(InputError, match="broken shard"):
            data.read_dataset(tmp_path)


def test_drawn_identities_are_like_real_people():
    # Of 4,281 photographed people: norm of the mean code 0.323, mean cosine of two people 0.104.
    codes = statistics.RealIdentities().draw(2000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(2000))
    assert codes.mean(0).norm().item() == pytest.approx(0.326, abs=0.01)
    assert (codes[:1000] * codes[1000:]).sum(1).mean().item() == pytest.approx(0.106, abs=0.01)


def test_augmentation_leaves_half_alone_and_changes_little():
    ramp = torch.linspace(-0.6, 0.6, 128).expand(64, 3, 128, 128)
    changed = augment.augment(ramp, torch.Generator().manual_seed(0))
    assert torch.equal(changed, augment.augment(ramp, torch.Generator().manual_seed(0)))
    alone = (changed == ramp).flatten(1).all(1)
    assert 20 < alone.sum() < 44
    inner = (changed - ramp)[..., 16:-16].mean((2, 3)).abs()
    assert 0.05 < inner.max() < 0.2  # light: 10 % of gain and of offset
    assert changed.abs().max() <= 1


def test_augmentation_of_some_rows_is_that_of_the_whole_batch():
    crop = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    whole = augment.augment(crop, torch.Generator().manual_seed(2))
    rows = slice(2, 4)
    torch.testing.assert_close(augment.augment(crop[rows], torch.Generator().manual_seed(2), 6, rows), whole[rows])


def test_augmentation_is_not_computed_in_bfloat16_where_the_training_is():
    crop = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    exact = augment.augment(crop, torch.Generator().manual_seed(2))
    with torch.autocast("cpu", torch.bfloat16):
        changed = augment.augment(crop, torch.Generator().manual_seed(2))
    torch.testing.assert_close(changed, exact, atol=0, rtol=0)


def test_compression_rounds_cosine_coefficients():
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    none, strong = augment._compressed(image, torch.zeros(2)), augment._compressed(image, torch.ones(2))
    torch.testing.assert_close(none, image, atol=2e-3, rtol=0)
    assert 0.05 < (strong - image).square().mean().sqrt() < 0.5
    flat = torch.full((1, 3, 16, 16), 0.5)  # 0.5 * 8 is a multiple of the coarsest step of the mean
    torch.testing.assert_close(augment._compressed(flat, torch.ones(1)), flat, atol=1e-5, rtol=0)


def test_photographs_become_inputs_and_what_shows_no_face_is_named(tmp_path, frozen):
    face = Path(data.__file__).parents[2] / "runtime/faces"
    photo = sorted(face.glob("*.jpg"))[0]
    (tmp_path / "face.jpg").write_bytes(photo.read_bytes())
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((200, 200, 3), 128, np.uint8))
    lines = []
    faces = data.read_photos(tmp_path, frozen, lines.append)
    assert len(faces) == 1
    assert faces.image.shape == (1, 3, 128, 128)
    torch.testing.assert_close(faces.w, frozen.w_mean[None])
    assert "grey.png" in lines[0]
    assert lines[1].startswith("1 of 2 photographs")
    (tmp_path / "face.jpg").unlink()
    with pytest.raises(InputError, match="no photograph with a face"):
        data.read_photos(tmp_path, frozen, lines.append)


def test_rare_shards_hold_the_darkest_of_many_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "SHARD", 64)
    frozen = tiny_frozen()
    data.write_dataset(tmp_path, 512, frozen, psi=0.8, seed=1, stop=lambda: False, log=lambda line: None, rare=0.25)
    assert len(list(tmp_path.glob("faces_*.npz"))) == 8
    plain, every = data.read_dataset(tmp_path, 6), data.read_dataset(tmp_path)
    rare = every[torch.arange(6 * 64, 8 * 64)]
    assert rare.skin.mean() < plain.skin.mean() - plain.skin.mean(1).std()
    assert len({tuple(w[:3].tolist()) for w in every.w}) == len(every)  # nobody twice


def test_light_is_what_borders_predict_and_the_rest_is_the_person():
    random = torch.Generator().manual_seed(5)
    borders = torch.randn(3000, 12, generator=random)
    light, tone = borders @ torch.randn(12, 3, generator=random), torch.randn(3000, 3, generator=random)
    found = statistics.Light(borders, 4 + light + tone, penalty=1e-3)
    torch.testing.assert_close(found(borders[:50]), (light - light.mean(0))[:50], atol=0.3, rtol=0)
    torch.testing.assert_close(found(borders).mean(0), torch.zeros(3), atol=1e-4, rtol=0)


def test_a_transfer_takes_what_belongs_to_the_attributes_and_leaves_the_rest():
    random = torch.Generator().manual_seed(6)
    w = torch.randn(4000, 512, generator=random) * torch.linspace(0.5, 2, 512)
    landmarks = (w[:, :8] * 0.01).reshape(-1, 4, 2)  # what they show lies in these directions of w and no others
    borders = w[:, 8:11] * 0.2
    transfer = statistics.Transfer(w, landmarks, borders, weights=(1e4, 1e3))
    person, other = w[:20], w[20:40]
    moved = transfer(person, other)
    torch.testing.assert_close(moved[:, :11], other[:, :11], atol=0.25, rtol=0)
    torch.testing.assert_close(moved[:, 11:], person[:, 11:], atol=0.25, rtol=0)
    torch.testing.assert_close(transfer(person, person), person)
    weak = statistics.Transfer(w, landmarks, borders, weights=(0.0, 0.0))
    torch.testing.assert_close(weak(person, other), person)


def test_ridge_regression_finds_a_known_map():
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(1))
    weights = torch.randn(6, 2, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(statistics.ridge_regression(x, 3 + x @ weights, 1e-9), weights, atol=1e-5, rtol=0)
    assert statistics.ridge_regression(x, x @ weights, 1e6).abs().max() < 1e-2


def test_codes_are_led_towards_real_ones():
    codes = torch.nn.functional.normalize(torch.randn(64, 128, generator=torch.Generator().manual_seed(3)), dim=1)
    real = statistics.RealIdentities()

    def led(share: float) -> torch.Tensor:
        return real.towards(codes, share, torch.Generator().manual_seed(4), slice(None), len(codes))

    torch.testing.assert_close(led(0.0), codes)
    near, far = ((led(share) * codes).sum(1) for share in (0.3, 3.0))
    torch.testing.assert_close(led(3.0).norm(dim=1), torch.ones(64))
    assert far.mean() < near.mean() < 1
    count = statistics.CANDIDATES
    drawn = real.draw(64 * count, torch.Generator().manual_seed(4)).unflatten(0, (64, count))
    nearest = (drawn * codes[:, None]).sum(2).amax(1)
    torch.testing.assert_close((led(1e6) * codes).sum(1), nearest, atol=1e-3, rtol=0)  # all the way: the nearest itself
    rows = real.towards(codes[16:32], 0.3, torch.Generator().manual_seed(4), slice(16, 32), len(codes))
    torch.testing.assert_close(rows, led(0.3)[16:32])  # a process's share
