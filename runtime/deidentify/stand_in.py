"""Who stands in for whom: synthetic people unlike the original to a recogniser, and like it to the eye."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ..composer import Composer
from ..face.crop import CROP_SIZE
from ..identity import Identity

KNOWN = 0.30  # cosine above which a face that appears in a clip is somebody who was there before
STRANGER = 0.20  # cosine of a stand-in with the original, at most; of those below, one more alike fits better
SAFE = 0.25  # cosine of the first composition with the original, at most
CANDIDATES = 32  # synthetic people to choose from
TRIED = 8  # of them are composed at most
SKIN = ((130, 175, 78, 108), (130, 175, 148, 178))  # cheeks in the aligned crop: top, bottom, left, right px
HAIR = ((16, 52, 88, 168),)
HAIR_WEIGHT, ALIKE_WEIGHT = 0.4, 60.0  # beside the difference of skin (CIELAB): of hair's, and of one less in cosine


@dataclass
class Person:
    """Somebody in a photo or clip, and who stands in."""

    code: np.ndarray  # float32 [identity_size], of the original face
    stand_in: Identity
    seed: int  # of the stand-in; -1 for one that the user gave


class People:
    """Everybody of a photo or clip."""

    def __init__(
        self, composer: Composer, draw: Callable[[int], Identity], seed: int, given: Sequence[Identity] = ()
    ) -> None:
        """`draw` gives the synthetic person of a number, see `sample.Sampler`. `seed`: number of the first one to look
        at. `given`: who is to stand in, in the order of appearance and over again, in the place of those."""
        self.all: list[Person] = []
        self._composer, self._draw, self._seed, self._given = composer, draw, seed, list(given)

    def restore(self, known: Sequence[tuple[np.ndarray, int]]) -> None:
        """Bring back people by code and seed of the stand-in."""
        self.all = []
        for code, seed in known:
            stand_in = self._given[len(self.all) % len(self._given)] if seed < 0 else self._draw(seed)
            self.all.append(Person(code, stand_in, seed))

    def find(self, code: np.ndarray, present: set[int]) -> int | None:
        """Return the number of the person with that identity code, not one of those present; None for somebody new."""
        cosines = [-1.0 if i in present else float(code @ person.code) for i, person in enumerate(self.all)]
        return int(np.argmax(cosines)) if cosines and max(cosines) >= KNOWN else None

    def add(self, crop: np.ndarray, code: np.ndarray) -> int:
        """Return the number of somebody new, of whom there is an aligned crop RGB uint8 [256, 256, 3] and its code."""
        if self._given:
            self.all.append(Person(code, self._given[len(self.all) % len(self._given)], -1))
        else:
            seed = self._choose(crop, code)
            self.all.append(Person(code, self._draw(seed), seed))
        return len(self.all) - 1

    def _choose(self, crop: np.ndarray, code: np.ndarray) -> int:
        """Of the synthetic people who are strangers to the recogniser, those least so (it goes by sex and age as well)
        are composed in this pose and light; of the compositions that are strangers, too, the one whose skin and hair
        are nearest is chosen, or else the one least alike."""
        taken = {person.seed for person in self.all}
        seeds = [seed for seed in range(self._seed, self._seed + CANDIDATES + len(taken)) if seed not in taken]
        people = {seed: self._draw(seed) for seed in seeds}
        alike = {seed: float(code @ people[seed].code) for seed in seeds}
        attributes = self._composer.attribute_code(crop)
        tried: dict[int, float] = {}
        fit: dict[int, float] = {}
        near = sorted((seed for seed in seeds if alike[seed] < STRANGER), key=lambda seed: -alike[seed])
        for seed in near[:TRIED]:
            image = self._composer.image(self._composer.w(people[seed], attributes))
            small = cv2.resize(image, (CROP_SIZE, CROP_SIZE), interpolation=cv2.INTER_AREA)
            tried[seed] = float(code @ self._composer.identity_code(small))
            if tried[seed] < SAFE:
                fit[seed] = colour_difference(crop, small) - ALIKE_WEIGHT * alike[seed]
        if fit:
            return min(fit, key=lambda seed: fit[seed])
        return min(tried or alike, key=lambda seed: (tried or alike)[seed])


def colour_difference(one: np.ndarray, other: np.ndarray) -> float:
    """Return how far apart skin and hair of two aligned crops RGB uint8 [256, 256, 3] are, in CIELAB (0..about 100)."""
    labs = [cv2.cvtColor(crop.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) for crop in (one, other)]
    apart = []
    for places in (SKIN, HAIR):
        means = [np.mean([lab[t:b, l:r].mean(axis=(0, 1)) for t, b, l, r in places], axis=0) for lab in labs]
        apart.append(float(np.linalg.norm(means[0] - means[1])))
    return apart[0] + HAIR_WEIGHT * apart[1]
