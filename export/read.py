"""First stage: the networks to export, from checkpoints or from the bundle that ships with fid."""

import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from ..runtime import models
from ..runtime.bundle import Bundle
from ..runtime.cache import sha256
from ..runtime.crop import CROP_SIZE
from ..runtime.errors import InputError
from ..runtime.prepare import SKELETON_WEIGHTS
from ..trainer.checkpoint import read_record
from ..trainer.fit import FitConfig, Trainable, load_generator, load_trained
from ..trainer.from_bundle import load_graph
from ..trainer.networks_inception import FEATURES
from ..trainer.networks_mobilestylegan import Synthesis
from .fold import fold_batch_norms, frozen, rounded_to_half


@dataclass(frozen=True)
class Networks:
    """What a bundle is made of. All take and give float32; pictures are [N, 3, S, S] RGB in [-1, 1]."""

    attributes: nn.Module  # E_attr: aligned crop [N, 3, 256, 256] -> attribute code [N, attributes_size]
    mapper: nn.Module  # M: identity code [N, 128], attribute code -> w [N, 512]; buffers w_mean, w_std [512]
    synthesis: nn.Module  # G: w [N, 512] -> image [N, 3, R, R]
    resolution: int  # R, px
    provenance: dict[str, Any] = field(default_factory=dict)  # where the weights come from, for bundle.json
    attributes_size: int = 512

    def for_inference(self) -> "Networks":
        """Frozen copies with every batch norm folded into its convolution; equal up to float32 rounding."""
        return replace(
            self,
            attributes=fold_batch_norms(self.attributes, torch.zeros(1, 3, CROP_SIZE, CROP_SIZE)),
            mapper=frozen(self.mapper),
            synthesis=frozen(self.synthesis),
        )

    def rounded_to_half(self) -> "Networks":
        """Copies with large weights rounded to FP16 and kept as float32: exactly what an FP16 bundle stores."""
        return replace(
            self,
            attributes=rounded_to_half(self.attributes),
            mapper=rounded_to_half(self.mapper),
            synthesis=rounded_to_half(self.synthesis),
        )


FULL_RESOLUTION = 1024  # px, of the published generator


def read_networks(checkpoint: Path | None, generator: Path | None, resolution: int | None = None) -> Networks:
    """The networks to export.

    checkpoint: a run or checkpoint of `fid-train fit`; generator: one of `fid-train distill`. What is None comes from
    the bundle that ships with fid, and with `resolution` 1024 the generator is the published one, fetched when it is
    missing. Raises InputError when a folder holds no checkpoint, a mapper into W+ or a generator of another resolution,
    FidError when it holds other networks.
    """
    full = generator is None and resolution == FULL_RESOLUTION
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
    if generator is not None:
        made = int(read_record(generator)["configuration"]["resolution"])
        synthesis: nn.Module = load_generator(generator, made)
        provenance["generator"] = _origin(generator)
    elif full:
        made, folder = FULL_RESOLUTION, models.ensure("generator")
        synthesis = Synthesis.load(made, folder)
        provenance["generator"] = {
            "generator": "MobileStyleGAN FFHQ 1024",
            "sha256": sha256(folder / SKELETON_WEIGHTS["synthesis-1024"]),
        }
    else:
        assert shipped is not None
        synthesis, made = shipped.synthesis, shipped.resolution
    if resolution not in (None, made):
        raise InputError(f"the generator {generator or 'that ships with fid'} makes {made} px and not {resolution}.")
    return Networks(attributes, mapper, synthesis, made, provenance | _environment(), size)


def read_bundle(bundle: Bundle) -> Networks:
    """The networks that a bundle was exported from: its tensors have the names of the modules' own.

    Raises FidError when the bundle was made from other networks than this version of fid has.
    """
    encoder = "inception" if bundle.attributes_size == FEATURES else "light"
    trained, synthesis = Trainable(FitConfig(attribute_encoder=encoder)), Synthesis(bundle.resolution)
    attributes = fold_batch_norms(trained.attributes, torch.zeros(1, 3, CROP_SIZE, CROP_SIZE))
    for module, graph in ((attributes, "attributes"), (trained.mapper, "mapper"), (synthesis, "synthesis")):
        load_graph(module, bundle, graph)
    mapper, provenance = frozen(trained.mapper), dict(bundle.provenance)
    return Networks(attributes, mapper, frozen(synthesis), bundle.resolution, provenance, bundle.attributes_size)


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
