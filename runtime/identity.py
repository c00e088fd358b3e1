"""A person as a code: what the identity encoder says about one or several photos. It can be kept without any photo.

An identity file is a NumPy .npz with plain arrays only. It holds no picture, yet it is biometric: it lets a machine
recognise the person, and lets fid draw them.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .bundle import Bundle
from .errors import InputError
from .images import check_output, replacing

FORMAT = 1  # of the file; other numbers are refused
SUFFIX = ".npz"
MAX_BYTES = 1 << 20  # a real file has about 2 kB
UNIT_TOLERANCE = 1e-3  # how far from 1 the length of a code in a file may be


@dataclass(frozen=True)
class Identity:
    """One person. Codes of different identity encoders mean different things and are never mixed."""

    code: np.ndarray  # float32 [identity_size], unit length
    encoder: str  # which identity encoder made it, see `encoder_name`
    sources: int = 1  # how many photos were averaged; 0: nobody's photo, a sampled person
    w_offset: np.ndarray | None = None  # float32 [w_size], added to w; reserved for identities tuned to a person

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the identity file. Raises `InputError` for another ending than .npz or a missing folder."""
        path = Path(path)
        check_output(path, (SUFFIX,))
        arrays = {
            "format": np.array(FORMAT),
            "code": self.code,
            "encoder": np.array(self.encoder),
            "sources": np.array(self.sources),
        }
        if self.w_offset is not None:
            arrays["w_offset"] = self.w_offset
        with replacing(path) as temporary:
            np.savez(temporary, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Identity:
        """Read an identity file and check all of it. Raises `InputError` in one sentence; never runs code from it."""
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path} does not exist." if not path.exists() else f"{path} is not a file.")
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is not an identity file: it is larger than 1 MB.")
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                if sum(member.file_size for member in archive.zip.infolist()) > MAX_BYTES:
                    raise InputError(f"{path} is not an identity file: it unpacks to more than 1 MB.")
                arrays = {name: archive[name] for name in archive.files}
        except (OSError, ValueError, EOFError, TypeError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
            raise InputError(f"{path} is not an identity file: it is broken or of another kind.") from error
        return cls._checked(arrays, path)

    @classmethod
    def _checked(cls, arrays: dict[str, np.ndarray], path: Path) -> Identity:
        number = arrays.get("format")
        if number is None or number.shape != () or number.dtype.kind != "i" or not {"code", "encoder"} <= arrays.keys():
            raise InputError(f"{path} is not an identity file: it was not written by fid.")
        if number != FORMAT:
            raise InputError(f"{path} is an identity file of format {number}, and this fid reads format {FORMAT}.")
        code, offset = arrays["code"], arrays.get("w_offset")
        if code.ndim != 1 or code.dtype != np.float32 or not abs(float(np.linalg.norm(code)) - 1) < UNIT_TOLERANCE:
            raise InputError(f"{path} is a damaged identity file: its code is no unit vector.")
        if offset is not None and (offset.ndim != 1 or offset.dtype != np.float32 or not np.isfinite(offset).all()):
            raise InputError(f"{path} is a damaged identity file: its offset in W is no vector.")
        encoder, sources = arrays["encoder"], arrays.get("sources", np.array(1))
        if encoder.dtype.kind != "U" or encoder.shape != () or sources.dtype.kind != "i" or sources.shape != ():
            raise InputError(f"{path} is a damaged identity file: its description cannot be read.")
        return cls(code, str(encoder), int(sources), offset)


def encoder_name(bundle: Bundle) -> str:
    """The name of a bundle's identity encoder: the same name, the same codes."""
    graph = bundle.graph("identity")
    return {"identity": "sface"}.get(graph.prepared or "", f"sha256:{graph.sha256}")


def average(identities: Sequence[Identity]) -> Identity:
    """The mean of unit codes, brought back to unit length: several photos of one person make a steadier identity.

    Each identity counts as much as its photos. A single one is returned as it is. Raises `InputError` for codes of
    different encoders, and for ones that cancel out.
    """
    if len(identities) == 1:
        return identities[0]
    encoders = {identity.encoder for identity in identities}
    if len(encoders) != 1:
        raise InputError(f"identities of different encoders cannot be averaged: {' and '.join(sorted(encoders))}.")
    weights = np.array([max(identity.sources, 1) for identity in identities], np.float32)
    code = weights @ np.stack([identity.code for identity in identities]) / weights.sum()
    length = float(np.linalg.norm(code))
    if length < 1e-3:
        raise InputError("these identities cancel each other out; give photos of one person.")
    offsets = [identity.w_offset for identity in identities]
    known = [offset for offset in offsets if offset is not None]
    if known and len(known) != len(offsets):
        raise InputError("identities with and without an offset in W cannot be averaged.")
    offset = weights @ np.stack(known) / weights.sum() if known else None
    return Identity((code / length).astype(np.float32), encoders.pop(), int(sum(i.sources for i in identities)), offset)
