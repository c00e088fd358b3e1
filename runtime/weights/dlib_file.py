"""dlib's face recogniser as an ONNX graph, read from its own .dat file: without dlib, with onnx and NumPy only.

The network is the ResNet of dlib's `dnn_face_recognition_ex.cpp` (Davis King, 2017; 29 convolutions, 128 numbers). Its
file names every layer in the order of computing and holds the weights as plain float32. Training of fid never saw this
network, which is why the verdict on a de-identified face may rest on it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FidError
from ..face.crop import CROP_SIZE, resample_matrix

if TYPE_CHECKING:
    import onnx

SIDE = 150  # px, side of the chip that the network takes
CHIP = (0.8384, -33.32, -56.01)  # scale and offset, px: aligned crop of 256 px -> chip; see `chip_matrices`
MEAN_RGB = (122.782, 117.001, 104.298)  # 0..255, subtracted; the rest is divided by 256
BLOCKS = (
    (32, 3, False),
    (64, 4, True),
    (128, 3, True),
    (256, 3, True),
    (256, 1, True),
)  # width, how many, halved first
ACCEPT = 0.6  # distance of two codes below which its author calls them one person


def recogniser_graph(data: bytes) -> onnx.ModelProto:
    """Return the graph: crop uint8 [batch, 256, 256, 3] RGB -> code float32 [batch, 128]; codes are compared by
    distance.

    `data` are the bytes of `dlib_face_recognition_resnet_model_v1.dat`; `FidError` for any other file.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    net = _Net(_tensors(data))
    rows, columns = chip_matrices()
    net.constants |= {"rows": rows, "columns_t": np.ascontiguousarray(columns.T)}
    net.constants |= {"mean": np.array(MEAN_RGB, np.float32).reshape(1, 3, 1, 1), "range": np.array(256, np.float32)}
    net.add("Cast", ["crop"], to=TensorProto.FLOAT)
    net.add("Transpose", [net.last], perm=[0, 3, 1, 2])
    net.add("MatMul", ["rows", net.last])
    net.add("MatMul", [net.last, "columns_t"])
    net.add("Sub", [net.last, "mean"])
    net.add("Div", [net.last, "range"])
    net.convolution(32, 7, 2)
    net.add("Relu", [net.last])
    net.add("MaxPool", [net.last], kernel_shape=[3, 3], strides=[2, 2])
    size, width = 35, 32  # px after the first convolution (72) and pooling; channels
    for wide, count, halved in BLOCKS:
        for number in range(count):
            size, width = net.block(wide, halved and number == 0, size, width)
    net.add("ReduceMean", [net.last], axes=[2, 3], keepdims=0)
    net.add("MatMul", [net.last, net.keep(net.take("fc", 256 * 128).reshape(256, 128))], name="code")
    crop = helper.make_tensor_value_info("crop", TensorProto.UINT8, ["batch", CROP_SIZE, CROP_SIZE, 3])
    code = helper.make_tensor_value_info("code", TensorProto.FLOAT, ["batch", 128])
    tensors = [numpy_helper.from_array(value, name) for name, value in net.constants.items()]
    graph = helper.make_graph(net.nodes, "recogniser", [crop], [code], tensors)
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10, producer_name="fid", producer_version="1")
    onnx.checker.check_model(model, full_check=True)
    return model


def chip_matrices() -> tuple[np.ndarray, np.ndarray]:
    """Return float32 [150, 256] twice, for rows and columns: they take an aligned crop to dlib's chip.

    `CHIP` is the median of what dlib's own detector and landmarks chose for 74 aligned crops.
    """
    scale, right, down = CHIP
    return resample_matrix(SIDE, CROP_SIZE, scale, down), resample_matrix(SIDE, CROP_SIZE, scale, right)


class _Net:
    """The graph as it grows; `last` is the name of the last result."""

    def __init__(self, tensors: Iterator[tuple[str, np.ndarray]]) -> None:
        self._tensors = tensors
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.last = ""

    def add(self, kind: str, inputs: list[str], name: str | None = None, **options: Any) -> str:
        from onnx import helper

        self.last = name or f"r{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [self.last], **options))
        return self.last

    def keep(self, value: np.ndarray) -> str:
        name = f"w{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(value)
        return name

    def take(self, kind: str, count: int) -> np.ndarray:
        name, values = next(self._tensors, ("", np.zeros(0, np.float32)))
        if not name.startswith(kind) or values.size != count:
            raise FidError("the file of dlib's recogniser is damaged or of another version.")
        return values

    def convolution(self, wide: int, kernel: int, stride: int, width: int = 3) -> None:
        """A convolution and its affine layer, folded into one; without a border where it strides, as in dlib."""
        weights = self.take("con_", wide * width * kernel**2 + wide)
        gain, shift = self.take("affine_", 2 * wide).reshape(2, wide)
        kernels, bias = weights[:-wide].reshape(wide, width, kernel, kernel), weights[-wide:]
        pads = [kernel // 2 if stride == 1 else 0] * 4
        inputs = [self.last, self.keep(kernels * gain[:, None, None, None]), self.keep(bias * gain + shift)]
        self.add("Conv", inputs, strides=[stride, stride], pads=pads)

    def block(self, wide: int, halved: bool, size: int, width: int) -> tuple[int, int]:
        """Return one residual block; where it halves, its input is averaged, and what is missing counts as zero."""
        shortcut, stride = self.last, 2 if halved else 1
        self.convolution(wide, 3, stride, width)
        self.add("Relu", [self.last])
        self.convolution(wide, 3, 1, wide)
        branch, mine = self.last, (size - 3) // 2 + 1 if halved else size
        if halved:
            pooled = (size - 2) // 2 + 1
            shortcut = self.add("AveragePool", [shortcut], kernel_shape=[2, 2], strides=[2, 2])
            shortcut = self._padded(shortcut, wide - width, pooled, max(mine, pooled))
            branch = self._padded(branch, 0, mine, max(mine, pooled))
            mine = max(mine, pooled)
        self.add("Add", [branch, shortcut])
        self.add("Relu", [self.last])
        return mine, wide

    def _padded(self, name: str, channels: int, size: int, wanted: int) -> str:
        more = wanted - size
        if not channels and not more:
            return name
        return self.add("Pad", [name, self.keep(np.array([0, 0, 0, 0, 0, channels, more, more], np.int64))])


def _tensors(data: bytes) -> Iterator[tuple[str, np.ndarray]]:
    """(layer, float32 [n]) of every convolution, affine and fully connected layer in the order of the file.

    A tensor is its version (2), its four sizes as dlib writes integers (a byte that counts bytes, then these), floats.
    """
    tag, sizes = re.compile(rb"con_4|affine_|fc_2"), re.compile(rb"\x01\x02([\x01-\x04])")
    at = 0
    while found := tag.search(data, at):
        at = found.end()
        head = sizes.search(data, at)
        while head is not None:
            many = head.group(1)[0]
            count, start = int.from_bytes(data[head.end() : head.end() + many], "little"), head.end() + many
            rest = [1, 1, 1]
            if found.group() == b"fc_2":  # [inputs, outputs]
                rest, start = [int.from_bytes(data[start + 1 : start + 1 + data[start]], "little"), 1, 1], start
                start += 1 + data[start]
                plain = data[start : start + 4] == b"\x01\x01" * 2
                start += 4
            else:
                plain = data[start : start + 6] == b"\x01\x01" * 3
                start += 6
            total = count * rest[0]
            if plain and count > 1 and start + 4 * total <= len(data):
                yield found.group().decode(), np.frombuffer(data, "<f4", total, start).astype(np.float32)
                at = start + 4 * total
                break
            head = sizes.search(data, head.start() + 1)
