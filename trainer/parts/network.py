"""The network that tells the parts of a head: a small U-Net at half the crop's side."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...runtime.face.parts import PARTS, PARTS_SIDE


class _Conv(nn.Sequential):
    """3x3 convolution, batch norm, ReLU."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


class PartsNetwork(nn.Module):
    """Aligned crops -> what is where, in `PARTS`' order.

    In: uint8 [N, 256, 256, 3], RGB. Out: float32 [N, 6, 128, 128], 0..1, which sum to 1 (`forward`), or the numbers
    before the softmax (`logits`, from a picture float32 [N, 3, 128, 128], -1..1).
    """

    def __init__(self) -> None:
        super().__init__()
        self.down1 = _Conv(3, 16, 2)  # 64 px
        self.down2 = nn.Sequential(_Conv(16, 32, 2), _Conv(32, 32))  # 32
        self.down3 = nn.Sequential(_Conv(32, 64, 2), _Conv(64, 64), _Conv(64, 64))  # 16
        self.down4 = nn.Sequential(_Conv(64, 96, 2), _Conv(96, 96), _Conv(96, 96))  # 8
        self.up3, self.up2, self.up1 = _Conv(96 + 64, 48), _Conv(48 + 32, 32), _Conv(32 + 16, 16)
        self.head = nn.Conv2d(16, 4 * len(PARTS), 3, padding=1)

    def logits(self, picture: Tensor) -> Tensor:
        """Return float32 [N, 6, 128, 128] of pictures float32 [N, 3, 128, 128], RGB, -1..1."""
        x1 = self.down1(picture)
        x2 = self.down2(x1)
        x3 = self.down3(x2)
        x = self.down4(x3)
        for up, skip in ((self.up3, x3), (self.up2, x2), (self.up1, x1)):
            x = up(torch.cat((F.interpolate(x, scale_factor=2.0, mode="nearest"), skip), dim=1))
        return F.pixel_shuffle(self.head(x), 2)

    def forward(self, crop: Tensor) -> Tensor:
        """Return float32 [N, 6, 128, 128] of crops uint8 [N, 256, 256, 3]."""
        picture = F.avg_pool2d(crop.float().permute(0, 3, 1, 2), crop.shape[1] // PARTS_SIDE)
        return self.logits(picture / 127.5 - 1).softmax(dim=1)
