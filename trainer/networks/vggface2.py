"""The paper's identity encoder E_id: ResNet-50 trained on VGGFace2 (Cao et al. 2018, arXiv 1710.08092); SE-ResNet-50.

A loose crop with the hair -> a unit code of 2048 numbers, or fewer where the file has a projection; differentiable. The
weights are the user's (`from_vggface2`); batch norms are folded into the convolutions before them.

The view is the one of the authors' code (ID-disentanglement, `id_encoder.py`): of the aligned picture the middle 80 %
along each side at 256 px, of which the middle 224; VGGFace2's own boxes, made larger by 30 %, show as much of a head.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..pixels import Placement

SIZE = 224  # px, side of what the network looks at
FIRST, LAST = 25, 230  # px of the 256 px crop, along each side: int(0.1 * 256), int(0.9 * 256)
SCALE = 256 / (LAST - FIRST)
SHIFT = SCALE * (0.5 - FIRST) - 0.5 - (256 - SIZE) / 2
MEAN_RGB = (131.0912, 103.8827, 91.4953)  # of VGGFace2, 0..255
BLOCKS = (3, 4, 6, 3)  # of ResNet-50
CODE_SIZE = 2048
REDUCTION = 16  # of the channels in squeeze-and-excitation


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution beside a shortcut; the first 1x1 halves the resolution, as in Caffe's ResNet."""

    def __init__(self, c_in: int, width: int, stride: int, squeeze: bool) -> None:
        super().__init__()
        c_out = 4 * width
        self.conv1 = nn.Conv2d(c_in, width, 1, stride)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1)
        self.conv3 = nn.Conv2d(width, c_out, 1)
        self.shortcut = nn.Conv2d(c_in, c_out, 1, stride) if (stride, c_in) != (1, c_out) else None
        self.down = nn.Conv2d(c_out, c_out // REDUCTION, 1) if squeeze else None
        self.up = nn.Conv2d(c_out // REDUCTION, c_out, 1) if squeeze else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        if self.down is not None and self.up is not None:
            y = y * self.up(F.relu(self.down(y.mean((2, 3), keepdim=True)))).sigmoid()
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class VGGFace2(nn.Module):
    """The frozen encoder: aligned crop [N, 3, S, S], float RGB in [-1, 1] -> unit codes [N, code_size] float32."""

    mean: Tensor

    def __init__(self, *, squeeze: bool = False, keras: bool = False, code_size: int = CODE_SIZE) -> None:
        """`squeeze`: SE-ResNet-50. `keras`: the borders of Keras' convolutions and pooling, and a ReLU behind the
        projection. `code_size`: less than 2048 with a projection."""
        super().__init__()
        self.keras, self.code_size = keras, code_size
        self.placement = Placement(SIZE, SCALE, (SHIFT, SHIFT))
        self.register_buffer("mean", torch.tensor(MEAN_RGB).reshape(1, 3, 1, 1))
        self.stem = nn.Conv2d(3, 64, 7, 2)
        blocks, c_in = [], 64
        for stage, count in enumerate(BLOCKS):
            for i in range(count):
                blocks.append(Bottleneck(c_in, 64 << stage, 2 if i == 0 and stage else 1, squeeze))
                c_in = 256 << stage
        self.blocks = nn.Sequential(*blocks)
        self.projection = nn.Linear(CODE_SIZE, code_size) if code_size != CODE_SIZE or keras else None
        self.eval().requires_grad_(False)

    def forward(self, crop: Tensor) -> Tensor:
        with torch.autocast(crop.device.type, enabled=False):
            face = self.placement(crop.float())
        return F.normalize(self.raw_code(face * 127.5 + 127.5).float(), dim=1)

    def raw_code(self, face: Tensor) -> Tensor:
        """Map a view [N, 3, 224, 224], float RGB in 0..255 -> codes [N, code_size] before normalisation."""
        x = (face - self.mean).contiguous(memory_format=torch.channels_last)
        x = F.relu(self.stem(F.pad(x, (2, 3, 2, 3) if self.keras else (3, 3, 3, 3))))
        x = self.blocks(F.max_pool2d(x, 3, 2, ceil_mode=not self.keras))
        x = x.mean((2, 3))  # all of the last map, which has 7 px a side
        if self.projection is not None:
            x = self.projection(x)
        return F.relu(x) if self.keras else x


class JoinedEncoder(nn.Module):
    """Several identity encoders as one: their unit codes side by side, brought to length 1 together."""

    def __init__(self, encoders: list[nn.Module]) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.code_size = sum(int(encoder.code_size) for encoder in encoders)  # pyright: ignore[reportArgumentType]

    def forward(self, crop: Tensor) -> Tensor:
        """Map aligned crop [N, 3, S, S], float RGB in [-1, 1] -> unit codes [N, code_size] float32."""
        return torch.cat([encoder(crop) for encoder in self.encoders], dim=1) / math.sqrt(len(self.encoders))
