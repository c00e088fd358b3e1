"""A small label in a corner of a picture that tells people, not machines, that it is synthetic."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

TEXT = "AI-generated"
WIDTH = 0.16  # of the picture's longer side
LEAST_PX = 96  # width below which nobody reads it
MARGIN = 0.02  # of the longer side, from the corner
GROUND, LETTERS = 0.35, 245  # what is left of the picture behind the letters, 0..1, and their grey, 0..255


def draw_badge(image: np.ndarray) -> np.ndarray:
    """Return a copy of a picture RGB uint8 [height, width, 3] with the label at its bottom left; the picture itself
    where there is no room for it."""
    height, width = image.shape[:2]
    letters = _letters(min(width, max(LEAST_PX, round(WIDTH * max(height, width)))))
    margin = round(MARGIN * max(height, width))
    tall, wide = letters.shape
    bottom, left = height - margin, min(margin, width - wide)
    if bottom < tall or left < 0:
        return image
    result = image.copy()
    field = result[bottom - tall : bottom, left : left + wide]
    field[:] = GROUND * field * (1 - letters[..., None]) + LETTERS * letters[..., None]
    return result


@lru_cache(maxsize=8)
def _letters(width: int) -> np.ndarray:
    """The text on its field, `width` px wide: float32 [height, width], 1 where there is ink."""
    font, thickness = cv2.FONT_HERSHEY_SIMPLEX, 4
    (long, tall), base = cv2.getTextSize(TEXT, font, 2.0, thickness)
    field = np.zeros((2 * tall + base, long + 2 * tall), np.uint8)
    cv2.putText(field, TEXT, (tall, tall + tall // 2 + base // 2), font, 2.0, 255, thickness, cv2.LINE_AA)
    size = width, round(width * field.shape[0] / field.shape[1])
    return cv2.resize(field, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
