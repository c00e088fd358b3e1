"""What long work remembers from frame to frame, as arrays that a file can hold.

A state is a frozen dataclass of arrays, numbers, None, further states and tuples of states. `flatten` writes it as
arrays by dotted name, `unflatten` reads it back as the same type.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

T = TypeVar("T")


def flatten(state: Any, name: str = "") -> dict[str, np.ndarray]:
    """Return the arrays of a state by dotted name, such as "tracker.filter.value"; what is None is left out."""
    if state is None:
        return {}
    if is_dataclass(state):
        parts = {field.name: getattr(state, field.name) for field in fields(state)}
    elif isinstance(state, tuple):
        parts = {str(number): part for number, part in enumerate(state)}
    else:
        return {name: np.asarray(state)}
    flat: dict[str, np.ndarray] = {}
    for own, part in parts.items():
        flat |= flatten(part, f"{name}.{own}" if name else own)
    return flat


def unflatten(kind: type[T], arrays: Mapping[str, np.ndarray], name: str = "") -> T:
    """Return the state of type `kind` whose arrays `flatten` gave; KeyError when one is missing."""
    hints = get_type_hints(kind)
    values = {}
    for field in fields(kind):  # type: ignore[arg-type] - a dataclass
        values[field.name] = _value(hints[field.name], arrays, f"{name}.{field.name}" if name else field.name)
    return kind(**values)


def _value(hint: Any, arrays: Mapping[str, np.ndarray], name: str) -> Any:
    if get_origin(hint) in (Union, types.UnionType):  # something or None
        if not _holds(arrays, name):
            return None
        (hint,) = (one for one in get_args(hint) if one is not type(None))
    if get_origin(hint) is tuple:
        of, parts = get_args(hint)[0], []
        while _holds(arrays, f"{name}.{len(parts)}"):
            parts.append(_value(of, arrays, f"{name}.{len(parts)}"))
        return tuple(parts)
    if is_dataclass(hint):
        return unflatten(hint, arrays, name)  # type: ignore[arg-type]
    return arrays[name] if hint is np.ndarray else hint(arrays[name].item())


def _holds(arrays: Mapping[str, np.ndarray], name: str) -> bool:
    return name in arrays or any(key.startswith(f"{name}.") for key in arrays)
