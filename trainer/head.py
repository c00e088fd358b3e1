"""Find the head in an aligned crop: a person against the background, by MediaPipe's selfie segmentation, near the face.

Shoulders, clothes and whoever stands behind are left out by an ellipse around where aligned heads are.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..runtime.face.crop import CROP_SIZE
from ..runtime.weights.catalogue import ensure
from .networks.tflite import TfliteGraph

CENTRE = (128.0, 122.0)  # x, y px of the crop: the ellipse
RADII = (100.0, 122.0)
EDGE = 14.0  # steepness: from 0.12 to 0.88 within about 28 px of a radius of 100


class HeadMask(nn.Module):
    """Where the head is, 0..1."""

    ellipse: Tensor

    def __init__(self, segmentation: nn.Module) -> None:
        """`segmentation`: picture [N, 3, 256, 256], RGB 0..1 -> (person [N, 1, 256, 256], 0..1,)."""
        super().__init__()
        self.segmentation = segmentation
        x, y = ((torch.arange(CROP_SIZE) - centre) / radius for centre, radius in zip(CENTRE, RADII, strict=True))
        self.register_buffer("ellipse", torch.sigmoid((1 - (x[None] ** 2 + y[:, None] ** 2).sqrt()) * EDGE))

    @classmethod
    def load(cls) -> "HeadMask":
        """Read the fetched network, fetching it when it is missing."""
        return cls(TfliteGraph(ensure("segmentation") / "selfie_segmentation.tflite"))

    @torch.no_grad()
    def forward(self, crop: Tensor) -> Tensor:
        """Return the mask [N, 1, S, S] of aligned crops [N, 3, S, S], RGB in [-1, 1]."""
        side = crop.shape[-1]
        picture = (crop.clamp(-1, 1) + 1) / 2
        if side != CROP_SIZE:
            picture = F.interpolate(picture, (CROP_SIZE, CROP_SIZE), mode="bilinear", antialias=True)
        (person,) = self.segmentation(picture)
        mask = person * self.ellipse
        return mask if side == CROP_SIZE else F.interpolate(mask, (side, side), mode="bilinear", antialias=True)
