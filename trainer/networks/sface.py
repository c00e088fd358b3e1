"""SFace, the frozen identity encoder E_id: a face crop -> a unit identity code of 128 numbers, differentiable.

The weights are OpenCV Zoo's `face_recognition_sface_2021dec` in its block-quantised int8 form. They are dequantised
once while reading, and every batch normalisation is folded into its convolution, so that the network is 27 x
(convolution, PReLU) and one matrix product.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from google.protobuf.message import DecodeError
from torch import Tensor, nn

from ...runtime.errors import FidError
from ...runtime.face.crop import IDENTITY_SCALE, IDENTITY_SHIFT, IDENTITY_SIZE
from ...runtime.weights import catalogue as models
from ...runtime.weights.prepare import dequantised
from ..pixels import Placement

SFACE_FILE = "face_recognition_sface_2021dec_int8bq.onnx"
CODE_SIZE = 128
PIXEL_MEAN, PIXEL_SCALE = 127.5, 1 / 128  # the network's own scaling of a 0..255 picture


class _Block(NamedTuple):
    """One convolution of the chain: name in the file, output channels, stride, and whether it is depthwise 3x3."""

    name: str
    channels: int
    stride: int
    depthwise: bool


def _blocks() -> list[_Block]:
    """The chain of MobileNet V1: a 3x3 convolution, then 13 pairs (depthwise 3x3, pointwise)."""
    blocks = [_Block("conv_1", 32, 1, False)]
    widths = [64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024]
    for i, width in enumerate(widths, start=2):
        stride = 2 if i in (3, 5, 7, 13) else 1
        blocks += [_Block(f"conv_{i}_dw", blocks[-1].channels, stride, True), _Block(f"conv_{i}", width, 1, False)]
    return blocks


class SFace(nn.Module):
    """The frozen identity encoder. `SFace.load()` reads the published weights; `SFace()` alone has random ones."""

    code_size = CODE_SIZE

    def __init__(self) -> None:
        super().__init__()
        convolutions: list[nn.Conv2d] = []
        activations: list[nn.PReLU] = []
        channels = 3
        for block in _blocks():
            kernel = 3 if block.depthwise or block.name == "conv_1" else 1
            groups = channels if block.depthwise else 1
            convolutions.append(nn.Conv2d(channels, block.channels, kernel, block.stride, kernel // 2, groups=groups))
            activations.append(nn.PReLU(block.channels))
            channels = block.channels
        self.convolutions = nn.ModuleList(convolutions)
        self.activations = nn.ModuleList(activations)
        self.code = nn.Linear(channels * 7 * 7, CODE_SIZE)
        self.placement = Placement(IDENTITY_SIZE, IDENTITY_SCALE, IDENTITY_SHIFT)
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: Path | None = None) -> "SFace":
        """Read the published weights.

        `path` is the ONNX file (block-quantised or plain); None takes the fetched file, fetching it when it is missing.
        Raises FidError when the file does not hold this network.
        """
        if path is None:
            path = models.ensure("sface") / SFACE_FILE
        net = cls()
        try:
            net._fill(dequantised(onnx.load(path)))
        except (KeyError, ValueError, RuntimeError, DecodeError) as error:
            raise FidError(f"{path} does not hold the SFace network ({error}); fetch it again.") from error
        return net

    def forward(self, crop: Tensor) -> Tensor:
        """Map aligned crop [N, 3, S, S], float RGB in [-1, 1], S = 256 or less -> unit identity codes [N, 128]
        float32."""
        with torch.autocast(crop.device.type, enabled=False):
            face = self.placement(crop.float())
        return self.encode_112(face * 127.5 + 127.5)

    def encode_112(self, face: Tensor) -> Tensor:
        """Map face [N, 3, 112, 112], float RGB in 0..255, placed on the ArcFace template -> unit codes [N, 128]
        float32."""
        return F.normalize(self.raw_code(face).float(), dim=1)

    def raw_code(self, face: Tensor) -> Tensor:
        """Map face [N, 3, 112, 112], float RGB in 0..255 -> codes [N, 128] before normalisation (`fc1` of the file)."""
        x = ((face - PIXEL_MEAN) * PIXEL_SCALE).contiguous(memory_format=torch.channels_last)
        for convolution, activation in zip(self.convolutions, self.activations, strict=True):
            x = activation(convolution(x))
        return self.code(x.flatten(1))

    def _fill(self, weights: dict[str, np.ndarray]) -> None:
        """Copy the file's constants, with every batch normalisation folded into its convolution."""
        for block, convolution, activation in zip(_blocks(), self.convolutions, self.activations, strict=True):
            assert isinstance(convolution, nn.Conv2d)
            assert isinstance(activation, nn.PReLU)
            scale, shift = _batchnorm(weights, f"{block.name}_batchnorm", epsilon=1e-3)
            weight = weights[f"{block.name}_conv2d_weight_reshaped"] * scale[:, None, None, None]
            _set(convolution.weight, weight)
            _set(convolution.bias, shift)
            _set(activation.weight, weights[f"{block.name}_relu_gamma"].reshape(-1))
        # The fully connected layer has a batch normalisation in front (per channel, 49 pixels each) and one behind.
        weight, bias = weights["pre_fc1_weight_dequantized"], weights["pre_fc1_bias_dequantized"]
        scale_in, shift_in = (np.repeat(v, 49) for v in _batchnorm(weights, "bn1", epsilon=2e-5))
        scale_out, shift_out = _batchnorm(weights, "fc1", epsilon=2e-5)
        _set(self.code.weight, weight * scale_in * scale_out[:, None])
        _set(self.code.bias, (bias + weight @ shift_in) * scale_out + shift_out)


def _set(parameter: Tensor | None, value: np.ndarray) -> None:
    """Copy an array into a parameter of exactly its shape."""
    if parameter is None or parameter.shape != value.shape:
        raise ValueError(f"a constant has the shape {value.shape}")
    parameter.copy_(torch.from_numpy(value))


def _batchnorm(weights: dict[str, np.ndarray], name: str, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """A batch normalisation in evaluation as (scale, shift): y = x * scale + shift."""
    gamma, beta, mean, var = (
        weights[f"{name}_{part}"].astype(np.float64) for part in ("gamma", "beta", "moving_mean", "moving_var")
    )
    scale = gamma / np.sqrt(var + epsilon)
    return scale, beta - mean * scale
