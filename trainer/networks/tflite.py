"""TensorFlow Lite networks in PyTorch: the few kinds of operation that MediaPipe's small face networks are made of.

Pictures are NHWC in the file and NCHW here, in `forward` and inside. Weights may be stored as float16.
"""

import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...runtime.errors import FidError

DTYPES = {0: np.float32, 1: np.float16, 2: np.int32}  # tflite.TensorType
UNARY = {"RELU": torch.relu, "HARD_SWISH": F.hardswish, "LOGISTIC": torch.sigmoid}
TRANSPOSED = "Convolution2DTransposeBias"  # MediaPipe's own operation: 2x2, stride 2


class _Step(NamedTuple):
    """One operation: its kind, the numbers of its inputs and of its output, stride, TensorFlow's SAME padding."""

    kind: str
    inputs: tuple[int, ...]
    output: int
    stride: int
    same: bool


class TfliteGraph(nn.Module):
    """A frozen network of one input: picture float [N, C, H, W] -> the outputs of the file, in their order."""

    def __init__(self, path: Path) -> None:
        """Reads a .tflite file. Raises FidError when it is no network of the known operations."""
        super().__init__()
        try:
            self._read(path.read_bytes())
        except (KeyError, ValueError, IndexError, struct.error) as error:
            raise FidError(f"{path.name} is no network that fid can read ({error}); fetch it again.") from error
        self.eval().requires_grad_(False)

    def _read(self, content: bytes) -> None:
        import tflite

        if content[4:8] != b"TFL3":
            raise ValueError("it is not a tflite file")
        model: Any = tflite.Model.GetRootAsModel(content, 0)
        graph = model.Subgraphs(0)
        names = {number: name for name, number in vars(tflite.BuiltinOperator).items() if isinstance(number, int)}
        every = {i: _constant(model, graph.Tensors(i)) for i in range(graph.TensorsLength())}
        constants = {i: tensor for i, tensor in every.items() if tensor is not None}
        steps: list[_Step] = []
        for i in range(graph.OperatorsLength()):
            operator = graph.Operators(i)
            code = model.OperatorCodes(operator.OpcodeIndex())
            kind = names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
            if kind == "CUSTOM":
                kind = code.CustomCode().decode()
            inputs, output = tuple(operator.InputsAsNumpy().tolist()), int(operator.Outputs(0))
            if kind == "DEQUANTIZE":
                constants[output] = constants[inputs[0]]
            elif kind in KNOWN:
                steps.append(_Step(kind, inputs, output, *_placement(tflite, kind, operator)))
            else:
                raise ValueError(f"operation {kind}")
        used = {number for step in steps for number in step.inputs}
        self._constants = {number: f"constant_{number}" for number in constants if number in used}
        for number, name in self._constants.items():
            self.register_buffer(name, constants[number])
        self._steps, self._input = tuple(steps), int(graph.Inputs(0))
        self._outputs = tuple(graph.OutputsAsNumpy().tolist())

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        """Picture float [N, C, H, W] in the range that the network was made for."""
        values: dict[int, Tensor] = {number: getattr(self, name) for number, name in self._constants.items()}
        values[self._input] = picture
        for step in self._steps:
            values[step.output] = _computed(step, [values[number] for number in step.inputs])
        return tuple(values[number] for number in self._outputs)


def _constant(model: Any, tensor: Any) -> Tensor | None:
    """The numbers of a tensor, whole ones as int64 and others as float32; None for one that is computed."""
    buffer = model.Buffers(tensor.Buffer())
    if not buffer.DataLength():
        return None
    stored = np.frombuffer(buffer.DataAsNumpy().tobytes(), DTYPES[tensor.Type()])
    values = stored.astype(np.int64 if stored.dtype.kind == "i" else np.float32)
    return torch.from_numpy(values.reshape(tensor.ShapeAsNumpy() if tensor.ShapeLength() else ()))


def _placement(tflite: Any, kind: str, operator: Any) -> tuple[int, bool]:
    """Stride and whether the padding is TensorFlow's SAME, of what has them."""
    table = {"CONV_2D": "Conv2DOptions", "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions", "MAX_POOL_2D": "Pool2DOptions"}
    if kind not in table:
        return 1, False
    options = getattr(tflite, table[kind])()
    options.Init(operator.BuiltinOptions().Bytes, operator.BuiltinOptions().Pos)
    return int(options.StrideH()), options.Padding() == tflite.Padding.SAME


def _computed(step: _Step, inputs: list[Tensor]) -> Tensor:
    """One operation."""
    kind, x = step.kind, inputs[0]
    if kind in UNARY:
        return UNARY[kind](x)
    if kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        depthwise = kind != "CONV_2D"  # [1, height, width, channels], and [out, height, width, in]
        kernel = inputs[1].permute(3, 0, 1, 2) if depthwise else inputs[1].permute(0, 3, 1, 2)
        if step.same:
            missing = max((-(-x.shape[-1] // step.stride) - 1) * step.stride + kernel.shape[-1] - x.shape[-1], 0)
            x = F.pad(x, (missing // 2, missing - missing // 2) * 2)
        return F.conv2d(x, kernel, inputs[2], stride=step.stride, groups=x.shape[1] if depthwise else 1)
    if kind == "PRELU":
        return F.prelu(x, inputs[1].flatten())
    if kind == "ADD":
        return x + (inputs[1].reshape(-1, 1, 1) if inputs[1].ndim == 1 else inputs[1])
    if kind == "MUL":
        return x * inputs[1]
    if kind == "AVERAGE_POOL_2D":  # of the whole map, in these networks
        return x.mean((2, 3), keepdim=True)
    if kind == "MAX_POOL_2D":
        return F.max_pool2d(x, step.stride)
    if kind == "RESIZE_BILINEAR":
        return F.interpolate(x, tuple(inputs[1].tolist()), mode="bilinear", align_corners=False)
    if kind == "PAD":  # of channels
        return F.pad(x, (0, 0, 0, 0, 0, int(inputs[1].reshape(4, 2)[3, 1])))
    if kind == "RESHAPE":
        return x.permute(0, 2, 3, 1).flatten(1)
    return F.conv_transpose2d(x, inputs[1].permute(3, 0, 1, 2), inputs[2], stride=2)


KNOWN = {
    *("CONV_2D", "DEPTHWISE_CONV_2D", "PRELU", "ADD", "MUL", "AVERAGE_POOL_2D", "MAX_POOL_2D"),
    *("RESIZE_BILINEAR", "PAD", "RESHAPE", TRANSPOSED),
    *UNARY,
}
