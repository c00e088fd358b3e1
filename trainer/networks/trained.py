"""The networks that training changes: attribute encoder E_attr (light form), mapper M, W discriminator D_W.

Images are float NCHW RGB in [-1, 1]; codes are float [N, size].
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IDENTITY_SIZE = 128  # of SFace; another encoder has its own
ATTRIBUTES_SIZE = 512
W_SIZE = 512


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm; the first may halve the resolution."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(c_out)
        self.skip = nn.Conv2d(c_in, c_out, 1, bias=False) if (stride, c_in) != (1, c_out) else None
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.leaky_relu(self.norm1(self.conv1(x)), 0.1)))
        if self.skip is not None:
            x = self.skip(F.avg_pool2d(x, 2) if self.stride == 2 else x)
        return F.leaky_relu(x + y, 0.1)


class AttributeEncoder(nn.Module):
    """The light E_attr for live use: crop [N, 3, S, S] with S = 128 or 256, RGB in [-1, 1] -> attribute code [N, 512].

    A crop of 256 px is averaged to 128 px first. The last 4x4 map is kept as a map, since pose and expression are where
    things are.
    """

    size = 128
    widths = (32, 64, 128, 256, 384)

    def __init__(self) -> None:
        super().__init__()
        first, *rest = self.widths
        self.stem = nn.Conv2d(3, first, 5, 2, 2, bias=False)
        self.norm = nn.BatchNorm2d(first)
        blocks: list[nn.Module] = []
        for c_in, c_out in zip(self.widths, rest, strict=False):
            blocks += [ResidualBlock(c_in, c_out, 2)]
            if c_out in (128, 256):
                blocks += [ResidualBlock(c_out, c_out, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.narrow = nn.Conv2d(self.widths[-1], 96, 1)
        self.out = nn.Linear(96 * 16, ATTRIBUTES_SIZE)

    def forward(self, crop: Tensor) -> Tensor:
        if crop.shape[-1] != self.size:
            crop = F.avg_pool2d(crop, crop.shape[-1] // self.size)
        x = F.leaky_relu(self.norm(self.stem(crop)), 0.1)
        x = F.leaky_relu(self.narrow(self.blocks(x)), 0.1)
        return self.out(x.flatten(1))


class Mapper(nn.Module):
    """M of equation (1): a 4-layer LeakyReLU perceptron from z = [identity code, attribute code] to w [N, 512].

    With `appearance`, z also holds so many numbers of the attribute code of the *identity* image: what the identity
    code does not tell of a person (skin, hair, age) and E_attr sees. With `n_styles` it answers in W+ instead,
    [N, n_styles, 512]. The unit identity code is scaled to unit variance per entry; the last layer answers in standard
    deviations of W around its mean.
    """

    LAYERS = 4

    w_mean: Tensor
    w_std: Tensor

    def __init__(
        self,
        attributes_size: int = ATTRIBUTES_SIZE,
        n_styles: int | None = None,
        width: int = 1024,
        appearance: int = 0,
        identity_size: int = IDENTITY_SIZE,
    ) -> None:
        super().__init__()
        self.n_styles, self.identity_size = n_styles, identity_size
        self.appearance = nn.Linear(attributes_size, appearance) if appearance else None
        hidden = (width,) * (self.LAYERS - 1)
        sizes = (identity_size + appearance + attributes_size, *hidden, W_SIZE * (n_styles or 1))
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.kaiming_normal_(layer.weight, a=0.2)
            nn.init.zeros_(layer.bias)
        self.register_buffer("w_mean", torch.zeros(W_SIZE))
        self.register_buffer("w_std", torch.ones(W_SIZE))

    def forward(self, identity: Tensor, attributes: Tensor, appearance: Tensor | None = None) -> Tensor:
        """Map identity codes [N, identity_size], attribute codes [N, A] of the attribute images and, where it takes
        them, of the identity images -> w."""
        parts = [identity * math.sqrt(self.identity_size)]
        if self.appearance is not None:
            parts.append(self.appearance(appearance))
        x = torch.cat((*parts, attributes), dim=1)
        *hidden, last = self.layers
        for layer in hidden:
            x = F.leaky_relu(layer(x), 0.2)
        x = last(x)
        if self.n_styles:
            x = x.unflatten(1, (self.n_styles, W_SIZE))
        return self.w_mean + self.w_std * x


class WDiscriminator(nn.Module):
    """D_W: w [N, 512] -> logit [N]; tells the mapper's w from the generator's own. Works on standardised w.

    W+ is judged style by style: [N, n_styles, 512] -> [N, n_styles].
    """

    w_mean: Tensor
    w_std: Tensor

    def __init__(self, width: int = 512) -> None:
        super().__init__()
        sizes = (W_SIZE, width, width, width, 1)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.register_buffer("w_mean", torch.zeros(W_SIZE))
        self.register_buffer("w_std", torch.ones(W_SIZE))

    def forward(self, w: Tensor) -> Tensor:
        x = (w - self.w_mean) / self.w_std
        *hidden, last = self.layers
        for layer in hidden:
            x = F.leaky_relu(layer(x), 0.2)
        return last(x).squeeze(-1)
