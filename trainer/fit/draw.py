"""What a training step draws: faces, photographs, views of a camera. All of it follows from the seed and the step."""

from dataclasses import dataclass, field
from enum import IntEnum

import torch
from torch import Tensor

from ..data.augment import augment
from ..data.dataset import Faces, FrozenNetworks
from ..data.statistics import RealIdentities
from ..presets import FitConfig
from .processes import Processes


class Stream(IntEnum):
    """The uses of random numbers within one step: each has numbers of its own, so that none depends on another.

    The values are part of what a run computes: with others, a resumed run would not equal one that never stopped.
    """

    SELF_FACES = 0
    SELF_VIEW = 1
    CROSS_IDENTITIES = 2
    CROSS_VIEW = 3
    REAL_W = 4
    CROSS_ATTRIBUTES = 5
    CROSS_PEOPLE = 6
    KNOWN_FACES = 7  # once, of step 0
    SELF_IDENTITIES = 9
    CROSS_PORTRAIT = 11
    ATTRIBUTE_PHOTOS = 12
    PEOPLE_PHOTOS = 13


STREAMS = 16  # room for them


def step_seed(seed: int, step: int, use: int) -> int:
    """Return the seed of one use of random numbers, a `Stream` or a number below `STREAMS`, in a step of a run."""
    return (seed * 1_000_003 + step) * STREAMS + use


@dataclass(frozen=True)
class Draws:
    """The draws of one step, of which each process takes its rows."""

    config: FitConfig
    frozen: FrozenNetworks
    dataset: Faces | None  # None: fresh faces
    photos: Faces | None
    processes: Processes
    device: torch.device
    step: int = 0
    real_identities: RealIdentities = field(default_factory=RealIdentities)

    def random(self, stream: Stream) -> torch.Generator:
        """Return the random numbers of this step for one use."""
        return torch.Generator().manual_seed(step_seed(self.config.seed, self.step, stream))

    def faces(self, n: int, stream: Stream) -> Faces:
        """Return this process's share of n faces of the dataset, or of fresh ones."""
        random, rows = self.random(stream), self.processes.rows(n)
        if self.dataset is None:
            return self.frozen.draw(n, self.config.psi, random, rows=rows)
        return self.dataset[torch.randint(len(self.dataset), (n,), generator=random)[rows]].to(self.device)

    def real_w(self, n: int, stream: Stream) -> Tensor:
        """Return the w of `faces`, [N, 512], without making fresh ones' pictures."""
        random, rows = self.random(stream), self.processes.rows(n)
        if self.dataset is None:
            return self.frozen.draw_w(n, self.config.psi, random, rows)
        return self.dataset.w[torch.randint(len(self.dataset), (n,), generator=random)[rows]].to(self.device)

    def with_photos(self, faces: Faces, n: int, stream: Stream) -> Faces:
        """Return the faces, a share of them replaced by the user's photographs."""
        if self.photos is None:
            return faces
        random, rows = self.random(stream), self.processes.rows(n)
        index = torch.randint(len(self.photos), (n,), generator=random)[rows]
        chosen = (torch.rand(n, generator=random) < self.config.photo_share)[rows].to(self.device)
        photos = self.photos[index].to(self.device)

        def either(photo: Tensor, face: Tensor) -> Tensor:
            return torch.where(chosen.view(-1, *[1] * (face.ndim - 1)), photo, face)

        return Faces(*(either(getattr(photos, name), getattr(faces, name)) for name in Faces.__dataclass_fields__))

    def seen_crop(self, faces: Faces, n: int, stream: Stream) -> Tensor:
        """Return the attribute crops as a camera would have them."""
        if not self.config.augmentation:
            return faces.crop
        return augment(faces.crop, self.random(stream), n, self.processes.rows(n))

    def identities(self, codes: Tensor, n: int, stream: Stream) -> Tensor:
        """Return this process's identity codes of a batch of n, led towards ones of real people."""
        share = self.config.real_identities
        if not share:
            return codes
        return self.real_identities.towards(codes, share, self.random(stream), self.processes.rows(n), n)
