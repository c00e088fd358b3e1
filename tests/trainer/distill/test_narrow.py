"""Narrowing: exact where channels are spare, the right channels in closed form, and training what comes out."""

import pytest
import torch
from fid.trainer.distill import narrow
from fid.trainer.networks.mobilestylegan import DistilledToImage, Modulation, StyledConv, Synthesis

WIDTHS = (512, 512, 256, 128)
SPARE = 2  # every second channel is read by nobody


def spared(weight: torch.Tensor) -> None:
    """Takes every second input of a pointwise convolution out of use."""
    weight[:, ::SPARE] = 0


@pytest.fixture(scope="module")
def wide():
    """A 128 px generator with random weights, in whose last two blocks only half or a quarter of the channels count."""
    torch.manual_seed(0)
    network = Synthesis(128).eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, StyledConv):
            torch.nn.init.normal_(module.weight, std=0.5)
            torch.nn.init.normal_(module.bias, std=0.1)
            torch.nn.init.normal_(module.noise, std=0.1)
            if module.depthwise is not None:
                torch.nn.init.normal_(module.depthwise, std=0.3)
        if isinstance(module, Modulation):
            torch.nn.init.normal_(module.weight, std=0.02)
            torch.nn.init.constant_(module.bias, 1 / module.gain / module.weight.shape[0] ** 0.5)
    torch.nn.init.normal_(network.constant)
    torch.nn.init.normal_(network.to_image.skip, std=0.1)
    torch.nn.init.normal_(network.to_image.detail.weight, std=0.1)
    third, last, head = network.blocks[2], network.blocks[3], network.to_image
    for weight in (third.conv2.weight, last.conv1.weight, last.conv2.weight, head.skip, head.conv.weight):
        spared(weight)
    for weight in (last.conv2.weight, head.skip, head.conv.weight):
        spared(weight[:, 1::2])  # and of the rest every second one
    return network


@pytest.fixture(scope="module")
def w():
    return torch.randn(6, 512, generator=torch.Generator().manual_seed(1))


def test_spare_channels_go_without_a_trace(wide, w):
    network = narrow.narrowed(wide, WIDTHS, w[:4])
    assert network.widths == WIDTHS
    with torch.no_grad():
        expected, found = wide(w[4:]), network(w[4:])
    assert expected.std() > 0.05
    assert (found - expected).square().mean() < 1e-3 * expected.var()


def test_the_same_widths_are_the_same_network(wide, w):
    network = narrow.narrowed(wide, wide.widths, w[:1])
    assert network is not wide
    with torch.no_grad():
        torch.testing.assert_close(network(w[4:]), wide(w[4:]), atol=0, rtol=0)


def test_fewer_channels_than_needed_still_give_something_like_it(wide, w):
    network = narrow.narrowed(wide, (512, 512, 128, 64), w[:4])
    with torch.no_grad():
        expected, found = wide(w[4:]), network(w[4:])
    assert (found - expected).square().mean() < 0.7 * expected.var()


def test_independent_channels_stay_by_their_share():
    features = torch.eye(4).reshape(1, 4, 2, 2) * torch.tensor([3.0, 1.0, 2.0, 1.0])[None, :, None, None]
    weight = torch.tensor([[1.0, 2.9, 0.1, 1.2]])[..., None, None]  # shares 3, 2.9, 0.2, 1.2
    assert narrow.least_costly([([features], weight)], 2).tolist() == [0, 1]
    assert narrow.least_costly([([features], weight)], 3).tolist() == [0, 1, 3]


def test_a_twin_costs_nothing_however_much_it_gives():
    random = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    features = torch.cat([random, random[:, :1]], dim=1)  # 3 repeats 0
    weight = torch.tensor([[5.0, 0.5, 0.7, 5.0]])[..., None, None]
    kept = narrow.least_costly([([features], weight)], 3).tolist()
    assert len({0, 3} & set(kept)) == 1
    assert {1, 2} < set(kept)


def test_least_squares_finds_a_known_map():
    x = torch.randn(2, 5, 6, 6, generator=torch.Generator().manual_seed(2))
    weight, bias = torch.randn(3, 5, 1, 1), torch.randn(3)
    found = narrow.least_squares(
        [x[:1], x[1:]], [torch.nn.functional.conv2d(part, weight, bias) for part in (x[:1], x[1:])]
    )
    torch.testing.assert_close(found[0], weight, atol=2e-3, rtol=0)
    torch.testing.assert_close(found[1], bias, atol=2e-3, rtol=0)


@pytest.mark.parametrize("widths", [(512, 512, 512), (512, 512, 512, 516), (512, 512, 256, 130), (512, 512, 256, 0)])
def test_widths_that_do_not_fit(wide, w, widths):
    with pytest.raises(ValueError, match="expected multiples of 4, at most"):
        narrow.narrowed(wide, widths, w)


def test_the_published_generator_has_nothing_to_fit(w):
    network = Synthesis(128)
    network.to_image = torch.nn.Identity()
    assert not isinstance(network.to_image, DistilledToImage)
    with pytest.raises(ValueError, match="only a distilled generator"):
        narrow.narrowed(network, WIDTHS, w)
