"""One side of `against.py`: a process that runs graphs with the fid that its Python has, whichever version that is.

It reads orders, one JSON object a line: {"open": [engine, graph, threads]} and then {"run": count}; and answers each
with one: {"provider": ...} or {"reason": ...}, and {"wall": [ms, ...], "cpu": [ms, ...]}.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def open_graph(engine: str, graph: str, threads: int) -> Any:
    """The session of a graph (`session.Session`), opened by that version's own `open_session`."""
    try:
        from fid.runtime.engines.open import open_session
        from fid.runtime.weights.bundle import Bundle
        from fid.runtime.weights.prepare import prepared
    except ImportError:  # before the folders
        from fid.runtime.bundle import Bundle
        from fid.runtime.prepare import prepared
        from fid.runtime.session import open_session

    path = prepared(graph) if graph == "synthesis-1024" else Bundle.load().graph_path(graph)
    return open_session(Path(path), engine=engine, require=engine, threads=threads)


def inputs(session: Any) -> dict[str, np.ndarray]:
    """The same numbers for both sides: a picture of noise, small codes."""
    random = np.random.default_rng(0)
    arrays = {}
    for tensor in session.inputs:
        shape = [1 if isinstance(size, str) else size for size in tensor.shape]
        if tensor.dtype == "uint8":
            arrays[tensor.name] = random.integers(0, 256, shape, np.uint8)
        else:
            arrays[tensor.name] = 0.3 * random.standard_normal(shape).astype(tensor.dtype)
    return arrays


def main() -> None:
    """Answer orders until there are no more."""
    session, arrays = None, {}
    for line in sys.stdin:
        order = json.loads(line)
        answer: dict[str, Any]
        if "open" in order:
            session = None  # before the next: only one is held at a time
            try:
                session = open_graph(*order["open"])
                arrays = inputs(session)
                for _ in range(3):
                    session.run(**arrays)
                answer = {"provider": session.provider}
            except Exception as error:
                answer = {"reason": str(error).splitlines()[0][:200]}
        else:
            assert session is not None
            answer = {"wall": [], "cpu": []}
            session.run(**arrays)  # does not count: the other side has used the caches
            for _ in range(order["run"]):
                wall, cpu = time.perf_counter(), time.process_time()
                session.run(**arrays)
                answer["wall"].append(1e3 * (time.perf_counter() - wall))
                answer["cpu"].append(1e3 * (time.process_time() - cpu))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
