"""The torch form of a bundle's networks: its graphs store their weights under the modules' own names."""

from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from ..runtime.bundle import Bundle
from ..runtime.errors import FidError
from .networks_mobilestylegan import Synthesis


def load_graph(module: nn.Module, bundle: Bundle, graph: str) -> None:
    """Copies the weights of a bundle's graph into the module that it was exported from.

    The weights have the name of the network, the first word of the graph's ("synthesis" of "synthesis-light"). Raises
    FidError when the bundle was made from another network than this version of fid has.
    """
    stored = float_tensors(bundle.graph_path(graph), prefix=f"{graph.partition('-')[0]}.")
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    fitting = {  # PyTorch's exporter flattens the biases of convolutions
        name: tensor.reshape(shapes[name]) if name in shapes and tensor.numel() == shapes[name].numel() else tensor
        for name, tensor in stored.items()
    }
    try:
        module.load_state_dict(fitting, strict=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise FidError(f"the bundle {bundle.folder} does not hold the {graph} network of this fid: {reason}") from error


def appearance_size(bundle: Bundle) -> int:
    """How many numbers the bundle's mapper takes of the identity image's attribute code; 0: it does not ask for it."""
    return len(float_tensors(bundle.graph_path("mapper"), prefix="mapper.").get("appearance.weight", ()))


def load_synthesis(bundle: Bundle, graph: str = "synthesis") -> Synthesis:
    """The bundle's generator, or its light one, with the widths that it has there. Raises FidError as `load_graph`."""
    stored = float_tensors(bundle.graph_path(graph), prefix="synthesis.")
    network = Synthesis.shaped_as(stored, bundle.resolution)
    load_graph(network, bundle, graph)
    return network


def float_tensors(graph: Path, prefix: str) -> dict[str, Tensor]:
    """The stored weights of an ONNX graph whose names start with `prefix`, as float32, by the rest of the name.

    The bias of a convolution may have lost its name to the exporter: it is the one beside the weight.
    """
    model = onnx.load(graph)  # with its external data
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    casts = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Cast"}
    names = {name: name for name in tensors}
    for node in model.graph.node:
        if node.op_type == "Conv" and len(node.input) == 3 and not node.input[2].startswith(prefix):
            weight = casts.get(node.input[1], node.input[1])
            names[casts.get(node.input[2], node.input[2])] = weight.removesuffix("weight") + "bias"
    return {
        names[name].removeprefix(prefix): torch.from_numpy(numpy_helper.to_array(tensor).copy()).float()
        for name, tensor in tensors.items()
        if names[name].startswith(prefix)
    }
