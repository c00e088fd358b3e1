"""The probe: what the frozen networks would say of G(w), guessed from w alone at next to no cost.

The mapper learns from it about many more compositions than can be made. It is worth as much as its slope: the direction
in w that makes a guessed identity better must be one that makes the true identity better. So it learns on from what was
really composed, which a memory keeps, and there not only what came out, but also how it would have changed with w
(Sobolev training, Czarnecki et al. 2017): a gradient through the generator tells 512 numbers of one composition, and
the mapper's own training has it at hand.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import losses
from ..networks.trained import IDENTITY_SIZE, W_SIZE


class Probe(nn.Module):
    """What E_id, E_lnd and `losses.skin_colour` would say of G(w).

    w [N, 512] -> unit identity codes [N, 128], landmarks [N, K, 2] as fractions of the crop and skin colours [N, 3]. A
    perceptron on standardised w; landmarks and colours are learnt standardised.
    """

    w_mean: Tensor
    w_std: Tensor
    landmarks_mean: Tensor
    landmarks_std: Tensor
    skin_mean: Tensor
    skin_std: Tensor

    def __init__(self, n_landmarks: int, width: int = 1024, identity_size: int = IDENTITY_SIZE) -> None:
        super().__init__()
        self.identity_size = identity_size
        hidden: list[nn.Module] = [nn.Dropout(0.15)]
        for size in (W_SIZE, width):
            hidden += [nn.Linear(size, width), nn.GELU(), nn.Dropout(0.3)]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, identity_size + 3 + 2 * n_landmarks))
        self.register_buffer("w_mean", torch.zeros(W_SIZE))
        self.register_buffer("w_std", torch.ones(W_SIZE))
        self.register_buffer("landmarks_mean", torch.zeros(n_landmarks, 2))
        self.register_buffer("landmarks_std", torch.ones(1))
        self.register_buffer("skin_mean", torch.zeros(3))
        self.register_buffer("skin_std", torch.ones(3))

    def forward(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        answers = self.layers((w - self.w_mean) / self.w_std)
        code, skin, landmarks = answers.split((self.identity_size, 3, answers.shape[1] - self.identity_size - 3), dim=1)
        return (
            F.normalize(code, dim=1),
            self.landmarks_mean + self.landmarks_std * landmarks.unflatten(1, (-1, 2)),
            self.skin_mean + self.skin_std * skin,
        )

    def error(self, w: Tensor, identity: Tensor, landmarks: Tensor, skin: Tensor) -> Tensor:
        """Return how far its guesses are from what was seen; landmarks in pixels of a 256 px crop."""
        code, points, colour = self(w)
        points_error = (points - landmarks / 256) / self.landmarks_std
        skin_error = (colour - skin) / self.skin_std
        return losses.identity_cosine(code, identity) + points_error.square().mean() + skin_error.square().mean()

    def slope_error(self, w: Tensor, target: Tensor, slope: Tensor) -> Tensor:
        """Return how far the slope of its identity loss is from the true one, in direction and size.

        `slope` [N, 512] is the gradient of 1 - cosine between the identity code of G(w) and `target` [N, 128], for w in
        standard deviations of W.
        """
        w = w.detach().requires_grad_(True)
        loss = losses.identity_cosine(self(w)[0], target) * len(w)
        guess = torch.autograd.grad(loss, w, create_graph=True)[0] * self.w_std
        size = (guess - slope).square().sum(1).mean() / slope.square().sum(1).mean().clamp(min=1e-12)
        return 1 - F.cosine_similarity(guess, slope).mean() + 0.5 * size


class Seen(NamedTuple):
    """What was really seen of compositions, without gradient."""

    w: Tensor  # [N, 512]
    identity: Tensor  # [N, 128], unit codes
    landmarks: Tensor  # [N, K, 2], pixels of a 256 px crop
    skin: Tensor  # [N, 3]
    target: Tensor  # [N, 128], the codes that were wanted
    slope: Tensor  # [N, 512], as `Probe.slope_error` takes it


class Memory:
    """The last so many compositions."""

    def __init__(self, size: int) -> None:
        self.size, self.count = size, 0
        self._kept: Seen | None = None

    def __len__(self) -> int:
        return min(self.count, self.size)

    def add(self, seen: Seen) -> None:
        """Keep these, no more than `size`, in the place of the oldest ones."""
        if self._kept is None:
            self._kept = Seen(*(values.new_zeros(self.size, *values.shape[1:]) for values in seen))
        place = torch.arange(self.count, self.count + len(seen.w)) % self.size
        for kept, values in zip(self._kept, seen, strict=True):
            kept[place] = values
        self.count += len(seen.w)

    def sample(self, n: int, random: torch.Generator) -> Seen:
        """Return n of them, drawn with replacement; there must be some."""
        assert self._kept is not None
        index = torch.randint(len(self), (n,), generator=random)
        return Seen(*(values[index] for values in self._kept))

    def state(self) -> dict[str, Tensor]:
        """Return all of it as tensors; `restore` takes it back."""
        if self._kept is None:
            return {}
        return {"count": torch.tensor(self.count), **self._kept._asdict()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` gave, and its size."""
        if state:
            self.count, self._kept = int(state["count"]), Seen(*(state[name].clone() for name in Seen._fields))
            self.size = len(self._kept.w)
