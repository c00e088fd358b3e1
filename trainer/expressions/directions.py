"""Directions in W that move one expression and leave person, pose and light nearly alone."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..controls import POSE, expression_of
from ..data.dataset import UNWATCHED, FrozenNetworks
from ..evaluate.measures import head_pose
from ..loop import Preparing

COMPONENTS = 60  # principal components of the face mesh that pose and expression are read from
REGIONS = ((0, 256, 0, 24), (0, 256, 232, 256), (100, 200, 90, 166), (10, 60, 60, 196))
"""Top, bottom, left and right, px of 256, whose mean colours a direction holds: both sides, face, forehead."""
LIPS, WIDTH, CORNERS, EYES, INNER_BROWS, BROWS, CHIN = range(POSE, POSE + 7)  # of the numbers: `expression_of`


class Expression(NamedTuple):
    """One direction, by the numbers of pose and expression."""

    wanted: dict[int, float]  # that move, and by how many standard deviations a unit moves them
    free: tuple[int, ...] = ()  # that may move along; all others are held


EXPRESSIONS = {
    "eyes": Expression({EYES: 1.0}, (BROWS,)),
    "lips": Expression({LIPS: 1.0}, (CHIN,)),
    "smile": Expression({WIDTH: 0.7, CORNERS: 0.7}),
    "brows": Expression({INNER_BROWS: 0.7, BROWS: 0.7}),
}


@dataclass(frozen=True)
class ExpressionsConfig:
    """What `fid-train expressions` does."""

    sampled: int = 110  # faces whose gradients tell the directions
    codes: int = 8  # random projections of the identity code's gradient
    colour: float = 20.0  # weight of held colours, of a unit of [-1, 1]
    held: float = 0.3  # weight of numbers that are to stay, of a standard deviation
    ridge: float = 0.1  # of the mean variance
    views: int = 2  # of each face, beside the face as it is
    steps: int = 2000
    batch: int = 56
    photo_batch: int = 24  # photographs beside them, if there are any
    rate_attributes: float = 6e-5
    rate_mapper: float = 4e-5
    gain: float = 1.1  # of d, by which answers move; more makes up for what a regression loses
    numbers_weight: float = 0.12  # of the squared errors in pose and expression, beside those of w
    lips: float = 1.3  # of the lips' error beside that of another number
    eyes: float = 1.6  # of the eyes'
    codes_weight: float = 0.1  # of the squared distance of identity codes that an error of w makes
    lacking: float = 0.8  # of what compositions lack of a photograph's expression, by which its answers move
    people: int = 3  # drawn people by whose compositions that is measured
    real_identities: float = 1.5  # how far identity codes are led towards those of real people
    ema: float = 0.995
    bf16: bool = False
    seed: int = 77


class Gradients(NamedTuple):
    """Gradients in W, in its standard deviations, of faces of the generator."""

    numbers: Tensor  # [N, K, 512], of pose and expression, in their standard deviations
    codes: Tensor  # [N, R, 512], of random projections of the identity code
    colours: Tensor  # [N, C, 512], of mean colours of `REGIONS`
    spread: Tensor  # [K], a standard deviation of each number


def numbers_of(meshes: np.ndarray) -> np.ndarray:
    """Return pitch, yaw (degrees) and `expression_of` of face mesh points [N, 468, 3], px: [N, K]."""
    return np.hstack([head_pose(meshes)[:, :POSE], expression_of(meshes)])


def readout(meshes: np.ndarray) -> np.ndarray:
    """Return weights [468 * 3, K] that read the numbers, in their standard deviations, off face mesh points [N, 468, 3]
    px, up to a constant: a ridge regression on their principal components."""
    points, numbers = meshes.reshape(len(meshes), -1), numbers_of(meshes)
    points, numbers = points - points.mean(0), (numbers - numbers.mean(0)) / numbers.std(0)
    axes = np.linalg.svd(points, full_matrices=False)[2][:COMPONENTS].T
    parts = points @ axes
    square = parts.T @ parts
    ridge = 1e-3 * np.trace(square) / len(square)
    return axes @ np.linalg.solve(square + ridge * np.eye(len(square)), parts.T @ numbers)


def gradients(
    frozen: FrozenNetworks, w: Tensor, config: ExpressionsConfig, preparing: Preparing = UNWATCHED
) -> Gradients:
    """Return the gradients at the first `config.sampled` of faces w [N, 512]; all tell what a standard deviation is."""
    random, landmarks = torch.Generator().manual_seed(config.seed), frozen.landmarks
    with torch.no_grad():
        parts = preparing("drawing faces", w.split(8))
        meshes = torch.cat([landmarks(frozen.synthesis(part).float()).cpu() for part in parts])
    reading = torch.from_numpy(readout(meshes.numpy().astype(np.float64))).float().to(w.device)
    found: tuple[list[Tensor], ...] = ([], [], [])
    for code in preparing("differentiating faces", w[: config.sampled].split(1)):
        moved = code.clone().requires_grad_(True)
        image = frozen.synthesis(moved).float()
        numbers = landmarks(image).reshape(-1) @ reading
        directions = torch.randn(config.codes, frozen.identity.code_size, generator=random).to(w.device)
        colours = torch.cat([image[0, :, a:b, c:d].mean((1, 2)) for a, b, c, d in scaled_regions(image.shape[-1])])
        for kept, values in zip(found, (numbers, directions @ frozen.identity(image)[0], colours), strict=True):
            rows = [torch.autograd.grad(value, moved, retain_graph=True)[0][0] for value in values]
            kept.append(torch.stack(rows) * frozen.w_std)
    spread = torch.from_numpy(numbers_of(meshes.numpy()).std(0)).float()
    return Gradients(*(torch.stack(kept).cpu() for kept in found), spread=spread)


def scaled_regions(side: int) -> list[tuple[int, ...]]:
    """Return `REGIONS` of a picture of another size."""
    return [tuple(edge * side // 256 for edge in region) for region in REGIONS]


def direction(expression: Expression, given: Gradients, config: ExpressionsConfig) -> Tensor:
    """Return the direction [512] in W, in its standard deviations, that moves an expression by one on average.

    Of all that do, it is the one that changes identity code, colours and the numbers that are held least, in squares,
    and is short (ridge).
    """
    n = len(given.numbers)
    held = [k for k in range(given.numbers.shape[1]) if k not in (*expression.wanted, *expression.free)]
    rows = torch.cat(
        [
            given.codes.flatten(0, 1) / math.sqrt(n * given.codes.shape[1]),
            given.colours.flatten(0, 1) * math.sqrt(config.colour / n),
            given.numbers[:, held].flatten(0, 1) * math.sqrt(config.held / n),
        ]
    ).double()
    wanted = sum(share * given.numbers[:, k].double().mean(0) for k, share in expression.wanted.items())
    assert isinstance(wanted, Tensor)
    square = rows.T @ rows
    ridge = config.ridge * square.diagonal().mean()
    found = torch.linalg.solve(square + ridge * torch.eye(len(square), dtype=torch.float64), wanted)
    return (found / (wanted @ found)).float()


def edits(n: int, random: torch.Generator) -> Tensor:
    """Return by how much n faces are moved in each of `EXPRESSIONS`, [n, 4], in units of their directions.

    Eyes close more often than they widen, and mouths open more than they close; three in ten of all are left alone.
    """

    def either(low: float, high: float) -> Tensor:
        uniform = low + (high - low) * torch.rand(n, generator=random)
        return torch.where(torch.rand(n, generator=random) < 0.5, torch.randn(n, generator=random), uniform)

    columns = (either(-5, 1), either(-1.5, 3), *(1.25 * torch.randn(2, n, generator=random)))
    return torch.stack(columns, 1) * (torch.rand(n, len(columns), generator=random) < 0.7)
