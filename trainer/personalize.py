"""Refines one identity until photographs of a real person look like them: `fid-train personalize`.

The networks stay frozen. Two things are optimised: the identity code that the mapper reads, and an offset o that is
added to its w, in standard deviations of W, the same for every attributes a:

    w(a) = M(code, a) + w_std * o,    E_id(G(w(a))) -> the code of the photos

over a bank of attribute codes, so that the person is found in every pose and light, not in one picture: faces drawn
from the generator, and the photos themselves. Meanwhile landmarks have to be those of the bank's faces, coarse colour
has to stay as the mapper has it, and a penalty keeps o small, so that w stays ordinary. Some drawn faces are held out;
they choose the best step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from ..runtime.composer import Composer
from ..runtime.crop import CROP_SIZE
from ..runtime.errors import FidError, InputError
from ..runtime.identity import SUFFIX, Identity, average, fingerprint, mapper_name
from ..runtime.images import check_output, find_photos
from . import losses
from .checkpoint import read_record
from .from_bundle import appearance_size, is_bundle, load_graph, load_synthesis
from .loop import Progress, best_device, tune_machine
from .networks import Mapper
from .networks_facemesh import FaceMesh
from .networks_mobilestylegan import W_SIZE, Mapping
from .networks_sface import SFace
from .trained import load_generator, load_mapping, load_trained

SAME_PERSON = 0.363  # cosine of SFace codes from which OpenCV, its publisher, takes two photos for one person
COLOUR_CELLS = 8  # of the coarse colour, per side
MEASURE_EVERY = 35  # steps


@dataclass(frozen=True)
class PersonalizeConfig:
    """What `fid-train personalize` does; the resolved configuration is printed."""

    steps: int = 70
    batch: int = 1  # faces of the bank in a step; more steps of one gain more than fewer of several
    bank: int = 16  # faces drawn from the generator
    held_out: int = 4  # further ones that only measure
    psi: float = 0.8  # truncation of the drawn faces
    rate: float = 0.1  # Adam's, for the offset in standard deviations of W
    code_rate: float = 0.1  # Adam's, for the code at length sqrt(128)
    identity_weight: float = 1.0  # 1 - cosine
    landmarks_weight: float = 700.0  # squared distance as a fraction of the crop
    colour_weight: float = 1.0  # coarse colour
    offset_weight: float = 0.15  # mean square of the offset
    seed: int = 1


INVERSION = PersonalizeConfig(steps=150, bank=0, held_out=0, rate=0.05, code_rate=0.0, offset_weight=0.02)
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
    colour: float  # mean difference of coarse colour, pictures in [-1, 1]

    def loss(self, config: PersonalizeConfig) -> float:
        """The sum that is minimised, without the penalty of the offset."""
        kept = config.landmarks_weight * self.landmarks + config.colour_weight * self.colour
        return config.identity_weight * (1 - self.identity) + kept


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
    console = console or Console()
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
    code, w_offset, before, after = refine(
        networks, torch.from_numpy(mean.code).to(device), pictures, config, progress.show
    )
    appearance = networks.attributes(pictures).mean(0)
    person = Identity(
        code.cpu().numpy(), mean.encoder, len(people), w_offset.cpu().numpy(), mapper, appearance.cpu().numpy()
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
    """The code and the offset of one person while they are optimised."""

    def __init__(self, networks: Networks, target: Tensor, appearance: Tensor, config: PersonalizeConfig) -> None:
        """`target`: the unit identity code [128] of the photos; the code starts there, the offset at nothing.

        `appearance`: the mean attribute code of the photos, which stays.
        """
        self.networks, self.target, self.appearance, self.config = networks, target, appearance, config
        self.raw = (target * len(target) ** 0.5).clone().requires_grad_(True)
        self.offset = torch.zeros_like(networks.mapper.w_std).requires_grad_(True)
        self.optimizer = torch.optim.Adam(
            [{"params": [self.offset], "lr": config.rate}, {"params": [self.raw], "lr": config.code_rate}],
            betas=(0.9, 0.95),
        )
        self.random = torch.Generator().manual_seed(config.seed)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]

    @property
    def code(self) -> Tensor:
        """Unit code [128], what the mapper reads."""
        return F.normalize(self.raw, dim=0)

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
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * (0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * fraction)))
        config, image = self.config, self.image(faces.attributes)
        both = torch.cat((image, jittered(image.flip(3), self.random)))
        terms = {
            "identity": config.identity_weight
            * losses.identity_cosine(self.networks.identity(both), self.target.expand(len(both), -1)),
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
                        (self.networks.identity(image) @ self.target).mean(),
                        (points - face.landmarks).square().sum(2).sqrt().mean(),
                        losses.landmarks_squared(points / CROP_SIZE, face.landmarks / CROP_SIZE),
                        losses.coarse_colour(image, face.colour, COLOUR_CELLS),
                    ]
                )
            )
        return Figures(*torch.stack(results).mean(0).tolist())


def refine(
    networks: Networks,
    target: Tensor,
    crops: Tensor,
    config: PersonalizeConfig,
    show: Callable[[int, dict[str, float]], None] = lambda step, figures: None,
) -> tuple[Tensor, Tensor, Figures, Figures]:
    """Optimises the code and the offset of the person whose photos have the mean identity code `target` [128].

    `crops` [K, 3, 256, 256] are the aligned photos; `show` is called after every step. Returns the unit code [128], the
    offset of w [512], and the figures on the held-out faces before and after. It is the best that the held-out faces
    saw, every `MEASURE_EVERY` steps; where nothing is gained, the code as it came and no offset.
    """
    bank = make_bank(networks, crops, config.bank + config.held_out, config.psi, config.seed)
    own, random = len(crops), torch.Generator().manual_seed(config.seed)
    refinement = Refinement(networks, target, bank.attributes[:own].mean(0), config)
    with torch.no_grad():  # the colours of a drawn face, and the person's skin: as the mapper has it
        drawn = [_coarse(refinement.image(one)) for one in bank.attributes[own:].split(1)]
    bank = replace(bank, colour=torch.cat([bank.colour[:own], *drawn]))
    known, held_out = bank[torch.arange(len(bank) - config.held_out)], bank[-config.held_out :]
    before = best = refinement.measure(held_out)
    code, w_offset = refinement.code.detach(), refinement.w_offset.detach()
    order = torch.zeros(0, dtype=torch.int64)
    for done in range(config.steps):
        if len(order) < config.batch:
            order = torch.cat((order, torch.randperm(len(known), generator=random)))
        faces, order = known[order[: config.batch]], order[config.batch :]
        show(done + 1, refinement.step(faces, done / config.steps))
        if (done + 1) % MEASURE_EVERY == 0 or done + 1 == config.steps:
            figures = refinement.measure(held_out)
            if figures.loss(config) < best.loss(config):
                best, code, w_offset = figures, refinement.code.detach(), refinement.w_offset.detach()
    return code, w_offset, before, best


def invert(networks: Networks, target: Tensor, crop: Tensor, config: PersonalizeConfig) -> Tensor:
    """The generator's picture [1, 3, S, S] of one aligned photograph [1, 3, 256, 256] with the identity code [128].

    w is optimised for this picture alone, from the mapper's on, as `INVERSION` says: the ceiling of what a mapper can
    reach with it.
    """
    attributes = networks.attributes(crop)
    own = Bank(attributes, networks.landmarks(crop), _coarse(crop))
    refinement = Refinement(networks, target, attributes[0], config)
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
