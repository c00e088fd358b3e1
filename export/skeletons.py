"""Graph skeletons: ONNX graphs of third-party networks without their weights.

The skeletons of the published generator are committed; their large tensors are references (file, offset, length) into
the weight files of the fetched generator. So a user of the lean runtime needs neither torch nor a copy of the weights.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from ..runtime.errors import FidError
from ..runtime.weights import catalogue as models
from ..runtime.weights.cache import scratch_folder
from ..runtime.weights.prepare import SKELETON_WEIGHTS
from ..trainer.networks.mobilestylegan import W_SIZE, Mapping, Synthesis
from .fold import with_transposed_wavelets
from .graphs import GraphModule, MappingGraph, SynthesisGraph, styles_of
from .parity import OFFSET, Parity, measure
from .to_onnx import to_onnx
from .to_weights import EXTERNAL_FROM, refer

MAX_BYTES = 200_000  # of a committed skeleton
INPUTS = 4  # a picture of 1024 px takes a second and more in PyTorch on a CPU


@dataclass(frozen=True)
class Skeleton:
    """A graph skeleton that was written, and how far it is from PyTorch."""

    path: Path
    inside: int  # bytes of tensors that stayed in the graph
    outside: int  # bytes of tensors in the fetched file
    parity: Parity


def write_skeletons(folder: Path, threads: int = 2) -> list[Skeleton]:
    """Write mapping.onnx and synthesis-1024.onnx into a folder, each measured against PyTorch first.

    Raises FidError, with nothing written, when one differs by more than its tolerance or is too large to commit.
    """
    source = models.ensure("generator")
    synthesis = with_transposed_wavelets(Synthesis.load(1024, source))
    modules: dict[str, GraphModule] = {
        "mapping": MappingGraph(Mapping.load(source)),
        "synthesis-1024": SynthesisGraph(synthesis, 1024),
    }
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(INPUTS, W_SIZE, generator=generator)
    with torch.no_grad():
        w = Mapping.load(source)(z)
        n_styles = styles_of(synthesis)
        offset = OFFSET * w.std() * torch.randn(INPUTS, n_styles, W_SIZE, generator=generator)
        inputs = {"z": z.numpy(), "w_plus": (w[:, None] + offset).numpy()}
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    with scratch_folder(folder / ".skeletons") as scratch:
        for name, module in modules.items():
            weights = scratch / SKELETON_WEIGHTS[name]
            shutil.copyfile(source / SKELETON_WEIGHTS[name], weights)  # ONNX Runtime follows no link out of the folder
            path = scratch / f"{name}.onnx"
            model = to_onnx(module)
            inside, outside = point_into(model, source / SKELETON_WEIGHTS[name])
            path.write_bytes(model.SerializeToString(deterministic=True))
            parity = measure(path, module, module, inputs, threads)
            if parity.fault is not None:
                raise FidError(f"the skeleton {name} does not agree with PyTorch: {parity.fault}.")
            if path.stat().st_size > MAX_BYTES:
                raise FidError(
                    f"the skeleton {name} has {path.stat().st_size} bytes; at most {MAX_BYTES} are committed."
                )
            results.append(Skeleton(path, inside, outside, parity))
        return [
            Skeleton(result.path.replace(folder / result.path.name), result.inside, result.outside, result.parity)
            for result in results
        ]


def point_into(model: onnx.ModelProto, weights: Path) -> tuple[int, int]:
    """Replace every large tensor whose bytes stand somewhere in a file by a reference to that place.

    Returns the bytes of tensors that stay inside and that are now outside.
    """
    content = weights.read_bytes()
    inside = outside = 0
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        offset = content.find(array.tobytes()) if array.nbytes >= EXTERNAL_FROM and array.dtype == np.float32 else -1
        if offset < 0:
            inside += array.nbytes
        else:
            outside += array.nbytes
            refer(tensor, array.dtype, weights.name, offset, array.nbytes)
    return inside, outside
