"""The generator G of the first StyleGAN (Karras et al. 2019, arXiv 1812.04948), which the paper uses: any resolution
and any number of channels.

`Synthesis` takes w [N, 512], or W+ [N, n_styles, 512], to an image [N, 3, R, R], RGB, about [-1, 1]; the mapping
network is the one of `mobilestylegan`. Both are frozen: `from_stylegan` reads them from the user's file.

A layer is convolution, noise, bias, leaky ReLU and AdaIN (Huang and Belongie 2017), equation (1) of StyleGAN's paper:

    AdaIN(x, y) = y_s (x - mean(x)) / std(x) + y_b,    [y_s, y_b] = A(w), of each picture and channel.

Up-sampling is a doubling of pixels before the convolution, or one with the four kernels that such a pair sums up to:
both are a transposed convolution with a 4x4 kernel. A 3x3 blur follows. Gains of equalised learning rates are part of
the stored numbers. Noise is a constant picture or left out, so an image is a function of w alone.
"""

from collections.abc import Mapping as Tensors
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .mobilestylegan import W_SIZE, per_style

EPSILON = 1e-8  # of NVIDIA's instance norm
SLOPE = 0.2  # of the leaky ReLU
BLUR = (1.0, 2.0, 1.0)  # the filter along a side, before it is brought to sum 1


class AdaIN(nn.Module):
    """Equation (1): a map [N, C, H, W] and w [N, 512] -> the map with the mean and the deviation that w asks for."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.affine = nn.Linear(W_SIZE, 2 * channels)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """`x`: normalised already."""
        scale, shift = self.affine(w)[:, :, None, None].chunk(2, dim=1)
        return x * scale + shift


def normalised(x: Tensor, epsilon: float) -> Tensor:
    """Return a map [N, C, H, W] with mean 0 and variance 1 in each picture and channel, float32."""
    x = x.float()  # in bfloat16 the sums of a large map lose too much
    x = x - x.mean((2, 3), keepdim=True)
    variance = x.square().mean((2, 3), keepdim=True)
    # (v + e)^-1/2, written so that the exporter does not take a small e for nothing
    return x * ((variance * (1 / epsilon) + 1).rsqrt() * epsilon**-0.5)


class StyledConv(nn.Module):
    """3x3 convolution, noise, bias, leaky ReLU, AdaIN; with `up` it doubles the resolution and blurs."""

    noise: Tensor | None
    blur: Tensor

    def __init__(
        self, c_in: int, c_out: int, resolution: int, *, up: bool, noise: bool, bias_first: bool, epsilon: float
    ) -> None:
        """`resolution`: of the output, px. `bias_first`: the bias is blurred, too, as in rosinality's networks."""
        super().__init__()
        self.up, self.bias_first, self.epsilon = up, bias_first, epsilon
        self.weight = nn.Parameter(torch.zeros(*((c_in, c_out, 4, 4) if up else (c_out, c_in, 3, 3))))
        self.bias = nn.Parameter(torch.zeros(c_out))
        self.noise_strength = nn.Parameter(torch.zeros(1, c_out, 1, 1)) if noise else None
        self.register_buffer("noise", torch.zeros(1, 1, resolution, resolution) if noise else None)
        self.style = AdaIN(c_out)
        if up:
            line = torch.tensor(BLUR) / sum(BLUR)
            self.register_buffer("blur", torch.outer(line, line).expand(c_out, 1, 3, 3).clone())

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Map x [N, c_in, H, W], w [N, 512] -> [N, c_out, H, W], or twice the height and width."""
        bias = self.bias if self.bias_first else None
        if self.up:
            x = F.conv_transpose2d(x, self.weight, bias, stride=2, padding=1)
            x = F.conv2d(x, self.blur, padding=1, groups=len(self.blur))
        else:
            x = F.conv2d(x, self.weight, bias, padding=1)
        if self.noise is not None and self.noise_strength is not None:
            # as many as there are pictures: engines would store the product with the strengths otherwise
            x = x + self.noise_strength * self.noise.expand(x.shape[0], -1, -1, -1)
        if bias is None:
            x = x + self.bias[:, None, None]
        return self.style(normalised(F.leaky_relu(x, SLOPE), self.epsilon), w)


class Synthesis(nn.Module):
    """The synthesis network: w [N, 512] or W+ [N, n_styles, 512] -> image [N, 3, R, R], RGB, about [-1, 1].

    Raises ValueError for a resolution that is no power of two up to that of the blocks, and for a W+ with another
    number of styles.
    """

    def __init__(
        self,
        channels: Sequence[int],
        resolution: int | None = None,
        *,
        noise: bool = True,
        bias_first: bool = False,
        epsilon: float = EPSILON,
    ) -> None:
        """`channels`: of the blocks at 4, 8, 16, ... px. `resolution`: R; where it is less than that of the last block,
        its image is averaged down. `bias_first`: see `StyledConv`. `epsilon`: of the instance norm."""
        super().__init__()
        self.native = 4 << (len(channels) - 1)  # px
        self.resolution = resolution or self.native
        if self.resolution < 4 or self.native % self.resolution:
            raise ValueError(f"resolution {resolution}: expected {self.native} divided by a power of two")
        self.n_styles = 2 * len(channels)
        self.constant = nn.Parameter(torch.zeros(1, channels[0], 4, 4))  # normalised: the first layer has no w before
        self.style = AdaIN(channels[0])
        layers = [(channels[0], channels[0], 4, False)]
        for i, (c_in, c_out) in enumerate(pairwise(channels)):
            layers += [(c_in, c_out, 8 << i, True), (c_out, c_out, 8 << i, False)]
        options = {"noise": noise, "bias_first": bias_first, "epsilon": epsilon}
        self.layers = nn.ModuleList(StyledConv(a, b, side, up=up, **options) for a, b, side, up in layers)
        self.to_image = nn.Conv2d(channels[-1], 3, 1)

    def forward(self, w: Tensor) -> Tensor:
        first, *rest = per_style(w, self.n_styles)
        x = self.style(self.constant, first)
        for layer, style in zip(self.layers, rest, strict=True):
            x = layer(x, style)
        image = self.to_image(x)
        return image if self.resolution == self.native else F.avg_pool2d(image, self.native // self.resolution)


def synthesis_from(
    weights: Tensors[str, Tensor],
    resolution: int | None = None,
    *,
    noise: bool = True,
    bias_first: bool = False,
    epsilon: float = EPSILON,
) -> Synthesis:
    """Return the synthesis network of weights under the names of `from_stylegan`, gains included: `const`, `torgb.*`
    and `b4.conv0.bias`, `b8.conv0.weight` etc.

    All of them must be there (`from_stylegan` sees to it); noise is left out where it is not asked for. Frozen.
    """
    sides = [4 << i for i in range(len({name.split(".")[0] for name in weights if name.startswith("b")}))]
    channels = [len(weights[f"b{side}.conv1.bias"]) for side in sides]
    network = Synthesis(channels, resolution, noise=noise, bias_first=bias_first, epsilon=epsilon)
    names = [f"b{side}.conv{i}" for side in sides for i in (0, 1)]

    def take(target: Tensor, source: Tensor) -> None:
        target.copy_(source.reshape(target.shape))

    def take_style(target: AdaIN, name: str) -> None:
        take(target.affine.weight, weights[f"{name}.affine.weight"])
        take(target.affine.bias, weights[f"{name}.affine.bias"])

    with torch.no_grad():
        x = weights["const"][None] + weights["b4.conv0.bias"][:, None, None]
        if noise:
            x = x + weights["b4.conv0.noise_strength"][:, None, None] * weights["b4.conv0.noise_const"]
        network.constant.copy_(normalised(F.leaky_relu(x, SLOPE), epsilon))
        take_style(network.style, "b4.conv0")
        for layer, name in zip(network.layers, names[1:], strict=True):
            assert isinstance(layer, StyledConv)
            take(layer.weight, weights[f"{name}.weight"])
            take(layer.bias, weights[f"{name}.bias"])
            if layer.noise is not None and layer.noise_strength is not None:
                take(layer.noise, weights[f"{name}.noise_const"])
                take(layer.noise_strength, weights[f"{name}.noise_strength"])
            take_style(layer.style, name)
        take(network.to_image.weight, weights["torgb.weight"])
        assert network.to_image.bias is not None
        take(network.to_image.bias, weights["torgb.bias"])
    return network.eval().requires_grad_(False)


def doubled(kernel: Tensor) -> Tensor:
    """Return the kernels [..., 4, 4] of a transposed convolution of stride 2 that each pixel of a 3x3 kernel
    [..., 3, 3] stands for when it covers two by two: the sum of its four places."""
    wide = F.pad(kernel, (1, 1, 1, 1))
    return wide[..., 1:, 1:] + wide[..., :-1, 1:] + wide[..., 1:, :-1] + wide[..., :-1, :-1]
