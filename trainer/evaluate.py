"""Measures a checkpoint on generated pairs that training never saw: `fid-train evaluate`.

Identity: SFace cosine between the output and the identity image; the leak is the same measure against the attribute
image, beside random pairs. Landmarks: mean distance of the inner face's points to those of the attribute image, as a
share of the same distance between random pairs. Reconstruction: both measures where I_id = I_attr.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .data import Faces, FrozenNetworks
from .fit import Trainable


@dataclass(frozen=True)
class EvaluateConfig:
    """What `fid-train evaluate` measures."""

    pairs: int = 256
    psi: float = 0.8
    seed: int = 1_000_000_007  # far from the seeds of training
    batch: int = 8


def _distance(points: Tensor, others: Tensor) -> Tensor:
    """Mean distance [N] of landmarks [N, K, 2], as a fraction of the 256 px crop."""
    return (points - others).norm(dim=2).mean(dim=1) / 256


@torch.no_grad()
def evaluate(networks: Trainable, frozen: FrozenNetworks, config: EvaluateConfig) -> dict[str, Any]:
    """Figures of E_attr and M through `frozen.synthesis` on `config.pairs` pairs, by name; cosines as mean and std."""
    random = torch.Generator().manual_seed(config.seed)
    people = frozen.draw(config.pairs, config.psi, random, config.batch)
    attributes = frozen.draw(config.pairs, config.psi, random, config.batch)

    def outputs(identity: Faces) -> tuple[Tensor, Tensor, Tensor]:
        codes, points, latents = [], [], []
        for i in range(0, config.pairs, config.batch):
            index = torch.arange(i, min(i + config.batch, config.pairs), device=frozen.w_mean.device)
            w = networks(identity[index].identity, attributes[index].crop)
            image = frozen.synthesis(w)
            codes.append(frozen.identity(image))
            points.append(frozen.inner_face(image))
            latents.append(w)
        return torch.cat(codes), torch.cat(points), torch.cat(latents)

    def cosine(a: Tensor, b: Tensor) -> dict[str, float]:
        values = (a * b).sum(dim=1)
        return {"mean": values.mean().item(), "std": values.std().item()}

    codes, points, latents = outputs(people)
    own_codes, own_points, _ = outputs(attributes)
    rolled = attributes.landmarks.roll(1, 0)
    random_distance = _distance(attributes.landmarks, rolled).mean()
    return {
        "configuration": asdict(config),
        "resolution": frozen.synthesis.resolution,
        "identity_cosine": cosine(codes, people.identity),
        "leak_cosine": cosine(codes, attributes.identity),
        "random_cosine": cosine(people.identity, attributes.identity),
        "landmark_error": (_distance(points, attributes.landmarks).mean() / random_distance).item(),
        "random_landmark_distance": random_distance.item(),
        "reconstruction_cosine": cosine(own_codes, attributes.identity),
        "reconstruction_landmark_error": (_distance(own_points, attributes.landmarks).mean() / random_distance).item(),
        "w_deviation": ((latents - frozen.w_mean) / frozen.w_std).square().mean().sqrt().item(),
        "generated_w_deviation": ((people.w - frozen.w_mean) / frozen.w_std).square().mean().sqrt().item(),
    }
