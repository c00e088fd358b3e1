"""Pictures to learn expressions from: generated faces that are moved, and what compositions lack of photographs."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...runtime.errors import InputError
from ..controls import POSE
from ..data.dataset import Faces, FrozenNetworks
from ..loop import Preparing
from ..networks.trained import AttributeEncoder
from ..pixels import to_bytes, to_float
from ..weights.checkpoint import make_folder, writing
from ..weights.trained import Trainable
from .directions import ExpressionsConfig, edits, numbers_of

SHARD = 256  # faces or photographs in one file
FARTHEST = 4.0  # units of a direction by which the answers of a photograph move at most


class Taught(NamedTuple):
    """What a run learns of W, kept in its folder."""

    moves: Tensor  # [4, 512]: the directions, in standard deviations of W
    numbers: Tensor  # [K, 512]: mean gradients of pose and expression
    codes: Tensor  # [512, 512]: e @ codes @ e is the squared distance of identity codes that an error e of w makes
    spread: Tensor  # [K]: a standard deviation of each number


class Edited(NamedTuple):
    """Views of faces: the face as it is and edited ones."""

    crops: Tensor  # uint8 [N, V, 3, 128, 128], RGB, as E_attr sees them
    amounts: Tensor  # float32 [N, V, 4], of `edits`; 0 of the first view


class Photos(NamedTuple):
    """Photographs, whose w nobody knows."""

    crops: Tensor  # uint8 [N, 3, 128, 128], RGB
    amounts: Tensor  # float32 [N, 4]: how far along each direction their answers move


def kept(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the arrays of a file of a run, which is made first where there is none. Raises InputError when it is
    broken."""
    if not path.exists():
        arrays = {name: value.numpy() for name, value in make().items()}
        with writing(path) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    try:
        with path.open("rb") as file, np.load(file) as shard:
            return {name: torch.from_numpy(shard[name]) for name in shard.files}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is broken ({error}); delete it and go on with --resume.") from error


def as_seen(image: Tensor) -> Tensor:
    """Images float [N, 3, S, S] in [-1, 1] -> uint8 [N, 3, 128, 128], as E_attr takes them."""
    return to_bytes(F.avg_pool2d(image.clamp(-1, 1), image.shape[-1] // AttributeEncoder.size))


@torch.no_grad()
def write_views(
    folder: Path, faces: Faces, moves: Tensor, frozen: FrozenNetworks, config: ExpressionsConfig, preparing: Preparing
) -> Edited:
    """Return the views of faces, moved along `moves` [4, 512]; kept in shards of the folder, of which those that are
    there are read. Raises InputError where one is broken."""
    make_folder(folder)

    def shard(index: int, w: Tensor) -> dict[str, Tensor]:
        random = torch.Generator().manual_seed(config.seed * 1_000_003 + index)
        unmoved, moved = torch.zeros(len(w), len(moves)), [edits(len(w), random) for _ in range(config.views)]
        amounts = torch.stack([unmoved, *moved], 1)
        codes = w[:, None].cpu() + amounts @ moves * frozen.w_std.cpu()
        parts = preparing("drawing expressions", codes.flatten(0, 1).split(8))
        crops = [as_seen(frozen.synthesis(part.to(frozen.w_mean.device)).float()).cpu() for part in parts]
        return {"crops": torch.cat(crops).unflatten(0, codes.shape[:2]), "amounts": amounts}

    shards = [
        kept(folder / f"views_{index:05d}.npz", lambda index=index, w=w: shard(index, w))
        for index, w in enumerate(faces.w.split(SHARD))
    ]
    return Edited(*(torch.cat([one[name] for one in shards]) for name in Edited._fields))


@torch.no_grad()
def write_lacks(
    folder: Path,
    photos: Faces,
    faces: Faces,
    taught: Taught,
    before: Trainable,
    frozen: FrozenNetworks,
    config: ExpressionsConfig,
    preparing: Preparing,
) -> Photos:
    """Return photographs with how far their answers are to move: by what compositions lack of their expression.

    Each gives its attributes to `config.people` of the drawn faces; the face mesh reads expressions off the photograph
    and off the compositions. The median of what is lacking, by which photographs differ from generated faces in other
    ways than expression, is left out. `before`: the networks that compose. Kept in shards as by `write_views`.
    """
    make_folder(folder)
    device = frozen.w_mean.device
    before = before.to(device)

    def numbers(images: Tensor) -> Tensor:
        return torch.from_numpy(numbers_of(frozen.landmarks(images.float()).cpu().numpy())).float() / taught.spread

    def encoded(images: Tensor) -> Tensor:
        return before.attributes(to_float(as_seen(images)))

    def shard(index: int, images: Tensor) -> dict[str, Tensor]:
        random = torch.Generator().manual_seed(config.seed * 1_000_003 + index)
        lacks = []
        for part in preparing("composing photographs", images.split(8)):
            image = to_float(part.to(device))
            code, composed = encoded(image), []
            for _ in range(config.people):
                who = torch.randint(len(faces), (len(part),), generator=random)
                identity, portrait = faces.identity[who].to(device), to_float(faces.image[who].to(device))
                composed.append(numbers(frozen.synthesis(before.mapper(identity, code, encoded(portrait)))))
            lacks.append(numbers(image) - torch.stack(composed).mean(0))
        return {"lacks": torch.cat(lacks)}

    lacks = torch.cat(
        [
            kept(folder / f"lacks_{index:05d}.npz", lambda index=index, images=images: shard(index, images))["lacks"]
            for index, images in enumerate(photos.image.split(SHARD))
        ]
    )
    crops = torch.cat([as_seen(to_float(part)).cpu() for part in photos.image.split(64)])
    return Photos(crops, config.lacking * amounts_of(lacks - lacks.median(0).values, taught))


def amounts_of(lacks: Tensor, taught: Taught) -> Tensor:
    """Return how far along the directions [N, 4] faces move whose expressions lack so much, [N, K] in standard
    deviations: least squares of the numbers after the pose, drawn to 0 and at most `FARTHEST`."""
    response = taught.moves @ taught.numbers.T[:, POSE:]  # [4, K - POSE], of one unit each
    square = response @ response.T + 0.25 * torch.eye(len(response))
    return torch.linalg.solve(square, response @ lacks[:, POSE:].T).T.clamp(-FARTHEST, FARTHEST)
