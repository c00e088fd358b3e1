"""dlib's recogniser read without dlib gives the numbers that dlib gives."""

import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from fid.runtime.assets import FACES
from fid.runtime.errors import FidError
from fid.runtime.media.images import read_image
from fid.runtime.weights import dlib_file
from fid.runtime.weights.dlib_file import ACCEPT, SIDE, chip_matrices, recogniser_graph

NAME = "dlib_face_recognition_resnet_model_v1.dat"


@pytest.fixture(scope="module")
def data(fetched: Callable[[str], Path]) -> bytes:
    return (fetched("dlib") / NAME).read_bytes()


def codes(data: bytes, crops: np.ndarray) -> np.ndarray:
    """What the graph says of crops uint8 [n, 256, 256, 3]: float32 [n, 128]."""
    session = onnxruntime.InferenceSession(recogniser_graph(data).SerializeToString())
    return np.asarray(session.run(None, {"crop": crops})[0])


def test_it_agrees_with_dlib(data: bytes, fetched: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    dlib = importlib.import_module("dlib")
    own = np.eye(SIDE, 256, dtype=np.float32)  # the chip as it is
    monkeypatch.setattr(dlib_file, "chip_matrices", lambda: (own, own))
    chips = np.stack([read_image(path)[50 : 50 + SIDE, 50 : 50 + SIDE] for path in sorted(FACES.glob("*.jpg"))[:3]])
    padded = np.zeros((len(chips), 256, 256, 3), np.uint8)
    padded[:, :SIDE, :SIDE] = chips
    network = dlib.face_recognition_model_v1(str(fetched("dlib") / NAME))
    reference = np.array([network.compute_face_descriptor(np.ascontiguousarray(chip)) for chip in chips])
    assert np.abs(codes(data, padded) - reference).max() < 1e-5  # float32, another order of sums


def test_it_tells_people_apart(data: bytes) -> None:
    crops = np.stack([read_image(path) for path in sorted(FACES.glob("identity-*.jpg"))])
    found, mirrored = codes(data, crops), codes(data, np.ascontiguousarray(crops[:, :, ::-1]))
    distances = np.linalg.norm(found[:, None] - mirrored[None], axis=2)
    assert np.diag(distances).max() < ACCEPT
    assert (distances + 9 * np.eye(len(crops))).min() > np.diag(distances).max()


def test_the_chip_shows_the_face() -> None:
    rows, columns = chip_matrices()
    assert rows.shape == columns.shape == (SIDE, 256)
    assert np.abs(rows.sum(axis=1) - 1).max() < 1e-5


def test_another_file_is_refused(data: bytes) -> None:
    for broken in (b"", b"nothing of the kind", data[: len(data) // 2]):
        with pytest.raises(FidError, match="damaged or of another version"):
            recogniser_graph(broken)
