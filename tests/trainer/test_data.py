"""Faces to train on: kept in shards, drawn online, and the inputs' augmentation."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from fid.runtime.errors import InputError
from fid.trainer import data


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
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["faces_00000.npz"]
    first = (tmp_path / "faces_00000.npz").read_bytes()
    write(stop_after=9)
    assert len(lines) == 3
    assert (tmp_path / "faces_00000.npz").read_bytes() == first
    faces = data.read_dataset(tmp_path)
    assert len(faces) == 6
    assert len(faces[torch.tensor([0, 5])]) == 2


def test_a_folder_that_is_no_dataset(tmp_path):
    with pytest.raises(InputError, match=r"no faces_.*fid-train dataset"):
        data.read_dataset(tmp_path)
    for broken in (b"PK\x03\x04 half", b"no archive", b""):
        (tmp_path / "faces_00000.npz").write_bytes(broken)
        with pytest.raises(InputError, match="broken shard"):
            data.read_dataset(tmp_path)


def test_drawn_identities_are_like_real_people():
    # Of 4,281 photographed people: norm of the mean code 0.323, mean cosine of two people 0.104.
    codes = data.RealIdentities().draw(2000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(2000))
    assert codes.mean(0).norm().item() == pytest.approx(0.326, abs=0.01)
    assert (codes[:1000] * codes[1000:]).sum(1).mean().item() == pytest.approx(0.106, abs=0.01)


def test_augmentation_leaves_half_alone_and_changes_little():
    ramp = torch.linspace(-0.6, 0.6, 128).expand(64, 3, 128, 128)
    changed = data.augment(ramp, torch.Generator().manual_seed(0))
    assert torch.equal(changed, data.augment(ramp, torch.Generator().manual_seed(0)))
    alone = (changed == ramp).flatten(1).all(1)
    assert 20 < alone.sum() < 44
    inner = (changed - ramp)[..., 16:-16].mean((2, 3)).abs()
    assert 0.05 < inner.max() < 0.2  # light: 10 % of gain and of offset
    assert changed.abs().max() <= 1


def test_augmentation_of_some_rows_is_that_of_the_whole_batch():
    crop = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    whole = data.augment(crop, torch.Generator().manual_seed(2))
    rows = slice(2, 4)
    torch.testing.assert_close(data.augment(crop[rows], torch.Generator().manual_seed(2), 6, rows), whole[rows])


def test_compression_rounds_cosine_coefficients():
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    none, strong = data._compressed(image, torch.zeros(2)), data._compressed(image, torch.ones(2))
    torch.testing.assert_close(none, image, atol=2e-3, rtol=0)
    assert 0.05 < (strong - image).square().mean().sqrt() < 0.5
    flat = torch.full((1, 3, 16, 16), 0.5)  # 0.5 * 8 is a multiple of the coarsest step of the mean
    torch.testing.assert_close(data._compressed(flat, torch.ones(1)), flat, atol=1e-5, rtol=0)


def test_photographs_become_inputs_and_what_shows_no_face_is_named(tmp_path, frozen):
    face = Path(data.__file__).parents[1] / "runtime/faces"
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


def test_skin_tones_are_what_codes_predict_and_light_is_not():
    random = torch.Generator().manual_seed(5)
    codes = torch.nn.functional.normalize(torch.randn(3000, 128, generator=random), dim=1)
    tone = torch.randn(128, 3, generator=random)
    light = torch.randn(3000, 3, generator=random)
    tones = data.SkinTones(codes, 4 + codes @ tone + light, penalty=1e-3)
    change = tones.change(codes[:50], codes[50:100])
    wanted = (codes[:50] - codes[50:100]) @ tone
    assert torch.corrcoef(torch.stack([change.flatten(), wanted.flatten()]))[0, 1] > 0.95
    assert torch.equal(tones.change(codes[:3], codes[:3]), torch.zeros(3, 3))
