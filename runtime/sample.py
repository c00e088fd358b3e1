"""Random people who do not exist: z ~ N(0, 1), mapped to w, truncated towards the mean w, made by the generator."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from .composer import Composer
from .engines.session import Session, checked
from .errors import InputError
from .face.crop import CROP_SIZE
from .identity import Identity

PSI = 0.8  # truncation: 1 is the generator's full variety with its failures, 0 the mean face
Z_SIZE = 512
MEAN_SEED, MEAN_COUNT = 0, 4096  # the mean w is that of so many z; its standard error is 1.6 % of w's deviation


class Sampler:
    """Draws people for the generator of a composer's bundle; one seed is one person, the same at any resolution."""

    def __init__(self, composer: Composer, psi: float = PSI) -> None:
        """Opens the mapping network; the one of MobileStyleGAN is fetched when the bundle has none of its own."""
        if not 0 <= psi <= 1.5:
            raise InputError(f"psi {psi:g} is outside 0 to 1.5.")
        self._composer, self._psi = composer, psi
        self._mapping: Session = composer.open_mapping()
        z = np.random.default_rng(MEAN_SEED).standard_normal((MEAN_COUNT, Z_SIZE)).astype(np.float32)
        self._mean_w = np.mean([self._mapping.run(z=part)["w"].mean(axis=0) for part in np.split(z, 16)], axis=0)

    def w(self, seed: int) -> np.ndarray:
        """Return w float32 [w_size] of the person with that number."""
        z = np.random.default_rng(seed).standard_normal((1, Z_SIZE)).astype(np.float32)
        w = self._mean_w + self._psi * (self._mapping.run(z=z)["w"][0] - self._mean_w)
        return checked(w.astype(np.float32), "mapping", self._mapping)

    def person(self, seed: int) -> tuple[np.ndarray, Identity]:
        """Picture RGB uint8 [R, R, 3] and identity of the person with that number.

        The picture is an aligned crop by itself, so nothing has to be detected.
        """
        image = self._composer.image(self.w(seed))
        crop = cv2.resize(image, (CROP_SIZE, CROP_SIZE), interpolation=cv2.INTER_AREA)
        return image, replace(self._composer.identity_of(crop), sources=0)
