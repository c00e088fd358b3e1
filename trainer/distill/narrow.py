"""Makes a distilled generator narrower without training: `fid-train distill --narrow`, which then trains the result.

Layer by layer from the front. Which channels go is decided by optimal brain surgery (Hassibi and Stork 1993) on the
convolution that reads them: of y = W f with f's second moments G, channel j costs |W_j|^2 / (G^-1)_jj once the others
have taken over what they can. The least costly goes, W and G^-1 are updated, and so on. Then the pointwise weights of
the layer are fitted by least squares to what the wide layer gave, from what the narrow layers before it give now, so
that errors are made good instead of added up.
"""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..networks.mobilestylegan import Block, DistilledToImage, Modulation, StyledConv, Synthesis, inverse_haar

RIDGE = 1e-6  # of the mean second moment
Maps = list[Tensor]  # activations [N, C, H, W], batch by batch


@torch.no_grad()
def narrowed(network: Synthesis, widths: Sequence[int], w: Tensor, batch: int = 4) -> Synthesis:
    """Return `network` with blocks of `widths` channels, fitted on w [N, 512]; a few dozen are enough.

    Raises ValueError for a generator without a distilled to-image head and for widths that are larger than its own or
    not divisible by 4.
    """
    head = network.to_image
    if not isinstance(head, DistilledToImage):
        raise ValueError("only a distilled generator can be made narrower")
    widths, own = tuple(widths), network.widths
    if len(widths) != len(own) or any(n < 4 or n > m or n % 4 for n, m in zip(widths, own, strict=True)):
        raise ValueError(f"widths {widths}: expected multiples of 4, at most {own}")
    if widths == own:
        return copy.deepcopy(network)
    result = Synthesis(network.resolution, widths).eval().requires_grad_(False)
    new_head = result.to_image
    assert isinstance(new_head, DistilledToImage)
    copy_fitting(result, network)
    codes = list(w.split(batch))
    wide = [network.conv1(network.constant.expand(len(v), -1, -1, -1), v) for v in codes]
    thin, kept = wide, torch.arange(wide[0].shape[1])
    for index, (block, new) in enumerate(zip(blocks_of(network), blocks_of(result), strict=True)):
        if widths[: index + 1] == network.widths[: index + 1]:  # nothing changed yet
            wide = thin = [block(x, v, v, v) for x, v in zip(wide, codes, strict=True)]
            kept = torch.arange(widths[index])
            continue
        copy_modulation(new.up, block.up, kept)
        wide_up, thin_up = upsampled(wide, block.up, codes), upsampled(thin, new.up, codes)
        kept_up = kept[: len(kept) // 4]  # the low bands come first and go by the number of the channel they make
        inner = [block.conv1(x, v) for x, v in zip(wide_up, codes, strict=True)]
        kept_inner = least_costly([(features(block.conv2, inner, codes), block.conv2.weight)], widths[index])
        thin = fit_conv(new.conv1, block.conv1, kept_up, kept_inner, wide_up, thin_up, codes)
        outer = [block.conv2(x, v) for x, v in zip(inner, codes, strict=True)]
        kept = kept_for_next(network, index, outer, codes, widths[index])
        thin = fit_conv(new.conv2, block.conv2, kept_inner, kept, inner, thin, codes)
        wide = outer
    fit_conv(new_head.conv, head.conv, kept, torch.arange(len(head.conv.weight)), wide, thin, codes)
    copy_modulation(new_head.skip_modulation, head.skip_modulation, kept)
    target = [F.conv2d(x, head.skip) for x in modulated(wide, head.skip_modulation, codes)]
    weight, bias = least_squares(modulated(thin, new_head.skip_modulation, codes), target)
    new_head.skip.copy_(weight)
    new_head.colour.bias.add_(bias)
    return result


def blocks_of(network: Synthesis) -> list[Block]:
    """Return the blocks, by their type."""
    return [block for block in network.blocks if isinstance(block, Block)]


def kept_for_next(network: Synthesis, index: int, outer: Maps, codes: Maps, width: int) -> Tensor:
    """Return which outputs of block `index` stay: whole quadruples of wavelet bands for a block, channels for the
    head."""
    head = network.to_image
    assert isinstance(head, DistilledToImage)
    if index + 1 == len(network.blocks):
        readers = [
            (modulated(outer, head.skip_modulation, codes), head.skip),
            (features(head.conv, outer, codes), head.conv.weight),
        ]
        return least_costly(readers, width)
    following = blocks_of(network)[index + 1]
    inputs = features(following.conv1, upsampled(outer, following.up, codes), codes)
    low = least_costly([(inputs, following.conv1.weight)], width // 4)
    details = following.conv1.weight.shape[1] + 3 * low[:, None] + torch.arange(3)
    return torch.cat([low, details.flatten()])


def least_costly(readers: Sequence[tuple[Maps, Tensor]], count: int) -> Tensor:
    """Return the `count` channels to keep, in order.

    `readers` are the convolutions that read them: features [N, C, H, W] and weight [D, C, 1, 1] of each. Several count
    relative to the size of what they give.
    """
    states, channels = [], readers[0][1].shape[1]
    for maps, weight in readers:
        products = torch.stack([rows @ rows.T for rows in map(as_rows, maps)])
        moments = products.sum(0).double() / sum(x[:, 0].numel() for x in maps)
        matrix = weight.flatten(1).double()
        size = torch.einsum("dc,ce,de->", matrix, moments, matrix)
        ridge = RIDGE * moments.diagonal().mean() * torch.eye(channels, dtype=torch.float64)
        states.append((matrix / size.sqrt(), torch.linalg.inv(moments + ridge)))
    alive = torch.ones(channels, dtype=torch.bool)
    for _ in range(channels - count):
        cost = torch.stack([matrix.square().sum(0) / inverse.diagonal() for matrix, inverse in states]).sum(0)
        j = int(cost.masked_fill(~alive, torch.inf).argmin())
        alive[j] = False
        for matrix, inverse in states:
            row = inverse[j] / inverse[j, j]
            matrix -= matrix[:, j : j + 1] * row
            inverse -= inverse[:, j : j + 1] * row
            inverse[j, j] = 1
    return alive.nonzero().flatten()


def fit_conv(
    new: StyledConv, old: StyledConv, kept_in: Tensor, kept_out: Tensor, wide: Maps, thin: Maps, codes: Maps
) -> Maps:
    """Fill a convolution that keeps some inputs and outputs of `old`; returns what it gives for `thin`."""
    assert new.depthwise is not None
    assert old.depthwise is not None
    copy_modulation(new.modulation, old.modulation, kept_in)
    new.depthwise.copy_(old.depthwise[kept_in])
    new.noise.copy_(old.noise)
    weight = old.weight[kept_out]
    target = [F.conv2d(x, weight, old.bias.flatten()[kept_out]) for x in features(old, wide, codes)]
    weight, bias = least_squares(features(new, thin, codes), target)
    new.weight.copy_(weight)
    new.bias.copy_(bias[None, :, None, None])
    return [new(x, v) for x, v in zip(thin, codes, strict=True)]


def least_squares(maps: Maps, targets: Maps) -> tuple[Tensor, Tensor]:
    """Return pointwise weight [D, C, 1, 1] and bias [D] that take maps [N, C, H, W] to targets [N, D, H, W]."""
    channels = maps[0].shape[1] + 1
    gram, moment = torch.zeros(channels, channels, dtype=torch.float64), torch.zeros(())
    for x, y in zip(maps, targets, strict=True):
        rows = F.pad(as_rows(x), (0, 0, 0, 1), value=1.0)
        gram, moment = gram + rows @ rows.T, moment + (rows @ as_rows(y).T).double()
    # with constant features the bias is among them already, and the ridge decides
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(channels, dtype=torch.float64)
    solution = torch.linalg.solve(gram + ridge, moment).float()
    return solution[:-1].T[:, :, None, None], solution[-1]


def as_rows(maps: Tensor) -> Tensor:
    """Return maps [N, C, H, W] as [C, N * H * W]."""
    return maps.transpose(0, 1).flatten(1)


def modulated(maps: Maps, modulation: Modulation, codes: Maps) -> Maps:
    """Return maps with their channels scaled by the style of w."""
    return [x * modulation(v) for x, v in zip(maps, codes, strict=True)]


def upsampled(maps: Maps, modulation: Modulation, codes: Maps) -> Maps:
    """Return what a block's first convolution reads."""
    return [inverse_haar(x) for x in modulated(maps, modulation, codes)]


def features(conv: StyledConv, maps: Maps, codes: Maps) -> Maps:
    """Return what the pointwise part of a styled convolution reads."""
    assert conv.depthwise is not None
    return [F.conv2d(x, conv.depthwise, padding=1, groups=x.shape[1]) for x in modulated(maps, conv.modulation, codes)]


def copy_modulation(new: Modulation, old: Modulation, kept: Tensor) -> None:
    """Copy the styles of the kept channels; the gain, which goes by the width, stays with the stored numbers."""
    new.weight.copy_(old.weight[kept] * (old.gain / new.gain))
    new.bias.copy_(old.bias[:, kept] * (old.gain / new.gain))


def copy_fitting(new: Synthesis, old: Synthesis) -> None:
    """Copy every tensor whose shape is the same in both."""
    state = old.state_dict()
    new.load_state_dict({k: state[k] for k, v in new.state_dict().items() if state[k].shape == v.shape}, strict=False)
