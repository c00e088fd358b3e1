"""Networks of NVIDIA's TensorFlow releases, as the pickles hold them: variables [(name, array)], and networks under
`components`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.errors import FidError
from .pickled import Record, RefusedError

MAX_PARTS = 1000  # of a network


def variables_of(network: Record) -> dict[str, np.ndarray]:
    """Return the floating-point variables of a generator by name, those of its two components as `mapping/...` and
    `synthesis/...`. Raises RefusedError."""
    return dict(_variables(network))


def options_of(network: Record, path: Path) -> dict[str, Any]:
    """Return the options that a network was built with. Raises FidError when they are none."""
    options = network.state.get("static_kwargs") or {}
    if not isinstance(options, dict):
        raise FidError(f"{path} is refused: it has options that are no dictionary.")
    return options


def number(value: Any) -> float | None:
    """Return an option that is a positive number, or None for None. Raises RefusedError for anything else."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise RefusedError("has an option that is no number")
    return float(value)


def _variables(network: Record, prefix: str = "", depth: int = 1) -> Iterator[tuple[str, np.ndarray]]:
    variables, components = network.state.get("variables", []), network.state.get("components") or {}
    if not isinstance(variables, list) or not isinstance(components, dict) or len(variables) > MAX_PARTS:
        raise RefusedError("has a network without variables")
    for entry in variables:
        if not isinstance(entry, tuple) or len(entry) != 2 or not isinstance(entry[0], str):
            raise RefusedError("has a network without variables")
        name, value = entry
        if isinstance(value, float):  # NumPy's scalars come as such
            value = np.array(value, np.float32)
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            yield prefix + name, value
    for name in ("mapping", "synthesis"):
        component = components.get(name)
        if isinstance(component, Record) and depth:
            yield from _variables(component, f"{prefix}{name}/", depth - 1)
