"""TensorFlow.js graph models in PyTorch: the few kinds of operation that published face networks are made of.

A model is a JSON file with the nodes of a TensorFlow graph and a .bin file with the numbers of its constants, float32,
float16 or int32 as the JSON file says. Pictures are NHWC there and NCHW here, in `forward` and inside.
"""

import json
from base64 import b64decode
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...runtime.errors import FidError

ELEMENTWISE: dict[str, Callable[..., Tensor]] = {
    **{"Add": torch.add, "AddV2": torch.add, "Sub": torch.sub, "Mul": torch.mul},
    **{"Maximum": torch.maximum, "Minimum": torch.minimum},
}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"Relu": torch.relu, "Sigmoid": torch.sigmoid}
CONVOLUTIONS = ("Conv2D", "DepthwiseConv2dNative")


class TfjsGraph(nn.Module):
    """A frozen graph of one input: picture float [N, 3, S, S] -> its outputs in the order that they were asked for."""

    def __init__(self, path: Path, outputs: Sequence[str]) -> None:
        """Reads PATH.json and PATH.bin beside it. Raises FidError when they are no graph of the known operations."""
        super().__init__()
        try:
            model = json.loads(path.read_text())
            self._nodes = {node["name"]: node for node in model["modelTopology"]["node"]}
            self._order = _in_order(self._nodes, outputs)
            weights = _constants(model["weightsManifest"], path.with_suffix(".bin").read_bytes())
            for number, name in enumerate(self._order):
                if self._nodes[name]["op"] == "Const":
                    self.register_buffer(f"constant_{number}", weights[name])
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise FidError(
                f"{path.name} is no TensorFlow.js graph that fid can read ({error}); fetch it again."
            ) from error
        self._outputs = tuple(outputs)
        self.eval().requires_grad_(False)

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        """Picture float [N, 3, S, S] in the range that the network was made for."""
        values: dict[str, Tensor] = {}
        for number, name in enumerate(self._order):
            node = self._nodes[name]
            if node["op"] == "Placeholder":
                values[name] = picture
            elif node["op"] == "Const":
                values[name] = getattr(self, f"constant_{number}")
            else:
                values[name] = _computed(node, [values[_plain(source)] for source in node["input"]])
        return tuple(values[name] for name in self._outputs)


def _plain(name: str) -> str:
    return name.partition(":")[0]


def _in_order(nodes: dict[str, Any], outputs: Sequence[str]) -> list[str]:
    """The nodes that the outputs need, each behind its inputs. Raises ValueError for an unknown operation."""
    order: dict[str, None] = {}

    def visit(name: str) -> None:
        if name in order:
            return
        kind = nodes[name]["op"]
        if kind not in KNOWN:
            raise ValueError(f"operation {kind}")
        for source in nodes[name].get("input", ()):
            visit(_plain(source))
        order[name] = None

    for name in outputs:
        visit(name)
    return list(order)


def _constants(manifest: list[dict[str, Any]], content: bytes) -> dict[str, Tensor]:
    """Every constant by name, numbers as float32 and whole numbers as int64."""
    constants, offset = {}, 0
    for group in manifest:
        for weight in group["weights"]:
            stored = np.dtype(weight.get("quantization", weight)["dtype"])
            count = int(np.prod(weight["shape"], dtype=np.int64))
            values = np.frombuffer(content, stored, count, offset).reshape(weight["shape"])
            constants[weight["name"]] = torch.from_numpy(values.astype(np.int64 if stored.kind == "i" else np.float32))
            offset += values.nbytes
    if offset != len(content):
        raise ValueError(f"{len(content)} bytes of weights, {offset} are described")
    return constants


def _computed(node: dict[str, Any], inputs: list[Tensor]) -> Tensor:
    """One operation; what is fused to it comes after it."""
    kind, options = node["op"].removeprefix("_Fused").removeprefix("Fused"), node.get("attr", {})
    fused = [b64decode(name).decode() for name in options.get("fused_ops", {}).get("list", {}).get("s", ())]
    x = inputs[0]
    if kind in CONVOLUTIONS:
        x = _convolved(x, inputs[1], options, depthwise=kind != "Conv2D")
    elif kind == "MatMul":
        x = x @ inputs[1]
    elif kind in ELEMENTWISE:
        maps = max(value.ndim for value in inputs) == 4
        x = ELEMENTWISE[kind](*(v.reshape(-1, 1, 1) if maps and v.ndim == 1 else v for v in inputs))
    elif kind in ACTIVATIONS:
        x = ACTIVATIONS[kind](x)
    elif kind == "Pad":
        (top, bottom), (left, right) = inputs[1][1:3].tolist()
        x = F.pad(x, (left, right, top, bottom))
    elif kind == "Mean":
        x = x.mean((2, 3))
    elif kind == "Reshape":  # to rows; TensorFlow's channels are the last axis
        x = x.permute(0, 2, 3, 1).flatten(1)
    elif kind == "Softmax":
        x = x.softmax(1)
    for name in fused:
        x = (
            x + (inputs[2].reshape(-1, 1, 1) if x.ndim == 4 else inputs[2])
            if name == "BiasAdd"
            else ACTIVATIONS[name](x)
        )
    return x


def _convolved(x: Tensor, kernel: Tensor, options: dict[str, Any], depthwise: bool) -> Tensor:
    """x with a kernel [height, width, in, out]; a depthwise one is [height, width, in, 1]."""
    stride = int(options["strides"]["list"]["i"][1])
    if b64decode(options["padding"]["s"]) == b"SAME":  # TensorFlow's: more at the end
        missing = max((-(-x.shape[-1] // stride) - 1) * stride + kernel.shape[0] - x.shape[-1], 0)
        x = F.pad(x, (missing // 2, missing - missing // 2) * 2)
    kernel = kernel.permute(2, 3, 0, 1) if depthwise else kernel.permute(3, 2, 0, 1)
    return F.conv2d(x, kernel, stride=stride, groups=x.shape[1] if depthwise else 1)


KNOWN = {
    *("Placeholder", "Const", "Pad", "Mean", "Reshape", "Softmax", "MatMul", "_FusedMatMul"),
    *CONVOLUTIONS,
    *("_FusedConv2D", "FusedDepthwiseConv2dNative"),
    *ELEMENTWISE,
    *ACTIVATIONS,
}
