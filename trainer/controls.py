"""Pose and expression in the attribute code: which parts of it they are, learned from generated faces.

Both are nearly linear in the code. One ridge regression reads them off a code; another one, of codes on pose,
expression and identity, says how the code changes with one of them while the others stay. A composition follows less,
or more, when the part that is read off is scaled and the code moved by the difference.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from ..runtime.composer import Composer
from ..runtime.face.crop import CROP_SIZE
from ..runtime.sample import Sampler
from .evaluate.measures import RIGID_POINTS, head_pose, rotation_between
from .networks.facemesh import FaceMesh
from .pixels import from_uint8

PSI = 1.0  # of them: the generator's full variety of poses
POSE = 2  # how many of the numbers are of the pose: pitch and yaw; aligned crops have no roll
CORNERS, LIPS, CHIN, NOSE = (61, 291), (13, 14), 152, 4  # of the face mesh: of the mouth, inner rims, tips
EYES = ((33, 133, 159, 145), (263, 362, 386, 374))  # outer and inner corner, upper and lower lid
BROWS = ((55, 133), (285, 362), (105, 159), (334, 386))  # brow and what lies below it: inner ends, then middles
SMILE = slice(0, 3)  # of the expression's numbers: what tells a neutral mouth
NEUTRAL = 0.25  # share of the faces whose mouths are the most neutral
PREDICTING, MOVING = 0.1, 1e-3  # ridge, in shares of the mean variance
IDENTITIES = 48  # principal axes of identity codes that are held still
BATCH = 16


@dataclass(frozen=True)
class LinearControls:
    """What `export.graphs.ControlsGraph` computes with; the first `POSE` of K numbers are the pose's."""

    predict: np.ndarray  # float32 [D, K]: numbers = code @ predict - neutral
    neutral: np.ndarray  # float32 [K]
    move: np.ndarray  # float32 [K, D]: how a code changes with each number


def expression_of(meshes: np.ndarray) -> np.ndarray:
    """Return the expression's numbers [N, 7] of face mesh points [N, 468, 3], px, with the head turned to the front, in
    shares of the head's size: the gap between the lips, the mouth's width, how high its corners are, how far the eyes
    are open (of their width), how high the brows' inner ends and middles are, and how low the chin is."""
    index, reference = list(RIGID_POINTS), np.array(list(RIGID_POINTS.values()))
    numbers = []
    for points in meshes.astype(np.float64):
        middle = points[index].mean(axis=0)
        front = (points - middle) @ rotation_between(reference, points[index])
        front /= np.linalg.norm(front[index])

        def apart(a: int, b: int, front: np.ndarray = front) -> float:
            return float(np.linalg.norm(front[a] - front[b]))

        height = front[:, 1]
        corners = height[list(LIPS)].mean() - height[list(CORNERS)].mean()
        eyes = np.mean([apart(upper, lower) / apart(outer, inner) for outer, inner, upper, lower in EYES])
        brows = [height[below] - height[brow] for brow, below in BROWS]
        mouth = apart(*LIPS), apart(*CORNERS), corners
        numbers.append([*mouth, eyes, np.mean(brows[:2]), np.mean(brows[2:]), height[CHIN] - height[NOSE]])
    return np.array(numbers)


def learn(codes: np.ndarray, identities: np.ndarray, meshes: np.ndarray) -> LinearControls:
    """Return the controls of faces: attribute codes [N, D], identity codes [N, I] and face mesh points [N, 468, 3]."""
    expression = expression_of(meshes)
    numbers = np.hstack([head_pose(meshes)[:, :POSE], expression])
    smile = ((expression - expression.mean(axis=0)) / expression.std(axis=0))[:, SMILE].sum(axis=1)
    most_neutral = np.argsort(smile)[: max(1, round(NEUTRAL * len(smile)))]
    neutral = np.concatenate([np.zeros(POSE), expression[most_neutral].mean(axis=0)])
    return fit_controls(codes, identities, numbers, neutral)


def fit_controls(codes: np.ndarray, identities: np.ndarray, numbers: np.ndarray, neutral: np.ndarray) -> LinearControls:
    """Return the controls of faces with attribute codes [N, D], identity codes [N, I], and numbers [N, K] that are to
    be scaled around `neutral` [K]."""
    predict, shift = _ridge(codes, numbers, PREDICTING)
    axes = np.linalg.svd(identities - identities.mean(axis=0), full_matrices=False)[2][:IDENTITIES]
    move, _ = _ridge(np.hstack([numbers, identities @ axes.T]), codes, MOVING)
    return LinearControls(
        predict.astype(np.float32),
        (neutral - shift).astype(np.float32),
        move[: numbers.shape[1]].astype(np.float32),
    )


def _ridge(given: np.ndarray, wanted: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights [A, B] and constants [B] with wanted = given @ weights + constants, each column of `given` in its own
    unit."""
    unit = np.maximum(given.std(axis=0), 1e-9)
    mean, wanted_mean = given.mean(axis=0), wanted.mean(axis=0)
    x = (given - mean) / unit
    square = x.T @ x + strength * len(x) * np.eye(x.shape[1])
    weights = np.linalg.solve(square, x.T @ (wanted - wanted_mean)) / unit[:, None]
    return weights, wanted_mean - mean @ weights


def draw_faces(
    composer: Composer, count: int, progress: Callable[[int], None] = lambda done: None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return attribute codes, identity codes and face mesh points of so many generated faces, for `learn`."""
    sampler, mesh = Sampler(composer, PSI), FaceMesh.load()
    codes, identities, meshes, crops = [], [], [], []
    for number in range(count):
        image = composer.image(sampler.w(number))
        crops.append(cv2.resize(image, (CROP_SIZE, CROP_SIZE), interpolation=cv2.INTER_AREA))
        codes.append(composer.attribute_code(crops[-1]))
        identities.append(composer.identity_code(crops[-1]))
        if len(crops) == BATCH or number == count - 1:
            meshes.append(mesh(from_uint8(np.stack(crops))).numpy())
            crops.clear()
        progress(number + 1)
    return np.stack(codes), np.stack(identities), np.concatenate(meshes)
