"""Convert the published network that finds people into the graph that ships: `python -m fid.trainer.people`.

NanoDet-g (https://github.com/RangiLyu/nanodet, Apache License 2.0), taught on COCO, as TensorFlow.js graph. Of its 80
kinds of things the people are kept, and its weights in eight bits, one scale for each channel. What the numbers mean is
said in `runtime.face.people`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.assets import PEOPLE
from ..runtime.face.people import SIDE, STRIDES
from ..runtime.files import new_file
from ..runtime.weights.catalogue import ensure

KINDS = 80  # of COCO; people are the first
DISTANCES = 44  # 11 for each side of a box
KEPT = [0, *range(KINDS, KINDS + DISTANCES)]


def convert(path: Path) -> Any:
    """Return the ONNX graph (onnx.ModelProto) of PATH.json and PATH.bin: `picture` float32 [1, 3, 416, 416] -> for each
    stride of `runtime.face.people` `stride_N` float32 [1, 45, 416 / N, 416 / N]."""
    from onnx import TensorProto, helper

    model = json.loads(path.read_text())
    nodes = {node["name"]: node for node in model["modelTopology"]["node"]}
    graph = _Graph(nodes, _constants(model["weightsManifest"], path.with_suffix(".bin").read_bytes()))
    heads = [name for name, node in nodes.items() if node["op"] == "SplitV"]
    outputs = []
    for name in heads:
        made = graph.add(nodes[name]["input"][0])
        stride = {"99": 8, "105": 16, "111": 32}[nodes[name]["input"][0].rpartition("_")[2]]
        graph.nodes.append(helper.make_node("Identity", [made], [f"stride_{stride}"]))
        shape = [1, len(KEPT), SIDE // stride, SIDE // stride]
        outputs.append(helper.make_tensor_value_info(f"stride_{stride}", TensorProto.FLOAT, shape))
    assert len(outputs) == len(STRIDES)
    picture = helper.make_tensor_value_info("picture", TensorProto.FLOAT, [1, 3, SIDE, SIDE])
    whole = helper.make_graph(graph.nodes, "people", [picture], outputs, graph.weights)
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _constants(manifest: list[dict[str, Any]], content: bytes) -> dict[str, np.ndarray]:
    constants, offset = {}, 0
    for weight in (weight for group in manifest for weight in group["weights"]):
        stored = np.dtype(weight.get("quantization", weight)["dtype"])
        count = int(np.prod(weight["shape"], dtype=np.int64))
        constants[weight["name"]] = np.frombuffer(content, stored, count, offset).reshape(weight["shape"])
        offset += count * stored.itemsize
    return constants


class _Graph:
    """An ONNX graph that grows by what its outputs need. Maps are NCHW, in the file between its transpositions too."""

    def __init__(self, source: dict[str, Any], constants: dict[str, np.ndarray]) -> None:
        self._source, self._constants, self._done = source, constants, {"input_1": "picture"}
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def add(self, name: str) -> str:
        """Add a node of the file with all that it needs; returns its name here."""
        name = name.partition(":")[0]
        if name not in self._done:
            self._done[name] = self._made(self._source[name])
        return self._done[name]

    def _put(self, kind: str, inputs: list[str], **options: Any) -> str:
        from onnx import helper

        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **options))
        return output

    def _array(self, values: np.ndarray) -> str:
        from onnx import numpy_helper

        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def _made(self, node: dict[str, Any]) -> str:
        kind, sources = node["op"], node["input"]
        if kind == "Add" and sources[1] in self._constants:
            return self._convolved(self._source[sources[0]], self._constants[sources[1]])
        x = self.add(sources[0])
        if kind == "Transpose":
            return x
        if kind == "Add":
            return self._put("Add", [x, self.add(sources[1])])
        if kind in ("Pad", "PadV2"):  # one px around
            pads = self._array(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
            lowest = float(self._constants[sources[2]]) if kind == "PadV2" else 0.0
            return self._put("Pad", [x, pads, self._array(np.array(max(lowest, -1e30), np.float32))])
        if kind == "LeakyRelu":
            return self._put("LeakyRelu", [x], alpha=node["attr"]["alpha"]["f"])
        if kind == "ConcatV2":
            return self._put("Concat", [x, *(self.add(source) for source in sources[1:-1])], axis=1)
        if kind == "MaxPool":
            return self._put("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2])
        if kind == "ResizeBilinear":
            sizes = self._array(np.array([1, 128, *self._constants[sources[1]]], np.int64))
            return self._put("Resize", [x, "", "", sizes], mode="linear", coordinate_transformation_mode="half_pixel")
        raise ValueError(f"operation {kind}")

    def _convolved(self, node: dict[str, Any], bias: np.ndarray) -> str:
        kernel = self._constants[node["input"][1]].astype(np.float32).transpose(3, 2, 0, 1)
        if len(bias) == KINDS + DISTANCES:
            kernel, bias = kernel[KEPT], bias[KEPT]
        scale = np.abs(kernel).max((1, 2, 3)) / 127 + 1e-12
        eighths = np.rint(kernel / scale[:, None, None, None]).astype(np.int8)
        names = self._array(eighths), self._array(scale.astype(np.float32)), self._array(np.zeros(len(scale), np.int8))
        weights = self._put("DequantizeLinear", list(names), axis=0)
        stride = int(node["attr"]["strides"]["list"]["i"][1])
        inputs = [self.add(node["input"][0]), weights, self._array(bias.astype(np.float32))]
        return self._put("Conv", inputs, strides=[stride, stride])


def main() -> None:
    """Write the graph that ships with fid from the fetched file."""
    with new_file(PEOPLE) as path:
        path.write_bytes(convert(ensure("people") / "nanodet.json").SerializeToString())


if __name__ == "__main__":
    main()
