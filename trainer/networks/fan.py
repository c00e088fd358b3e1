"""FAN (Bulat and Tzimiropoulos 2017), 68 landmarks, for users who have its file.

The file is what the `face-alignment` package downloads at its first use into torch's hub folder: a TorchScript archive
(`2DFAN4-*.zip`, up to 1.4), or weights by name (`2DFAN4-*.pth.tar`, from 1.5 on), whose network the installed package
has. Peaks of the heat maps are read by their centre of mass, so gradients pass.
"""

import re
import zipfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...runtime.errors import FidError, InputError
from ...runtime.face.crop import CROP_SIZE

INPUT_SIZE = 256  # px
JAW = 17  # points of the jaw line, the first of the 68
GAPS = {
    **dict.fromkeys(((37, 41), (38, 40), (43, 47), (44, 46)), 4.0),
    **dict.fromkeys(((19, 37), (24, 44), (21, 39), (22, 42)), 2.0),
    **dict.fromkeys(((61, 67), (62, 66), (63, 65), (48, 54)), 1.0),
}
"""As `facemesh.GAPS`."""


class FAN(nn.Module):
    """The frozen landmark network: `FAN.load(path)`."""

    inner_face: Tensor
    """Indices (int64) of the 51 points off the jaw line."""
    gaps: Tensor
    """Pairs [G, 2] (int64) of the inner face's points whose distances are expressions."""
    gap_weights: Tensor
    """How much each counts, [G]."""

    def __init__(self, heat_maps: nn.Module) -> None:
        super().__init__()
        self.heat_maps = heat_maps
        self.register_buffer("inner_face", torch.arange(JAW, 68), persistent=False)
        self.register_buffer("gaps", torch.tensor(list(GAPS)) - JAW, persistent=False)
        self.register_buffer("gap_weights", torch.tensor(list(GAPS.values())), persistent=False)
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: Path) -> "FAN":
        """Read the file. Raises InputError when there is none, FidError when it is another network, or weights by name
        and face-alignment is not installed."""
        if not path.is_file():
            raise InputError(f"there is no file {path}: expected face-alignment's 2DFAN4, a .zip or .pth.tar.")
        try:
            network = _of_weights(path) if _has_weights_alone(path) else torch.jit.load(str(path), "cpu")
            with torch.no_grad():
                maps = network(torch.zeros(1, 3, INPUT_SIZE, INPUT_SIZE))
        except RuntimeError as error:
            raise FidError(f"{path} is not a TorchScript network: {str(error).strip().splitlines()[0]}.") from error
        shape = getattr(maps, "shape", None)
        if shape is None or len(shape) != 4 or shape[1] != 68:
            raise FidError(f"{path} is not FAN: expected heat maps [1, 68, H, W], got {shape}.")
        return cls(network)

    def forward(self, crop: Tensor) -> Tensor:
        """Map aligned crop [N, 3, S, S], float RGB in [-1, 1] -> points [N, 68, 2], pixels of the 256 px crop."""
        if crop.shape[-1] != INPUT_SIZE:
            size = (INPUT_SIZE, INPUT_SIZE)
            crop = F.interpolate(crop, size, mode="bilinear", antialias=True, align_corners=False)
        maps = self.heat_maps(crop.float() * 0.5 + 0.5)
        weights = maps.clamp_min(0).pow(4) + 1e-12  # the power makes the peak outweigh the background
        weights = weights / weights.sum((2, 3), keepdim=True)
        side = maps.shape[-1]
        places = torch.arange(side, device=maps.device, dtype=maps.dtype)
        x, y = (weights.sum(2) * places).sum(2), (weights.sum(3) * places).sum(2)
        # Pixel p of a map of `side` px is pixel (p + 0.5) * 256 / side - 0.5 of the crop.
        return (torch.stack((x, y), dim=2) + 0.5) * (CROP_SIZE / side) - 0.5


class _LastMaps(nn.Module):
    """The heat maps of the last of the stacked hourglasses."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, picture: Tensor) -> Tensor:
        return self.network(picture)[-1]


def _has_weights_alone(path: Path) -> bool:
    """Whether a file of torch.save holds weights and no program; the old form is no zip, TorchScript always is one."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return not any(name.endswith("/constants.pkl") for name in archive.namelist())
    return path.read_bytes()[:2] == b"\x80\x02"


def _of_weights(path: Path) -> nn.Module:
    """The network of weights by name, as the installed face-alignment builds it. Raises FidError."""
    try:
        weights = torch.load(path, "cpu", weights_only=True)
        hourglasses = {name for name in weights if re.match(r"l\d+\.weight$", name)}
    except Exception as error:  # torch raises errors of many kinds for unsafe and for broken content
        raise FidError(
            f"{path} is refused: it is broken or holds more than tensors ({type(error).__name__})."
        ) from error
    try:
        from face_alignment import models  # pyright: ignore[reportMissingImports] - brought by the user
    except ModuleNotFoundError as error:
        raise FidError(
            f"{path} holds weights by name, whose network face-alignment has: `pip install 'face-alignment>=1.5'`."
        ) from error
    network = models.FAN(min(len(hourglasses), 4))
    network.load_state_dict(weights)
    return _LastMaps(network).eval()
