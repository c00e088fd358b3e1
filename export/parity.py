"""Sixth stage: every graph against its PyTorch module, on the same inputs. What differs too much is not shipped.

Two things are measured. The gate compares a graph with PyTorch holding the very weights that the bundle stores, so
it sees every mistake of the export. Beside it stands the distance to the unrounded checkpoint, which includes what
storing in FP16 costs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..runtime.engines.compare import psnr_db
from ..runtime.engines.open import open_session
from ..runtime.errors import FidError
from ..runtime.face.crop import CROP_SIZE
from ..trainer.data.statistics import RealIdentities
from .graphs import GraphModule, from_crop, styles_of, to_picture
from .read import Networks

OFFSET = 0.5  # how far the styles of W+ lie from their w, in standard deviations of W
PSI = 0.8  # how far the test latents lie from the mean of W, in its standard deviations
BATCHES = (1, 3, 12)  # sizes of the first batches; the rest goes 16 at a time. A graph has to take any size
PIXELS = 16 * 256 * 256  # of the pictures of a batch, at most, but never less than 3 pictures

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Tolerance:
    """What a graph may differ from PyTorch, and what rounding its weights may cost."""

    unit: str  # "grey levels" of pictures, or "relative" to the length of a code
    max: float
    mean: float
    rounding_psnr_db: float | None = None  # of pictures, against the unrounded checkpoint


PICTURE = Tolerance("grey levels", max=1, mean=0.05, rounding_psnr_db=45)
CODE = Tolerance("relative", max=1e-3, mean=1e-3)


@dataclass(frozen=True)
class Difference:
    """How two results differ, in the unit of the tolerance."""

    max: float
    mean: float
    psnr_db: float | None = None  # of pictures; None for codes and for equal pictures


@dataclass(frozen=True)
class Parity:
    """The measurement of one graph."""

    inputs: int
    provider: str
    tolerance: Tolerance
    difference: Difference  # to PyTorch with the stored weights: the gate
    unrounded: Difference  # to PyTorch with the weights of the checkpoint

    @property
    def fault(self) -> str | None:
        """What is past the tolerance, in words; None when all is well."""
        found, allowed = self.difference, self.tolerance
        if not found.max <= allowed.max:  # written so that NaN fails
            return f"max {found.max:.3g} {allowed.unit}, allowed {allowed.max:g}"
        if not found.mean <= allowed.mean:
            return f"mean {found.mean:.3g} {allowed.unit}, allowed {allowed.mean:g}"
        psnr = self.unrounded.psnr_db
        if allowed.rounding_psnr_db is not None and psnr is not None and not psnr >= allowed.rounding_psnr_db:
            wanted = f"at least {allowed.rounding_psnr_db:g} are wanted (--weights fp32 stores them whole)"
            return f"FP16 weights leave {psnr:.1f} dB, {wanted}"
        return None

    def to_json(self) -> dict[str, Any]:
        """Return the entry of bundle.json."""
        tolerance = asdict(self.tolerance)
        record = {"inputs": self.inputs, "provider": self.provider, "unit": tolerance.pop("unit")}
        record |= {key: value for key, value in asdict(self.difference).items() if value is not None}
        record["tolerance"] = {key: value for key, value in tolerance.items() if value is not None}
        record["unrounded"] = {key: value for key, value in asdict(self.unrounded).items() if value is not None}
        return record


@torch.no_grad()
def parity_inputs(networks: Networks, count: int, seed: int = 0) -> Arrays:
    """Return inputs of all graphs by name, `count` of each: pictures of the generator, latents around the mean of W
    with offsets that differ from style to style, codes like those of photographed people, attribute codes of the
    pictures, appearances of others among them."""
    generator = torch.Generator().manual_seed(seed)
    mapper = networks.mapper
    assert isinstance(mapper.w_mean, torch.Tensor)
    assert isinstance(mapper.w_std, torch.Tensor)
    w = mapper.w_mean + PSI * mapper.w_std * torch.randn(count, len(mapper.w_mean), generator=generator)
    parts = (networks.synthesis(part) for part in w.split(min(8, _most(networks.resolution))))
    small = [F.interpolate(p, (CROP_SIZE, CROP_SIZE), mode="bilinear", antialias=True) for p in parts]
    image = torch.cat(small)
    crop = to_picture(image).contiguous()
    attributes = torch.cat([networks.attributes(part) for part in from_crop(crop).split(8)])
    identity = identity_codes(networks, image, generator)
    z = torch.randn(count, len(mapper.w_mean), generator=generator)
    shape = count, styles_of(networks.synthesis), len(mapper.w_mean)
    offset = OFFSET * mapper.w_std * torch.randn(shape, generator=generator)
    inputs = {"w_plus": w[:, None] + offset, "w_plus_offset": offset, "crop": crop, "attributes": attributes}
    inputs |= {"identity": identity, "z": z}
    inputs["appearance"] = attributes.roll(1, 0)  # of somebody else
    inputs |= {name: 1.5 * torch.rand(count, 1, generator=generator) for name in ("pose", "expression")}
    return {name: values.numpy() for name, values in inputs.items()}


def identity_codes(networks: Networks, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return as many unit identity codes as there are pictures [N, 3, 256, 256] in about [-1, 1]: like those of
    photographed people, or with an encoder of the user's, of which no such are known, those of the pictures."""
    if networks.identity is None:
        return RealIdentities().draw(len(image), generator)
    return torch.cat([networks.identity(part.clamp(-1, 1)) for part in image.split(8)])


def measure(
    path: Path, stored: GraphModule, original: GraphModule, inputs: Mapping[str, np.ndarray], threads: int
) -> Parity:
    """Run the graph at `path` in ONNX Runtime, and both modules in PyTorch, on the inputs that it takes.

    Raises FidError when ONNX Runtime cannot open the graph or gives something that is not the promised output.
    """
    session = open_session(path, engine="onnxruntime", threads=threads)
    names = [tensor.name for tensor in stored.inputs]
    (output,) = stored.outputs
    count = len(inputs[names[0]])
    batches = list(_batches(count, _most_of(stored)))
    got = np.concatenate([session.run(**{n: inputs[n][i] for n in names})[output.name] for i in batches])
    if got.shape != (count, *output.shape[1:]) or got.dtype.name != output.dtype:
        raise FidError(f"{path.name} gives {output.name} as {got.dtype.name} {list(got.shape[1:])}.")
    tolerance = PICTURE if output.dtype == "uint8" else CODE
    return Parity(
        inputs=count,
        provider=session.provider,
        tolerance=tolerance,
        difference=difference(got, run_module(stored, inputs)),
        unrounded=difference(got, run_module(original, inputs)),
    )


@torch.no_grad()
def run_module(module: GraphModule, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the output of a graph module in PyTorch, for the inputs that it takes."""
    arrays = [torch.from_numpy(inputs[tensor.name]) for tensor in module.inputs]
    count, step = len(arrays[0]), min(8, _most_of(module))
    return np.concatenate([module(*(a[i : i + step] for a in arrays)).numpy() for i in range(0, count, step)])


def difference(got: np.ndarray, expected: np.ndarray) -> Difference:
    """Compare pictures uint8 in grey levels. Codes float32 [N, size]: distance relative to the length of the expected
    code."""
    if got.dtype == np.uint8:
        apart = np.abs(got.astype(np.int16) - expected.astype(np.int16))
        psnr = float(psnr_db(got[None], expected[None])[0]) if apart.any() else None
        return Difference(float(apart.max()), float(apart.mean()), psnr)
    relative = np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected, axis=1)
    return Difference(float(relative.max()), float(relative.mean()))


def _most(resolution: int) -> int:
    """Pictures of one batch; those of 1024 px take gigabytes."""
    return min(16, max(3, PIXELS // resolution**2))


def _most_of(module: GraphModule) -> int:
    (output,) = module.outputs
    return _most(int(output.shape[1])) if output.dtype == "uint8" else 16


def _batches(count: int, most: int) -> Iterator[slice]:
    start = 0
    for size in (*BATCHES, *[16] * count):
        if start >= count:
            return
        end = min(start + min(size, most), count)
        yield slice(start, end)
        start = end
