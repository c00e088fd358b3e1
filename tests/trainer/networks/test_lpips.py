"""LPIPS: the published arithmetic, recomputed in NumPy from the file itself."""

import pickle

import numpy as np
import pytest
import torch
from fid.runtime.errors import FidError
from fid.trainer.networks.lpips import LPIPS, _ArraysOnly

FILES = {"alex": ("alexnet.ckpt", "AlexNet_0"), "vgg": ("vgg16.ckpt", "VGG16_0")}


@pytest.fixture(scope="module", params=["alex", "vgg"])
def backbone(request):
    return request.param


@pytest.fixture(scope="module")
def folder(fetched):
    return fetched("lpips")


@pytest.fixture(scope="module")
def lpips(backbone, folder):
    return LPIPS.load(backbone, folder / FILES[backbone][0])


def pictures(seed: int, size: int = 64) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def convolve(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """x [H, W, in], kernel [h, w, in, out] -> [H', W', out], written as windows times a matrix."""
    x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(0, 1))[::stride, ::stride]
    return np.einsum("hwcij,ijco->hwo", windows, kernel, optimize=True) + bias


def pool(x: np.ndarray, size: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(0, 1))[::2, ::2].max((-1, -2))


def published_distance(backbone: str, weights: dict, a: np.ndarray, b: np.ndarray) -> float:
    """LPIPS v0.1 of two pictures [H, W, 3] in [-1, 1], float64, straight from the paper's definition."""
    root = weights[FILES[backbone][1]]
    if backbone == "alex":
        plan = [(4, 2, 0, 1), (1, 2, 3, 1), (1, 1, 3, 1), (1, 1, 0, 1), (1, 1, 0, 1)]  # stride, padding, pool, tapped
    else:
        plan = [(1, 1, 2 * (i in (2, 4, 7, 10)), i in (1, 3, 6, 9, 12)) for i in range(13)]
    total, head = 0.0, 0
    x, y = ((v - np.array([-0.030, -0.088, -0.188])) / np.array([0.458, 0.448, 0.450]) for v in (a, b))
    for i, (stride, padding, pooled, tapped) in enumerate(plan):
        layer = {name: array.astype(np.float64) for name, array in root[f"Conv_{i}"].items()}
        x, y = (pool(v, pooled) if pooled else v for v in (x, y))
        x, y = (np.maximum(convolve(v, layer["kernel"], layer["bias"], stride, padding), 0) for v in (x, y))
        if tapped:
            u, v = (f / (np.linalg.norm(f, axis=2, keepdims=True) + 1e-10) for f in (x, y))
            total += ((u - v) ** 2 @ weights[f"NetLinLayer_{head}"]["Conv_0"]["kernel"].reshape(-1)).mean()
            head += 1
    return float(total)


def test_equals_the_published_definition(backbone, folder, lpips):
    with (folder / FILES[backbone][0]).open("rb") as stream:
        weights = _ArraysOnly(stream).load()
    a, b = pictures(0), pictures(1)
    got = lpips(a, b)
    for i in range(2):
        x, y = (v[i].permute(1, 2, 0).double().numpy() for v in (a, b))
        assert got[i].item() == pytest.approx(published_distance(backbone, weights, x, y), rel=1e-4)


def test_zero_for_equal_pictures_and_growing_with_noise(lpips):
    a, noise = pictures(0), pictures(1)
    distances = [lpips(a, a + amount * noise) for amount in (0.0, 0.05, 0.2)]
    assert distances[0].abs().max() == 0
    assert (distances[0] < distances[1]).all()
    assert (distances[1] < distances[2]).all()


def test_gradient_is_the_finite_difference():
    net = LPIPS("alex").double()
    a, b = pictures(0).double().requires_grad_(), pictures(1).double()
    direction = pictures(2).double()
    (gradient,) = torch.autograd.grad(net(a, b).sum(), a)
    step = 1e-6
    finite = (net(a + step * direction, b) - net(a - step * direction, b)).sum() / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(finite.item(), rel=1e-4)


def test_gradient_stays_finite_where_nothing_is_active():
    net = LPIPS("alex")
    for convolution in net.convolutions:
        convolution.bias.fill_(-1e3)
    a = pictures(0).requires_grad_()
    net(a, pictures(1)).sum().backward()
    assert a.grad is not None
    assert a.grad.isfinite().all()


def test_the_first_layers_alone_see_what_they_see_in_the_whole():
    net = LPIPS("alex")
    first = net.first(2)
    assert len(first.heads) == len(first.convolutions) == 2
    assert len(net.convolutions) == 5
    for mine, whole in zip(first.activations(pictures(0)), net.activations(pictures(0)), strict=False):
        torch.testing.assert_close(mine, whole)


class Harmful:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_pickle_that_would_execute_something_is_refused(tmp_path, capsys):
    path = tmp_path / "alexnet.ckpt"
    path.write_bytes(pickle.dumps({"AlexNet_0": Harmful()}))
    with pytest.raises(FidError, match=r"names builtins\.print"):
        LPIPS.load("alex", path)
    assert capsys.readouterr().out == ""
