"""The networks that training makes, and where they and their generator come from: a checkpoint, a bundle, a file."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from ...runtime.assets import FACES
from ...runtime.errors import FidError, InputError
from ...runtime.face.crop import CROP_SIZE
from ...runtime.media.images import read_image
from ...runtime.weights.bundle import Bundle
from ...runtime.weights.records import convert
from ..networks.inception import FEATURES, InceptionV3
from ..networks.mobilestylegan import CHANNELS, STYLES_PER_BLOCK, W_SIZE, Mapping, Synthesis
from ..networks.trained import ATTRIBUTES_SIZE, IDENTITY_SIZE, AttributeEncoder, Mapper
from ..pixels import from_uint8
from ..presets import FitConfig
from .checkpoint import load_into, read_record, read_weights
from .from_bundle import appearance_size, float_tensors, is_bundle, load_graph, load_synthesis, load_unfolded
from .generator import Synthesis as UsersSynthesis
from .generator import read_generator

PUBLISHED = 1024  # px, of MobileStyleGAN


class Trainable(nn.Module):
    """The networks that ship: E_attr and M."""

    def __init__(
        self, config: FitConfig | None = None, identity_size: int = IDENTITY_SIZE, n_styles: int | None = None
    ) -> None:
        """`identity_size`: numbers of an identity code. `n_styles`: of the generator, which W+ has a w for each; None:
        those of fid's own of that resolution."""
        super().__init__()
        config = config or FitConfig()
        self.attributes = AttributeEncoder() if config.attribute_encoder == "light" else InceptionV3()
        self.attributes_size = self.attributes_size_of(config)
        own_styles = 2 + STYLES_PER_BLOCK * len(CHANNELS[: int(math.log2(config.resolution)) - 3])
        self.mapper = Mapper(
            self.attributes_size,
            (n_styles or own_styles) if config.w_plus else None,
            appearance=config.appearance,
            identity_size=identity_size,
        )

    @staticmethod
    def attributes_size_of(config: FitConfig) -> int:
        """Return the numbers of an attribute code."""
        return ATTRIBUTES_SIZE if config.attribute_encoder == "light" else FEATURES

    def forward(self, identity: Tensor, crop: Tensor, portrait: Tensor) -> Tensor:
        """Map identity codes [N, D], attribute and identity crops [N, 3, S, S] in [-1, 1] -> w [N, 512] or W+.

        The identity crops count where the mapper takes appearance; W+ is [N, n_styles, 512].
        """
        if self.mapper.appearance is None:
            return self.mapper(identity, self.attributes(crop))
        attributes, appearance = self.attributes(torch.cat((crop, portrait))).chunk(2)
        return self.mapper(identity, attributes, appearance)

    def begin_with(self, other: "Trainable") -> bool:
        """Take E_attr of other networks, and M where it has the same inputs; tells whether it had.

        A mapper into W begins one into W+, with the same w for every style.
        """
        self.attributes.load_state_dict(other.attributes.state_dict())
        mapper, n_styles = other.mapper.state_dict(), self.mapper.n_styles
        if n_styles and not other.mapper.n_styles:
            for name in (f"layers.{Mapper.LAYERS - 1}.weight", f"layers.{Mapper.LAYERS - 1}.bias"):
                mapper[name] = torch.cat([mapper[name]] * n_styles)
        if {k: v.shape for k, v in mapper.items()} != {k: v.shape for k, v in self.mapper.state_dict().items()}:
            return False
        self.mapper.load_state_dict(mapper)
        return True


def parameter_counts(config: FitConfig | None = None, identity_size: int = IDENTITY_SIZE) -> dict[str, int]:
    """Return parameters of the networks that ship; of the `live` preset 5,820,160 of E_attr and 3,354,160 of M."""
    with torch.device("meta"):
        networks = Trainable(config, identity_size)
    parts = {"E_attr": networks.attributes, "M": networks.mapper}
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


def memory_estimate(config: FitConfig, identity_size: int = IDENTITY_SIZE) -> int:
    """Return bytes that training needs at its peak, about: weights with gradients, optimiser and average, and
    activations.

    Activations are what autograd keeps of the largest step, counted on tensors without content; the frozen encoders,
    which see small pictures, are left out.
    """
    with torch.device("meta"):
        networks, synthesis = Trainable(config, identity_size), Synthesis(config.resolution).requires_grad_(False)

    def step() -> list[Tensor]:
        n = config.cross_batch
        outputs = [synthesis(networks(torch.zeros(n, identity_size), *[torch.zeros(n, 3, 256, 256)] * 2))]
        if config.self_batch and config.train_attributes:
            n = config.self_batch
            outputs.append(networks(torch.zeros(n, identity_size), *[torch.zeros(n, 3, 256, 256)] * 2))
        return outputs

    weights = (
        sum(parameter_counts(config, identity_size).values()) * 4 * 5
        + sum(p.numel() for p in synthesis.parameters()) * 4
    )
    return weights + kept_by_autograd(step)


def kept_by_autograd(step: Callable[[], Any]) -> int:
    """Return bytes that autograd keeps of what `step` computes; it runs on tensors without content and returns its
    outputs."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[id(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
        held.append(tensor)
        return tensor

    held: list[Tensor] = []
    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = step()
    del outputs
    return sum(kept.values())


def drawing_memory(resolution: int, batch: int) -> int:
    """Return bytes that drawing `batch` pictures at a time needs at its peak, about: three times the generator's
    largest map."""
    sizes: list[int] = []
    with torch.device("meta"), torch.no_grad():
        synthesis = Synthesis(resolution)
        for module in synthesis.modules():
            module.register_forward_hook(
                lambda module, inputs, output: sizes.append(output.nbytes) if isinstance(output, Tensor) else None
            )
        synthesis(torch.zeros(batch, W_SIZE))
    return 3 * max(sizes)


def load_trained(checkpoint: Path) -> Trainable:
    """Return E_attr and M of a checkpoint folder or a bundle, in evaluation mode. Raises FidError when it holds
    something else."""
    if is_bundle(checkpoint):
        return _trained_of(Bundle.load(checkpoint))
    weights = read_weights(checkpoint)
    looks = weights.get("mapper.appearance.weight", ())  # older ones have none, whatever the default is now
    config = replace(kept_config(checkpoint), appearance=len(looks))
    first, last = (weights.get(f"mapper.layers.{i}.weight") for i in (0, Mapper.LAYERS - 1))
    others = Trainable.attributes_size_of(config) + len(looks)
    identity_size = IDENTITY_SIZE if first is None else max(first.shape[-1] - others, 1)
    networks = Trainable(config, identity_size, None if last is None else len(last) // W_SIZE)
    load_into(networks.attributes, weights, "attributes")
    load_into(networks.mapper, weights, "mapper")
    return networks.eval()


def kept_config(checkpoint: Path) -> FitConfig:
    """Return the configuration of a checkpoint folder, or of a run's newest; values that it does not know are the
    defaults.

    Raises InputError when it is no checkpoint of `fid-train fit`.
    """
    record = read_record(checkpoint)
    if (kind := record.get("kind", "fit")) != "fit":
        raise InputError(f"{checkpoint} holds no checkpoint of `fid-train fit`, but of `{kind}`.")
    known = FitConfig.__dataclass_fields__
    kept = {name: value for name, value in record["configuration"].items() if name in known}
    return convert(kept, FitConfig, lambda why: FidError(f"the configuration of {checkpoint} {why}."))


def shaped_as(bundle: Bundle) -> Trainable:
    """Return E_attr and M of the sizes that a bundle's have, without its weights."""
    encoder = "inception" if bundle.attributes_size == FEATURES else "light"
    looks = appearance_size(bundle)
    config = FitConfig(attribute_encoder=encoder, appearance=looks, w_plus=bundle.maps_to_w_plus)
    return Trainable(config, bundle.identity_size, bundle.n_styles)


def _trained_of(bundle: Bundle) -> Trainable:
    networks = shaped_as(bundle)
    size = (CROP_SIZE, CROP_SIZE)
    faces = [cv2.resize(read_image(path), size, interpolation=cv2.INTER_AREA) for path in sorted(FACES.glob("*.jpg"))]
    stored = float_tensors(bundle.graph_path("attributes"), "attributes.")
    load_unfolded(networks.attributes, stored, from_uint8(np.stack(faces)))
    load_graph(networks.mapper, bundle, "mapper")
    return networks.eval()


def load_generator(source: Path | None, resolution: int) -> Synthesis | UsersSynthesis:
    """Return the user's StyleGAN from a file, a distilled generator from a checkpoint folder or a bundle, or where none
    is named the published one at 1024 px and the shipped bundle's at its size. Frozen.

    Raises InputError when a generator is needed and missing.
    """
    if source is not None and source.is_file() and not is_bundle(source):
        return read_generator(source, resolution).synthesis
    if resolution == PUBLISHED:
        return Synthesis.load(1024)
    if source is None or is_bundle(source):
        bundle = Bundle.load(source)
        if bundle.resolution != resolution:
            raise InputError(
                f"{source or 'the shipped generator'} makes {bundle.resolution} px, and {resolution} were asked for: "
                "name a `fid-train distill` checkpoint with --generator."
            )
        return load_synthesis(bundle).eval().requires_grad_(False)
    weights = read_weights(source)
    network = Synthesis.shaped_as(weights, resolution, "synthesis.")
    load_into(network, weights, "synthesis")
    return network.eval().requires_grad_(False)


def load_mapping(source: Path | None) -> Mapping:
    """Return the mapping network z -> w that belongs to a generator of `load_generator`. Frozen."""
    return read_generator(source).mapping if source is not None and source.is_file() else Mapping.load()


def generator_name(generator: Path | None, resolution: int) -> str:
    """Return the generator as run.json names it: run/step, a bundle, or a file; paths above say nothing to another
    machine."""
    if generator is None and resolution == PUBLISHED:
        return "published, 1024 px"
    if generator is None or is_bundle(generator):
        bundle = Bundle.load(generator)
        return f"bundle {bundle.name} {bundle.version}"
    if generator.is_file():
        return generator.name
    folder = Path(read_record(generator)["folder"]).resolve()
    return f"{folder.parent.name}/{folder.name}"
