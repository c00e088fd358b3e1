"""Compose pairs for an evaluation, and what the evaluation is asked for."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ...runtime.commands.progress import progress_of
from ...runtime.media.table import compose_table
from ..data.dataset import Faces, FrozenNetworks, joined
from ..pixels import as_crops, to_float, to_uint8
from . import measures
from .judges import Judges, Seen

Networks = Callable[[Tensor, Tensor, Tensor], Tensor]
"""E_attr and M: identity codes [N, 128], attribute and identity crops [N, 3, S, S] in [-1, 1] -> w [N, 512]."""


@dataclass(frozen=True)
class EvaluateConfig:
    """What `fid-train evaluate` measures."""

    pairs: int = 256
    psi: float = 0.8
    seed: int = 1_000_000_007  # far from the seeds of training
    batch: int = 8
    frames: int = 120  # of a driving clip, from its start
    clip_people: int = 2  # identities a clip drives: so many generated ones, and as many of the photographs
    cloud: int = 2000  # w of the generator that show its W
    grid: int = 12  # people, and attributes, whose compositions show what moves w
    refine: int = 0  # people of the photographs that are personalised, too; each on as many photos of others
    refine_on: int = 8
    rounds: int | None = None  # in which a bundle looks closer at each photograph; None: as it does by default


@dataclass(frozen=True)
class Outputs:
    """Compositions, and what the networks of training say about them."""

    w: Tensor  # [N, 512]
    identity: Tensor  # [N, 128], unit codes
    landmarks: Tensor  # [N, K, 2], inner face, px of a 256 px crop
    crops: np.ndarray  # uint8 [N, 256, 256, 3], RGB


@dataclass(frozen=True)
class GeneratedPairs:
    """Generated people, generated faces that give attributes, and what comes out."""

    people: Faces
    attributes: Faces
    output: Outputs  # people with these attributes
    own: Outputs  # I_id = I_attr: the attribute images again


@dataclass
class Report:
    """Everything that was measured: `record` is the JSON file, the rest is for the page."""

    figures: dict[str, Any]
    pictures: dict[str, np.ndarray] = field(default_factory=dict)  # title -> RGB uint8
    clouds: dict[str, np.ndarray] = field(default_factory=dict)  # name -> [N, 2] on the axes of the generator's w
    factors: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)  # factor -> each level of it -> the same
    identity: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)  # title -> output, leak, random -> [N]

    def record(self) -> dict[str, Any]:
        """Return the figures as they are kept in a file: without the series along each clip, which only plots need."""
        return _without_series(self.figures)


def _without_series(figures: Any) -> Any:
    if not isinstance(figures, dict):
        return figures
    return {name: _without_series(value) for name, value in figures.items() if name != "series"}


def _distance(points: Tensor, others: Tensor) -> Tensor:
    """Mean distance [N] of landmarks [N, K, 2], as a fraction of the 256 px crop."""
    return (points - others).norm(dim=2).mean(dim=1) / 256


@torch.no_grad()
def compose(
    networks: Networks,
    frozen: FrozenNetworks,
    identity: Tensor,
    image: Tensor,
    portrait: Tensor,
    batch: int,
    offsets: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (w, pictures in [-1, 1]) batch by batch, of identity codes [N, 128], attribute and identity images uint8
    [N, 3, S, S] and, where people have them, their offsets in W+ [N, n_styles, 512]: then w is W+."""
    starts = range(0, len(identity), batch)
    for i in progress_of("composing", starts, len(starts)):
        crops = (to_float(images[i : i + batch]) for images in (image, portrait))
        w = networks(identity[i : i + batch], *crops)
        if offsets is not None:
            w = w[:, None] + offsets[i : i + batch].to(w.device)
        yield w, frozen.synthesis(w)


def compose_crops(
    networks: Networks,
    frozen: FrozenNetworks,
    identity: Tensor,
    crops: np.ndarray,
    portraits: np.ndarray,
    batch: int,
    offsets: Tensor | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return w [N, 512] and crops uint8 [N, 256, 256, 3] of identity codes [N, 128], attribute and identity crops of
    that shape; `offsets` as in `compose`."""
    image, portrait = (
        torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).to(identity.device)
        for images in (crops, portraits)
    )
    parts = [
        (w.cpu().numpy(), as_crops(to_uint8(picture)))
        for w, picture in compose(networks, frozen, identity, image, portrait, batch, offsets)
    ]
    return np.concatenate([w for w, _ in parts]), np.concatenate([c for _, c in parts])


@torch.no_grad()
def generated_pairs(networks: Networks, frozen: FrozenNetworks, config: EvaluateConfig) -> GeneratedPairs:
    """Draw `config.pairs` pairs through `frozen.synthesis` and compose them."""
    random = torch.Generator().manual_seed(config.seed)

    def drawn(what: str) -> Faces:
        parts = frozen.draw_w(config.pairs, config.psi, random).split(config.batch)
        return joined([frozen.make(w) for w in progress_of(what, parts, len(parts))])

    people, attributes = drawn("drawing people"), drawn("drawing attributes")

    def outputs(identity: Faces) -> Outputs:
        parts = [
            (w, frozen.identity(image), frozen.inner_face(image), as_crops(to_uint8(image)))
            for w, image in compose(networks, frozen, identity.identity, attributes.image, identity.image, config.batch)
        ]
        w, codes, points, crops = zip(*parts, strict=True)
        return Outputs(torch.cat(w), torch.cat(codes), torch.cat(points), np.concatenate(crops))

    return GeneratedPairs(people, attributes, outputs(people), outputs(attributes))


def short_figures(pairs: GeneratedPairs, frozen: FrozenNetworks, config: EvaluateConfig) -> dict[str, Any]:
    """Return the figures by the networks of training, by name; cosines as mean and std."""
    people, attributes, output, own = pairs.people, pairs.attributes, pairs.output, pairs.own

    def cosine(a: Tensor, b: Tensor) -> dict[str, float]:
        values = (a * b).sum(dim=1)
        return {"mean": values.mean().item(), "std": values.std().item()}

    rolled = attributes.landmarks.roll(1, 0)
    random_distance = _distance(attributes.landmarks, rolled).mean()
    return {
        "configuration": asdict(config),
        "resolution": frozen.synthesis.resolution,
        "identity_cosine": cosine(output.identity, people.identity),
        "leak_cosine": cosine(output.identity, attributes.identity),
        "random_cosine": cosine(people.identity, attributes.identity),
        "landmark_error": (_distance(output.landmarks, attributes.landmarks).mean() / random_distance).item(),
        "random_landmark_distance": random_distance.item(),
        "reconstruction_cosine": cosine(own.identity, attributes.identity),
        "reconstruction_landmark_error": (
            _distance(own.landmarks, attributes.landmarks).mean() / random_distance
        ).item(),
        "w_deviation": ((output.w - frozen.w_mean) / frozen.w_std).square().mean().sqrt().item(),
        "generated_w_deviation": ((people.w - frozen.w_mean) / frozen.w_std).square().mean().sqrt().item(),
    }


def evaluate(networks: Networks, frozen: FrozenNetworks, config: EvaluateConfig) -> dict[str, Any]:
    """Return the short figures of E_attr and M through `frozen.synthesis` on `config.pairs` pairs."""
    return short_figures(generated_pairs(networks, frozen, config), frozen, config)


def _crops(faces: Faces) -> np.ndarray:
    """Crops uint8 [N, 256, 256, 3] of generated faces."""
    return as_crops(np.ascontiguousarray(faces.image.permute(0, 2, 3, 1).cpu().numpy()))


def _table(
    networks: Networks,
    judges: Judges,
    codes: np.ndarray,
    top: np.ndarray,
    left: np.ndarray,
    batch: int,
    offsets: Tensor | None = None,
) -> np.ndarray:
    """The paper's table: identities [n] on top, with their offsets in W+ if they have some, attributes [m] on the
    left."""
    every = torch.from_numpy(np.tile(codes, (len(left), 1))).to(judges.frozen.w_mean.device)
    portraits = np.tile(top, (len(left), 1, 1, 1))
    offsets = None if offsets is None else offsets.repeat(len(left), 1, 1)
    lefts = np.repeat(left, len(top), axis=0)
    _, crops = compose_crops(networks, judges.frozen, every, lefts, portraits, batch, offsets)
    cells = crops.reshape(len(left), len(top), *crops.shape[1:])
    labels = [[""] * len(top), [""] * len(left)]
    return compose_table(list(top), list(left), [list(row) for row in cells], *labels)


def sorted_pairs(identity: Seen, attributes: Seen, output: Seen) -> np.ndarray:
    """Return identity, attributes, output of the pairs with the worst, median and best identity, three of each, by
    column."""
    judge = "dlib" if "dlib" in output.codes else "SFace"
    if judge == "dlib":
        order = np.argsort(-np.linalg.norm(output.codes[judge] - identity.codes[judge], axis=1), kind="stable")
    else:
        order = np.argsort(measures.cosine(output.codes[judge], identity.codes[judge]), kind="stable")
    middle = len(order) // 2
    chosen = list(dict.fromkeys([*order[:3], *order[max(middle - 1, 0) : middle + 2], *order[-3:]]))
    return tile([identity.crops[chosen], attributes.crops[chosen], output.crops[chosen]])


def tile(rows: Sequence[Any], side: int = 144, gap: int = 4) -> np.ndarray:
    """Return pictures uint8 [256, 256, 3] in rows, as one RGB picture on white, each brought to `side` px."""
    height, width = len(rows) * (side + gap) - gap, max(len(row) for row in rows) * (side + gap) - gap
    page = np.full((height, width, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            small = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
            page[r * (side + gap) :][:side, c * (side + gap) :][:, :side] = small
    return page
