"""Third-party graphs made ready to run, once, from fetched files, with onnx and NumPy only.

`identity`: SFace with plain float weights and our preprocessing and normalisation attached.
`detector`: YuNet with plain float weights, for pictures of any size.
`mapping`, `synthesis-1024`: our exporter's skeletons in `graphs/`, whose large tensors are ONNX external data that
points into the generator's own fetched weight files.
`recogniser`: dlib's face recogniser, which training never saw, from its own file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import assets
from ..errors import FidError, InputError
from ..face.crop import CROP_SIZE, identity_matrices
from . import catalogue, dlib_file
from .cache import cache_folder, locked, new_folder, plain_disk_errors, sha256
from .records import decode

if TYPE_CHECKING:
    import onnx


RECIPE = 1
"""Counts up when a graph made from the same inputs changes, so that cached ones are made anew."""


SKELETON_WEIGHTS = {"mapping": "MappingNetwork.bin", "synthesis-1024": "SynthesisNetwork.bin"}
"""Skeleton -> the file of the fetched generator that holds its weights."""

GRAPHS = ("identity", "detector", "recogniser", *SKELETON_WEIGHTS)
SOURCES = {"identity": "sface", "detector": "yunet", "recogniser": "dlib"}
"""What is fetched for a graph; the generator for the others."""


def prepared(graph: str) -> Path:
    """Return the ONNX file of a prepared graph; made the first time, with what it needs fetched.

    - `identity`: crop uint8 [batch, 256, 256, 3] RGB -> identity float32 [batch, 128], unit length
    - `detector`: see `detector_graph`
    - `recogniser`: crop uint8 [batch, 256, 256, 3] RGB -> code float32 [batch, 128], compared by distance
    - `mapping`: z float32 [batch, 512] -> w float32 [batch, 512]
    - `synthesis-1024`: w_plus float32 [batch, 23, 512] -> image uint8 [batch, 1024, 1024, 3] RGB

    Raises InputError for an unknown graph, FidError when its files cannot be fetched or stored.
    """
    if graph not in GRAPHS:
        raise InputError(f"there is no graph {graph!r} to prepare; known are {', '.join(GRAPHS)}.")
    name = f"{graph}-{_key(graph)}"
    target = cache_folder("prepared", name)
    if _whole(target):
        return target / f"{graph}.onnx"
    make = {"identity": _identity, "detector": _detector, "recogniser": _recogniser}.get(graph, _filled_skeleton)
    source = catalogue.ensure(SOURCES.get(graph, "generator"))  # before our lock: it has its own
    with locked(f"prepared-{name}"), plain_disk_errors(f"storing the graph {graph}", target.parent):
        if not _whole(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with new_folder(target) as folder:
                make(graph, source, folder)
                record = {path.name: sha256(path) for path in sorted(folder.iterdir())}
                (folder / "prepared.json").write_text(json.dumps(record, indent=1) + "\n")
    return target / f"{graph}.onnx"


def _key(graph: str) -> str:
    """Names everything that the graph is made from."""
    parts = [str(RECIPE)]
    if graph == "identity":
        parts += ["slopes, weights beside", *(file.sha256 for file in catalogue.model("sface").files)]
        parts += [hashlib.sha256(matrix.tobytes()).hexdigest() for matrix in identity_matrices()]
    elif graph == "detector":
        parts += [file.sha256 for file in catalogue.model("yunet").files]
    elif graph == "recogniser":
        parts += [catalogue.model("dlib").files[0].sha256, repr(dlib_file.CHIP)]
    else:
        parts += [file.sha256 for file in catalogue.model("generator").files if file.name == SKELETON_WEIGHTS[graph]]
        skeleton = assets.SKELETONS / f"{graph}.onnx"
        if not skeleton.is_file():
            raise FidError(f"this installation of fid lacks {skeleton.name}; install fid again.")
        parts.append(sha256(skeleton))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]


def _whole(folder: Path) -> bool:
    """Whether a prepared folder holds exactly what was written: files older than the record of them are not hashed
    anew, which would take 30 ms of every start."""
    try:
        path = folder / "prepared.json"
        record, written_ns = decode(path.read_bytes(), dict[str, str]), path.stat().st_mtime_ns
        return all(
            (folder / name).stat().st_mtime_ns <= written_ns or sha256(folder / name) == digest
            for name, digest in record.items()
        )
    except (OSError, FidError):
        return False


def _filled_skeleton(graph: str, source: Path, folder: Path) -> None:
    """Put the skeleton beside the weight file that it points into: the same bytes by hard link where that works."""
    weights = SKELETON_WEIGHTS[graph]
    shutil.copyfile(assets.SKELETONS / f"{graph}.onnx", folder / f"{graph}.onnx")
    try:
        os.link(source / weights, folder / weights)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(source / weights, folder / weights)


def _identity(graph: str, source: Path, folder: Path) -> None:
    import onnx  # here: takes 0.4 s, and only the first run prepares anything

    model = onnx.load(source / catalogue.model("sface").files[0].name)
    weights: dict[str, Any] = {"save_as_external_data": True, "location": f"{graph}.bin", "size_threshold": 1024}
    onnx.save(identity_graph(model), folder / f"{graph}.onnx", **weights)  # beside it: engines map them, and copy none
    shutil.copymode(folder / f"{graph}.onnx", folder / f"{graph}.bin")  # onnx lets nobody else read it


def _detector(graph: str, source: Path, folder: Path) -> None:
    import onnx

    model = onnx.load(source / catalogue.model("yunet").files[0].name)
    onnx.save(detector_graph(model), folder / f"{graph}.onnx")


def _recogniser(graph: str, source: Path, folder: Path) -> None:
    import onnx

    data = (source / catalogue.model("dlib").files[0].name).read_bytes()
    onnx.save(dlib_file.recogniser_graph(data), folder / f"{graph}.onnx")


def dequantise(quantised: NDArray, scale: NDArray, zero_point: NDArray | None, axis: int, block: int) -> NDArray:
    """Plain float32 values of ONNX DequantizeLinear's blocked form: every `block` values along `axis` share one
    `scale` and `zero_point`; block 0 stands for one value for the whole axis."""

    def spread(values: NDArray) -> NDArray:
        if block:
            return np.repeat(values, block, axis).take(np.arange(quantised.shape[axis]), axis)
        if values.size == 1:
            return values.reshape(())
        return values.reshape([-1 if i == axis % quantised.ndim else 1 for i in range(quantised.ndim)])

    centred = quantised.astype(np.float32)
    if zero_point is not None:
        centred = centred - spread(zero_point).astype(np.float32)
    return centred * spread(scale).astype(np.float32)


def dequantised(model: onnx.ModelProto) -> dict[str, NDArray]:
    """Return all constant tensors of a block-quantised model by name, DequantizeLinear and Reshape of constants
    computed."""
    from onnx import helper, numpy_helper

    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if not all(name in known for name in node.input):
            continue
        options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "DequantizeLinear":
            inputs = [known[name] for name in node.input]
            zero_point = inputs[2] if len(inputs) > 2 else None
            axis, block = options.get("axis", 1), options.get("block_size", 0)
            known[node.output[0]] = dequantise(inputs[0], inputs[1], zero_point, axis, block)
        elif node.op_type == "Reshape":
            known[node.output[0]] = known[node.input[0]].reshape(known[node.input[1]])
    return known


def detector_graph(yunet: onnx.ModelProto) -> onnx.ModelProto:
    """YuNet with plain float weights and for pictures of any size.

    In: input float32 [1, 3, height, width], BGR 0..255, both sides multiples of 32. Out, for strides of 8, 16, 32 px:
    cls, obj [1, places, 1], bbox [1, places, 4] and kps [1, places, 10], as in the file.
    """
    import onnx
    from onnx import helper

    constants = dequantised(yunet)
    kept = [node for node in yunet.graph.node if node.output[0] not in constants]
    used = {name for node in kept for name in node.input}
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items() if name in used]
    sides: list[int | str] = [1, 3, "height", "width"]
    data = helper.make_tensor_value_info(yunet.graph.input[0].name, onnx.TensorProto.FLOAT, sides)
    outputs = [
        helper.make_tensor_value_info(
            port.name, onnx.TensorProto.FLOAT, [1, f"places_{port.name}", port.type.tensor_type.shape.dim[2].dim_value]
        )
        for port in yunet.graph.output
    ]
    graph = helper.make_graph(kept, "detector", [data], outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10, producer_name="fid")
    onnx.checker.check_model(model, full_check=True)
    return model


def identity_graph(sface: onnx.ModelProto, *, quantised: bool = False) -> onnx.ModelProto:
    """Return SFace from the aligned crop to the unit code.

    In: crop uint8 [batch, 256, 256, 3] RGB. Two constant matrices take it to [batch, 3, 112, 112] RGB 0..255, what the
    file expects; it subtracts 127.5 and divides by 128 itself. Out: identity float32 [batch, 128], unit length.
    `quantised`: keep the file's 8-bit weights, a quarter of the size; the engine makes floats of them in each run.
    Without, PRelu is slope * x + (1 - slope) * relu(x), which takes ONNX Runtime half as long for the whole graph.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    constants = {t.name: numpy_helper.to_array(t) for t in sface.graph.initializer} if quantised else dequantised(sface)
    rows, columns = identity_matrices()
    constants |= {"rows": rows, "columns_t": np.ascontiguousarray(columns.T), "code_axis": np.array([1], np.int64)}
    constants["smallest_norm"] = np.array(1e-12, np.float32)

    data, code = sface.graph.input[0].name, sface.graph.output[0].name
    node: Callable[..., onnx.NodeProto] = helper.make_node
    nodes = [
        node("Cast", ["crop"], ["crop_float"], to=TensorProto.FLOAT),
        node("Transpose", ["crop_float"], ["crop_nchw"], perm=[0, 3, 1, 2]),
        node("MatMul", ["rows", "crop_nchw"], ["crop_rows"]),
        node("MatMul", ["crop_rows", "columns_t"], [data]),
    ]
    renamed: dict[str, str] = {}  # result of a dropped node -> what it passes on
    for original in sface.graph.node:
        if original.op_type == "Constant" or original.output[0] in constants:
            continue
        if original.op_type == "Dropout":  # does nothing outside of training
            renamed[original.output[0]] = renamed.get(original.input[0], original.input[0])
            continue
        kept = onnx.NodeProto()
        kept.CopyFrom(original)
        kept.input[:] = [renamed.get(name, name) for name in original.input]
        if original.op_type == "PRelu" and not quantised:
            (x, slope), y = kept.input, kept.output[0]
            constants[f"{y}/rest"] = 1 - constants[slope]
            nodes += [
                node("Mul", [x, slope], [f"{y}/line"]),
                node("Relu", [x], [f"{y}/above"]),
                node("Mul", [f"{y}/above", f"{y}/rest"], [f"{y}/bend"]),
                node("Add", [f"{y}/line", f"{y}/bend"], [y]),
            ]
        else:
            nodes.append(kept)
    nodes += [
        node("ReduceL2", [code, "code_axis"], ["norm"], keepdims=1),
        node("Max", ["norm", "smallest_norm"], ["safe_norm"]),
        node("Div", [code, "safe_norm"], ["identity"]),
    ]
    used = {name for kept in nodes for name in kept.input}
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used]
    crop = helper.make_tensor_value_info("crop", TensorProto.UINT8, ["batch", CROP_SIZE, CROP_SIZE, 3])
    identity = helper.make_tensor_value_info("identity", TensorProto.FLOAT, ["batch", 128])
    graph = helper.make_graph(nodes, "identity", [crop], [identity], tensors)
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 21 if quantised else 18)],  # 21: weights quantised in blocks
        ir_version=10,
        producer_name="fid",
        producer_version="1",
    )
    onnx.checker.check_model(model, full_check=True)
    return model
