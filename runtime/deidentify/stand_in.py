"""Who stands in for whom: synthetic people unlike the original to a recogniser, and like it to the eye."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ..composer import Composer
from ..face.crop import CROP_SIZE
from ..identity import Identity
from .judges import Judges
from .traits import CHEEKS, HAIR, SKIN_WEIGHT, Candidates, colour, look_at

KNOWN = 0.30  # cosine above which a face that appears in a clip is somebody who was there before
STRANGER = 0.20  # cosine of a stand-in with the original, at most; of those below, one more alike fits better
SAFE = 0.25  # cosine of the first composition with the original, at most
MEASURED, DRAWN = 0.75, 32  # synthetic people to choose from: share of those measured beforehand, or drawn for it
TRIED, MOST = 2, 6  # of them are composed; more, one by one, while all look like another sex, or a child grown up
ALIKE_WEIGHT, HAIR_WEIGHT = 30.0, 0.4  # of one less in cosine; of the hair's colour, beside that of the skin


@dataclass
class Person:
    """Somebody in a photo or clip, and who stands in."""

    code: np.ndarray  # float32 [identity_size], of the original face
    stand_in: Identity
    seed: int  # of the stand-in; -1 for one that the user gave


class People:
    """Everybody of a photo or clip."""

    def __init__(
        self,
        composer: Composer,
        draw: Callable[[int], Identity],
        seed: int,
        given: Sequence[Identity] = (),
        *,
        measured: Candidates | None = None,
        judges: Judges | None = None,
    ) -> None:
        """`draw` gives the synthetic person of a number, see `sample.Sampler`. `seed`: which of them are looked at.
        `given`: who is to stand in, in the order of appearance and over again, in the place of those. `measured`: what
        is known of the synthetic people beforehand. `judges`: with dlib's, who tell sex and age."""
        self.all: list[Person] = []
        self._composer, self._draw, self._seed, self._given = composer, draw, seed, list(given)
        self._measured, self._judges = measured, judges

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
        """Of the synthetic people who are strangers to the recogniser, those who fit best by sex, age and skin, or if
        these are not known by being least strange, are composed in this pose and light; of the compositions that are
        strangers, too, the one that looks most alike by the same and by the hair is chosen, one of the other sex only
        where all are; or else the one least alike to the recogniser."""
        candidates, judges = self._candidates(), self._judges if self._measured is not None else None
        traits = look_at(judges, crop, code)
        alike = candidates.codes @ code
        apart = candidates.apart(traits, colour(crop, CHEEKS)) - ALIKE_WEIGHT * alike
        free = ~np.isin(candidates.numbers, [person.seed for person in self.all])
        near = [index for index in np.argsort(apart) if free[index] and alike[index] < STRANGER]
        attributes = self._composer.attribute_code(crop)
        tried: dict[int, float] = {}
        fit: dict[int, tuple[bool, float]] = {}
        for index in near[:MOST]:
            if len(tried) >= TRIED and any(like for like, _ in fit.values()):
                break
            seed = int(candidates.numbers[index])
            image = self._composer.image(self._composer.w(self._draw(seed), attributes))
            small = cv2.resize(image, (CROP_SIZE, CROP_SIZE), interpolation=cv2.INTER_AREA)
            composed = self._composer.identity_code(small)
            tried[seed] = float(code @ composed)
            if tried[seed] < SAFE:
                off = SKIN_WEIGHT * colour_difference(crop, small) - ALIKE_WEIGHT * float(alike[index])
                fit[seed] = (True, off + float(apart[index]))
                if traits is not None and (seen := look_at(judges, small, composed)) is not None:
                    fit[seed] = (traits.like(seen), off + float(traits.apart(seen.male, seen.age)))
        if fit:
            return min(fit, key=lambda seed: (not fit[seed][0], fit[seed][1]))
        rest = dict(zip(candidates.numbers[free].tolist(), alike[free].tolist(), strict=True))
        return min(tried or rest, key=lambda seed: (tried or rest)[seed])

    def _candidates(self) -> Candidates:
        """Those to choose from, more than are taken."""
        if self._measured is not None:
            return self._measured.some(self._seed, int(MEASURED * len(self._measured.numbers)) + len(self.all))
        numbers = self._seed + np.arange(DRAWN + len(self.all))
        return Candidates(numbers, np.array([self._draw(int(number)).code for number in numbers]))


def colour_difference(one: np.ndarray, other: np.ndarray) -> float:
    """Return how far apart skin and hair of two aligned crops RGB uint8 [256, 256, 3] are, in CIELAB (0..about 100)."""
    skin, hair = (np.linalg.norm(colour(one, places) - colour(other, places)) for places in (CHEEKS, HAIR))
    return float(skin + HAIR_WEIGHT * hair)
