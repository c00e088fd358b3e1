"""First stage: the networks to export, from checkpoints or from the bundle that ships with fid."""

import subprocess
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
from ..trainer.networks.inception import FEATURES
from ..trainer.networks.mobilestylegan import Synthesis
from ..trainer.presets import FitConfig
from ..trainer.weights.checkpoint import read_record
from ..trainer.weights.from_bundle import appearance_size, load_graph, load_synthesis
from ..trainer.weights.from_stylegan2 import read_stylegan2
from ..trainer.weights.trained import Trainable, load_generator, load_trained
from .fold import fold_batch_norms, frozen, rounded_to_half, with_transposed_wavelets

PUBLISHED = 1024  # px, of MobileStyleGAN
W_DISTANCE = 0.5  # see `w_distance`; a generator with another mapping network lies far above it
USERS_LICENCE = (
    "that of the file, which the user brought; NVIDIA's own StyleGAN2 weights: Nvidia Source Code License-NC, "
    "research or evaluation only"
)


@dataclass(frozen=True)
class Networks:
    """What a bundle is made of. All take and give float32; pictures are [N, 3, S, S] RGB in [-1, 1]."""

    attributes: nn.Module  # E_attr: aligned crop [N, 3, 256, 256] -> attribute code [N, attributes_size]
    mapper: nn.Module  # M: identity code [N, 128], attribute code -> w [N, 512]; buffers w_mean, w_std [512]
    synthesis: nn.Module  # G: w [N, 512] -> image [N, 3, R, R]
    resolution: int  # R, px
    provenance: dict[str, Any] = field(default_factory=dict)  # where the weights come from, for bundle.json
    attributes_size: int = 512
    mapping: nn.Module | None = None  # z [N, 512] -> w, of a generator of the user's; None: the fetched one
    light: nn.Module | None = None  # a narrower G of the same W and resolution

    @property
    def takes_appearance(self) -> bool:
        """Whether the mapper takes the attribute code of the identity image, too."""
        return getattr(self.mapper, "appearance", None) is not None

    def for_inference(self) -> "Networks":
        """Frozen copies in the form that runs fastest: batch norms folded, wavelets as convolutions; equal up to
        float32 rounding."""
        return replace(
            self,
            attributes=fold_batch_norms(self.attributes, torch.zeros(1, 3, CROP_SIZE, CROP_SIZE)),
            mapper=frozen(self.mapper),
            synthesis=with_transposed_wavelets(self.synthesis),
            mapping=None if self.mapping is None else frozen(self.mapping),
            light=None if self.light is None else with_transposed_wavelets(self.light),
        )

    def rounded_to_half(self) -> "Networks":
        """Copies with large weights rounded to FP16 and kept as float32: exactly what an FP16 bundle stores."""
        return replace(
            self,
            attributes=rounded_to_half(self.attributes),
            mapper=rounded_to_half(self.mapper),
            synthesis=rounded_to_half(self.synthesis),
            mapping=None if self.mapping is None else rounded_to_half(self.mapping),
            light=None if self.light is None else rounded_to_half(self.light),
        )


def read_networks(
    checkpoint: Path | None,
    generator: Path | None,
    resolution: int | None = None,
    noise: bool = True,
    light: Path | None = None,
) -> Networks:
    """The networks to export.

    checkpoint: a run or checkpoint of `fid-train fit`; generator: one of `fid-train distill`, or the user's StyleGAN2
    file. What is None comes from the bundle that ships with fid. resolution: px; None for the generator's own; with
    1024 and no generator it is the published one, fetched when it is missing. noise: keep the constant noise of a
    StyleGAN2 file. light: a run or checkpoint of `fid-train distill --narrow`; None for the shipped one beside the
    shipped generator.

    Raises InputError when a folder holds no checkpoint or a mapper into W+, for a resolution that the generator does
    not make, for a light generator of another one, and for a file whose W is not the mapper's; FidError when something
    holds other networks.
    """
    full = generator is None and resolution == PUBLISHED
    shipped = None if checkpoint is not None and (full or generator is not None) else read_bundle(Bundle.load())
    provenance: dict[str, Any] = dict(shipped.provenance) if shipped else {}
    if checkpoint is not None:
        trained = load_trained(checkpoint)
        if trained.mapper.n_styles:
            raise InputError(f"{checkpoint} maps into W+, which bundles do not hold: train with --set w_plus=false.")
        attributes, mapper, size = trained.attributes, trained.mapper, trained.attributes_size
        provenance["trained"] = _origin(checkpoint)
    else:
        assert shipped is not None
        attributes, mapper, size = shipped.attributes, shipped.mapper, shipped.attributes_size
    provenance |= _environment()
    if light is not None and (full or (generator is not None and generator.is_file())):
        raise InputError("--light is for bundles of a distilled generator.")
    if generator is not None and generator.is_file():
        found = read_stylegan2(generator, resolution, noise)
        apart = w_distance(mapper, found.mapping)
        if apart > W_DISTANCE:
            raise InputError(
                f"the W of {generator} is not the one that the mapper was trained in (they are {apart:.2g} standard "
                f"deviations apart, at most {W_DISTANCE:g} is expected): train a mapper with "
                f"`fid-train --generator {generator}` and name its run."
            )
        provenance["generator"] = {**found.origin, "w_distance": apart}
        provenance["licences"] |= {"generator": USERS_LICENCE}
        side = found.synthesis.resolution
        return Networks(attributes, mapper, found.synthesis, side, provenance, size, found.mapping)
    if generator is not None:
        side = int(read_record(generator)["configuration"]["resolution"])
        synthesis: nn.Module = load_generator(generator, side)
        provenance["generator"] = _origin(generator)
    elif full:
        side, folder = PUBLISHED, models.ensure("generator")
        synthesis = Synthesis.load(PUBLISHED, folder)
        provenance["generator"] = {
            "generator": "MobileStyleGAN FFHQ 1024",
            "sha256": sha256(folder / SKELETON_WEIGHTS["synthesis-1024"]),
        }
    else:
        assert shipped is not None
        synthesis, side = shipped.synthesis, shipped.resolution
    if resolution not in (None, side):
        raise InputError(
            f"there is no {resolution} px in {generator or 'the shipped weights'}, which make {side} px; "
            "name a StyleGAN2 file with --generator for other sizes."
        )
    narrow = shipped.light if shipped is not None and generator is None and not full else None
    if light is not None:
        own = int(read_record(light)["configuration"]["resolution"])
        if own != side:
            raise InputError(f"the light generator in {light} makes {own} px and the bundle's makes {side} px.")
        narrow, provenance["light"] = load_generator(light, side), _origin(light)
    if narrow is None:
        provenance.pop("light", None)
    return Networks(attributes, mapper, synthesis, side, provenance, size, light=narrow)


@torch.no_grad()
def w_distance(mapper: nn.Module, mapping: nn.Module) -> float:
    """How far the mean w of a mapping network lies from the mean of the W that a mapper was trained in, or its spread
    from that W's: root mean square over the 512 numbers, in standard deviations of that W. Chance alone gives 0.01.
    """
    assert isinstance(mapper.w_mean, torch.Tensor)
    assert isinstance(mapper.w_std, torch.Tensor)
    z = torch.randn(20_000, len(mapper.w_mean), generator=torch.Generator().manual_seed(1))
    w = torch.cat([mapping(part) for part in z.split(1000)])
    mean, spread = (w.mean(0) - mapper.w_mean) / mapper.w_std, w.std(0) / mapper.w_std - 1
    return float(torch.stack((mean, spread)).square().mean(1).sqrt().max())


def read_bundle(bundle: Bundle) -> Networks:
    """The networks that a bundle was exported from: its tensors have the names of the modules' own.

    Raises FidError when the bundle was made from other networks than this version of fid has.
    """
    encoder = "inception" if bundle.attributes_size == FEATURES else "light"
    config = FitConfig(attribute_encoder=encoder, appearance=appearance_size(bundle))
    trained, synthesis = Trainable(config), load_synthesis(bundle)
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
    return {"commit": _commit(), "torch": torch.__version__, "onnx": onnx.__version__, "licences": licences}


def _commit() -> str | None:
    """The commit of this source tree, with `-dirty` when files differ from it; None outside of a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
