"""StyleGAN2 in a user's file: NVIDIA's pickles (PyTorch or TensorFlow), rosinality's checkpoints, inversion networks
that hold one (pSp, e4e, ReStyle), safetensors with the names of either.

All are brought to the names of NVIDIA's PyTorch release: `mapping.fc0.weight`, `synthesis.b4.const`,
`synthesis.b8.conv0.affine.bias` and so on.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...runtime.errors import InputError
from ..networks.mobilestylegan import W_SIZE, Mapping
from ..networks.stylegan2 import TAPS, Synthesis, mapping_from, synthesis_from
from .pickled import Record, RefusedError
from .tensorflow import number, options_of, variables_of
from .user_file import Weights, check_size, named_tensors

RATE = 0.01  # of the mapping network, in every published configuration
SIDES = (8, 16, 32, 64, 128, 256, 512, 1024)  # px, of the images

MODULES = ("mapping|synthesis", r"fc\d+|b\d+|input", "conv0|conv1|torgb", "affine")  # what a generator is made of
MAX_PARTS = 1000  # of a module


@dataclass(frozen=True)
class StyleGAN2Found:
    """What a file holds, under NVIDIA's names."""

    layout: str
    weights: Weights
    rate: float = RATE
    clamp: float | None = None
    noise: ClassVar[str] = "constant"
    kind: ClassVar[str] = "StyleGAN2"
    constant: ClassVar[str] = "synthesis.b4.const"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the names that belong to a generator with so many mapping layers and blocks, and their shapes."""
        shapes: dict[str, tuple[int, ...]] = {}
        for i in range(64):
            if f"mapping.fc{i}.weight" in self.weights:
                shapes |= {f"mapping.fc{i}.weight": (W_SIZE, W_SIZE), f"mapping.fc{i}.bias": (W_SIZE,)}
        before: int | None = None
        noise = "synthesis.b4.conv1.noise_const" in self.weights
        for side in (4, *SIDES):
            block = f"synthesis.b{side}"
            if f"{block}.conv1.weight" not in self.weights and side > 4:
                break
            c_out = len(self.weights[f"{block}.conv1.weight"]) if f"{block}.conv1.weight" in self.weights else 0
            layers = [("conv1", c_out, c_out, 3), ("torgb", c_out, 3, 1)]
            if before is None:
                shapes[f"{block}.const"] = (c_out, 4, 4)
            else:
                layers.append(("conv0", before, c_out, 3))
                shapes |= {f"{block}.resample_filter": (TAPS, TAPS), f"{block}.conv0.resample_filter": (TAPS, TAPS)}
            for layer, c_in, width, kernel in layers:
                name = f"{block}.{layer}"
                shapes |= {f"{name}.weight": (width, c_in, kernel, kernel), f"{name}.bias": (width,)}
                shapes |= {f"{name}.affine.weight": (c_in, W_SIZE), f"{name}.affine.bias": (c_in,)}
                if noise and layer != "torgb":
                    shapes |= {f"{name}.noise_const": (side, side), f"{name}.noise_strength": ()}
            before = c_out
        return shapes

    def mapping_of(self, weights: Weights) -> Mapping:
        """Return the mapping network of checked weights `fc0.weight` etc. Frozen."""
        return mapping_from(weights, self.rate)

    def synthesis_of(self, weights: Weights, resolution: int | None, noise: bool) -> Synthesis:
        """Return the synthesis network of checked weights. Frozen."""
        return synthesis_from(weights, resolution, noise=noise, clamp=self.clamp)


def stylegan2_in(content: Any, path: Path) -> StyleGAN2Found | None:
    """Return the StyleGAN2 in what `user_file.read_file` gave; None when it is something else.

    NVIDIA's pickles hold a dictionary of persistent modules, or the three networks (G, D, Gs) of the TensorFlow ones;
    other files weights by name. Raises InputError for one that fid does not read, FidError for one that is broken.
    """
    if isinstance(content, dict) and isinstance(content.get("G_ema"), Record):
        content = content["G_ema"]
    if isinstance(content, tuple) and len(content) == 3:
        content = content[2]
    if isinstance(content, Record):
        return _from_tensorflow(content, path) if content.kind == "Network" else _from_persistent(content, path)
    weights = named_tensors(content, "state_dict", "g_ema", "G_ema", "module", "decoder")
    if not weights:
        return None
    check_size(weights, path)
    if any(name.startswith("mapping.embed.") for name in weights):
        raise InputError(f"{path} wants a class label, and fid reads generators that do not.")
    if any(name.startswith("synthesis.input.") for name in weights):
        raise InputError(f"{path} holds StyleGAN3: fid reads StyleGAN, StyleGAN2 and StyleGAN2-ADA.")
    if "input.input" in weights:
        return StyleGAN2Found("rosinality", _from_rosinality(weights))
    own = {n: v for n, v in weights.items() if n.startswith(("mapping.", "synthesis."))}
    return StyleGAN2Found("NVIDIA's names", own) if own else None


def _from_rosinality(weights: Weights) -> Weights:
    """rosinality's `Generator`: `style.1` .. for the mapping, `conv1`, `convs.i`, `to_rgb1`, `to_rgbs.i`, `noises`."""
    renamed: Weights = {"synthesis.b4.const": weights["input.input"]}

    def copy(old: str, new: str, change: Callable[[Tensor], Tensor] = lambda value: value) -> None:
        if old in weights:
            renamed[new] = change(weights[old])

    for name in weights:
        if match := re.fullmatch(r"style\.(\d+)\.(weight|bias)", name):
            copy(name, f"mapping.fc{int(match[1]) - 1}.{match[2]}")  # style.0 normalises z
    convs, heads = [("conv1", "b4.conv1")], [("to_rgb1", "b4.torgb")]
    for i, side in enumerate(SIDES):
        convs += [(f"convs.{2 * i}", f"b{side}.conv0"), (f"convs.{2 * i + 1}", f"b{side}.conv1")]
        heads += [(f"to_rgbs.{i}", f"b{side}.torgb")]
        kernel = f"synthesis.b{side}.%sresample_filter"  # rosinality's is already times 4
        copy(f"convs.{2 * i}.conv.blur.kernel", kernel % "conv0.", lambda value: value / 4)
        copy(f"to_rgbs.{i}.upsample.kernel", kernel % "", lambda value: value / 4)
    for old, new in (*convs, *heads):
        copy(f"{old}.conv.weight", f"synthesis.{new}.weight", lambda value: value[0] if value.ndim == 5 else value)
        copy(f"{old}.conv.modulation.weight", f"synthesis.{new}.affine.weight")
        copy(f"{old}.conv.modulation.bias", f"synthesis.{new}.affine.bias")
        copy(f"{old}.bias", f"synthesis.{new}.bias", Tensor.flatten)
        copy(f"{old}.activate.bias", f"synthesis.{new}.bias", Tensor.flatten)
        copy(f"{old}.noise.weight", f"synthesis.{new}.noise_strength")
    for i, (_, new) in enumerate(convs):
        copy(f"noises.noise_{i}", f"synthesis.{new}.noise_const")
    return renamed


def _from_persistent(generator: Record, path: Path) -> StyleGAN2Found:
    """A `Generator` of NVIDIA's PyTorch releases; its modules hold their parameters, buffers and modules by name."""
    modules = dict(_modules(generator))
    if "synthesis.b4" not in modules or "mapping" not in modules:
        what = "StyleGAN3" if "synthesis.input" in modules else f"a {generator.kind[:50]} of another kind"
        raise InputError(f"{path} holds {what}: fid reads StyleGAN, StyleGAN2 and StyleGAN2-ADA.")
    weights: Weights = {}
    for name, module in modules.items():
        for kind in ("_parameters", "_buffers"):
            group = module.state.get(kind, {})
            if not isinstance(group, dict):
                raise RefusedError("has a module without parameters")
            weights |= {f"{name}.{key}": value for key, value in group.items() if isinstance(value, Tensor)}
    check_size(weights, path)
    mapping, clamps = modules["mapping"].state, set()
    for name, module in modules.items():
        if re.fullmatch(r"synthesis\.b\d+", name) and module.state.get("architecture", "skip") != "skip":
            raise InputError(f"{path} has the architecture {module.state['architecture']!r}: fid reads 'skip'.")
        if re.fullmatch(r"synthesis\.b\d+\.\w+", name):
            clamps.add(number(module.state.get("conv_clamp")))
        if module.state.get("activation", "lrelu") not in ("lrelu", "linear"):
            raise InputError(f"{path} has the activation {module.state['activation']!r}: fid reads 'lrelu'.")
    if len(clamps) > 1 or mapping.get("c_dim", 0) != 0:
        reason = "clamps layers at different values" if len(clamps) > 1 else "wants a class label"
        raise InputError(f"{path} {reason}, and fid reads generators that do not.")
    rate = modules["mapping.fc0"].state.get("bias_gain", RATE) if "mapping.fc0" in modules else RATE
    return StyleGAN2Found("NVIDIA, PyTorch", weights, number(rate) or RATE, clamps.pop() if clamps else None)


def _modules(module: Record, name: str = "", level: int = 0) -> Iterator[tuple[str, Record]]:
    """The modules of a generator by their dotted names: those that `MODULES` names, level by level."""
    if name:
        yield name, module
    children = module.state.get("_modules", {})
    if not isinstance(children, dict) or len(children) > MAX_PARTS:
        raise RefusedError("has a module whose parts are no modules")
    for key, child in children.items():
        if level < len(MODULES) and isinstance(child, Record) and re.fullmatch(MODULES[level], str(key)):
            yield from _modules(child, f"{name}.{key}" if name else str(key), level + 1)


def _from_tensorflow(network: Record, path: Path) -> StyleGAN2Found:
    """`Gs` of NVIDIA's TensorFlow releases: variables [(name, array)], and networks in it under `components`."""
    variables, options = variables_of(network), options_of(network, path)
    check_size(variables, path)
    if options.get("resample_kernel", [1, 3, 3, 1]) not in ([1, 3, 3, 1], (1, 3, 3, 1)):
        raise InputError(f"{path} has a resampling filter of its own: fid reads the usual one, 1 3 3 1.")
    if options.get("label_size"):
        raise InputError(f"{path} wants a class label, and fid reads generators that do not.")
    if options.get("architecture", "skip") != "skip" or any("ToRGB_lod" in name for name in variables):
        raise InputError(f"{path} has another architecture: fid reads 'skip', which configurations E and F have.")
    found: Weights = {}

    def copy(old: str, new: str, change: Callable[[np.ndarray], np.ndarray] = lambda value: value) -> None:
        if old in variables:
            found[new] = torch.from_numpy(np.ascontiguousarray(change(variables[old]), np.float32))

    for i in range(64):
        copy(f"mapping/Dense{i}/weight", f"mapping.fc{i}.weight", np.transpose)
        copy(f"mapping/Dense{i}/bias", f"mapping.fc{i}.bias")
    copy("synthesis/4x4/Const/const", "synthesis.b4.const")
    layers = [("4x4/Conv", "b4.conv1", 0), ("4x4/ToRGB", "b4.torgb", None)]
    line = np.array([1, 3, 3, 1], np.float32) / 8
    for i, side in enumerate(SIDES):
        place, block = f"{side}x{side}", f"b{side}"
        layers += [(f"{place}/Conv0_up", f"{block}.conv0", 2 * i + 1), (f"{place}/Conv1", f"{block}.conv1", 2 * i + 2)]
        layers += [(f"{place}/ToRGB", f"{block}.torgb", None)]
        if f"synthesis/{place}/Conv0_up/weight" in variables:
            for name in (f"synthesis.{block}.resample_filter", f"synthesis.{block}.conv0.resample_filter"):
                found[name] = torch.from_numpy(np.outer(line, line))
    for old, new, noise in layers:
        up = old.endswith("_up")  # the release turns these kernels around
        copy(
            f"synthesis/{old}/weight",
            f"synthesis.{new}.weight",
            lambda value, up=up: (value[::-1, ::-1] if up else value).transpose(3, 2, 0, 1),
        )
        copy(f"synthesis/{old}/bias", f"synthesis.{new}.bias")
        copy(f"synthesis/{old}/mod_weight", f"synthesis.{new}.affine.weight", np.transpose)
        copy(f"synthesis/{old}/mod_bias", f"synthesis.{new}.affine.bias", lambda value: value + 1)
        copy(f"synthesis/{old}/noise_strength", f"synthesis.{new}.noise_strength")
        copy(f"synthesis/noise{noise}", f"synthesis.{new}.noise_const")
    rate, clamp = number(options.get("mapping_lrmul", RATE)) or RATE, number(options.get("conv_clamp"))
    return StyleGAN2Found("NVIDIA, TensorFlow", found, rate, clamp)
