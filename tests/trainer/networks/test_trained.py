"""The networks that training changes: their sizes, and what they take."""

import torch
from fid.trainer.networks.trained import AttributeEncoder, Mapper, WDiscriminator
from fid.trainer.weights.trained import parameter_counts


def test_networks_have_the_sizes_that_the_bundle_promises():
    crop = torch.zeros(2, 3, 256, 256)
    code = AttributeEncoder()(crop)
    assert code.shape == (2, 512)
    w = Mapper()(torch.zeros(2, 128), code)
    assert w.shape == (2, 512)
    assert WDiscriminator()(w).shape == (2,)
    assert parameter_counts() == {"E_attr": 5_820_160, "M": 3_354_160}


def test_encoder_averages_256_px_to_128_px():
    torch.manual_seed(0)
    encoder = AttributeEncoder().eval()
    crop = torch.rand(1, 3, 256, 256) * 2 - 1
    torch.testing.assert_close(encoder(crop), encoder(torch.nn.functional.avg_pool2d(crop, 2)))
