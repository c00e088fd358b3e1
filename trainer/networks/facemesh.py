"""MediaPipe's face mesh, the frozen landmark network E_lnd: a face crop -> 468 points, differentiable.

The network is read from the published `face_landmark.tflite` (FP16 weights): a convolution and a chain of 17 residual
blocks (depthwise 3x3, pointwise, PReLU) that halve 96 px to 3 px, then the points. The file's second output, the
probability that a face is there, is left out.
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...runtime.errors import FidError
from ...runtime.face.crop import CROP_SIZE, resample_matrix
from ...runtime.weights import catalogue as models

FACEMESH_FILE = "face_landmark.tflite"
MESH_SIZE = 192  # px, the side of the network's input
POINTS = 468

FACE_SQUARE = (10.0, 28.0, 238.0)
"""Left, top and side in pixels of the square of the aligned 256 px crop that the network looks at.

The network wants the box of its own points enlarged by half; on aligned faces that box is nearly always here. Mean
distance of the inner face's points to those of a box fitted to each face (three rounds): 0.9 px on 32 generated faces,
0.7 px on 40 photographs, worst face 1.6 px; enlarging the fitted box by 0.4 or 0.7 moves the points by as much.
"""

# Point numbers of MediaPipe's canonical face. Left and right are the person's own.
LEFT_EYE = (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466)
RIGHT_EYE = (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246)
LEFT_EYEBROW = (276, 283, 282, 295, 285, 300, 293, 334, 296, 336)
RIGHT_EYEBROW = (46, 53, 52, 65, 55, 70, 63, 105, 66, 107)
NOSE = (168, 6, 197, 195, 5, 4, 1, 19, 94, 2, 98, 97, 326, 327, 294, 278, 344, 440, 275, 45, 220, 115, 48, 64)
LIPS_OUTER = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
LIPS_INNER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191)
FACE_OVAL = (
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
    *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
)
EYES = LEFT_EYE + RIGHT_EYE
LIPS = LIPS_OUTER + LIPS_INNER
INNER_FACE = EYES + LEFT_EYEBROW + RIGHT_EYEBROW + NOSE + LIPS
GAPS = {
    **dict.fromkeys(((159, 145), (158, 153), (160, 144), (386, 374), (385, 380), (387, 373)), 4.0),
    **dict.fromkeys(((105, 159), (334, 386), (55, 133), (285, 362)), 2.0),
    **dict.fromkeys(((13, 14), (82, 87), (312, 317), (61, 291)), 1.0),
}
"""Pairs of points whose distance is an expression, with how much it counts: lids, brows above eyes, lips and the width
of the mouth. Lids move by a quarter of what lips do."""

_WIDTHS = (16, 16, 32, 32, 32, 64, 64, 64, 128, 128, 128, 128, 128, 128, 128, 128, 128)
_HALVING = (3, 6, 9, 12, 15)  # blocks, counted from 1, that halve the side


class _Block(nn.Module):
    """Residual block: depthwise 3x3, pointwise, plus the input (halved, and padded with empty channels), PReLU."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = out_channels - channels
        self.depthwise = nn.Conv2d(channels, channels, 3, stride, 1 if stride == 1 else 0, groups=channels)
        self.pointwise = nn.Conv2d(channels, out_channels, 1)
        self.activation = nn.PReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pointwise(self.depthwise(x if self.stride == 1 else _pad_for_halving(x)))
        if self.stride == 2:
            x = F.max_pool2d(x, 2)
        if self.padding:
            x = F.pad(x, (0, 0, 0, 0, 0, self.padding))
        return self.activation(x + y)


class FaceMesh(nn.Module):
    """The frozen landmark network. `FaceMesh.load()` reads the published weights; `FaceMesh()` has random ones."""

    inner_face: Tensor
    """Indices (int64) of the points of eyes, eyebrows, nose and lips: pose and expression without the jaw line."""
    eyes: Tensor
    """Indices (int64) of the points on the rims of both eyes."""
    lips: Tensor
    """Indices (int64) of the points on the outer and inner rims of the lips."""
    gaps: Tensor
    """Pairs [G, 2] (int64) of the inner face's points whose distances are expressions."""
    gap_weights: Tensor
    """How much each counts, [G]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2)
        self.stem_activation = nn.PReLU(16)
        blocks, channels = [], 16
        for number, width in enumerate(_WIDTHS, start=1):
            blocks.append(_Block(channels, width, 2 if number in _HALVING else 1))
            channels = width
        self.blocks = nn.ModuleList(blocks)
        self.neck = nn.Conv2d(channels, 32, 1)
        self.neck_activation = nn.PReLU(32)
        self.neck_block = _Block(32, 32, 1)
        self.head = nn.Conv2d(32, POINTS * 3, 3)
        for name, indices in (("inner_face", INNER_FACE), ("eyes", EYES), ("lips", LIPS)):
            self.register_buffer(name, torch.tensor(indices), persistent=False)
        of_inner = [[INNER_FACE.index(point) for point in pair] for pair in GAPS]
        self.register_buffer("gaps", torch.tensor(of_inner), persistent=False)
        self.register_buffer("gap_weights", torch.tensor(list(GAPS.values())), persistent=False)
        self._matrices: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: Path | None = None) -> "FaceMesh":
        """Read the published weights.

        `path` is the tflite file; None takes the fetched file, fetching it when it is missing.
        Raises FidError when the file does not hold this network.
        """
        if path is None:
            path = models.ensure("facemesh") / FACEMESH_FILE
        net = cls()
        layers: dict[str, nn.Module] = {"conv2d_1": net.stem, "p_re_lu_1": net.stem_activation}
        for i, block in enumerate([*net.blocks, net.neck_block], start=1):
            assert isinstance(block, _Block)
            last = i > len(net.blocks)  # the neck stands before the last block and takes one number
            layers[f"depthwise_conv2d_{i}"] = block.depthwise
            layers[f"conv2d_{i + 1 + last}"] = block.pointwise
            layers[f"p_re_lu_{i + 1 + last}"] = block.activation
        layers |= {"conv2d_19": net.neck, "p_re_lu_19": net.neck_activation, "conv2d_21": net.head}
        try:
            constants = _tflite_constants(path.read_bytes())
            for name, layer in layers.items():
                _copy(layer, name, constants)
        except (KeyError, RuntimeError, ValueError, struct.error) as error:
            raise FidError(f"{path} does not hold the face mesh network ({error}); fetch it again.") from error
        return net

    def forward(self, crop: Tensor) -> Tensor:
        """Map aligned crop [N, 3, S, S], float RGB in [-1, 1] -> points [N, 468, 3] float32.

        Points are (x, y, depth) in pixels of the aligned 256 px crop, whatever S is; x and y are pixel indices (the
        centre of the top left pixel is 0, 0), depth is negative towards the camera and has no fixed zero.
        """
        with torch.autocast(crop.device.type, enabled=False):
            rows, columns = self._resampling(crop.shape[-1], crop.device)
            face = rows @ crop.float() @ columns
        points = self.points_192(face * 0.5 + 0.5).float()
        left, top, side = FACE_SQUARE
        return points * (side / MESH_SIZE) + points.new_tensor([left, top, 0.0])

    def points_192(self, face: Tensor) -> Tensor:
        """Map face [N, 3, 192, 192], float RGB in 0..1 -> points [N, 468, 3] in pixels of that picture."""
        x = self.stem_activation(self.stem(_pad_for_halving(face)))
        for block in self.blocks:
            x = block(x)
        x = self.neck_block(self.neck_activation(self.neck(x)))
        return self.head(x).reshape(-1, POINTS, 3)

    def _resampling(self, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The constant matrices (rows [192, S], columns [S, 192]) that cut `FACE_SQUARE` out of an S x S crop."""
        key = (size, device)
        if key not in self._matrices:
            left, top, side = FACE_SQUARE
            scale, ratio = MESH_SIZE / side, CROP_SIZE / size
            # Pixel p of an S px crop is pixel (p + 0.5) * 256 / S - 0.5 of the 256 px crop of FACE_SQUARE.
            columns, rows = (
                resample_matrix(MESH_SIZE, size, scale * ratio, scale * ((ratio - 1) / 2 - edge))
                for edge in (left, top)
            )
            self._matrices[key] = torch.from_numpy(rows).to(device), torch.from_numpy(columns.T.copy()).to(device)
        return self._matrices[key]


def _pad_for_halving(x: Tensor) -> Tensor:
    """TensorFlow's SAME padding of a 3x3 convolution with stride 2 and an even side: right and bottom only."""
    return F.pad(x, (0, 1, 0, 1))


def _tflite_constants(content: bytes) -> dict[str, np.ndarray]:
    """The FP16 constants of a tflite file by the names of the float tensors that they become (`NAME_dequantize`)."""
    import tflite

    if content[4:8] != b"TFL3":
        raise ValueError("it is not a tflite file")
    model: Any = tflite.Model.GetRootAsModel(content, 0)
    graph = model.Subgraphs(0)
    constants = {}
    for i in range(graph.OperatorsLength()):
        operator = graph.Operators(i)
        if model.OperatorCodes(operator.OpcodeIndex()).DeprecatedBuiltinCode() != tflite.BuiltinOperator.DEQUANTIZE:
            continue
        source, target = graph.Tensors(operator.Inputs(0)), graph.Tensors(operator.Outputs(0))
        data = model.Buffers(source.Buffer()).DataAsNumpy().tobytes()
        name = target.Name().decode().removesuffix("_dequantize")
        constants[name] = np.frombuffer(data, np.float16).astype(np.float32).reshape(source.ShapeAsNumpy())
    return constants


def _copy(layer: nn.Module, name: str, constants: dict[str, np.ndarray]) -> None:
    """Copy the constants called `name` into a convolution (from [out, height, width, in]) or a PReLU."""
    if isinstance(layer, nn.PReLU):
        layer.weight.copy_(torch.from_numpy(constants[f"{name}/Alpha"].reshape(-1)))
        return
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    kernel = torch.from_numpy(constants[f"{name}/Kernel"])
    # A depthwise kernel is stored [1, height, width, channels].
    layer.weight.copy_(kernel.permute(3, 0, 1, 2) if layer.groups > 1 else kernel.permute(0, 3, 1, 2))
    layer.bias.copy_(torch.from_numpy(constants[f"{name}/Bias"]))
