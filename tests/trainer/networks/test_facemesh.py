"""The face mesh in torch: equal to the published tflite file in OpenVINO, differentiable, points in crop pixels."""

import numpy as np
import pytest
import torch
from fid.runtime.errors import FidError
from fid.runtime.face.crop import CROP_SIZE
from fid.trainer.networks import facemesh
from fid.trainer.networks.facemesh import FACEMESH_FILE, FaceMesh


@pytest.fixture(scope="module")
def mesh_file(fetched):
    return fetched("facemesh") / FACEMESH_FILE


@pytest.fixture(scope="module")
def mesh(mesh_file):
    return FaceMesh.load(mesh_file)


def smooth_pictures(count: int, size: int) -> torch.Tensor:
    """Smooth random pictures [count, 3, size, size] in [-1, 1]."""
    noise = torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(noise, (size, size), mode="bicubic").tanh()


def test_equals_the_published_file(mesh, mesh_file):
    openvino = pytest.importorskip("openvino")
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    original = openvino.Core().compile_model(str(mesh_file), "CPU", options)
    for picture in smooth_pictures(3, 192) * 0.5 + 0.5:
        expected = original(picture[None].permute(0, 2, 3, 1).numpy())[0].reshape(468, 3)
        # 1e-5 of the largest coordinate: the rounding of float32 over 20 layers.
        np.testing.assert_allclose(mesh.points_192(picture[None])[0].numpy(), expected, atol=2e-3, rtol=0)


def test_frozen(mesh):
    assert not mesh.training
    assert not any(p.requires_grad for p in mesh.parameters())


def test_points_do_not_depend_on_the_size_of_the_crop(mesh):
    crop = smooth_pictures(2, CROP_SIZE)
    points = mesh(crop)
    assert points.shape == (2, 468, 3)
    small = mesh(torch.nn.functional.interpolate(crop, (128, 128), mode="area"))
    torch.testing.assert_close(small, points, atol=3, rtol=0)  # px; these pictures hold no face to lock on to


def test_moving_the_picture_moves_the_square(mesh, monkeypatch):
    # The same 192 px picture reaches the network whether the crop or the square is moved by 16 px.
    crop = smooth_pictures(1, CROP_SIZE + 16)
    here = mesh(crop[..., :256, :256])
    left, top, side = facemesh.FACE_SQUARE
    monkeypatch.setattr(facemesh, "FACE_SQUARE", (left, top + 16.0, side))
    moved = FaceMesh()
    moved.load_state_dict(mesh.state_dict())
    shifted = torch.cat([crop[..., :16, :256], crop[..., :240, :256]], dim=2)  # the same picture 16 px lower
    below = moved(shifted)[..., 1] - 16
    torch.testing.assert_close(below, here[..., 1], atol=1.5, rtol=0)  # px; the border is repeated differently


def test_gradient_is_the_finite_difference(mesh):
    net = FaceMesh()
    net.load_state_dict(mesh.state_dict())
    net.double()
    picture = (smooth_pictures(1, 192) * 0.5 + 0.5).double().requires_grad_()
    direction = torch.randn(picture.shape, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(468, 3, dtype=torch.double, generator=torch.Generator().manual_seed(2))

    def value(x):
        return (net.points_192(x)[0] * weight).sum()

    (gradient,) = torch.autograd.grad(value(picture), picture)
    step = 1e-7
    with torch.no_grad():
        finite = (value(picture + step * direction) - value(picture - step * direction)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(finite.item(), rel=1e-3)


def test_gradient_reaches_the_crop(mesh):
    crop = smooth_pictures(1, 128).requires_grad_()
    mesh(crop)[:, mesh.inner_face].sum().backward()
    assert crop.grad is not None
    assert crop.grad.isfinite().all()
    assert crop.grad.abs().max() > 0


def test_point_lists_are_distinct_and_leave_out_the_face_oval(mesh):
    inner = mesh.inner_face.tolist()
    assert len(set(inner)) == len(inner)
    assert not set(inner) & set(facemesh.FACE_OVAL)
    assert set(mesh.eyes.tolist()) | set(mesh.lips.tolist()) < set(inner)
    assert max(inner) < facemesh.POINTS
    assert [(inner[a], inner[b]) for a, b in mesh.gaps.tolist()] == list(facemesh.GAPS)
    assert mesh.gap_weights.tolist() == list(facemesh.GAPS.values())


def test_another_file_is_refused(tmp_path):
    path = tmp_path / FACEMESH_FILE
    path.write_bytes(b"<html>not a model</html>" * 100)
    with pytest.raises(FidError, match="does not hold the face mesh"):
        FaceMesh.load(path)
