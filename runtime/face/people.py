"""Finding people, also from behind or with a covered face, and where their heads are.

The network is NanoDet-g (https://github.com/RangiLyu/nanodet, Apache License 2.0), converted by `trainer.people`. In
three maps it says, for each place, how sure it is of a person there, and how far it is from there to the left, top,
right and bottom of that person: eleven numbers each, whose softmax is the chance of 0 to 10 strides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import cv2
import numpy as np

Box = tuple[float, float, float, float]  # left, top, width, height, px

SIDE = 416  # px, of the picture that the network sees
STRIDES = (8, 16, 32)  # px, from one place where a person may be to the next, in its three maps
STEPS = 11  # of a distance
MEAN = np.array([103.53, 116.28, 123.675], np.float32)  # 0..255, BGR, of its training
SPREAD = np.array([57.375, 57.12, 58.395], np.float32)
LEAST = 0.35  # 0..1, certainty of a person
SAME = 0.5  # of the area that two boxes cover together: above it, both are one person

RunPeople = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""`picture` float32 [1, 3, 416, 416] -> `stride_N` float32 [1, 45, 416 / N, 416 / N] by name."""


def find_people(run: RunPeople, image: np.ndarray) -> list[tuple[float, Box]]:
    """Return certainty (0..1) and box of the people in a picture RGB uint8 [height, width, 3], the surest first."""
    height, width = image.shape[:2]
    factor = SIDE / max(height, width)
    small = max(1, round(width * factor)), max(1, round(height * factor))
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    view = np.zeros((SIDE, SIDE, 3), np.float32)
    view[: small[1], : small[0]] = (cv2.resize(image, small, interpolation=method)[..., ::-1] - MEAN) / SPREAD
    maps = run(np.ascontiguousarray(view.transpose(2, 0, 1)[None]))
    found: list[tuple[float, Box]] = []
    for stride in STRIDES:
        values = maps[f"stride_{stride}"][0].astype(np.float64)
        certainty = 1 / (1 + np.exp(-values[0]))
        for row, column in np.argwhere(certainty > LEAST):
            sides = values[1:, row, column].reshape(4, STEPS)
            chances = np.exp(sides - sides.max(axis=1, keepdims=True))
            chances /= chances.sum(axis=1, keepdims=True)
            left, top, right, bottom = chances @ np.arange(STEPS) * stride / factor
            x, y = (column + 0.5) * stride / factor, (row + 0.5) * stride / factor
            found.append((float(certainty[row, column]), (x - left, y - top, left + right, top + bottom)))
    kept: list[tuple[float, Box]] = []
    for score, box in sorted(found, key=lambda one: -one[0]):
        if all(_common(box, other) < SAME for _, other in kept):
            kept.append((score, box))
    return kept


def head_of(person: Box) -> Box:
    """Return where the head of a person ought to be: in the middle of the upper part of the box, or most of that part
    where a head is all that is seen."""
    left, top, width, height = person
    tall = min(0.45 * width, 0.4 * height) if height > 1.8 * width else 0.55 * min(width, height)
    return left + 0.2 * width, top + 0.15 * tall, 0.6 * width, tall


def _common(a: Box, b: Box) -> float:
    """The area that two boxes share, of that which they cover together."""
    wide = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    high = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(wide, 0.0) * max(high, 0.0)
    return shared / max(a[2] * a[3] + b[2] * b[3] - shared, 1e-9)
