"""After the bundle: TensorRT or TensorRT-RTX engines of its graphs, in the cache of this machine.

The builder itself is `fid.runtime.engines.tensorrt.build`, because a runtime whose driver or library changed has to
build again. An engine is native code, so it never goes into a bundle: whoever gets the bundle builds their own.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..runtime.engines.cuda import Gpu, gpu
from ..runtime.engines.open import open_tensorrt
from ..runtime.engines.tensorrt import cache as engine_cache
from ..runtime.engines.tensorrt.build import Batch, library
from ..runtime.engines.tensorrt.cache import Engine
from ..runtime.engines.tensorrt.session import engine_key, make
from ..runtime.errors import FidError
from ..runtime.weights.bundle import CONTROLS, LIGHT, REFINE, Bundle


@dataclass(frozen=True)
class Fact:
    """One engine that is in the cache now."""

    graph: str
    engine: Engine

    @property
    def checked(self) -> str:
        """The comparison with FP32 on the GPU, as text."""
        figures = (self.engine.checked or {}).items()
        words = [f"{name.removesuffix('_psnr_db')} {value:.1f} dB" for name, value in figures if name.endswith("_db")]
        words += [f"{name.replace('_', ' ')} {value:.6f}" for name, value in figures if not name.endswith("_db")]
        return ", ".join(words) or "at first use, on the GPU"


def build_engines(
    bundle: Bundle, engine: str, batch: Batch, report: Callable[[Fact], None] = lambda fact: None
) -> list[Fact]:
    """Build the engines of all graphs of a bundle for the batch sizes `batch`; what the cache has is not built again.

    engine: "tensorrt", which needs the GPU that it builds for, or "tensorrt-rtx", which builds without one for the
    compute capabilities `RTX_TARGETS`. On a GPU every engine is run and compared with FP32. `report` is called with
    each engine. Raises FidError in one sentence when the library or a GPU is missing, a graph cannot be built, or an
    engine falls short.
    """
    lib, here = library(engine), _gpu_for(engine)
    facts = []
    for name, path, reference in engine_graphs(bundle):
        key = engine_key(lib, path, batch, here)
        if here is not None:
            open_tensorrt(path, engine, batch, reference)
        found = engine_cache.obtain(key, path.stem, lambda watch, path=path, key=key: make(lib, path, key, watch))
        facts.append(Fact(name, found))
        report(facts[-1])
    return facts


def engine_graphs(bundle: Bundle) -> Iterator[tuple[str, Path, Path]]:
    """Yield name, graph to build and its FP32 form, for every graph of a bundle that is not for CPUs alone: typed in
    FP16 where the bundle has it so."""
    for name in (name for name in bundle.graphs if name not in (CONTROLS, LIGHT, REFINE)):
        path = bundle.graph_path(name)
        yield name, bundle.fp16_graph_path(name) or path, path


def _gpu_for(engine: str) -> Gpu | None:
    try:
        return gpu()
    except FidError:
        if engine == "tensorrt":
            raise
        return None  # built ahead of time, for machines that have one
