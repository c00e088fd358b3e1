"""Vary crops as cameras do: blur, noise, light, compression."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .dataset import ALL


def augment(crop: Tensor, generator: torch.Generator, n: int | None = None, rows: slice = ALL) -> Tensor:
    """Do to an attribute image what a camera and an aligner do: shift and scale, blur, compression, light, noise.

    Crop [N, 3, S, S] in [-1, 1], same out. Half of the images are left alone. In the rest misalignment is at most 1 %
    of the side and 2 % of scale; blur is a lower resolution; compression rounds the cosine coefficients of 8 px blocks
    as JPEG does; light is gain and offset per channel of up to 10 %; noise has up to 5 grey levels. The crop may be the
    `rows` of a batch of `n` images: the random numbers are drawn for all of it.
    """
    n, size = n or len(crop), crop.shape[-1]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(n, *shape, generator=generator))[rows].to(crop.device)

    with torch.autocast(crop.device.type, enabled=False):  # in bf16 a grid is off by a third of a pixel
        theta = torch.zeros(len(crop), 2, 3, device=crop.device)
        theta[:, 0, 0] = theta[:, 1, 1] = uniform(0.98, 1.02)
        theta[:, :, 2] = uniform(-0.02, 0.02, 2)
        grid = F.affine_grid(theta, list(crop.shape), align_corners=False)
        changed = F.grid_sample(crop, grid, padding_mode="reflection", align_corners=False)
        small = int((0.4 + 0.6 * torch.rand(1, generator=generator).item()) * size)
        if small < size:
            blurred = F.interpolate(changed, small, mode="area")
            changed = F.interpolate(blurred, size, mode="bilinear", align_corners=False)
        light = uniform(0.9, 1.1, 3, 1, 1) * changed + uniform(-0.1, 0.1, 3, 1, 1)
        noise = _noise((n, *crop.shape[1:]), generator, crop.device)[rows] * uniform(0, 0.04, 1, 1, 1)
        chosen = (uniform(0, 1) < 0.5)[:, None, None, None]
        return torch.where(chosen, (_compressed(light, uniform(0, 1)) + noise).clamp(-1, 1), crop)


def _noise(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal numbers on a device; a GPU draws its own, from a seed that the CPU's generator gives."""
    if device.type == "cpu":
        return torch.randn(shape, generator=generator)
    seed = int(torch.randint(1 << 62, (), generator=generator))
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)


def _compressed(image: Tensor, strength: Tensor) -> Tensor:
    """JPEG's loss without its codec: cosine coefficients of 8 px blocks are rounded, fine ones more coarsely.

    Image [N, 3, S, S] in [-1, 1], strength [N] in 0..1 (none to about quality 50).
    """
    n, channels, height, width = image.shape
    k = torch.arange(8, device=image.device, dtype=image.dtype)
    cosines = torch.cos(torch.pi * (k[None] + 0.5) * k[:, None] / 8) * 0.5
    cosines[0] *= 0.5**0.5
    blocks = image.unfold(2, 8, 8).unfold(3, 8, 8)  # [N, 3, S/8, S/8, 8, 8]
    coefficients = cosines @ blocks @ cosines.T
    step = (0.1 + 0.05 * (k[:, None] + k[None])) * strength.view(-1, 1, 1, 1, 1, 1).clamp_min(1e-3)
    rounded = (coefficients / step).round() * step
    restored = cosines.T @ rounded @ cosines
    return restored.permute(0, 1, 2, 4, 3, 5).reshape(n, channels, height, width)
