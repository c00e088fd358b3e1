"""Parts of a head in an aligned crop: what is hair, what is face, what stands before it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

PARTS = ("background", "face", "hair", "neck", "body", "occluder")
"""What the network `parts` tells apart, in its order. Ears, eyes and glasses are face; what covers a head is hair."""

PARTS_SIDE = 128
"""px, side of its maps."""

WIDER = 1.5
"""The driver is looked at in a view so many times as wide as the aligned crop: long hair reaches beyond that."""

BACKGROUND, FACE, HAIR, NECK, BODY, OCCLUDER = range(len(PARTS))

FindParts = Callable[[np.ndarray], np.ndarray]
"""Aligned crops RGB uint8 [n, 256, 256, 3] -> parts float32 [n, 6, 128, 128], 0..1, which sum to 1."""
