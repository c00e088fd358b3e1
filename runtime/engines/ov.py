"""Sessions on OpenVINO, on CPU, GPU or NPU: built for one batch size at a time: the faster build."""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FidError
from ..tensor import Tensor
from ..weights.cache import cache_folder
from .forms import (
    with_grouped_wavelets,
    with_matrices_apart,
    with_noise_apart,
    with_pixels_apart,
    without_steady,
)
from .int8 import products_of, scales_for, with_eight_bits
from .machine import has_vnni
from .session import Recent, Steady, check_inputs, in_place_of

if TYPE_CHECKING:
    import openvino


HIDDEN = ("openvino_telemetry", "openvino.tools.ovc")

_FIRST = threading.Lock()

MISSING = "OpenVINO is not installed: `pip install 'fid-face[openvino]'`."


class OpenVINOSession:
    """See `session.Session`. `precision`: of the arithmetic, "f32", "f16", "bf16", which needs a CPU that has it, or
    "int8": a generator's large products, and the rest in the best of the others. `reason`: why this engine runs in the
    place of another. `device`: "CPU", "GPU" or "NPU". `steady`: see `open.open_session`. FidError when OpenVINO sees no
    such device."""

    def __init__(
        self,
        path: Path | str,
        precision: str,
        threads: int,
        static_batch: int | None,
        reason: str = "",
        device: str = "CPU",
        steady: Collection[str] = (),
    ) -> None:
        self._core = _openvino().Core()
        self._core.set_property({"CACHE_DIR": str(cache_folder("openvino"))})
        self._reason, self._slower = reason, ""
        has_bf16 = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self._eight = precision == "int8" and has_vnni()
        if precision == "int8" and not self._eight:
            self._slower = "int8 was asked for and this CPU does not multiply it quicker, as far as it can be told."
        elif precision == "bf16" and not has_bf16:
            self._slower = "bf16 was asked for and this CPU does not have it."
        if precision in ("int8", "bf16"):
            precision = "bf16" if has_bf16 else "f32"
        self._device, self._device_name = device, ""
        self._options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        if device == "CPU":
            self._options["INFERENCE_NUM_THREADS"] = threads
        else:
            self._device_name = f" ({_name_of(self._core, device)})"
        self._path, self._steady = Path(path), tuple(steady)
        self._first: openvino.Model | None = self._read(self._path)  # until something is built from it
        self.inputs = tuple(_tensor(port) for port in self._first.inputs)
        self.outputs = tuple(_tensor(port) for port in self._first.outputs)
        self._built: Recent[_Built] = Recent(self._build)
        self._lock = threading.Lock()
        self.provider = f"openvino {device} {precision}{self._device_name}"
        self._built.at(static_batch or 1)  # a graph that cannot be built fails here, not on the first picture

    @property
    def fallback(self) -> str | None:
        """See `session.Session.fallback`."""
        return in_place_of(self._reason, self.provider) or self._slower or None

    def _read(self, path: Path) -> openvino.Model:
        """A graph in the form that is quicker here; it is not kept, because it holds its weights once more."""
        try:
            model = self._core.read_model(str(path))
        except Exception as error:  # the bindings raise plain RuntimeError and their own types
            raise FidError(f"OpenVINO cannot open {path.name}: {_last_line(error)}.") from error
        with_grouped_wavelets(model)
        with_pixels_apart(model)
        with_noise_apart(model)
        with_matrices_apart(model)
        return model

    def _build(self, batch: int) -> _Built:
        model, self._first = self._first or self._read(self._path), None
        shapes = {t.name: [batch if isinstance(d, str) else d for d in t.shape] for t in self.inputs}
        try:
            model.reshape(shapes)
            eight = self._with_eight_bits(model) if self._eight else 0
            parts = without_steady(model, self._steady) if self._steady else None
            compiled = [self._core.compile_model(part, self._device, self._options) for part in parts or (model,)]
        except Exception as error:
            raise FidError(f"OpenVINO cannot build the graph: {_last_line(error)}.") from error
        live = compiled[-1].get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.provider = f"openvino {self._device} {'int8 ' * bool(eight)}{live}{self._device_name}"
        return _Built(*(one.create_infer_request() for one in reversed(compiled)))

    def _with_eight_bits(self, model: openvino.Model) -> int:
        """Put the products of a generator in eight bits, in place; returns how many, 0 for another graph."""
        takes = {tensor.name for tensor in self.inputs}
        generator = self._path if takes == {"w_plus"} else self._path.with_name("synthesis.onnx")
        if takes != {"w_plus"} and not ("w_plus_offset" in takes and generator.is_file()):  # that of `reenact`
            return 0
        products = products_of(model)
        return with_eight_bits(model, products, scales_for(self._core, products, generator, self._read))

    def run(self, **arrays: NDArray) -> dict[str, NDArray]:
        """See `session.Session.run`. The first call with a new batch size builds the graph for it."""
        check_inputs(self.inputs, arrays)
        batch = next((len(arrays[t.name]) for t in self.inputs if t.shape and isinstance(t.shape[0], str)), 1)
        with self._lock:
            results = self._built.at(batch).infer({name: np.ascontiguousarray(a) for name, a in arrays.items()})
            return {tensor.name: results[i].copy() for i, tensor in enumerate(self.outputs)}


class _Built:
    """What runs for one batch size: the graph, or `first`, what of it hangs on steady inputs, and then the rest."""

    def __init__(self, request: openvino.InferRequest, first: openvino.InferRequest | None = None) -> None:
        self._request, self._steady = request, None
        if first is not None:
            names = [port.get_any_name() for port in first.model_inputs]
            self._steady = Steady(names, lambda given: [result.copy() for result in first.infer(given).values()])
        self._made: list[NDArray] = []  # what the rest holds of the steady inputs

    def infer(self, arrays: dict[str, NDArray]) -> Any:
        """Return the outputs, by number, for all inputs by name; the rest keeps what the steady ones have made."""
        if self._steady is not None:
            made = self._steady.of(arrays)
            if made is not self._made:
                kept = range(len(self._request.model_inputs) - len(made), len(self._request.model_inputs))
                for place, result in zip(kept, made, strict=True):
                    self._request.get_input_tensor(place).data[:] = result
                self._made = made
        return self._request.infer(arrays)


def _openvino() -> Any:
    """The package, imported without the event that its import sends to its maker: it has a stub of its own for when
    openvino_telemetry is not there. Nor are its tools for other frameworks' models, which take 50 ms: they come when
    somebody asks for them. One thread at a time: two that ask for their first NumPy type at once wait for each other
    for ever, one with Python's lock and the other with C++'s."""
    with _FIRST:
        hidden = [name for name in HIDDEN if "openvino" not in sys.modules and name not in sys.modules]
        for name in hidden:
            sys.modules[name] = None  # type: ignore[assignment]
        try:
            import openvino
        except ImportError as error:
            raise FidError(MISSING) from error
        finally:
            for name in hidden:
                sys.modules.pop(name, None)
        openvino.Type.f32.to_dtype()
        if not hasattr(openvino, "convert_model"):
            openvino.convert_model = _convert_model
        return openvino


def _convert_model(*arguments: Any, **options: Any) -> Any:
    """`openvino.convert_model`, for others in this process."""
    from openvino.tools.ovc import convert_model

    return convert_model(*arguments, **options)


def _name_of(core: Any, device: str) -> str:
    """The maker's name of a device. FidError when there is none."""
    seen = list(core.available_devices)
    if not any(name.split(".")[0] == device for name in seen):
        raise FidError(f"OpenVINO sees no {device} here; it sees {' and '.join(seen) or 'no device'}.")
    return str(core.get_property(device, "FULL_DEVICE_NAME")).strip()


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip().rstrip(".")[:300]


def _tensor(port: Any) -> Tensor:
    shape = tuple("batch" if size.is_dynamic else size.get_length() for size in port.get_partial_shape())
    return Tensor(port.get_any_name(), shape, port.get_element_type().to_dtype().name)
