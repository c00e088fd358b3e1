"""Hiding a face that cannot be replaced: a mosaic so coarse that nothing of the face is left in it."""

from __future__ import annotations

import cv2
import numpy as np

CELLS = (6, 4, 2, 1)  # across a hidden face: as many as change it enough, the first that does
CHANGED = 10.0  # 0..255, mean difference in the middle of the face that is enough
AROUND = 0.25  # how much larger than its box a face is hidden, in sides of the box


def mosaic(image: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """Return a copy of RGB uint8 [height, width, 3] in which the box (left, top, width, height, px) and a margin around
    it are a mosaic of `CELLS`; where the border cuts it, of cells as large as if it did not."""
    left, top, width, height = box
    corner = np.array([left - AROUND * width, top - AROUND * height])
    far = np.array([left + (1 + AROUND) * width, top + (1 + AROUND) * height])
    limit = (image.shape[1], image.shape[0])
    (x, y), (x_end, y_end) = (np.clip(np.rint(point).astype(int), 0, limit) for point in (corner, far))
    result = image.copy()
    if x >= x_end or y >= y_end:
        return result
    part = result[y:y_end, x:x_end]
    for cells in CELLS:
        across, down = (far - corner) / cells  # px of one
        size = max(1, round((x_end - x) / across)), max(1, round((y_end - y) / down))
        size = min(size[0], x_end - x), min(size[1], y_end - y)
        coarse = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
        hidden = cv2.resize(coarse, (x_end - x, y_end - y), interpolation=cv2.INTER_NEAREST).reshape(part.shape)
        result[y:y_end, x:x_end] = hidden
        if middle_difference(image, result, box) >= CHANGED:
            break
    return result


def middle_difference(one: np.ndarray, other: np.ndarray, box: tuple[float, float, float, float]) -> float:
    """Return the mean absolute difference, 0..255, of two pictures uint8 [height, width, 3] in the middle half of a
    box; of its part that lies in the picture. 255 where nothing of it does."""
    left, top, width, height = box
    rows = np.clip(np.rint([top + 0.25 * height, top + 0.75 * height]).astype(int), 0, one.shape[0])
    columns = np.clip(np.rint([left + 0.25 * width, left + 0.75 * width]).astype(int), 0, one.shape[1])
    part = np.s_[rows[0] : rows[1], columns[0] : columns[1]]
    if not one[part].size:
        return 255.0
    return float(cv2.absdiff(np.ascontiguousarray(one[part]), np.ascontiguousarray(other[part])).mean())
