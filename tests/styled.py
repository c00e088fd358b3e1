"""A small StyleGAN2 and a small encoder as ONNX graphs with fid's inputs and outputs, for the FP16 tests."""

from pathlib import Path

import numpy as np
import onnx
from fid.runtime.tensor import Tensor
from fid.runtime.weights.bundle import Graph
from onnx import TensorProto, helper, numpy_helper
from toy import CROP, Net, W, array

CHANNELS, SIDE = 8, 16  # of the maps and of the picture
IMAGE = Tensor("image", ("batch", SIDE, SIDE, 3), "uint8", (0, 255), "RGB")
CODE = Tensor("attributes", ("batch", 4), "float32")
SYNTHESIS = Graph(None, None, (W,), (IMAGE,))
ENCODER = Graph(None, None, (CROP,), (CODE,))
LAYERS = ("g.conv0", "g.conv1", "g.conv2")


def synthesis(folder: Path, gain: float = 1.0, broken: tuple[str, ...] = ()) -> onnx.ModelProto:
    """w -> three modulated and demodulated 3x3 convolutions, noise, bias -> picture.

    gain: of all styles; demodulation cancels it, so the picture does not depend on it. broken: layers whose
    demodulation is typed FP16.
    """
    rng = np.random.default_rng(5)
    net = Net()

    def stored(name: str, *shape: int, spread: float = 1.0) -> str:
        values = (rng.standard_normal(shape) * spread).astype(np.float16).astype(np.float32)
        net.tensors[name] = numpy_helper.from_array(values, name)
        return name

    def style(name: str) -> str:
        raw = net.op("Gemm", "w", stored(f"{name}.affine", CHANNELS, 512, spread=0.5 / np.sqrt(512)), transB=1)
        return net.op("Mul", net.op("Add", raw, array(1.0)), array(gain))

    def as_map(vector: str) -> str:
        return net.op("Unsqueeze", vector, np.array([2, 3]))

    rows = net.op("Shape", "w", start=0, end=1)
    x = net.op("Expand", stored("g.constant", 1, CHANNELS, SIDE, SIDE), net.op("Concat", rows, np.ones(3, int), axis=0))
    for name in LAYERS:
        s = style(name)
        weight = stored(f"{name}.weight", CHANNELS, CHANNELS, 3, 3)
        square = net.op("Mul", s, s)
        energy = numpy_helper.to_array(net.tensors[weight]).astype(np.float64)
        energy = np.square(energy).sum((2, 3)).T.astype(np.float32)  # [c_in, c_out]
        if name in broken:  # as a converter does that does not know what it has before it
            half = net.op("Cast", s, to=TensorProto.FLOAT16)
            sums = net.op("MatMul", net.op("Mul", half, half), energy.astype(np.float16))
            root = net.op("Sqrt", net.op("Add", sums, np.array(1e-8, np.float16)))
            norm = net.op("Cast", net.op("Reciprocal", root), to=TensorProto.FLOAT)
        else:
            sums = net.op("MatMul", square, energy)
            norm = net.op("Reciprocal", net.op("Sqrt", net.op("Add", sums, array(1e-8))))
        y = net.op("Conv", net.op("Mul", x, as_map(s)), weight, pads=[1, 1, 1, 1])
        y = net.op("Mul", y, as_map(norm))
        y = net.op("Add", y, stored(f"{name}.noise", 1, 1, SIDE, SIDE, spread=0.2))
        x = net.op("LeakyRelu", net.op("Add", y, stored(f"{name}.bias", 1, CHANNELS, 1, 1, spread=0.2)), alpha=0.2)
    to_image = style("g.to_image")
    unit = net.op("Div", to_image, array(gain))
    image = net.op("Conv", net.op("Mul", x, as_map(unit)), stored("g.to_image.weight", 3, CHANNELS, 1, 1, spread=0.15))
    image = net.op("Round", net.op("Mul", net.op("Add", image, array(1.0)), array(127.5)))
    image = net.op("Cast", net.op("Clip", image, array(0.0), array(255.0)), to=TensorProto.UINT8)
    net.op("Transpose", image, out="image", perm=[0, 2, 3, 1])
    return _model(net, folder / "synthesis.onnx", (W,), (IMAGE,))


def encoder(folder: Path, gain: float = 1.0) -> onnx.ModelProto:
    """Crop -> convolution of 16 px pieces, one with a residual sum, mean -> code. `gain`: of the first weights."""
    rng = np.random.default_rng(6)
    net = Net()

    def stored(name: str, *shape: int) -> str:
        values = (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        net.tensors[name] = numpy_helper.from_array(values * np.float32(gain if name == "e.stem.weight" else 1), name)
        return name

    x = net.op("Cast", net.op("Transpose", "crop", perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
    x = net.op("Sub", net.op("Div", x, array(127.5)), array(1.0))
    x = net.op("Conv", x, stored("e.stem.weight", 8, 3, 16, 16), stored("e.stem.bias", 8), strides=[16, 16])
    x = net.op("LeakyRelu", x, alpha=0.1)
    y = net.op("Conv", x, stored("e.conv.weight", 8, 8, 3, 3), stored("e.conv.bias", 8), pads=[1, 1, 1, 1])
    x = net.op("LeakyRelu", net.op("Add", x, y), alpha=0.1)
    x = net.op("AveragePool", x, kernel_shape=[16, 16])
    x = net.op("Reshape", x, np.array([-1, 8]))
    net.op("Gemm", x, stored("e.out.weight", 4, 8), out="attributes", transB=1)
    return _model(net, folder / "encoder.onnx", (CROP,), (CODE,))


def all_fp16(model: onnx.ModelProto) -> dict[str, tuple[str, float]]:
    """FP16 values of a typed graph: the operation that makes each, and the bound that stands beside it."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    half = {v.name for v in inferred.graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    found = {}
    for node in model.graph.node:
        for name in half.intersection(node.output):
            found[name] = node.op_type, float(node.doc_string.removeprefix("|y| <= "))
    assert found.keys() == half
    return found


def _model(net: Net, path: Path, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> onnx.ModelProto:
    net.save(path, inputs, outputs)
    model = onnx.load(path)
    for i, node in enumerate(model.graph.node):
        node.name = f"node_{i}"
    onnx.save(model, path)
    return model


def with_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """A copy that also gives these float32 values."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    for name in names:
        copy.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return copy


def with_picture(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that also gives the picture before it is rounded to bytes, as `picture`."""
    (before,) = (node.input[0] for node in model.graph.node if node.op_type == "Round")
    copy = with_outputs(model, ["picture"])
    copy.graph.node.append(helper.make_node("Identity", [before], ["picture"]))
    return copy
