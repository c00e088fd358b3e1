"""Beside every bundle: one HTML page with all measured figures and pictures of PyTorch, FP32 and FP16 side by side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cv2
import numpy as np

from ..runtime.weights.bundle import Bundle
from ..trainer.evaluate.render import Row, Section, data_url, render
from ..trainer.evaluate.tables import Table

REPORT_FILE = "report.html"
GAIN = 16  # how much the pictures of differences are amplified
SIDE = 256  # px; larger pictures are shown at this size, and a piece of them in full


@dataclass(frozen=True)
class Shown:
    """One latent as a picture of each form, RGB uint8 [R, R, 3]."""

    title: str
    pytorch: np.ndarray
    fp32: np.ndarray
    fp16: np.ndarray | None  # as a GPU computes it


def report_page(bundle: Bundle, shown: Sequence[Shown]) -> str:
    """Return the page, which needs no other file. Its figures are those of bundle.json."""
    parts = [_parity(bundle)]
    if any(graph.fp16_graph is not None for graph in bundle.graphs.values()):
        parts.append(_gate(bundle))
    legend = Section("Pictures", list(_legend(any(s.fp16 is not None for s in shown))))
    title = f"Bundle {bundle.name} {bundle.version}, {bundle.resolution} px"
    return render(title, list(_setting(bundle)), [*parts, legend, *map(_row, shown)])


def _setting(bundle: Bundle) -> Iterator[str]:
    yield f"Stored as {bundle.precision}."
    for role, origin in bundle.provenance.items():
        if isinstance(origin, Mapping) and "sha256" in origin:
            step = f", step {origin['step']}" if "step" in origin else ""
            kind = origin.get("kind") or origin.get("generator") or "weights"
            yield f"{role.capitalize()}: {kind}{step}, SHA-256 {origin['sha256'][:16]}…"
    versions = [
        f"{name} {bundle.provenance[name]}" for name in ("commit", "torch", "onnx") if name in bundle.provenance
    ]
    if versions:
        yield f"Exported with {', '.join(versions)}."


def _parity(bundle: Bundle) -> Table:
    rows = []
    for name, found in bundle.parity.items():
        allowed, unrounded = found["tolerance"], found["unrounded"]
        psnr = f"{unrounded['psnr_db']:.1f} dB" if "psnr_db" in unrounded else ""
        pair = f"{found['max']:.2g} of {allowed['max']:g}", f"{found['mean']:.2g} of {allowed['mean']:g}"
        rows.append((name, found["unit"], *pair, f"{unrounded['max']:.2g}", f"{unrounded['mean']:.2g}", psnr))
    first = next(iter(bundle.parity.values()))
    notes = (
        f"{first['inputs']} inputs a graph, on {first['provider']}. The first two columns compare with PyTorch holding "
        "the stored weights and stand beside what is allowed; the others with PyTorch holding the checkpoint's, which "
        "were not rounded.",
    )
    header = ("graph", "unit", "max", "mean", "unrounded: max", "mean", "PSNR")
    return Table("The FP32 graphs against PyTorch", header, rows, notes)


def _gate(bundle: Bundle) -> Table:
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    for name, graph in bundle.graphs.items():
        if (typed := graph.fp16_graph) is None:
            rows.append((name, "no layer that FP16 is for: FP32", "", "", "", "", "", ""))
            continue
        result = f"FP16, {len(typed.kept_fp32)} layers FP32" if typed.kept_fp32 else "FP16"
        gate = typed.gate
        mean = gate.get("identity_cosine_mean", gate.get("cosine_mean"))
        worst = gate.get("identity_cosine_worst", gate.get("cosine_worst"))
        rows.append(
            (
                name,
                result if typed.file else "stays FP32",
                str(gate["inputs"]),
                _number(gate.get("psnr_mean_db"), ".1f"),
                _number(gate.get("psnr_worst_db"), ".1f"),
                _number(mean, ".6f"),
                _number(worst, ".6f"),
                f"{typed.bound:.0f}" if typed.file else "",
            )
        )
        if typed.reason:
            notes.append(f"{name} stays FP32: {typed.reason}.")
        if typed.kept_fp32:
            notes.append(f"{name}: FP32 because FP16 spoiled the result: {', '.join(typed.kept_fp32)}.")
    gates = [graph.fp16_graph.gate for graph in bundle.graphs.values() if graph.fp16_graph is not None]
    notes.append(
        f"FP16 is emulated: sums in FP32, every FP16 result rounded. Wanted are {gates[0]['psnr_db']:g} dB for every "
        f"picture and a cosine of {gates[0]['cosine']:g} of every code: the identity that the identity network sees in "
        "a picture, or the code that a graph gives. A quarter of the latents lie 4 standard deviations from the mean "
        "of W, the others at psi 1. No FP16 number can be larger than the bound, whatever the input (65504 is still a "
        "number)."
    )
    header = ("graph", "result", "inputs", "dB, mean", "dB, worst", "cosine, mean", "worst", "bound")
    return Table("FP16 against FP32", header, rows, notes)


def _legend(with_fp16: bool) -> Iterator[str]:
    forms = "PyTorch, the FP32 graph and the FP16 graph, emulated" if with_fp16 else "PyTorch and the FP32 graph"
    yield f"{forms}; then what differs, {GAIN} times as strong, around grey."
    yield f"Pictures stand at {SIDE} px; differences are taken at full size, and of each spot the strongest is shown."


def _row(shown: Shown) -> Row:
    forms = [shown.pytorch, shown.fp32, *([] if shown.fp16 is None else [shown.fp16])]
    differences = [_difference(after, before) for before, after in pairwise(forms)]
    labels = ["PyTorch", "FP32", "FP16"][: len(forms)]
    labels += [f"{after} − {before}, × {GAIN}" for before, after in pairwise(labels)]
    images = [data_url(image, ".webp") for image in (*map(_small, forms), *differences)]
    return Row(shown.title, list(zip(labels, images, strict=True)))


def _small(image: np.ndarray) -> np.ndarray:
    return image if len(image) <= SIDE else cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def _difference(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """127 where two pictures agree, `GAIN` grey levels away for each that they do not; of a large picture the
    strongest difference of each spot."""
    apart = after.astype(np.int16) - before.astype(np.int16)
    if (step := len(apart) // SIDE) > 1:
        spots = apart.reshape(SIDE, step, SIDE, step, 3).transpose(0, 2, 4, 1, 3).reshape(SIDE, SIDE, 3, -1)
        chosen = np.abs(spots).argmax(-1)[..., None]
        apart = np.take_along_axis(spots, chosen, -1)[..., 0]
    return np.clip(127 + GAIN * apart, 0, 255).astype(np.uint8)


def _number(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)
