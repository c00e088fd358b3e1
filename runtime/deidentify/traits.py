"""What stand-ins are chosen by: sex and age as they look, read from the codes of a face, and the synthetic people.

dlib's recogniser learned to tell people apart, and its 128 numbers hold sex and age nearly linearly, SFace's a little
more of it; four read-outs tell sex, age, whether somebody is a child, and the sex of children. `benchmarks/traits.py`
fits them and says how well they do, by group. They are for choosing who fits and for nothing else: nobody is told what
they say of a person.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from ..assets import STAND_INS
from ..composer import Composer
from ..identity import encoder_name
from .judges import Judges

CHEEKS = ((130, 175, 78, 108), (130, 175, 148, 178))  # in the aligned crop: top, bottom, left, right px
HAIR = ((16, 52, 88, 168),)
SEX_WEIGHT, AGE_WEIGHT, SKIN_WEIGHT = 40.0, 40.0, 1.5  # of the other sex, of e times the age, and of the skin's colour
CHILD_WEIGHT = 200.0  # of a child for a grown-up, or the other way: more than all else
CHILD = -1.0  # of the read-out, from which on somebody is a child: 240 photographs of grown-ups reach -1.4 at most
YOUNGEST, GROWN = 3.0, 18.0  # years, below which ages do not differ, and from which on somebody is no child


@dataclass(frozen=True)
class Traits:
    """How somebody looks."""

    male: float  # 0..1, certainty
    age: float  # years; below 18 of children alone

    def apart(self, male: np.ndarray | float, age: np.ndarray | float) -> np.ndarray:
        """Return how far from that somebody looks, or everybody of some [n], in units of a difference of colour."""
        older = np.log(np.maximum(age, YOUNGEST) / max(self.age, YOUNGEST))  # ten years are more for a child
        other = np.not_equal(np.less(age, GROWN), self.age < GROWN)
        chance = male + self.male - 2 * male * self.male  # that the sexes differ: an unsure one fits nobody well
        return SEX_WEIGHT * chance + AGE_WEIGHT * np.abs(older) + CHILD_WEIGHT * other

    def like(self, other: Traits) -> bool:
        """Whether another one looks like a child as well, or like a grown-up of the same sex."""
        child = self.age < GROWN
        return child == (other.age < GROWN) and (child or (self.male > 0.5) == (other.male > 0.5))


@dataclass(frozen=True)
class Candidates:
    """Synthetic people to choose from: `numbers` are theirs for `sample.Sampler`. Of some that are drawn for it, the
    code alone is known."""

    numbers: np.ndarray  # int64 [n]
    codes: np.ndarray  # float32 [n, identity_size], of SFace, unit length
    male: np.ndarray | None = None  # float32 [n], as in `Traits`, of their compositions
    age: np.ndarray | None = None  # float32 [n]
    skin: np.ndarray | None = None  # float32 [n, 3], CIE L*a*b* of the cheeks of their compositions

    def some(self, seed: int, count: int) -> Candidates:
        """Return so many of those measured, other ones for another seed."""
        chosen = np.random.default_rng(seed).permutation(len(self.numbers))[:count]
        parts = (self.numbers, self.codes, self.male, self.age, self.skin)
        return Candidates(*(part[chosen] for part in parts if part is not None))

    def apart(self, traits: Traits | None, skin: np.ndarray) -> np.ndarray:
        """Return how far they are from somebody with these traits and this skin, as far as that is known: float64 [n],
        in units of a difference of colour."""
        total = np.zeros(len(self.numbers))
        if self.skin is not None:
            total += SKIN_WEIGHT * np.linalg.norm(self.skin - skin, axis=1)
        if traits is not None and self.male is not None and self.age is not None:
            total += traits.apart(self.male, self.age)
        return total


def known_candidates(composer: Composer) -> Candidates | None:
    """Return the synthetic people that were measured beforehand; None for a generator or encoder of another kind."""
    if "mapping" in composer.bundle.graphs or encoder_name(composer.bundle) != "sface":
        return None
    arrays = _shipped()
    codes = arrays["codes"].astype(np.float32)
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    male, age, skin = (arrays[name].astype(np.float32) for name in ("male", "age", "skin"))
    return Candidates(arrays["numbers"].astype(np.int64), codes, male, age, skin)


def look_at(judges: Judges | None, crop: np.ndarray, code: np.ndarray) -> Traits | None:
    """Return how the person of an aligned crop RGB uint8 [256, 256, 3] looks, whose code of SFace is known: float32
    [128]. dlib's is the mean of it and its mirror image; None without that recogniser."""
    if judges is None:
        return None
    codes = [judges.second(view) for view in (crop, np.ascontiguousarray(crop[:, ::-1]))]
    known = [one for one in codes if one is not None]
    return read_traits(np.mean(known, axis=0), code) if known else None


def read_traits(dlib: np.ndarray, sface: np.ndarray) -> Traits:
    """Return how the person of the codes of both recognisers, float32 [128] each, looks."""
    male, age, child, boy = np.concatenate([dlib, sface, [1]]) @ _shipped()["readout"]
    young = child > CHILD
    years = np.clip(age, 0, GROWN - 1) if young else np.clip(age, GROWN, 90)
    return Traits(float(1 / (1 + np.exp(-(boy if young else male)))), float(years))


def colour(crop: np.ndarray, places: Sequence[tuple[int, int, int, int]]) -> np.ndarray:
    """Return the mean colour of `CHEEKS` or `HAIR` of an aligned crop RGB uint8 [256, 256, 3]: CIE L*a*b*, float32
    [3]."""
    lab = cv2.cvtColor(crop.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    return np.mean([lab[top:bottom, left:right].mean(axis=(0, 1)) for top, bottom, left, right in places], axis=0)


@cache
def _shipped() -> dict[str, np.ndarray]:
    with np.load(STAND_INS, allow_pickle=False) as arrays:
        return dict(arrays)
