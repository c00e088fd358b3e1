"""What a pickle of weights may make: the few constructors, done by hand. Nothing else that a file names is called."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

MAX_DIMENSIONS = 16
ARRAYS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


class RefusedError(Exception):
    """The file is broken, or asks for more than data; the message is the end of a sentence: "it ..."."""


@dataclass(frozen=True)
class Name:
    """A class or function that the file names. It is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:100]


@dataclass
class Record:
    """An object of one of NVIDIA's classes: its attributes."""

    kind: str  # the name of its class
    state: dict[str, Any] = field(default_factory=dict)


@dataclass
class Dtype:
    """numpy.dtype, as far as arrays need it."""

    code: str
    order: str = "<"


@dataclass
class Array:
    """numpy.ndarray before its state has come."""

    value: np.ndarray | None = None


@dataclass
class Storage:
    """The numbers behind tensors."""

    data: memoryview
    dtype: torch.dtype

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return len(self.data) // self.dtype.itemsize


def finished(value: Any) -> Any:
    """Return a value as data: an array without its state is none."""
    return value.value if isinstance(value, Array) else value


def key_of(value: Any) -> Any:
    """Return what may be a key: nothing whose hash a file could choose. Raises RefusedError."""
    if isinstance(value, str) or (isinstance(value, int) and abs(value) < 1 << 31):
        return value
    raise RefusedError("has a dictionary whose keys are no names")


def all_ascii(data: memoryview) -> bool:
    """Whether bytes are plain text."""
    return not np.any(np.frombuffer(data, np.uint8) & 128)


def _encoded(text: Any, encoding: Any = "latin1") -> bytearray:
    """Bytes as Python 3 writes them for Python 2: text, one character for each of them."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RefusedError("holds bytes in an encoding that is not known")
    return bytearray(text, "latin-1")


def sizes_of(values: Any) -> tuple[int, ...]:
    """Return a shape or strides: a short tuple of numbers that are not negative. Raises ValueError."""
    if not isinstance(values, tuple) or len(values) > MAX_DIMENSIONS:
        raise ValueError("no shape")
    if not all(isinstance(value, int) and 0 <= value < 1 << 40 for value in values):
        raise ValueError("no shape")
    return values


def _dtype(code: Any, *_: Any) -> Dtype:
    code = str(code).lstrip("<>|=")
    if code not in ARRAYS:
        raise RefusedError(f"holds a NumPy array of type {code[:20]!r}")
    return Dtype(code)


def array_of(dtype: Any, shape: Any, raw: Any, fortran: bool = False) -> np.ndarray:
    """Return the array of a dtype and shape that `raw` bytes are, as a view. Raises TypeError, ValueError."""
    if not isinstance(dtype, Dtype) or dtype.order not in ("<", ">", "="):
        raise TypeError("not a type of NumPy")
    if isinstance(raw, str):  # numbers that happen to be text, such as zeros, in a file of Python 2
        raw = bytearray(raw, "ascii")
    shape = sizes_of(shape)
    kind = np.dtype(dtype.order + dtype.code)
    if len(raw) != math.prod(shape) * kind.itemsize:
        raise ValueError("an array of another size than its numbers")
    return np.frombuffer(raw, kind).reshape(shape, order="F" if fortran else "C")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    """A view of the storage, with no more numbers than it has."""
    if not isinstance(storage, Storage) or not isinstance(offset, int):
        raise TypeError("not a storage")
    size, stride = sizes_of(size), sizes_of(stride)
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else 0
    if offset < 0 or count > storage.count or last >= max(storage.count, 1):
        raise ValueError("a tensor larger than its storage")
    if not count:
        return torch.empty(size, dtype=storage.dtype)
    return torch.frombuffer(storage.data, dtype=storage.dtype).as_strided(size, stride, offset)


def _parameter(tensor: Any, *_: Any) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError("not a tensor")
    return tensor


def _persistent(meta: Any) -> Record:
    """An object of a persistent class: the source code that it carries stays unread."""
    state = meta["state"]
    if not isinstance(state, dict) or not isinstance(meta["class_name"], str):
        raise TypeError("not a persistent class")
    return Record(meta["class_name"], state)


def new_object(cls: Any, *arguments: Any) -> Any:
    """Return an empty object of one of the few classes that are known. Raises RefusedError."""
    builder = _CLASSES.get((cls.module, cls.name)) if isinstance(cls, Name) else None
    if builder is None or arguments:
        raise RefusedError(f"makes an object of {cls}, and files of weights need no such thing")
    return builder()


def _set(values: Any = ()) -> set[Any]:
    return set(map(key_of, values))


def _ordered(items: Any = ()) -> dict[Any, Any]:
    return {key_of(key): value for key, value in items}


_CLASSES: dict[tuple[str, str], Callable[[], Any]] = {
    ("collections", "OrderedDict"): dict,
    ("dnnlib.util", "EasyDict"): dict,
    ("dnnlib", "EasyDict"): dict,
    ("dnnlib.tflib.network", "Network"): lambda: Record("Network"),
}

BUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _ordered,
    ("builtins", "set"): _set,
    ("__builtin__", "set"): _set,
    ("_codecs", "encode"): _encoded,
    ("copyreg", "__newobj__"): new_object,
    ("copy_reg", "__newobj__"): new_object,
    ("copyreg", "_reconstructor"): lambda cls, *_: new_object(cls),
    ("copy_reg", "_reconstructor"): lambda cls, *_: new_object(cls),
    ("numpy", "dtype"): _dtype,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): lambda values: sizes_of(tuple(values)),
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    **{
        (f"{module}.multiarray", name): builder
        for module in ("numpy.core", "numpy._core")
        for name, builder in {
            "_reconstruct": lambda *_: Array(),
            "scalar": lambda dtype, raw: array_of(dtype, (), raw).item(),
        }.items()
    },
    **{
        (f"{module}.numeric", "_frombuffer"): lambda raw, dtype, shape, order: array_of(dtype, shape, raw, order == "F")
        for module in ("numpy.core", "numpy._core")
    },
}
