"""SFace in torch: equal to the published file in ONNX Runtime, differentiable, and the same for every crop size."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from fid.runtime.errors import FidError
from fid.trainer.networks.sface import SFACE_FILE, SFace


@pytest.fixture(scope="module")
def sface_file(fetched):
    return fetched("sface") / SFACE_FILE


@pytest.fixture(scope="module")
def sface(sface_file):
    return SFace.load(sface_file)


def smooth_faces(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """Smooth random pictures [count, 3, size, size] in [-1, 1]: low frequencies, as photographs have."""
    noise = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, (size, size), mode="bicubic").tanh()


def test_equals_the_published_file(sface, sface_file):
    # The dequantising operators are run by ONNX Runtime itself, so our reading of the blocks is checked too.
    model = onnx.load(sface_file)
    del model.graph.input[1:]  # the file lists its constants as inputs
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for i, face in enumerate(smooth_faces(3, 112).mul(127.5).add(127.5)):
        expected = session.run(["fc1"], {"data": face[None].numpy()})[0]
        got = sface.raw_code(face[None]).numpy()
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max(), err_msg=f"face {i}")


def test_frozen_and_unit_length(sface):
    assert not sface.training
    assert not any(p.requires_grad for p in sface.parameters())
    code = sface(smooth_faces(2, 256))
    assert code.shape == (2, 128)
    torch.testing.assert_close(code.norm(dim=1), torch.ones(2))


def test_gradient_is_the_finite_difference(sface):
    net = SFace()
    net.load_state_dict(sface.state_dict())
    net.double()
    face = smooth_faces(1, 112).mul(127.5).add(127.5).double().requires_grad_()
    direction = torch.randn(face.shape, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    target = torch.randn(128, dtype=torch.double, generator=torch.Generator().manual_seed(2))

    def value(x):
        return (net.raw_code(x)[0] @ target).sum()

    (gradient,) = torch.autograd.grad(value(face), face)
    step = 1e-6  # small against the kinks of PReLU
    with torch.no_grad():
        finite = (value(face + step * direction) - value(face - step * direction)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(finite.item(), rel=1e-3)


def test_smaller_crops_give_nearly_the_same_code(sface):
    crop = smooth_faces(4, 256)
    small = torch.nn.functional.interpolate(crop, (128, 128), mode="area")
    cosine = (sface(crop) * sface(small)).sum(1)
    assert cosine.min() > 0.99, cosine


def test_gradient_reaches_the_crop_under_bf16_autocast(sface):
    crop = smooth_faces(1, 128).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        code = sface(crop)
    assert code.dtype == torch.float32
    code[0, 0].backward()
    assert crop.grad is not None
    assert crop.grad.isfinite().all()
    assert crop.grad.abs().max() > 0


def test_another_file_is_refused(tmp_path):
    path = tmp_path / SFACE_FILE
    for content in (b"<html>not a model</html>", onnx.ModelProto(ir_version=10).SerializeToString()):
        path.write_bytes(content)
        with pytest.raises(FidError, match="does not hold the SFace network"):
            SFace.load(path)
