"""Eighth stage: a typed graph against its FP32 form, FP16 as hardware computes it. Layers that fall short stay FP32.

Pictures have to stay above `PSNR_DB`, each of them and on average, and the identity network has to see the same
person; codes have to keep their direction. Layers that spoil this stay FP32: the fewest that bisection finds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F

from ...runtime.engines.compare import psnr_db
from ...runtime.engines.open import open_session
from ...runtime.engines.session import Session
from ...runtime.errors import InputError
from ...runtime.face.crop import CROP_SIZE
from ...runtime.weights.bundle import Graph
from ...runtime.weights.prepare import prepared
from ...trainer.networks.mobilestylegan import W_SIZE
from ...trainer.networks.mobilestylegan import Mapping as MappingNetwork
from ...trainer.pixels import as_crops
from ..graphs import from_crop, styles_of, to_picture
from ..parity import OFFSET, Arrays, identity_codes
from ..read import Networks
from .convert import FP16Model, to_fp16
from .emulate import open_emulated

PSNR_DB = 45.0
COSINE = 0.999
MIN_INPUTS = 64
SIGMAS = 4.0  # how far a quarter of the latents lie from the mean of W
SAMPLES = 4096  # latents that the axes of W are taken from
HARDEST = 6  # inputs that bisection works on

Progress = Callable[[str, int, int], None]  # what is being done, inputs done, inputs in all


@dataclass(frozen=True)
class Figures:
    """How a typed graph differs from FP32 over all inputs. Pictures have the first four, codes the last two."""

    psnr_mean_db: float | None = None
    psnr_worst_db: float | None = None
    identity_cosine_mean: float | None = None
    identity_cosine_worst: float | None = None
    cosine_mean: float | None = None
    cosine_worst: float | None = None

    @property
    def fault(self) -> str | None:
        """What is past the thresholds, in words; None when all is well. Written so that NaN is a fault."""
        if self.psnr_worst_db is not None and not self.psnr_worst_db >= PSNR_DB:
            return f"the worst picture has {self.psnr_worst_db:.1f} dB, {PSNR_DB:g} are wanted"
        for name, value in (("identity", self.identity_cosine_worst), ("code", self.cosine_worst)):
            if value is not None and not value >= COSINE:
                return f"the worst {name} cosine is {value:.5f}, {COSINE:g} is wanted"
        return None


@dataclass(frozen=True)
class Verdict:
    """What the gate found for one graph."""

    model: FP16Model  # the typed graph that passed, or, with a reason, the one that could not be mended
    figures: Figures  # of that graph
    first: Figures  # with every layer in FP16
    inputs: int
    kept_fp32: tuple[str, ...]  # layers that had to stay FP32
    outputs: np.ndarray  # of that graph, for all inputs
    hardest: tuple[int, ...]  # inputs, the worst first
    reason: str | None = None  # why the graph stays FP32 as a whole

    def to_json(self) -> dict[str, Any]:
        """Return the figures for bundle.json."""
        record: dict[str, Any] = {"inputs": self.inputs, "psnr_db": PSNR_DB, "cosine": COSINE}
        return record | {key: value for key, value in asdict(self.figures).items() if value is not None}


@torch.no_grad()
def gate_inputs(networks: Networks, count: int = MIN_INPUTS, seed: int = 1) -> Arrays:
    """Return inputs of all graphs by name, `count` of each. Three quarters of the latents are the generator's own at
    psi 1; the others lie 4 standard deviations from the mean of W, on either side along its widest axes. Crops are
    their pictures. Offsets of W+ are of the size that a person's have.

    Raises InputError for fewer than 64, which do not count as a measurement.
    """
    if count < MIN_INPUTS:
        raise InputError(f"{count} inputs are too few for the FP16 gate: at least {MIN_INPUTS}.")
    generator = torch.Generator().manual_seed(seed)
    mapping = networks.mapping or MappingNetwork.load()
    samples = mapping(torch.randn(SAMPLES, W_SIZE, generator=generator))
    mean = samples.mean(0)
    variances, axes = torch.linalg.eigh((samples - mean).T @ (samples - mean) / SAMPLES)  # ascending
    far = []
    for i in range(_far(count)):
        axis = -1 - i // 2
        far.append(mean + (-1) ** i * SIGMAS * variances[axis].sqrt() * axes[:, axis])
    w = torch.cat([samples[: count - len(far)], torch.stack(far)])
    crops = []
    for part in w.split(4):
        image = networks.synthesis(part)
        if image.shape[-1] != CROP_SIZE:
            image = F.interpolate(image, (CROP_SIZE, CROP_SIZE), mode="bilinear", antialias=True)
        crops.append(to_picture(image))
    crop = torch.cat(crops).contiguous()
    attributes = torch.cat([networks.attributes(from_crop(part)) for part in crop.split(8)])
    identity = identity_codes(networks, from_crop(crop), generator)
    n_styles = styles_of(networks.synthesis)
    offset = OFFSET * samples.std(0) * torch.randn(count, n_styles, W_SIZE, generator=generator)
    inputs = {"w_plus": w[:, None].repeat(1, n_styles, 1), "w_plus_offset": offset, "crop": crop, "identity": identity}
    inputs["appearance"] = attributes.roll(1, 0)
    return {name: values.numpy() for name, values in inputs.items()}


def _far(count: int) -> int:
    """How many of the latents lie 4 standard deviations away."""
    return count // 4


def latent_names(count: int) -> list[str]:
    """Return what the latents of `gate_inputs` are."""
    near = count - _far(count)
    return [
        f"psi 1, latent {i + 1}"
        if i < near
        else f"{'-' if (i - near) % 2 else '+'}{SIGMAS:g} sigma along axis {(i - near) // 2 + 1} of W"
        for i in range(count)
    ]


def gate(
    model: onnx.ModelProto,
    reference: Path,
    graph: Graph,
    inputs: Mapping[str, np.ndarray],
    *,
    threads: int = 2,
    progress: Progress = lambda what, done, of: None,
) -> Verdict | None:
    """Convert a float32 model to typed FP16 and hold it against the graph at `reference`; None when it has no layer
    that FP16 is for.

    graph: its inputs and outputs. Layers are kept FP32 until the result is within the thresholds; if that takes all
    of them, the verdict has a reason.
    """
    typed = to_fp16(model)
    if not typed.layers:
        return None
    given = {tensor.name: inputs[tensor.name] for tensor in graph.inputs}
    comparison = _Comparison(graph, given, reference, threads, progress)
    scores, outputs = comparison.measure(typed.model, "FP16")
    first = figures = scores.figures()
    kept: tuple[str, ...] = ()
    reason = None
    hardest: list[int] = []
    while figures.fault is not None and reason is None:
        harder = sorted({*hardest, *scores.hardest()[:HARDEST]})
        kept = fewest(typed.layers, lambda names, on=tuple(harder): comparison.passes(model, names, on))
        if len(kept) == len(typed.layers) or harder == hardest:
            reason = f"{first.fault}, and no choice of FP32 layers mends it"
            break
        hardest = harder
        candidate = to_fp16(model, kept)
        scores, outputs = comparison.measure(candidate.model, f"FP16, {len(kept)} layers FP32")
        figures = scores.figures()
        if figures.fault is None:
            typed = candidate
    return Verdict(typed, figures, first, comparison.count, kept, outputs, tuple(scores.hardest()), reason)


def fewest(layers: Sequence[str], passes: Callable[[tuple[str, ...]], bool]) -> tuple[str, ...]:
    """Return a smallest set of layers that, kept FP32, lets the graph pass: none of them can be left out.

    QuickXplain (Junker 2004): halves are tried, so k culprits among n layers take about 2 k log2(n / k) trials. All
    layers are the answer when nothing less will do.
    """

    def needed(base: tuple[str, ...], candidates: tuple[str, ...], changed: bool) -> tuple[str, ...]:
        if changed and passes(base):
            return ()
        if len(candidates) == 1:
            return candidates
        middle = len(candidates) // 2
        left, right = candidates[:middle], candidates[middle:]
        from_right = needed(base + left, right, True)
        return needed(base + from_right, left, bool(from_right)) + from_right

    found = needed((), tuple(layers), True)
    return tuple(name for name in layers if name in found)


@dataclass(frozen=True)
class _Scores:
    """One number for each input."""

    psnr_db: np.ndarray | None
    cosine: np.ndarray

    def figures(self) -> Figures:
        cosines = float(self.cosine.mean()), float(self.cosine.min())
        if self.psnr_db is None:
            return Figures(cosine_mean=cosines[0], cosine_worst=cosines[1])
        return Figures(float(self.psnr_db.mean()), float(self.psnr_db.min()), *cosines)

    def hardest(self) -> list[int]:
        """Return the inputs, the one that is furthest past a threshold, or nearest to one, first."""
        margin = (1 - np.nan_to_num(self.cosine, nan=-1.0)) / (1 - COSINE)
        if self.psnr_db is not None:
            margin = np.maximum(margin, PSNR_DB / np.maximum(self.psnr_db, 1e-3))
        return np.argsort(-margin, kind="stable").tolist()


class _Comparison:
    """The FP32 side, computed once, and typed graphs held against it."""

    def __init__(self, graph: Graph, given: Arrays, reference: Path, threads: int, progress: Progress) -> None:
        (self.output,) = graph.outputs
        self.given, self.threads, self.progress = given, threads, progress
        self.count = len(next(iter(given.values())))
        self.pictures = self.output.dtype == "uint8"
        side = self.output.shape[1] if self.pictures else CROP_SIZE
        self.batch = max(1, 4 * CROP_SIZE**2 // int(side) ** 2)
        session = open_session(reference, engine="onnxruntime", threads=threads)
        self.expected = self._over(lambda part: session.run(**part)[self.output.name], range(self.count), "FP32")
        self.identity: Session | None = None
        if self.pictures:
            self.identity = open_session(prepared("identity"), engine="onnxruntime", threads=threads)
            self.expected_codes = self._codes(self.expected)

    def measure(self, model: onnx.ModelProto, what: str, on: Sequence[int] | None = None) -> tuple[_Scores, np.ndarray]:
        """Return scores on all inputs, or on some, and the outputs."""
        session = open_emulated(model, self.threads)
        chosen = list(range(self.count)) if on is None else list(on)
        got = self._over(lambda part: session.run(**part)[self.output.name], chosen, what)
        expected = self.expected[chosen]
        if not self.pictures:
            return _Scores(None, _cosines(got, expected)), got
        codes = self._codes(got)
        return _Scores(psnr_db(got, expected), _cosines(codes, self.expected_codes[chosen])), got

    def passes(self, model: onnx.ModelProto, kept_fp32: tuple[str, ...], on: Sequence[int]) -> bool:
        """Tell whether the graph with these layers FP32 is within the thresholds on the inputs `on`."""
        scores, _ = self.measure(to_fp16(model, kept_fp32).model, f"looking for layers, {len(kept_fp32)} FP32", on)
        return scores.figures().fault is None

    def _over(self, run: Callable[[Arrays], np.ndarray], chosen: Sequence[int], what: str) -> np.ndarray:
        results = []
        for start in range(0, len(chosen), self.batch):
            part = list(chosen[start : start + self.batch])
            self.progress(what, start, len(chosen))
            results.append(run({name: array[part] for name, array in self.given.items()}))
        self.progress(what, len(chosen), len(chosen))
        return np.concatenate(results)

    def _codes(self, images: np.ndarray) -> np.ndarray:
        assert self.identity is not None
        crops = as_crops(images)
        return np.concatenate([self.identity.run(crop=crops[i : i + 8])["identity"] for i in range(0, len(crops), 8)])


def _cosines(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):  # a code of zeros or NaN gives NaN, which is a fault
        return (got * expected).sum(1) / lengths
