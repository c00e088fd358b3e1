"""A new engine against the same graph in FP32 on the CPU, on inputs like those that it will see."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ..assets import BUNDLE, FACES
from ..face.crop import CROP_SIZE
from ..media.images import read_image
from .machine import physical_cores
from .session import Session, check_inputs

INPUTS = 8
MIN_PSNR_DB = 45.0  # of pictures: the worst of them
EQUAL_DB = 99.0  # what stands for the PSNR of equal pictures
MIN_COSINE = 0.999  # of codes: the worst of them


def compare(session: Session, path: Path) -> tuple[dict[str, float], str | None]:
    """Run a session beside ONNX Runtime on the CPU, which computes FP16 graphs in FP32 as well.

    Returns the figures, and half a sentence when they fall short. `path`: the graph of the session, or its FP32 form.
    """
    arrays = trial_inputs(session, path)
    found, expected = session.run(**arrays), _reference(path).run(**arrays)
    figures: dict[str, float] = {}
    faults = []
    for name, right in expected.items():
        if right.dtype == np.uint8:
            worst = figures[f"{name}_psnr_db"] = float(psnr_db(found[name], right).min())
            if not worst >= MIN_PSNR_DB:
                faults.append(f"{name} is {worst:.1f} dB from FP32, and {MIN_PSNR_DB:.0f} dB are asked for")
        else:
            worst = figures[f"{name}_cosine"] = _worst_cosine(found[name], right)
            if not worst >= MIN_COSINE:  # NaN falls short, too
                faults.append(f"{name} has a cosine of {worst:.4f} with FP32, and {MIN_COSINE} is asked for")
    return figures, "; ".join(faults) or None


def trial_inputs(session: Session, path: Path) -> dict[str, NDArray]:
    """Return inputs for a session by name: the faces that ship with fid, unit identity codes, and what the encoders and
    the mapper beside the graph (or the shipped ones) make of these; random numbers for names of no meaning."""
    rng = np.random.default_rng(0)
    folder = path.parent if (path.parent / "mapper.onnx").is_file() else BUNDLE
    known = _codes(folder)
    arrays = {}
    for tensor in session.inputs:
        shape = tuple(INPUTS if isinstance(side, str) else side for side in tensor.shape)
        array = known.get(tensor.name)
        if tensor.name == "w_plus" and array is not None and array.ndim == 2:
            array = np.repeat(array[:, None], shape[1], axis=1)
        if array is not None and array.shape == shape:
            arrays[tensor.name] = array
        elif tensor.dtype == "uint8":
            arrays[tensor.name] = rng.integers(0, 256, shape, np.uint8)
        else:
            arrays[tensor.name] = rng.standard_normal(shape).astype(tensor.dtype)
    check_inputs(session.inputs, arrays)
    return arrays


@cache
def _codes(folder: Path) -> dict[str, NDArray]:
    """crop, identity, attributes, appearance and w or W+ (as w_plus) of `INPUTS` people, by a bundle's graphs on the
    CPU."""
    faces = [read_image(face) for face in sorted(FACES.glob("*.jpg"))[:INPUTS]]
    size = (CROP_SIZE, CROP_SIZE)
    crop = np.stack([cv2.resize(face, size, interpolation=cv2.INTER_AREA) for face in faces])
    mapper = _reference(folder / "mapper.onnx")
    numbers = next(int(tensor.shape[1]) for tensor in mapper.inputs if tensor.name == "identity")
    code = np.random.default_rng(1).standard_normal((len(crop), numbers)).astype(np.float32)
    identity = code / np.linalg.norm(code, axis=1, keepdims=True)
    attributes = _reference(folder / "attributes.onnx").run(crop=crop)["attributes"]
    codes = {"identity": identity, "attributes": attributes, "appearance": attributes[::-1].copy()}
    (w,) = mapper.run(**{tensor.name: codes[tensor.name] for tensor in mapper.inputs}).values()
    return {"crop": crop, **codes, "w_plus": w}


def _reference(path: Path) -> Session:
    from .ort import OnnxRuntimeSession

    return OnnxRuntimeSession(path, "CPU", physical_cores())


def psnr_db(found: NDArray, right: NDArray) -> NDArray:
    """Return the peak signal-to-noise ratio of pictures uint8 [N, ...], each of its own: float64 [N], dB.

    Equal pictures have `EQUAL_DB`, which is more than any other of fid's size can have.
    """
    pairs = zip(found, right, strict=True)  # one at a time: 64 pictures of 1024 px are 800 MB as floats
    squared = np.array([np.square(a.astype(np.float32) - b).mean(dtype=np.float64) for a, b in pairs])
    return np.minimum(EQUAL_DB, 10 * np.log10(255.0**2 / np.maximum(squared, 1e-12)))


def _worst_cosine(found: NDArray, right: NDArray) -> float:
    """Of codes float [batch, ...]."""
    a, b = (x.astype(np.float64).reshape(len(right), -1) for x in (found, right))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / np.maximum(lengths, 1e-12)).min())
