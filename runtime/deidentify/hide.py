"""Hiding a face that cannot be replaced: a mosaic so coarse that nothing of the face is left in it."""

from __future__ import annotations

import cv2
import numpy as np

from .places import Box

CELLS = (6, 4, 2, 1)  # across a hidden face: as many as change it enough, the first that does
CHANGED = 10.0  # 0..255, mean difference in the middle of the face that is enough
AROUND = 0.25  # how much larger than its box a face is hidden, in sides of the box


def mosaic(image: np.ndarray, box: Box, cells: tuple[int, ...] = CELLS) -> np.ndarray:
    """Return a copy of RGB uint8 [height, width, 3] in which the box (left, top, width, height, px) and a margin around
    it are a mosaic of so many cells across, one plain colour where no more change it enough; where the border cuts it,
    of cells as large as if it did not."""
    left, top, width, height = box
    corner = np.array([left - AROUND * width, top - AROUND * height])
    far = np.array([left + (1 + AROUND) * width, top + (1 + AROUND) * height])
    limit = (image.shape[1], image.shape[0])
    (x, y), (x_end, y_end) = (np.clip(np.rint(point).astype(int), 0, limit) for point in (corner, far))
    result = image.copy()
    if x >= x_end or y >= y_end:
        return result
    part = result[y:y_end, x:x_end]
    for count in cells:
        across, down = (far - corner) / count  # px of one
        size = max(1, round((x_end - x) / across)), max(1, round((y_end - y) / down))
        size = min(size[0], x_end - x), min(size[1], y_end - y)
        coarse = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
        hidden = cv2.resize(coarse, (x_end - x, y_end - y), interpolation=cv2.INTER_NEAREST).reshape(part.shape)
        result[y:y_end, x:x_end] = hidden
        if middle_difference(image, result, box) >= CHANGED:
            break
    return result


def middle_difference(one: np.ndarray, other: np.ndarray, box: Box) -> float:
    """Return the mean absolute difference, 0..255, of two pictures uint8 [height, width, 3] in the middle half of a
    box; of its part that lies in the picture. 255 where nothing of it does."""
    place = _within(one.shape, box, 0.25)
    if not one[place].size:
        return 255.0
    return float(cv2.absdiff(np.ascontiguousarray(one[place]), np.ascontiguousarray(other[place])).mean())


def detail_left(original: np.ndarray, output: np.ndarray, box: Box) -> float:
    """Return how much of what a picture uint8 [height, width, 3] shows in a box is still in another one: 1 all of it,
    0 none. Each place's own mean does not count, nor does noise that was added. 1 where there was nothing to see."""
    place = _within(original.shape, box, 0.0)
    before, after = (picture[place].reshape(-1, 3).astype(np.float32) for picture in (original, output))
    if not len(before):
        return 1.0
    before = before - before.mean(axis=0)
    size = float((before * before).sum())
    return float((before * after).sum()) / size if size > 0 else 1.0


def _within(shape: tuple[int, ...], box: Box, inset: float) -> tuple[slice, slice]:
    """Rows and columns of a box without `inset` of its sides at each border; of its part that lies in the picture."""
    left, top, width, height = box
    rows = np.clip(np.rint([top + inset * height, top + (1 - inset) * height]).astype(int), 0, shape[0])
    columns = np.clip(np.rint([left + inset * width, left + (1 - inset) * width]).astype(int), 0, shape[1])
    return slice(rows[0], rows[1]), slice(columns[0], columns[1])
