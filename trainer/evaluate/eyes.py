"""Measure eyes: how far they are open, by the face mesh, and where they look, by MediaPipe's iris network."""

import cv2
import numpy as np
import torch
from torch import nn

from ...runtime.weights.catalogue import ensure
from ..networks.tflite import TfliteGraph

# Of the face mesh, the eye on the picture's left and the other: outer and inner corner, upper and lower lid.
EYES = ((33, 133, 159, 145), (263, 362, 386, 374))
VIEW_SIZE = 64  # px, side of the iris network's input
VIEW_SCALE = 2.3  # of the view's side to the distance between the corners, as in MediaPipe's graph


def openness(mesh: np.ndarray) -> np.ndarray:
    """Return how far the eyes are open [N], of mesh points [N, 468, 2 or more], px.

    It is the gap of the lids over the distance of the corners, mean of both eyes: about 0.3 for open ones, below 0.15
    for closed ones.
    """
    ratios = [
        np.linalg.norm(mesh[:, upper, :2] - mesh[:, lower, :2], axis=1)
        / np.maximum(np.linalg.norm(mesh[:, outer, :2] - mesh[:, inner, :2], axis=1), 1e-6)
        for outer, inner, upper, lower in EYES
    ]
    return np.mean(ratios, axis=0)


class Gaze:
    """The iris network: where the irises lie between the corners of the eyes."""

    def __init__(self, network: nn.Module) -> None:
        """`network`: eye [N, 3, 64, 64], RGB 0..1, as the picture's left eye -> (contours, iris [N, 15])."""
        self.network = network

    @classmethod
    def load(cls) -> "Gaze":
        """Open the fetched network, fetching it when it is missing."""
        return cls(TfliteGraph(ensure("iris") / "iris_landmark.tflite"))

    @torch.no_grad()
    def look(self, crops: np.ndarray, mesh: np.ndarray) -> np.ndarray:
        """Return gaze [N, 2] of crops uint8 [N, 256, 256, 3] RGB with their mesh points [N, 468, 2 or more], px.

        To the picture's right and down, from the middle between the corners, in distances of the corners; mean of both
        eyes.
        """
        places = []
        for mirrored, (outer, inner, _, _) in zip((False, True), EYES, strict=True):
            corners = mesh[:, [outer, inner], :2].astype(np.float64)
            middle = corners.mean(axis=1)
            width = np.maximum(np.linalg.norm(corners[:, 0] - corners[:, 1], axis=1), 1.0)
            views = np.stack([_view(*one, mirrored) for one in zip(crops, middle, VIEW_SCALE * width, strict=True)])
            eyes = torch.from_numpy(views).permute(0, 3, 1, 2).float() / 255
            iris = self.network(eyes)[1].numpy().reshape(-1, 5, 3)[:, 0, :2]  # its centre
            place = ((iris + 0.5) / VIEW_SIZE - 0.5) * VIEW_SCALE
            places.append(place * (-1, 1) if mirrored else place)
        return np.mean(places, axis=0)


def _view(crop: np.ndarray, middle: np.ndarray, side: float, mirrored: bool) -> np.ndarray:
    """The square of `side` px around `middle`, uint8 [64, 64, 3]."""
    scale = VIEW_SIZE / side
    matrix = np.array([[scale, 0, VIEW_SIZE / 2 - 0.5], [0, scale, VIEW_SIZE / 2 - 0.5]])
    matrix[:, 2] -= scale * middle
    view = cv2.warpAffine(crop, matrix, (VIEW_SIZE, VIEW_SIZE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return view[:, ::-1] if mirrored else view
