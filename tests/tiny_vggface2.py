"""VGGFace2's networks with random weights, and files of the layouts in which they are published."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
BLOCKS = (3, 4, 6, 3)


def resnet(squeeze: bool = False, seed: int = 5) -> Arrays:
    """The arrays of ResNet-50 or SE-ResNet-50 by the names of VGGFace2-pytorch, drawn one after the other by NumPy's
    `RandomState`, whose numbers never change."""
    random, found = np.random.RandomState(seed), {}

    def conv(name: str, norm: str, c_out: int, c_in: int, side: int) -> None:
        scale = (2 / (c_in * side * side)) ** 0.5
        found[f"{name}.weight"] = (scale * random.standard_normal((c_out, c_in, side, side))).astype(np.float32)
        for what, low, high in (("weight", 0.4, 0.8), ("bias", -0.2, 0.2), ("running_mean", -0.2, 0.2)):
            found[f"{norm}.{what}"] = random.uniform(low, high, c_out).astype(np.float32)
        found[f"{norm}.running_var"] = random.uniform(0.7, 1.3, c_out).astype(np.float32)

    conv("conv1", "bn1", 64, 3, 7)
    before = 64
    for stage, count in enumerate(BLOCKS):
        width = 64 << stage
        for i in range(count):
            place = f"layer{stage + 1}.{i}"
            for k, (c_out, c_in, side) in enumerate([(width, before, 1), (width, width, 3), (4 * width, width, 1)], 1):
                conv(f"{place}.conv{k}", f"{place}.bn{k}", c_out, c_in, side)
            if i == 0:
                conv(f"{place}.downsample.0", f"{place}.downsample.1", 4 * width, before, 1)
            before = 4 * width
            if squeeze:
                for k, (c_out, c_in) in ((4, (width // 4, before)), (5, (before, width // 4))):
                    weight = random.standard_normal((c_out, c_in, 1, 1)) / c_in**0.5
                    found[f"{place}.conv{k}.weight"] = weight.astype(np.float32)
                    found[f"{place}.conv{k}.bias"] = random.uniform(-0.2, 0.2, c_out).astype(np.float32)
    return found


def view(seed: int = 6) -> np.ndarray:
    """A smooth picture as the network sees it, RGB 0..255, float32 [1, 3, 224, 224]."""
    coarse = np.random.RandomState(seed).uniform(0, 255, (3, 8, 8))
    return np.kron(coarse, np.ones((28, 28)))[None].astype(np.float32)


def write_pickle(path: Path, arrays: Arrays, protocol: int = 2) -> Path:
    """A pickled dictionary of arrays, as the weights of VGGFace2-pytorch are published."""
    path.write_bytes(pickle.dumps(arrays, protocol))
    return path


def python2_pickle(arrays: Arrays) -> bytes:
    """The same as Python 2 writes it: names and numbers alike are strings of bytes."""

    def text(value: bytes) -> bytes:
        return (
            b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + len(value).to_bytes(4, "little") + value
        )

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    out = b"\x80\x02}("
    for name, array in arrays.items():
        empty = b"cnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"\x87R"
        dtype = b"cnumpy\ndtype\n" + text(b"f4") + number(0) + number(1) + b"\x87R"
        dtype += b"(" + number(3) + text(b"<") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
        shape = b"(" + b"".join(map(number, array.shape)) + b"t"
        state = b"(" + number(1) + shape + dtype + b"\x89" + text(array.tobytes()) + b"t"
        out += (
            text(name.encode())
            + b"cnumpy.core.multiarray\n_reconstruct\n"
            + empty.replace(b"cnumpy\nndarray\n", b"", 1)
        )
        out = out[: -len(empty) + len(b"cnumpy\nndarray\n")] + empty + state + b"b"
    return out + b"u."


def released_names(arrays: Arrays) -> dict[str, Any]:
    """The same under the names of the makers' release (ox-vgg), which takes red first."""
    parts = {"conv1": "1x1_reduce", "conv2": "3x3", "conv3": "1x1_increase", "downsample.0": "1x1_proj"}
    parts |= {"conv4": "1x1_down", "conv5": "1x1_up"}
    norms = {"bn1": "1x1_reduce_bn", "bn2": "3x3_bn", "bn3": "1x1_increase_bn", "downsample.1": "1x1_proj_bn"}
    renamed = {}
    for name, value in arrays.items():
        place, _, what = name.rpartition(".")
        if place in ("conv1", "bn1"):
            value = value[:, ::-1].copy() if place == "conv1" else value
            renamed[f"conv1_7x7_s2{'_bn' if place == 'bn1' else ''}.{what}"] = value
        elif place.startswith("layer"):
            layer, block, part = place.split(".", 2)
            renamed[f"conv{int(layer[-1]) + 1}_{int(block) + 1}_{(parts | norms)[part]}.{what}"] = value
    return renamed


def write_keras(path: Path, arrays: Arrays, projection: np.ndarray, bias: np.ndarray) -> Path:
    """An HDF5 file as Keras writes the model of Keras-VGGFace2-ResNet50; `projection` is [in, out]."""
    import h5py

    terms = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    with h5py.File(path, "w") as file:
        for name, value in released_names(arrays).items():
            layer, _, what = name.rpartition(".")
            own = layer.replace("conv1_7x7_s2", "conv1/7x7_s2").removesuffix("_bn")
            if layer.endswith("_bn"):
                file[f"model_weights/{own}/bn/{own}/bn/{terms[what]}:0"] = value
            else:
                value = value[:, ::-1] if own == "conv1/7x7_s2" else value
                file[f"model_weights/{own}/{own}/kernel:0"] = value.transpose(2, 3, 1, 0)
        file["model_weights/dim_proj/dim_proj/kernel:0"] = projection
        file["model_weights/dim_proj/dim_proj/bias:0"] = bias
    return path
