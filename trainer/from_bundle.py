"""The torch form of a bundle's networks: its graphs store their weights under the modules' own names."""

from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from ..runtime.bundle import Bundle
from ..runtime.errors import FidError


def load_graph(module: nn.Module, bundle: Bundle, graph: str) -> None:
    """Copies the weights of a bundle's graph into the module that it was exported from.

    Raises FidError when the bundle was made from another network than this version of fid has.
    """
    own = module.state_dict()
    stored = float_tensors(bundle.graph_path(graph), prefix=f"{graph}.")
    stored |= {
        name: tensor.reshape(own[name].shape)
        for name, tensor in stored.items()
        if name in own and tensor.numel() == own[name].numel()
    }
    try:
        module.load_state_dict(stored, strict=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise FidError(f"the bundle {bundle.folder} does not hold the {graph} network of this fid: {reason}") from error


def float_tensors(graph: Path, prefix: str) -> dict[str, Tensor]:
    """The stored weights of an ONNX graph whose names start with `prefix`, as float32, by the rest of the name.

    The bias of a convolution is found by the name of its weight: where the module reshapes it, the exporter stores the
    result under a name of its own.
    """
    model = onnx.load(graph)  # with its external data
    names = {tensor.name: tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv" and len(node.input) == 3 and not node.input[2].startswith(prefix):
            names[node.input[2]] = node.input[1].removesuffix(".float32").removesuffix(".weight") + ".bias"
    return {
        name.removeprefix(prefix): torch.from_numpy(numpy_helper.to_array(tensor).copy()).float()
        for tensor in model.graph.initializer
        if (name := names[tensor.name]).startswith(prefix)
    }
