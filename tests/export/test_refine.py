"""A round of `refine` as a graph is that in PyTorch, and rounds bring a composition nearer to a photo."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from fid.export import refine
from fid.export.graphs import to_picture
from fid.export.refine import Likeness, LikenessMaps, RefineConfig, attribute_directions, can_refine, head_region
from fid.export.to_weights import WeightsFile, store
from fid.runtime.engines.open import open_session
from fid.runtime.face.crop import identity_view
from fid.runtime.refine import View, w_plus_offset
from fid.trainer.networks.lpips import LPIPS
from fid.trainer.networks.sface import SFace
from fid.trainer.networks.trained import AttributeEncoder
from tiny import N_STYLES, tiny_networks
from torch import Tensor, nn

CONFIG = RefineConfig(faces=6, dropped=20, shape_styles=1)
OWN = torch.ones(1, 1, 128, 128)  # all of the photo is the person's own


class SmoothSynthesis(nn.Module):
    """w [N, 512] or W+ [N, 2, 512] -> image [N, 3, 256, 256], of operators that a gradient is known of."""

    n_styles = N_STYLES

    def __init__(self) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.randn(1, 12, 16, 16))
        self.style = nn.Linear(512, 12)
        self.conv = nn.Conv2d(12, 3, 3, padding=1)
        self.up = nn.Buffer(torch.ones(3, 1, 16, 16))

    def forward(self, w: Tensor) -> Tensor:
        first, last = (w, w) if w.ndim == 2 else w.unbind(1)
        style = self.style(first) + 0.5 * self.style(last)
        x = F.leaky_relu(self.constant * style[:, :, None, None], 0.2)
        return F.conv_transpose2d(0.3 * self.conv(x), self.up, stride=16, groups=3)


class NoMapping(nn.Module):
    """z as w."""

    @classmethod
    def load(cls) -> "NoMapping":
        return cls()

    def forward(self, z: Tensor) -> Tensor:
        return z


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    own = replace(tiny_networks(appearance=True), attributes=AttributeEncoder().eval(), light=SmoothSynthesis())
    return own.for_inference()


@pytest.fixture(scope="module")
def one(networks):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refine, "Mapping", NoMapping)
        return refine.refine_round(networks, SFace.load(), CONFIG)


@pytest.fixture(scope="module")
def arrays(networks):
    random = torch.Generator().manual_seed(3)
    w_plus = torch.randn(2, N_STYLES, 512, generator=random)
    with torch.no_grad():
        crop = to_picture(networks.light(w_plus)).contiguous().numpy()
    return {"crop": crop, "w_plus": w_plus.roll(1, 0).numpy()}


@pytest.fixture(scope="module")
def graph(one, arrays, tmp_path_factory):
    folder = tmp_path_factory.mktemp("refine")
    store(refine.refine_model(one), folder / "refine.onnx", WeightsFile(folder / "refine.bin"))
    return folder / "refine.onnx"


def test_the_graph_is_the_round_in_pytorch(one, graph, arrays):
    parity = refine.measured(graph, one, arrays, threads=1)
    assert parity.fault is None
    assert parity.difference.max < 5e-3


def test_ports_are_as_described(one, graph):
    session = open_session(graph, engine="onnxruntime", threads=1)
    for port, written in zip((*session.inputs, *session.outputs), (*one.inputs, *one.outputs), strict=True):
        assert (port.name, port.shape, port.dtype) == (written.name, written.shape, written.dtype)


def test_rounds_bring_the_composition_nearer_to_the_photo(one, graph, networks, arrays):
    session = open_session(graph, engine="onnxruntime", threads=1)
    crop, w = arrays["crop"][0], arrays["w_plus"][0, 0]
    offset = w_plus_offset(session, [View(crop, OWN[0, 0].numpy(), w)], 8)
    likeness = one.loss.likeness
    photo = torch.from_numpy(crop[None]).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        before, after = (
            likeness(networks.light(torch.from_numpy(w + o)[None]), photo, OWN) for o in (0 * offset, offset)
        )
    assert after < 0.9 * before


def test_equal_pictures_are_no_distance_apart_and_what_is_off_the_head_counts_nothing():
    likeness = Likeness(LikenessMaps(SFace.load(), LPIPS.load(), CONFIG), CONFIG)
    image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1
    other = image.clone()
    other[..., :8, :8] = -other[..., :8, :8]
    assert likeness(image, image, OWN) == 0
    assert likeness(other, image, OWN) < 1e-4 * likeness(image.flip(3), image, OWN)


def test_what_is_not_the_persons_own_counts_nothing_and_where_it_ends_does_not_change_the_scale():
    likeness = Likeness(LikenessMaps(SFace.load(), LPIPS.load(), CONFIG), CONFIG)
    image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1
    covered, below = image.clone(), OWN.clone()
    covered[..., :80, :] = 0.7  # a hat
    below[..., :64, :] = 0  # and what the maps of places just below see of it
    other = image.flip(3)
    assert likeness(covered, image, below) < 0.05 * likeness(covered, image, OWN)
    assert likeness(other, image, below) == pytest.approx(likeness(other, image, OWN).item(), rel=0.2)


def test_what_counts_of_the_face_lies_where_sface_sees_it():
    likeness = Likeness(LikenessMaps(SFace.load(), LPIPS.load(), CONFIG), CONFIG)
    own = torch.zeros(1, 1, 128, 128)
    own[..., 64:96, 32:64] = 1
    view = identity_view(
        (255 * own[0, 0].repeat_interleave(2, 0).repeat_interleave(2, 1)).byte().numpy()[None, ..., None]
    )
    for size in (28, 14):
        found = likeness.of_face(own, size)[0, 0]
        expected = F.avg_pool2d(torch.from_numpy(view[None, 0, ..., 0]), 112 // size)[0]
        torch.testing.assert_close(found, expected / expected.mean(), atol=0.02, rtol=0)
        assert found.mean().item() == pytest.approx(1)


def test_the_head_region_is_the_middle_of_the_crop():
    region = head_region(64)[0, 0]
    assert region.mean().item() == pytest.approx(1)
    assert region[0, 0] == region[-1, 0] == region[0, -1] == 0
    assert region[33, 32] == region.max()


def test_directions_are_those_in_which_attributes_move_w(networks, monkeypatch):
    monkeypatch.setattr(refine, "Mapping", NoMapping)
    directions, variance = attribute_directions(networks, CONFIG)
    torch.testing.assert_close(directions.T @ directions, torch.eye(512), atol=1e-4, rtol=0)
    assert (variance.diff() <= 1e-6).all()
    assert variance[0] > 10 * variance[CONFIG.faces - 1].abs()  # as many faces as that move it so many ways less one


def test_only_what_has_a_light_generator_and_the_light_encoder_can_be_refined(networks):
    assert can_refine(networks)
    assert not can_refine(replace(networks, light=None))
    assert not can_refine(tiny_networks(light=True))


def test_weights_of_another_file_beside_are_not_stored_again(tmp_path):
    first = WeightsFile(tmp_path / "first.bin")
    second = WeightsFile(tmp_path / "second.bin", before=first)
    numbers = np.arange(1000, dtype=np.float32)
    assert first.add(numbers) == second.add(numbers) == ("first.bin", 0)
    assert second.add(numbers + 1) == ("second.bin", 0)
    assert (tmp_path / "second.bin").stat().st_size == 4000


def test_the_model_has_no_port_but_the_described(one):
    model = refine.refine_model(one)
    assert [port.name for port in model.graph.input] == [tensor.name for tensor in one.inputs]
    assert [port.name for port in model.graph.output] == [tensor.name for tensor in one.outputs]
    onnx.checker.check_model(model, full_check=True)
