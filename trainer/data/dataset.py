"""Faces to train on: images of the generator with their w, drawn online or kept in shards (`fid-train dataset`).

The frozen networks' answers (identity code, landmarks) are part of a face, so that an epoch over a kept dataset costs
neither the generator nor them.
"""

import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...runtime.errors import FidError, InputError
from ...runtime.weights.records import decode
from ..loop import Preparing, StoppedError
from ..losses import border_colours, skin_colour
from ..networks.exported import BundleIdentity
from ..networks.facemesh import FaceMesh
from ..networks.fan import FAN
from ..networks.mobilestylegan import W_SIZE, Mapping, Synthesis
from ..networks.sface import SFace
from ..networks.vggface2 import JoinedEncoder, VGGFace2
from ..pixels import to_bytes, to_float
from ..weights.checkpoint import make_folder, write_json, writing
from ..weights.generator import Synthesis as UsersSynthesis
from ..weights.identity import IdentityEncoder
from .statistics import Lightness

SHARD = 256  # faces in one file
FIRST_SHARDS = 8  # that tell which w have rare faces
RARE = 32  # draws for one face of a rare kind
ALL = slice(None)
UNWATCHED = Preparing()
BATCH = 16  # pictures that a CPU makes at a time
FACE_BYTES = 4 * (W_SIZE + 128 + 2 * 400)  # of a face beside its picture, at most: w, code, landmarks


@dataclass(frozen=True)
class Faces:
    """A batch of generated faces."""

    w: Tensor  # [N, 512] float32
    image: Tensor  # [N, 3, S, S] uint8 RGB
    identity: Tensor  # [N, D] unit codes; D is 128 of SFace
    landmarks: Tensor  # [N, K, 2] float32, inner face, pixels of a 256 px crop

    def __len__(self) -> int:
        return len(self.w)

    def __getitem__(self, index: Tensor) -> "Faces":
        return Faces(*(getattr(self, field.name)[index] for field in fields(self)))

    def to(self, device: torch.device) -> "Faces":
        """Return the same faces on a device."""
        return Faces(*(getattr(self, field.name).to(device) for field in fields(self)))

    @property
    def crop(self) -> Tensor:
        """The images as networks take them: float [N, 3, S, S] in [-1, 1]."""
        return to_float(self.image)

    @property
    def skin(self) -> Tensor:
        """`losses.skin_colour` of every face, [N, 3]."""
        return torch.cat([skin_colour(to_float(image)) for image in self.image.split(64)])

    @property
    def border(self) -> Tensor:
        """`losses.border_colours` of every face, [N, D]."""
        return torch.cat([border_colours(to_float(image)) for image in self.image.split(64)])


def _lightness(known: Faces) -> Lightness:
    return Lightness(known.w, known.border, known.skin)


def joined(parts: list[Faces]) -> Faces:
    """Join several batches into one."""
    return Faces(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Faces)))


@dataclass(frozen=True)
class FrozenNetworks:
    """G (mapping and synthesis), E_id and E_lnd, none of which is ever trained here."""

    mapping: Mapping
    synthesis: Synthesis | UsersSynthesis
    identity: SFace | VGGFace2 | JoinedEncoder | BundleIdentity
    landmarks: FaceMesh | FAN
    w_mean: Tensor  # [512]
    w_std: Tensor  # [512], of untruncated w
    encoder: str | None = None  # which identity encoder it is; None: SFace

    @classmethod
    def load(
        cls,
        synthesis: Synthesis | UsersSynthesis,
        device: torch.device,
        fan: Path | None = None,
        mapping: Mapping | None = None,
        encoder: IdentityEncoder | None = None,
    ) -> "FrozenNetworks":
        """Read the fetched networks; `synthesis` is the generator to train through. All are frozen, on `device`.

        `fan` is the user's own file of FAN, the landmark network to use instead of the face mesh; `mapping` is the
        mapping network of the generator where it is not the fetched one; `encoder` the identity encoder in the place
        of SFace.
        """
        mapping = mapping or Mapping.load()
        samples = torch.cat([mapping(z) for z in torch.randn(20_000, W_SIZE, generator=_generator(0)).split(1000)])
        identity = SFace.load() if encoder is None else encoder.network
        landmarks = FaceMesh.load() if fan is None else FAN.load(fan)
        for network in (mapping, synthesis, identity, landmarks):
            network.to(device).eval().requires_grad_(False)
        synthesis.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - torch's stubs lack it
        mean, std = (x.to(device) for x in (samples.mean(0), samples.std(0)))
        return cls(mapping, synthesis, identity, landmarks, mean, std, None if encoder is None else encoder.name)

    def inner_face(self, crop: Tensor) -> Tensor:
        """Return landmarks [N, K, 2] off the jaw line (eyes, eyebrows, nose, lips), pixels of a 256 px crop."""
        return self.landmarks(crop)[:, self.landmarks.inner_face, :2]

    @torch.no_grad()
    def draw(
        self,
        n: int,
        psi: float,
        generator: torch.Generator,
        batch: int = 0,
        rows: slice = ALL,
        preparing: Preparing = UNWATCHED,
    ) -> Faces:
        """Draw n faces truncated by psi and make those of `rows`."""
        return self.make(self.draw_w(n, psi, generator, rows), batch, preparing)

    @torch.no_grad()
    def draw_w(self, n: int, psi: float, generator: torch.Generator, rows: slice = ALL) -> Tensor:
        """Draw n w truncated by psi and returns those of `rows`, [N, 512].

        The random numbers come from a CPU generator, whatever the device.
        """
        z = torch.randn(n, W_SIZE, generator=generator)[rows].to(self.w_mean.device)
        return self.w_mean + psi * (self.mapping(z) - self.w_mean)

    @torch.no_grad()
    def make(self, w: Tensor, batch: int = 0, preparing: Preparing = UNWATCHED) -> Faces:
        """Return the faces of w [N, 512], `batch` at a time; 0: as many as the device likes."""
        parts = []
        for code in preparing("drawing faces", w.split(batch or (64 if w.is_cuda else BATCH))):
            parts.append(self.seen(to_bytes(self.synthesis(code)), code))
        return joined(parts)

    def seen(self, image: Tensor, w: Tensor) -> Faces:
        """Return images [N, 3, S, S] uint8 RGB with what the frozen networks say about them."""
        crop = to_float(image)
        return Faces(w, image, self.identity(crop), self.inner_face(crop))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Shards:
    """What the shards of a dataset are made from: each is a function of this and of its number."""

    folder: Path
    n: int  # faces
    psi: float
    seed: int
    rare: float  # share of shards, the last ones, with dark skin

    @property
    def count(self) -> int:
        """Return how many shards there are."""
        return -(-self.n // SHARD)

    @property
    def plain(self) -> int:
        """Return how many of them, the first ones, are drawn as they come."""
        return self.count - round(self.rare * self.count)

    def path(self, index: int) -> Path:
        """Return the file of a shard."""
        return self.folder / f"faces_{index:05d}.npz"

    def missing(self) -> list[int]:
        """Return the numbers of the shards that are not there yet."""
        return [index for index in range(self.count) if not self.path(index).exists()]

    def begin(self, generator: str, resolution: int, identity_encoder: str | None = None) -> None:
        """Make the folder and write dataset.json. Raises InputError where the folder's shards were made otherwise."""
        record: dict[str, Any] = {"psi": self.psi, "seed": self.seed, "rare": self.rare, "generator": generator}
        record["resolution"] = resolution
        if identity_encoder is not None:
            record["identity_encoder"] = identity_encoder
        before = made_with(self.folder) or record
        if before != record:
            names = {**record, **before}
            name = next(name for name in names if before.get(name) != record.get(name))
            raise InputError(
                f"the faces in {self.folder} were made with {name} {before.get(name)}, not {record.get(name)}: "
                "name another folder."
            )
        make_folder(self.folder)
        write_json(self.folder / "dataset.json", record)

    def write(self, index: int, frozen: FrozenNetworks, preparing: Preparing = UNWATCHED) -> None:
        """Write one shard. Those of rare faces need the first `FIRST_SHARDS`."""
        random, size = _generator(self.seed * 1_000_003 + index), min(SHARD, self.n - index * SHARD)
        w = frozen.draw_w(size if index < self.plain else RARE * size, self.psi, random)
        if index >= self.plain:
            w = w[_lightness_of(self.folder)(w).argsort()[:size]]
        faces = frozen.make(w, preparing=preparing)
        with writing(self.path(index)) as partial, partial.open("wb") as file:
            np.savez(file, **{field.name: getattr(faces, field.name).cpu().numpy() for field in fields(faces)})


@lru_cache(1)
def _lightness_of(folder: Path) -> Lightness:
    return _lightness(read_dataset(folder, FIRST_SHARDS))


def write_dataset(
    folder: Path,
    n: int,
    frozen: FrozenNetworks,
    *,
    psi: float,
    seed: int,
    stop: Callable[[], bool],
    log: Callable[[str], None],
    rare: float = 0.0,
    generator: str = "",
) -> None:
    """Write n faces in shards of 256; shards that are there are kept, so an interrupted run goes on where it was.

    `rare` is the share of shards, the last ones, with dark skin: the generator seldom draws it, and a mapper that has
    seldom seen it makes people lighter than they are. `generator` is the name of the one that makes them. Raises
    InputError where the folder's shards were made otherwise, FidError when one cannot be written.
    """
    shards, start, preparing = Shards(folder, n, psi, seed, rare), time.monotonic(), Preparing(log, stop)
    shards.begin(generator, frozen.synthesis.resolution, frozen.encoder)
    _lightness_of.cache_clear()
    for index in shards.missing():
        try:
            shards.write(index, frozen, preparing)
        except StoppedError:
            return
        log(f"shard {index + 1} of {shards.count}, {time.monotonic() - start:.0f} s")


def made_with(folder: Path) -> dict[str, Any]:
    """Return how the faces of a dataset folder were made; empty where it does not say. Raises FidError when what it
    says is damaged."""
    made = folder / "dataset.json"
    if not made.is_file():
        return {}
    return decode(made.read_bytes(), dict[str, Any], lambda why: FidError(f"{made} {why}; name another folder."))


def read_dataset(folder: Path, first: int | None = None) -> Faces:
    """Return all faces of a dataset folder, or those of its first shards. Raises InputError when there are none or a
    shard is broken."""
    paths = sorted(folder.glob("faces_*.npz"))[:first]
    if not paths:
        raise InputError(
            f"{folder} holds no faces_*.npz: make a dataset first with `fid-train dataset -n 8000 -o {folder}`."
        )
    try:
        counts = [len(_read_shard(path, "w")) for path in paths]
        return Faces(*(_read_field(paths, sum(counts), field.name) for field in fields(Faces)))
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{folder} holds a broken shard ({error}); delete it and run `fid-train dataset` again."
        ) from error


def _read_field(paths: list[Path], n: int, name: str) -> Tensor:
    """One value of all n faces, read into its place: a large dataset is in memory once."""
    first = _read_shard(paths[0], name)
    result, done = torch.empty(n, *first.shape[1:], dtype=first.dtype), 0
    for path in paths:
        part = _read_shard(path, name)
        result[done : done + len(part)] = part
        done += len(part)
    return result


def _read_shard(path: Path, name: str) -> Tensor:
    with path.open("rb") as file, np.load(file) as shard:  # np.load leaves a broken file open that it opened itself
        return torch.from_numpy(shard[name])


@torch.no_grad()
def read_photos(
    folder: Path, frozen: FrozenNetworks, log: Callable[[str], None], preparing: Preparing = UNWATCHED
) -> Faces:
    """Return the faces of a folder of photographs, aligned, as inputs to train on.

    Nobody knows their w: it is the mean, and only losses on images may use these faces. Photographs that cannot be read
    or show no face are named and left out. Raises InputError when none is left.
    """
    from ...runtime.composer import Composer
    from ...runtime.media.images import find_photos

    device, size, composer = frozen.w_mean.device, frozen.synthesis.resolution, Composer()
    paths = find_photos([folder])
    parts = []
    for path in preparing("reading photos", paths):
        try:
            crop = torch.from_numpy(composer.crop(path))
        except FidError as error:
            log(f"left out: {error}")
            continue
        image = crop.permute(2, 0, 1)[None].to(device)
        if size != image.shape[-1]:
            mode = "area" if size < image.shape[-1] else "bilinear"
            image = F.interpolate(image.float(), (size, size), mode=mode).round().to(torch.uint8)
        parts.append(frozen.seen(image, frozen.w_mean[None]))
    if not parts:
        raise InputError(f"{folder} holds no photograph with a face: name another with --photos.")
    log(f"{len(parts)} of {len(paths)} photographs in {folder} are used")
    return joined(parts)
