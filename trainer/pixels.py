"""Pictures as tensors: uint8 0..255 to float -1..1 and back."""

import cv2
import numpy as np
import torch
from torch import Tensor

from ..runtime.face.crop import CROP_SIZE, resample_matrix


def to_float(pixels: Tensor) -> Tensor:
    """Return uint8 pixels, 0..255, as float32 in [-1, 1]; the shape stays."""
    return pixels.float() / 127.5 - 1


def to_bytes(image: Tensor) -> Tensor:
    """Return float pixels in about [-1, 1] as uint8, 0..255, rounded; the shape stays."""
    return ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def psnr_db(image: Tensor, target: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each picture [N], dB; both [N, 3, H, W] in [-1, 1] (peak 2), clipped to
    the range. For uint8 pictures outside of training: `runtime.engines.compare.psnr_db`."""
    error = (image.clamp(-1, 1) - target.clamp(-1, 1)).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(4 / error.clamp_min(1e-12))


def to_uint8(image: Tensor) -> np.ndarray:
    """Return pictures float [N, 3, S, S] in about [-1, 1] as RGB uint8 [N, S, S, 3], 0..255."""
    return np.ascontiguousarray(to_bytes(image.float()).permute(0, 2, 3, 1).cpu().numpy())


def from_uint8(images: np.ndarray) -> Tensor:
    """Return RGB uint8 [N, S, S, 3] as float [N, 3, S, S] in [-1, 1]."""
    return to_float(torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2))


def as_crops(images: np.ndarray) -> np.ndarray:
    """Return aligned pictures uint8 [N, S, S, 3] at the size of a crop, uint8 [N, 256, 256, 3]."""
    if images.shape[1] == CROP_SIZE:
        return images
    method = cv2.INTER_AREA if images.shape[1] > CROP_SIZE else cv2.INTER_LINEAR
    return np.stack([cv2.resize(image, (CROP_SIZE, CROP_SIZE), interpolation=method) for image in images])


class Placement:
    """Takes aligned crops of any size to the square that a network looks at, as two small matrix products.

    A point p of the 256 px crop lies at `scale * p + shift` (x, y) of the square.
    """

    def __init__(self, size: int, scale: float, shift: tuple[float, float]) -> None:
        """`size`: px, side of the square."""
        self.size, self.scale, self.shift = size, scale, shift
        self._known: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def __call__(self, crop: Tensor) -> Tensor:
        """Map crop [N, 3, S, S] -> [N, 3, size, size], values in the same range."""
        rows, columns = self.matrices(crop.shape[-1], crop.device)
        return rows @ crop @ columns

    def matrices(self, side: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Return rows [size, side] and columns [side, size] for crops of `side` px."""
        key = (side, device or torch.device("cpu"))
        if key not in self._known:
            # Pixel p of an S px crop is pixel (p + 0.5) * 256 / S - 0.5 of the 256 px crop of the placement.
            ratio = CROP_SIZE / side
            columns, rows = (
                resample_matrix(self.size, side, self.scale * ratio, shift + self.scale * (ratio - 1) / 2)
                for shift in self.shift
            )
            self._known[key] = torch.from_numpy(rows).to(device), torch.from_numpy(columns.T.copy()).to(device)
        return self._known[key]
