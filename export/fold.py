"""Second stage: networks as they run: batch norms folded into convolutions, large weights rounded to FP16."""

import copy
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..trainer.networks.mobilestylegan import Block, DistilledToImage, ToImage

FP16_FROM = 4096
"""Tensors of so many numbers or more are stored in FP16; rounding smaller ones (biases, means) saves nothing."""

FP16_MAX = 65504.0
"""The largest FP16 number."""


def frozen(network: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode, without gradients."""
    return copy.deepcopy(network).eval().requires_grad_(False)


def fold_batch_norms(network: nn.Module, *example: Tensor) -> nn.Module:
    """Return a frozen copy in which every BatchNorm2d that directly follows a convolution is part of that convolution.

    `example` are inputs for one run, which shows what follows what.
    """
    network = frozen(network)
    results: list[tuple[Tensor, nn.Conv2d]] = []
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def remember(conv: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        results.append((output, conv))

    def compare(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        pairs.extend((conv, norm) for output, conv in results if output is inputs[0])

    hooks = [m.register_forward_hook(remember) for m in network.modules() if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(compare) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        network(*example)
    for hook in hooks:
        hook.remove()
    for conv, norm in pairs:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
    folded = {id(norm) for _, norm in pairs}
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if id(child) in folded:
                setattr(parent, name, nn.Identity())
    return network.requires_grad_(False)


def rounded_to_fp16(network: nn.Module) -> nn.Module:
    """Return a frozen copy whose tensors of `FP16_FROM` numbers or more hold only FP16 values; what FP16 cannot hold
    stays."""
    network = frozen(network)
    with torch.no_grad():
        for tensor in chain(network.parameters(), network.buffers()):
            if tensor.is_floating_point() and tensor.numel() >= FP16_FROM and tensor.abs().max() <= FP16_MAX:
                tensor.copy_(tensor.half())
    return network


def with_transposed_wavelets(synthesis: nn.Module) -> nn.Module:
    """Return a frozen copy whose inverse wavelet transforms are transposed convolutions; equal up to float32 rounding.

    The graph of `inverse_haar` is a dozen passes over the map and a shuffle, which the engines on a CPU do not fuse.
    """
    synthesis = frozen(synthesis)
    for module in synthesis.modules():
        if isinstance(module, Block | ToImage | DistilledToImage):
            module.inverse_haar = transposed_haar  # type: ignore[method-assign]
    return synthesis


def transposed_haar(x: Tensor) -> Tensor:
    """Apply `inverse_haar` [N, 4C, H, W] -> [N, C, 2H, 2W] as two transposed convolutions, one kernel per band."""
    c = x.shape[1] // 4
    signs = [[[1, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]]]
    kernels = 0.5 * torch.tensor(signs, dtype=x.dtype, device=x.device)[:, None]
    low = F.conv_transpose2d(x[:, :c], kernels[:1].repeat(c, 1, 1, 1), stride=2, groups=c)
    return low + F.conv_transpose2d(x[:, c:], kernels[1:].repeat(c, 1, 1, 1), stride=2, groups=c)
