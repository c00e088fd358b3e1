"""Try an engine for a GPU or NPU on one graph, in a process of its own: a broken driver may take the process down.

    python -m fid.runtime.engines.try_builder ENGINE GRAPH.onnx X

`X` is the input of the graph as JSON. Prints one JSON object: of TensorRT and TensorRT-RTX `version` and
`built`, then `provider`, `fallback` and `y` of a run, or `problem` with the sentence of what went wrong.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FidError
from .open import open_session
from .table import DEVICE_ENGINES
from .tensorrt.build import RTX_TARGETS, Batch, build, library


def main(engine: str, path: Path, x: np.ndarray) -> dict[str, Any]:
    """Open the graph at `path`, built first if need be, and run it on `x` float32; return what came of it."""
    record: dict[str, Any] = {}
    try:
        if engine not in DEVICE_ENGINES:
            lib = library(engine)
            record["version"] = lib.version
            build(lib, path, Batch(), targets=RTX_TARGETS)
            record["built"] = True
        session = open_session(path, engine=engine)
        record["provider"], record["fallback"] = session.provider, session.fallback
        record["y"] = session.run(x=x)["y"].tolist()
    except FidError as error:
        record["problem"] = str(error)
    return record


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), np.array(json.loads(sys.argv[3]), np.float32))))
