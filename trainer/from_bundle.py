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
    try:
        module.load_state_dict(float_tensors(bundle.graph_path(graph), prefix=f"{graph}."), strict=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise FidError(f"the bundle {bundle.folder} does not hold the {graph} network of this fid: {reason}") from error


def float_tensors(graph: Path, prefix: str) -> dict[str, Tensor]:
    """The stored weights of an ONNX graph whose names start with `prefix`, as float32, by the rest of the name."""
    model = onnx.load(graph)  # with its external data
    return {
        tensor.name.removeprefix(prefix): torch.from_numpy(numpy_helper.to_array(tensor).copy()).float()
        for tensor in model.graph.initializer
        if tensor.name.startswith(prefix)
    }
