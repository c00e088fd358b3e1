"""The first StyleGAN in a user's file: NVIDIA's `karras2019stylegan-*` pickles (TensorFlow), the Keras weights of
ID-disentanglement and StyleGAN-Tensorflow2 (HDF5), rosinality's style-based-gan-pytorch checkpoints.

All are brought to the names of `networks.stylegan`: `mapping.fc0.weight`, `synthesis.const`,
`synthesis.b8.conv0.affine.bias` and so on, with the gains of equalised learning rates in the numbers.
"""

import math
import re
from collections.abc import Mapping as Named
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...runtime.errors import InputError
from ..networks.mobilestylegan import W_SIZE, Mapping
from ..networks.stylegan import BLUR, EPSILON, Synthesis, doubled, synthesis_from
from .pickled import Record
from .tensorflow import number, options_of, variables_of
from .user_file import Weights, check_size, named_tensors

SIDES = (4, 8, 16, 32, 64, 128, 256, 512, 1024)  # px, of the blocks
FUSED_FROM = 128  # px of the output: the release up-samples within the convolution from here on
RATE = 0.01  # of the mapping network, in the published configurations
NOISE_SEED = 2019  # of the noise pictures for files that have none
Arrays = Named[str, np.ndarray]


@dataclass(frozen=True)
class StyleGANFound:
    """What a file holds, under the names above."""

    layout: str
    weights: Weights
    bias_first: bool = False  # as `networks.stylegan.StyledConv` says
    epsilon: float = EPSILON
    noise: str = "constant"  # where the noise pictures are from
    kind: ClassVar[str] = "StyleGAN"
    constant: ClassVar[str] = "synthesis.const"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the names that belong to a generator with so many mapping layers and blocks, and their shapes."""
        shapes: dict[str, tuple[int, ...]] = {}
        for i in range(64):
            if f"mapping.fc{i}.weight" in self.weights:
                shapes |= {f"mapping.fc{i}.weight": (W_SIZE, W_SIZE), f"mapping.fc{i}.bias": (W_SIZE,)}
        noise = "synthesis.b4.conv0.noise_const" in self.weights
        before: int | None = None
        for side in SIDES:
            block = f"synthesis.b{side}"
            if f"{block}.conv1.weight" not in self.weights and side > 4:
                break
            width = len(self.weights[f"{block}.conv1.weight"]) if f"{block}.conv1.weight" in self.weights else 0
            for layer in ("conv0", "conv1"):
                name = f"{block}.{layer}"
                if layer == "conv1":
                    shapes[f"{name}.weight"] = (width, width, 3, 3)
                elif before is not None:
                    shapes[f"{name}.weight"] = (before, width, 4, 4)
                shapes |= {f"{name}.bias": (width,), f"{name}.affine.weight": (2 * width, W_SIZE)}
                shapes |= {f"{name}.affine.bias": (2 * width,)}
                if noise:
                    shapes |= {f"{name}.noise_const": (side, side), f"{name}.noise_strength": (width,)}
            if before is None:
                shapes["synthesis.const"] = (width, 4, 4)
            before = width
        return shapes | {"synthesis.torgb.weight": (3, before or 0, 1, 1), "synthesis.torgb.bias": (3,)}

    def mapping_of(self, weights: Weights) -> Mapping:
        """Return the mapping network of checked weights `fc0.weight` etc. Frozen."""
        network = Mapping(len(weights) // 2)
        with torch.no_grad():
            for name, target in network.named_parameters():
                _, number, what = name.split(".")
                target.copy_(weights[f"fc{number}.{what}"])
        return network.eval().requires_grad_(False)

    def synthesis_of(self, weights: Weights, resolution: int | None, noise: bool) -> Synthesis:
        """Return the synthesis network of checked weights. Frozen."""
        options = {"bias_first": self.bias_first, "epsilon": self.epsilon}
        return synthesis_from(weights, resolution, noise=noise, **options)


def stylegan_in(content: Any, path: Path) -> StyleGANFound | None:
    """Return the first StyleGAN in what `user_file.read_file` gave; None when it is something else.

    Raises InputError for one that fid does not read, FidError for one that is broken.
    """
    if isinstance(content, tuple) and len(content) == 3 and isinstance(content[2], Record):
        variables = variables_of(content[2])
        if any("StyleMod" in name or "LabelConcat" in name for name in variables):
            check_size(variables, path)
            options = options_of(content[2], path)
            return _from_variables(variables, options, "NVIDIA, TensorFlow", path)
        return None
    if isinstance(content, dict) and any("StyleMod" in str(name) for name in content):
        return _from_variables(_from_keras(content), {}, "Keras, ID-disentanglement", path)
    names = named_tensors(content, "g_running", "generator_running", "module")
    if names and any(name.startswith("generator.progression.") for name in names):
        check_size(names, path)
        return _from_rosinality(names, path)
    return None


def _from_keras(arrays: Arrays) -> dict[str, np.ndarray]:
    """Keras's names -> the release's: `.../G_synthesis/8x8/Conv1/StyleMod/kernel` -> `synthesis/8x8/Conv1/StyleMod/
    weight` and the like."""
    renamed: dict[str, np.ndarray] = {}
    for name, value in arrays.items():
        for part in ("mapping", "synthesis"):
            if (begin := name.rfind(f"G_{part}/")) >= 0:
                rest = name[begin + len(f"G_{part}/") :]
                rest = re.sub(r"^(noise\d+)/noise$", r"\1", re.sub(r"/bias/bias$", "/bias", rest))
                renamed[f"{part}/{re.sub(r'/kernel$', '/weight', rest)}"] = value
        if name.endswith("dlatent_avg"):
            renamed["dlatent_avg"] = value
    return renamed


def _from_variables(variables: Arrays, options: Named[str, Any], layout: str, path: Path) -> StyleGANFound:
    """The variables of the release by name, `synthesis/8x8/Conv0_up/StyleMod/weight` etc.; kernels are [k, k, in, out],
    matrices [in, out]."""
    _check_options(variables, options, path)
    native = 4
    while f"synthesis/{2 * native}x{2 * native}/Conv1/weight" in variables:
        native *= 2
    found: Weights = {}

    def take(old: str) -> Tensor | None:
        return torch.from_numpy(np.ascontiguousarray(variables[old], np.float32)) if old in variables else None

    def put(new: str, value: Tensor | None, factor: float = 1.0, plus: Tensor | float = 0.0) -> None:
        if value is not None:
            found[new] = value * factor + plus

    def put_dense(new: str, old: str, gain: float) -> None:
        weight = take(f"{old}/weight")
        if weight is not None and weight.ndim == 2:
            put(f"{new}.weight", weight.T, gain / math.sqrt(len(weight)))

    rate = number(options.get("mapping_lrmul", RATE)) or RATE
    for i in range(64):  # gain sqrt(2) of its weights; `Mapping` has it behind the activation
        put_dense(f"mapping.fc{i}", f"mapping/Dense{i}", rate)
        put(f"mapping.fc{i}.bias", take(f"mapping/Dense{i}/bias"), rate / math.sqrt(2))
    put("mapping.w_avg", take("dlatent_avg"))
    const = take("synthesis/4x4/Const/const")
    put("synthesis.const", None if const is None else const.squeeze(0))
    layers = [("4x4/Const", "b4.conv0"), ("4x4/Conv", "b4.conv1")]
    for side in SIDES[1:]:
        layers += [(f"{side}x{side}/Conv0_up", f"b{side}.conv0"), (f"{side}x{side}/Conv1", f"b{side}.conv1")]
    for index, (old, new) in enumerate(layers):
        old, new, side = f"synthesis/{old}", f"synthesis.{new}", 4 << (index // 2)
        if (weight := take(f"{old}/weight")) is not None and weight.ndim == 4:
            fused = options.get("fused_scale", "auto")
            fused = side >= FUSED_FROM if fused == "auto" else bool(fused)
            gain = math.sqrt(2 / math.prod(weight.shape[:3]))
            weight = (
                _up_kernel(weight.permute(2, 3, 0, 1), fused) if old.endswith("_up") else weight.permute(3, 2, 0, 1)
            )
            put(f"{new}.weight", weight, gain)
        put(f"{new}.bias", take(f"{old}/bias"))
        put(f"{new}.noise_strength", take(f"{old}/Noise/weight"))
        noise = take(f"synthesis/noise{index}")
        put(f"{new}.noise_const", None if noise is None or noise.ndim != 4 else noise[0, 0])
        put_dense(f"{new}.affine", f"{old}/StyleMod", 1.0)
        bias = take(f"{old}/StyleMod/bias")
        put(f"{new}.affine.bias", bias, 1.0, 0.0 if bias is None else _one_first(bias.numel()))
    head = take("synthesis/ToRGB_lod0/weight")
    put("synthesis.torgb.weight", None if head is None else head.permute(3, 2, 0, 1) / math.sqrt(head.shape[2]))
    put("synthesis.torgb.bias", take("synthesis/ToRGB_lod0/bias"))
    return StyleGANFound(layout, _of_blocks(found, native))


def _check_options(variables: Arrays, options: Named[str, Any], path: Path) -> None:
    """Refuse what the published generators of faces do not have. Raises InputError."""
    if options.get("label_size") or any("LabelConcat" in name for name in variables):
        raise InputError(f"{path} wants a class label, and fid reads generators that do not.")
    known = {
        "use_styles": (True,),
        "const_input_layer": (True,),
        "use_instance_norm": (True,),
        "use_pixel_norm": (False,),
        "use_wscale": (True,),
        "normalize_latents": (True,),
        "nonlinearity": ("lrelu",),
        "mapping_nonlinearity": ("lrelu",),
        "blur_filter": ([*map(int, BLUR)], tuple(map(int, BLUR))),
    }
    for name, usual in known.items():
        if name in options and options[name] not in usual:
            value = str(options[name])[:40]
            raise InputError(f"{path} is a StyleGAN with {name} {value}, and fid reads those with {usual[0]}.")
    for name in ("lod", "synthesis/lod"):
        if name in variables and bool(np.any(variables[name] > 0)):
            raise InputError(
                f"{path} holds a StyleGAN that was still growing: fid reads those that are trained to the end."
            )


def _up_kernel(kernel: Tensor, fused: bool) -> Tensor:
    """[in, out, 3, 3] -> the kernel [in, out, 4, 4] of the transposed convolution.

    The release's fused form convolves with the kernel as it lies; doubling the pixels first turns it around.
    """
    return doubled(kernel if fused else kernel.flip(2, 3))


def _one_first(size: int) -> Tensor:
    """1 for the factors of AdaIN, 0 for what is added: the release stores factors less 1."""
    return torch.cat((torch.ones(size // 2), torch.zeros(size - size // 2)))


def _of_blocks(found: Weights, native: int) -> Weights:
    """Those up to the last block's resolution: a file may have noise pictures of further ones."""
    return {
        name: value
        for name, value in found.items()
        if not (match := re.match(r"synthesis\.b(\d+)\.", name)) or int(match[1]) <= native
    }


def _from_rosinality(names: Weights, path: Path) -> StyleGANFound:
    """rosinality's `StyledGenerator`: `style.1.linear.weight_orig` .. for the mapping, `generator.progression.i.conv1`,
    `.noise1`, `.adain1` etc., `generator.to_rgb.i`. Blocks up to 1024 px are always there; those above the resolution
    of the training are as they began, with strengths of noise that are 0."""
    found: Weights = {}

    def put(new: str, old: str, factor: float = 1.0) -> None:
        if old in names:
            found[new] = names[old].detach().float() * factor

    def gain(old: str, axes: slice = slice(1, None)) -> float:
        return math.sqrt(2 / math.prod(names[old].shape[axes])) if old in names and names[old].ndim > 1 else 1.0

    for i in range(64):  # style.0 normalises z; the odd ones are linear
        old = f"style.{2 * i + 1}.linear"
        put(f"mapping.fc{i}.weight", f"{old}.weight_orig", gain(f"{old}.weight_orig") / math.sqrt(2))
        put(f"mapping.fc{i}.bias", f"{old}.bias", 1 / math.sqrt(2))
    put("synthesis.const", "generator.progression.0.conv1.input")
    blocks = len({name.split(".")[2] for name in names if re.match(r"generator\.progression\.\d+\.", name)})
    while blocks > 1 and not any(_moved(names, f"generator.progression.{blocks - 1}.noise{i}") for i in (1, 2)):
        blocks -= 1
    random = torch.Generator().manual_seed(NOISE_SEED)
    for index, side in enumerate(SIDES[:blocks]):
        block = f"generator.progression.{index}"
        noise = torch.randn(side, side, generator=random)
        for layer in (0, 1):
            new, conv = f"synthesis.b{side}.conv{layer}", f"{block}.conv{layer + 1}"
            _put_convolution(found, names, new, conv, up=layer == 0 and index > 0)
            strength = f"{block}.noise{layer + 1}.weight_orig"
            put(f"{new}.noise_strength", strength, gain(strength))
            found[f"{new}.noise_const"] = noise
            style = f"{block}.adain{layer + 1}.style.linear"
            put(f"{new}.affine.weight", f"{style}.weight_orig", gain(f"{style}.weight_orig"))
            put(f"{new}.affine.bias", f"{style}.bias")
    if "synthesis.const" in found:
        found["synthesis.const"] = found["synthesis.const"].squeeze(0)
        found["synthesis.b4.conv0.bias"] = torch.zeros(len(found["synthesis.const"]))
    head = f"generator.to_rgb.{blocks - 1}.conv"
    put("synthesis.torgb.weight", f"{head}.weight_orig", gain(f"{head}.weight_orig"))
    put("synthesis.torgb.bias", f"{head}.bias")
    return StyleGANFound("rosinality, StyleGAN", found, bias_first=True, epsilon=1e-5, noise="drawn")


def _moved(names: Weights, noise: str) -> bool:
    """Whether a layer was trained: its noise begins with no strength at all. One that is missing is found out later."""
    strength = names.get(f"{noise}.weight_orig")
    return strength is None or bool(strength.any())


def _put_convolution(found: Weights, names: Weights, new: str, conv: str, *, up: bool) -> None:
    """A convolution and its bias; the up-sampling ones are fused (`.0.weight` [in, out, 3, 3]) or follow a doubling of
    pixels (`.1.conv.weight_orig` [out, in, 3, 3])."""
    fused, plain = f"{conv}.0.weight", f"{conv}.1.conv.weight_orig" if up else f"{conv}.conv.weight_orig"
    if up and fused in names and names[fused].ndim == 4:
        weight = names[fused].detach().float()
        fan_in = weight.shape[0] * math.prod(weight.shape[2:])
        found[f"{new}.weight"] = _up_kernel(weight * math.sqrt(2 / fan_in), True) / 4
        bias = f"{conv}.0.bias"
    elif plain in names and names[plain].ndim == 4:
        weight = names[plain].detach().float()
        weight = weight * math.sqrt(2 / math.prod(weight.shape[1:]))
        found[f"{new}.weight"] = _up_kernel(weight.transpose(0, 1), False) if up else weight
        bias = f"{conv}.1.conv.bias" if up else f"{conv}.conv.bias"
    else:
        return
    if bias in names:
        found[f"{new}.bias"] = names[bias].detach().float()
