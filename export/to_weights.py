"""Fifth stage: the large tensors of all graphs in one shared file, each stored once, FP16 where that loses nothing."""

import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .fold import FP16_FROM

WEIGHTS_FILE = "weights.bin"
EXTERNAL_FROM = 1024  # bytes; smaller tensors stay in the graph
ALIGNMENT = 64  # bytes, so that a mapped file can be used in place


class WeightsFile:
    """A file of tensors. Equal tensors get one place, so graphs with the same weights share them, also those of an
    earlier file beside it (`before`)."""

    def __init__(self, path: Path, before: "WeightsFile | None" = None) -> None:
        self.path, self._before = path, before
        self._offsets: dict[bytes, int] = {}
        path.write_bytes(b"")

    def add(self, array: np.ndarray) -> tuple[str, int]:
        """Store the bytes of an array (little endian) unless they are there; returns the file's name and their offset
        in it."""
        data = np.ascontiguousarray(array).tobytes()
        key = hashlib.sha256(data).digest()
        if self._before is not None and key in self._before._offsets:
            return self._before.path.name, self._before._offsets[key]
        if key not in self._offsets:
            with self.path.open("ab") as file:
                file.write(b"\0" * (-file.tell() % ALIGNMENT))
                self._offsets[key] = file.tell()
                file.write(data)
        return self.path.name, self._offsets[key]


def store(model: onnx.ModelProto, path: Path, weights: WeightsFile | None) -> None:
    """Write a model to `path` with its large tensors in `weights`, a file beside it, or all in one file with None.

    A float32 tensor of `FP16_FROM` numbers or more that holds only FP16 values is stored as FP16 and cast to float32 in
    the graph: the arithmetic is the same, the file half as large. Engines compute the cast once, while loading.
    """
    casts: list[onnx.NodeProto] = []
    renamed: dict[str, str] = {}
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.nbytes < EXTERNAL_FROM or array.dtype != np.float32:
            continue
        if array.size >= FP16_FROM and fits_fp16(array):
            array = array.astype(np.float16)
            renamed[tensor.name] = f"{tensor.name}.float32"
            casts.append(helper.make_node("Cast", [tensor.name], [renamed[tensor.name]], to=TensorProto.FLOAT))
        if weights is not None:
            refer(tensor, array.dtype, *weights.add(array), array.nbytes)
        else:
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    path.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path), full_check=True)


def fits_fp16(array: np.ndarray) -> bool:
    """Tell whether FP16 holds every number of a float32 array exactly."""
    with np.errstate(over="ignore"):
        return bool(np.array_equal(array.astype(np.float16).astype(np.float32), array))


def refer(tensor: onnx.TensorProto, dtype: np.dtype, file: str, offset: int, length: int) -> None:
    """Turn a tensor of a graph into a reference to `length` bytes at `offset` of a file beside the graph."""
    name, dims = tensor.name, list(tensor.dims)
    tensor.Clear()
    tensor.name = name
    tensor.dims[:] = dims
    tensor.data_type = helper.np_dtype_to_tensor_dtype(dtype)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", file), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
