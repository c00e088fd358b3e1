"""A StyleGAN2 generator from the user's file: NVIDIA's pickles (PyTorch or TensorFlow), rosinality's checkpoints,
safetensors with the names of either. Nothing in a file is ever run.

All are brought to the names of NVIDIA's PyTorch release: `mapping.fc0.weight`, `synthesis.b4.const`,
`synthesis.b8.conv0.affine.bias` and so on.
"""

import argparse
import mmap
import re
import zipfile
from collections.abc import Callable, Iterator
from collections.abc import Mapping as Values
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...runtime.errors import FidError, InputError
from ...runtime.weights.cache import sha256
from ..networks.mobilestylegan import W_SIZE, Mapping
from ..networks.stylegan2 import TAPS, Synthesis, mapping_from, synthesis_from
from .pickled import Record, RefusedError
from .unpickle import unpickle

WHAT = "NVIDIA's StyleGAN2 .pkl, a .pt of rosinality, pSp or e4e, or .safetensors with the names of either"
MAX_BYTES = 8 << 30
RATE = 0.01  # of the mapping network, in every published configuration
SIDES = (8, 16, 32, 64, 128, 256, 512, 1024)  # px, of the images

MODULES = ("mapping|synthesis", r"fc\d+|b\d+|input", "conv0|conv1|torgb", "affine")  # what a generator is made of
MAX_PARTS = 1000  # of a module or network
TORCH_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # how torch.save once began a file

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class StyleGAN2:
    """A generator as it was read. Both networks are frozen."""

    mapping: Mapping  # z [N, 512] -> w [N, 512]
    synthesis: Synthesis  # w [N, 512] or W+ -> image [N, 3, R, R]
    origin: dict[str, Any]  # what the file is, for bundle.json


@dataclass(frozen=True)
class _Found:
    """What a file holds, under NVIDIA's names."""

    layout: str
    weights: Weights
    rate: float = RATE
    clamp: float | None = None


def read_stylegan2(path: Path, resolution: int | None = None, noise: bool = True) -> StyleGAN2:
    """Read a generator. `resolution`: px of its images; less than the file's own averages them down. `noise`: the
    constant noise of the file, or none.

    Raises InputError when there is no such file or it is no StyleGAN2 of w [512] that makes RGB images of that size,
    FidError when it is broken, holds more than data or does not fit.
    """
    found = _read(path)
    weights = _fitting(found.weights, path)
    mapping = {n.removeprefix("mapping."): v for n, v in weights.items() if n.startswith("mapping.")}
    synthesis = {n.removeprefix("synthesis."): v for n, v in weights.items() if n.startswith("synthesis.")}
    noise = noise and "b4.conv1.noise_const" in synthesis
    native = max(int(name[1:].split(".")[0]) for name in synthesis)
    if resolution is not None and (resolution > native or native % resolution):
        raise InputError(f"{path} makes images of {native} px, which cannot be averaged down to {resolution} px.")
    network = synthesis_from(synthesis, resolution, noise=noise, clamp=found.clamp)
    origin = {
        "kind": "StyleGAN2",
        "file": path.name,
        "sha256": sha256(path),
        "layout": found.layout,
        "native_resolution": native,
        "resolution": network.resolution,
        "noise": "constant" if noise else "none",
    }
    return StyleGAN2(mapping_from(mapping, found.rate), network, origin)


def _read(path: Path) -> _Found:
    """The weights of a file, which its first bytes tell apart; its name does not matter."""
    if not path.is_file():
        raise InputError(f"there is no file {path}: expected {WHAT}.")
    size = path.stat().st_size
    if not 16 <= size <= MAX_BYTES:
        raise InputError(f"{path} has {size:,} bytes and so is not a generator: expected {WHAT}.")
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith((b"PK", TORCH_LEGACY)):
        return _from_torch(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:  # first: the length may begin as a pickle does
        return _from_safetensors(path)
    if head[:1] == b"\x80":
        return _from_pickle(path)
    raise InputError(f"{path} is of no known kind: expected {WHAT}.")


def _from_torch(path: Path) -> _Found:
    """A file of torch.save, read with `weights_only=True`; the options of a training (a Namespace) are plain data."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch.save compresses nothing
                if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                    raise FidError(f"{path} is refused: it claims more numbers than it has bytes.")
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, "cpu", weights_only=True)
    except FidError:
        raise
    except Exception as error:  # torch raises errors of many kinds for unsafe and for broken content
        raise FidError(
            f"{path} is refused: it is broken or holds more than tensors ({type(error).__name__})."
        ) from error
    return _from_names(path, content)


def _from_safetensors(path: Path) -> _Found:
    try:
        return _from_names(path, load_file(path))
    except (OSError, SafetensorError, ValueError) as error:
        raise FidError(f"{path} is broken ({str(error).splitlines()[0]}).") from error


def _from_names(path: Path, content: Any) -> _Found:
    """Weights by name, at the top, in a `g_ema` or `G_ema` of a checkpoint, or in the `decoder` of an inversion network
    (pSp, e4e); `module.` before all of them comes from training on several GPUs."""
    for name in ("state_dict", "g_ema", "G_ema", "module", "decoder"):
        if isinstance(content, dict):
            content = _inside(content, name)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{path} holds no StyleGAN2 generator: expected {WHAT}.")
    weights = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    _check_size(weights, path)
    if any(name.startswith("mapping.embed.") for name in weights):
        raise InputError(f"{path} wants a class label, and fid reads generators that do not.")
    if "input.input" in weights:
        return _Found("rosinality", _from_rosinality(weights))
    return _Found("NVIDIA's names", {n: v for n, v in weights.items() if n.startswith(("mapping.", "synthesis."))})


def _inside(content: dict[Any, Any], name: str) -> dict[Any, Any]:
    """What a dictionary holds under a name, as a dictionary of its own or with the name before a dot; else itself."""
    if isinstance(content.get(name), dict):
        return content[name]
    begin = f"{name}."
    found = {key.removeprefix(begin): value for key, value in content.items() if str(key).startswith(begin)}
    return found or content


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


def _from_pickle(path: Path) -> _Found:
    """NVIDIA's pickles: a dictionary of persistent modules, or the three networks (G, D, Gs) of the TensorFlow ones."""
    with path.open("rb") as file:
        # private: what is written to the mapping stays out of the file
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    try:
        content = unpickle(data)
        if isinstance(content, dict):
            content = content.get("G_ema")
        if isinstance(content, tuple) and len(content) == 3:
            content = content[2]
        if isinstance(content, Record) and content.kind == "Network":
            return _from_tensorflow(content, path)
        if isinstance(content, Record):
            return _from_persistent(content, path)
    except RefusedError as refusal:
        raise FidError(f"{path} is refused: it {refusal}.") from refusal
    raise InputError(f"{path} holds no StyleGAN2 generator: expected {WHAT}.")


def _from_persistent(generator: Record, path: Path) -> _Found:
    """A `Generator` of NVIDIA's PyTorch releases; its modules hold their parameters, buffers and modules by name."""
    modules = dict(_modules(generator))
    if "synthesis.b4" not in modules or "mapping" not in modules:
        what = "StyleGAN3" if "synthesis.input" in modules else f"a {generator.kind[:50]} of another kind"
        raise InputError(f"{path} holds {what}: fid reads StyleGAN2 and StyleGAN2-ADA.")
    weights: Weights = {}
    for name, module in modules.items():
        for kind in ("_parameters", "_buffers"):
            group = module.state.get(kind, {})
            if not isinstance(group, dict):
                raise RefusedError("has a module without parameters")
            weights |= {f"{name}.{key}": value for key, value in group.items() if isinstance(value, Tensor)}
    mapping, clamps = modules["mapping"].state, set()
    for name, module in modules.items():
        if re.fullmatch(r"synthesis\.b\d+", name) and module.state.get("architecture", "skip") != "skip":
            raise InputError(f"{path} has the architecture {module.state['architecture']!r}: fid reads 'skip'.")
        if re.fullmatch(r"synthesis\.b\d+\.\w+", name):
            clamps.add(_number(module.state.get("conv_clamp")))
        if module.state.get("activation", "lrelu") not in ("lrelu", "linear"):
            raise InputError(f"{path} has the activation {module.state['activation']!r}: fid reads 'lrelu'.")
    if len(clamps) > 1 or mapping.get("c_dim", 0) != 0:
        reason = "clamps layers at different values" if len(clamps) > 1 else "wants a class label"
        raise InputError(f"{path} {reason}, and fid reads generators that do not.")
    rate = modules["mapping.fc0"].state.get("bias_gain", RATE) if "mapping.fc0" in modules else RATE
    return _Found("NVIDIA, PyTorch", weights, _number(rate) or RATE, clamps.pop() if clamps else None)


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise RefusedError("has an option that is no number")
    return float(value)


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


def _from_tensorflow(network: Record, path: Path) -> _Found:
    """`Gs` of NVIDIA's TensorFlow releases: variables [(name, array)], and networks in it under `components`."""
    variables = dict(_variables(network))
    _check_size(variables, path)
    if any("StyleMod" in name for name in variables):
        raise InputError(f"{path} holds the first StyleGAN, which fid does not read: it reads StyleGAN2.")
    options = network.state.get("static_kwargs") or {}
    if not isinstance(options, dict):
        raise RefusedError("has options that are no dictionary")
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
    rate, clamp = _number(options.get("mapping_lrmul", RATE)) or RATE, _number(options.get("conv_clamp"))
    return _Found("NVIDIA, TensorFlow", found, rate, clamp)


def _variables(network: Record, prefix: str = "", depth: int = 1) -> Iterator[tuple[str, np.ndarray]]:
    variables, components = network.state.get("variables", []), network.state.get("components") or {}
    if not isinstance(variables, list) or not isinstance(components, dict) or len(variables) > MAX_PARTS:
        raise RefusedError("has a network without variables")
    for entry in variables:
        if not isinstance(entry, tuple) or len(entry) != 2 or not isinstance(entry[0], str):
            raise RefusedError("has a network without variables")
        name, value = entry
        if isinstance(value, float):  # NumPy's scalars come as such
            value = np.array(value, np.float32)
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            yield prefix + name, value
    for name in ("mapping", "synthesis"):
        component = components.get(name)
        if isinstance(component, Record) and depth:
            yield from _variables(component, f"{prefix}{name}/", depth - 1)


def _fitting(found: Weights, path: Path) -> Weights:
    """Those weights that a generator has, float32 and in memory of their own; all must be there and fit together."""
    _check_size(found, path)
    if "mapping.fc0.weight" not in found or "synthesis.b4.const" not in found:
        raise InputError(f"{path} holds no StyleGAN2 generator: expected {WHAT}.")
    z_size, w_size = found["mapping.fc0.weight"].shape[-1], found.get("synthesis.b4.conv1.affine.weight")
    if z_size != W_SIZE or (w_size is not None and w_size.shape[-1] != W_SIZE):
        raise InputError(f"{path} has a z or a w of another size, and fid works with {W_SIZE} numbers.")
    weights = {}
    for name, shape in _shapes(found).items():
        if name not in found and name.endswith("resample_filter"):
            line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8  # the usual one; some files leave it out
            weights[name] = torch.outer(line, line)
            continue
        if name not in found:
            raise FidError(f"{path} does not fit StyleGAN2: it lacks {name}.")
        value = found[name]
        if [n for n in value.shape if n != 1] != [n for n in shape if n != 1]:  # layouts differ in axes of size 1
            raise FidError(
                f"{path} does not fit StyleGAN2: it has {name} as {list(value.shape)}, expected {list(shape)}."
            )
        if not value.is_floating_point() or value.layout != torch.strided:
            raise FidError(f"{path} does not fit StyleGAN2: {name} is {value.dtype}, expected floating point.")
        weights[name] = value.detach().clone().float().reshape(shape)
        if not weights[name].isfinite().all():
            raise FidError(f"{path} is broken: {name} holds numbers that are not finite.")
    return weights


def _shapes(found: Weights) -> dict[str, tuple[int, ...]]:
    """The names that belong to a generator with so many mapping layers and blocks, and their shapes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(64):
        if f"mapping.fc{i}.weight" in found:
            shapes |= {f"mapping.fc{i}.weight": (W_SIZE, W_SIZE), f"mapping.fc{i}.bias": (W_SIZE,)}
    before: int | None = None
    noise = "synthesis.b4.conv1.noise_const" in found
    for side in (4, *SIDES):
        block = f"synthesis.b{side}"
        if f"{block}.conv1.weight" not in found and side > 4:
            break
        c_out = len(found[f"{block}.conv1.weight"]) if f"{block}.conv1.weight" in found else 0
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


def _check_size(values: Values[str, Tensor | np.ndarray], path: Path) -> None:
    """A file holds no more numbers than it has bytes; one that says so repeats itself to fill the memory."""
    if sum(value.nbytes for value in values.values()) > path.stat().st_size:
        raise FidError(f"{path} is refused: it claims more numbers than it has bytes.")
