"""Pictures as tensors: uint8 0..255 to float -1..1 and back."""

import cv2
import numpy as np
import torch
from torch import Tensor

from ..runtime.face.crop import CROP_SIZE


def to_uint8(image: Tensor) -> np.ndarray:
    """Pictures float [N, 3, S, S] in about [-1, 1] -> RGB uint8 [N, S, S, 3], 0..255."""
    pixels = ((image.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).cpu().numpy())


def from_uint8(images: np.ndarray) -> Tensor:
    """RGB uint8 [N, S, S, 3] -> float [N, 3, S, S] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def as_crops(images: np.ndarray) -> np.ndarray:
    """Aligned pictures uint8 [N, S, S, 3] at the size of a crop, uint8 [N, 256, 256, 3]."""
    if images.shape[1] == CROP_SIZE:
        return images
    method = cv2.INTER_AREA if images.shape[1] > CROP_SIZE else cv2.INTER_LINEAR
    return np.stack([cv2.resize(image, (CROP_SIZE, CROP_SIZE), interpolation=method) for image in images])
