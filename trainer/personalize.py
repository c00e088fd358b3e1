"""Refines one identity until photographs of a real person look like them: `fid-train personalize`.

The networks stay frozen. What is optimised is an offset o that is added to the mapper's w, in standard deviations of W,
the same for every attributes a:

    w(a) = M(code, a) + w_std * o,    E_id(G(w(a))) -> code, the mean of the photos' identity codes

First the photos themselves are the attributes, and the picture has to have their coarse colour too: that is an
inversion, and finds the part of W where the person is. Then they take turns with faces drawn from the generator, so
that the person is found in every pose and light. Landmarks have to be those of the face that gives the attributes, a
drawn face keeps the coarse colour that the mapper gives it, but with the person's skin, and a penalty keeps o small, so
that w stays ordinary. Some drawn faces are held out; they choose the best step.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from ..runtime.composer import Composer
from ..runtime.errors import FidError, InputError
from ..runtime.face.crop import CROP_SIZE
from ..runtime.identity import SUFFIX, Identity, average, fingerprint, mapper_name
from ..runtime.media.images import check_output, find_photos
from ..runtime.terminal import make_console
from . import losses
from .loop import Progress, best_device, tune_machine
from .networks.facemesh import FaceMesh
from .networks.mobilestylegan import W_SIZE, Mapping
from .networks.sface import SFace
from .networks.trained import Mapper
from .weights.checkpoint import read_record
from .weights.from_bundle import appearance_size, is_bundle, load_graph, load_synthesis
from .weights.trained import load_generator, load_mapping, load_trained

SAME_PERSON = 0.363  # cosine of SFace codes from which OpenCV, its publisher, takes two photos for one person
COLOUR_CELLS = 8  # of the coarse colour, per side
MEASURE_EVERY = 35  # steps


@dataclass(frozen=True)
class PersonalizeConfig:
    """What `fid-train personalize` does; the resolved configuration is printed."""

    steps: int = 100
    alone: float = 0.7  # share of the steps that see the photos alone; then every second one is a drawn face
    batch: int = 1  # faces in a step; more steps of one gain more than fewer of several
    bank: int = 8  # faces drawn from the generator
    held_out: int = 4  # further ones that only measure
    psi: float = 0.8  # truncation of the drawn faces
    rate: float = 0.05  # Adam's, for the offset in standard deviations of W
    identity_weight: float = 1.0  # 1 - cosine
    landmarks_weight: float = 700.0  # squared distance as a fraction of the crop
    colour_weight: float = 1.0  # coarse colour
    offset_weight: float = 0.02  # mean square of the offset
    seed: int = 1


INVERSION = PersonalizeConfig(steps=150, bank=0, held_out=0)
"""Finds the picture that the generator makes of one photograph, on that photograph alone (`invert`)."""


@dataclass(frozen=True)
class Networks:
    """The frozen networks; pictures are float [N, 3, S, S], RGB in [-1, 1]."""

    mapper: Mapper  # M
    synthesis: nn.Module  # G: w [N, 512] -> picture
    identity: Callable[[Tensor], Tensor]  # E_id: crop -> unit codes [N, 128]
    landmarks: Callable[[Tensor], Tensor]  # E_lnd: crop -> inner face [N, K, 2], pixels of a 256 px crop
    attributes: Callable[[Tensor], Tensor]  # E_attr: crop -> codes [N, 512]; needs no gradient
    mapping: nn.Module  # z [N, 512] -> w


@dataclass(frozen=True)
class Bank:
    """What the person is put on: attribute codes, and what has to stay of each face."""

    attributes: Tensor  # [N, 512]
    landmarks: Tensor  # [N, K, 2], pixels of a 256 px crop
    colour: Tensor  # [N, 3, S, S], anything with the face's coarse colour

    def __len__(self) -> int:
        return len(self.attributes)

    def __getitem__(self, index: Tensor | slice) -> "Bank":
        return Bank(self.attributes[index], self.landmarks[index], self.colour[index])


@dataclass(frozen=True)
class Figures:
    """How well a person is found on some faces."""

    identity: float  # mean cosine of the composition's identity code to the photos'
    landmarks_px: float  # mean distance of inner-face landmarks to those of the face, pixels of a 256 px crop
    landmarks: float  # their squared distance as a fraction of the crop

    def loss(self, config: PersonalizeConfig) -> float:
        """The sum that is minimised, without coarse colour and without the penalty of the offset."""
        return config.identity_weight * (1 - self.identity) + config.landmarks_weight * self.landmarks


def personalize(
    photos: Sequence[Path],
    output: Path,
    config: PersonalizeConfig,
    *,
    bundle: Path | None = None,
    trained: tuple[Path, Path] | None = None,
    console: Console | None = None,
) -> Identity:
    """Refines the identity of the person in `photos`, writes it to `output` (.npz) and returns it.

    `bundle`: whose networks to refine through, None for the bundle that comes with fid; `trained` in its place: a run
    or checkpoint of `fid-train fit` and one of `fid-train distill`. The file appears at the end, whole. Raises
    InputError for a photo without a usable face and for an output that exists or cannot be written.
    """
    console = console or make_console()
    check_output(output, (SUFFIX,))
    if output.exists():
        raise InputError(f"{output} exists already; delete it first or choose another name.")
    tune_machine()
    device, composer = best_device(), Composer(bundle)
    paths = find_photos(photos)
    crops = [composer.crop(path) for path in paths]
    people = [composer.identity_of(crop) for crop in crops]
    if (stranger := odd_one_out(np.stack([one.code for one in people]))) is not None:
        console.print(
            f"warning: {paths[stranger]} seems to show another person than the other photos; the result is a mix."
        )
    mean = average(people)
    if trained is None:
        networks, mapper = bundle_networks(composer, device), mapper_name(composer.bundle)
    else:
        networks = trained_networks(*trained, device)
        mapper = fingerprint({name: tensor.cpu().numpy() for name, tensor in networks.mapper.state_dict().items()})
    progress = Progress(console, config.steps, config.batch, every_s=3)
    pictures = torch.from_numpy(np.stack(crops)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    w_offset, before, after = refine(networks, torch.from_numpy(mean.code).to(device), pictures, config, progress.show)
    appearance = networks.attributes(pictures).mean(0)
    person = Identity(
        mean.code, mean.encoder, len(people), w_offset[None].cpu().numpy(), mapper, appearance.cpu().numpy()
    )
    person.save(output)
    size = (w_offset / networks.mapper.w_std).square().mean().sqrt()
    console.print(
        f"on {config.held_out} faces that only measured: identity cosine {before.identity:.2f} -> "
        f"{after.identity:.2f}, landmarks off by {before.landmarks_px:.1f} -> {after.landmarks_px:.1f} px; "
        f"offset {size:.2f} standard deviations of W"
    )
    return person


def odd_one_out(codes: np.ndarray) -> int | None:
    """Which of the unit codes [N, 128] is least like the mean of the others, if it is another person's; else None."""
    if len(codes) < 2:
        return None
    others = codes.sum(0) - codes
    cosines = (codes * others).sum(1) / np.maximum(np.linalg.norm(others, axis=1), 1e-6)
    return int(cosines.argmin()) if cosines.min() < SAME_PERSON else None


def bundle_networks(composer: Composer, device: torch.device) -> Networks:
    """The networks of a composer's bundle: M and G in torch, for their gradients; E_attr stays the ONNX graph.

    Raises InputError for a bundle with a generator of its own, FidError when it was made from other networks than this
    version of fid has.
    """
    if composer.bundle.own_generator:
        raise InputError(
            f"the bundle {composer.bundle.name} has a generator of its own: "
            "name the run that it was exported from with --checkpoint and the generator's file with --generator."
        )
    mapper = Mapper(composer.bundle.attributes_size, appearance=appearance_size(composer.bundle))
    load_graph(mapper, composer.bundle, "mapper")
    synthesis = load_synthesis(composer.bundle)

    def attributes(crop: Tensor) -> Tensor:
        codes = [composer.attribute_code(one) for one in _bytes(crop)]
        return torch.from_numpy(np.stack(codes)).to(device)

    return _networks(mapper, synthesis, attributes, Mapping.load(), device)


def trained_networks(checkpoint: Path, generator: Path, device: torch.device) -> Networks:
    """The networks of one's own training: a `fid-train fit` run or checkpoint, and the generator it went through."""
    trained = load_trained(checkpoint).requires_grad_(False).to(device)
    distilled = not (generator.is_file() or is_bundle(generator))
    side = int(read_record(generator)["configuration"]["resolution"]) if distilled else CROP_SIZE
    synthesis = load_generator(generator, side)
    return _networks(trained.mapper, synthesis, trained.attributes, load_mapping(generator), device)


def _networks(
    mapper: Mapper,
    synthesis: nn.Module,
    attributes: Callable[[Tensor], Tensor],
    mapping: Mapping,
    device: torch.device,
) -> Networks:
    identity, landmarks = SFace.load(), FaceMesh.load()
    for network in (mapper, synthesis, identity, landmarks, mapping):
        network.to(device).eval().requires_grad_(False)
    synthesis.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - torch's stubs lack it
    return Networks(
        mapper,
        synthesis,
        identity,
        lambda crop: landmarks(crop)[:, landmarks.inner_face, :2],
        attributes,
        mapping,
    )


@torch.no_grad()
def make_bank(networks: Networks, crops: Tensor, n: int, psi: float, seed: int) -> Bank:
    """The attributes of n drawn faces, truncated by psi, after those of the given crops [K, 3, 256, 256]."""
    z = torch.randn(n, W_SIZE, generator=torch.Generator().manual_seed(seed)).to(crops.device)
    mean = networks.mapper.w_mean
    w = mean + psi * (networks.mapping(z) - mean)
    faces = torch.cat([crops, *(networks.synthesis(one).clamp(-1, 1) for one in w.split(1))])
    parts = [Bank(networks.attributes(one), networks.landmarks(one), _coarse(one)) for one in faces.split(4)]
    return Bank(*(torch.cat([getattr(part, name) for part in parts]) for name in Bank.__dataclass_fields__))


class Refinement:
    """The offset of one person while it is optimised, from nothing on."""

    def __init__(self, networks: Networks, code: Tensor, appearance: Tensor, config: PersonalizeConfig) -> None:
        """`code`: the unit identity code [128] of the photos; `appearance`: their mean attribute code."""
        self.networks, self.code, self.appearance, self.config = networks, code, appearance, config
        self.offset = torch.zeros_like(networks.mapper.w_std).requires_grad_(True)
        self.optimizer = torch.optim.Adam([self.offset], lr=config.rate, betas=(0.9, 0.95))
        self.random = torch.Generator().manual_seed(config.seed)

    @property
    def w_offset(self) -> Tensor:
        """[512], what is added to w."""
        return self.networks.mapper.w_std * self.offset

    def image(self, attributes: Tensor) -> Tensor:
        """The person with attributes [N, 512]: pictures [N, 3, S, S]."""
        n = len(attributes)
        w = self.networks.mapper(self.code.expand(n, -1), attributes, self.appearance.expand(n, -1))
        return self.networks.synthesis(w + self.w_offset)

    def step(self, faces: Bank, fraction: float) -> dict[str, float]:
        """One step on some faces of the bank, `fraction` of all steps being done. Returns the losses.

        Raises FidError when one is not finite.
        """
        config, image = self.config, self.image(faces.attributes)
        self.optimizer.param_groups[0]["lr"] = config.rate * (0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * fraction)))
        both = torch.cat((image, jittered(image.flip(3), self.random)))
        terms = {
            "identity": config.identity_weight
            * losses.identity_cosine(self.networks.identity(both), self.code.expand(len(both), -1)),
            "landmarks": config.landmarks_weight
            * losses.landmarks_squared(self.networks.landmarks(image) / CROP_SIZE, faces.landmarks / CROP_SIZE),
            "colour": config.colour_weight * losses.coarse_colour(image, faces.colour, COLOUR_CELLS),
            "offset": config.offset_weight * self.offset.square().mean(),
        }
        total = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(total):
            raise FidError("the loss is not finite; the weights of these networks seem to be damaged.")
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        return {name: value.item() for name, value in terms.items()}

    @torch.no_grad()
    def measure(self, faces: Bank) -> Figures:
        """How well the person is found on these faces."""
        results = []
        for i in range(len(faces)):
            face = faces[torch.tensor([i], device=faces.attributes.device)]
            image = self.image(face.attributes).clamp(-1, 1)
            points = self.networks.landmarks(image)
            results.append(
                torch.stack(
                    [
                        (self.networks.identity(image) @ self.code).mean(),
                        (points - face.landmarks).square().sum(2).sqrt().mean(),
                        losses.landmarks_squared(points / CROP_SIZE, face.landmarks / CROP_SIZE),
                    ]
                )
            )
        return Figures(*torch.stack(results).mean(0).tolist())


def refine(
    networks: Networks,
    code: Tensor,
    crops: Tensor,
    config: PersonalizeConfig,
    show: Callable[[int, dict[str, float]], None] = lambda step, figures: None,
) -> tuple[Tensor, Figures, Figures]:
    """Optimises the offset of the person whose photos have the mean identity code `code` [128].

    `crops` [K, 3, 256, 256] are the aligned photos; `show` is called after every step. Returns the offset of w [512]
    and the figures on the held-out faces before and after. It is the best that the held-out faces saw, every
    `MEASURE_EVERY` steps; where nothing is gained, no offset. Raises FidError when a loss is not finite.
    """
    bank = make_bank(networks, crops, config.bank + config.held_out, config.psi, config.seed)
    photos, drawn = bank[: len(crops)], bank[len(crops) :]
    refinement = Refinement(networks, code, photos.attributes.mean(0), config)
    known, held_out = drawn[: config.bank], drawn[config.bank :]
    known = replace(known, colour=_colour_with_skin(refinement, crops, photos, known))
    before = best = refinement.measure(held_out)
    w_offset, random = refinement.w_offset.detach(), torch.Generator().manual_seed(config.seed)
    of_photos, of_drawn = _in_turn(photos, config.batch, random), _in_turn(known, config.batch, random)
    for done in range(config.steps):
        alone = done < config.alone * config.steps or done % 2 == 0
        show(done + 1, refinement.step(next(of_photos if alone else of_drawn), done / config.steps))
        if (done + 1) % MEASURE_EVERY == 0 or done + 1 == config.steps:
            figures = refinement.measure(held_out)
            if figures.loss(config) < best.loss(config):
                best, w_offset = figures, refinement.w_offset.detach()
    return w_offset, before, best


@torch.no_grad()
def _colour_with_skin(refinement: Refinement, crops: Tensor, photos: Bank, drawn: Bank) -> Tensor:
    """Coarse colour [N, 3, 8, 8] in [-1, 1] of the person on N drawn faces: as the mapper has it, but for the skin.

    That is changed there by as much as the mapper misses it on the photos, in the logarithm of linear light.
    """
    seen = torch.cat([refinement.image(one).clamp(-1, 1) for one in photos.attributes.split(1)])
    change = (losses.skin_colour(crops) - losses.skin_colour(seen)).mean(0, keepdim=True)
    images = (refinement.image(one).clamp(-1, 1) for one in drawn.attributes.split(1))
    return torch.cat([_coarse(losses.with_skin(image, change)) for image in images])


def _in_turn(faces: Bank, batch: int, random: torch.Generator) -> Iterator[Bank]:
    """Batches of all the faces in random order, over and over."""
    order = torch.zeros(0, dtype=torch.int64)
    while True:
        while len(order) < batch:
            order = torch.cat((order, torch.randperm(len(faces), generator=random)))
        yield faces[order[:batch]]
        order = order[batch:]


def invert(networks: Networks, code: Tensor, crop: Tensor, config: PersonalizeConfig) -> Tensor:
    """The generator's picture [1, 3, S, S] of one aligned photograph [1, 3, 256, 256] with the identity code `code`.

    w is optimised for this picture alone, from the mapper's on, as `INVERSION` says: the ceiling of what a mapper can
    reach with it.
    """
    attributes = networks.attributes(crop)
    own = Bank(attributes, networks.landmarks(crop), _coarse(crop))
    refinement = Refinement(networks, code, attributes[0], config)
    for done in range(config.steps):
        refinement.step(own, done / config.steps)
    with torch.no_grad():
        return refinement.image(attributes)


def jittered(image: Tensor, random: torch.Generator) -> Tensor:
    """Pictures [N, 3, S, S] as if aligned a little differently: shifted by up to 2 %, scaled by up to 4 %.

    A person is to be found there as well; otherwise E_id is pleased by patterns that nobody else sees.
    """
    n = len(image)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 0.96 + 0.08 * torch.rand(n, generator=random)
    theta[:, :, 2] = 0.08 * torch.rand(n, 2, generator=random) - 0.04  # in half sides
    grid = F.affine_grid(theta.to(image.device), list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)


def _coarse(crop: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(crop, COLOUR_CELLS)


def _bytes(crop: Tensor) -> np.ndarray:
    """Float [N, 3, S, S] in [-1, 1] -> RGB uint8 [N, S, S, 3]."""
    return ((crop + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
