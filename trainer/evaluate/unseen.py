"""Judges that training never saw and that tell more than who somebody is: recognisers, age, sex, colour of the skin.

`mobileface` and `faceres` are published for TensorFlow.js and converted while they are read. dlib's answers come from
`judges`.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from ...runtime.face.crop import identity_view
from ...runtime.weights.catalogue import ensure
from ..networks.facemesh import FaceMesh
from ..networks.faceres import BOX
from ..networks.tfjs import TfjsGraph
from ..pixels import from_uint8
from .judges import Seen
from .measures import unit

CHEEKS = (50, 101, 118, 280, 330, 347)  # of the face mesh
PATCH = 4  # px around each of them
FACERES = ("global_pooling/Mean", "gender_pred/Sigmoid", "age_pred/Softmax")
AGES = 100  # years that faceres tells apart


@dataclass(frozen=True)
class Looks:
    """What these judges say about pictures, row by row."""

    codes: dict[str, np.ndarray]  # recogniser -> [N, D]; of unit length, dlib's as they are
    male: np.ndarray  # [N], 0..1
    age: np.ndarray  # [N], years
    skin: np.ndarray  # [N, 3], CIE L*a*b* of the cheeks


@dataclass(frozen=True)
class UnseenJudges:
    """The networks, loaded."""

    mobileface: TfjsGraph
    faceres: TfjsGraph
    mesh: FaceMesh

    @classmethod
    def load(cls) -> "UnseenJudges":
        """Read the fetched networks, fetching them when they are missing. Raises FidError when they cannot be had."""
        return cls(
            TfjsGraph(ensure("mobileface") / "mobileface.json", ("batchnorm0/add_1",)),
            TfjsGraph(ensure("faceres") / "faceres.json", FACERES),
            FaceMesh.load(),
        )

    @torch.no_grad()
    def look(self, seen: Seen, batch: int = 16) -> Looks:
        """Show the crops of `seen` to them; where dlib has looked its codes are taken over."""
        parts = [self._look(seen.crops[i : i + batch]) for i in range(0, len(seen), batch)]
        faces, people, male, age, skin = (np.concatenate(values) for values in zip(*parts, strict=True))
        dlib = {"dlib": seen.codes["dlib"]} if "dlib" in seen.codes else {}
        return Looks({**dlib, "mobileface": unit(faces), "faceres": unit(people)}, male, age, skin)

    def _look(self, crops: np.ndarray) -> tuple[np.ndarray, ...]:
        face = torch.from_numpy(identity_view(crops)).permute(0, 3, 1, 2)
        left, top, right, bottom = BOX
        head = torch.from_numpy(np.ascontiguousarray(crops[:, top:bottom, left:right])).permute(0, 3, 1, 2).float()
        people, male, ages = self.faceres(head)
        age = ages @ torch.arange(AGES, dtype=torch.float32)
        mesh = self.mesh(from_uint8(crops)).numpy()
        codes = self.mobileface(face)[0].numpy()
        return codes, people.numpy(), male[:, 0].numpy(), age.numpy(), cheek_colour(crops, mesh)


def cheek_colour(crops: np.ndarray, mesh: np.ndarray) -> np.ndarray:
    """Return the median colour of the cheeks, CIE L*a*b* [N, 3] under D65, of crops uint8 [N, 256, 256, 3] RGB (sRGB)
    with mesh points [N, 468, 2 or more], px."""
    colours = []
    for crop, points in zip(crops, mesh, strict=True):
        places = np.round(points[list(CHEEKS), :2]).astype(int).clip(PATCH, len(crop) - 1 - PATCH)
        patches = [crop[y - PATCH : y + PATCH + 1, x - PATCH : x + PATCH + 1].reshape(-1, 3) for x, y in places]
        colours.append(np.median(np.concatenate(patches), axis=0))
    rgb = np.array(colours, np.float32)[:, None] / 255
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2Lab)[:, 0].astype(np.float64)
