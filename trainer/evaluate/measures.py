"""The mathematics of `fid-train evaluate`, on NumPy arrays: distances of distributions, head pose, PCA, sequences.

Axes of 3-D points follow the picture: x to the right, y down, z away from the camera.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from ...runtime.face.crop import CROP_SIZE

# The rigid part of the mean face as the face mesh sees it: number of the point -> (x, y, z) in px of the aligned crop.
# Measured on 128 generated faces (psi 0.8), each turned and scaled onto their mean, then made symmetric; so yaw 0
# and roll 0 are a symmetric view, and pitch 0 is the mean of generated faces.
RIGID_POINTS = {
    **{10: (0.0, -54.4, -20.2), 168: (0.0, -5.4, -23.8), 6: (0.0, 2.3, -28.1), 197: (0.0, 9.5, -33.0)},
    **{195: (0.0, 16.2, -38.4), 5: (0.0, 23.4, -44.0), 4: (0.0, 32.1, -46.4), 1: (0.0, 38.8, -44.1)},
    **{2: (0.0, 44.9, -28.0), 98: (-17.5, 42.1, -19.8), 327: (17.5, 42.1, -19.8)},
    **{33: (-45.3, -1.3, -0.9), 263: (45.3, -1.3, -0.9), 133: (-17.5, 0.3, -6.4), 362: (17.5, 0.3, -6.4)},
    **{127: (-70.7, 3.4, 49.4), 356: (70.7, 3.4, 49.4), 234: (-69.9, 17.9, 54.4), 454: (69.9, 17.9, 54.4)},
    **{54: (-59.9, -35.5, 12.7), 284: (59.9, -35.5, 12.7), 103: (-50.0, -44.7, -0.4), 332: (50.0, -44.7, -0.4)},
    **{21: (-66.2, -24.0, 25.4), 251: (66.2, -24.0, 25.4), 162: (-69.6, -11.8, 38.7), 389: (69.6, -11.8, 38.7)},
}

# The same for dlib's 68 points: x and y from dlib itself on those faces, z from the mesh's point at that place.
DLIB_RIGID_POINTS = {
    **{27: (0.0, 0.0, -23.8), 28: (0.0, 12.2, -33.0), 29: (0.0, 24.3, -44.0), 30: (0.0, 36.9, -46.4)},
    **{33: (0.0, 50.4, -28.0), 31: (-14.7, 45.6, -19.8), 35: (14.7, 45.6, -19.8)},
    **{36: (-43.6, 3.0, -0.9), 45: (43.6, 3.0, -0.9), 39: (-18.7, 4.3, -6.4), 42: (18.7, 4.3, -6.4)},
    **{0: (-72.4, 5.1, 49.4), 16: (72.4, 5.1, 49.4)},
}
DLIB_FOCAL = 800.0  # px of the 256 px crop: a portrait lens; 3000 gives the same angles within 0.5 degrees


def summary(values: np.ndarray) -> dict[str, float | int]:
    """Return mean, standard deviation and count of values [N]; the deviation of a single value is 0."""
    values = np.asarray(values, np.float64)
    return {
        "mean": float(values.mean()),
        "std": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        "n": len(values),
    }


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return cosines [N] of codes [N, D] of any length."""
    return (unit(a) * unit(b)).sum(axis=1)


def unit(codes: np.ndarray) -> np.ndarray:
    """Return codes [..., D] brought to unit length."""
    codes = np.asarray(codes, np.float64)
    return codes / np.maximum(np.linalg.norm(codes, axis=-1, keepdims=True), 1e-12)


def point_distance(points: np.ndarray, others: np.ndarray, side: float) -> np.ndarray:
    """Return the mean Euclidean distance [N] of landmarks [N, K, 2], px, as a fraction of the picture's side in px."""
    return np.linalg.norm(points - others, axis=2).mean(axis=1) / side


def rmse(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the root mean squared difference [N] of pictures uint8 [N, H, W, 3], in units of the full range (0..1)."""
    difference = (images.astype(np.float64) - others) / 255
    return np.sqrt((difference**2).mean(axis=(1, 2, 3)))


def psnr(errors: np.ndarray) -> np.ndarray:
    """Return the peak signal-to-noise ratio in dB of root mean squared errors (0..1); equal pictures count as 100
    dB."""
    return -20 * np.log10(np.maximum(errors, 1e-5))


def frechet_distance(features: np.ndarray, others: np.ndarray) -> float:
    """Return the Frechet distance of two sets of features [N, D] and [M, D], each seen as a Gaussian; squared, as in
    Heusel et al. 2017.

    With fewer samples than dimensions it is far too large, so it only compares sets of one size with each other. NaN
    with fewer than two.
    """
    if min(len(features), len(others)) < 2:
        return float("nan")
    return gaussian_distance(
        features.mean(axis=0), np.cov(features, rowvar=False), others.mean(axis=0), np.cov(others, rowvar=False)
    )


def gaussian_distance(mean: np.ndarray, covariance: np.ndarray, mean_b: np.ndarray, covariance_b: np.ndarray) -> float:
    """Return |mean - mean_b|^2 + tr(C + C_b - 2 (C C_b)^(1/2)), by eigenvalues of the symmetric C^(1/2) C_b C^(1/2)."""
    covariance, covariance_b = np.atleast_2d(covariance), np.atleast_2d(covariance_b)
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ covariance_b @ root)
    spread = np.trace(covariance) + np.trace(covariance_b) - 2 * np.sqrt(product.clip(0)).sum()
    return float(((mean - mean_b) ** 2).sum() + max(spread, 0.0))  # below 0 only by rounding


def euler_angles(rotation: np.ndarray) -> np.ndarray:
    """Return pitch, yaw, roll [..., 3] in degrees of rotations [..., 3, 3] = R_z(roll) R_y(-yaw) R_x(-pitch).

    Pitch > 0 looks up, yaw > 0 turns to the picture's right, roll > 0 tilts clockwise in the picture.
    """
    pitch = -np.arctan2(rotation[..., 2, 1], rotation[..., 2, 2])
    yaw = np.arcsin(rotation[..., 2, 0].clip(-1, 1))
    roll = np.arctan2(rotation[..., 1, 0], rotation[..., 0, 0])
    return np.degrees(np.stack([pitch, yaw, roll], axis=-1))


def rotation_between(reference: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the rotation [3, 3] that takes reference points [K, 3] to points [K, 3] best, up to scale and shift
    (Kabsch)."""
    a, b = reference - reference.mean(axis=0), points - points.mean(axis=0)
    u, _, vt = np.linalg.svd(b.T @ a)
    return u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt


def head_pose(mesh: np.ndarray) -> np.ndarray:
    """Return pitch, yaw, roll [N, 3] in degrees of face mesh points [N, 468, 3], px, from the points that no expression
    moves.

    Zero is the mean generated face. The mesh's depth is in about the scale of x and y, so this is a rigid fit in 3-D
    without a camera.
    """
    index, reference = list(RIGID_POINTS), np.array(list(RIGID_POINTS.values()))
    return np.stack([euler_angles(rotation_between(reference, points[index])) for points in mesh.astype(np.float64)])


def dlib_pose(points: np.ndarray) -> np.ndarray:
    """Return pitch, yaw, roll [N, 3] in degrees of dlib's points [N, 68, 2], px of the 256 px crop, by solvePnP.

    On generated faces it agrees with `head_pose`: correlation 0.93 in pitch, 0.99 in yaw, mean difference 1.9 and 1.3
    degrees (roll hardly varies in aligned crops).
    """
    index, reference = list(DLIB_RIGID_POINTS), np.array(list(DLIB_RIGID_POINTS.values()))
    middle = (CROP_SIZE - 1) / 2
    camera = np.array([[DLIB_FOCAL, 0, middle], [0, DLIB_FOCAL, middle], [0, 0, 1.0]])
    angles = []
    for face in points.astype(np.float64):
        turn, place = np.zeros((3, 1)), np.array([[0.0], [0.0], [DLIB_FOCAL]])  # start: frontal, at scale 1
        _, turn, _ = cv2.solvePnP(reference, face[index], camera, None, turn, place, True, cv2.SOLVEPNP_ITERATIVE)
        angles.append(euler_angles(cv2.Rodrigues(turn)[0]))
    return np.stack(angles)


def pose_distance(angles: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the Euclidean distance [N] of Euler angles [N, 3], degrees: the paper's pose measure."""
    return np.linalg.norm(angles - others, axis=1)


@dataclass(frozen=True)
class Pca:
    """Principal axes of a cloud."""

    mean: np.ndarray  # [D]
    axes: np.ndarray  # [n, D], orthonormal, the widest first; each points to where its largest entry is positive
    share: np.ndarray  # [n], of the cloud's variance

    @classmethod
    def fit(cls, points: np.ndarray, n: int = 2) -> "Pca":
        """Return the first n axes of points [N, D]."""
        points = np.asarray(points, np.float64)
        mean = points.mean(axis=0)
        _, singular, axes = np.linalg.svd(points - mean, full_matrices=False)
        largest = np.abs(axes).argmax(axis=1)
        axes = axes * np.sign(axes[np.arange(len(axes)), largest])[:, None]
        return cls(mean, axes[:n], (singular**2 / (singular**2).sum())[:n])

    def project(self, points: np.ndarray) -> np.ndarray:
        """Return coordinates [N, n] of points [N, D] along the axes."""
        return (np.asarray(points, np.float64) - self.mean) @ self.axes.T


def drift(codes: np.ndarray) -> np.ndarray:
    """Return 1 - cosine [T] of each code [T, D] of a sequence to the sequence's mean (of unit codes)."""
    codes = unit(codes)
    return 1 - codes @ unit(codes.mean(axis=0))


def jitter(points: np.ndarray, frames: np.ndarray | None = None) -> float:
    """Return the mean length of the second difference of landmarks [T, K, 2] in time, in their unit: 0 for even motion.

    `frames` [T] are the frames' numbers; only three frames in a row count. NaN when there are no such three.
    """
    frames = np.arange(len(points)) if frames is None else np.asarray(frames)
    if len(points) < 3:
        return float("nan")
    second = points[2:] - 2 * points[1:-1] + points[:-2]
    in_a_row = (frames[2:] - frames[:-2]) == 2
    return float(np.linalg.norm(second[in_a_row], axis=2).mean()) if in_a_row.any() else float("nan")


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Pearson's correlation of two series [T]; NaN when one does not move."""
    a, b = a - np.mean(a), b - np.mean(b)
    length = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / length) if length > 1e-9 else float("nan")
