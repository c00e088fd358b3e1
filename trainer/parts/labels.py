"""Labels without anybody who draws them: the generator's activations fall into clusters that mean something.

In a StyleGAN's middle layers, every place holds a vector that tells what is there: k-means over them (Collins et al.
2020, "Editing in Style") finds hair, cheeks, neck, clothes and backgrounds in every face alike. 28 clusters of the
activations at 32 and 64 px were looked at once and named (`CLUSTERS`); the person's outline comes from MediaPipe's
selfie segmentation; and a guided filter (He et al. 2010) brings both to the edges of the picture.
"""

from importlib import resources
from io import BytesIO

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...runtime.face.parts import PARTS, PARTS_SIDE
from ..networks.mobilestylegan import STYLES_PER_BLOCK, Synthesis, per_style

CLUSTERS = {
    "face": (0, 4, 14, 15, 19, 20, 21, 23),
    "hair": (1, 13, 22, 24, 26, 27),
    "neck": (3,),
    "body": (2, 5, 7, 25),
}
"""Part -> clusters that are it where there is a person. The others are background, or edges that mean nothing."""
SHARPNESS = 12.0  # of the soft assignment of a place to clusters, per unit of cosine
RADIUS, SMOOTHNESS = 5, 2e-3  # px and squared colour 0..1, of the guided filter
FEATURES = "parts-clusters.npz"


class PartsTeacher(nn.Module):
    """W or W+ -> pictures and their labels."""

    def __init__(self, synthesis: Synthesis, segmentation: nn.Module) -> None:
        """`synthesis`: the generator, 256 px. `segmentation`: picture [N, 3, 256, 256], 0..1 -> (person,)."""
        super().__init__()
        self.synthesis, self.segmentation = synthesis.eval(), segmentation
        stored = resources.files("fid.trainer.data").joinpath(FEATURES).read_bytes()
        with np.load(BytesIO(stored), allow_pickle=False) as arrays:
            for name in arrays.files:
                self.register_buffer(name, torch.from_numpy(arrays[name].astype(np.float32)))

    @torch.no_grad()
    def forward(self, w: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return pictures uint8 [N, 256, 256, 3], RGB, and parts uint8 [N, 5, 128, 128], 0..255, without occluders."""
        coarse, fine, image = self._activations(w)
        clusters = torch.softmax(SHARPNESS * self._similarity(coarse, fine), dim=1)
        named = torch.stack([clusters[:, CLUSTERS[part]].sum(1) for part in PARTS[1:5]], dim=1)
        side = (PARTS_SIDE, PARTS_SIDE)
        named = F.interpolate(named, side, mode="bilinear").permute(0, 2, 3, 1).numpy()
        person = self.segmentation((image.clamp(-1, 1) + 1) / 2)[0]
        person = F.avg_pool2d(person, person.shape[-1] // PARTS_SIDE)[:, 0].numpy()
        pictures = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        labels = [refined(*one) for one in zip(pictures, named, person, strict=True)]
        return pictures, np.rint(255 * np.stack(labels)).astype(np.uint8)

    def _activations(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Those at 32 and 64 px, and the image [N, 3, 256, 256], -1..1."""
        network = self.synthesis
        _, *rest = per_style(w, network.n_styles)
        coarse = network.trunk(w, 3)
        fine = network.blocks[3](coarse, *rest[3 * STYLES_PER_BLOCK : 4 * STYLES_PER_BLOCK])
        return coarse, fine, network.tail(fine, w, 4)

    def _similarity(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """The cosine of every place to every cluster [N, 28, 64, 64]."""
        scaled = [
            torch.einsum("nchw,kc->nkhw", (x - self.get_buffer(f"m{side}")) / self.get_buffer(f"s{side}"), basis)
            for x, side, basis in ((coarse, 32, self.get_buffer("p32")), (fine, 64, self.get_buffer("p64")))
        ]
        places = torch.cat((F.interpolate(scaled[0], scale_factor=2.0, mode="bilinear"), scaled[1]), dim=1)
        return torch.einsum("nchw,kc->nkhw", F.normalize(places, dim=1), self.get_buffer("c"))


def refined(picture: np.ndarray, named: np.ndarray, person: np.ndarray) -> np.ndarray:
    """Return parts float32 [5, 128, 128] of a picture uint8 [256, 256, 3], given the parts of a person float32
    [128, 128, 4] and the person's outline float32 [128, 128]."""
    small = cv2.resize(picture, (PARTS_SIDE, PARTS_SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    weights = np.stack([np.clip(guided(small, named[..., i], person), 1e-4, None) for i in range(4)])
    return np.concatenate((1 - person[None], person * weights / weights.sum(0)))


def guided(picture: np.ndarray, values: np.ndarray, trust: np.ndarray) -> np.ndarray:
    """Return values float32 [H, W] filtered along the edges of a picture float32 [H, W, 3], 0..1, each counted by its
    trust."""
    size = (2 * RADIUS + 1,) * 2
    trust = trust + 1e-3
    total = cv2.blur(trust, size)

    def mean(x: np.ndarray) -> np.ndarray:
        return cv2.blur(x * (trust if x.ndim == 2 else trust[..., None]), size) / (
            total if x.ndim == 2 else total[..., None]
        )

    centre, middle = mean(picture), mean(values)
    products = mean((picture[..., :, None] * picture[..., None, :]).reshape(*values.shape, 9)).reshape(
        *values.shape, 3, 3
    )
    covariance = products - centre[..., :, None] * centre[..., None, :] + SMOOTHNESS * np.eye(3, dtype=np.float32)
    joint = mean(picture * values[..., None]) - centre * middle[..., None]
    slope = np.linalg.solve(covariance, joint[..., None])[..., 0]
    offset = middle - (slope * centre).sum(-1)
    return ((mean(slope.astype(np.float32)) * picture).sum(-1) + mean(offset.astype(np.float32))).astype(np.float32)
