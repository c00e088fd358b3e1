"""An invisible mark in every picture that fid makes, which says no more than "made by fid", and its detector.

A spread-spectrum mark (Cox et al. 1997) in the phases of middle frequencies: a tile of 128 px, repeated over the whole
picture, whose 1,000 frequencies of 5 to 26 cycles a tile have phases drawn from a fixed key. The embedder knows the
picture and is informed by it (Costa 1983): it spends what the picture's fidelity allows where that turns most phases.
The detector folds the picture into one tile, keeps phases alone, and correlates; all shifts come out of one Fourier
transform, so a crop costs nothing, and other sizes are tried one after the other. A picture without the mark gives a
sum of random phases, whose distribution is known whatever the picture: that is the bound on false alarms.

No network has to be trained or carried, and nothing is hidden in it about the user. Who wants to remove it can (a turn
by some degrees does): it is for honest use, like the note in `provenance.py`, but it stays when metadata are stripped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

TILE = 128  # px, period of the mark
LOWEST, HIGHEST = 5.0, 26.0  # cycles a tile: 0.04 to 0.2 a px, which JPEG 50 and halving leave
STRENGTH = 1.86  # 0..255, root mean square of the mark: 42.5 dB
KEY = b"fid-face mark 1"
STEPS = 6  # of the embedder's ascent
FLOOR = 0.25  # 0..255, mean amplitude per frequency that noise has after compression: less than that is no phase
BUSY = 0.6, 1.5  # limits of how much less and more is spent in smooth and in busy places
SMOOTH_PX = 12  # sigma of the low-pass filter that is taken off before folding
SMALLEST = 96  # px; smaller pictures are not marked
FOUND = 7.3  # standard deviations above chance: false alarm 1e-4 in 7e8 tries (shifts x sizes x mirrored) needs 7.2
NEAR_SCALES = (2.0, 0.5, 1.5, 0.75, 4 / 3, 2 / 3)  # tried first: how much the picture is enlarged
FINE = 1.006  # from one size to the next after that
FINE_RANGE = 0.4, 2.6
LOOK_PX = 640  # px, side of the middle of a large picture in which other sizes are tried


@dataclass(frozen=True)
class Found:
    """What the detector says."""

    sigma: float  # standard deviations above chance, the highest of all that was tried
    scale: float  # by which the picture had to be enlarged for it
    mirrored: bool

    @property
    def marked(self) -> bool:
        """Whether the mark is there."""
        return self.sigma >= FOUND


def embed_mark(image: np.ndarray) -> np.ndarray:
    """Return a copy of a picture RGB uint8 [height, width, 3] with the mark; the picture itself where it is too
    small."""
    height, width = image.shape[:2]
    if min(height, width) < SMALLEST:
        return image
    detail = _detail(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32))
    places, wanted = _key()
    host = np.fft.rfft2(_folded(detail))[places] * wanted.conj() / TILE**2
    tile = _spectrum(_informed(host) * wanted)
    mark = np.tile(tile, (-(-height // TILE), -(-width // TILE)))[:height, :width]
    mark *= _busy(detail)
    mark *= STRENGTH / max(float(np.sqrt(np.mean(mark**2))), 1e-9)
    return cv2.add(image, cv2.merge([mark] * 3), dtype=cv2.CV_8U)


def detect_mark(images: np.ndarray | Iterable[np.ndarray], *, sizes: bool = True) -> Found:
    """Look for the mark in a picture RGB uint8 [height, width, 3], or in frames of one size and clip.

    Frames are looked at one by one (what follows a keyframe has less and less of the mark) and in the mean. `sizes`:
    look at other sizes as well where that finds nothing, which takes seconds.
    """
    best, mean, count = Found(0.0, 1.0, False), None, 0
    for image in [images] if isinstance(images, np.ndarray) else images:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
        mean, count = grey if mean is None else mean + grey, count + 1
        best = max(best, _look(grey, 1.0), key=lambda found: found.sigma)
    if mean is None:
        return best
    picture = mean / count
    if count > 1:
        best = max(best, _look(picture, 1.0), key=lambda found: found.sigma)
    if best.marked or not sizes:
        return best
    middle, scale = _middle(picture), FINE_RANGE[0]
    best = max(best, *(_look(middle, near) for near in NEAR_SCALES), key=lambda found: found.sigma)
    while scale < FINE_RANGE[1] and not best.marked:
        best = max(best, _look(middle, scale), key=lambda found: found.sigma)
        scale *= FINE
    return best


def _look(grey: np.ndarray, scale: float) -> Found:
    """The highest correlation over all shifts at one size, and mirrored: in standard deviations."""
    size = max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale))
    if min(size) < SMALLEST // 2:
        return Found(0.0, scale, False)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    detail = _detail(grey if scale == 1 else cv2.resize(grey, size, interpolation=method))
    places, wanted = _key()
    best = Found(0.0, scale, False)
    for mirrored in (False, True):
        phases = np.fft.rfft2(_folded(detail[:, ::-1] if mirrored else detail))[places]
        phases = phases / np.maximum(np.abs(phases), 1e-9)
        peak = float(_spectrum(phases * wanted.conj()).max() / np.sqrt(2 * len(wanted)))
        best = max(best, Found(peak, scale, mirrored), key=lambda found: found.sigma)
    return best


def _informed(host: np.ndarray) -> np.ndarray:
    """What to add, complex [n], to amplitudes [n] whose phases ought to be 0, for a given sum of squares: ascent of the
    sum of Re z / sqrt(|z|^2 + FLOOR^2), what the detector sees when compression has added noise."""
    budget = STRENGTH * np.sqrt(0.5)  # Parseval: each frequency stands for itself and its mirror image
    own = np.full(len(host), budget / np.sqrt(len(host)), np.complex128)
    floor = (FLOOR * STRENGTH / np.sqrt(len(host))) ** 2 * 4
    for _ in range(STEPS):
        z = host + own
        size = np.sqrt(np.abs(z) ** 2 + floor)
        slope = 1 / size - z.real * z / size**3
        slope *= 0.7 * budget / max(float(np.linalg.norm(slope)), 1e-12)
        own = own + slope
        own *= budget / np.linalg.norm(own)
    return own


def _detail(grey: np.ndarray) -> np.ndarray:
    """A grey picture float32 without its low frequencies."""
    small = cv2.resize(grey, (max(1, grey.shape[1] // 4), max(1, grey.shape[0] // 4)), interpolation=cv2.INTER_AREA)
    low = cv2.GaussianBlur(small, (0, 0), SMOOTH_PX / 4)
    return grey - cv2.resize(low, (grey.shape[1], grey.shape[0]), interpolation=cv2.INTER_LINEAR)


def _folded(detail: np.ndarray) -> np.ndarray:
    """The mean over all tiles: float32 [TILE, TILE]."""
    height, width = detail.shape
    rows, columns = -(-height // TILE), -(-width // TILE)
    padded = cv2.copyMakeBorder(
        detail, 0, rows * TILE - height, 0, columns * TILE - width, borderType=cv2.BORDER_CONSTANT, value=0
    )
    folded = padded.reshape(rows, TILE, columns, TILE).sum(axis=(0, 2))
    down = np.bincount(np.arange(height) % TILE, minlength=TILE)
    across = np.bincount(np.arange(width) % TILE, minlength=TILE)
    return folded / np.maximum(np.outer(down, across), 1)


def _busy(detail: np.ndarray) -> np.ndarray:
    """How much of the mark each place bears: float32 [height, width], about 1."""
    small = (max(1, detail.shape[1] // 4), max(1, detail.shape[0] // 4))
    power = cv2.blur(cv2.resize(np.abs(detail), small, interpolation=cv2.INTER_AREA), (5, 5)) + 1.0
    share = np.clip(np.sqrt(power / power.mean()), *BUSY)
    return cv2.resize(share, (detail.shape[1], detail.shape[0]), interpolation=cv2.INTER_LINEAR)


def _middle(grey: np.ndarray) -> np.ndarray:
    top, left = (max(0, (side - LOOK_PX) // 2) for side in grey.shape)
    return np.ascontiguousarray(grey[top : top + LOOK_PX, left : left + LOOK_PX])


@cache
def _key() -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """The places of the mark's frequencies in a real Fourier transform of a tile, and their phases as complex [n]."""
    y, x = np.meshgrid(np.fft.fftfreq(TILE, 1 / TILE), np.arange(TILE // 2 + 1), indexing="ij")
    radius = np.hypot(y, x)
    inside = (radius >= LOWEST) & (radius <= HIGHEST) & ((x > 0) | (y > 0))
    places = np.nonzero(inside)
    count = len(places[0])
    stream = b"".join(hashlib.sha256(KEY + number.to_bytes(4, "big")).digest() for number in range(-(-count // 16)))
    turns = np.frombuffer(stream, ">u2", count) / 65536
    return (places[0], places[1]), np.exp(2j * np.pi * turns)


def _spectrum(values: np.ndarray) -> np.ndarray:
    """The tile float32 [TILE, TILE] with these amplitudes, complex [n], at the frequencies of the key."""
    spectrum = np.zeros((TILE, TILE // 2 + 1), np.complex128)
    spectrum[_key()[0]] = values
    return (np.fft.irfft2(spectrum, (TILE, TILE)) * TILE**2).astype(np.float32)
