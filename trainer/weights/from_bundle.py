"""The torch form of a bundle's networks: its graphs store their weights under the modules' own names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from onnx import numpy_helper
from torch import Tensor, nn

from ...runtime.errors import FidError
from ...runtime.weights.bundle import Bundle
from ...runtime.weights.graph import read_graph
from ..networks.mobilestylegan import Synthesis


def load_graph(module: nn.Module, bundle: Bundle, graph: str) -> None:
    """Copy the weights of a bundle's graph into the module that it was exported from.

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
    """Return how many numbers the bundle's mapper takes of the identity image's attribute code; 0: it does not ask for
    it."""
    return len(float_tensors(bundle.graph_path("mapper"), prefix="mapper.").get("appearance.weight", ()))


def load_synthesis(bundle: Bundle, graph: str = "synthesis") -> Synthesis:
    """Return the bundle's generator, or its light one, with the widths that it has there. Raises FidError as
    `load_graph`."""
    stored = float_tensors(bundle.graph_path(graph), prefix="synthesis.")
    network = Synthesis.shaped_as(stored, bundle.resolution)
    load_graph(network, bundle, graph)
    return network


def is_bundle(source: Path) -> bool:
    """Tell whether a path is a bundle's folder or a .fid file."""
    return source.suffix == ".fid" or (source / "bundle.json").is_file()


@torch.no_grad()
def load_unfolded(network: nn.Module, folded: Mapping[str, Tensor], images: Tensor) -> None:
    """Fill a network with the weights of an exported one, whose batch norms are part of the convolutions before them.

    `folded` are its tensors by name. Each batch norm takes the mean and variance that its input has on `images`
    [N, 3, S, S] in [-1, 1], and the scale and shift that undo them: in evaluation the network computes what the
    exported one does, and in training, on batches that resemble the images, nearly so. Raises FidError when the tensors
    are another network's.
    """
    names = {module: name for name, module in network.named_modules()}
    norms = {name for module, name in names.items() if isinstance(module, nn.BatchNorm2d)}
    own = {name: tensor for name, tensor in network.state_dict().items() if name.rpartition(".")[0] not in norms}
    if {name: tensor.numel() for name, tensor in own.items()}.items() - {
        name: tensor.numel() for name, tensor in folded.items()
    }.items():
        raise FidError("the bundle holds another attribute encoder than this fid trains: name a checkpoint instead.")
    network.load_state_dict({name: folded[name].reshape(tensor.shape) for name, tensor in own.items()}, strict=False)
    outputs: list[tuple[Tensor, str]] = []

    def remember(conv: nn.Module, _: Any, output: Tensor) -> None:
        outputs.append((output, names[conv]))

    def unfold(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        bias = folded[next(name for output, name in outputs if output is inputs[0]) + ".bias"].flatten()
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(mean + bias)

    hooks = [m.register_forward_hook(remember) for m in network.modules() if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(unfold) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    network.eval()(images)
    for hook in hooks:
        hook.remove()


def float_tensors(graph: Path, prefix: str) -> dict[str, Tensor]:
    """Return the stored weights of an ONNX graph whose names start with `prefix`, as float32, by the rest of the name.

    The bias of a convolution may have lost its name to the exporter: it is the one beside the weight.
    """
    model = read_graph(graph)
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
