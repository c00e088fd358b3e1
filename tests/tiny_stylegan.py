"""Generators of the first StyleGAN with random weights, and files of the layouts in which such are published.

Weights are drawn by NumPy's `RandomState`, whose numbers never change, so that the makers' own code can be given the
same ones: `trainer/weights/stylegan_golden.json` holds what it made of them.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_stylegan2 import foreign_modules

Arrays = dict[str, np.ndarray]
SIDES = (4, 8, 16, 32, 64, 128, 256, 512, 1024)


def widths_of(resolution: int, base: int = 8192, most: int = 512) -> tuple[int, ...]:
    """Channels of the blocks at 4, 8, ... px: `fmap_base` and `fmap_max` of the release."""
    return tuple(min(base >> (i + 1), most) for i in range(resolution.bit_length() - 2))


def variables(widths: Sequence[int], seed: int = 7, depth: int = 8) -> Arrays:
    """The variables of `Gs` by the release's names, one random number after the other in this order."""
    random, found = np.random.RandomState(seed), {}

    def put(name: str, *shape: int, scale: float = 1.0) -> None:
        found[name] = (scale * random.standard_normal(shape)).astype(np.float32)

    for i in range(depth):
        put(f"mapping/Dense{i}/weight", 512, 512, scale=100)
        put(f"mapping/Dense{i}/bias", 512, scale=30)
    put("dlatent_avg", 512)
    for i, (side, width) in enumerate(zip(SIDES, widths, strict=False)):
        for k, layer in enumerate(("Const", "Conv") if i == 0 else ("Conv0_up", "Conv1")):
            name = f"synthesis/{side}x{side}/{layer}"
            if layer == "Const":
                put(f"{name}/const", 1, width, 4, 4)
            else:
                put(f"{name}/weight", 3, 3, widths[i - 1] if layer == "Conv0_up" else width, width)
            put(f"synthesis/noise{2 * i + k}", 1, 1, side, side)
            put(f"{name}/Noise/weight", width, scale=0.3)
            put(f"{name}/bias", width, scale=0.3)
            put(f"{name}/StyleMod/weight", 512, 2 * width, scale=0.3)
            put(f"{name}/StyleMod/bias", 2 * width, scale=0.3)
    put("synthesis/ToRGB_lod0/weight", 1, 1, widths[-1], 3)
    put("synthesis/ToRGB_lod0/bias", 3, scale=0.3)
    return found


def write_tensorflow(path: Path, values: Arrays, **options: Any) -> Path:
    """A pickle like `karras2019stylegan-*.pkl`: (G, D, Gs), networks with a list of named arrays and components."""

    class Network:
        def __init__(self, arrays: Arrays, **components: Any) -> None:
            self.state = {
                "version": 2,
                "name": "Gs",
                "static_kwargs": {"num_channels": 3, "label_size": 0, **options},
                "components": components,
                "build_module_src": "raise AssertionError('the file was run')",
                "build_func_name": "G_style",
                "variables": [(name, value if value.ndim else np.float32(value)) for name, value in arrays.items()],
            }

        def __getstate__(self) -> dict[str, Any]:
            return self.state

    parts: dict[str, Arrays] = {"mapping": {}, "synthesis": {"lod": np.zeros((), np.float32)}, "": {}}
    for name, value in values.items():
        part, _, rest = name.rpartition("/") if "/" not in name else (name.split("/")[0], "", name.split("/", 1)[1])
        parts[part][rest] = value
    with foreign_modules(dnnlib={}, dnnlib__tflib={}, dnnlib__tflib__network={"Network": Network}):
        components = {part: Network(parts[part]) for part in ("synthesis", "mapping")}
        generator = Network({"lod": np.zeros((), np.float32), **parts[""]}, **components)
        path.write_bytes(pickle.dumps((None, None, generator), protocol=3))
    return path


def write_keras(path: Path, values: Arrays) -> Path:
    """An HDF5 file as `save_weights` of ID-disentanglement's `StyleGAN_G` writes it."""
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["G_mapping", "G_synthesis"]
        for name, value in values.items():
            if name == "dlatent_avg":
                file["G_mapping/Truncation/dlatent_avg:0"] = value
                continue
            part, rest = name.split("/", 1)
            end = rest.rpartition("/")[2]
            if rest.startswith("noise"):
                rest += "/noise"
            elif end == "bias" and not rest.startswith(("Dense", "ToRGB")) and "StyleMod" not in rest:
                rest += "/bias"
            elif end == "weight" and not rest.endswith("Noise/weight") and not fused(rest):
                rest = rest.removesuffix("weight") + "kernel"
            file[f"G_{part}/G_{part}/{rest}:0"] = value
    return path


def fused(name: str) -> bool:
    """Whether a layer up-samples within its convolution, which is another class there."""
    return "Conv0_up/weight" in name and int(name.split("x")[0]) >= 128


def rosinality_names(widths: Sequence[int], trained: int, seed: int = 7, depth: int = 8) -> dict[str, torch.Tensor]:
    """The tensors of rosinality's `StyledGenerator` with blocks of these channels; those after the first `trained` are
    as they began."""
    random, found = np.random.RandomState(seed), {}

    def put(name: str, *shape: int, scale: float = 1.0, plus: Any = 0.0) -> None:
        found[name] = torch.from_numpy((scale * random.standard_normal(shape) + plus).astype(np.float32))

    for i in range(depth):
        put(f"style.{2 * i + 1}.linear.weight_orig", 512, 512)
        put(f"style.{2 * i + 1}.linear.bias", 512, scale=0.3)
    for i, width in enumerate(widths):
        block, before, new = f"generator.progression.{i}", widths[max(i - 1, 0)], i >= trained
        for k in (1, 2):
            conv = f"{block}.conv{k}"
            if (i, k) == (0, 1):
                put(f"{conv}.input", 1, width, 4, 4)
            elif k == 1 and SIDES[i] >= 128:
                put(f"{conv}.0.weight", before, width, 3, 3)
                put(f"{conv}.0.bias", width, scale=0.3)
            else:
                inner = f"{conv}.1.conv" if k == 1 else f"{conv}.conv"
                put(f"{inner}.weight_orig", width, before if k == 1 else width, 3, 3)
                put(f"{inner}.bias", width, scale=0.3)
            put(f"{block}.noise{k}.weight_orig", 1, width, 1, 1, scale=0.0 if new else 0.3 * (width / 2) ** 0.5)
            put(f"{block}.adain{k}.style.linear.weight_orig", 2 * width, 512, scale=0.2)
            ones = np.repeat([1.0, 0.0], width)
            put(f"{block}.adain{k}.style.linear.bias", 2 * width, scale=0.0 if new else 0.3, plus=ones)
        put(f"generator.to_rgb.{i}.conv.weight_orig", 3, width, 1, 1)
        put(f"generator.to_rgb.{i}.conv.bias", 3, scale=0.3)
    return found


def write_rosinality(path: Path, names: dict[str, torch.Tensor]) -> Path:
    """A checkpoint of rosinality's training; the blur filters that it keeps are left out but one."""
    names = {**names, "generator.progression.1.conv1.2.weight": torch.ones(len(names), 1, 3, 3)}
    content = {"generator": {}, "discriminator": {}, "g_optimizer": {"state": {}}, "g_running": names}
    torch.save(content, path)
    return path
