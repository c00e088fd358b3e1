"""A generator from the user's file: the first StyleGAN, StyleGAN2 or StyleGAN2-ADA, whatever the layout."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...runtime.errors import FidError, InputError
from ...runtime.weights.cache import sha256
from ..networks import stylegan, stylegan2
from ..networks.mobilestylegan import W_SIZE, Mapping
from .from_stylegan import StyleGANFound, stylegan_in
from .from_stylegan2 import StyleGAN2Found, stylegan2_in
from .pickled import RefusedError
from .user_file import Weights, read_file

WHAT = (
    "a StyleGAN or StyleGAN2 of NVIDIA (.pkl), rosinality (.pt), ID-disentanglement (.h5), pSp, e4e or ReStyle (.pt), "
    "or .safetensors with such names"
)

Synthesis = stylegan.Synthesis | stylegan2.Synthesis


@dataclass(frozen=True)
class Generator:
    """A generator as it was read. Both networks are frozen."""

    mapping: Mapping  # z [N, 512] -> w [N, 512]
    synthesis: Synthesis  # w [N, 512] or W+ -> image [N, 3, R, R]
    origin: dict[str, Any]  # what the file is, for bundle.json


def read_generator(path: Path, resolution: int | None = None, noise: bool = True) -> Generator:
    """Read a generator. `resolution`: px of its images; less than the file's own averages them down. `noise`: constant
    noise, that of the file or, where it holds none, one that is always the same; or none.

    Raises InputError when there is no such file or it is no StyleGAN of w [512] that makes RGB images of that size,
    FidError when it is broken, holds more than data or does not fit.
    """
    content = read_file(path, WHAT)
    try:
        found = stylegan_in(content, path) or stylegan2_in(content, path)
    except RefusedError as refusal:
        raise FidError(f"{path} is refused: it {refusal}.") from refusal
    except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise FidError(f"{path} is broken: it holds arrays of shapes that no generator has.") from error
    if found is None:
        raise InputError(f"{path} holds no StyleGAN generator: expected {WHAT}.")
    weights = _fitting(found, path)
    mapping, synthesis = (
        {name.removeprefix(part): value for name, value in weights.items() if name.startswith(part)}
        for part in ("mapping.", "synthesis.")
    )
    noise = noise and any(name.endswith("noise_const") for name in synthesis)
    native = max(int(name[1:].split(".")[0]) for name in synthesis if name.startswith("b"))
    if resolution is not None and (resolution > native or native % resolution):
        raise InputError(f"{path} makes images of {native} px, which cannot be averaged down to {resolution} px.")
    network = found.synthesis_of(synthesis, resolution, noise)
    origin = {
        "kind": found.kind,
        "file": path.name,
        "sha256": sha256(path),
        "layout": found.layout,
        "native_resolution": native,
        "resolution": network.resolution,
        "noise": found.noise if noise else "none",
    }
    return Generator(found.mapping_of(mapping), network, origin)


def _fitting(generator: StyleGANFound | StyleGAN2Found, path: Path) -> Weights:
    """Those weights that a generator has, float32 and in memory of their own; all must be there and fit together."""
    found, kind = generator.weights, generator.kind
    if "mapping.fc0.weight" not in found or generator.constant not in found:
        raise InputError(f"{path} holds no StyleGAN generator: expected {WHAT}.")
    affine = found.get("synthesis.b4.conv1.affine.weight")
    if found["mapping.fc0.weight"].shape[-1] != W_SIZE or (affine is not None and affine.shape[-1] != W_SIZE):
        raise InputError(f"{path} has a z or a w of another size, and fid works with {W_SIZE} numbers.")
    weights = {}
    for name, shape in generator.shapes().items():
        if name not in found and name.endswith("resample_filter"):
            line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8  # the usual one; some files leave it out
            weights[name] = torch.outer(line, line)
            continue
        if name not in found:
            raise FidError(f"{path} does not fit {kind}: it lacks {name}.")
        value = found[name]
        if [n for n in value.shape if n != 1] != [n for n in shape if n != 1]:  # layouts differ in axes of size 1
            raise FidError(f"{path} does not fit {kind}: it has {name} as {list(value.shape)}, expected {list(shape)}.")
        if not value.is_floating_point() or value.layout != torch.strided:
            raise FidError(f"{path} does not fit {kind}: {name} is {value.dtype}, expected floating point.")
        weights[name] = value.detach().clone().float().reshape(shape)
        if not weights[name].isfinite().all():
            raise FidError(f"{path} is broken: {name} holds numbers that are not finite.")
    return weights
