"""Statistics of faces: identity codes of real people, light, skin, and what transfer of a face means in W."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CANDIDATES = 16  # drawn codes of real people, the nearest of which a face's code is led towards
REAL_CODES = Path(__file__).with_name("sface_real_codes.npz")


class RealIdentities:
    """Identity codes like those of photographed people, from statistics of real SFace codes.

    Codes of generated faces fill a corner of code space; these do not. The statistics are a mean and a covariance; they
    hold no picture and nobody's code (NOTICE tells where they come from).
    """

    def __init__(self) -> None:
        with np.load(REAL_CODES) as data:
            self.mean = torch.from_numpy(data["mean"].astype(np.float32))
            covariance = torch.from_numpy(data["covariance"].astype(np.float64))
        values, vectors = torch.linalg.eigh(covariance)
        self.root = (vectors * values.clamp_min(0).sqrt()).float()

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Return n unit codes [n, 128]."""
        return F.normalize(self.mean + torch.randn(n, len(self.mean), generator=generator) @ self.root.T, dim=1)

    def towards(self, codes: Tensor, share: float, generator: torch.Generator, rows: slice, n: int) -> Tensor:
        """Return unit codes [rows of n, 128], each led towards a drawn one by up to `share`: code + u * drawn, at
        length 1.

        Of `CANDIDATES` drawn ones it is the nearest: one that may well have the code's sex, age and looks, which the
        mapper is told beside it. Whatever a generated code says of a person, the mapper then cannot take it for
        certain, as it cannot of a photograph's.
        """
        drawn = self.draw(n * CANDIDATES, generator).unflatten(0, (n, CANDIDATES))[rows].to(codes.device)
        nearest = (drawn * codes[:, None]).sum(2).argmax(1)
        drawn = drawn[torch.arange(len(codes), device=codes.device), nearest]
        u = share * torch.rand(n, 1, generator=generator)[rows].to(codes.device)
        return F.normalize(codes + u * drawn, dim=1)


class Light:
    """What of a face's colour is the light of its picture: the part that the picture's border predicts.

    A ridge regression of `losses.skin_colour` on `losses.border_colours` of known faces; the rest is the person's tone.
    So a person put into another picture keeps their skin under that picture's light:
    colour = tone(identity image) + light(attribute image).
    """

    def __init__(self, borders: Tensor, colours: Tensor, penalty: float = 0.1) -> None:
        """Borders [N, D] and skin colours [N, 3] of the faces to learn from."""
        self.mean = borders.mean(0)
        self.weights = ridge_regression(borders, colours, penalty)

    def __call__(self, borders: Tensor) -> Tensor:
        """Borders [N, D] -> light [N, 3], 0 on average."""
        return (borders - self.mean.to(borders)) @ self.weights.to(borders)


class Lightness:
    """How light a person's skin is, from w: a ridge regression of the mean tone of known faces.

    The tone is the skin colour without the picture's light, so that pictures taken in the shade do not count as dark.
    """

    def __init__(self, w: Tensor, borders: Tensor, colours: Tensor) -> None:
        """w [N, 512], borders [N, D] and skin colours [N, 3] of the faces to learn from."""
        tone = (colours - Light(borders, colours)(borders)).mean(1, keepdim=True)
        self.mean, self.std = w.mean(0), w.std(0)
        self.weights = ridge_regression((w - self.mean) / self.std, tone, 0.05)

    def __call__(self, w: Tensor) -> Tensor:
        """w [N, 512] -> lightness [N] on w's device, 0 on average."""
        return ((w - self.mean.to(w)) / self.std.to(w) @ self.weights.to(w)).squeeze(1)


class Transfer:
    """Where in W a person goes with the attributes of another: a target that costs no picture.

    Of the way from the person's w to the other's, the part is gone that changes what belongs to the attributes:
    landmarks (pose, expression) and border colours (background, light), both taken as linear in w. With F the two
    regressions side by side, weighted, in standard deviations of W, it is (I + F F')^-1 F F' (w_other - w_person): the
    least way whose end shows the other's attributes.
    """

    def __init__(
        self, w: Tensor, landmarks: Tensor, borders: Tensor, weights: tuple[float, float] = (30.0, 5.0)
    ) -> None:
        """w [N, 512], landmarks [N, K, 2] as fractions of the crop and borders [N, D] of the faces to learn from."""
        standard = (w - w.mean(0)) / w.std(0)
        parts = (landmarks.flatten(1), borders)
        maps = [k * ridge_regression(standard, part, 0.05) for k, part in zip(weights, parts, strict=True)]
        both = torch.cat(maps, dim=1).double()
        square = both @ both.T
        part = torch.linalg.solve(torch.eye(len(square)).to(square) + square, square).float()
        self.matrix = part / w.std(0)[:, None] * w.std(0)  # for row vectors of w as it is

    def __call__(self, person: Tensor, other: Tensor) -> Tensor:
        """w of the person and of the other [N, 512] -> w of the person with the other's attributes."""
        return person + (other - person) @ self.matrix.to(person)


def ridge_regression(x: Tensor, y: Tensor, penalty: float) -> Tensor:
    """Return weights [D, E] that predict y [N, E] from x [N, D], both centred; `penalty` is a share of x's mean
    variance."""
    x, y = (values.double() - values.double().mean(0) for values in (x, y))
    square = x.T @ x
    size = penalty * square.trace() / len(square)
    return torch.linalg.solve(square + size * torch.eye(len(square)).to(square), x.T @ y).float()
