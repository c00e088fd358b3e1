"""InceptionV3 (Szegedy et al. 2015), the paper's attribute encoder: a picture -> 2048 features, before the classifier.

Own definition; names follow torchvision's `inception_v3`, so a file of its weights can be loaded. Without one the
weights are random, which is where training starts on a machine that cannot get them.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...runtime.errors import FidError, InputError

FEATURES = 2048
INPUT_SIZE = 299  # px
NOT_IN_TRUNK = ("AuxLogits.", "fc.")  # what a torchvision file holds besides


class BasicConv2d(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int | tuple[int, int], stride: int = 1, padding: int | tuple[int, int] = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=0.001)
        nn.init.kaiming_normal_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class InceptionA(nn.Module):
    """35 px: 1x1, 5x5, double 3x3 and pooling branches -> 224 + pool_features channels."""

    def __init__(self, c_in: int, pool_features: int) -> None:
        super().__init__()
        self.branch1x1 = BasicConv2d(c_in, 64, 1)
        self.branch5x5_1 = BasicConv2d(c_in, 48, 1)
        self.branch5x5_2 = BasicConv2d(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = BasicConv2d(c_in, 64, 1)
        self.branch3x3dbl_2 = BasicConv2d(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(96, 96, 3, padding=1)
        self.branch_pool = BasicConv2d(c_in, pool_features, 1)

    def forward(self, x: Tensor) -> Tensor:
        branch5x5 = self.branch5x5_2(self.branch5x5_1(x))
        branch3x3dbl = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        branch_pool = self.branch_pool(F.avg_pool2d(x, 3, 1, 1))
        return torch.cat((self.branch1x1(x), branch5x5, branch3x3dbl, branch_pool), 1)


class InceptionB(nn.Module):
    """35 -> 17 px: 288 -> 768 channels."""

    def __init__(self, c_in: int) -> None:
        super().__init__()
        self.branch3x3 = BasicConv2d(c_in, 384, 3, 2)
        self.branch3x3dbl_1 = BasicConv2d(c_in, 64, 1)
        self.branch3x3dbl_2 = BasicConv2d(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(96, 96, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        branch3x3dbl = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat((self.branch3x3(x), branch3x3dbl, F.max_pool2d(x, 3, 2)), 1)


class InceptionC(nn.Module):
    """17 px: 7x7 convolutions split into 1x7 and 7x1 -> 768 channels."""

    def __init__(self, c_in: int, width: int) -> None:
        super().__init__()
        self.branch1x1 = BasicConv2d(c_in, 192, 1)
        self.branch7x7_1 = BasicConv2d(c_in, width, 1)
        self.branch7x7_2 = BasicConv2d(width, width, (1, 7), padding=(0, 3))
        self.branch7x7_3 = BasicConv2d(width, 192, (7, 1), padding=(3, 0))
        self.branch7x7dbl_1 = BasicConv2d(c_in, width, 1)
        self.branch7x7dbl_2 = BasicConv2d(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_3 = BasicConv2d(width, width, (1, 7), padding=(0, 3))
        self.branch7x7dbl_4 = BasicConv2d(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_5 = BasicConv2d(width, 192, (1, 7), padding=(0, 3))
        self.branch_pool = BasicConv2d(c_in, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        branch7x7 = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        branch7x7dbl = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        branch7x7dbl = self.branch7x7dbl_5(self.branch7x7dbl_4(branch7x7dbl))
        branch_pool = self.branch_pool(F.avg_pool2d(x, 3, 1, 1))
        return torch.cat((self.branch1x1(x), branch7x7, branch7x7dbl, branch_pool), 1)


class InceptionD(nn.Module):
    """17 -> 8 px: 768 -> 1280 channels."""

    def __init__(self, c_in: int) -> None:
        super().__init__()
        self.branch3x3_1 = BasicConv2d(c_in, 192, 1)
        self.branch3x3_2 = BasicConv2d(192, 320, 3, 2)
        self.branch7x7x3_1 = BasicConv2d(c_in, 192, 1)
        self.branch7x7x3_2 = BasicConv2d(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = BasicConv2d(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = BasicConv2d(192, 192, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        branch3x3 = self.branch3x3_2(self.branch3x3_1(x))
        branch7x7x3 = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat((branch3x3, branch7x7x3, F.max_pool2d(x, 3, 2)), 1)


class InceptionE(nn.Module):
    """8 px: 3x3 convolutions split side by side into 1x3 and 3x1 -> 2048 channels."""

    def __init__(self, c_in: int) -> None:
        super().__init__()
        self.branch1x1 = BasicConv2d(c_in, 320, 1)
        self.branch3x3_1 = BasicConv2d(c_in, 384, 1)
        self.branch3x3_2a = BasicConv2d(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = BasicConv2d(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = BasicConv2d(c_in, 448, 1)
        self.branch3x3dbl_2 = BasicConv2d(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = BasicConv2d(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = BasicConv2d(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = BasicConv2d(c_in, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.branch3x3_1(x)
        b = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        branch3x3 = (self.branch3x3_2a(a), self.branch3x3_2b(a))
        branch3x3dbl = (self.branch3x3dbl_3a(b), self.branch3x3dbl_3b(b))
        branch_pool = self.branch_pool(F.avg_pool2d(x, 3, 1, 1))
        return torch.cat((self.branch1x1(x), *branch3x3, *branch3x3dbl, branch_pool), 1)


class InceptionV3(nn.Module):
    """The trunk, to be trained. `InceptionV3()` has random weights, `InceptionV3.load(path)` those of a file."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = BasicConv2d(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, 3)
        self.Conv2d_2b_3x3 = BasicConv2d(32, 64, 3, padding=1)
        self.maxpool1 = nn.MaxPool2d(3, 2)
        self.Conv2d_3b_1x1 = BasicConv2d(64, 80, 1)
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, 3)
        self.maxpool2 = nn.MaxPool2d(3, 2)
        self.Mixed_5b = InceptionA(192, 32)
        self.Mixed_5c = InceptionA(256, 64)
        self.Mixed_5d = InceptionA(288, 64)
        self.Mixed_6a = InceptionB(288)
        self.Mixed_6b = InceptionC(768, 128)
        self.Mixed_6c = InceptionC(768, 160)
        self.Mixed_6d = InceptionC(768, 160)
        self.Mixed_6e = InceptionC(768, 192)
        self.Mixed_7a = InceptionD(768)
        self.Mixed_7b = InceptionE(1280)
        self.Mixed_7c = InceptionE(2048)

    def forward(self, crop: Tensor) -> Tensor:
        """Map crop [N, 3, S, S] of any size, float RGB in [-1, 1] -> features [N, 2048]. Resized to 299 px inside."""
        if crop.shape[-1] != INPUT_SIZE:
            shrinking = crop.shape[-1] > INPUT_SIZE
            crop = F.interpolate(crop, (INPUT_SIZE, INPUT_SIZE), mode="bilinear", antialias=shrinking)
        x = crop
        for stage in self.children():  # in the order of their definition
            x = stage(x)
        return x.mean((2, 3))

    @classmethod
    def load(cls, path: Path) -> "InceptionV3":
        """Read a file of torchvision's `inception_v3` state dictionary: .safetensors, or .pth/.pt (read with
        `weights_only=True`, so nothing in it is executed). Classifier and auxiliary head in it are left out.

        Raises InputError when there is no such file, FidError when a weight is missing, too many or of another shape.
        """
        if not path.is_file():
            raise InputError(f"there is no file {path}: expected InceptionV3 weights as .safetensors, .pth or .pt.")
        try:
            weights = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
            trunk = {name: value for name, value in weights.items() if not name.startswith(NOT_IN_TRUNK)}
        except (OSError, RuntimeError, SafetensorError, AttributeError, EOFError, ValueError) as error:
            raise FidError(f"{path} is not a file of weights ({str(error).splitlines()[0]}).") from error
        except Exception as error:  # torch raises pickle.UnpicklingError and others of its own for unsafe content
            raise FidError(f"{path} is refused: it holds more than tensors ({type(error).__name__}).") from error
        net = cls()
        wanted = net.state_dict()
        problems = [f"lacks {name}" for name in wanted if name not in trunk]
        problems += [f"has an unknown {name}" for name in trunk if name not in wanted]
        problems += [
            f"has {name} as {list(trunk[name].shape)}, expected {list(value.shape)}"
            for name, value in wanted.items()
            if name in trunk and trunk[name].shape != value.shape
        ]
        if problems:
            more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
            raise FidError(f"{path} does not fit InceptionV3: it {problems[0]}{more}.")
        net.load_state_dict(trunk)
        return net
