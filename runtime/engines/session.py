"""A session is one graph on one engine. All engines look the same from here on, and say truthfully what runs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import FidError
from ..tensor import Tensor

T = TypeVar("T")

KEPT = 4
"""Batch sizes that stay ready; the one not used for longest makes room."""

VIEWS = 2
"""Sets of steady inputs that are remembered: looking closer goes to and fro between a photo and its mirror image."""


class Session(Protocol):
    """One graph on one engine. `run` may be called from several threads."""

    @property
    def provider(self) -> str:
        """What the graph really runs on: engine, device and, when there is a choice, precision ("openvino CPU f32")."""
        ...

    @property
    def fallback(self) -> str | None:
        """One sentence when this is not what was asked for, or an installed GPU engine does not work; else None."""
        ...

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Name, shape and dtype of each input; "batch" stands for any size."""
        ...

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Name, shape and dtype of each output."""
        ...

    def run(self, **arrays: NDArray) -> dict[str, NDArray]:
        """Return outputs by name, for all inputs by name. The arrays belong to the caller.

        Raises ValueError when a name, a dtype or a shape does not fit.
        """
        ...


def check_inputs(inputs: tuple[Tensor, ...], arrays: dict[str, NDArray]) -> None:
    """ValueError in one sentence unless the arrays are exactly these inputs, with one batch size for all."""
    wanted = {tensor.name: tensor for tensor in inputs}
    if arrays.keys() != wanted.keys():
        raise ValueError(f"the graph takes {', '.join(wanted)}; it was given {', '.join(arrays) or 'nothing'}.")
    sizes: dict[str, int] = {}
    for name, tensor in wanted.items():
        array = arrays[name]
        if not isinstance(array, np.ndarray) or array.dtype.name != tensor.dtype:
            found = array.dtype.name if isinstance(array, np.ndarray) else type(array).__name__
            raise ValueError(f"{name} must be an array of {tensor.dtype}; it is {found}.")
        fits = array.ndim == len(tensor.shape) and all(
            size == sizes.setdefault(want, size) if isinstance(want, str) else size == want
            for size, want in zip(array.shape, tensor.shape, strict=True)
        )
        if not fits or array.size == 0:
            raise ValueError(f"{name} must have shape {_text(tensor.shape)}; it has {_text(array.shape)}.")


def checked(result: NDArray, graph: str, session: Session) -> NDArray:
    """Return what the graph gave: a code or w, float [...], or a picture uint8 [height, width, 3].

    Raises FidError when it holds values that are not finite, or, as a picture becomes whose values were not, is all
    black or all white.
    """
    if result.dtype.kind == "f":
        fault = "" if np.isfinite(result).all() else "values that are not finite numbers"
    else:
        seen = result[::16, ::16]  # every pixel would take longer than the codes' check by far
        fault = "" if seen.any() and (seen != 255).any() else "a picture without any content"
    if fault:
        raise FidError(
            f"the graph {graph} gave {fault} on {session.provider}; choose another engine (--engine), or export the "
            "bundle again if all give the same."
        )
    return result


def _text(shape: tuple[int | str, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def in_place_of(reason: str, provider: str) -> str | None:
    """Return the sentence of a session that runs because another one does not; None without a reason."""
    return f"{reason.rstrip('.')}; {provider} runs in its place." if reason else None


class Recent(Generic[T]):
    """What an engine builds for each batch size, kept for the sizes that were used last: values by batch size, made
    when first asked for. For one thread at a time."""

    def __init__(self, make: Callable[[int], T], drop: Callable[[T], object] = lambda value: None) -> None:
        """`make` builds the value for a batch size; `drop` is told of one that makes room, before another is built."""
        self._make, self._drop = make, drop
        self._ready: OrderedDict[int, T] = OrderedDict()

    def at(self, batch: int) -> T:
        """Return the value for a batch size."""
        if batch not in self._ready:
            if len(self._ready) >= KEPT:
                self._drop(self._ready.popitem(last=False)[1])
            self._ready[batch] = self._make(batch)
        self._ready.move_to_end(batch)
        return self._ready[batch]

    def __contains__(self, batch: int) -> bool:
        return batch in self._ready

    def __len__(self) -> int:
        return len(self._ready)


class Steady(Generic[T]):
    """What is made of inputs that stay the same over many runs, kept for the last `VIEWS` of them."""

    def __init__(self, names: Iterable[str], make: Callable[[dict[str, NDArray]], T]) -> None:
        """`make` is given the arrays of those names; what it returns is kept as it is."""
        self._names, self._make = tuple(names), make
        self._kept: list[tuple[dict[str, NDArray], T]] = []

    def of(self, arrays: dict[str, NDArray]) -> T:
        """Take the steady inputs out of `arrays`, and return what was made of them, now if they are new."""
        given = {name: arrays.pop(name) for name in self._names}
        for before, made in self._kept:
            if all(np.array_equal(before[name], array) for name, array in given.items()):
                return made
        made = self._make(given)
        self._kept = [({name: array.copy() for name, array in given.items()}, made), *self._kept][:VIEWS]
        return made
