"""The generator G: MobileStyleGAN (Belousov 2021, arXiv 2104.04767) read from its OpenVINO IR.

`Mapping` takes z [N, 512] to w [N, 512]. `Synthesis` takes w [N, 512], or W+ [N, n_styles, 512], to an image
[N, 3, R, R], RGB, about [-1, 1]. At 1024 px it is the published network; at 256 and 128 px it stops after the 128 or
64 px block and ends in a to-image head of our own, trained by `fid-train distill` (128 px serves training on small
machines), which can also make the last blocks narrower.

Noise is a constant of the published file, so an image is a function of w alone. Demodulation is folded into the
weights; only the modulation depends on w.
"""

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping as Tensors
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...runtime.weights import catalogue as models

W_SIZE = 512
CHANNELS = (512, 512, 512, 512, 256, 128, 64)  # of the blocks at 8, 16, ... 512 px
STYLES_PER_BLOCK = 3  # up, conv1, conv2
RESOLUTIONS = (128, 256, 1024)


def read_constants(xml_path: Path) -> dict[str, np.ndarray]:
    """Return every float32 constant of an OpenVINO IR v10, by layer name, in the file's order.

    Raises ValueError when the weights file beside it is shorter than the description says.
    """
    blob = xml_path.with_suffix(".bin").read_bytes()
    constants = {}
    for layer in ElementTree.parse(xml_path).getroot().iterfind("layers/layer[@type='Const']"):
        data = layer.find("data")
        if data is None or data.get("element_type") != "f32":
            continue
        shape = [int(size) for size in (data.get("shape") or "").split(",") if size.strip()]
        offset, count = int(data.get("offset", 0)), math.prod(shape)
        if offset + 4 * count > len(blob):
            raise ValueError(f"{xml_path.with_suffix('.bin').name} ends before {layer.get('name')}")
        constants[layer.get("name", "")] = np.frombuffer(blob, np.float32, count, offset).reshape(shape)
    return constants


class Mapping(nn.Module):
    """The mapping network: z [N, 512], standard normal -> w [N, 512]. It is StyleGAN2's own."""

    def __init__(self, n_layers: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(W_SIZE, W_SIZE) for _ in range(n_layers))

    def forward(self, z: Tensor) -> Tensor:
        x = z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + 1e-8)
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2) * math.sqrt(2)
        return x

    @classmethod
    def load(cls, folder: Path | None = None) -> "Mapping":
        """Read MappingNetwork.{xml,bin} from `folder` (default: the fetched generator). Frozen."""
        folder = folder or models.ensure("generator")
        constants = read_constants(folder / "MappingNetwork.xml")
        weights = [a for a in constants.values() if a.shape == (W_SIZE, W_SIZE)]
        biases = [a for a in constants.values() if a.shape == (W_SIZE,)]
        network = cls()
        with torch.no_grad():
            for layer, weight, bias in zip(network.layers, weights, biases, strict=True):
                assert isinstance(layer, nn.Linear)
                layer.weight.copy_(torch.from_numpy(weight.copy()))
                layer.bias.copy_(torch.from_numpy(bias.copy()))
        return network.eval().requires_grad_(False)


def haar(image: Tensor) -> Tensor:
    """Apply the Haar wavelet transform [N, C, 2H, 2W] -> [N, 4C, H, W]; `inverse_haar` undoes it."""
    n, c, h, w = image.shape
    p = F.pixel_unshuffle(image, 2).reshape(n, c, 4, h // 2, w // 2)
    a, b, d, e = p.unbind(2)  # top left, top right, bottom left, bottom right
    details = torch.stack((a + b - d - e, a - b + d - e, a - b - d + e), dim=2).reshape(n, 3 * c, h // 2, w // 2)
    return torch.cat((a + b + d + e, details), dim=1) * 0.5


def inverse_haar(x: Tensor) -> Tensor:
    """Apply the inverse Haar wavelet transform [N, 4C, H, W] -> [N, C, 2H, 2W].

    The first C channels are the low band; the rest are C triples (vertical, horizontal, diagonal detail).
    """
    n, channels, h, w = x.shape
    low = x[:, : channels // 4]
    vertical, horizontal, diagonal = x[:, channels // 4 :].reshape(n, channels // 4, 3, h, w).unbind(2)
    top, bottom = low + vertical, low - vertical
    right, cross = horizontal + diagonal, horizontal - diagonal
    phases = torch.stack((top + right, top - right, bottom + cross, bottom - cross), dim=2)
    return F.pixel_shuffle(phases.reshape(n, channels, h, w) * 0.5, 2)


class Modulation(nn.Module):
    """One style: w [N, 512] -> channel factors [N, C, 1, 1].

    `gain` is 1/sqrt(fan-in) of the convolution that follows.
    """

    def __init__(self, channels: int, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.weight = nn.Parameter(torch.zeros(channels, W_SIZE))
        self.bias = nn.Parameter(torch.zeros(1, channels))

    def forward(self, w: Tensor) -> Tensor:
        return ((F.linear(w, self.weight) + self.bias) * self.gain)[:, :, None, None]


class StyledConv(nn.Module):
    """Modulated convolution, depthwise 3x3 then pointwise (or dense 3x3 at 4 px), noise, bias, leaky ReLU."""

    def __init__(self, c_in: int, c_out: int, resolution: int, separable: bool = True) -> None:
        super().__init__()
        self.modulation = Modulation(c_in, gain=1 / math.sqrt(9 * c_in))
        self.depthwise = nn.Parameter(torch.zeros(c_in, 1, 3, 3)) if separable else None
        self.weight = nn.Parameter(torch.zeros(c_out, c_in, *((1, 1) if separable else (3, 3))))
        self.noise = nn.Parameter(torch.zeros(1, 1, resolution, resolution))
        self.bias = nn.Parameter(torch.zeros(1, c_out, 1, 1))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        x = x * self.modulation(w)
        bias = self.bias.flatten()
        if self.depthwise is not None:
            x = F.conv2d(x, self.depthwise, padding=1, groups=x.shape[1])
            x = F.conv2d(x, self.weight, bias)
        else:
            x = F.conv2d(x, self.weight, bias, padding=1)
        return F.leaky_relu(x + self.noise, 0.2)


class Block(nn.Module):
    """Doubles the resolution by a modulated inverse wavelet transform, then two styled convolutions."""

    inverse_haar = staticmethod(inverse_haar)

    def __init__(self, c_in: int, c_out: int, resolution: int) -> None:
        super().__init__()
        self.up = Modulation(c_in)
        self.conv1 = StyledConv(c_in // 4, c_out, resolution)
        self.conv2 = StyledConv(c_out, c_out, resolution)

    def forward(self, x: Tensor, up: Tensor, conv1: Tensor, conv2: Tensor) -> Tensor:
        return self.conv2(self.conv1(self.inverse_haar(x * self.up(up)), conv1), conv2)


class ToImage(nn.Module):
    """The published to-image head: modulated 1x1 convolution to 12 wavelet bands, no activation."""

    inverse_haar = staticmethod(inverse_haar)

    def __init__(self, c_in: int) -> None:
        super().__init__()
        self.modulation = Modulation(c_in, gain=1 / math.sqrt(c_in))
        self.weight = nn.Parameter(torch.zeros(12, c_in, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, 12, 1, 1))

    def bands(self, x: Tensor, w: Tensor) -> Tensor:
        """Return the 12 wavelet bands [N, 12, H, W]."""
        return F.conv2d(x * self.modulation(w), self.weight) + self.bias

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return self.inverse_haar(self.bands(x, w))


class DistilledToImage(nn.Module):
    """Our to-image head: what the dropped blocks did to colour and detail, in three narrow convolutions.

    bands = skip * (x . style) + modulated 1x1 (h) + colour . w, then the inverse wavelet transform; h is a styled
    separable convolution of x and two more as residuals (they start at nothing). The skip has a closed-form start
    (`trainer/distill.py`).
    """

    inverse_haar = staticmethod(inverse_haar)

    def __init__(self, c_in: int, resolution: int, width: int = 64) -> None:
        super().__init__()
        self.skip_modulation = Modulation(c_in)
        self.skip = nn.Parameter(torch.zeros(12, c_in, 1, 1))
        self.conv = StyledConv(c_in, width, resolution)
        self.deeper = nn.ModuleList(StyledConv(width, width, resolution) for _ in range(2))
        self.detail = ToImage(width)
        self.colour = nn.Linear(W_SIZE, 12)
        nn.init.zeros_(self.colour.weight)
        nn.init.zeros_(self.colour.bias)
        for module in self.modules():
            if isinstance(module, Modulation):
                nn.init.constant_(module.bias, 1 / module.gain)
            if isinstance(module, StyledConv) and module.depthwise is not None:
                nn.init.dirac_(module.depthwise, groups=len(module.depthwise))
        nn.init.kaiming_normal_(self.conv.weight, a=0.2)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        bands = F.conv2d(x * self.skip_modulation(w), self.skip) + self.colour(w)[:, :, None, None]
        h = self.conv(x, w)
        for conv in self.deeper:
            h = h + conv(h, w)
        return self.inverse_haar(bands + self.detail.bands(h, w))


def per_style(w: Tensor, n_styles: int) -> tuple[Tensor, ...]:
    """Return w [N, 512] or W+ [N, n_styles, 512] as n_styles tensors [N, 512]. ValueError for another W+."""
    if w.ndim == 2:
        return (w,) * n_styles
    if w.shape[1] != n_styles:
        raise ValueError(f"W+ with {w.shape[1]} styles: this generator has {n_styles}")
    return w.unbind(1)


class Synthesis(nn.Module):
    """The synthesis network: w [N, 512] or W+ [N, n_styles, 512] -> image [N, 3, R, R], RGB, about [-1, 1].

    `widths` are the channels of the blocks, the published ones by default. Raises ValueError for a resolution other
    than 128, 256 or 1024, for another number of widths, and for a W+ with another number of styles.
    """

    def __init__(self, resolution: int = 256, widths: tuple[int, ...] | None = None) -> None:
        super().__init__()
        if resolution not in RESOLUTIONS:
            raise ValueError(f"resolution {resolution}: expected one of {RESOLUTIONS}")
        self.resolution = resolution
        published = CHANNELS[: int(math.log2(resolution)) - 3]
        self.widths = channels = widths or published
        if len(channels) != len(published):
            raise ValueError(f"widths {channels}: expected {len(published)} at {resolution} px")
        self.n_styles = 2 + STYLES_PER_BLOCK * len(channels)
        self.constant = nn.Parameter(torch.zeros(1, 512, 4, 4))
        self.conv1 = StyledConv(512, 512, 4, separable=False)
        widths = (512, *channels)
        self.blocks = nn.ModuleList(
            Block(c_in, c_out, 8 << i) for i, (c_in, c_out) in enumerate(zip(widths, channels, strict=False))
        )
        self.to_image = ToImage(channels[-1]) if resolution == 1024 else DistilledToImage(channels[-1], resolution // 2)

    def trunk(self, w: Tensor, blocks: int) -> Tensor:
        """Return the first blocks: activations [N, C, 4 << blocks, 4 << blocks]."""
        first, *rest = per_style(w, self.n_styles)
        x = self.conv1(self.constant.expand(w.shape[0], -1, -1, -1), first)
        return self._through(x, rest, range(blocks))

    def tail(self, x: Tensor, w: Tensor, blocks: int) -> Tensor:
        """Run what is left after `trunk`: its activations -> the image."""
        _, *rest, last = per_style(w, self.n_styles)
        return self.to_image(self._through(x, rest, range(blocks, len(self.blocks))), last)

    def _through(self, x: Tensor, styles: Sequence[Tensor], numbers: range) -> Tensor:
        for i in numbers:
            x = self.blocks[i](x, *styles[STYLES_PER_BLOCK * i : STYLES_PER_BLOCK * (i + 1)])
        return x

    def forward(self, w: Tensor) -> Tensor:
        return self.tail(self.trunk(w, 0), w, 0)

    @classmethod
    def shaped_as(cls, tensors: Tensors[str, Tensor], resolution: int, prefix: str = "") -> "Synthesis":
        """Return an empty network with the widths of a kept one, whose tensors are given by name."""
        names = [f"{prefix}blocks.{i}.conv1.weight" for i in range(int(math.log2(resolution)) - 3)]
        return cls(resolution, tuple(len(tensors[name]) for name in names) if set(names) <= tensors.keys() else None)

    @classmethod
    def load(cls, resolution: int = 1024, folder: Path | None = None) -> "Synthesis":
        """Read SynthesisNetwork.{xml,bin} from `folder` (default: the fetched generator). Frozen.

        Below 1024 px everything up to the last block is the published network and the to-image head is at its start: it
        has to be trained (`fid-train distill`) or loaded from a checkpoint.
        """
        folder = folder or models.ensure("generator")
        constants = read_constants(folder / "SynthesisNetwork.xml")
        network = cls(resolution)
        _copy(network, constants)
        return network.eval().requires_grad_(False)


def _copy(network: Synthesis, constants: dict[str, np.ndarray]) -> None:
    """Copies the IR's constants; the nameless ones (noise, pointwise weights) are found by their order in the file."""

    def take(target: Tensor, source: np.ndarray) -> None:
        with torch.no_grad():
            target.copy_(torch.from_numpy(source.copy()).reshape(target.shape))

    def take_modulation(target: Modulation, name: str) -> None:
        take(target.weight, constants[f"{name}.weight"])
        take(target.bias, constants[f"{name}.bias"])

    noises = iter(
        [a for a in constants.values() if a.ndim == 4 and a.shape[:2] == (1, 1) and a.shape[2] == a.shape[3] > 1]
    )
    dense = iter([a for n, a in constants.items() if n.startswith("Mul_") and n.endswith("_copy")])

    def take_conv(target: StyledConv, name: str) -> None:
        take_modulation(target.modulation, f"{name}.conv.modulation")
        if target.depthwise is not None:
            take(target.depthwise, constants[f"{name}.conv.weight_dw"])
        take(target.weight, next(dense))
        take(target.noise, next(noises))
        take(target.bias, constants[f"{name}.bias"])

    take(network.constant, constants["m.input.input"])
    take_conv(network.conv1, "m.conv1")
    for i, block in enumerate(network.blocks):
        assert isinstance(block, Block)
        take_modulation(block.up, f"m.layers.{i}.up.modulation")
        take_conv(block.conv1, f"m.layers.{i}.conv1")
        take_conv(block.conv2, f"m.layers.{i}.conv2")
    if isinstance(network.to_image, ToImage):
        take_modulation(network.to_image.modulation, "m.layers.6.to_img.conv.modulation")
        take(network.to_image.weight, constants["m.layers.6.to_img.conv.weight"])
        take(network.to_image.bias, constants["m.layers.6.to_img.bias"])
