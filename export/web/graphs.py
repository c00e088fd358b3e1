"""A bundle's graphs as files for the browser: each one whole, with its weights inside, no larger than it must be."""

from __future__ import annotations

import onnx
from onnx import helper

from ...runtime.weights import catalogue
from ...runtime.weights.bundle import LIGHT, Bundle
from ...runtime.weights.prepare import dequantised, identity_graph

DETECT = "detect"
GRAPHS = ("mapper", "attributes", "synthesis", LIGHT, "identity")
"""What a site holds of a bundle; the light generator where there is one."""


def web_graph(bundle: Bundle, name: str) -> bytes:
    """Return one of `GRAPHS` of a bundle, or the face detector (`DETECT`), as one ONNX file with its weights.

    Weights stay as small as they are stored: FP16 in a bundle, blocks of 8 bits in SFace. What is fetched for it is
    fetched the first time. Raises FidError when that cannot be done, or the bundle has no such graph.
    """
    if name == DETECT:
        return detector_graph(onnx.load(catalogue.model_file("yunet"))).SerializeToString()
    if name == "identity" and bundle.graph(name).file is None:
        return identity_graph(onnx.load(catalogue.model_file("sface")), quantised=True).SerializeToString()
    return onnx.load(bundle.graph_path(name)).SerializeToString()


def detector_graph(yunet: onnx.ModelProto) -> onnx.ModelProto:
    """YuNet with plain float weights and for pictures of any size.

    In: input float32 [1, 3, height, width], BGR 0..255, both sides multiples of 32. Out, for strides of 8, 16, 32 px:
    cls, obj [1, places, 1], bbox [1, places, 4] and kps [1, places, 10], as in the file.
    """
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
    graph = helper.make_graph(kept, DETECT, [data], outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10, producer_name="fid")
    onnx.checker.check_model(model, full_check=True)
    return model
