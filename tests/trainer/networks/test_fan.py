"""FAN read from files like face-alignment's, and its heat maps read as points."""

import sys

import pytest
import torch
from fid.runtime.errors import FidError, InputError
from fid.trainer.networks import fan
from fid.trainer.networks.fan import FAN


class Peaks(torch.nn.Module):
    """Heat maps [N, 68, 64, 64] with a round peak each, point k at (k % 50 + 7, 20 + k // 2) of the map."""

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        k = torch.arange(68, dtype=torch.float32)
        x, y = k % 50 + 7, 20 + k // 2
        places = torch.arange(64, dtype=torch.float32)
        columns = torch.exp(-0.5 * (places[None] - x[:, None]) ** 2)
        rows = torch.exp(-0.5 * (places[None] - y[:, None]) ** 2)
        brightness = picture.mean(dim=(1, 2, 3))[:, None, None, None]
        return rows[None, :, :, None] * columns[None, :, None, :] * brightness + 0.02


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit, whose format the file has
def test_peaks_are_points_of_the_crop(tmp_path):
    path = tmp_path / "2DFAN4-toy.zip"
    torch.jit.script(Peaks()).save(str(path))
    network = FAN.load(path)
    crop = torch.full((2, 3, 128, 128), 0.5, requires_grad=True)
    points = network(crop)
    assert points.shape == (2, 68, 2)
    k = torch.arange(68)
    expected = torch.stack(((k % 50 + 7.5) * 4 - 0.5, (20.5 + k // 2) * 4 - 0.5), dim=1)
    torch.testing.assert_close(points[0], expected, atol=0.5, rtol=0)
    assert network.inner_face.tolist() == list(range(17, 68))
    assert network.inner_face[network.gaps].tolist() == [list(pair) for pair in fan.GAPS]
    points.sum().backward()
    assert crop.grad is not None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_files_that_are_not_fan(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        FAN.load(tmp_path / "missing.zip")
    (tmp_path / "text.zip").write_text("not a network")
    with pytest.raises(FidError, match="is not a TorchScript network"):
        FAN.load(tmp_path / "text.zip")
    torch.jit.script(torch.nn.AvgPool2d(4)).save(str(tmp_path / "other.zip"))
    with pytest.raises(FidError, match=r"is not FAN: expected heat maps \[1, 68, H, W\]"):
        FAN.load(tmp_path / "other.zip")


@pytest.fixture
def hourglasses():
    """Two hourglasses of face-alignment's own network, with random weights."""
    models = pytest.importorskip("face_alignment.models")
    torch.manual_seed(2)
    return models.FAN(2).eval()


def test_weights_by_name_go_into_the_network_of_face_alignment(hourglasses, tmp_path):
    networks = []
    for legacy in (False, True):
        path = tmp_path / "2DFAN4-toy.pth.tar"
        torch.save(hourglasses.state_dict(), path, _use_new_zipfile_serialization=not legacy)
        networks.append(FAN.load(path))
    assert all(map(torch.equal, *(network.state_dict().values() for network in networks)))
    picture = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.equal(networks[0].heat_maps(picture), hourglasses(picture)[-1])
        assert networks[0](picture * 2 - 1).shape == (1, 68, 2)


def test_weights_of_another_network_and_a_missing_package_are_one_sentence(tmp_path, monkeypatch):
    torch.save({"l0.weight": torch.zeros(3)}, tmp_path / "other.pth.tar")
    torch.save({"l0.weight": Peaks()}, tmp_path / "code.pth.tar")
    with pytest.raises(FidError, match="is refused: it is broken or holds more than tensors"):
        FAN.load(tmp_path / "code.pth.tar")
    monkeypatch.setitem(sys.modules, "face_alignment", None)
    with pytest.raises(FidError, match=r"pip install 'face-alignment>=1\.5'") as raised:
        FAN.load(tmp_path / "other.pth.tar")
    assert "\n" not in str(raised.value)
