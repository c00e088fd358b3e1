"""Pictures as tensors: the scaling between bytes and floats, and how far two pictures are apart."""

import numpy as np
import pytest
import torch
from fid.trainer.pixels import from_uint8, psnr_db, to_bytes, to_float, to_uint8


def test_bytes_come_back_from_floats_in_either_layout() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert to_float(every)[[0, 255]].tolist() == [-1, 1]
    assert torch.equal(to_bytes(to_float(every)), every)
    assert to_bytes(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]  # what a generator overshoots is clipped
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    assert from_uint8(images).shape == (2, 3, 8, 8)
    np.testing.assert_array_equal(to_uint8(from_uint8(images)), images)


def test_psnr_of_a_known_error() -> None:
    image = torch.zeros(2, 3, 4, 4)
    target = image.clone()
    target[1] = 0.2  # of a peak of 2: 20 log10(2 / 0.2) = 20 dB
    assert psnr_db(image, target)[1].item() == pytest.approx(20.0, abs=1e-4)
    assert psnr_db(image, target)[0].item() > 100
