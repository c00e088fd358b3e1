"""A bundle's graphs as files for the browser: each one whole, with its weights inside, no larger than it must be."""

from __future__ import annotations

import onnx

from ...runtime.weights import catalogue
from ...runtime.weights.bundle import LIGHT, Bundle
from ...runtime.weights.prepare import identity_graph, prepared

DETECT = "detect"
GRAPHS = ("mapper", "attributes", "synthesis", LIGHT, "identity")
"""What a site holds of a bundle; the light generator where there is one."""


def web_graph(bundle: Bundle, name: str) -> bytes:
    """Return one of `GRAPHS` of a bundle, or the face detector (`DETECT`), as one ONNX file with its weights.

    Weights stay as small as they are stored: FP16 in a bundle, blocks of 8 bits in SFace. What is fetched for it is
    fetched the first time. Raises FidError when that cannot be done, or the bundle has no such graph.
    """
    if name == DETECT:
        return prepared("detector").read_bytes()
    if name == "identity" and bundle.graph(name).file is None:
        return identity_graph(onnx.load(catalogue.model_file("sface")), quantised=True).SerializeToString()
    return onnx.load(bundle.graph_path(name)).SerializeToString()
