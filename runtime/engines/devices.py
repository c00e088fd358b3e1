"""Sessions of ONNX Runtime on other devices: providers that a build of it holds (CoreML, DirectML), and plug-ins.

A plug-in is a library of its own that is registered with ONNX Runtime, and then offers devices or none. What runs is
read back from the session: by the first of its providers, and by how many nodes of the graph that one took.
"""

from __future__ import annotations

import importlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FidError
from ..tensor import Tensor
from ..weights.cache import cache_folder
from .ort import describe_tensor, first_line, ort, session_options
from .session import check_inputs, in_place_of
from .table import DEVICE_ENGINES, ENGINES, Engine, engine_row, fits_platform, has_module


class DeviceSession:
    """See `session.Session`. `engine`: one of `table.DEVICE_ENGINES` that ONNX Runtime holds.

    `reason`: why it runs in the place of another engine. Raises FidError in one sentence when it is not installed,
    offers no device, or takes no part of the graph.
    """

    def __init__(self, path: Path | str, engine: str, threads: int, reason: str = "") -> None:
        ort.set_default_logger_severity(4)  # failures come as exceptions
        row = engine_row(engine)
        self._reason, self._static = reason, row.static
        options = session_options(threads)
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if row.static:
            options.add_free_dimension_override_by_name("batch", 1)
        providers, device = _choose(row, options)
        try:
            self._session = ort.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # the bindings raise a dozen unrelated types
            raise FidError(f"{row.title} cannot open {Path(path).name}: {first_line(error)}.") from error
        _check_live(self._session, row)
        name = f"ep {row.title.removesuffix(' plug-in')}" if engine.startswith("ep:") else row.title.split()[-1]
        self.provider = f"onnxruntime {name}{f' ({device})' if device else ''}"
        ports = (self._session.get_inputs(), self._session.get_outputs())
        self.inputs, self.outputs = (tuple(_any_batch(describe_tensor(port), row) for port in side) for side in ports)
        self._names = [tensor.name for tensor in self.outputs]

    @property
    def fallback(self) -> str | None:
        """See `session.Session.fallback`."""
        return in_place_of(self._reason, self.provider)

    def run(self, **arrays: NDArray) -> dict[str, NDArray]:
        """See `session.Session.run`. An engine of static shapes runs the pictures of a batch one by one."""
        check_inputs(self.inputs, arrays)
        if not self._static:
            return dict(zip(self._names, map(np.asarray, self._session.run(self._names, arrays)), strict=True))
        batch = next(len(array) for array in arrays.values())
        rows = [
            self._session.run(self._names, {name: array[i : i + 1] for name, array in arrays.items()})
            for i in range(batch)
        ]
        return {name: np.concatenate([np.asarray(row[k]) for row in rows]) for k, name in enumerate(self._names)}


def offered(engine: str) -> bool:
    """Return whether the build of ONNX Runtime, or the plug-in, of an engine is installed; a device may be missing."""
    row = engine_row(engine)
    built_in = bool(row.provider) and not engine.startswith("ep:")
    return has_module(engine) and (not built_in or row.provider in ort.get_available_providers())


def measurable() -> tuple[str, ...]:
    """Return the engines to measure where none is named: all but the devices that nothing here could open."""
    return tuple(name for name in ENGINES[1:] if name not in DEVICE_ENGINES or offered(name))


def _choose(row: Engine, options: Any) -> tuple[list[Any] | None, str]:
    """Set the options up for a provider; return what goes into `providers`, and the device's name where it is told."""
    if not fits_platform(row.name):
        raise FidError(f"{row.title} exists for {' and '.join(row.platforms)} only.")
    if not offered(row.name):
        raise FidError(f"{row.title} is not installed: `{row.install}`.")
    if row.name.startswith("ep:"):
        device = _plug_in_device(row)
        options.add_provider_for_devices([device], _settings(row, device))
        return None, f"{device.device.vendor} {device.device.metadata.get('Description', '')}".strip()
    if row.name == "directml":
        options.enable_mem_pattern = False  # DirectML refuses it
        return [row.provider], ""
    return [(row.provider, _settings(row, None))], ""


def _settings(row: Engine, device: Any) -> dict[str, str]:
    """The provider's own options."""
    if row.name == "coreml":
        folder = cache_folder("coreml")
        folder.mkdir(parents=True, exist_ok=True)
        return {
            "ModelFormat": "MLProgram",
            "MLComputeUnits": "ALL",
            "RequireStaticInputShapes": "1",
            "ModelCacheDirectory": str(folder),
        }
    if row.name == "ep:openvino":  # its option `precision` changes nothing: 1.8.1 computes in bfloat16 all the same
        path = cache_folder("openvino-plug-in.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({device.device.type.name: {"INFERENCE_PRECISION_HINT": "f32"}}))
        return {"load_config": str(path)}
    return {}


def _plug_in_device(row: Engine) -> Any:
    """The first device that a plug-in offers."""
    library = importlib.import_module(row.module)
    _register(row.name, row.title, str(library.get_library_path()))
    found = [device for device in ort.get_ep_devices() if device.ep_name == library.get_ep_name()]
    if not found:
        raise FidError(f"the {row.title} is installed and offers no device here.")
    return found[0]


@cache
def _register(name: str, title: str, library: str) -> None:
    """Register a plug-in with ONNX Runtime, once in a process."""
    if not hasattr(ort, "register_execution_provider_library"):
        raise FidError(f"ONNX Runtime {ort.__version__} has no plug-ins: `pip install --upgrade onnxruntime`.")
    try:
        ort.register_execution_provider_library(name, library)
    except Exception as error:
        reason = first_line(error).rpartition("with error: ")[2]
        raise FidError(f"the {title} does not load: {reason}.") from error


def _check_live(session: Any, row: Engine) -> None:
    """FidError unless the provider runs, and runs a part of the graph."""
    live = session.get_providers()[0]
    if live != row.provider:  # it falls back without an exception
        raise FidError(
            f"{row.title} did not start; ONNX Runtime would compute on {live.removesuffix('ExecutionProvider')}."
        )
    if hasattr(session, "get_provider_graph_assignment_info"):
        parts = session.get_provider_graph_assignment_info()
        if parts and not any(len(part.get_nodes()) for part in parts if part.ep_name == row.provider):
            raise FidError(f"{row.title} takes no part of this graph; the CPU would compute all of it.")


def _any_batch(tensor: Tensor, row: Engine) -> Tensor:
    """A tensor of a graph that was opened for a batch of 1, as the runtime sees it: of any batch."""
    shape = ("batch", *tensor.shape[1:]) if row.static else tensor.shape
    return Tensor(tensor.name, shape, tensor.dtype)
