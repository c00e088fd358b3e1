"""VGGFace2's networks in every published layout give the codes of their makers' code; other files end in a sentence.

`vggface2_golden.json` holds codes of cydonia999/VGGFace2-pytorch c6e10f2 (`resnet50`, `senet50`, `include_top=False`)
on `tiny_vggface2.view`, blue first and less the mean, with the weights of `tiny_vggface2.resnet`: every 64th number.
"""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fid.runtime.errors import FidError, InputError
from fid.trainer.networks.vggface2 import MEAN_RGB, SCALE, SHIFT, JoinedEncoder
from fid.trainer.weights.from_vggface2 import read_vggface2
from fid.trainer.weights.identity import load_identity_encoder
from fid.trainer.weights.unpickle import unpickle
from safetensors.torch import save_file
from tiny_vggface2 import python2_pickle, released_names, resnet, view, write_keras, write_pickle

GOLDEN = json.loads(Path(__file__).with_name("vggface2_golden.json").read_text())


@pytest.fixture(scope="module")
def arrays():
    return resnet()


@pytest.fixture(scope="module")
def file(arrays, tmp_path_factory):
    return write_pickle(tmp_path_factory.mktemp("encoder") / "resnet50_ft_weight.pkl", arrays)


@pytest.fixture(scope="module")
def network(file):
    return read_vggface2(file)[0]


def apart_from_golden(network, name):
    with torch.no_grad():
        code = network.raw_code(torch.from_numpy(view()))[0]
    golden = GOLDEN[name]
    assert code.norm().item() == pytest.approx(golden["length"], rel=1e-5)
    # of codes brought to length 1, which is what is used
    return ((code[::64] - torch.tensor(golden["code"])).abs() / golden["length"]).max().item()


def test_resnet_50_gives_the_codes_of_its_makers_code(network):
    assert apart_from_golden(network, "resnet50") < 1e-6
    assert network.code_size == 2048


@pytest.mark.slow
def test_se_resnet_50_gives_the_codes_of_its_makers_code(tmp_path):
    network, origin = read_vggface2(write_pickle(tmp_path / "senet50.pkl", resnet(squeeze=True), protocol=4))
    assert origin["kind"] == "VGGFace2 SE-ResNet-50"
    assert apart_from_golden(network, "senet50") < 1e-6


@pytest.mark.slow
def test_other_layouts_hold_the_same(arrays, network, tmp_path):
    tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
    released = {name: torch.from_numpy(value.copy()) for name, value in released_names(arrays).items()}
    torch.save({"model_state_dict": {f"module.{k}": v for k, v in tensors.items()}, "epoch": 3}, tmp_path / "a.tar")
    torch.save(released, tmp_path / "b.pth")
    save_file(tensors, tmp_path / "c.safetensors")
    layouts = []
    for path in sorted(tmp_path.iterdir()):
        other, origin = read_vggface2(path)
        layouts.append(origin["layout"])
        for name, value in network.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], value, atol=0, rtol=0)
    assert layouts == ["VGGFace2-pytorch", "ox-vgg", "VGGFace2-pytorch"]


def test_pickles_of_python_2_are_read():
    few = {"zeros": np.zeros((2, 3), np.float32), "more": np.arange(-4, 200, dtype=np.float32)}
    ours = unpickle(memoryview(bytearray(python2_pickle(few))))
    theirs = pickle.loads(python2_pickle(few), encoding="latin1")
    for name, value in few.items():
        np.testing.assert_array_equal(theirs[name], value)
        np.testing.assert_array_equal(ours[name], value)


@pytest.mark.slow
def test_kerass_file_has_codes_of_its_projection(arrays, tmp_path):
    """Keras pads the first convolution by 2 and 3 px, pools without the last column, and has an epsilon of 1e-3."""
    pytest.importorskip("h5py")
    random = np.random.RandomState(3)
    projection, bias = random.standard_normal((2048, 512)).astype(np.float32) / 40, np.zeros(512, np.float32)
    network, origin = read_vggface2(write_keras(tmp_path / "vggface2.h5", arrays, projection, bias))
    assert (origin["layout"], network.code_size) == ("Keras", 512)
    weights = {name: torch.from_numpy(value) for name, value in arrays.items()}

    def normed(x, conv, norm, stride=1, padding=0):
        x = F.conv2d(x, weights[f"{conv}.weight"], stride=stride, padding=padding)
        names = (f"{norm}.{what}" for what in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *(weights[name] for name in names), eps=1e-3)

    face = torch.from_numpy(view())
    x = (face - torch.tensor(MEAN_RGB)[:, None, None]).flip(1)
    x = F.relu(normed(F.pad(x, (2, 3, 2, 3)), "conv1", "bn1", 2))
    x = F.max_pool2d(x, 3, 2)
    for stage, count in enumerate((3, 4, 6, 3), 1):
        for i in range(count):
            place, stride = f"layer{stage}.{i}", 2 if i == 0 and stage > 1 else 1
            y = F.relu(normed(x, f"{place}.conv1", f"{place}.bn1", stride))
            y = F.relu(normed(y, f"{place}.conv2", f"{place}.bn2", padding=1))
            y = normed(y, f"{place}.conv3", f"{place}.bn3")
            x = normed(x, f"{place}.downsample.0", f"{place}.downsample.1", stride) if i == 0 else x
            x = F.relu(x + y)
    code = F.relu(x.mean((2, 3)) @ torch.from_numpy(projection))
    torch.testing.assert_close(network.raw_code(face), code, atol=1e-3, rtol=1e-4)


def test_the_view_is_that_of_the_authors_code(network):
    """`preprocess` of ID-disentanglement's id_encoder.py: the middle 80 % at 256 px, of that the middle 224."""
    crop = torch.from_numpy(np.kron(np.random.RandomState(0).rand(3, 16, 16), np.ones((16, 16))).astype(np.float32))[
        None
    ]
    low, high = int(0.1 * 256), int(0.9 * 256)
    expected = F.interpolate(crop[:, :, low:high, low:high], (256, 256), mode="bilinear")[:, :, 16:240, 16:240]
    view = network.placement(crop)
    torch.testing.assert_close(view, expected, atol=1e-5, rtol=1e-5)
    first, last = SCALE * 25 + SHIFT, SCALE * 229 + SHIFT
    assert (first, last) == pytest.approx((-15.88, 238.88), abs=0.01)
    half = F.avg_pool2d(crop, 2)  # half the size of the same picture
    assert (network.placement(half) - view).abs().mean() < 0.05


@pytest.mark.parametrize("size", [128, 256])
def test_codes_are_of_unit_length_and_gradient_reaches_the_crop(network, size):
    crop = (torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1).requires_grad_()
    code = network(crop)
    torch.testing.assert_close(code.norm(dim=1), torch.ones(2))
    (slope,) = torch.autograd.grad(code[:, 0].sum(), crop)
    assert slope.abs().sum() > 0


def test_joined_encoders_lay_their_codes_side_by_side(network):
    joined = JoinedEncoder([network, network])
    crop = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert joined.code_size == 4096
    torch.testing.assert_close(joined(crop), torch.cat([network(crop)] * 2, 1) / 2**0.5)


def test_encoders_are_named_by_what_they_are(file):
    assert load_identity_encoder([]) is None
    assert load_identity_encoder([Path("sface")]) is None
    encoder = load_identity_encoder([file])
    assert encoder.name.startswith("VGGFace2 ResNet-50 ")
    assert encoder.origin["code_size"] == 2048
    assert encoder.origin["parts"][0]["layout"] == "VGGFace2-pytorch"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, r"it lacks layer1\.0\.bn1\.running_mean"),
        ({"bn1.running_var": np.zeros(3, np.float32)}, r"it has bn1\.running_var as \[3\]"),
        ({"bn1.bias": np.full(64, np.inf, np.float32)}, "bn1.bias holds something else than finite numbers"),
        ({"layer1.0.conv1.weight": None}, "holds no such identity encoder"),
    ],
)
def test_weights_that_do_not_fit(arrays, change, sentence, tmp_path):
    first = {name: value for name, value in arrays.items() if name.startswith(("conv1", "bn1", "layer1.0.conv1"))}
    changed = {name: value for name, value in {**first, **change}.items() if value is not None}
    with pytest.raises(FidError, match=sentence) as raised:
        read_vggface2(write_pickle(tmp_path / "r.pkl", changed))
    assert "\n" not in str(raised.value)


class Attack:
    """Runs a command when unpickled by Python."""

    def __reduce__(self):
        return os.system, ("touch OWNED",)


def test_malicious_and_damaged_files_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = {"layer1.0.conv1.weight": np.ones((64, 64, 1, 1), np.float32), "evil": Attack()}
    write_pickle(tmp_path / "a.pkl", few)
    torch.save({"state_dict": few}, tmp_path / "b.pt")
    whole = write_pickle(tmp_path / "c.pkl", {"layer1.0.conv1.weight": np.ones(999, np.float32)}).read_bytes()
    (tmp_path / "c.pkl").write_bytes(whole[:-700])
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(FidError, match="is refused: it"):
            read_vggface2(path)
    with pytest.raises(InputError, match="there is no file"):
        read_vggface2(tmp_path / "none.pkl")
    assert not (tmp_path / "OWNED").exists()
