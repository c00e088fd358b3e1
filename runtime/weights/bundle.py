"""The contract between export and runtime: a folder, or one .fid zip of it, with `bundle.json` and its graphs.

A bundle is data, never code: JSON, ONNX graphs and one raw weights file that the graphs share. Every file is named in
`bundle.json` with its SHA-256, lies in the folder itself, and is checked before anything reads it.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import lzma
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import assets
from ..errors import FidError, InputError
from ..face.crop import CROP_SIZE, CROP_TEMPLATE
from ..files import new_file
from ..tensor import Tensor
from .cache import cache_folder, locked, new_folder, plain_disk_errors, sha256
from .graph import check_contract, external_files, read_graph
from .records import convert, decode

FORMAT = 2
"""The only `format` this version reads and writes. Since 2 the generator takes W+."""

"""The bundle that comes with fid."""

LIGHT = "synthesis-light"
"""A second, narrower generator of the same W that a bundle may hold, for live pictures on a CPU."""

CONTROLS = "controls"
"""A graph that scales how far an attribute code's pose and expression go from a frontal, neutral head; optional."""

REFINE = "refine"
"""One round of finding a person's offset in W+, for one photo at a time (`refine.py`), where the bundle has it."""

REFINE_WEIGHTS = "refine.bin"
"""What `refine` alone has of weights."""

PREPARED = ("identity",)
"""Graphs that may come from fetched files (`prepare.prepared`) in place of a file in the bundle."""

MAX_BYTES = 2 << 30
"""A .fid file that unpacks to more than this is refused."""

BROKEN_ZIP = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, ValueError, NotImplementedError, RuntimeError),  # truncated, no text, an unknown or a secret form
)
"""What Python raises for a damaged archive."""

MAX_RESOLUTION = 2048
"""px; the largest published generators of faces make 1024."""

NEEDED: Mapping[str, tuple[set[str], tuple[str, ...]]] = {
    "identity": ({"crop"}, ("identity",)),
    "attributes": ({"crop"}, ("attributes",)),
    "mapper": ({"identity", "attributes"}, ("w", "w_plus")),
    "synthesis": ({"w_plus"}, ("image",)),
}
"""Graphs that every bundle has, what each takes and which one output it gives; a mapper may take the appearance as
well, and answers in W or in W+."""


@dataclass(frozen=True)
class FP16Graph:
    """The form of a graph that is typed in FP16, for engines on a GPU. CPUs gain nothing from it."""

    file: str | None  # one ONNX file with its weights; None where the graph stays FP32 on a GPU too
    sha256: str | None
    reason: str | None = None  # why there is no file, in words
    kept_fp32: tuple[str, ...] = ()  # layers in it that compute in FP32 because FP16 spoiled the result
    bound: float = 0.0  # no FP16 number in it can be larger, whatever the input
    gate: Mapping[str, Any] = field(default_factory=dict)  # how it differs from FP32, and what was allowed


@dataclass(frozen=True)
class Graph:
    """One ONNX graph: a file of the bundle, or the name of one that is prepared from fetched files."""

    file: str | None
    sha256: str | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    prepared: str | None = None
    fp16_graph: FP16Graph | None = None


@dataclass(frozen=True)
class Weights:
    """One raw file with the large tensors of all graphs (ONNX external data)."""

    file: str
    sha256: str


@dataclass(frozen=True)
class Crop:
    """The aligned crop that the graphs expect."""

    template: str = CROP_TEMPLATE
    size: int = CROP_SIZE  # px, side


@dataclass(frozen=True)
class Bundle:
    """`bundle.json`, and the folder that it was read from."""

    folder: Path
    name: str
    version: str
    resolution: int  # px, side of the composed picture
    graphs: Mapping[str, Graph]
    weights: tuple[Weights, ...] = ()
    precision: str = "fp32"
    crop: Crop = Crop()
    identity_size: int = 128
    attributes_size: int = 512
    w_size: int = 512
    n_styles: int = 17  # of W+: each style of the generator takes a w of its own
    provenance: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @classmethod
    def load(cls, path: Path | str | None = None) -> Bundle:
        """Read and verify a bundle: a folder, a .fid file, or None for the one that comes with fid, whose files are as
        much a part of the installation as this one and are not hashed at every start.

        Raises InputError when there is no bundle at `path`, FidError when its version is unknown, a name leaves the
        folder, a file is missing or does not match its SHA-256, or a graph reads a file that the bundle does not list.
        """
        folder = assets.BUNDLE if path is None else Path(path)
        if folder.is_file():
            folder = _unpacked(folder)
        if not (folder / "bundle.json").is_file():
            if path is None:
                raise FidError("this installation of fid has no bundle in it; install fid again.")
            raise InputError(f"there is no bundle at {path}: expected a folder with bundle.json, or a .fid file.")
        bundle = cls.from_json((folder / "bundle.json").read_bytes(), folder)
        if folder != assets.BUNDLE:
            bundle.verify()
        return bundle

    @classmethod
    def from_json(cls, content: bytes | str, folder: Path) -> Bundle:
        """Return what `bundle.json` says. Raises FidError in one sentence when it is not a bundle of this format; reads
        no file."""

        def damaged(why: str) -> FidError:
            return FidError(f"the bundle {folder} is damaged: bundle.json {why}.")

        record = decode(content, dict[str, Any], damaged)
        if "format" not in record:
            raise FidError(f"{folder} is not a bundle: bundle.json has no format.")
        if record["format"] != FORMAT:
            raise FidError(
                f"the bundle {folder} has format {str(record['format'])[:40]!r} and this fid reads format {FORMAT}; "
                "export it again with this version, or install the version of fid that made it."
            )
        if missing := [name for name in cls.__dataclass_fields__ if name not in record and name != "folder"]:
            raise damaged(f"lacks {missing[0]!r}")
        bundle = convert({**record, "folder": folder}, cls, damaged)
        for name, _ in bundle.files():
            _check_name(name, folder)
        for name, graph in bundle.graphs.items():
            if graph.file is None and graph.prepared not in PREPARED:
                raise FidError(f"the bundle {folder} is damaged: the graph {name[:40]} has no file.")
        if bundle.crop != Crop():
            raise FidError(
                f"the bundle {folder} wants crops {bundle.crop.template[:40]} {bundle.crop.size}; "
                f"this fid makes {CROP_TEMPLATE} {CROP_SIZE}."
            )
        bundle._check_sizes()
        return bundle

    def _check_sizes(self) -> None:
        """Check that all graphs that composing needs are listed, and agree on the sizes of pictures and codes."""
        side, crop = self.resolution, self.crop.size
        codes = self.identity_size, self.attributes_size, self.w_size, self.n_styles
        if not 16 <= side <= MAX_RESOLUTION or min(codes) < 1:
            raise FidError(f"the bundle {self.folder} is refused: fid composes 16 to {MAX_RESOLUTION} px, not {side}.")
        sizes: dict[str, tuple[tuple[int, ...], str]] = {
            "crop": ((crop, crop, 3), "uint8"),
            "identity": ((self.identity_size,), "float32"),
            "attributes": ((self.attributes_size,), "float32"),
            "appearance": ((self.attributes_size,), "float32"),
            "controlled": ((self.attributes_size,), "float32"),
            "pose": ((1,), "float32"),
            "expression": ((1,), "float32"),
            "w": ((self.w_size,), "float32"),
            "w_plus": ((self.n_styles, self.w_size), "float32"),
            "w_plus_offset": ((self.n_styles, self.w_size), "float32"),
            "image": ((side, side, 3), "uint8"),
        }
        for name, (takes, gives) in NEEDED.items():
            inputs = {tensor.name for tensor in self.graph(name).inputs}
            outputs = {tensor.name for tensor in self.graph(name).outputs}
            if inputs - {"appearance"} != takes or outputs not in ({output} for output in gives):
                raise FidError(
                    f"the bundle {self.folder} is damaged: the graph {name} has to take {' and '.join(sorted(takes))} "
                    f"and give {' or '.join(gives)}."
                )
        if self.maps_to_w_plus and REFINE in self.graphs:
            raise FidError(f"the bundle {self.folder} is damaged: {REFINE} begins in W, and its mapper answers in W+.")
        for name, graph in self.graphs.items():
            for tensor in (*graph.inputs, *graph.outputs):
                shape, dtype = sizes.get(tensor.name, (tensor.shape[1:], tensor.dtype))
                first = 1 if name == REFINE else "batch"
                batch = tensor.shape and (tensor.shape[0] == 1 if name == REFINE else isinstance(tensor.shape[0], str))
                if not batch or (tensor.shape[1:], tensor.dtype) != (shape, dtype):
                    raise FidError(
                        f"the bundle {self.folder} is damaged: {tensor.name[:40]!r} of the graph {name[:40]} is "
                        f"{tensor.dtype[:20]} {list(tensor.shape)}, and {dtype} {[first, *shape]} is what fits."
                    )

    def to_json(self) -> dict[str, Any]:
        """Return the content of `bundle.json`, ready for `json.dump`."""
        record = dataclasses.asdict(self)
        del record["folder"]
        return {"format": record.pop("format"), **record}

    def save(self) -> Path:
        """Write `bundle.json` into `self.folder`; returns its path. The graphs must be there already."""
        path = self.folder / "bundle.json"
        path.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        return path

    def pack(self, path: Path | str) -> Path:
        """Write the bundle as one .fid file and return its path; files that `bundle.json` does not name stay out.

        The same bundle always gives the same bytes.
        """
        path = Path(path)
        self.verify()
        with new_file(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("bundle.json", *(name for name, _ in self.files())):
                member = zipfile.ZipInfo(name)  # fixed date 1980-01-01
                member.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(member, (self.folder / name).read_bytes())
        return path

    def files(self) -> Iterator[tuple[str, str]]:
        """Yield (name, SHA-256) of every file of the bundle besides bundle.json, each name once."""
        listed = {w.file: w.sha256 for w in self.weights}
        typed = [graph.fp16_graph for graph in self.graphs.values() if graph.fp16_graph is not None]
        listed |= {g.file: g.sha256 or "" for g in (*self.graphs.values(), *typed) if g.file is not None}
        yield from listed.items()

    def verify(self) -> None:
        """Check every file against its SHA-256 and that graphs read no file but the listed weights; FidError if not."""
        shipped = self.folder == assets.BUNDLE
        for name, digest in self.files():
            path = self.folder / name
            if not path.is_file():
                raise FidError(f"the bundle {self.folder} is damaged: {name} is missing.")
            if not shipped and not path.resolve().is_relative_to(self.folder.resolve()):
                raise FidError(f"the bundle {self.folder} is refused: {name} is a link that leaves the folder.")
            if sha256(path) != digest:
                raise FidError(f"the bundle {self.folder} is damaged: {name} does not have the SHA-256 in bundle.json.")
        if not shipped:
            self._verify_graphs()

    def _verify_graphs(self) -> None:
        """Read every graph: that it takes tensors from nowhere else, and does what `bundle.json` says."""
        allowed = {w.file for w in self.weights}
        for graph in self.graphs.values():
            for file in (graph.file, None if graph.fp16_graph is None else graph.fp16_graph.file):
                if file is None:
                    continue
                model = read_graph(self.folder / file, weights=False)
                if strange := external_files(model) - allowed:
                    raise FidError(
                        f"the bundle {self.folder} is refused: {file} reads {sorted(strange)[0][:60]!r}, "
                        "which bundle.json does not list as weights."
                    )
                wrong = check_contract(read_graph(self.folder / file), graph.inputs, graph.outputs)
                if wrong is not None:
                    raise FidError(f"the bundle {self.folder} is refused: {file} {wrong}.")

    @property
    def own_generator(self) -> bool:
        """Whether the generator is the user's, with a mapping network beside it, and not one of MobileStyleGAN's W."""
        return "mapping" in self.graphs

    @property
    def takes_appearance(self) -> bool:
        """Whether the mapper takes the attribute code of the identity photo beside its identity code."""
        return any(tensor.name == "appearance" for tensor in self.graph("mapper").inputs)

    @property
    def maps_to_w_plus(self) -> bool:
        """Whether the mapper answers in W+, a w for each style of the generator, instead of W."""
        return [tensor.name for tensor in self.graph("mapper").outputs] == ["w_plus"]

    def graph(self, name: str) -> Graph:
        """Return the description of a graph; FidError when the bundle has none of that name."""
        if name not in self.graphs:
            raise FidError(f"the bundle {self.folder} has no graph {name!r}; it has {', '.join(self.graphs)}.")
        return self.graphs[name]

    def graph_path(self, name: str) -> Path:
        """Return the ONNX file of a graph. One that the bundle does not hold is prepared from fetched files, which
        downloads them the first time."""
        graph = self.graph(name)
        if graph.file is not None:
            return self.folder / graph.file
        from .prepare import prepared  # here: a bundle that holds all its graphs needs nothing fetched

        assert graph.prepared is not None  # from_json saw to it
        return prepared(graph.prepared)

    def fp16_graph_path(self, name: str) -> Path | None:
        """Return the ONNX file of a graph's FP16 form, for engines on a GPU; None when it has none."""
        typed = self.graph(name).fp16_graph
        return None if typed is None or typed.file is None else self.folder / typed.file


def _check_name(name: str, folder: Path) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.(onnx|bin)", name):
        raise FidError(
            f"the bundle {folder} is refused: {name!r} is not the plain name of an .onnx or .bin file in its folder."
        )


def _unpacked(path: Path) -> Path:
    """Unpack a .fid file into the cache, once for the same content, and return the folder."""
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not a bundle: expected a folder with bundle.json, or a .fid file.")
    key = sha256(path)[:32]
    target = cache_folder("bundles", key)
    with locked(f"bundle-{key}"), plain_disk_errors("unpacking the bundle", target):
        if (target / "bundle.json").is_file():
            return target
        try:
            with zipfile.ZipFile(path) as archive, new_folder(target) as folder:
                _unpack(archive, path, folder)
        except KeyError as error:
            raise FidError(f"the bundle {path} is damaged: it has no {error.args[0]!r} inside.") from error
        except (*BROKEN_ZIP, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:  # of a place before the file begins
                raise
            raise FidError(f"the bundle {path} is damaged: {str(error).rstrip('.')}.") from error
    return target


def _unpack(archive: zipfile.ZipFile, path: Path, folder: Path) -> None:
    """Write the files that `bundle.json` in an archive lists into an empty folder, and itself last."""
    members = {member.filename: member for member in archive.infolist()}
    if members["bundle.json"].file_size > 1 << 24:
        raise FidError(f"the bundle {path} is refused: its bundle.json is larger than 16 MB.")
    content = archive.read("bundle.json")
    names = [name for name, _ in Bundle.from_json(content, path).files()]
    if sum(members[name].file_size for name in names) > MAX_BYTES:
        raise FidError(f"the bundle {path} is refused: it unpacks to more than {MAX_BYTES >> 30} GB.")
    for name in names:
        with archive.open(name) as source, open(folder / name, "wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    (folder / "bundle.json").write_bytes(content)
