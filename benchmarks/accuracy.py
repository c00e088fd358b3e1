"""How far an engine's outputs are from those of PyTorch in float32."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from fid.runtime.engines.compare import psnr_db


def compare(got: np.ndarray, expected: np.ndarray) -> dict[str, float | None]:
    """Compare pictures uint8 [N, S, S, 3] in grey levels, with PSNR, LPIPS and the cosine of identity codes. Codes
    float32 [N, size]: distance as a share of the expected code's length, and cosine."""
    if got.shape != expected.shape:
        raise ValueError(f"shapes differ: {got.shape} and {expected.shape}")
    if got.dtype != np.uint8:
        lengths = np.linalg.norm(expected, axis=1)
        apart = np.linalg.norm(got - expected, axis=1) / lengths
        cosine = (got * expected).sum(axis=1) / (np.linalg.norm(got, axis=1) * lengths)
        return {"max": _short(apart.max()), "mean": _short(apart.mean()), "cosine_min": round(float(cosine.min()), 6)}
    apart = np.abs(got.astype(np.int16) - expected.astype(np.int16))
    lpips, identity = judges()
    return {
        "max": float(apart.max()),
        "mean": _short(apart.mean()),
        "psnr_db": round(float(psnr_db(got[None], expected[None])[0]), 2) if apart.any() else None,
        "lpips": _short(lpips(got, expected).mean()),
        "identity_cosine_mean": round(float((identity(got) * identity(expected)).sum(axis=1).mean()), 6),
        "identity_cosine_min": round(float((identity(got) * identity(expected)).sum(axis=1).min()), 6),
    }


@cache
def judges() -> tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]:
    """Return LPIPS (AlexNet) of two sets of pictures, and SFace's codes of one; uint8 [N, S, S, 3], seen at 256 px."""
    import torch
    from fid.trainer.networks.lpips import LPIPS
    from fid.trainer.networks.sface import SFace
    from fid.trainer.pixels import as_crops, from_uint8

    lpips, sface = LPIPS.load("alex"), SFace.load()

    def seen(images: np.ndarray) -> Any:
        return from_uint8(as_crops(images))

    @torch.no_grad()
    def distance(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
        parts = range(0, len(got), 8)
        return np.concatenate([lpips(seen(got[i : i + 8]), seen(expected[i : i + 8])).numpy() for i in parts])

    @torch.no_grad()
    def codes(images: np.ndarray) -> np.ndarray:
        return np.concatenate([sface(seen(images[i : i + 8])).numpy() for i in range(0, len(images), 8)])

    return distance, codes


def _short(value: Any) -> float:
    return float(f"{float(value):.3g}")
