"""Faces to train on: images of the generator with their w, drawn online or kept in shards (`fid-train dataset`).

The frozen networks' answers (identity code, landmarks) are part of a face, so that an epoch over a kept dataset costs
neither the generator nor them.
"""

import json
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..runtime.errors import FidError, InputError
from .checkpoint import write_json, writing
from .losses import border_colours, skin_colour
from .networks_facemesh import FaceMesh
from .networks_fan import FAN
from .networks_mobilestylegan import W_SIZE, Mapping, Synthesis
from .networks_sface import SFace
from .networks_stylegan2 import Synthesis as StyleGAN2Synthesis

SHARD = 256  # faces in one file
FIRST_SHARDS = 8  # that tell which w have rare faces
RARE = 32  # draws for one face of a rare kind
ALL = slice(None)
CANDIDATES = 16  # drawn codes of real people, the nearest of which a face's code is led towards
REAL_CODES = Path(__file__).with_name("sface_real_codes.npz")


@dataclass(frozen=True)
class Faces:
    """A batch of generated faces."""

    w: Tensor  # [N, 512] float32
    image: Tensor  # [N, 3, S, S] uint8 RGB
    identity: Tensor  # [N, 128] unit codes
    landmarks: Tensor  # [N, K, 2] float32, inner face, pixels of a 256 px crop

    def __len__(self) -> int:
        return len(self.w)

    def __getitem__(self, index: Tensor) -> "Faces":
        return Faces(*(getattr(self, field.name)[index] for field in fields(self)))

    def to(self, device: torch.device) -> "Faces":
        """The same faces on a device."""
        return Faces(*(getattr(self, field.name).to(device) for field in fields(self)))

    @property
    def crop(self) -> Tensor:
        """The images as networks take them: float [N, 3, S, S] in [-1, 1]."""
        return self.image.float() / 127.5 - 1

    @property
    def skin(self) -> Tensor:
        """`losses.skin_colour` of every face, [N, 3]."""
        return torch.cat([skin_colour(image.float() / 127.5 - 1) for image in self.image.split(64)])

    @property
    def border(self) -> Tensor:
        """`losses.border_colours` of every face, [N, D]."""
        return torch.cat([border_colours(image.float() / 127.5 - 1) for image in self.image.split(64)])


def joined(parts: list[Faces]) -> Faces:
    """Several batches as one."""
    return Faces(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Faces)))


@dataclass(frozen=True)
class FrozenNetworks:
    """G (mapping and synthesis), E_id and E_lnd, none of which is ever trained here."""

    mapping: Mapping
    synthesis: Synthesis | StyleGAN2Synthesis
    identity: SFace
    landmarks: FaceMesh | FAN
    w_mean: Tensor  # [512]
    w_std: Tensor  # [512], of untruncated w

    @classmethod
    def load(
        cls,
        synthesis: Synthesis | StyleGAN2Synthesis,
        device: torch.device,
        fan: Path | None = None,
        mapping: Mapping | None = None,
    ) -> "FrozenNetworks":
        """Reads the fetched networks; `synthesis` is the generator to train through. All are frozen, on `device`.

        `fan` is the user's own file of FAN, the landmark network to use instead of the face mesh; `mapping` is the
        mapping network of the generator where it is not the fetched one.
        """
        mapping = mapping or Mapping.load()
        samples = torch.cat([mapping(z) for z in torch.randn(20_000, W_SIZE, generator=_generator(0)).split(1000)])
        identity, landmarks = SFace.load(), FaceMesh.load() if fan is None else FAN.load(fan)
        for network in (mapping, synthesis, identity, landmarks):
            network.to(device).eval().requires_grad_(False)
        synthesis.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - torch's stubs lack it
        return cls(mapping, synthesis, identity, landmarks, samples.mean(0).to(device), samples.std(0).to(device))

    def inner_face(self, crop: Tensor) -> Tensor:
        """Landmarks [N, K, 2] off the jaw line (eyes, eyebrows, nose, lips), pixels of a 256 px crop."""
        return self.landmarks(crop)[:, self.landmarks.inner_face, :2]

    @torch.no_grad()
    def draw(self, n: int, psi: float, generator: torch.Generator, batch: int = 0, rows: slice = ALL) -> Faces:
        """Draws n faces truncated by psi and makes those of `rows`."""
        return self.make(self.draw_w(n, psi, generator, rows), batch)

    @torch.no_grad()
    def draw_w(self, n: int, psi: float, generator: torch.Generator, rows: slice = ALL) -> Tensor:
        """Draws n w truncated by psi and returns those of `rows`, [N, 512].

        The random numbers come from a CPU generator, whatever the device.
        """
        z = torch.randn(n, W_SIZE, generator=generator)[rows].to(self.w_mean.device)
        return self.w_mean + psi * (self.mapping(z) - self.w_mean)

    @torch.no_grad()
    def make(self, w: Tensor, batch: int = 0) -> Faces:
        """The faces of w [N, 512], `batch` at a time; 0: as many as the device likes."""
        parts = []
        for code in w.split(batch or (64 if w.is_cuda else 16)):
            image = ((self.synthesis(code) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
            parts.append(self.seen(image, code))
        return joined(parts)

    def seen(self, image: Tensor, w: Tensor) -> Faces:
        """Images [N, 3, S, S] uint8 RGB with what the frozen networks say about them."""
        crop = image.float() / 127.5 - 1
        return Faces(w, image, self.identity(crop), self.inner_face(crop))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
    """Writes n faces in shards of 256; shards that are there are kept, so an interrupted run goes on where it was.

    `rare` is the share of shards, the last ones, with dark skin: the generator seldom draws it, and a mapper that has
    seldom seen it makes people lighter than they are. `generator` is the name of the one that makes them. Raises
    InputError where the folder's shards were made otherwise, FidError when one cannot be written.
    """
    record = {"psi": psi, "seed": seed, "rare": rare, "generator": generator, "resolution": frozen.synthesis.resolution}
    made = folder / "dataset.json"
    if made.is_file() and (before := json.loads(made.read_text())) != record:
        name = next(name for name in record if before.get(name) != record[name])
        raise InputError(
            f"the faces in {folder} were made with {name} {before.get(name)}, not {record[name]}: name another folder."
        )
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(made, record)
    count, start = -(-n // SHARD), time.monotonic()
    plain, lightness = count - round(rare * count), None
    for index in range(count):
        path = folder / f"faces_{index:05d}.npz"
        if path.exists():
            continue
        if stop():
            return
        random, size = _generator(seed * 1_000_003 + index), min(SHARD, n - index * SHARD)
        if index < plain:
            faces = frozen.draw(size, psi, random)
        else:
            lightness = lightness or Lightness(read_dataset(folder, FIRST_SHARDS))
            w = frozen.draw_w(RARE * size, psi, random)
            faces = frozen.make(w[lightness(w).argsort()[:size]])
        partial = path.with_name(f".{path.name}")
        try:
            with writing(path):
                with partial.open("wb") as file:
                    np.savez(file, **{field.name: getattr(faces, field.name).cpu().numpy() for field in fields(faces)})
                partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)
        log(f"shard {index + 1} of {count}, {time.monotonic() - start:.0f} s")


def read_dataset(folder: Path, first: int | None = None) -> Faces:
    """All faces of a dataset folder, or those of its first shards. Raises InputError when there are none or a shard is
    broken."""
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
def read_photos(folder: Path, frozen: FrozenNetworks, log: Callable[[str], None]) -> Faces:
    """The faces of a folder of photographs, aligned, as inputs to train on.

    Nobody knows their w: it is the mean, and only losses on images may use these faces. Photographs that cannot be read
    or show no face are named and left out. Raises InputError when none is left.
    """
    from ..runtime.composer import Composer
    from ..runtime.images import find_photos

    device, size, composer = frozen.w_mean.device, frozen.synthesis.resolution, Composer()
    paths = find_photos([folder])
    parts = []
    for path in paths:
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


class RealIdentities:
    """Identity codes like those of photographed people, from statistics of real SFace codes.

    Codes of generated faces fill a corner of code space; these do not. The statistics are a mean and a covariance; they
    hold no picture and nobody's code (NOTICE tells where they come from).
    """

    def __init__(self) -> None:
        with np.load(REAL_CODES) as data:
            self.mean = torch.from_numpy(data["mean"].astype(np.float32))
            covariance = torch.from_numpy(data["covariance"].astype(np.float64))
        values, vectors = torch.linalg.eigh(covariance)
        self.root = (vectors * values.clamp_min(0).sqrt()).float()

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n unit codes [n, 128]."""
        return F.normalize(self.mean + torch.randn(n, len(self.mean), generator=generator) @ self.root.T, dim=1)

    def towards(self, codes: Tensor, share: float, generator: torch.Generator, rows: slice, n: int) -> Tensor:
        """Unit codes [rows of n, 128], each led towards a drawn one by up to `share`: code + u * drawn, at length 1.

        Of `CANDIDATES` drawn ones it is the nearest: one that may well have the code's sex, age and looks, which the
        mapper is told beside it. Whatever a generated code says of a person, the mapper then cannot take it for
        certain, as it cannot of a photograph's.
        """
        drawn = self.draw(n * CANDIDATES, generator).unflatten(0, (n, CANDIDATES))[rows].to(codes.device)
        nearest = (drawn * codes[:, None]).sum(2).argmax(1)
        drawn = drawn[torch.arange(len(codes), device=codes.device), nearest]
        u = share * torch.rand(n, 1, generator=generator)[rows].to(codes.device)
        return F.normalize(codes + u * drawn, dim=1)


class Light:
    """What of a face's colour is the light of its picture: the part that the picture's border predicts.

    A ridge regression of `losses.skin_colour` on `losses.border_colours` of known faces; the rest is the person's tone.
    So a person put into another picture keeps their skin under that picture's light:
    colour = tone(identity image) + light(attribute image).
    """

    def __init__(self, borders: Tensor, colours: Tensor, penalty: float = 0.1) -> None:
        """Borders [N, D] and skin colours [N, 3] of the faces to learn from."""
        self.mean = borders.mean(0)
        self.weights = ridge_regression(borders, colours, penalty)

    def __call__(self, borders: Tensor) -> Tensor:
        """Borders [N, D] -> light [N, 3], 0 on average."""
        return (borders - self.mean.to(borders)) @ self.weights.to(borders)


class Lightness:
    """How light a person's skin is, from w: a ridge regression of the mean tone of known faces.

    The tone is the skin colour without the picture's light, so that pictures taken in the shade do not count as dark.
    """

    def __init__(self, known: Faces) -> None:
        border, skin = known.border, known.skin
        tone = (skin - Light(border, skin)(border)).mean(1, keepdim=True)
        self.mean, self.std = known.w.mean(0), known.w.std(0)
        self.weights = ridge_regression((known.w - self.mean) / self.std, tone, 0.05)

    def __call__(self, w: Tensor) -> Tensor:
        """w [N, 512] -> lightness [N] on w's device, 0 on average."""
        return ((w - self.mean.to(w)) / self.std.to(w) @ self.weights.to(w)).squeeze(1)


class Transfer:
    """Where in W a person goes with the attributes of another: a target that costs no picture.

    Of the way from the person's w to the other's, the part is gone that changes what belongs to the attributes:
    landmarks (pose, expression) and border colours (background, light), both taken as linear in w. With F the two
    regressions side by side, weighted, in standard deviations of W, it is (I + F F')^-1 F F' (w_other - w_person): the
    least way whose end shows the other's attributes.
    """

    def __init__(
        self, w: Tensor, landmarks: Tensor, borders: Tensor, weights: tuple[float, float] = (30.0, 5.0)
    ) -> None:
        """w [N, 512], landmarks [N, K, 2] as fractions of the crop and borders [N, D] of the faces to learn from."""
        standard = (w - w.mean(0)) / w.std(0)
        parts = (landmarks.flatten(1), borders)
        maps = [k * ridge_regression(standard, part, 0.05) for k, part in zip(weights, parts, strict=True)]
        both = torch.cat(maps, dim=1).double()
        square = both @ both.T
        part = torch.linalg.solve(torch.eye(len(square)).to(square) + square, square).float()
        self.matrix = part / w.std(0)[:, None] * w.std(0)  # for row vectors of w as it is

    def __call__(self, person: Tensor, other: Tensor) -> Tensor:
        """w of the person and of the other [N, 512] -> w of the person with the other's attributes."""
        return person + (other - person) @ self.matrix.to(person)


def ridge_regression(x: Tensor, y: Tensor, penalty: float) -> Tensor:
    """Weights [D, E] that predict y [N, E] from x [N, D], both centred; `penalty` is a share of x's mean variance."""
    x, y = (values.double() - values.double().mean(0) for values in (x, y))
    square = x.T @ x
    size = penalty * square.trace() / len(square)
    return torch.linalg.solve(square + size * torch.eye(len(square)).to(square), x.T @ y).float()


def augment(crop: Tensor, generator: torch.Generator, n: int | None = None, rows: slice = ALL) -> Tensor:
    """What a camera and an aligner do to an attribute image: shift and scale, blur, compression, light, noise.

    Crop [N, 3, S, S] in [-1, 1], same out. Half of the images are left alone. In the rest misalignment is at most 1 %
    of the side and 2 % of scale; blur is a lower resolution; compression rounds the cosine coefficients of 8 px blocks
    as JPEG does; light is gain and offset per channel of up to 10 %; noise has up to 5 grey levels. The crop may be the
    `rows` of a batch of `n` images: the random numbers are drawn for all of it.
    """
    n, size = n or len(crop), crop.shape[-1]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(n, *shape, generator=generator))[rows].to(crop.device)

    theta = torch.zeros(len(crop), 2, 3, device=crop.device)
    theta[:, 0, 0] = theta[:, 1, 1] = uniform(0.98, 1.02)
    theta[:, :, 2] = uniform(-0.02, 0.02, 2)
    grid = F.affine_grid(theta, list(crop.shape), align_corners=False)
    changed = F.grid_sample(crop, grid, padding_mode="reflection", align_corners=False)
    small = int((0.4 + 0.6 * torch.rand(1, generator=generator).item()) * size)
    if small < size:
        changed = F.interpolate(F.interpolate(changed, small, mode="area"), size, mode="bilinear", align_corners=False)
    light = uniform(0.9, 1.1, 3, 1, 1) * changed + uniform(-0.1, 0.1, 3, 1, 1)
    noise = _noise((n, *crop.shape[1:]), generator, crop.device)[rows] * uniform(0, 0.04, 1, 1, 1)
    chosen = (uniform(0, 1) < 0.5)[:, None, None, None]
    return torch.where(chosen, (_compressed(light, uniform(0, 1)) + noise).clamp(-1, 1), crop)


def _noise(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal numbers on a device; a GPU draws its own, from a seed that the CPU's generator gives."""
    if device.type == "cpu":
        return torch.randn(shape, generator=generator)
    seed = int(torch.randint(1 << 62, (), generator=generator))
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)


def _compressed(image: Tensor, strength: Tensor) -> Tensor:
    """JPEG's loss without its codec: cosine coefficients of 8 px blocks are rounded, fine ones more coarsely.

    Image [N, 3, S, S] in [-1, 1], strength [N] in 0..1 (none to about quality 50).
    """
    n, channels, height, width = image.shape
    k = torch.arange(8, device=image.device, dtype=image.dtype)
    cosines = torch.cos(torch.pi * (k[None] + 0.5) * k[:, None] / 8) * 0.5
    cosines[0] *= 0.5**0.5
    blocks = image.unfold(2, 8, 8).unfold(3, 8, 8)  # [N, 3, S/8, S/8, 8, 8]
    coefficients = cosines @ blocks @ cosines.T
    step = (0.1 + 0.05 * (k[:, None] + k[None])) * strength.view(-1, 1, 1, 1, 1, 1).clamp_min(1e-3)
    rounded = (coefficients / step).round() * step
    restored = cosines.T @ rounded @ cosines
    return restored.permute(0, 1, 2, 4, 3, 5).reshape(n, channels, height, width)
