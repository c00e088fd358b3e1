"""TensorFlow.js graphs: every operation against NumPy or PyTorch by hand, and files that are none."""

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fid.runtime.errors import FidError
from fid.trainer.networks.tfjs import TfjsGraph


def attributes(padding: str, stride: int, fused: tuple[str, ...] = ()) -> dict[str, Any]:
    code = [b64encode(name.encode()).decode() for name in fused]
    return {
        "padding": {"s": b64encode(padding.encode()).decode()},
        "strides": {"list": {"i": ["1", str(stride), str(stride), "1"]}},
        "fused_ops": {"list": {"s": code}},
    }


def write(
    path: Path, nodes: list[dict[str, Any]], constants: dict[str, np.ndarray], half: tuple[str, ...] = ()
) -> Path:
    weights, content = [], b""
    for name, array in constants.items():
        stored = array.astype(np.float16) if name in half else array
        entry: dict[str, Any] = {"name": name, "shape": list(array.shape), "dtype": str(array.dtype)}
        weights.append(entry | ({"quantization": {"dtype": "float16"}} if name in half else {}))
        content += stored.tobytes()
        nodes = [*nodes, {"name": name, "op": "Const"}]
    path.write_text(json.dumps({"modelTopology": {"node": nodes}, "weightsManifest": [{"weights": weights}]}))
    path.with_suffix(".bin").write_bytes(content)
    return path


def node(name: str, op: str, *inputs: str, **attr: Any) -> dict[str, Any]:
    return {"name": name, "op": op, "input": list(inputs), "attr": attr}


def test_the_operations_compute_what_pytorch_does(tmp_path: Path, rng: np.random.Generator) -> None:
    dense, depth = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 3, 3, 4), (3, 3, 4, 1)))
    bias, slope = (rng.standard_normal(4).astype(np.float32) for _ in range(2))
    matrix = rng.standard_normal((4 * 3 * 3, 5)).astype(np.float32)
    nodes = [
        node("picture", "Placeholder"),
        node("pad", "Pad", "picture", "border"),
        node("conv", "_FusedConv2D", "pad:0", "dense", "bias", **attributes("VALID", 2, ("BiasAdd", "Relu"))),
        node("depth", "DepthwiseConv2dNative", "conv", "depthwise", **attributes("SAME", 2)),
        node("scaled", "Mul", "depth", "slope"),
        node("clipped", "Minimum", "scaled", "six"),
        node("rows", "Reshape", "clipped", "shape"),
        node("product", "MatMul", "rows", "matrix"),
        node("share", "Softmax", "product"),
        node("mean", "Mean", "clipped", "axes"),
    ]
    constants = {
        "border": np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32),
        **{"dense": dense, "bias": bias, "depthwise": depth, "slope": slope, "matrix": matrix},
        **{"six": np.array(6, np.float32), "shape": np.array([-1, 36], np.int32), "axes": np.array([1, 2], np.int32)},
    }
    share, mean = TfjsGraph(write(tmp_path / "net.json", nodes, constants), ("share", "mean"))(
        picture := torch.from_numpy(rng.standard_normal((2, 3, 11, 11)).astype(np.float32))
    )
    x = F.conv2d(F.pad(picture, (1,) * 4), torch.from_numpy(dense).permute(3, 2, 0, 1), torch.from_numpy(bias), 2)
    x = F.conv2d(F.pad(x.relu(), (0, 1, 0, 1)), torch.from_numpy(depth).permute(2, 3, 0, 1), stride=2, groups=4)
    x = (x * torch.from_numpy(slope)[:, None, None]).clamp(max=6)
    torch.testing.assert_close(mean, x.mean((2, 3)))
    expected = (x.permute(0, 2, 3, 1).flatten(1) @ torch.from_numpy(matrix)).softmax(1)
    torch.testing.assert_close(share, expected)


def test_half_precision_is_read(tmp_path: Path) -> None:
    nodes = [node("picture", "Placeholder"), node("sum", "AddV2", "picture", "one")]
    path = write(tmp_path / "net.json", nodes, {"one": np.array([1.0, 2.0, 3.0], np.float32)}, half=("one",))
    (found,) = TfjsGraph(path, ("sum",))(torch.zeros(1, 3, 2, 2))
    torch.testing.assert_close(found[0, :, 0, 0], torch.tensor([1.0, 2.0, 3.0]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.write_text("{"), "no TensorFlow.js graph"),
        (lambda path: path.with_suffix(".bin").write_bytes(b"12"), "no TensorFlow.js graph"),
        (lambda path: path.with_suffix(".bin").write_bytes(bytes(16)), "16 bytes of weights, 12 are described"),
        (lambda path: path.write_text(path.read_text().replace("AddV2", "Erf")), "operation Erf"),
    ],
)
def test_what_is_no_graph(tmp_path: Path, change: Any, words: str) -> None:
    nodes = [node("picture", "Placeholder"), node("sum", "AddV2", "picture", "one")]
    path = write(tmp_path / "net.json", nodes, {"one": np.ones(3, np.float32)})
    change(path)
    with pytest.raises(FidError, match=words):
        TfjsGraph(path, ("sum",))
