"""The contract between export and runtime: a folder, or one .fid zip of it, with `bundle.json` and its graphs.

A bundle is data, never code: JSON, ONNX graphs and one raw weights file that the graphs share. Every file is named in
`bundle.json` with its SHA-256, lies in the folder itself, and is checked before anything reads it.
"""

from __future__ import annotations

import dataclasses
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import assets
from ..errors import FidError, InputError
from ..face.crop import CROP_SIZE, CROP_TEMPLATE
from ..tensor import Tensor
from .cache import cache_folder, locked, new_folder, plain_disk_errors, sha256

FORMAT = 2
"""The only `format` this version reads and writes. Since 2 the generator takes W+."""

"""The bundle that comes with fid."""

LIGHT = "synthesis-light"
"""A second, narrower generator of the same W that a bundle may hold, for live pictures on a CPU."""

REFINE = "refine"
"""One round of finding a person's offset in W+, for one photo at a time (`refine.py`), where the bundle has it."""

REFINE_WEIGHTS = "refine.bin"
"""What `refine` alone has of weights."""

PREPARED = ("identity",)
"""Graphs that may come from fetched files (`prepare.prepared`) in place of a file in the bundle."""

MAX_BYTES = 2 << 30
"""A .fid file that unpacks to more than this is refused."""


@dataclass(frozen=True)
class Half:
    """The form of a graph that is typed in FP16, for engines on a GPU. CPUs gain nothing from it."""

    file: str | None  # one ONNX file with its weights; None where the graph stays FP32 on a GPU too
    sha256: str | None
    reason: str | None = None  # why there is no file, in words
    raised: tuple[str, ...] = ()  # layers in it that compute in FP32 because FP16 spoiled the result
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
    half: Half | None = None


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
        """Read and verify a bundle: a folder, a .fid file, or None for the one that comes with fid.

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
        bundle = cls.from_json(_read_json((folder / "bundle.json").read_bytes(), folder), folder)
        bundle.verify()
        return bundle

    @classmethod
    def from_json(cls, record: Any, folder: Path) -> Bundle:
        """Build from the content of `bundle.json`. Raises FidError in one sentence when it is not a bundle of this
        format; reads no file."""
        if not isinstance(record, dict) or "format" not in record:
            raise FidError(f"{folder} is not a bundle: bundle.json has no format.")
        if record["format"] != FORMAT:
            raise FidError(
                f"the bundle {folder} has format {record['format']!r} and this fid reads format {FORMAT}; "
                "export it again with this version, or install the version of fid that made it."
            )
        try:
            bundle = cls(
                folder=folder,
                name=_typed(record, "name", str),
                version=_typed(record, "version", str),
                resolution=_typed(record, "resolution", int),
                graphs={str(name): _graph(graph) for name, graph in _typed(record, "graphs", dict).items()},
                weights=tuple(Weights(_typed(w, "file", str), _typed(w, "sha256", str)) for w in record["weights"]),
                precision=_typed(record, "precision", str),
                crop=Crop(_typed(record["crop"], "template", str), _typed(record["crop"], "size", int)),
                identity_size=_typed(record, "identity_size", int),
                attributes_size=_typed(record, "attributes_size", int),
                w_size=_typed(record, "w_size", int),
                n_styles=_typed(record, "n_styles", int),
                provenance=_typed(record, "provenance", dict),
                parity=_typed(record, "parity", dict),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FidError(f"the bundle {folder} is damaged: bundle.json lacks or misstates {error}.") from error
        for name, _ in bundle.files():
            _check_name(name, folder)
        for name, graph in bundle.graphs.items():
            if graph.file is None and graph.prepared not in PREPARED:
                raise FidError(f"the bundle {folder} is damaged: graph {name} has no file.")
        if bundle.crop != Crop():
            raise FidError(
                f"the bundle {folder} wants crops {bundle.crop.template} {bundle.crop.size}; "
                f"this fid makes {CROP_TEMPLATE} {CROP_SIZE}."
            )
        return bundle

    def to_json(self) -> dict[str, Any]:
        """The content of `bundle.json`, ready for `json.dump`."""
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
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("bundle.json", *(name for name, _ in self.files())):
                member = zipfile.ZipInfo(name)  # fixed date 1980-01-01
                member.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(member, (self.folder / name).read_bytes())
        return path

    def files(self) -> Iterator[tuple[str, str]]:
        """(name, SHA-256) of every file of the bundle besides bundle.json, each name once."""
        listed = {w.file: w.sha256 for w in self.weights}
        halves = [graph.half for graph in self.graphs.values() if graph.half is not None]
        listed |= {g.file: g.sha256 or "" for g in (*self.graphs.values(), *halves) if g.file is not None}
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
            allowed = {w.file for w in self.weights}
            for name, _ in self.files():
                if name not in allowed and (strange := external_files(self.folder / name) - allowed):
                    raise FidError(
                        f"the bundle {self.folder} is refused: {name} reads {sorted(strange)[0]!r}, "
                        "which bundle.json does not list as weights."
                    )

    @property
    def own_generator(self) -> bool:
        """Whether the generator is the user's, with a mapping network beside it, and not one of MobileStyleGAN's W."""
        return "mapping" in self.graphs

    @property
    def takes_appearance(self) -> bool:
        """Whether the mapper takes the attribute code of the identity photo beside its identity code."""
        return any(tensor.name == "appearance" for tensor in self.graph("mapper").inputs)

    def graph(self, name: str) -> Graph:
        """The description of a graph; FidError when the bundle has none of that name."""
        if name not in self.graphs:
            raise FidError(f"the bundle {self.folder} has no graph {name!r}; it has {', '.join(self.graphs)}.")
        return self.graphs[name]

    def graph_path(self, name: str) -> Path:
        """The ONNX file of a graph. One that the bundle does not hold is prepared from fetched files, which
        downloads them the first time."""
        graph = self.graph(name)
        if graph.file is not None:
            return self.folder / graph.file
        from .prepare import prepared  # here: a bundle that holds all its graphs needs nothing fetched

        assert graph.prepared is not None  # from_json saw to it
        return prepared(graph.prepared)

    def half_path(self, name: str) -> Path | None:
        """The ONNX file of a graph's FP16 form, for engines on a GPU; None when it has none."""
        half = self.graph(name).half
        return None if half is None or half.file is None else self.folder / half.file


def _typed(record: Any, key: str, kind: type) -> Any:
    value = record[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(repr(key))
    return value


def _tensor(record: Any) -> Tensor:
    span = record.get("range")
    colour = record.get("colour")
    return Tensor(
        name=_typed(record, "name", str),
        shape=tuple(d if isinstance(d, int) else str(d) for d in _typed(record, "shape", list)),
        dtype=_typed(record, "dtype", str),
        range=None if span is None else (span[0], span[1]),
        colour=None if colour is None else str(colour),
    )


def _graph(record: Any) -> Graph:
    file = None if record.get("file") is None else _typed(record, "file", str)
    return Graph(
        file=file,
        sha256=None if file is None else _typed(record, "sha256", str),
        inputs=tuple(map(_tensor, _typed(record, "inputs", list))),
        outputs=tuple(map(_tensor, _typed(record, "outputs", list))),
        prepared=record.get("prepared"),
        half=None if record.get("half") is None else _half(_typed(record, "half", dict)),
    )


def _half(record: Any) -> Half:
    file = None if record.get("file") is None else _typed(record, "file", str)
    return Half(
        file=file,
        sha256=None if file is None else _typed(record, "sha256", str),
        reason=None if record.get("reason") is None else _typed(record, "reason", str),
        raised=tuple(map(str, _typed(record, "raised", list))),
        bound=float(record["bound"]),
        gate=_typed(record, "gate", dict),
    )


def _read_json(content: bytes, folder: Path) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise FidError(f"the bundle {folder} is damaged: bundle.json is not JSON.") from error


def _check_name(name: str, folder: Path) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.(onnx|bin)", name):
        raise FidError(
            f"the bundle {folder} is refused: {name!r} is not the plain name of an .onnx or .bin file in its folder."
        )


def external_files(graph: Path) -> set[str]:
    """Names of the files that an ONNX graph takes tensors from."""
    import onnx  # here: takes 0.4 s, and the shipped bundle does without
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(graph, load_external_data=False)
    except DecodeError as error:
        raise FidError(f"the bundle {graph.parent} is damaged: {graph.name} is not an ONNX graph.") from error
    found: set[str] = set()

    def visit(node: onnx.NodeProto) -> None:
        for attribute in node.attribute:
            tensors([attribute.t, *attribute.tensors])
            sparse([attribute.sparse_tensor, *attribute.sparse_tensors])
            for part in [attribute.g, *attribute.graphs]:
                walk(part)

    def tensors(items: Any) -> None:
        for tensor in items:
            found.update(entry.value for entry in tensor.external_data if entry.key == "location")

    def sparse(items: Any) -> None:
        for item in items:
            tensors([item.values, item.indices])

    def walk(part: onnx.GraphProto) -> None:
        tensors(part.initializer)
        sparse(part.sparse_initializer)
        for node in part.node:
            visit(node)

    walk(model.graph)
    for function in model.functions:
        for node in function.node:
            visit(node)
    return found


def _unpacked(path: Path) -> Path:
    """Unpack a .fid file into the cache, once for the same content, and return the folder."""
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not a bundle: expected a folder with bundle.json, or a .fid file.")
    key = sha256(path)[:32]
    target = cache_folder("bundles", key)
    with locked(f"bundle-{key}"), plain_disk_errors("unpacking the bundle", target):
        if (target / "bundle.json").is_file():
            return target
        with zipfile.ZipFile(path) as archive, new_folder(target) as folder:
            members = {member.filename: member for member in archive.infolist()}
            try:
                if members["bundle.json"].file_size > 1 << 24:
                    raise FidError(f"the bundle {path} is refused: its bundle.json is larger than 16 MB.")
                content = archive.read("bundle.json")
                bundle = Bundle.from_json(_read_json(content, path), path)
                names = [name for name, _ in bundle.files()]
                if sum(members[name].file_size for name in names) > MAX_BYTES:
                    raise FidError(f"the bundle {path} is refused: it unpacks to more than {MAX_BYTES >> 30} GB.")
                for name in names:
                    with archive.open(name) as source, open(folder / name, "wb") as file:
                        while block := source.read(1 << 20):
                            file.write(block)
            except KeyError as error:
                raise FidError(f"the bundle {path} is damaged: it has no {error.args[0]!r} inside.") from error
            except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
                raise FidError(f"the bundle {path} is damaged: {error}.") from error
            (folder / "bundle.json").write_bytes(content)
    return target
