"""Frozen networks of fid's shapes with a few thousand weights, so that many training steps take seconds."""

import math

import torch
import torch.nn.functional as F
from fid.trainer.data.dataset import FrozenNetworks
from torch import Tensor, nn

POINTS = 5


class TinySynthesis(nn.Module):
    """w [N, 512], or the mean of W+ [N, n_styles, 512] -> a blurred mosaic [N, 3, R, R]."""

    def __init__(self, resolution: int) -> None:
        super().__init__()
        self.resolution, self.n_styles = resolution, 2 * int(math.log2(resolution))
        self.colours = nn.Linear(512, 3 * 8 * 8)

    def forward(self, w: Tensor) -> Tensor:
        w = w if w.ndim == 2 else w.mean(1)
        mosaic = torch.tanh(self.colours(w)).unflatten(1, (3, 8, 8))
        return F.interpolate(mosaic, (self.resolution, self.resolution), mode="bilinear")


class TinyIdentity(nn.Module):
    """Crop [N, 3, S, S] -> unit codes [N, 128]."""

    code_size = 128

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Linear(3 * 8 * 8, 128)

    def forward(self, crop: Tensor) -> Tensor:
        return F.normalize(self.code(F.adaptive_avg_pool2d(crop, 8).flatten(1)), dim=1)


class TinyLandmarks(nn.Module):
    """Crop [N, 3, S, S] -> points [N, 5, 2], around the middle of a 256 px crop."""

    inner_face: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Linear(3 * 8 * 8, 2 * POINTS)
        self.register_buffer("inner_face", torch.arange(POINTS))

    def forward(self, crop: Tensor) -> Tensor:
        return 128 + 20 * self.points(F.adaptive_avg_pool2d(crop, 8).flatten(1)).unflatten(1, (POINTS, 2))


def tiny_frozen(resolution: int = 128) -> FrozenNetworks:
    """Always the same networks."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = nn.Linear(512, 512), TinySynthesis(resolution), TinyIdentity(), TinyLandmarks()
    for network in networks:
        network.requires_grad_(False)
    samples = networks[0](torch.randn(2000, 512, generator=torch.Generator().manual_seed(0)))
    return FrozenNetworks(*networks, w_mean=samples.mean(0), w_std=samples.std(0))
