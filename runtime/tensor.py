"""Name, shape and dtype of what goes into a graph and what comes out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tensor:
    """One input or output of a graph."""

    name: str
    shape: tuple[int | str, ...]  # "batch" stands for any size
    dtype: str  # "uint8" or "float32"
    range: tuple[float, float] | None = None  # of the values, where it is fixed
    colour: str | None = None  # order of the last axis of a picture: "RGB"
