"""The generator G of StyleGAN2 (Karras et al. 2020, arXiv 1912.04958), any resolution and any number of channels.

`Synthesis` takes w [N, 512], or W+ [N, n_styles, 512], to an image [N, 3, R, R], RGB, about [-1, 1]; the mapping
network is the one of `mobilestylegan`. Both are frozen: `from_stylegan2` reads them from the user's file.

The weights of a convolution are constants here. Equations (1) to (3) of the paper scale them by the style s of each
picture and divide by their norm; since a convolution is linear, that is the same as

    y = conv(x * s, W) * rsqrt(s^2 @ W2 + eps),    W2[i, o] = sum of W[o, i]^2 over the kernel,

which any engine runs with any batch. The gains of equalised learning rates and of the activation are part of the
stored numbers. Noise is a constant picture or left out, so an image is a function of w alone.
"""

import math
from collections.abc import Mapping as Tensors
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .mobilestylegan import W_SIZE, Mapping, per_style

EPSILON = 1e-8  # of equation (3)
SLOPE = 0.2  # of the leaky ReLU
GAIN = math.sqrt(2)  # after it
TAPS = 4  # of the resampling filter along a side


class StyledConv(nn.Module):
    """Modulated and demodulated 3x3 convolution, noise, bias, leaky ReLU; with `up` it doubles the resolution first.

    Up-sampling is a transposed convolution of stride 2, then the FIR filter.
    """

    squares: Tensor
    noise: Tensor | None
    blur: Tensor

    def __init__(
        self, c_in: int, c_out: int, resolution: int, *, up: bool, noise: bool = True, clamp: float | None = None
    ) -> None:
        """`resolution`: of the output, px. `clamp`: the largest absolute value of the output, None for any."""
        super().__init__()
        self.up, self.clamp = up, clamp
        self.affine = nn.Linear(W_SIZE, c_in)
        self.weight = nn.Parameter(torch.zeros(*((c_in, c_out) if up else (c_out, c_in)), 3, 3))  # times sqrt(2)
        self.bias = nn.Parameter(torch.zeros(1, c_out, 1, 1))  # times sqrt(2), as is the noise
        self.register_buffer("squares", torch.zeros(c_in, c_out))  # W2, of the weight without the sqrt(2)
        self.register_buffer("noise", torch.zeros(1, 1, resolution, resolution) if noise else None)
        if up:
            self.register_buffer("blur", torch.zeros(c_out, 1, TAPS, TAPS))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Map x [N, c_in, H, W], w [N, 512] -> [N, c_out, H, W], or twice the height and width."""
        style = self.affine(w)
        norm = torch.rsqrt(style.square() @ self.squares + EPSILON)
        x = x * style[:, :, None, None]
        if self.up:
            x = F.conv_transpose2d(x, self.weight, stride=2)
            x = F.conv2d(x, self.blur, padding=1, groups=len(self.blur))
        else:
            x = F.conv2d(x, self.weight, padding=1)
        x = x * norm[:, :, None, None] + self.bias
        x = F.leaky_relu(x if self.noise is None else x + self.noise, SLOPE)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class ToImage(nn.Module):
    """Modulated 1x1 convolution to RGB, without demodulation, added to the up-sampled image of the block before."""

    upsample: Tensor

    def __init__(self, c_in: int, *, first: bool, clamp: float | None = None) -> None:
        """`first`: of the 4 px block, where there is no image yet."""
        super().__init__()
        self.clamp = clamp
        self.affine = nn.Linear(W_SIZE, c_in)
        self.weight = nn.Parameter(torch.zeros(3, c_in, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        if not first:
            self.register_buffer("upsample", torch.zeros(12, 1, 3, 3))

    def forward(self, x: Tensor, w: Tensor, image: Tensor | None) -> Tensor:
        """Map x [N, c_in, H, W], w [N, 512], image [N, 3, H/2, W/2] or None -> image [N, 3, H, W]."""
        y = F.conv2d(x * self.affine(w)[:, :, None, None], self.weight) + self.bias
        if self.clamp is not None:
            y = y.clamp(-self.clamp, self.clamp)
        if image is None:
            return y
        return y + F.pixel_shuffle(F.conv2d(image, self.upsample, padding=1, groups=3), 2)


class Block(nn.Module):
    """One resolution: up-sampling convolution (none at 4 px), convolution, to-image."""

    def __init__(
        self, c_in: int | None, c_out: int, resolution: int, *, noise: bool = True, clamp: float | None = None
    ) -> None:
        """`c_in`: channels of the block before, None at 4 px."""
        super().__init__()
        first = c_in is None
        options = {"noise": noise, "clamp": clamp}
        self.conv0 = None if c_in is None else StyledConv(c_in, c_out, resolution, up=True, **options)
        self.conv1 = StyledConv(c_out, c_out, resolution, up=False, **options)
        self.to_image = ToImage(c_out, first=first, clamp=clamp)

    def forward(self, x: Tensor, image: Tensor | None, styles: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Map activations, image and the styles of conv0 (none at 4 px), conv1, to-image -> activations and image."""
        *first, second, last = styles
        if self.conv0 is not None:
            x = self.conv0(x, first[0])
        x = self.conv1(x, second)
        return x, self.to_image(x, last, image)


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
        clamp: float | None = None,
    ) -> None:
        """`channels`: of the blocks at 4, 8, 16, ... px. `resolution`: R; where it is less than that of the last block,
        its image is averaged down. `clamp`: the largest absolute value of activations, None for any."""
        super().__init__()
        self.native = 4 << (len(channels) - 1)  # px
        self.resolution = resolution or self.native
        if self.resolution < 4 or self.native % self.resolution:
            raise ValueError(f"resolution {resolution}: expected {self.native} divided by a power of two")
        self.n_styles = 2 * len(channels)
        self.constant = nn.Parameter(torch.zeros(1, channels[0], 4, 4))
        before = (None, *channels)
        self.blocks = nn.ModuleList(
            Block(c_in, c_out, 4 << i, noise=noise, clamp=clamp)
            for i, (c_in, c_out) in enumerate(zip(before, channels, strict=False))
        )

    def forward(self, w: Tensor) -> Tensor:
        styles = per_style(w, self.n_styles)
        x, image = self.constant.expand(w.shape[0], -1, -1, -1), None
        for i, block in enumerate(self.blocks):
            # the style of a to-image is also that of the next block's first convolution
            x, image = block(x, image, styles[max(2 * i - 1, 0) : 2 * i + 2])
        assert image is not None
        return image if self.resolution == self.native else F.avg_pool2d(image, self.native // self.resolution)


def synthesis_from(
    weights: Tensors[str, Tensor], resolution: int | None = None, *, noise: bool = True, clamp: float | None = None
) -> Synthesis:
    """Return the synthesis network of weights under the names of NVIDIA's PyTorch release, `b4.const`,
    `b8.conv0.weight` etc.

    All of them must be there (`from_stylegan2` sees to it); noise is left out where it is not asked for. Frozen.
    """
    sides = [4 << i for i in range(len({name.split(".")[0] for name in weights}))]
    channels = [len(weights[f"b{side}.conv1.weight"]) for side in sides]
    network = Synthesis(channels, resolution, noise=noise, clamp=clamp)

    def take(target: Tensor, source: Tensor, gain: float = 1.0) -> None:
        target.copy_(source.reshape(target.shape) * gain)

    def take_affine(target: nn.Linear, name: str) -> None:
        take(target.weight, weights[f"{name}.affine.weight"], 1 / math.sqrt(W_SIZE))
        take(target.bias, weights[f"{name}.affine.bias"])

    def take_conv(target: StyledConv, name: str) -> None:
        take_affine(target.affine, name)
        weight = weights[f"{name}.weight"]
        weight = weight / math.sqrt(weight[0].numel())
        take(target.squares, weight.square().sum((2, 3)).T)
        take(target.weight, weight.transpose(0, 1) if target.up else weight, GAIN)
        take(target.bias, weights[f"{name}.bias"], GAIN)
        if target.noise is not None:
            take(target.noise, weights[f"{name}.noise_const"] * weights[f"{name}.noise_strength"], GAIN)
        if target.up:  # zeros between pixels leave a fourth of the energy; a convolution turns its kernel around
            blur = 4 * weights[f"{name}.resample_filter"].flip(0, 1)
            target.blur.copy_(blur.expand_as(target.blur))

    with torch.no_grad():
        take(network.constant, weights["b4.const"])
        for side, block in zip(sides, network.blocks, strict=True):
            assert isinstance(block, Block)
            if block.conv0 is not None:
                take_conv(block.conv0, f"b{side}.conv0")
                taps = upsampling_taps(weights[f"b{side}.resample_filter"])
                block.to_image.upsample.copy_(taps.repeat(3, 1, 1, 1))
            take_conv(block.conv1, f"b{side}.conv1")
            take_affine(block.to_image.affine, f"b{side}.torgb")
            weight = weights[f"b{side}.torgb.weight"]
            take(block.to_image.weight, weight, 1 / math.sqrt(weight[0].numel()))
            take(block.to_image.bias, weights[f"b{side}.torgb.bias"])
    return network.eval().requires_grad_(False)


def upsampling_taps(kernel: Tensor) -> Tensor:
    """Return zeros between pixels and a 4x4 FIR filter, as four 3x3 convolutions [4, 1, 3, 3], one for each new pixel.

    The new pixel 2i of a row sees the pixels i - 1 and i, the new pixel 2i + 1 sees i and i + 1.
    """
    taps = torch.zeros(2, 2, 3, 3)
    g = 4 * kernel.flip(0, 1)
    for row in range(2):
        for column in range(2):
            taps[row, column, row : row + 2, column : column + 2] = g[row::2, column::2]
    return taps.reshape(4, 1, 3, 3)


def mapping_from(weights: Tensors[str, Tensor], rate: float = 0.01) -> Mapping:
    """Return the mapping network of weights under NVIDIA's names, `fc0.weight` etc. `rate`: its share of the learning
    rate, which is part of its gains. Frozen."""
    network = Mapping(len(weights) // 2)
    with torch.no_grad():
        for i, layer in enumerate(network.layers):
            assert isinstance(layer, nn.Linear)
            layer.weight.copy_(weights[f"fc{i}.weight"] * (rate / math.sqrt(W_SIZE)))
            layer.bias.copy_(weights[f"fc{i}.bias"] * rate)
    return network.eval().requires_grad_(False)
