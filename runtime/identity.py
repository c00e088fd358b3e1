"""A person as a code: what the identity encoder says about one or several photos. It can be kept without any photo.

An identity file is a NumPy .npz with plain arrays only. It holds no picture, yet it is biometric: it lets a machine
recognise the person, and lets fid draw them.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import InputError
from .files import replacing
from .media.images import check_output
from .weights.bundle import REFINE, REFINE_WEIGHTS, Bundle
from .weights.graph import read_graph

FORMAT = 2  # of the file; 1 had an offset in W in place of W+ and is still read; other numbers are refused
SUFFIX = ".npz"
MAX_BYTES = 1 << 20  # a real file has about 3 kB, 40 kB with an offset
UNIT_TOLERANCE = 1e-3  # how far from 1 the length of a code in a file may be


@dataclass(frozen=True)
class Identity:
    """One person. Codes of different identity encoders mean different things and are never mixed."""

    code: np.ndarray  # float32 [identity_size], unit length
    encoder: str  # which identity encoder made it, see `encoder_name`
    sources: int = 1  # how many photos were averaged; 0: nobody's photo, a sampled person
    w_plus_offset: np.ndarray | None = None  # float32 [n_styles, w_size], added to w; [1, w_size]: to every style alike
    mapper: str | None = None  # whose w it belongs to: `mapper_name`, or `refiner_name`; None without an offset
    appearance: np.ndarray | None = None  # float32 [attributes_size], the attribute code of the photo: skin, hair, age
    attributes: str | None = None  # which attribute encoder made it, see `attributes_name`; None without appearance

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the identity file. Raises `InputError` for another ending than .npz or a missing folder."""
        path = Path(path)
        check_output(path, (SUFFIX,))
        data = self.to_bytes()
        with replacing(path) as temporary:
            temporary.touch(mode=0o600)  # who somebody is is the user's own
            temporary.write_bytes(data)

    def to_bytes(self) -> bytes:
        """Return the identity file's bytes."""
        arrays = {
            "format": np.array(FORMAT),
            "code": self.code,
            "encoder": np.array(self.encoder),
            "sources": np.array(self.sources),
        }
        if self.w_plus_offset is not None:
            arrays |= {"w_plus_offset": self.w_plus_offset, "mapper": np.array(self.mapper or "")}
        if self.appearance is not None:
            arrays |= {"appearance": self.appearance, "attributes": np.array(self.attributes or "")}
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **arrays)
        return file.getvalue()

    @property
    def fingerprint(self) -> str:
        """The same text for the same person, and for nobody else."""
        more = [b"" if part is None else part.tobytes() for part in (self.w_plus_offset, self.appearance)]
        return hashlib.sha256(b"".join([self.code.tobytes(), *more])).hexdigest()[:32]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Identity:
        """Read an identity file and check all of it. Raises `InputError` in one sentence; never runs code from it."""
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path} does not exist." if not path.exists() else f"{path} is not a file.")
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
        return cls.from_bytes(data, str(path))

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Identity:
        """Read the bytes of an identity file; `name` is what a message calls it."""
        if len(data) > MAX_BYTES:
            raise InputError(f"{name} is not an identity file: it is larger than 1 MB.")
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                if sum(member.file_size for member in archive.zip.infolist()) > MAX_BYTES:
                    raise InputError(f"{name} is not an identity file: it unpacks to more than 1 MB.")
                arrays = {key: archive[key] for key in archive.files}
        except InputError:
            raise
        except Exception as error:  # zipfile, zlib and the headers' literals fail in a dozen ways
            raise InputError(f"{name} is not an identity file: it is broken or of another kind.") from error
        return cls._checked(arrays, name)

    @classmethod
    def _checked(cls, arrays: dict[str, np.ndarray], name: str) -> Identity:
        number = arrays.get("format")
        if number is None or number.shape != () or number.dtype.kind != "i" or not {"code", "encoder"} <= arrays.keys():
            raise InputError(f"{name} is not an identity file: it was not written by fid.")
        if not 1 <= number <= FORMAT:
            raise InputError(f"{name} is an identity file of format {number}; this fid reads 1 to {FORMAT}.")
        code, offset, appearance = arrays["code"], arrays.get("w_plus_offset"), arrays.get("appearance")
        if number == 1 and (in_w := arrays.get("w_offset")) is not None:
            offset = in_w[None]
        if code.ndim != 1 or code.dtype != np.float32 or not abs(float(np.linalg.norm(code)) - 1) < UNIT_TOLERANCE:
            raise InputError(f"{name} is a damaged identity file: its code is no unit vector.")
        for what, array, axes in (("offset in W+", offset, 2), ("appearance", appearance, 1)):
            if array is not None and (array.ndim != axes or array.dtype != np.float32 or not np.isfinite(array).all()):
                raise InputError(f"{name} is a damaged identity file: its {what} is no array of {axes}-D numbers.")
        encoder, mapper, attributes = (arrays.get(key, np.array("")) for key in ("encoder", "mapper", "attributes"))
        sources = arrays.get("sources", np.array(1))
        kinds = [(array.dtype.kind, array.shape) for array in (encoder, mapper, attributes, sources)]
        if kinds != [("U", ()), ("U", ()), ("U", ()), ("i", ())]:
            raise InputError(f"{name} is a damaged identity file: its description cannot be read.")
        return cls(
            code,
            str(encoder),
            int(sources),
            offset,
            None if offset is None else str(mapper),
            appearance,
            None if appearance is None else str(attributes),
        )


def encoder_name(bundle: Bundle) -> str:
    """Return the name of a bundle's identity encoder: the same name, the same codes."""
    graph = bundle.graph("identity")
    return {"identity": "sface"}.get(graph.prepared or "", f"sha256:{graph.sha256}")


def attributes_name(bundle: Bundle) -> str:
    """Return the name of a bundle's attribute encoder: the same name, the same codes."""
    weights = (weights.sha256 for weights in bundle.weights if weights.file != REFINE_WEIGHTS)
    parts = [bundle.graph("attributes").sha256 or "", *weights]
    return f"sha256:{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:32]}"


def refiner_name(bundle: Bundle) -> str:
    """Return the name of all that makes an offset while it is found: the offset is of use with the very same bundle."""
    parts = [weights.sha256 for weights in bundle.weights]
    parts += [graph.sha256 or "" for name, graph in bundle.graphs.items() if name in ("mapper", REFINE)]
    return f"sha256:{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:32]}"


def mapper_name(bundle: Bundle) -> str:
    """Return the name of a bundle's mapper: an offset in W+ is of use with the mapper that it was made for, and no
    other."""
    from onnx import numpy_helper  # here: only identities with an offset need it

    model = read_graph(bundle.graph_path("mapper"))
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    own = {name.removeprefix("mapper."): tensor for name, tensor in tensors.items() if name.startswith("mapper.")}
    return fingerprint(own or tensors)


def fingerprint(tensors: Mapping[str, np.ndarray]) -> str:
    """Return SHA-256 over the names and numbers of a network's weights, rounded to FP16: a checkpoint and its bundle
    agree."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        if tensors[name].dtype.kind == "f":
            with np.errstate(over="ignore"):
                digest.update(name.encode() + b"\0" + tensors[name].astype("<f2").tobytes())
    return f"sha256:{digest.hexdigest()[:32]}"


def average(identities: Sequence[Identity]) -> Identity:
    """Return the mean of unit codes, brought back to unit length: several photos of one person make a steadier
    identity.

    Each identity counts as much as its photos. A single one is returned as it is. Raises `InputError` for codes of
    different encoders, for offsets in W+ of different mappers or of some identities only, for appearances of different
    attribute encoders or of some identities only, and for codes that cancel out.
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
    offsets = [identity.w_plus_offset for identity in identities]
    known = [offset for offset in offsets if offset is not None]
    if known and len(known) != len(offsets):
        raise InputError("personalised identities cannot be averaged with others; personalise all photos together.")
    mappers = {identity.mapper for identity in identities}
    if len(mappers) != 1:
        raise InputError(
            "identities that were personalised for different bundles, or some of them only, cannot be averaged."
        )
    offset = None
    if known:
        offset = np.tensordot(weights / weights.sum(), np.stack(np.broadcast_arrays(*known)), 1)
    if len({identity.attributes for identity in identities}) != 1:
        raise InputError("identities with appearances of different bundles cannot be averaged; use photos.")
    looks = [identity.appearance for identity in identities if identity.appearance is not None]
    appearance = (weights @ np.stack(looks) / weights.sum()).astype(np.float32) if looks else None
    sources = int(sum(identity.sources for identity in identities))
    unit = (code / length).astype(np.float32)
    return Identity(unit, encoders.pop(), sources, offset, mappers.pop(), appearance, identities[0].attributes)
