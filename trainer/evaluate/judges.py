"""The networks that judge pictures in `fid-train evaluate`: recognisers, landmarks, features for distributions.

SFace and the face mesh took part in training, so they flatter. dlib's recogniser and its 68 points did not; they need
the extra `eval`, and without it their figures are left out. ArcFace and Inception come from files of the user's.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...runtime.commands.progress import progress_of
from ...runtime.engines.open import open_session
from ...runtime.errors import FidError
from ...runtime.face.crop import IDENTITY_SIZE, identity_view
from ...runtime.weights import catalogue as models
from ..data.dataset import FrozenNetworks
from ..networks.facemesh import INNER_FACE, FaceMesh
from ..networks.inception import InceptionV3
from ..networks.lpips import LPIPS
from ..pixels import from_uint8
from .eyes import Gaze, openness
from .measures import dlib_pose, head_pose

EVAL_LINE = "pip install 'fid-face[eval]'"
ACCEPT = 0.6  # dlib distance below which two faces count as one person (its author's threshold)
DLIB_BOX = (48, 75, 201, 230)  # left, top, right, bottom px: mean box of dlib's detector on 128 generated crops
UPPER_LIP, LOWER_LIP = 13, 14  # of the face mesh, on the inner rims
FACE_BOX = (30, 27, 227, 224)  # left, top, right, bottom px of the crop: ArcFace's square, the "face crop" of features


@dataclass(frozen=True)
class Seen:
    """What the judges say about pictures, row by row; a judge that is absent has no entry."""

    crops: np.ndarray  # uint8 [N, 256, 256, 3], RGB
    codes: dict[str, np.ndarray]  # recogniser -> [N, D]
    points: dict[str, np.ndarray]  # landmark network -> [N, K, 2], px of the crop
    poses: dict[str, np.ndarray]  # landmark network -> pitch, yaw, roll [N, 3], degrees
    mouth: np.ndarray  # [N], gap between the lips, px of the crop
    eyes: np.ndarray  # [N], how far they are open, see `eyes.openness`
    gaze: np.ndarray  # [N, 2], see `eyes.Gaze`
    features: np.ndarray  # [N, D], for frechet_distance

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index: Any) -> "Seen":
        def rows(value: Any) -> Any:
            return {k: v[index] for k, v in value.items()} if isinstance(value, dict) else value[index]

        return Seen(*(rows(getattr(self, field.name)) for field in fields(self)))


@dataclass(frozen=True)
class Judges:
    """All judges, loaded. `absent` says of those that are not there how to get them."""

    frozen: FrozenNetworks
    mesh: FaceMesh
    lpips: LPIPS
    gaze: Gaze
    dlib: "Dlib | None"
    arcface: "ArcFace | None"
    features: Callable[[Tensor], Tensor]
    features_name: str
    absent: dict[str, str]

    @classmethod
    def load(cls, frozen: FrozenNetworks, arcface: Path | None = None, inception: Path | None = None) -> "Judges":
        """Return `arcface`: an ONNX file of a 112 px ArcFace network. `inception`: torchvision's weights of
        InceptionV3."""
        device, lpips, absent = frozen.w_mean.device, LPIPS.load("alex"), {}
        dlib = Dlib.load() if find_spec("dlib") else None
        if dlib is None:
            absent["dlib"] = EVAL_LINE
        if arcface is None:
            absent["ArcFace"] = "name an ONNX file with --arcface"
        if inception is None:
            network, name = partial(_pooled, lpips), "AlexNet's last convolution (LPIPS v0.1), mean over places, 256-d"
        else:
            network, name = (
                InceptionV3.load(inception).to(device).eval(),
                f"InceptionV3 ({inception.name}), 2048-d",
            )
        own = frozen.landmarks  # FAN, when training used it
        mesh = own if isinstance(own, FaceMesh) else FaceMesh.load().to(device)
        return cls(
            frozen, mesh, lpips.to(device), Gaze.load(), dlib, arcface and ArcFace(arcface), network, name, absent
        )

    @torch.no_grad()
    def look(self, crops: np.ndarray, batch: int = 16) -> Seen:
        """Shows crops uint8 [N, 256, 256, 3] RGB to every judge."""
        starts = range(0, len(crops), batch)
        parts = [self._look(crops[i : i + batch]) for i in progress_of("judging", starts, len(starts))]

        def join(values: list[Any]) -> Any:
            if isinstance(values[0], dict):
                return {key: np.concatenate([value[key] for value in values]) for key in values[0]}
            return np.concatenate(values)

        return Seen(*(join([getattr(part, field.name) for part in parts]) for field in fields(Seen)))

    def _look(self, crops: np.ndarray) -> Seen:
        image = from_uint8(crops).to(self.frozen.w_mean.device)
        left, top, right, bottom = FACE_BOX
        mesh = self.mesh(image).cpu().numpy()
        seen = Seen(
            crops,
            {"SFace": self.frozen.identity(image).cpu().numpy()},
            {"face mesh": mesh[:, list(INNER_FACE), :2]},
            {"face mesh": head_pose(mesh)},
            np.linalg.norm(mesh[:, UPPER_LIP] - mesh[:, LOWER_LIP], axis=1),
            openness(mesh),
            self.gaze.look(crops, mesh),
            self.features(image[:, :, top:bottom, left:right]).cpu().numpy().astype(np.float64),
        )
        if self.dlib is not None:
            points, codes = self.dlib.look(crops)
            seen = replace(
                seen,
                codes=seen.codes | {"dlib": codes},
                points=seen.points | {"dlib": points},
                poses=seen.poses | {"dlib": dlib_pose(points)},
            )
        if self.arcface is not None:
            seen = replace(seen, codes=seen.codes | {"ArcFace": self.arcface.codes(crops)})
        return seen

    @torch.no_grad()
    def perceptual_distance(self, crops: np.ndarray, others: np.ndarray, batch: int = 16) -> np.ndarray:
        """LPIPS (AlexNet) [N] of crops uint8 [N, 256, 256, 3], two by two."""
        device = self.frozen.w_mean.device
        parts = [
            self.lpips(from_uint8(crops[i : i + batch]).to(device), from_uint8(others[i : i + batch]).to(device)).cpu()
            for i in range(0, len(crops), batch)
        ]
        return torch.cat(parts).numpy()


def _pooled(lpips: LPIPS, image: Tensor) -> Tensor:
    """The last features [N, 256] that LPIPS compares, averaged over the picture [N, 3, H, W]."""
    return lpips.features(image)[-1].mean((2, 3))


class Dlib:
    """dlib's ResNet recogniser and its 68 points (package face_recognition_models)."""

    def __init__(self, folder: Path) -> None:
        dlib = importlib.import_module("dlib")
        self._box = dlib.rectangle(*DLIB_BOX)
        self._detector = dlib.get_frontal_face_detector()
        try:
            self._points = dlib.shape_predictor(str(folder / "shape_predictor_68_face_landmarks.dat"))
            self._recogniser = dlib.face_recognition_model_v1(str(folder / "dlib_face_recognition_resnet_model_v1.dat"))
        except RuntimeError as error:
            raise FidError(f"dlib cannot read its networks in {folder} ({error}).") from error

    @classmethod
    def load(cls) -> "Dlib":
        """From the fetched files, fetching them when they are missing."""
        return cls(models.ensure("dlib"))

    def look(self, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return points [N, 68, 2] in px and codes [N, 128] of crops uint8 [N, 256, 256, 3] RGB.

        The face is where dlib's detector finds one, else in the mean box of aligned faces. Codes are not of unit
        length; their Euclidean distance is what dlib's threshold is about.
        """
        points, codes = [], []
        for crop in np.ascontiguousarray(crops):
            boxes = self._detector(crop, 0)
            shape = self._points(crop, max(boxes, key=lambda box: box.area()) if boxes else self._box)
            points.append([(p.x, p.y) for p in shape.parts()])
            codes.append(np.array(self._recogniser.compute_face_descriptor(crop, shape)))
        return np.array(points, np.float64), np.stack(codes)


class ArcFace:
    """An ArcFace network from an ONNX file of the user's: one input [N, 3, 112, 112], RGB in [-1, 1]."""

    def __init__(self, path: Path) -> None:
        """Raises FidError in one sentence when the file is no such network."""
        self._session = open_session(path, engine="onnxruntime")
        inputs = self._session.inputs
        shape = tuple(inputs[0].shape[1:]) if len(inputs) == 1 else ()
        if shape != (3, IDENTITY_SIZE, IDENTITY_SIZE):
            raise FidError(f"{path} is no ArcFace network: its input must be [batch, 3, 112, 112].")
        self._input = inputs[0].name

    def codes(self, crops: np.ndarray) -> np.ndarray:
        """Codes [N, D] of crops uint8 [N, 256, 256, 3] RGB."""
        faces = (identity_view(crops) / 127.5 - 1).transpose(0, 3, 1, 2).astype(np.float32)
        codes = [next(iter(self._session.run(**{self._input: face[None]}).values()))[0] for face in faces]
        return np.stack(codes)
