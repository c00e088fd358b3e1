"""The gradient that becomes part of a graph is PyTorch's own, operator by operator."""

import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from fid.export.gradient import with_gradient
from fid.runtime.errors import FidError
from onnx import TensorProto, helper
from torch import Tensor, nn

SHAPE = (1, 4, 8, 8)


class Lambda(nn.Module):
    """A function of x [1, 4, 8, 8], with a few constant weights; its result is squared and summed."""

    def __init__(self, function) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.function = function
        self.dense, self.depthwise, self.matrix, self.rows, self.slopes = (
            nn.Buffer(torch.randn(*shape, generator=random))
            for shape in ((6, 4, 3, 3), (4, 1, 3, 3), (5, 256), (3, 8), (4, 1, 1))
        )
        self.up = nn.Buffer(torch.randn(4, 1, 2, 2, generator=random))

    def forward(self, x: Tensor) -> Tensor:
        result = self.function(self, x)
        return (result * torch.linspace(0.1, 1, result.numel()).reshape(result.shape)).sum()


FUNCTIONS = {
    "dense convolution": lambda m, x: F.conv2d(x, m.dense, padding=1),
    "pointwise convolution": lambda m, x: F.conv2d(x, m.dense[:, :, :1, :1].contiguous()),
    "depthwise convolution": lambda m, x: F.conv2d(x, m.depthwise, padding=1, groups=4),
    "convolution without padding": lambda m, x: F.conv2d(x, m.dense),
    "convolution of stride 2": lambda m, x: F.conv2d(x, m.dense, stride=2, padding=1),
    "depthwise of stride 2": lambda m, x: F.conv2d(x, m.depthwise, stride=2, padding=1, groups=4),
    "transposed convolution": lambda m, x: F.conv_transpose2d(x, m.up, stride=2, groups=4),
    "average pooling": lambda m, x: F.avg_pool2d(x, 2).square(),
    "maximum pooling": lambda m, x: F.max_pool2d(x, 2),
    "maximum pooling of windows that overlap": lambda m, x: F.max_pool2d(x, 3, 2),
    "ReLU": lambda m, x: F.relu(x),
    "leaky ReLU": lambda m, x: F.leaky_relu(x, 0.2),
    "PReLU": lambda m, x: F.prelu(x, m.slopes.flatten()),
    "linear layer": lambda m, x: F.linear(x.flatten(1), m.matrix),
    "matrix from the left": lambda m, x: m.rows @ x,
    "matrix from the right": lambda m, x: x @ m.rows.T,
    "unit length": lambda m, x: x / (x.square().sum(1, keepdim=True) + 1e-6).sqrt(),
    "difference": lambda m, x: (m.depthwise.mean() - x[:, :2]).abs().mean((2, 3)),
    "modulation": lambda m, x: x * F.linear(x.flatten(1), m.matrix)[:, :4, None, None],
    "slices and a transposition": lambda m, x: x[:, 1:3, :, 2:].transpose(1, 2) * x[:, :2, :, 2:].transpose(1, 2),
    "quotient": lambda m, x: (x + 3) / (x.square() + 1),
    "broadcast": lambda m, x: x[:, :1].expand(1, 5, 8, 8) - x[:, 1:2],
}


def exported(module: nn.Module) -> onnx.ModelProto:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, (torch.zeros(SHAPE),), dynamo=True, input_names=["x"], output_names=["y"], verbose=False
        )
    assert program is not None
    return program.model_proto


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_those_of_pytorch(name):
    module = Lambda(FUNCTIONS[name])
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    (expected,) = torch.autograd.grad(module(x), x)
    model = with_gradient(exported(module), of="y", wrt="x", name="slope")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y, slope = session.run(["y", "slope"], {"x": x.detach().numpy()})
    np.testing.assert_allclose(y, module(x).item(), rtol=1e-4)
    np.testing.assert_allclose(slope, expected.numpy(), rtol=1e-4, atol=1e-4)


def plain_model(operator: str, shape: list[int | str]) -> onnx.ModelProto:
    """y = the sum of an operator of x."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    nodes = [helper.make_node(operator, ["x"], ["z"]), helper.make_node("ReduceSum", ["z"], ["y"], keepdims=0)]
    graph = helper.make_graph(nodes, "plain", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_an_operator_without_a_rule_is_named():
    with pytest.raises(FidError, match="operator Erf cannot be differentiated"):
        with_gradient(plain_model("Erf", [2, 3]), of="y", wrt="x", name="slope")


def test_a_shape_that_is_not_fixed_is_refused():
    with pytest.raises(FidError, match="no fixed shape"):
        with_gradient(plain_model("Abs", ["batch", 3]), of="y", wrt="x", name="slope")
