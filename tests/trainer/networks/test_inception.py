"""InceptionV3: size and shapes of the published network, and a strict loader for files in torchvision's layout."""

import pickle

import pytest
import torch
from fid.runtime.errors import FidError, InputError
from fid.trainer.networks.inception import InceptionV3
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return InceptionV3().eval()


@pytest.fixture
def torchvision_weights(net):
    """A state dictionary as torchvision writes it: the trunk, an auxiliary head and a classifier."""
    extra = {"fc.weight": torch.zeros(10, 2048), "fc.bias": torch.zeros(10), "AuxLogits.fc.bias": torch.zeros(10)}
    return {name: value.clone() for name, value in net.state_dict().items()} | extra


def test_parameter_count_is_torchvisions(net):
    # torchvision's inception_v3 has 27,161,264: 3,326,696 in the auxiliary head and 2,049,000 in the classifier.
    assert sum(p.numel() for p in net.parameters()) == 27_161_264 - 3_326_696 - 2_049_000 == 21_785_568


def test_names_are_torchvisions(net):
    names = set(net.state_dict())
    # One of each kind, written down from torchvision's published file.
    assert {
        "Conv2d_1a_3x3.conv.weight",
        "Conv2d_1a_3x3.bn.running_var",
        "Mixed_5b.branch3x3dbl_3.conv.weight",
        "Mixed_6a.branch3x3.bn.bias",
        "Mixed_6e.branch7x7dbl_5.conv.weight",
        "Mixed_7a.branch7x7x3_4.bn.num_batches_tracked",
        "Mixed_7c.branch3x3dbl_3b.conv.weight",
        "Mixed_7c.branch_pool.bn.weight",
    } < names
    assert len(names) == 94 * 6  # 94 convolutions, each with a weight and five tensors of batch norm


@pytest.mark.parametrize("size", [128, 256, 320])
def test_features_for_any_size(net, size):
    with torch.no_grad():
        features = net(torch.rand(1, 3, size, size) * 2 - 1)
    assert features.shape == (1, 2048)
    assert features.isfinite().all()


def test_inner_shapes(net):
    shapes = {}
    hooks = [
        module.register_forward_hook(lambda _, __, y, name=name: shapes.update({name: tuple(y.shape[1:])}))
        for name, module in net.named_children()
    ]
    with torch.no_grad():
        net(torch.zeros(1, 3, 299, 299))
    for hook in hooks:
        hook.remove()
    assert shapes["Conv2d_4a_3x3"] == (192, 71, 71)
    assert shapes["Mixed_5d"] == (288, 35, 35)
    assert shapes["Mixed_6e"] == (768, 17, 17)
    assert shapes["Mixed_7c"] == (2048, 8, 8)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_loads_torchvisions_layout(net, torchvision_weights, tmp_path, suffix):
    path = tmp_path / f"inception.{suffix}"
    save_file(torchvision_weights, path) if suffix == "safetensors" else torch.save(torchvision_weights, path)
    loaded = InceptionV3.load(path).state_dict()
    for name, value in net.state_dict().items():
        assert torch.equal(loaded[name], value), name


def test_a_file_that_does_not_fit_is_refused(torchvision_weights, tmp_path):
    path = tmp_path / "inception.safetensors"
    del torchvision_weights["Mixed_5b.branch1x1.conv.weight"]
    torchvision_weights["Mixed_9.weight"] = torch.zeros(1)
    save_file(torchvision_weights, path)
    with pytest.raises(FidError, match=r"lacks Mixed_5b\.branch1x1\.conv\.weight and 1 more"):
        InceptionV3.load(path)


def test_other_content_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        InceptionV3.load(tmp_path / "missing.pth")
    path = tmp_path / "page.safetensors"
    path.write_text("<html>")
    with pytest.raises(FidError, match="not a file of weights"):
        InceptionV3.load(path)
    path = tmp_path / "code.pth"
    path.write_bytes(pickle.dumps({"x": InceptionV3}))
    with pytest.raises(FidError, match="refused"):
        InceptionV3.load(path)
