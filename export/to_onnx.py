"""Fourth stage: a graph module to an ONNX model in memory: float32, dynamic batch, nothing of this machine in it."""

import logging
import warnings
from collections.abc import Iterator

import onnx
import torch
from onnx import helper

from ..runtime.errors import FidError
from ..runtime.tensor import Tensor
from .graphs import GraphModule

OPSET = 18
EXAMPLE_BATCH = 2  # more than one, or the tracer takes the batch for a constant


def to_onnx(graph: GraphModule, *, dynamic: bool = True) -> onnx.ModelProto:
    """Export a frozen module; tensors keep the names of the module's parameters. `dynamic`: any batch size.

    Raises FidError when PyTorch's exporter fails or fixes the batch size.
    """
    batch = torch.export.Dim("batch", min=1)
    arguments = tuple(torch.zeros(_shape(t), dtype=getattr(torch, t.dtype)) for t in graph.inputs)
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns of packages that are not needed here
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's exporter meets deprecations of its own
            program = torch.onnx.export(
                graph.eval(),
                arguments,
                dynamo=True,
                input_names=[t.name for t in graph.inputs],
                output_names=[t.name for t in graph.outputs],
                dynamic_shapes=tuple({0: batch} for _ in graph.inputs) if dynamic else None,
                opset_version=OPSET,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[-1]
        raise FidError(f"PyTorch {torch.__version__} cannot export {type(graph).__name__}: {reason}") from error
    finally:
        log.setLevel(level)
    assert program is not None
    model = program.model_proto
    _check_ports(model, graph)
    return _without_traces(model)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(EXAMPLE_BATCH if size == "batch" else int(size) for size in tensor.shape)


def _check_ports(model: onnx.ModelProto, graph: GraphModule) -> None:
    """The exporter silently fixes a size that the module's code turns into a number: then the graph is refused."""
    for port, tensor in zip((*model.graph.input, *model.graph.output), (*graph.inputs, *graph.outputs), strict=True):
        shape = tuple(dim.dim_param or dim.dim_value for dim in port.type.tensor_type.shape.dim)
        dtype = helper.tensor_dtype_to_np_dtype(port.type.tensor_type.elem_type).name
        if (port.name, shape, dtype) != (tensor.name, tensor.shape, tensor.dtype):
            raise FidError(
                f"{type(graph).__name__} was exported with {port.name} as {dtype} {list(shape)}; "
                f"expected {tensor.name} as {tensor.dtype} {list(tensor.shape)}."
            )


def _without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop what tells of this machine and its sources: metadata, source lines, doc strings, inferred shapes."""
    model.producer_name, model.producer_version = "fid", ""
    for field in ("metadata_props", "functions"):
        model.ClearField(field)
    for field in ("metadata_props", "doc_string", "value_info"):
        model.graph.ClearField(field)
    for item in _parts(model.graph):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    model.graph.name = "fid"
    return model


def _parts(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto | onnx.TensorProto | onnx.ValueInfoProto]:
    yield from graph.node
    yield from graph.initializer
    yield from graph.input
    yield from graph.output
