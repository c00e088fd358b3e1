"""The graphs that are measured and the engines that they run on; what an engine cannot run, it says why.

Torch engines run the modules that `fid-export` exports, with the very weights of the bundle, so every other engine is
compared with the same arithmetic. All others are opened as the runtime opens them, by `session.open_session`.

    python benchmarks/engines.py ENGINE GRAPH     a fresh process: start to first output, and its peak of memory
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from fid.runtime.engines.machine import physical_cores
from fid.runtime.engines.open import ENGINES as SESSION_ENGINES
from fid.runtime.engines.open import open_session
from fid.runtime.errors import FidError
from fid.runtime.face.crop import CROP_SIZE
from fid.runtime.weights.bundle import Bundle
from fid.runtime.weights.prepare import prepared

Arrays = Mapping[str, np.ndarray]

GRAPHS = (
    *("identity", "attributes", "mapper", "synthesis", "synthesis-light", "reenact"),
    *("synthesis-1024", "reenact-1024"),
)
CPU_ENGINES = ("onnxruntime", "openvino", "openvino-bf16")
"""Those of the runtime."""

ENGINES = (
    *("torch", "torch-compile", "torch-cuda", "torch-cudagraph"),
    *(*CPU_ENGINES, "openvino-int8"),
    *("cuda", "tensorrt", "tensorrt-rtx"),
)
IDENTITY_SIZE = 128


class NotHereError(Exception):
    """This engine cannot run this graph on this machine; the message says why."""


@dataclass(frozen=True)
class Opened:
    """A graph that is ready on an engine."""

    run: Callable[[Arrays], np.ndarray]  # returns when the output is there, on the host
    provider: str  # what really runs
    open_s: float  # reading, building or compiling, with what the engine had cached


def open_engine(engine: str, graph: str, threads: int, batch: int = 1) -> Opened:
    """Open a graph for one batch size and run it once. Raises NotHereError when it cannot run here."""
    start = time.perf_counter()
    try:
        if engine.startswith("torch"):
            run, provider = _torch(engine, graph, threads, batch)
        elif graph == "reenact-1024":
            run, provider = _three_graphs(engine, threads, batch)
        else:
            run, provider = _session(engine, graph, threads, batch)
        run(noise(graph, batch))  # what is built at the first call belongs to opening
    except (RuntimeError, FidError, ImportError) as error:  # a GPU without memory left is a RuntimeError
        raise NotHereError(_one_line(error)) from error
    return Opened(run, provider, round(time.perf_counter() - start, 3))


@cache
def inputs(graph: str, count: int, seed: int = 0) -> Arrays:
    """Return inputs of a graph: pictures of the generator around the mean of W, identity codes like those of real
    people."""
    from fid.export.parity import parity_inputs

    arrays = parity_inputs(networks(), count, seed)
    return {name: arrays[name] for name in input_names(graph)}


def noise(graph: str, batch: int) -> Arrays:
    """Return inputs of the right form that need no network to make."""
    random = np.random.default_rng(0)
    crop = random.integers(0, 256, (batch, CROP_SIZE, CROP_SIZE, 3), np.uint8)
    codes = {"identity": IDENTITY_SIZE, "attributes": 512, "appearance": 512, "w_plus": 512, "w_plus_offset": 512}
    arrays = {name: 0.1 * random.standard_normal((batch, size), np.float32) for name, size in codes.items()}
    arrays |= {name: as_w_plus(arrays[name], graph) for name in ("w_plus", "w_plus_offset")}
    return {name: crop if name == "crop" else arrays[name] for name in input_names(graph)}


def as_w_plus(w: np.ndarray, graph: str) -> np.ndarray:
    """W+ float32 [batch, n_styles, 512] of w float32 [batch, 512], for the generator in a graph."""
    return np.repeat(w[:, None], 23 if graph == "synthesis-1024" else Bundle.load().n_styles, axis=1)


def input_names(graph: str) -> tuple[str, ...]:
    """Return the names of what a graph takes."""
    if graph.startswith("synthesis"):
        return ("w_plus",)
    described = Bundle.load().graph(graph.removesuffix("-1024"))
    offset = "w_plus_offset" if graph == "reenact-1024" else None  # as three graphs, for an identity without one
    return tuple(tensor.name for tensor in described.inputs if tensor.name != offset)


@cache
def networks() -> Any:
    """Return the networks of the shipped bundle in PyTorch (`export.read.Networks`)."""
    from fid.export.read import read_bundle

    return read_bundle(Bundle.load())


def torch_module(graph: str) -> Any:
    """Return the module that a graph was exported from, on the CPU (`export.graphs.GraphModule`)."""
    from fid.export.graphs import IdentityGraph, ReenactGraph, SynthesisGraph, bundle_graphs
    from fid.trainer.networks.mobilestylegan import Synthesis
    from fid.trainer.networks.sface import SFace

    if graph == "identity":
        return IdentityGraph(SFace.load())
    if graph == "synthesis-1024":
        return SynthesisGraph(Synthesis.load(1024), 1024)
    if graph == "reenact-1024":
        return ReenactGraph(replace(networks(), synthesis=Synthesis.load(1024), resolution=1024))
    return bundle_graphs(networks())[graph]


def graph_path(graph: str) -> Path:
    """Return the ONNX file of a graph."""
    return prepared(graph) if graph == "synthesis-1024" else Bundle.load().graph_path(graph)


def _torch(engine: str, graph: str, threads: int, batch: int) -> tuple[Callable[[Arrays], np.ndarray], str]:
    import torch

    torch.set_num_threads(threads)
    on_gpu = engine in ("torch-cuda", "torch-cudagraph")
    if on_gpu and not torch.cuda.is_available():
        raise NotHereError("no CUDA device")
    device = torch.device("cuda" if on_gpu else "cpu")
    module = torch_module(graph).to(device).eval().requires_grad_(False)
    call: Callable[..., Any] = module
    if engine == "torch-compile":
        import torch._inductor.config as inductor

        inductor.freezing = True  # its best documented setting for inference: weights become constants
        call = torch.compile(module, dynamic=False)
    if engine == "torch-cudagraph":
        call = torch.compile(module, dynamic=False, mode="reduce-overhead")
    names = [tensor.name for tensor in module.inputs]

    @torch.no_grad()
    def run(arrays: Arrays) -> np.ndarray:
        return call(*(torch.from_numpy(arrays[name]).to(device) for name in names)).cpu().numpy()

    return run, f"{engine.replace('-', ' ')} {torch.__version__}"


def _session(engine: str, graph: str, threads: int, batch: int) -> tuple[Callable[[Arrays], np.ndarray], str]:
    if engine not in SESSION_ENGINES:
        raise NotHereError("this version of fid has no such engine")
    session = open_session(graph_path(graph), engine=engine, threads=threads, static_batch=batch)
    if session.fallback is not None:
        raise NotHereError(_one_line(session.fallback))
    (output,) = session.outputs
    return (lambda arrays: session.run(**arrays)[output.name]), session.provider


def _three_graphs(engine: str, threads: int, batch: int) -> tuple[Callable[[Arrays], np.ndarray], str]:
    """Reenactment at 1024 px, which the runtime runs as three graphs."""
    steps = {name: open_engine(engine, name, threads, batch) for name in ("attributes", "mapper", "synthesis-1024")}

    def run(arrays: Arrays) -> np.ndarray:
        code = steps["attributes"].run({"crop": arrays["crop"]})
        person = {name: array for name, array in arrays.items() if name != "crop"}
        w = steps["mapper"].run({**person, "attributes": code})
        return steps["synthesis-1024"].run({"w_plus": as_w_plus(w, "synthesis-1024")})

    return run, steps["synthesis-1024"].provider


def first_output(engine: str, graph: str, threads: int) -> dict[str, Any]:
    """Measure in this process: seconds until the graph is open, and the peak of memory after some runs."""
    before = peak_ram_mb()
    opened = open_engine(engine, graph, threads)
    for _ in range(3):
        opened.run(noise(graph, 1))
    record = {"open_s": opened.open_s, "provider": opened.provider}
    record |= {"peak_ram_mb": peak_ram_mb(), "peak_ram_before_mb": before}
    if "torch" in sys.modules and engine in ("torch-cuda", "torch-cudagraph"):
        import torch

        record["peak_vram_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return record


def peak_ram_mb() -> float:
    """Return the most memory that was resident so far. Not getrusage's figure: that one begins with the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return round(int(line.split()[1]) / 1024, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def _one_line(error: object) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".")[:200]


if __name__ == "__main__":
    try:
        print(json.dumps(first_output(sys.argv[1], sys.argv[2], physical_cores())))
    except NotHereError as problem:
        print(json.dumps({"reason": str(problem)}))
