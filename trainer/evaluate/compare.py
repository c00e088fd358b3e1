"""Compare outputs with their inputs: identity, attributes, reconstruction, distributions."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..data.dataset import Faces, FrozenNetworks
from ..networks.mobilestylegan import W_SIZE
from . import measures
from .compose import EvaluateConfig, Networks
from .judges import ACCEPT, Judges, Seen
from .measures import summary

AXES = ("pitch", "yaw", "roll")


def pair_measures(identity: Seen, attributes: Seen, output: Seen, features: str) -> dict[str, Any]:
    """Return Table 1: output against identity image (identity) and attribute image (expression, pose), leak and random
    beside.

    The three go row by row. The Frechet distance compares the outputs with the identity images; its floor is that of
    the identity images to the attribute images, as many.
    """
    return {
        "frechet_distance": {
            "features": features,
            "output": measures.frechet_distance(output.features, identity.features),
            "floor": measures.frechet_distance(attributes.features, identity.features),
            "n": len(output),
        },
        "identity": {
            judge: {
                "output": identity_measures(judge, output.codes[judge], codes),
                "leak": identity_measures(judge, output.codes[judge], attributes.codes[judge]),
                "random": identity_measures(judge, codes, attributes.codes[judge]),
            }
            for judge, codes in identity.codes.items()
        },
        "expression": {
            name: {
                "output": summary(measures.point_distance(output.points[name], points, 256)),
                "random": summary(measures.point_distance(identity.points[name], points, 256)),
            }
            for name, points in attributes.points.items()
        },
        "pose": {
            name: {
                "output": summary(measures.pose_distance(output.poses[name], angles)),
                "random": summary(measures.pose_distance(identity.poses[name], angles)),
                **{axis: measures.correlation(output.poses[name][:, k], angles[:, k]) for k, axis in enumerate(AXES)},
            }
            for name, angles in attributes.poses.items()
        },
    }


def identity_measures(judge: str, codes: np.ndarray, others: np.ndarray) -> dict[str, Any]:
    """Cosine of codes [N, D] row by row; by dlib also distance, and share of rows within its threshold."""
    result: dict[str, Any] = {"cosine": summary(measures.cosine(codes, others))}
    if judge == "dlib":
        distance = np.linalg.norm(codes - others, axis=1)
        result |= {"distance": summary(distance), "accept": float((distance <= ACCEPT).mean())}
    return result


def reconstruction_measures(judges: Judges, target: Seen, own: Seen) -> dict[str, Any]:
    """Return Table 2: how far outputs with I_id = I_attr are from their image."""
    errors = measures.rmse(own.crops, target.crops)
    return {
        "n": len(own),
        "rmse": summary(errors),
        "psnr": summary(measures.psnr(errors)),
        "lpips": summary(judges.perceptual_distance(own.crops, target.crops)),
        "identity": {judge: identity_measures(judge, codes, target.codes[judge]) for judge, codes in own.codes.items()},
        "expression": {
            name: summary(measures.point_distance(points, target.points[name], 256))
            for name, points in own.points.items()
        },
        "pose": {
            name: summary(measures.pose_distance(angles, target.poses[name])) for name, angles in own.poses.items()
        },
    }


def w_space(
    frozen: FrozenNetworks, spaces: Mapping[str, np.ndarray], config: EvaluateConfig
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fig. 9: where w [N, 512] lie on the two widest axes of the generator's own w, in its standard deviations there.

    `deviation` is over all 512 dimensions, in standard deviations of untruncated w. A w per layer ([N, n, 512]) counts
    by its mean.
    """
    random = torch.Generator().manual_seed(config.seed + 1)
    z = torch.randn(config.cloud, W_SIZE, generator=random).to(frozen.w_mean.device)
    with torch.no_grad():
        own = frozen.w_mean + config.psi * (frozen.mapping(z) - frozen.w_mean)
    mean, std = frozen.w_mean.cpu().numpy(), frozen.w_std.cpu().numpy()
    pca = measures.Pca.fit(own.cpu().numpy())
    scale = pca.project(own.cpu().numpy()).std(axis=0)
    figures: dict[str, Any] = {"axes_share": pca.share.tolist(), "clouds": {}}
    clouds = {}
    for name, w in {"generator": own.cpu().numpy(), **spaces}.items():
        w = w.mean(axis=1) if w.ndim == 3 else w
        clouds[name] = pca.project(w) / scale
        figures["clouds"][name] = {
            "n": len(w),
            "mean": clouds[name].mean(axis=0).tolist(),
            "std": clouds[name].std(axis=0).tolist(),
            "deviation": float(np.sqrt((((w - mean) / std) ** 2).mean())),
        }
    return figures, clouds


@torch.no_grad()
def w_factors(
    networks: Networks, people: Faces, attributes: Faces, frozen: FrozenNetworks, config: EvaluateConfig
) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """Return which share of the mapper's variance in W comes from the identity, from the attributes, and from both
    together, of every person with all attributes: on the two widest axes of the generator's w and over all 512.

    The shares are those of a two-way analysis of variance without repetition, in standard deviations of W. The second
    answer is where each person, and each attribute image, lies on the two axes. A w per layer counts by its mean.
    """
    n = min(config.grid, len(people))
    rows = []
    for i in range(n):
        person, portrait = people.identity[i : i + 1], people.crop[i : i + 1]
        rows.append(networks(person.expand(n, -1), attributes.crop[:n], portrait.expand(n, -1, -1, -1)))
    w = torch.stack(rows)
    w = ((w.mean(2) if w.ndim == 4 else w) - frozen.w_mean) / frozen.w_std
    own = frozen.draw_w(config.cloud, config.psi, torch.Generator().manual_seed(config.seed + 1))
    pca = measures.Pca.fit(((own - frozen.w_mean) / frozen.w_std).cpu().numpy())
    points = pca.project(w.flatten(0, 1).cpu().numpy()).reshape(n, n, 2)
    parts = variance_shares(np.concatenate((points, w.cpu().numpy()), axis=2))
    sums = {name: np.array([*squares[:2], squares[2:].sum()]) for name, squares in parts.items()}
    total = np.maximum(np.sum(list(sums.values()), axis=0), 1e-12)
    clouds = {
        "identity": {f"person {i + 1}": points[i] for i in range(min(n, 6))},
        "attributes": {f"attributes {i + 1}": points[:, i] for i in range(min(n, 6))},
    }
    return {"n": n * n, "shares": {name: (squares / total).tolist() for name, squares in sums.items()}}, clouds


def variance_shares(values: np.ndarray) -> dict[str, np.ndarray]:
    """Return the sums of squares [D] of values [people, attributes, D] by identity, by attributes, and of the rest,
    which both make together."""
    mean = values.mean((0, 1))
    of_people, of_attributes = values.mean(1) - mean, values.mean(0) - mean
    rest = values - mean - of_people[:, None] - of_attributes[None]
    counts = values.shape[1], values.shape[0]
    return {
        "identity": counts[0] * (of_people**2).sum(0),
        "attributes": counts[1] * (of_attributes**2).sum(0),
        "both together": (rest**2).sum((0, 1)),
    }


def distributions(title: str, identity: Seen, attributes: Seen, output: Seen) -> dict[str, dict[str, np.ndarray]]:
    """Return what the page draws as histograms: cosines [N] of SFace and ArcFace, distances [N] of dlib."""

    def compared(judge: str, a: Seen, b: Seen) -> np.ndarray:
        a_codes, b_codes = a.codes[judge], b.codes[judge]
        return np.linalg.norm(a_codes - b_codes, axis=1) if judge == "dlib" else measures.cosine(a_codes, b_codes)

    return {
        f"{judge} {'distance' if judge == 'dlib' else 'cosine'} of the output, {title}": {
            "identity image": compared(judge, output, identity),
            "attribute image": compared(judge, output, attributes),
            "two random people": compared(judge, identity, attributes),
        }
        for judge in output.codes
    }
