"""VGGFace2's ResNet-50 and SE-ResNet-50 from a user's file, as data: pickled dictionaries of NumPy arrays
(VGGFace2-pytorch), PyTorch state dicts with those names or the ones of the makers' own release (ox-vgg), Keras' HDF5
(the file of ID-disentanglement).

All are brought to the names of torchvision: `conv1.weight`, `layer1.0.bn2.running_var`, `layer2.0.downsample.0.weight`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ...runtime.errors import FidError, InputError
from ...runtime.weights.cache import sha256
from ..networks.vggface2 import BLOCKS, CODE_SIZE, Bottleneck, VGGFace2
from .pickled import RefusedError
from .user_file import Weights, check_size, read_file

WHAT = (
    "VGGFace2's ResNet-50 or SE-ResNet-50 as a pickled dictionary (.pkl), a PyTorch state dict (.pt, .pth, "
    ".safetensors) or the weights of Keras (.h5)"
)
PARTS = {"reduce": "conv1", "3x3": "conv2", "increase": "conv3", "proj": "downsample.0", "down": "conv4", "up": "conv5"}
NORMS = {"conv1": "bn1", "conv2": "bn2", "conv3": "bn3", "downsample.0": "downsample.1"}
KERAS_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
EPSILON, KERAS_EPSILON = 1e-5, 1e-3  # of the batch norms


@dataclass(frozen=True)
class _Found:
    """What a file holds, under torchvision's names; kernels are [out, in, height, width]."""

    layout: str
    weights: Weights
    bgr: bool  # the first convolution takes blue first
    keras: bool = False


def read_vggface2(path: Path) -> tuple[VGGFace2, dict[str, str]]:
    """Return the frozen encoder and what its file is: `kind`, `file`, `layout`, `sha256`.

    Raises InputError when there is no such file or it is something else, FidError when it is broken, holds more than
    data or does not fit.
    """
    try:
        found = _found_in(read_file(path, WHAT))
        if found is None:
            raise InputError(f"{path} holds no such identity encoder: expected {WHAT}.")
        check_size(found.weights, path)
        squeeze = "layer1.0.conv4.weight" in found.weights
        head = found.weights.get("projection.weight")
        size = CODE_SIZE if head is None else len(head)
        if not 1 <= size <= CODE_SIZE:
            raise InputError(f"{path} makes codes of {size} numbers, and fid takes up to {CODE_SIZE}.")
        network = VGGFace2(squeeze=squeeze, keras=found.keras, code_size=size)
        with torch.no_grad():
            _fill(network, found)
    except RefusedError as refusal:
        raise FidError(f"{path} is refused: it {refusal}.") from refusal
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        what = str(error).strip("'\"").splitlines()[0][:100] if str(error) else type(error).__name__
        raise FidError(f"{path} does not fit VGGFace2's ResNet-50: {what}.") from error
    kind = f"VGGFace2 {'SE-ResNet-50' if squeeze else 'ResNet-50'}"
    return network, {"kind": kind, "file": path.name, "layout": found.layout, "sha256": sha256(path)}


def _found_in(content: Any) -> _Found | None:
    for name in ("model_state_dict", "state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        return None
    arrays = {
        name.removeprefix("module."): torch.from_numpy(np.ascontiguousarray(value, np.float32))
        if isinstance(value, np.ndarray) and value.dtype.kind == "f"
        else value
        for name, value in content.items()
    }
    tensors = {name: value for name, value in arrays.items() if isinstance(value, Tensor)}
    if "layer1.0.conv1.weight" in tensors:
        return _Found("VGGFace2-pytorch", tensors, bgr=True)
    if "conv2_1_1x1_reduce.weight" in tensors:
        return _Found("ox-vgg", _released(tensors), bgr=False)
    if any("conv2_1_1x1_reduce/" in name and name.endswith("kernel") for name in tensors):
        return _Found("Keras", _keras(tensors), bgr=True, keras=True)
    return None


def _torchvision(name: str) -> str | None:
    """`conv3_2_1x1_reduce` -> `layer2.1.conv1`, `conv1_7x7_s2` -> `conv1`."""
    if name == "conv1_7x7_s2":
        return "conv1"
    match = re.fullmatch(r"conv([2-5])_(\d+)_(?:1x1_)?(reduce|3x3|increase|proj|down|up)", name)
    return f"layer{int(match[1]) - 1}.{int(match[2]) - 1}.{PARTS[match[3]]}" if match else None


def _norm_of(name: str) -> str:
    """The batch norm behind a convolution."""
    part = next(part for part in NORMS if name.endswith(part))
    return name.removesuffix(part) + NORMS[part]


def _released(tensors: Weights) -> Weights:
    """The names of the makers' release: `conv2_1_1x1_reduce.weight`, `conv2_1_1x1_reduce_bn.running_mean`."""
    found: Weights = {}
    for name, value in tensors.items():
        layer, _, what = name.rpartition(".")
        if layer == "feat_extract":
            found[f"projection.{what}"] = value.flatten(1) if what == "weight" else value
        elif (own := _torchvision(layer.removesuffix("_bn"))) is not None:
            found[f"{_norm_of(own) if layer.endswith('_bn') else own}.{what}"] = value
    return found


def _keras(tensors: Weights) -> Weights:
    """The names of Keras: `.../conv2_1_1x1_reduce/kernel`, `.../conv2_1_1x1_reduce/bn/gamma`; kernels are [height,
    width, in, out]."""
    found: Weights = {}
    for name, value in tensors.items():
        match = re.search(r"(conv\d[^/]*|dim_proj)(/bn)?/(\w+)$", name.replace("conv1/7x7_s2", "conv1_7x7_s2"))
        if match is None:
            continue
        layer, norm, what = match.groups()
        if layer == "dim_proj":
            found[f"projection.{'weight' if what == 'kernel' else what}"] = value.T if what == "kernel" else value
        elif (own := _torchvision(layer)) is not None:
            if norm:
                found[f"{_norm_of(own)}.{KERAS_NORM[what]}"] = value
            else:
                found[f"{own}.weight" if what == "kernel" else f"{own}.{what}"] = value.permute(3, 2, 0, 1)
    return found


def _fill(network: VGGFace2, found: _Found) -> None:
    """Copy the weights into the network, batch norms folded. Raises KeyError and ValueError for what does not fit."""
    epsilon = KERAS_EPSILON if found.keras else EPSILON

    def get(name: str, like: Tensor) -> Tensor:
        if name not in found.weights:
            raise KeyError(f"it lacks {name}")
        value = found.weights[name]
        if value.numel() != like.numel() or (value.ndim == 4 and value.shape != like.shape):
            raise ValueError(f"it has {name} as {list(value.shape)}, expected {list(like.shape)}")
        if not value.is_floating_point() or not value.isfinite().all():
            raise ValueError(f"{name} holds something else than finite numbers")
        return value.detach().float().reshape(like.shape)

    def put(target: nn.Conv2d | nn.Linear, name: str) -> None:
        assert target.bias is not None
        target.weight.copy_(get(f"{name}.weight", target.weight))
        target.bias.copy_(get(f"{name}.bias", target.bias))

    def put_normed(target: nn.Conv2d, name: str) -> None:
        assert target.bias is not None
        norm = _norm_of(name)
        mean, variance, gamma, beta = (
            get(f"{norm}.{part}", target.bias) for part in ("running_mean", "running_var", "weight", "bias")
        )
        weight = get(f"{name}.weight", target.weight)
        if name == "conv1" and found.bgr:
            weight = weight.flip(1)
        weight, bias = fuse_conv_bn_weights(weight, None, mean, variance.clamp_min(0), epsilon, gamma, beta)
        target.weight.copy_(weight)
        target.bias.copy_(bias)

    put_normed(network.stem, "conv1")
    names = [f"layer{stage + 1}.{i}" for stage, count in enumerate(BLOCKS) for i in range(count)]
    for name, block in zip(names, network.blocks, strict=True):
        assert isinstance(block, Bottleneck)
        for part in ("conv1", "conv2", "conv3"):
            put_normed(getattr(block, part), f"{name}.{part}")
        if block.shortcut is not None:
            put_normed(block.shortcut, f"{name}.downsample.0")
        if block.down is not None and block.up is not None:
            put(block.down, f"{name}.conv4")
            put(block.up, f"{name}.conv5")
    if network.projection is not None:
        put(network.projection, "projection")
