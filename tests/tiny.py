"""Networks of fid's shapes with a few thousand weights, so that a whole export takes seconds."""

import copy
from dataclasses import replace

import torch
import torch.nn.functional as F
from fid.export.read import Networks
from torch import Tensor, nn


class TinyAttributes(nn.Module):
    """Crop [N, 3, 256, 256] -> [N, 512], with a batch norm to fold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 5, 4, 2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.out = nn.Linear(8 * 64, 512)

    def forward(self, crop: Tensor) -> Tensor:
        x = F.leaky_relu(self.norm(self.conv(F.avg_pool2d(crop, 4))), 0.1)
        return self.out(F.avg_pool2d(x, 2).flatten(1))


class TinyMapper(nn.Module):
    """Codes [N, 128] and [N, 512], with `appearance` another [N, 512] -> w [N, 512]."""

    w_mean: Tensor
    w_std: Tensor

    def __init__(self, appearance: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(640, 512)
        self.appearance = nn.Linear(512, 512) if appearance else None
        self.register_buffer("w_mean", torch.randn(512))
        self.register_buffer("w_std", torch.rand(512) + 0.5)

    def forward(self, identity: Tensor, attributes: Tensor, appearance: Tensor | None = None) -> Tensor:
        x = self.layer(torch.cat((identity, attributes), 1))
        if self.appearance is not None:
            x = x + self.appearance(appearance)
        return self.w_mean + self.w_std * torch.tanh(x)


N_STYLES = 2


class TinySynthesis(nn.Module):
    """w [N, 512] or W+ [N, 2, 512] -> image [N, 3, 256, 256] in about [-1, 1], smooth, with a constant that is expanded
    to the batch."""

    n_styles = N_STYLES

    def __init__(self) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.randn(1, 12, 16, 16))
        self.style = nn.Linear(512, 12)
        self.conv = nn.Conv2d(12, 12, 3, padding=1)

    def forward(self, w: Tensor) -> Tensor:
        first, last = (w, w) if w.ndim == 2 else (w[:, 0], w[:, -1])
        style = self.style(first) + 0.5 * self.style(last)
        x = self.constant.expand(w.shape[0], -1, -1, -1) * style[:, :, None, None]
        x = torch.tanh(F.pixel_shuffle(self.conv(x), 2))
        return F.interpolate(x, scale_factor=8.0, mode="bilinear")


def tiny_networks(appearance: bool = False, light: bool = False) -> Networks:
    """Always the same random weights; the batch norm has seen data, so folding it changes the convolution.

    The light generator has another constant.
    """
    torch.manual_seed(0)
    attributes = TinyAttributes()
    attributes.train()(torch.rand(4, 3, 256, 256))
    networks = Networks(attributes, TinyMapper(appearance), TinySynthesis(), 256, {"trained": {"sha256": "00"}})
    if light:
        narrow = copy.deepcopy(networks.synthesis)
        nn.init.normal_(narrow.constant)
        networks = replace(networks, light=narrow)
    for module in (networks.attributes, networks.mapper, networks.synthesis):
        module.eval()
    return networks
