"""First stage: the networks to export, from checkpoints or from the bundle that ships with fid."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from ..runtime.errors import InputError
from ..runtime.face.crop import CROP_SIZE
from ..runtime.weights import catalogue as models
from ..runtime.weights.bundle import LIGHT, Bundle
from ..runtime.weights.cache import sha256
from ..runtime.weights.prepare import SKELETON_WEIGHTS
from ..trainer.loop import source_commit
from ..trainer.networks.exported import BundleIdentity
from ..trainer.networks.mobilestylegan import Synthesis
from ..trainer.networks.trained import IDENTITY_SIZE
from ..trainer.networks.vggface2 import JoinedEncoder, VGGFace2
from ..trainer.weights.checkpoint import read_record
from ..trainer.weights.from_bundle import load_graph, load_synthesis
from ..trainer.weights.generator import read_generator
from ..trainer.weights.identity import check_identity_encoder, load_identity_encoder
from ..trainer.weights.trained import load_generator, load_trained, shaped_as
from .fold import fold_batch_norms, frozen, rounded_to_fp16, with_transposed_wavelets

PUBLISHED = 1024  # px, of MobileStyleGAN
W_DISTANCE = 0.5  # see `w_distance`; a generator with another mapping network lies far above it
ENCODER_LICENCE = "that of the file, which the user brought; VGGFace2's own weights: CC BY-SA 4.0"
USERS_LICENCE = (
    "that of the file, which the user brought; NVIDIA's own StyleGAN2 weights: Nvidia Source Code License-NC, its "
    "StyleGAN weights: CC BY-NC 4.0, research or evaluation only"
)


@dataclass(frozen=True)
class Networks:
    """What a bundle is made of. All take and give float32; pictures are [N, 3, S, S] RGB in [-1, 1]."""

    attributes: nn.Module  # E_attr: aligned crop [N, 3, 256, 256] -> attribute code [N, attributes_size]
    mapper: nn.Module  # M: identity code [N, 128], attribute code -> w [N, 512] or W+; buffers w_mean, w_std [512]
    synthesis: nn.Module  # G: w [N, 512] -> image [N, 3, R, R]
    resolution: int  # R, px
    provenance: dict[str, Any] = field(default_factory=dict)  # where the weights come from, for bundle.json
    attributes_size: int = 512
    mapping: nn.Module | None = None  # z [N, 512] -> w, of a generator of the user's; None: the fetched one
    light: nn.Module | None = None  # a narrower G of the same W and resolution
    identity: VGGFace2 | JoinedEncoder | None = None  # E_id of the user's; None: SFace, which is fetched

    @property
    def identity_size(self) -> int:
        """Numbers of an identity code."""
        return IDENTITY_SIZE if self.identity is None else self.identity.code_size

    @property
    def takes_appearance(self) -> bool:
        """Whether the mapper takes the attribute code of the identity image, too."""
        return getattr(self.mapper, "appearance", None) is not None

    @property
    def mapper_styles(self) -> int | None:
        """Of a mapper into W+, how many w it answers with; None of one into W."""
        return getattr(self.mapper, "n_styles", None)

    def with_generator(self, synthesis: nn.Module, resolution: int, origin: dict[str, Any]) -> "Networks":
        """Return the same with another generator and what bundle.json says of it; without a light one."""
        provenance = {key: value for key, value in self.provenance.items() if key != "light"} | {"generator": origin}
        return replace(self, synthesis=synthesis, resolution=resolution, light=None, provenance=provenance)

    def for_inference(self) -> "Networks":
        """Return frozen copies in the form that runs fastest: batch norms folded, wavelets as convolutions; equal up to
        float32 rounding."""
        return replace(
            self,
            attributes=fold_batch_norms(self.attributes, torch.zeros(1, 3, CROP_SIZE, CROP_SIZE)),
            mapper=frozen(self.mapper),
            synthesis=with_transposed_wavelets(self.synthesis),
            mapping=None if self.mapping is None else frozen(self.mapping),
            light=None if self.light is None else with_transposed_wavelets(self.light),
        )

    def rounded_to_fp16(self) -> "Networks":
        """Return copies with large weights rounded to FP16 and kept as float32: exactly what an FP16 bundle stores."""
        return replace(
            self,
            attributes=rounded_to_fp16(self.attributes),
            mapper=rounded_to_fp16(self.mapper),
            synthesis=rounded_to_fp16(self.synthesis),
            mapping=None if self.mapping is None else rounded_to_fp16(self.mapping),
            light=None if self.light is None else rounded_to_fp16(self.light),
        )


def read_networks(
    checkpoint: Path | None,
    generator: Path | None,
    resolution: int | None = None,
    noise: bool = True,
    light: Path | None = None,
    identity_encoder: Sequence[Path] = (),
) -> Networks:
    """Return the networks to export.

    checkpoint: a run or checkpoint of `fid-train fit`; generator: one of `fid-train distill`, or the user's file of
    a StyleGAN. What is None comes from the bundle that ships with fid. resolution: px; None for the generator's own;
    with 1024 and no generator it is the published one, fetched when it is missing. noise: keep the constant noise of
    such a file. light: a run or checkpoint of `fid-train distill --narrow`; None for the shipped one beside the shipped
    generator. identity_encoder: files of E_id, as training was given.

    Raises InputError when a folder holds no checkpoint, for a resolution that the generator does not make, for a light
    generator of another one, for a file whose W is not the mapper's, and for a mapper into W+ of another generator;
    FidError when something holds other networks.
    """
    networks = _networks_of(checkpoint, generator, resolution, noise, light, identity_encoder)
    if networks.mapper_styles not in (None, networks.synthesis.n_styles):
        raise InputError(
            f"{checkpoint} maps into W+ of {networks.mapper_styles} styles and the generator takes "
            f"{networks.synthesis.n_styles}: name the one that it was trained through with --generator."
        )
    return networks


def _networks_of(
    checkpoint: Path | None,
    generator: Path | None,
    resolution: int | None,
    noise: bool,
    light: Path | None,
    identity_encoder: Sequence[Path],
) -> Networks:
    full = generator is None and resolution == PUBLISHED
    own = generator is not None and generator.is_file()
    if light is not None and (full or own):
        raise InputError("--light is for bundles of a distilled generator.")
    shipped = None if checkpoint is not None and (full or generator is not None) else read_bundle(Bundle.load())
    networks = _mapper_of(checkpoint, shipped)
    encoder = load_identity_encoder(identity_encoder)
    if checkpoint is not None:
        check_identity_encoder(checkpoint, encoder)
    elif encoder is not None:
        raise InputError(
            "the shipped mapper knows codes of SFace: name a run that was trained with --identity-encoder."
        )
    if encoder is not None:
        assert not isinstance(encoder.network, BundleIdentity)
        networks = replace(networks, identity=encoder.network)
        networks.provenance["identity_encoder"] = encoder.origin
        networks.provenance["licences"] |= {"identity_encoder": ENCODER_LICENCE}
    if generator is not None and own:
        return _with_users_generator(networks, generator, resolution, noise)
    if generator is not None:
        side = int(read_record(generator)["configuration"]["resolution"])
        networks = networks.with_generator(load_generator(generator, side), side, _origin(generator))
    elif full:
        folder = models.ensure("generator")
        digest = sha256(folder / SKELETON_WEIGHTS["synthesis-1024"])
        origin = {"generator": "MobileStyleGAN FFHQ 1024", "sha256": digest}
        networks = networks.with_generator(Synthesis.load(PUBLISHED, folder), PUBLISHED, origin)
    if resolution not in (None, networks.resolution):
        raise InputError(
            f"there is no {resolution} px in {generator or 'the shipped weights'}, which make {networks.resolution} px;"
            " name a StyleGAN or StyleGAN2 file with --generator for other sizes."
        )
    return networks if light is None else _with_light(networks, light)


def _mapper_of(checkpoint: Path | None, shipped: Networks | None) -> Networks:
    """Return the shipped networks with E_attr and M of a checkpoint; without shipped ones, a generator is to come."""
    if checkpoint is None:
        assert shipped is not None
        return replace(shipped, provenance=shipped.provenance | _environment())
    trained = load_trained(checkpoint)
    parts = {"attributes": trained.attributes, "mapper": trained.mapper, "attributes_size": trained.attributes_size}
    provenance = {**(shipped.provenance if shipped else {}), "trained": _origin(checkpoint), **_environment()}
    if shipped is not None:
        return replace(shipped, **parts, provenance=provenance)
    return Networks(**parts, synthesis=nn.Identity(), resolution=0, provenance=provenance)


def _with_users_generator(networks: Networks, file: Path, resolution: int | None, noise: bool) -> Networks:
    """Return the networks with the generator of a user's file. Raises InputError when its W is not the mapper's."""
    found = read_generator(file, resolution, noise)
    apart = w_distance(networks.mapper, found.mapping)
    if apart > W_DISTANCE:
        raise InputError(
            f"the W of {file} is not the one that the mapper was trained in (they are {apart:.2g} standard "
            f"deviations apart, at most {W_DISTANCE:g} is expected): train a mapper with "
            f"`fid-train --generator {file}` and name its run."
        )
    origin = {**found.origin, "w_distance": apart}
    networks = networks.with_generator(found.synthesis, found.synthesis.resolution, origin)
    networks.provenance["licences"] |= {"generator": USERS_LICENCE}
    return replace(networks, mapping=found.mapping)


def _with_light(networks: Networks, light: Path) -> Networks:
    """Return the networks with another light generator. Raises InputError when it makes another size."""
    side = int(read_record(light)["configuration"]["resolution"])
    if side != networks.resolution:
        raise InputError(
            f"the light generator in {light} makes {side} px and the bundle's makes {networks.resolution} px."
        )
    provenance = networks.provenance | {"light": _origin(light)}
    return replace(networks, light=load_generator(light, side), provenance=provenance)


@torch.no_grad()
def w_distance(mapper: nn.Module, mapping: nn.Module) -> float:
    """Return how far the mean w of a mapping network lies from the mean of the W that a mapper was trained in, or its
    spread from that W's: root mean square over the 512 numbers, in standard deviations of that W. Chance alone gives
    0.01."""
    assert isinstance(mapper.w_mean, torch.Tensor)
    assert isinstance(mapper.w_std, torch.Tensor)
    z = torch.randn(20_000, len(mapper.w_mean), generator=torch.Generator().manual_seed(1))
    w = torch.cat([mapping(part) for part in z.split(1000)])
    mean, spread = (w.mean(0) - mapper.w_mean) / mapper.w_std, w.std(0) / mapper.w_std - 1
    return float(torch.stack((mean, spread)).square().mean(1).sqrt().max())


def read_bundle(bundle: Bundle) -> Networks:
    """Return the networks that a bundle was exported from: its tensors have the names of the modules' own.

    Raises FidError when the bundle was made from other networks than this version of fid has.
    """
    trained, synthesis = shaped_as(bundle), load_synthesis(bundle)
    attributes = fold_batch_norms(trained.attributes, torch.zeros(1, 3, CROP_SIZE, CROP_SIZE))
    for module, graph in ((attributes, "attributes"), (trained.mapper, "mapper")):
        load_graph(module, bundle, graph)
    light = frozen(load_synthesis(bundle, LIGHT)) if LIGHT in bundle.graphs else None
    mapper, provenance, size = frozen(trained.mapper), dict(bundle.provenance), bundle.attributes_size
    return Networks(attributes, mapper, frozen(synthesis), bundle.resolution, provenance, size, light=light)


def _origin(checkpoint: Path) -> dict[str, Any]:
    """What bundle.json keeps of a checkpoint: the hash of its weights and how they were trained."""
    record = read_record(checkpoint)
    weights = Path(record.pop("folder")) / "weights.safetensors"
    return {"sha256": sha256(weights), **record}


def _environment() -> dict[str, Any]:
    """What bundle.json says about the export itself."""
    licences = {name: models.model(name).licence for name in ("generator", "sface")}
    return {"commit": source_commit(), "torch": torch.__version__, "onnx": onnx.__version__, "licences": licences}
