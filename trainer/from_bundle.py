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
    wanted = module.state_dict()
    tensors = float_tensors(bundle.graph_path(graph), prefix=f"{graph}.")
    for name in tensors.keys() & wanted.keys():
        if tensors[name].numel() == wanted[name].numel():  # a bias that was stored without its axes of size 1
            tensors[name] = tensors[name].reshape(wanted[name].shape)
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise FidError(f"the bundle {bundle.folder} does not hold the {graph} network of this fid: {reason}") from error


def float_tensors(graph: Path, prefix: str) -> dict[str, Tensor]:
    """The stored weights of an ONNX graph whose names start with `prefix`, as float32, by the rest of the name.

    PyTorch's exporter forgets the name of a bias that the module reshapes; it is found at its convolution.
    """
    model = onnx.load(graph)  # with its external data
    names = {tensor.name: tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv" and len(node.input) == 3 and not node.input[2].startswith(prefix):
            weight, dot, kind = node.input[1].removesuffix(".float32").rpartition(".")
            names[node.input[2].removesuffix(".float32")] = f"{weight}{dot}bias" if kind == "weight" else ""
    return {
        names[tensor.name].removeprefix(prefix): torch.from_numpy(numpy_helper.to_array(tensor).copy()).float()
        for tensor in model.graph.initializer
        if names[tensor.name].startswith(prefix)
    }
