"""Judges of head pose from a file: HopeNet's bins and 6DRepNet's rotations become angles; others are one sentence."""

import numpy as np
import onnx
import pytest
from fid.runtime.errors import FidError
from fid.trainer.evaluate.compare import variance_shares
from fid.trainer.evaluate.judges import PoseNetwork
from onnx import TensorProto, helper, numpy_helper

CROPS = np.random.RandomState(0).randint(0, 256, (2, 256, 256, 3)).astype(np.uint8)


def write(path, *answers, side=224):
    """A network that gives the same answers [1, ...] for every picture, but for its batch."""
    port = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, side, side])
    nodes = [helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=1)]
    constants = [
        numpy_helper.from_array(np.array([1, 2, 3]), "axes"),
        numpy_helper.from_array(np.zeros(1, "f4"), "zero"),
    ]
    outputs = []
    for i, answer in enumerate(answers):
        shape = [-1, *[1] * (answer.ndim - 1)]
        constants += [numpy_helper.from_array(np.array(shape), f"shape{i}"), numpy_helper.from_array(answer, f"c{i}")]
        nodes += [
            helper.make_node("Reshape", ["mean", f"shape{i}"], [f"flat{i}"]),
            helper.make_node("Mul", [f"flat{i}", "zero"], [f"none{i}"]),
            helper.make_node("Add", [f"none{i}", f"c{i}"], [f"out{i}"]),
        ]
        outputs.append(helper.make_tensor_value_info(f"out{i}", TensorProto.FLOAT, ["batch", *answer.shape[1:]]))
    graph = helper.make_graph(nodes, "pose", [port], outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def bins(angle):
    """HopeNet's answer for an angle between two bins."""
    place = (angle + 99) / 3
    share = np.full(66, 1e-9)
    share[int(place)], share[int(place) + 1] = 1 - place % 1, place % 1
    return np.log(share)[None].astype(np.float32)


def test_hopenets_bins_become_angles(tmp_path):
    network = PoseNetwork(write(tmp_path / "hopenet.onnx", bins(31.5), bins(-10.0), bins(2.4)))  # yaw, pitch, roll
    assert network.name == "HopeNet"
    np.testing.assert_allclose(network.angles(CROPS), [[-10.0, 31.5, 2.4]] * 2, atol=0.01)


def test_6drepnets_rotations_become_angles(tmp_path):
    pitch, yaw, roll = np.radians([12.0, -35.0, 4.0])
    turn_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    turn_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    turn_z = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    rotation = (turn_z @ turn_y @ turn_x)[None].astype(np.float32)
    network = PoseNetwork(write(tmp_path / "6drepnet.onnx", rotation))
    assert network.name == "6DRepNet"
    np.testing.assert_allclose(network.angles(CROPS[:1]), [[12.0, -35.0, 4.0]], atol=1e-3)


@pytest.mark.parametrize(
    ("answers", "side"), [([np.zeros((1, 5), "f4")], 224), ([np.zeros((1, 3, 3), "f4")], 112)], ids=["output", "input"]
)
def test_other_networks_are_one_sentence(answers, side, tmp_path):
    with pytest.raises(FidError, match="is no HopeNet and no 6DRepNet: expected one input") as raised:
        PoseNetwork(write(tmp_path / "other.onnx", *answers, side=side))
    assert "\n" not in str(raised.value)
    (tmp_path / "broken.onnx").write_bytes(b"not a graph at all")
    with pytest.raises(FidError):
        PoseNetwork(tmp_path / "broken.onnx")


def test_variance_is_shared_between_identity_and_attributes():
    people, attributes = np.array([-1.0, 0.0, 1.0]), np.array([-3.0, 3.0, 0.0, 0.0])
    grid = people[:, None] + attributes[None]
    shares = variance_shares(np.stack([grid, people[:, None] * attributes[None]], axis=2))
    assert shares["identity"][0] == pytest.approx(4 * 2)
    assert shares["attributes"][0] == pytest.approx(3 * 18)
    assert shares["both together"] == pytest.approx([0, 2 * 18])
    total = ((grid - grid.mean()) ** 2).sum()
    assert sum(value[0] for value in shares.values()) == pytest.approx(total)
