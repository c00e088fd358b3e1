"""The single stages of the exporter."""

import numpy as np
import onnx
import pytest
import torch
from fid.export.fold import FP16_FROM, fold_batch_norms, rounded_to_fp16, transposed_haar, with_transposed_wavelets
from fid.export.graphs import GraphModule, IdentityGraph, from_crop, to_picture
from fid.export.parity import CODE, PICTURE, Difference, Parity, difference
from fid.export.skeletons import point_into
from fid.export.to_onnx import to_onnx
from fid.export.to_weights import WeightsFile, fits_fp16, store
from fid.runtime.engines.open import open_session
from fid.runtime.errors import FidError
from fid.runtime.tensor import Tensor
from fid.runtime.weights.prepare import prepared
from fid.trainer.networks.inception import InceptionV3
from fid.trainer.networks.mobilestylegan import Synthesis, inverse_haar
from fid.trainer.networks.sface import SFace
from fid.trainer.weights.trained import Trainable
from onnx import TensorProto, helper, numpy_helper
from torch import nn


def seen_data(network: nn.Module, size: int) -> nn.Module:
    """The network after batch norms met two random pictures."""
    torch.manual_seed(0)
    network.train()
    with torch.no_grad():
        network(torch.rand(2, 3, size, size) * 2 - 1)
    return network.eval()


@pytest.mark.parametrize("make", [lambda: Trainable().attributes, InceptionV3], ids=["light", "inception"])
def test_folding_batch_norms_changes_nothing(make):
    network = seen_data(make(), 128)
    picture = torch.rand(1, 3, 128, 128) * 2 - 1
    folded = fold_batch_norms(network, picture)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(picture), network(picture), rtol=1e-4, atol=1e-4)


def test_a_batch_norm_elsewhere_is_left_alone():
    network = seen_data(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)), 8)
    folded = fold_batch_norms(network, torch.zeros(1, 3, 8, 8))
    assert isinstance(folded[2], nn.BatchNorm2d)


def test_rounding_keeps_small_and_too_large_tensors():
    network = nn.ParameterDict(
        {
            "large": torch.full((FP16_FROM,), 1 / 3),
            "small": torch.full((FP16_FROM - 1,), 1 / 3),
            "too_large": torch.full((FP16_FROM,), 1e5 + 1 / 3),
        }
    )
    rounded = rounded_to_fp16(network)
    assert rounded["large"][0] == torch.tensor(1 / 3).half().float()
    assert rounded["small"][0] == network["small"][0]
    assert rounded["too_large"][0] == network["too_large"][0]
    assert network["large"][0] == torch.tensor(1 / 3)


def test_pictures_survive_the_way_in_and_out():
    picture = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(-1, -1, -1, 3)
    assert from_crop(picture).min() == -1
    assert from_crop(picture).max() == 1
    assert torch.equal(to_picture(from_crop(picture)), picture)
    assert to_picture(torch.tensor([-3.0, 3.0]).reshape(1, 1, 1, 2)).flatten().tolist() == [0, 255]


class FixedBatch(GraphModule):
    """Turns the batch size into a Python number, which the exporter cannot keep dynamic."""

    inputs = (Tensor("w", ("batch", 512), "float32"),)
    outputs = (Tensor("w2", ("batch", 512), "float32"),)

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return torch.zeros(int(w.shape[0]), 512) + w.sum(0)


def test_a_fixed_batch_is_refused():
    with pytest.raises(FidError, match=r"FixedBatch was exported with|cannot export FixedBatch"):
        to_onnx(FixedBatch())


def toy_model(array: np.ndarray) -> onnx.ModelProto:
    """y = x + array."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(array.shape)) for name in "xy"]
    tensors = [numpy_helper.from_array(array, "a")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "a"], ["y"])], "g", ports[:1], ports[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("exact", [True, False])
def test_storing_changes_no_number(tmp_path, exact):
    array = np.random.default_rng(0).standard_normal(FP16_FROM).astype(np.float32)
    if exact:
        array = array.astype(np.float16).astype(np.float32)
    assert fits_fp16(array) == exact
    weights = WeightsFile(tmp_path / "weights.bin")
    for name in ("one.onnx", "two.onnx"):
        store(toy_model(array), tmp_path / name, weights)
    assert (tmp_path / "weights.bin").stat().st_size == array.size * (2 if exact else 4)
    session = open_session(tmp_path / "two.onnx", engine="onnxruntime", threads=1)
    assert np.array_equal(session.run(x=np.zeros_like(array))["y"], array)


def test_pointing_into_a_file_finds_the_bytes(tmp_path):
    array = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    path = tmp_path / "original.bin"
    path.write_bytes(b"head" * 3 + array.tobytes() + b"tail")
    model = toy_model(array)
    assert point_into(model, path) == (0, array.nbytes)
    (tmp_path / "toy.onnx").write_bytes(model.SerializeToString())
    assert np.array_equal(numpy_helper.to_array(onnx.load(tmp_path / "toy.onnx").graph.initializer[0]), array)
    model = toy_model(array + 1)
    assert point_into(model, path) == (array.nbytes, 0)


def test_difference_of_pictures_and_codes():
    black, grey = np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 2, np.uint8)
    assert difference(black, black) == Difference(0, 0, None)
    assert difference(black, grey) == Difference(2, 2, pytest.approx(42.11, abs=0.01))
    code = np.array([[3.0, 4.0], [0.0, 1.0]], np.float32)
    assert difference(code * 1.1, code) == Difference(pytest.approx(0.1, rel=1e-5), pytest.approx(0.1, rel=1e-5))


@pytest.mark.parametrize(
    ("tolerance", "found", "unrounded", "fault"),
    [
        (PICTURE, Difference(1, 0.05, 60), Difference(2, 0.2, 46), None),
        (PICTURE, Difference(2, 0.01, 60), Difference(2, 0.2, 46), "max 2 grey levels"),
        (PICTURE, Difference(1, 0.06, 60), Difference(2, 0.2, 46), "mean 0.06 grey levels"),
        (PICTURE, Difference(0, 0), Difference(9, 1, 44), "FP16 weights leave 44.0 dB"),
        (PICTURE, Difference(0, 0), Difference(0, 0), None),
        (CODE, Difference(1e-3, 1e-4), Difference(1, 1), None),
        (CODE, Difference(float("nan"), float("nan")), Difference(0, 0), "max nan relative"),
    ],
)
def test_what_is_refused(tolerance, found, unrounded, fault):
    parity = Parity(32, "onnxruntime CPU", tolerance, found, unrounded)
    assert parity.fault is None if fault is None else parity.fault.startswith(fault)


def test_identity_graph_prepared_graph_and_module_agree():
    identity = SFace.load()
    crop = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)
    with torch.no_grad():
        graph = IdentityGraph(identity)(torch.from_numpy(crop)).numpy()
        module = identity(from_crop(torch.from_numpy(crop))).numpy()
    lean = open_session(prepared("identity"), engine="onnxruntime", threads=1).run(crop=crop)["identity"]
    np.testing.assert_allclose(graph, module, atol=1e-5)
    np.testing.assert_allclose(graph, lean, atol=1e-5)


def test_transposed_wavelets_are_the_same_transform():
    torch.manual_seed(0)
    x = torch.randn(2, 12, 5, 7)
    torch.testing.assert_close(transposed_haar(x), inverse_haar(x))
    synthesis = Synthesis(128).eval()
    for parameter in synthesis.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    changed, w = with_transposed_wavelets(synthesis), torch.randn(1, 512)
    assert changed.state_dict().keys() == synthesis.state_dict().keys()
    with torch.no_grad():
        expected = synthesis(w)
        torch.testing.assert_close(changed(w), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
        torch.testing.assert_close(synthesis(w), expected, rtol=0, atol=0)  # the original is as it was
