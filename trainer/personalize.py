"""Refines one identity until photographs of a real person look like them: `fid-train personalize`.

The networks stay frozen. What is optimised is an offset o in W+, in standard deviations of W, one for every style, that
is added to the mapper's w whatever the attributes a are:

    W+(a) = M(code, a) + w_std * o

It begins with the offset that looking closer finds (`runtime.refine`), where the bundle does so, or with none. First
the photos themselves are the attributes, and the picture has to be the photo's: perceptually (LPIPS) and pixel by
pixel on the head, while the background is whatever it is; to SFace and to a second recogniser, who are pleased less
easily together than one alone; and in its landmarks. That is an inversion. No w holds everybody, W+ does. Then the
photos take turns with faces drawn from the generator: both recognisers have to see the person there too, with the
landmarks of the drawn face, so that mouths, eyes and turns stay free, and around the head has to stay what was there
at first. A penalty keeps o small. Further drawn faces only measure.
"""

import time
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
from ..runtime.face.exposure import exposed
from ..runtime.identity import SUFFIX, Identity, average, encoder_name, fingerprint, mapper_name
from ..runtime.media.images import check_output, find_photos
from ..runtime.weights.bundle import REFINE, Bundle
from . import losses
from .head import HeadMask
from .loop import Progress, best_device, tune_machine
from .networks.facemesh import FaceMesh
from .networks.faceres import faceres_deep
from .networks.lpips import LPIPS
from .networks.mobilestylegan import W_SIZE, Mapping
from .networks.sface import SFace
from .networks.trained import Mapper
from .weights.checkpoint import read_record
from .weights.from_bundle import is_bundle, load_graph, load_synthesis
from .weights.identity import check_identity_encoder
from .weights.trained import load_generator, load_mapping, load_trained, shaped_as

SAME_PERSON = 0.363  # cosine of SFace codes from which OpenCV, its publisher, takes two photos for one person
LPIPS_SIZE = 128  # px, side of the pictures that LPIPS compares


@dataclass(frozen=True)
class PersonalizeConfig:
    """What `fid-train personalize` does; the resolved configuration is printed."""

    steps: int = 110
    max_minutes: float | None = None  # stop by then, the schedule shortened; None: all steps
    alone: float = 0.2  # share of the steps that see the photos alone; then every second one is a drawn face
    bank: int = 6  # faces drawn from the generator
    held_out: int = 3  # further ones that only measure
    psi: float = 0.8  # truncation of the drawn faces
    rate: float = 0.08  # Adam's, for the offset in standard deviations of W; falls to a twentieth
    perceptual_weight: float = 1.0  # LPIPS (AlexNet) to a photo, on the head
    pixel_weight: float = 0.5  # mean absolute difference to a photo, on the head
    identity_weight: float = 1.2  # 1 - cosine, of each recogniser on photos
    drawn_identity_weight: float = 1.6  # and on drawn faces
    landmarks_weight: float = 1200.0  # squared distance as a fraction of the crop
    background_weight: float = 1.0  # mean absolute difference around the head of a drawn face
    offset_weight: float = 0.004  # mean square of the offset
    seed: int = 1


FROM_NOTHING = PersonalizeConfig(
    alone=0.5, rate=0.1, identity_weight=0.6, drawn_identity_weight=1.0, landmarks_weight=600.0
)
"""For networks that do not look closer before (`Networks.closer`)."""


def usual_config(bundle: Path | None, checkpoint: Path | None) -> PersonalizeConfig:
    """Return how people are personalised through a bundle, None for the one that ships, or a checkpoint."""
    looks_closer = checkpoint is None and REFINE in Bundle.load(bundle).graphs
    return PersonalizeConfig() if looks_closer else FROM_NOTHING


INVERSION = PersonalizeConfig(alone=1.0, rate=0.1, identity_weight=0.6, landmarks_weight=600.0, bank=0, held_out=0)
"""Finds the picture that the generator makes of one photograph, on that photograph alone (`invert`)."""


@dataclass(frozen=True)
class Networks:
    """The frozen networks; pictures are float [N, 3, S, S], RGB in [-1, 1]."""

    mapper: Mapper  # M
    synthesis: nn.Module  # G: W+ [N, n_styles, 512] -> picture; `n_styles`
    identity: Callable[[Tensor], Tensor]  # E_id: crop -> unit codes [N, 128]
    second: Callable[[Tensor], Tensor] | None  # another recogniser: crop -> unit codes [N, D]; None: SFace alone
    landmarks: Callable[[Tensor], Tensor]  # E_lnd: crop -> inner face [N, K, 2], pixels of a 256 px crop
    attributes: Callable[[Tensor], Tensor]  # E_attr: crop -> codes [N, 512]; needs no gradient
    perceptual: Callable[[Tensor, Tensor], Tensor]  # two pictures [N, 3, 128, 128] -> distances [N]
    head: Callable[[Tensor], Tensor]  # crop -> where the head is [N, 1, S, S], 0..1; needs no gradient
    mapping: nn.Module  # z [N, 512] -> w
    closer: Callable[[Tensor], Tensor] | None = None  # what looking closer finds: crop -> [n_styles, 512], units of w


@dataclass(frozen=True)
class Face:
    """What the person is put on: its attribute code, and what the result has to have of it."""

    attributes: Tensor  # [1, 512]
    landmarks: Tensor  # [1, K, 2], pixels of a 256 px crop
    picture: Tensor  # [1, 3, S, S]: the photo itself; of a drawn face what is made of it at first
    head: Tensor  # [1, 1, S, S], where the head is in `picture`
    own: bool  # a photo of the person


@dataclass(frozen=True)
class Figures:
    """How well a person is found on some faces."""

    identity: float  # mean cosine of the composition's identity code to the photos'
    landmarks_px: float  # mean distance of inner-face landmarks to those of the face, pixels of a 256 px crop


@dataclass(frozen=True)
class Refined:
    """What came of a refinement."""

    w_plus_offset: Tensor  # [n_styles, 512], in units of w
    before: Figures  # on the drawn faces that only measured, as it began
    after: Figures
    steps: int  # that were done
    stopped: bool  # by the user, before the end


def personalize(
    photos: Sequence[Path],
    output: Path,
    config: PersonalizeConfig,
    *,
    bundle: Path | None = None,
    trained: tuple[Path, Path] | None = None,
    console: Console | None = None,
) -> Identity:
    """Refine the identity of the person in `photos`, write it to `output` (.npz) and return it.

    `bundle`: whose networks to refine through, None for the bundle that comes with fid; `trained` in its place: a run
    or checkpoint of `fid-train fit` and one of `fid-train distill`. The file appears at the end, whole; Ctrl-C ends the
    search and keeps what it has found. Raises InputError for a photo without a usable face and for an output that
    exists or cannot be written.
    """
    console = console or Console()
    check_output(output, (SUFFIX,))
    if output.exists():
        raise InputError(f"{output} exists already; delete it first or choose another name.")
    tune_machine()
    device, composer = best_device(), Composer(bundle)
    paths = find_photos(photos)
    crops = [exposed(composer.crop(path)) for path in paths]
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
    if networks.second is None:
        console.print("note: npm is not here, so no second recogniser looks on; the likeness may be a little worse.")
    progress = Progress(console, config.steps, 1, every_s=3)
    pictures = torch.from_numpy(np.stack(crops)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    found = refine(networks, torch.from_numpy(mean.code).to(device), pictures, config, progress.show)
    appearance = networks.attributes(pictures).mean(0)
    person = Identity(
        mean.code, mean.encoder, len(people), found.w_plus_offset.cpu().numpy(), mapper, appearance.cpu().numpy()
    )
    person.save(output)
    if found.stopped:
        console.print(f"stopped after {found.steps} of {config.steps} steps; what was found so far is kept.")
    size = (found.w_plus_offset / networks.mapper.w_std).square().mean().sqrt()
    console.print(
        f"on {config.held_out} faces that only measured: identity cosine {found.before.identity:.2f} -> "
        f"{found.after.identity:.2f}, landmarks off by {found.before.landmarks_px:.1f} -> "
        f"{found.after.landmarks_px:.1f} px; offset {size:.2f} standard deviations of W"
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
    """Return the networks of a composer's bundle: M and G in torch, for their gradients; E_attr stays the ONNX graph.

    Raises InputError for a bundle with a generator of its own, FidError when it was made from other networks than this
    version of fid has.
    """
    if composer.bundle.own_generator:
        raise InputError(
            f"the bundle {composer.bundle.name} has a generator of its own: "
            "name the run that it was exported from with --checkpoint and the generator's file with --generator."
        )
    if encoder_name(composer.bundle) != "sface":
        raise InputError(
            f"the bundle {composer.bundle.name} has an identity encoder of its own: fid personalises people by SFace."
        )
    mapper = shaped_as(composer.bundle).mapper
    load_graph(mapper, composer.bundle, "mapper")
    synthesis = load_synthesis(composer.bundle)
    looking = composer if composer.rounds else Composer(composer.bundle)

    def attributes(crop: Tensor) -> Tensor:
        codes = [composer.attribute_code(one) for one in _bytes(crop)]
        return torch.from_numpy(np.stack(codes)).to(device)

    def closer(crop: Tensor) -> Tensor:
        offset = looking.identity_of(_bytes(crop)[0], refine=True).w_plus_offset
        assert offset is not None
        return torch.from_numpy(offset).to(device)

    networks = _networks(mapper, synthesis, attributes, Mapping.load(), device)
    return replace(networks, closer=closer) if looking.rounds else networks


def trained_networks(checkpoint: Path, generator: Path, device: torch.device) -> Networks:
    """Return the networks of one's own training: a `fid-train fit` run or checkpoint, and the generator it went
    through."""
    check_identity_encoder(checkpoint, None)
    trained = load_trained(checkpoint).requires_grad_(False).to(device)
    distilled = not (generator.is_file() or is_bundle(generator))
    side = int(read_record(generator)["configuration"]["resolution"]) if distilled else CROP_SIZE
    synthesis = load_generator(generator, side)
    return _networks(trained.mapper, synthesis, trained.attributes, load_mapping(generator), device)


def _networks(
    mapper: Mapper, synthesis: nn.Module, attributes: Callable[[Tensor], Tensor], mapping: Mapping, device: torch.device
) -> Networks:
    if mapper.n_styles:
        raise InputError("this mapper answers in W+, and personalising begins from one w: train with w_plus=false.")
    identity, landmarks, perceptual, head = SFace.load(), FaceMesh.load(), LPIPS.load("alex"), HeadMask.load()
    for network in (mapper, synthesis, identity, landmarks, perceptual, head, mapping):
        network.to(device).eval().requires_grad_(False)
    synthesis.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - torch's stubs lack it
    return Networks(
        mapper,
        synthesis,
        identity,
        faceres_deep(device),
        lambda crop: landmarks(crop)[:, landmarks.inner_face, :2],
        attributes,
        perceptual,
        head,
        mapping,
    )


class Refinement:
    """The offset of one person while it is optimised."""

    def __init__(self, networks: Networks, code: Tensor, crops: Tensor, config: PersonalizeConfig) -> None:
        """`code`: the unit identity code [128] of the photos; `crops` [K, 3, 256, 256]: the aligned photos."""
        self.networks, self.code, self.config = networks, code, config
        n_styles = networks.synthesis.n_styles
        assert isinstance(n_styles, int)
        begin = networks.mapper.w_std.new_zeros(n_styles, W_SIZE)
        if networks.closer is not None:
            begin = torch.stack([networks.closer(crop) for crop in crops.split(1)]).mean(0) / networks.mapper.w_std
        self.offset = begin.requires_grad_(True)
        self.optimizer = torch.optim.Adam([self.offset], lr=config.rate)
        self.random = torch.Generator().manual_seed(config.seed)
        with torch.no_grad():
            looks = [networks.attributes(crop) for crop in crops.split(1)]
            self.appearance = torch.stack(looks).mean(0)
            self.second_code = None
            if networks.second is not None:
                codes = torch.cat([networks.second(crop) for crop in crops.split(1)])
                self.second_code = F.normalize(codes.mean(0), dim=0)
            self.photos = [
                Face(look, networks.landmarks(crop), crop, networks.head(crop), own=True)
                for crop, look in zip(crops.split(1), looks, strict=True)
            ]

    @property
    def w_plus_offset(self) -> Tensor:
        """[n_styles, 512], what is added to w."""
        return self.networks.mapper.w_std * self.offset

    def image(self, attributes: Tensor) -> Tensor:
        """Return the person with attributes [N, 512]: pictures [N, 3, S, S]."""
        n = len(attributes)
        w = self.networks.mapper(self.code.expand(n, -1), attributes, self.appearance.expand(n, -1))
        return self.networks.synthesis(w[:, None] + self.w_plus_offset)

    @torch.no_grad()
    def draw(self, n: int) -> list[Face]:
        """Return n faces drawn from the generator, with what is made of the person on them before the first step."""
        z = torch.randn(n, W_SIZE, generator=torch.Generator().manual_seed(self.config.seed)).to(self.code.device)
        mean, faces = self.networks.mapper.w_mean, []
        for one in z.split(1):
            drawn = self.networks.synthesis(mean + self.config.psi * (self.networks.mapping(one) - mean)).clamp(-1, 1)
            attributes = self.networks.attributes(drawn)
            first = self.image(attributes).clamp(-1, 1)
            head = self.networks.head(first)
            faces.append(Face(attributes, self.networks.landmarks(drawn), first, head, own=False))
        return faces

    def step(self, face: Face, fraction: float) -> dict[str, float]:
        """Take one step on a face, `fraction` of all being done. Returns the losses.

        Raises FidError when one is not finite.
        """
        config, image = self.config, self.image(face.attributes)
        self.optimizer.param_groups[0]["lr"] = config.rate * (0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * fraction)))
        terms = self._identity(image, config.identity_weight if face.own else config.drawn_identity_weight)
        terms["landmarks"] = config.landmarks_weight * losses.landmarks_squared(
            self.networks.landmarks(image) / CROP_SIZE, face.landmarks / CROP_SIZE
        )
        terms |= self._likeness(image, face) if face.own else self._surroundings(image, face)
        terms["offset"] = config.offset_weight * self.offset.square().mean()
        total = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(total):
            raise FidError("the loss is not finite; the weights of these networks seem to be damaged.")
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        return {name: value.item() for name, value in terms.items()}

    def _identity(self, image: Tensor, weight: float) -> dict[str, Tensor]:
        """How far both recognisers are from the person; SFace in a view that is different every time."""
        mirrored = bool(torch.rand(1, generator=self.random) < 0.5)
        view = jittered(image.flip(3) if mirrored else image, self.random)
        terms = {"identity": weight * losses.identity_cosine(self.networks.identity(view), self.code[None])}
        if self.networks.second is not None and self.second_code is not None:
            codes = self.networks.second(image)
            terms["second"] = weight * losses.identity_cosine(codes, self.second_code[None])
        return terms

    def _likeness(self, image: Tensor, face: Face) -> dict[str, Tensor]:
        """How far the head is from the photo's; around it the photo is thought to be what the picture is."""
        photo = face.picture
        if photo.shape[-1] != image.shape[-1]:
            photo = F.interpolate(photo, image.shape[2:], mode="bilinear", antialias=True)
        head = self.networks.head(photo) if face.head.shape[2:] != image.shape[2:] else face.head
        target = head * photo + (1 - head) * image.detach()
        small = [F.adaptive_avg_pool2d(one, LPIPS_SIZE) for one in (image, target)]
        return {
            "perceptual": self.config.perceptual_weight * self.networks.perceptual(small[0], small[1]).mean(),
            "pixel": self.config.pixel_weight * (head * (image - photo)).abs().mean(),
        }

    def _surroundings(self, image: Tensor, face: Face) -> dict[str, Tensor]:
        """How far the picture around the head is from what was made at first."""
        around = (1 - face.head) * (image - face.picture)
        return {"background": self.config.background_weight * around.abs().mean()}

    @torch.no_grad()
    def measure(self, faces: Sequence[Face]) -> Figures:
        """Return how well the person is found on these faces."""
        cosines, distances = [], []
        for face in faces:
            image = self.image(face.attributes).clamp(-1, 1)
            cosines.append(float(self.networks.identity(image) @ self.code))
            distances.append(float((self.networks.landmarks(image) - face.landmarks).norm(dim=2).mean()))
        return Figures(float(np.mean(cosines or [np.nan])), float(np.mean(distances or [np.nan])))


def refine(
    networks: Networks,
    code: Tensor,
    crops: Tensor,
    config: PersonalizeConfig,
    show: Callable[[int, dict[str, float]], None] = lambda step, figures: None,
) -> Refined:
    """Optimise the offset of the person whose photos have the mean identity code `code` [128].

    `crops` [K, 3, 256, 256] are the aligned photos; `show` is called after every step. Ctrl-C ends it early. Raises
    FidError when a loss is not finite.
    """
    begin, done, stopped = time.monotonic(), 0, False
    refinement = Refinement(networks, code, crops, config)
    drawn = refinement.draw(config.bank + config.held_out)
    known, held_out = drawn[: config.bank], drawn[config.bank :]
    before = refinement.measure(held_out)
    random = torch.Generator().manual_seed(config.seed)
    of_photos, of_drawn = _in_turn(refinement.photos, random), _in_turn(known, random)
    try:
        while (fraction := _fraction(config, done, time.monotonic() - begin)) < 1:
            alone = not known or fraction < config.alone or done % 2 == 0
            terms = refinement.step(next(of_photos if alone else of_drawn), fraction)
            done += 1
            show(done, terms)
    except KeyboardInterrupt:
        stopped = True
    return Refined(refinement.w_plus_offset.detach(), before, refinement.measure(held_out), done, stopped)


def _fraction(config: PersonalizeConfig, steps: int, seconds: float) -> float:
    """The share of the search that is over, by its steps or by its time."""
    by_time = 0.0 if config.max_minutes is None else seconds / (60 * config.max_minutes)
    return max(steps / config.steps, by_time)


def _in_turn(faces: Sequence[Face], random: torch.Generator) -> Iterator[Face]:
    """All the faces in random order, over and over."""
    while faces:
        for number in torch.randperm(len(faces), generator=random).tolist():
            yield faces[number]


def invert(networks: Networks, code: Tensor, crop: Tensor, config: PersonalizeConfig) -> Tensor:
    """Return the generator's picture [1, 3, S, S] of one aligned photograph [1, 3, 256, 256] with the identity code
    `code`.

    The offset is optimised for this picture alone, as `INVERSION` says: the ceiling of what can be reached with it.
    """
    refinement = Refinement(networks, code, crop, config)
    for done in range(config.steps):
        refinement.step(refinement.photos[0], done / config.steps)
    with torch.no_grad():
        return refinement.image(refinement.photos[0].attributes)


def jittered(image: Tensor, random: torch.Generator) -> Tensor:
    """Return pictures [N, 3, S, S] as if aligned a little differently: shifted by up to 2 %, scaled by up to 4 %.

    A person is to be found there as well; otherwise E_id is pleased by patterns that nobody else sees.
    """
    n = len(image)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 0.96 + 0.08 * torch.rand(n, generator=random)
    theta[:, :, 2] = 0.08 * torch.rand(n, 2, generator=random) - 0.04  # in half sides
    grid = F.affine_grid(theta.to(image.device), list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)


def _bytes(crop: Tensor) -> np.ndarray:
    """Float [N, 3, S, S] in [-1, 1] -> RGB uint8 [N, S, S, 3]."""
    return ((crop + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
