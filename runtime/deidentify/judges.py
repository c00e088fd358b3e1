"""The two recognisers of the verdict: SFace, which training saw, and dlib's ResNet, which it never saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..composer import Composer
from ..engines.open import open_session
from ..engines.session import checked
from ..errors import FidError
from ..weights.dlib_file import ACCEPT
from ..weights.prepare import prepared

MATCH = 0.363  # cosine above which SFace says "one person": OpenCV's value, from Labeled Faces in the Wild
MATCH_DLIB = ACCEPT  # distance below which dlib's says so: its author's value
STRICT = 0.366  # cosine that one pair of strangers in 1,000 reaches: LFW's statistics in trainer/data, 16 million pairs


@dataclass(frozen=True)
class Codes:
    """What both say of one crop."""

    sface: np.ndarray  # float32 [identity_size], unit length
    dlib: np.ndarray | None  # float32 [128]; None without that recogniser


class Judges:
    """Both recognisers. For one thread."""

    def __init__(self, composer: Composer, *, second: bool = True) -> None:
        """Opens dlib's network, fetching it the first time. Where that cannot be, `absent` says why, and SFace judges
        alone; so it does with `second` False."""
        self._composer, self._session, self.absent = composer, None, ""
        try:
            if second:
                self._session = open_session(prepared("recogniser"), engine="onnxruntime")
        except FidError as error:
            self.absent = str(error)

    @property
    def names(self) -> list[str]:
        """The names of those that judge."""
        return ["sface", "dlib"] if self._session is not None else ["sface"]

    def look(self, crop: np.ndarray, both: bool = True) -> Codes:
        """Return both codes of an aligned crop RGB uint8 [256, 256, 3], or SFace's alone."""
        return Codes(self._composer.identity_code(crop), self.second(crop) if both else None)

    def second(self, crop: np.ndarray) -> np.ndarray | None:
        """Return dlib's code float32 [128] of an aligned crop RGB uint8 [256, 256, 3]; None without that recogniser."""
        if self._session is None:
            return None
        code = self._session.run(crop=crop[None])["code"][0]
        return checked(code, "recogniser", self._session)  # what is no number is nobody's, and would clear everybody


@dataclass(frozen=True)
class Likeness:
    """How alike a face is to the original, by both."""

    cosine: float  # SFace, 1 is the same
    distance: float | None  # dlib, 0 is the same

    @property
    def matches(self) -> bool:
        """Whether all recognisers that looked say "one person"."""
        return self.cosine >= MATCH and (self.distance is None or self.distance < MATCH_DLIB)


def likeness(originals: Sequence[Codes], face: Codes) -> Likeness:
    """Return how alike a face is to somebody of whom there are some codes: to the mean of them."""
    mean = np.mean([codes.sface for codes in originals], axis=0)
    cosine = float(face.sface @ mean / max(float(np.linalg.norm(mean)), 1e-9))
    known = [codes.dlib for codes in originals if codes.dlib is not None]
    if face.dlib is None or not known:
        return Likeness(cosine, None)
    return Likeness(cosine, float(np.linalg.norm(face.dlib - np.mean(known, axis=0))))


def recognisable(originals: Sequence[Codes]) -> bool:
    """Return whether the recognisers know the original face again in other pictures of itself, in half of them at
    least: where they do not, that they do not know its stand-in says nothing."""
    if len(originals) < 2:
        return False
    known = [likeness([*originals[:i], *originals[i + 1 :]], codes).matches for i, codes in enumerate(originals)]
    return float(np.mean(known)) >= 0.5
