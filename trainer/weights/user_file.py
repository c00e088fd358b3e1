"""Files of weights that a user brings, opened as data: pickles, torch.save, safetensors, HDF5. Nothing in one is run.

Which kind a file is its first bytes tell; its name does not matter. What the content means is for others to say
(`from_stylegan`, `from_stylegan2`, `from_vggface2`).
"""

import argparse
import mmap
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...runtime.errors import FidError, InputError
from .hdf5 import HDF5, read_hdf5
from .pickled import RefusedError
from .unpickle import unpickle

MAX_BYTES = 8 << 30
TENSORFLOW_INDEX = 0xDB4775248B80FB57.to_bytes(8, "little")  # how the .index of a TensorFlow checkpoint ends
TORCH_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # how torch.save once began a file

Weights = dict[str, Tensor]


def read_file(path: Path, what: str) -> Any:
    """Return what a file holds: dictionaries, tuples, lists, numbers, strings, tensors, arrays, and `pickled.Record`s
    of the few classes that are known. Tensors may be views of the file: copy what you keep.

    `what` names in a sentence what is expected. Raises InputError when there is no such file or it is of no known kind,
    FidError when it is broken or holds more than data.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}: expected {what}.")
    size = path.stat().st_size
    if not 16 <= size <= MAX_BYTES:
        raise InputError(f"{path} has {size:,} bytes and so is none of what is expected: {what}.")
    with path.open("rb") as file:
        head = file.read(16)
        file.seek(-8, 2)
        tail = file.read()
    if head.startswith((b"PK", TORCH_LEGACY)):
        return _from_torch(path)
    if head.startswith(HDF5):
        return read_hdf5(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:  # first: the length may begin as a pickle does
        return _from_safetensors(path)
    if head[:1] == b"\x80":
        return _from_pickle(path)
    if tail == TENSORFLOW_INDEX or re.search(r"\.data-\d+-of-\d+$", path.name):
        raise InputError(f"{path} is part of a TensorFlow checkpoint, and fid reads the .h5 of Keras: expected {what}.")
    raise InputError(f"{path} is of no known kind: expected {what}.")


def check_size(values: Mapping[str, Tensor | np.ndarray], path: Path) -> None:
    """Raise FidError when a file claims more numbers than it has bytes: such a one repeats itself to fill memory."""
    if sum(value.nbytes for value in values.values()) > path.stat().st_size:
        raise FidError(f"{path} is refused: it claims more numbers than it has bytes.")


def named_tensors(content: Any, *places: str) -> Weights | None:
    """Return the tensors by name of a dictionary, or of the one that it holds under a name of `places`, one after the
    other; None when that is no dictionary of names. `module.` before all of them comes from several GPUs."""
    for name in places:
        if isinstance(content, dict):
            content = _inside(content, name)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        return None
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def _inside(content: dict[Any, Any], name: str) -> dict[Any, Any]:
    """What a dictionary holds under a name, as a dictionary of its own or with the name before a dot; else itself."""
    if isinstance(content.get(name), dict):
        return content[name]
    begin = f"{name}."
    found = {key.removeprefix(begin): value for key, value in content.items() if str(key).startswith(begin)}
    return found or content


def _from_torch(path: Path) -> Any:
    """A file of torch.save, read with `weights_only=True`; the options of a training (a Namespace) are plain data."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch.save compresses nothing
                if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                    raise FidError(f"{path} is refused: it claims more numbers than it has bytes.")
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, "cpu", weights_only=True)
    except FidError:
        raise
    except Exception as error:  # torch raises errors of many kinds for unsafe and for broken content
        raise FidError(
            f"{path} is refused: it is broken or holds more than tensors ({type(error).__name__})."
        ) from error


def _from_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise FidError(f"{path} is broken ({str(error).splitlines()[0]}).") from error


def _from_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        # private: what is written to the mapping stays out of the file
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    try:
        return unpickle(data)
    except RefusedError as refusal:
        raise FidError(f"{path} is refused: it {refusal}.") from refusal
