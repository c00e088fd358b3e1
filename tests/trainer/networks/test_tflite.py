"""MediaPipe's networks from their .tflite files: a person against the background, irises between the eyes' corners."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fid.runtime.assets import FACES
from fid.runtime.errors import FidError
from fid.runtime.face.crop import CROP_SIZE
from fid.runtime.media.images import read_image
from fid.trainer.evaluate.eyes import Gaze, openness
from fid.trainer.networks.facemesh import FaceMesh
from fid.trainer.networks.tflite import TfliteGraph
from fid.trainer.pixels import as_crops, from_uint8


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    """Shipped faces, uint8 [N, 256, 256, 3]."""
    faces = [read_image(path) for path in sorted(FACES.glob("identity-*.jpg"))]
    return np.concatenate([as_crops(face[None]) for face in faces])


def test_a_person_stands_out_from_the_background(fetched: Callable[[str], Path], crops: np.ndarray) -> None:
    network = TfliteGraph(fetched("segmentation") / "selfie_segmentation.tflite")
    (person,) = network((from_uint8(crops) + 1) / 2)
    assert person.shape == (len(crops), 1, CROP_SIZE, CROP_SIZE)
    assert person[:, :, 96:224, 80:176].mean() > 0.98  # the face
    assert person[:, :, :40, [0, 1, 2, 3, -4, -3, -2, -1]].mean() < 0.2  # the upper corners


def test_gaze_turns_round_in_a_mirror(fetched: Callable[[str], Path], crops: np.ndarray) -> None:
    fetched("iris")
    mesh, gaze = FaceMesh.load(), Gaze.load()
    mirrored = np.ascontiguousarray(crops[:, :, ::-1])
    with torch.no_grad():
        points, others = (mesh(from_uint8(one)).numpy() for one in (crops, mirrored))
    assert ((openness(points) > 0.15) & (openness(points) < 0.5)).all()
    seen, turned = gaze.look(crops, points), gaze.look(mirrored, others)
    assert np.abs(seen).max() < 0.5  # between the corners
    np.testing.assert_allclose(seen, turned * (-1, 1), atol=0.08)


def test_what_is_no_network(tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(b"no such file at all")
    with pytest.raises(FidError, match="it is not a tflite file"):
        TfliteGraph(path)
