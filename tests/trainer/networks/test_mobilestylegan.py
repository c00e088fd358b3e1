"""MobileStyleGAN in torch: equal to the published IR in OpenVINO, differentiable, and cut at smaller resolutions."""

import numpy as np
import openvino
import pytest
import torch
from fid.trainer.networks.mobilestylegan import DistilledToImage, Mapping, Synthesis, haar, inverse_haar, read_constants

Z = torch.randn(3, 512, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)  # for the heads that tests fill


@pytest.fixture(scope="module")
def folder(fetched):
    return fetched("generator")


@pytest.fixture(scope="module")
def published(folder):
    """`published(name, values)` is what the published IR answers in OpenVINO, plain float32, one value at a time."""
    core = openvino.Core()

    def run(name, values):
        model = core.compile_model(folder / f"{name}Network.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return torch.cat([torch.from_numpy(model([value.numpy()])[0].copy()) for value in values.split(1)])

    return run


@pytest.fixture(scope="module")
def mapping(folder):
    return Mapping.load(folder)


@pytest.fixture(scope="module")
def full(folder):
    return Synthesis.load(1024, folder)


def test_mapping_equals_the_published_one(mapping, published):
    torch.testing.assert_close(mapping(Z), published("Mapping", Z), atol=1e-4, rtol=0)


def test_synthesis_equals_the_published_one(mapping, published, full):
    # Two float32 programs over 20 layers differ by rounding, most where a convolution is done by Winograd's method, so
    # the largest of three million values is held to 5e-4 (a sixteenth of a grey level) and the mean to 1e-5; in float64
    # the same network differs from the IR by the IR's own rounding.
    w = mapping(Z[:1])
    assert full.n_styles == 23
    assert sum(p.numel() for p in full.parameters()) == 8_005_404
    expected = published("Synthesis", w)
    with torch.no_grad():
        difference = (full(w) - expected).abs()
    figures = f"max {difference.max():.3g}, mean {difference.mean():.3g}"
    assert difference.max() < 5e-4, figures
    assert difference.mean() < 1e-5, figures


def test_small_generator_is_the_published_one_up_to_its_head(mapping, folder, full):
    w = mapping(Z[:2])
    small = Synthesis.load(256, folder)
    with torch.no_grad():
        x = full.conv1(full.constant.expand(2, -1, -1, -1), w)
        for block in full.blocks[:5]:
            x = block(x, w, w, w)
        torch.testing.assert_close(small.trunk(w, 5), x)
        assert small(w).shape == (2, 3, 256, 256)
    assert isinstance(small.to_image, DistilledToImage)
    assert Synthesis(128).n_styles == 14
    with pytest.raises(ValueError, match="resolution 512"):
        Synthesis(512)


def test_w_plus_of_equal_styles_is_w(mapping, folder):
    w, network = mapping(Z[:2]), Synthesis.load(128, folder)
    torch.nn.init.normal_(network.to_image.skip, std=0.01)
    with torch.no_grad():
        torch.testing.assert_close(network(w[:, None].expand(-1, 14, -1)), network(w))
        mixed = network(torch.cat((w[:1, None].expand(-1, 7, -1), w[1:, None].expand(-1, 7, -1)), dim=1))
        assert (mixed - network(w[:1])).abs().mean() > 0.01
    with pytest.raises(ValueError, match="W\\+ with 5 styles: this generator has 14"):
        network(w[:, None].expand(-1, 5, -1))


def test_gradient_reaches_w_and_is_the_finite_difference(mapping, folder):
    network = Synthesis.load(128, folder).double()
    torch.nn.init.normal_(network.to_image.skip, std=0.01)
    w = mapping(Z[:1]).double().requires_grad_()
    weight = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(1)).double()
    (gradient,) = torch.autograd.grad((network(w) * weight).sum(), w)
    direction = torch.randn(512, generator=torch.Generator().manual_seed(2)).double()
    step = 1e-8  # at 1e-6 so many of the leaky ReLUs change sides that the slope of the sum is 0.4 % off
    with torch.no_grad():
        slope = ((network(w + step * direction) - network(w - step * direction)) * weight).sum() / (2 * step)
    torch.testing.assert_close(gradient[0] @ direction, slope, rtol=1e-4, atol=1e-6)


def test_trunk_and_tail_are_the_whole(mapping, folder):
    w, network = mapping(Z[:1]), Synthesis.load(128, folder)
    torch.nn.init.normal_(network.to_image.skip, std=0.01)
    with torch.no_grad():
        for blocks in (1, 4):
            torch.testing.assert_close(network.tail(network.trunk(w, blocks), w, blocks), network(w), atol=0, rtol=0)


def test_widths_are_read_from_kept_tensors():
    network = Synthesis(128, (512, 64, 32, 16))
    assert Synthesis.shaped_as(network.state_dict(), 128).widths == (512, 64, 32, 16)
    named = {f"synthesis.{name}": tensor for name, tensor in network.state_dict().items()}
    assert Synthesis.shaped_as(named, 128, "synthesis.").widths == (512, 64, 32, 16)
    assert Synthesis.shaped_as({}, 128).widths == (512, 512, 512, 512)
    with pytest.raises(ValueError, match="expected 4 at 128 px"):
        Synthesis(128, (512, 64))


def test_haar_known_values_and_inverse():
    image = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    # low, vertical (top - bottom), horizontal (left - right), diagonal detail, each halved
    torch.testing.assert_close(haar(image).flatten(), torch.tensor([6.0, -3.0, -2.0, 1.0]))
    picture = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(inverse_haar(haar(picture)), picture)
    torch.testing.assert_close(haar(picture).square().sum(), picture.square().sum())  # orthonormal


def test_a_short_weights_file_is_told(folder, tmp_path):
    (tmp_path / "MappingNetwork.xml").write_bytes((folder / "MappingNetwork.xml").read_bytes())
    (tmp_path / "MappingNetwork.bin").write_bytes((folder / "MappingNetwork.bin").read_bytes()[:5_000_000])
    with pytest.raises(ValueError, match=r"MappingNetwork\.bin ends before"):
        read_constants(tmp_path / "MappingNetwork.xml")


def test_mapping_normalises_z(mapping):
    torch.testing.assert_close(mapping(Z * 3), mapping(Z), atol=1e-5, rtol=1e-5)
    assert np.isclose(mapping(Z).abs().mean().item(), 0.4, atol=0.3)
