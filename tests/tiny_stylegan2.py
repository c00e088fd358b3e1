"""StyleGAN2 generators with random weights, and files of the layouts in which such generators are published."""

import collections
import contextlib
import pickle
import sys
import types
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

CHANNELS = (24, 16, 16, 8)  # of the blocks at 4, 8, 16 and 32 px
Weights = dict[str, Tensor]


def config_channels(resolution: int, base: int = 32768, most: int = 512) -> tuple[int, ...]:
    """Channels of the blocks in the published configurations: `base` is 32768 in F, 16384 in E."""
    return tuple(min(base // (4 << i), most) for i in range(resolution.bit_length() - 2))


def random_weights(channels: tuple[int, ...] = CHANNELS, layers: int = 8, seed: int = 100) -> Weights:
    """A generator under the names of NVIDIA's PyTorch release, initialised as there; noise and biases are not zero."""
    random = np.random.RandomState(seed)  # its numbers never change: the golden files hold what others made of them

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(np.asarray(random.standard_normal(shape), np.float32))

    line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    kernel = torch.outer(line, line)
    weights: Weights = {}
    for i in range(layers):
        weights |= {f"mapping.fc{i}.weight": normal(512, 512) / 0.01, f"mapping.fc{i}.bias": normal(512)}
    weights["mapping.w_avg"] = normal(512)
    for i, width in enumerate(channels):
        block, before = f"synthesis.b{4 << i}", channels[max(i - 1, 0)]
        layers_here = [("conv1", width, width, 3), ("torgb", width, 3, 1)]
        if i == 0:
            weights[f"{block}.const"] = normal(width, 4, 4)
        else:
            layers_here.insert(0, ("conv0", before, width, 3))
            weights |= {f"{block}.conv0.resample_filter": kernel}
        weights |= {f"{block}.resample_filter": kernel, f"{block}.conv1.resample_filter": kernel}
        for layer, c_in, c_out, side in layers_here:
            name = f"{block}.{layer}"
            weights |= {f"{name}.weight": normal(c_out, c_in, side, side), f"{name}.bias": 0.1 * normal(c_out)}
            weights |= {f"{name}.affine.weight": normal(c_in, 512), f"{name}.affine.bias": 1 + 0.1 * normal(c_in)}
            if layer != "torgb":
                weights |= {f"{name}.noise_const": normal(4 << i, 4 << i), f"{name}.noise_strength": 0.2 * normal()}
    return weights


@contextlib.contextmanager
def foreign_modules(**content: dict[str, Any]) -> Iterator[None]:
    """Modules that exist while a file is written and no longer when it is read."""
    names = [name.replace("__", ".") for name in content]
    for name, values in zip(names, content.values(), strict=True):
        module = sys.modules[name] = types.ModuleType(name)
        vars(module).update(values)
        for value in values.values():
            value.__module__, value.__qualname__ = name, value.__name__
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def write_nvidia(path: Path, weights: Weights, **attributes: Any) -> Path:
    """A pickle of NVIDIA's PyTorch releases: modules reduced to `_reconstruct_persistent_obj` with their attributes and
    the source of their class, here one that cannot be run. `attributes` go into every layer, such as conv_clamp=256."""

    def _reconstruct_persistent_obj(meta: Any) -> Any:
        raise AssertionError("the file was run")

    class EasyDict(dict):
        def __getattr__(self, name: str) -> Any:
            try:
                return self[name]
            except KeyError:
                raise AttributeError(name) from None

    class Persistent(nn.Module):
        kind = ""

        def __reduce__(self) -> Any:
            source = "raise AssertionError('the file was run')"
            meta = {"type": "class", "version": 6, "module_src": source, "class_name": self.kind}
            return _reconstruct_persistent_obj, ({**meta, "state": vars(self)},), None

    def module(kind: str, prefix: str) -> Persistent:
        made = Persistent()
        made.kind = kind
        made._init_args, made._init_kwargs = (), EasyDict(w_dim=512)
        made.weight_gain, made.bias_gain = 0.01 / np.sqrt(512), 0.01  # a NumPy scalar, as in the release
        for name in dict.fromkeys(n[len(prefix) :].split(".")[0] for n in weights if n.startswith(prefix)):
            value = weights.get(prefix + name)
            if value is None:
                made.add_module(name, module("Layer", f"{prefix}{name}."))
            elif name in ("weight", "bias", "const", "noise_strength"):
                value = value.to(memory_format=torch.channels_last) if value.ndim == 4 else value
                made.register_parameter(name, nn.Parameter(value))
            else:
                made.register_buffer(name, value)
        for name, value in attributes.items():
            setattr(made, name, value)
        return made

    with foreign_modules(
        torch_utils={},
        torch_utils__persistence={"_reconstruct_persistent_obj": _reconstruct_persistent_obj},
        dnnlib={},
        dnnlib__util={"EasyDict": EasyDict},
    ):
        generator = module("Generator", "")
        data = {
            "training_set_kwargs": EasyDict(path="ffhq.zip", xflip=True),
            "G": None,
            "D": None,
            "augment_pipe": None,
        }
        path.write_bytes(pickle.dumps({**data, "G_ema": generator}))
    return path


def write_tensorflow(path: Path, weights: Weights, **options: Any) -> Path:
    """A pickle of NVIDIA's TensorFlow release: (G, D, Gs), networks with a list of named arrays and components."""

    class Network:
        def __init__(self, variables: dict[str, Any], **components: Any) -> None:
            self.state = {
                "version": 4,
                "name": "Gs",
                "static_kwargs": {"resolution": 32, "label_size": 0, "mapping_lrmul": 0.01, **options},
                "components": components,
                "build_module_src": "raise AssertionError('the file was run')",
                "variables": [(name, value if value.ndim else np.float32(value)) for name, value in variables.items()],
            }

        def __getstate__(self) -> dict[str, Any]:
            return self.state

    mapping, synthesis = {}, {}
    for name, value in weights.items():
        part, _, rest = name.partition(".")
        array = value.numpy()
        if part == "mapping" and rest != "w_avg":
            layer, _, what = rest.partition(".")
            mapping[f"Dense{layer[2:]}/{what}"] = array.T
        elif rest == "b4.const":
            synthesis["4x4/Const/const"] = array[None]
        elif part == "synthesis" and "resample_filter" not in name:
            block, layer, what = rest.split(".", 2)
            side = int(block[1:])
            up = layer == "conv0"
            number = 0 if side == 4 else 2 * side.bit_length() - 7 + (layer == "conv1")
            place = {"conv0": "Conv0_up", "conv1": "Conv" if side == 4 else "Conv1", "torgb": "ToRGB"}[layer]
            place = f"{side}x{side}/{place}"
            if what == "weight":
                array = array.transpose(2, 3, 1, 0)
                synthesis[f"{place}/weight"] = array[::-1, ::-1] if up else array
            elif what == "noise_const":
                synthesis[f"noise{number}"] = array[None, None]
            elif what == "affine.weight":
                synthesis[f"{place}/mod_weight"] = array.T
            elif what == "affine.bias":
                synthesis[f"{place}/mod_bias"] = array - 1
            else:
                synthesis[f"{place}/{what}"] = array
    with foreign_modules(dnnlib={}, dnnlib__tflib={}, dnnlib__tflib__network={"Network": Network}):
        own = {"dlatent_avg": weights["mapping.w_avg"].numpy(), "lod": np.float32(0)}
        generator = Network(own, synthesis=Network(synthesis), mapping=Network(mapping))
        path.write_bytes(pickle.dumps((None, None, generator), protocol=4))
    return path


def rosinality_names(weights: Weights) -> Weights:
    """The same generator under the names and in the shapes of rosinality's `Generator`."""
    renamed: Weights = collections.OrderedDict()
    for i in range(64):
        for what in ("weight", "bias"):
            if f"mapping.fc{i}.{what}" in weights:
                renamed[f"style.{i + 1}.{what}"] = weights[f"mapping.fc{i}.{what}"]
    renamed["input.input"] = weights["synthesis.b4.const"][None]
    layers = [("synthesis.b4.conv1", "conv1")]
    heads = [("synthesis.b4.torgb", "to_rgb1")]
    for i, side in enumerate((8, 16, 32, 64, 128, 256, 512, 1024)):
        block = f"synthesis.b{side}"
        if f"{block}.conv1.weight" in weights:
            layers += [(f"{block}.conv0", f"convs.{2 * i}"), (f"{block}.conv1", f"convs.{2 * i + 1}")]
            heads += [(f"{block}.torgb", f"to_rgbs.{i}")]
            renamed[f"convs.{2 * i}.conv.blur.kernel"] = 4 * weights[f"{block}.conv0.resample_filter"]
            renamed[f"to_rgbs.{i}.upsample.kernel"] = 4 * weights[f"{block}.resample_filter"]
    for i, (old, new) in enumerate(layers):
        renamed[f"{new}.noise.weight"] = weights[f"{old}.noise_strength"].reshape(1)
        renamed[f"{new}.activate.bias"] = weights[f"{old}.bias"]
        renamed[f"noises.noise_{i}"] = weights[f"{old}.noise_const"][None, None]
    for old, new in heads:
        renamed[f"{new}.bias"] = weights[f"{old}.bias"].reshape(1, 3, 1, 1)
    for old, new in (*layers, *heads):
        renamed[f"{new}.conv.weight"] = weights[f"{old}.weight"][None]
        renamed[f"{new}.conv.modulation.weight"] = weights[f"{old}.affine.weight"]
        renamed[f"{new}.conv.modulation.bias"] = weights[f"{old}.affine.bias"]
    return renamed


def write_rosinality(path: Path, weights: Weights, legacy: bool = False) -> Path:
    """A checkpoint of rosinality's training, with optimiser, options and the discriminator beside the generator."""
    content = {
        "g_ema": rosinality_names(weights),
        "d": {"convs.0.0.weight": torch.zeros(3)},
        "g_optim": {"state": {0: {"step": 1}}, "param_groups": []},
        "args": Namespace(size=32, batch=16, channel_multiplier=2),
        "latent_avg": weights["mapping.w_avg"],
    }
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path
