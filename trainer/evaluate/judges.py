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

import cv2
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
from ..networks.sface import SFace
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
    sface: SFace | None = None  # where the identity encoder is another one
    pose: "PoseNetwork | None" = None

    @property
    def encoder(self) -> str:
        """Under which name the codes of the identity encoder stand among those of the recognisers."""
        return self.frozen.encoder or "SFace"

    @property
    def record(self) -> dict[str, Any]:
        """Who judges, as it stands among the figures."""
        return {
            "identity": ["SFace", *(["dlib"] if self.dlib else []), *(["ArcFace"] if self.arcface else [])],
            "encoder": self.encoder,
            "features": self.features_name,
            "not_measured": self.absent,
        }

    @classmethod
    def load(
        cls,
        frozen: FrozenNetworks,
        arcface: Path | None = None,
        inception: Path | None = None,
        pose: Path | None = None,
    ) -> "Judges":
        """Load the judges. `arcface`: an ONNX file of a 112 px ArcFace network. `inception`: torchvision's weights of
        InceptionV3. `pose`: an ONNX file of HopeNet or 6DRepNet."""
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
        sface = None if frozen.encoder is None else SFace.load().to(device)
        files = arcface and ArcFace(arcface), pose and PoseNetwork(pose)
        return cls(frozen, mesh, lpips.to(device), Gaze.load(), dlib, files[0], network, name, absent, sface, files[1])

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
            {"SFace": (self.sface or self.frozen.identity)(image).cpu().numpy()},
            {"face mesh": mesh[:, list(INNER_FACE), :2]},
            {"face mesh": head_pose(mesh)},
            np.linalg.norm(mesh[:, UPPER_LIP] - mesh[:, LOWER_LIP], axis=1),
            openness(mesh),
            self.gaze.look(crops, mesh),
            self.features(image[:, :, top:bottom, left:right]).cpu().numpy().astype(np.float64),
        )
        if self.frozen.encoder is not None:
            codes = {self.encoder: self.frozen.identity(image).cpu().numpy()}
            seen = replace(seen, codes=seen.codes | codes)
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
        if self.pose is not None:
            seen = replace(seen, poses=seen.poses | {self.pose.name: self.pose.angles(crops)})
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


class PoseNetwork:
    """HopeNet (Ruiz et al. 2018) or 6DRepNet (Hempel et al. 2022) from an ONNX file of the user's: one input
    [N, 3, 224, 224], RGB with ImageNet's mean and deviation. It sees the whole aligned crop, as large as the boxes that
    both were trained on.

    HopeNet answers yaw, pitch and roll as 66 bins of 3 degrees each, 6DRepNet a rotation [N, 3, 3]; a single output
    [N, 3] is taken for pitch, yaw and roll in degrees.
    """

    SIZE = 224  # px
    MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
    BINS = 66

    def __init__(self, path: Path) -> None:
        """Raises FidError in one sentence when the file is no such network."""
        self._session = open_session(path, engine="onnxruntime")
        inputs, outputs = self._session.inputs, self._session.outputs
        shapes = [tuple(port.shape[1:]) for port in outputs]
        known = {((self.BINS,),) * 3: "HopeNet", ((3, 3),): "6DRepNet", ((3,),): "pose network"}
        name = known.get(tuple(shapes))
        if name is None or len(inputs) != 1 or tuple(inputs[0].shape[1:]) != (3, self.SIZE, self.SIZE):
            raise FidError(
                f"{path} is no HopeNet and no 6DRepNet: expected one input [batch, 3, 224, 224] and three outputs "
                f"[batch, 66] or one [batch, 3, 3]; it has {[list(port.shape) for port in (*inputs, *outputs)]}."
            )
        self.name, self._input, self._outputs = name, inputs[0].name, [port.name for port in outputs]

    def angles(self, crops: np.ndarray) -> np.ndarray:
        """Return pitch, yaw, roll [N, 3] in degrees of crops uint8 [N, 256, 256, 3] RGB, with the network's signs."""
        size, angles = (self.SIZE, self.SIZE), []
        for crop in crops:
            face = cv2.resize(crop, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
            face = ((face - self.MEAN) / self.STD).transpose(2, 0, 1)[None]
            found = self._session.run(**{self._input: np.ascontiguousarray(face)})
            angles.append(self._angles([found[name][0].astype(np.float64) for name in self._outputs]))
        return np.stack(angles)

    def _angles(self, found: list[np.ndarray]) -> np.ndarray:
        if self.name == "HopeNet":
            shares = [np.exp(bins - bins.max()) for bins in found]
            yaw, pitch, roll = (3 * (s @ np.arange(self.BINS)) / s.sum() - 99 for s in shares)
            return np.array([pitch, yaw, roll])
        if self.name == "6DRepNet":
            r = found[0]
            across = np.hypot(r[0, 0], r[1, 0])
            return np.degrees(
                [np.arctan2(r[2, 1], r[2, 2]), np.arctan2(-r[2, 0], across), np.arctan2(r[1, 0], r[0, 0])]
            )
        return found[0]
