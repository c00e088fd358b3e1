"""From five face points to the aligned crop, and back: the framing of the FFHQ data set, which the generator knows.

The formula is the published one (Karras et al. 2019, FFHQ `download_ffhq.py`), which reads eye centres and mouth
corners off 68 landmarks; here they are the detector's points. The crop is one similarity transform of the photo.

How well the two framings agree was measured on generated faces, which are FFHQ-aligned by construction, so that
aligning them again ought to change nothing: 64 faces (z ~ N(0, 1), psi 0.8, 1024 px), as they are, and put into a
larger picture at 0.2 to 1.2 of their size, turned by up to 25 degrees. Aligned with the points of `Detector.refine`,
at 256 px (mean +- standard deviation over faces; "corner" is the shift of the mean transform at the crop's corners):

    as they are   centre (-0.3 +- 0.9, +0.4 +- 1.5) px   scale 1.000 +- 0.034   roll -0.1 +- 1.4 degrees   corner 0.6 px
    moved         centre (-0.3 +- 0.9, +0.4 +- 1.5) px   scale 0.999 +- 0.036   roll +0.1 +- 1.5 degrees   corner 0.7 px

So the mean is the identity transform within 1 px and no correction is applied. The detector's first points alone give
scale 0.975 +- 0.062, roll -1.9 +- 2.6 degrees and a corner shift of 8.7 px: that is why faces are refined.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ..errors import InputError
from .crop import CROP_SIZE

EYE_TO_EYE = 2.0  # the crop's half side is at least this many distances between the eyes
EYE_TO_MOUTH = 1.8  # and at least this many distances from the eyes to the mouth
CENTRE_DOWN = 0.1  # the crop's centre lies below the eyes by this part of the way to the mouth
BLUR_BEYOND = 0.02  # sigma of the blur outside the photo, in sides of the crop; as FFHQ does it
BLUR_WITHIN = 0.1  # the blur is complete this far outside the photo, in sides of the crop
LARGER = 1.25  # a photo of so many times the area of its crop shows more than the head
FLAT_WITHIN = 0.3  # and all detail is gone here


@dataclass(frozen=True)
class Alignment:
    """The similarity transform between a photo and its aligned crop. Pixel centres are at whole coordinates."""

    matrix: np.ndarray  # float64 [2, 3]: (x, y, 1) in the photo, px -> (x, y) in the crop, px
    size: int = CROP_SIZE  # px, side of the crop

    @property
    def inverse(self) -> np.ndarray:
        """float64 [2, 3]: (x, y, 1) in the crop, px -> (x, y) in the photo, px."""
        return invert(self.matrix)

    @property
    def side_px(self) -> float:
        """Side of the crop in px of the photo."""
        return self.size / float(np.hypot(self.matrix[0, 0], self.matrix[1, 0]))

    @property
    def roll_degrees(self) -> float:
        """How far the head is tilted in the photo, clockwise, in degrees."""
        return -float(np.degrees(np.arctan2(self.matrix[1, 0], self.matrix[0, 0])))

    def is_part_of(self, image: np.ndarray) -> bool:
        """Whether a photo uint8 [height, width, 3] shows more than this crop: a quarter more at least."""
        height, width = image.shape[:2]
        corners = transform(self.inverse, np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * self.size - 0.5)
        inside, _ = cv2.intersectConvexConvex(
            corners.astype(np.float32), np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32) - 0.5
        )
        return height * width > LARGER * inside

    def resized(self, size: int) -> Alignment:
        """Return the same framing with a crop of `size` px."""
        factor = size / self.size
        return Alignment(factor * self.matrix + np.array([[0, 0, 1], [0, 0, 1]]) * (factor - 1) / 2, size)

    def widened(self, factor: float) -> Alignment:
        """Return a framing of the same middle, `factor` times as wide, in as many px."""
        middle = np.array([[0, 0, 1], [0, 0, 1]]) * (self.size - 1) / 2
        return Alignment(self.matrix / factor + middle * (1 - 1 / factor), self.size)

    def crop(self, image: np.ndarray, *, quick: bool = False) -> np.ndarray:
        """Return the aligned crop uint8 [size, size, 3] of a photo uint8 [height, width, 3], in the photo's colour
        order.

        What lies outside the photo is its mirror image, fading into a blur and then into one colour, as in FFHQ.
        `quick`: resampled as by `quick_warp`, for frames.
        """
        warped = (quick_warp if quick else warp)(image, self.matrix, self.size, self.size)
        outside = self._outside(image.shape[0], image.shape[1])
        if outside.max() <= 1.0:  # px; a thin mirrored border shows nothing
            return warped
        flat = np.median(warped[outside <= 0], axis=0) if (outside <= 0).any() else np.median(warped, axis=(0, 1))
        soft = cv2.GaussianBlur(warped, (0, 0), BLUR_BEYOND * self.size, borderType=cv2.BORDER_REFLECT_101)
        result = warped.astype(np.float32)
        result += (soft - result) * np.clip(outside / (BLUR_WITHIN * self.size), 0, 1)[..., None]
        result += (flat - result) * np.clip(outside / (FLAT_WITHIN * self.size), 0, 1)[..., None]
        return np.rint(result).clip(0, 255).astype(np.uint8)

    def paste(self, image: np.ndarray, crop: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """Return a copy of the photo with the crop put back where it came from.

        `image` is uint8 [height, width, 3], `crop` uint8 [size, size, 3] in the same colour order, `mask` float32
        [size, size], 0..1, the crop's opacity; None is 1 everywhere in the crop.
        """
        height, width = image.shape[:2]
        corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * self.size - 0.5
        around = transform(self.inverse, corners)
        left, top = np.clip(np.floor(around.min(axis=0)).astype(int), 0, (width, height))
        right, bottom = np.clip(np.ceil(around.max(axis=0)).astype(int) + 1, 0, (width, height))
        result = image.copy()
        if left >= right or top >= bottom:
            return result
        to_region = self.inverse - np.array([[0, 0, left], [0, 0, top]])
        opacity = np.ones((self.size, self.size), np.float32) if mask is None else mask.astype(np.float32)
        inner = warp(crop, to_region, right - left, bottom - top)
        size = (right - left, bottom - top)  # linear: opacity is smooth, and cubic takes four times as long
        alpha = cv2.warpAffine(opacity, to_region, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        region = result[top:bottom, left:right]
        region[:] = cv2.blendLinear(inner, region, alpha, 1 - alpha)
        return result

    def _outside(self, height: int, width: int) -> np.ndarray:
        """float32 [size, size]: how far each pixel of the crop is outside the photo, in px of the crop; < 0 inside."""
        columns, rows = np.meshgrid(np.arange(self.size, dtype=np.float32), np.arange(self.size, dtype=np.float32))
        x, y = (row[0] * columns + row[1] * rows + row[2] for row in self.inverse.astype(np.float32))
        beyond = np.maximum(np.maximum(-0.5 - x, x - (width - 0.5)), np.maximum(-0.5 - y, y - (height - 0.5)))
        return beyond * (self.size / self.side_px)


def align(points: np.ndarray, size: int = CROP_SIZE) -> Alignment:
    """Return the FFHQ alignment of a face from its five points, float [5, 2], px in the photo.

    The order is: the eye on the picture's left, the other eye, nose tip, mouth corner on the picture's left, the other
    corner. Raises `InputError` when the points are no face (all in one place, or not finite).
    """
    points = np.asarray(points, np.float64) + 0.5  # to coordinates that start at the corner of the first pixel
    left_eye, right_eye = points[0], points[1]
    eyes, mouth = (left_eye + right_eye) / 2, (points[3] + points[4]) / 2
    eye_to_eye, eye_to_mouth = right_eye - left_eye, mouth - eyes
    across = eye_to_eye - eye_to_mouth[::-1] * (-1, 1)  # the horizontal axis of the face, both measures agreeing
    length = float(np.hypot(*across))
    half = max(np.hypot(*eye_to_eye) * EYE_TO_EYE, np.hypot(*eye_to_mouth) * EYE_TO_MOUTH)
    if not np.isfinite(points).all() or length < 1e-6 or half < 1e-6:
        raise InputError("the five points of the face do not make a face.")
    centre = eyes + CENTRE_DOWN * eye_to_mouth
    cosine, sine = across / length * (size / (2 * half))
    rotation = np.array([[cosine, sine], [-sine, cosine]])
    offset = size / 2 - rotation @ centre
    return Alignment(np.column_stack([rotation, rotation @ (0.5, 0.5) + offset - 0.5]), size)


def fit_similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the similarity transform float64 [2, 3] that takes points `source` [n, 2] to `target` [n, 2], least
    squares.

    Umeyama's solution in the plane, written with complex numbers: target = a * source + b, with one complex a.
    """
    z, t = (np.asarray(p, np.float64) @ (1, 1j) for p in (source, target))
    centred = z - z.mean()
    a = np.vdot(centred, t - t.mean()) / np.vdot(centred, centred).real
    b = t.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def invert(matrix: np.ndarray) -> np.ndarray:
    """Return the inverse float64 [2, 3] of an affine transform [2, 3]."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.column_stack([linear, -linear @ matrix[:, 2]])


def transform(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return points float [n, 2] through an affine transform [2, 3]."""
    return np.asarray(points) @ matrix[:, :2].T + matrix[:, 2]


def warp(image: np.ndarray, matrix: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return `image` [h, w] or [h, w, c] through a similarity transform float64 [2, 3], into [height, width(, c)].

    When the result is smaller than its source, the source is averaged down first (exact area means over the part that
    is needed), so that nothing is skipped over; what remains is a cubic resampling at about 1:1.
    """
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if scale < 1:
        corners = transform(invert(matrix), np.array([[0, 0], [width, 0], [width, height], [0, height]]) - 0.5)
        margin = 3 / scale  # px of the source: the reach of the cubic kernel
        limit = (image.shape[1], image.shape[0])
        left, top = np.clip(np.floor(corners.min(axis=0) - margin).astype(int), 0, limit)
        right, bottom = np.clip(np.ceil(corners.max(axis=0) + margin).astype(int), 0, limit)
        if left < right and top < bottom:
            part = image[top:bottom, left:right]
            small = (max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale)))
            image = cv2.resize(part, small, interpolation=cv2.INTER_AREA)
            ratio = np.array([(right - left) / small[0], (bottom - top) / small[1]])
            to_photo = np.column_stack([np.diag(ratio), ratio / 2 - 0.5 + (left, top)])
            linear = matrix[:, :2] @ to_photo[:, :2]
            matrix = np.column_stack([linear, matrix[:, :2] @ to_photo[:, 2] + matrix[:, 2]])
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)


def quick_warp(image: np.ndarray, matrix: np.ndarray, width: int, height: int) -> np.ndarray:
    """Warp frames as `warp` does, in a third of its time, and as free of noise: means of n x n pixels for a whole n
    bring the scale to 0.5:1 or more, a blur by 3 x 3 stands for the rest of the averaging, and linear
    interpolation follows."""
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if scale < 1:
        step = int(1 / scale)
        corners = transform(invert(matrix), np.array([[0, 0], [width, 0], [width, height], [0, height]]) - 0.5)
        limit = np.array([image.shape[1], image.shape[0]])
        start = np.clip(np.floor(corners.min(axis=0)).astype(int) - 2 * step, 0, limit)
        size = (np.clip(np.ceil(corners.max(axis=0)).astype(int) + 2 * step, 0, limit) - start) // step
        if size.min() > 0:
            (left, top), (across, down) = start, size
            image = image[top : top + down * step, left : left + across * step]
            if step > 1:
                image = cv2.resize(image, (int(across), int(down)), interpolation=cv2.INTER_AREA)
            offset = start + (step - 1) / 2
            matrix = np.column_stack([matrix[:, :2] * step, matrix[:, :2] @ offset + matrix[:, 2]])
            side = (1 - scale * step) / 3  # no more noise is left than by exact means, to 4 %
            taps = np.array([side, 1 - 2 * side, side], np.float32)
            image = cv2.sepFilter2D(image, -1, taps, taps, borderType=cv2.BORDER_REFLECT_101)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
