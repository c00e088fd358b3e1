"""Read the ONNX graphs of a bundle: their tensors wherever links lead, and whether they keep to their contract."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FidError
from ..tensor import Tensor

if TYPE_CHECKING:
    import onnx

ENDLESS = ("Loop", "Scan")
"""Operators that can run for ever. None of our graphs has one."""


def read_graph(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """Return the ONNX graph at `path`; with `weights` its external tensors are read into it.

    `onnx.load` refuses tensors in a file that is a link or has a second name, and package installers make both. Raises
    FidError when it is no ONNX graph, or a tensor lies outside of its file.
    """
    import onnx  # here: takes 0.4 s, and the shipped bundle does without
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise FidError(f"the bundle {path.parent} is damaged: {path.name} is not an ONNX graph.") from error
    if weights:
        for tensor in tensors_of(model):
            if tensor.external_data:
                tensor.raw_data = _external(tensor, path)
                tensor.data_location = onnx.TensorProto.DEFAULT
                del tensor.external_data[:]
    return model


def _external(tensor: onnx.TensorProto, path: Path) -> bytes:
    place = {entry.key: entry.value for entry in tensor.external_data}
    try:
        start = int(place.get("offset") or 0)
        with open(path.parent / place["location"], "rb") as file:
            file.seek(start)
            length = int(place["length"]) if place.get("length") else -1
            content = file.read(length)
    except (KeyError, ValueError, OSError, OverflowError):
        content, length = b"", 1
    if 0 <= length != len(content):
        raise FidError(f"the bundle {path.parent} is damaged: the tensor {tensor.name} of {path.name} is not there.")
    return content


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every constant tensor of a graph, those of its branches and functions, too."""
    for node in nodes_of(model):
        for attribute in node.attribute:
            sparse = [attribute.sparse_tensor, *attribute.sparse_tensors]
            yield from (
                attribute.t,
                *attribute.tensors,
                *(part for one in sparse for part in (one.values, one.indices)),
            )
    for part in _graphs_of(model):
        yield from part.initializer
        yield from (half for one in part.sparse_initializer for half in (one.values, one.indices))


def nodes_of(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield every node of a graph, those of its branches and functions, too."""
    for part in _graphs_of(model):
        yield from part.node
    for function in model.functions:
        yield from function.node


def _graphs_of(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    waiting = [model.graph, *_branches(node for function in model.functions for node in function.node)]
    while waiting:
        part = waiting.pop()
        yield part
        waiting.extend(_branches(part.node))


def _branches(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from attribute.graphs
            if attribute.HasField("g"):
                yield attribute.g


def external_files(model: onnx.ModelProto) -> set[str]:
    """Return the names of the files that a graph takes tensors from."""
    places = (entry for tensor in tensors_of(model) for entry in tensor.external_data)
    return {entry.value for entry in places if entry.key == "location"}


def check_contract(model: onnx.ModelProto, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> str | None:
    """Return what a graph does otherwise than its bundle says, as the end of a sentence; None when it keeps to it.

    Names, shapes and dtypes of what goes in and comes out, weights that are numbers, and no operator of `ENDLESS`.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    given = [port for port in model.graph.input if port.name not in constants]
    for what, stated, found in (("takes", inputs, given), ("gives", outputs, model.graph.output)):
        said, true = ({_port(*port) for port in ports} for ports in (_stated(stated), map(_found, found)))
        if said != true:
            return f"{what} {', '.join(sorted(true)) or 'nothing'}, and bundle.json says {', '.join(sorted(said))}"
    for node in nodes_of(model):
        if node.op_type in ENDLESS:
            return f"has the operator {node.op_type}, which may never end"
    for tensor in tensors_of(model):
        if not _finite(tensor):
            return f"has weights that are not numbers, in {tensor.name}"
    return None


def _stated(tensors: tuple[Tensor, ...]) -> Iterator[tuple[str, list[int | str], str]]:
    return ((tensor.name, list(tensor.shape), tensor.dtype) for tensor in tensors)


def _found(port: Any) -> tuple[str, list[int | str], str]:
    from onnx import helper

    kind = port.type.tensor_type
    shape = [size.dim_value if size.HasField("dim_value") else "batch" for size in kind.shape.dim]
    try:
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    except KeyError:
        dtype = "of no known kind"
    return port.name, shape, dtype


def _port(name: str, shape: list[int | str], dtype: str) -> str:
    sides = ", ".join(str(side) if isinstance(side, int) else "batch" for side in shape)
    return f"{name} {dtype} [{sides}]"


def _finite(tensor: onnx.TensorProto) -> bool:
    from onnx import TensorProto, numpy_helper

    if tensor.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
        return True
    try:
        return bool(np.isfinite(numpy_helper.to_array(tensor)).all())
    except (ValueError, TypeError):  # fewer numbers than its shape has places
        return False
