"""Weights in an HDF5 file, as Keras writes them, by their names. Nothing outside of the file is read."""

from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.errors import FidError

HDF5 = b"\x89HDF\r\n\x1a\n"  # how such a file begins
MAX_PARTS = 10_000  # datasets and groups of one file
PLAIN_FILTERS = (None, "gzip")  # others are programs, which the library would look for


def read_hdf5(path: Path) -> dict[str, np.ndarray]:
    """Return every array of floating-point numbers by its path in the file, without the `:0` of TensorFlow's names.

    Raises FidError when h5py is not installed, the file is broken, points to other files, or claims more numbers than
    it has bytes.
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise FidError(f"{path} is an HDF5 file of Keras, which h5py reads: `pip install h5py`.") from error
    found: dict[str, np.ndarray] = {}
    room = [path.stat().st_size, MAX_PARTS]

    def visit(group: Any, name: str, depth: int) -> None:
        for key in group:
            room[1] -= 1
            if room[1] < 0 or depth > 32:
                raise FidError(f"{path} is refused: it has more than {MAX_PARTS:,} parts.")
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise FidError(f"{path} is refused: {key[:60]!r} points elsewhere.")
            item, inner = group[key], f"{name}/{key}" if name else key
            if isinstance(item, h5py.Group):
                visit(item, inner, depth + 1)
            elif isinstance(item, h5py.Dataset) and item.dtype.kind == "f":
                if item.external or item.is_virtual or item.compression not in PLAIN_FILTERS:
                    raise FidError(f"{path} is refused: the numbers of {inner[:60]!r} are not in the file itself.")
                room[0] -= item.nbytes if item.compression is None else 0
                if room[0] < 0 or item.nbytes > 100 * path.stat().st_size:
                    raise FidError(f"{path} is refused: it claims more numbers than it has bytes.")
                found[inner.removesuffix(":0")] = np.asarray(item[()], np.float32)

    try:
        with h5py.File(path, "r") as file:
            visit(file, "", 0)
    except FidError:
        raise
    except Exception as error:  # the library raises errors of many kinds for a damaged file
        raise FidError(f"{path} is broken: HDF5 cannot read it ({type(error).__name__}).") from error
    return found
