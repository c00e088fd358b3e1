"""What a graph gives must be numbers: a code, w or picture made of others ends in a sentence and is never written."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from fid.runtime.assets import FACES
from fid.runtime.commands.bench import made_frames
from fid.runtime.composer import Composer
from fid.runtime.engines.session import checked
from fid.runtime.errors import FidError
from fid.runtime.media.images import read_image

from ..commands.test_photos import fid_run, one_line
from ..media.test_video import write_clip
from ..weights.test_bundle import change_graph

ADA, LAUGHING = FACES / "identity-ada.jpg", FACES / "attributes-laughing.jpg"
SESSION: Any = SimpleNamespace(provider="toy CPU")
OUTPUTS = {"identity": "identity", "attributes": "attributes", "mapper": "w", "synthesis": "image", "reenact": "image"}


def test_numbers_pass_as_they_are() -> None:
    for array in (np.zeros(4, np.float32), np.full((3, 4), np.finfo(np.float32).max, np.float32)):
        assert checked(array, "mapper", SESSION) is array
    for level in (1, 128, 254):
        picture = np.full((256, 256, 3), level, np.uint8)
        assert checked(picture, "synthesis", SESSION) is picture
    dark = np.zeros((256, 256, 3), np.uint8)
    dark[100:120, 40:60] = 9
    assert checked(dark, "synthesis", SESSION) is dark


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_no_number_is_told(value: float) -> None:
    code = np.zeros(512, np.float32)
    code[300] = value
    with pytest.raises(FidError, match=r"^the graph mapper gave values that are not finite numbers on toy CPU; .*\.$"):
        checked(code, "mapper", SESSION)


@pytest.mark.parametrize("level", [0, 255])
def test_a_picture_of_nothing_is_told(level: int) -> None:
    with pytest.raises(FidError, match="the graph synthesis gave a picture without any content on toy CPU; "):
        checked(np.full((256, 256, 3), level, np.uint8), "synthesis", SESSION)


def spoilt(output: str, value: float) -> Callable[[onnx.ModelProto], None]:
    """Adds 0/0, 1/0 or -1/0 to an output of a graph; to a picture before it is rounded."""

    def change(model: onnx.ModelProto) -> None:
        nodes = model.graph.node
        zero = onnx.numpy_helper.from_array(np.zeros((), np.float32), "zero")
        sign = onnx.numpy_helper.from_array(np.array(0 if np.isnan(value) else np.sign(value), np.float32), "sign")
        model.graph.initializer.extend([zero, sign])
        nodes.insert(0, onnx.helper.make_node("Div", ["sign", "zero"], ["endless"]))
        if output == "image":
            at = next(number for number, node in enumerate(nodes) if node.op_type == "Clip")
            before, nodes[at].input[0] = nodes[at].input[0], "after"
            nodes.insert(at, onnx.helper.make_node("Add", [before, "endless"], ["after"]))
        else:
            next(node for node in nodes if output in node.output).output[0] = "before"
            nodes.append(onnx.helper.make_node("Add", ["before", "endless"], [output]))

    return change


@pytest.fixture
def bundle(toy_bundle: Path, tmp_path: Path, fetched: Callable[[str], Path]) -> Path:
    fetched("yunet")
    return shutil.copytree(toy_bundle, tmp_path / "bundle")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("graph", OUTPUTS)
def test_every_graph_is_looked_after(graph: str, value: float, bundle: Path) -> None:
    """Its weights are numbers, so that nothing can be noticed before it runs."""
    change_graph(bundle, graph, spoilt(OUTPUTS[graph], value))
    composer = Composer(bundle, engine="onnxruntime", threads=1)
    why = "a picture without any content" if OUTPUTS[graph] == "image" else "values that are not finite numbers"
    crop = composer.crop(LAUGHING)

    def compose() -> None:
        person = composer.set_identity(ADA)
        composer.image(composer.w(person, composer.attribute_code(crop)))
        composer.reenact(crop, person)

    with pytest.raises(FidError, match=f"^the graph {graph} gave {why} on onnxruntime CPU; "):
        compose()


def test_no_picture_and_no_video_is_written(bundle: Path, tmp_path: Path) -> None:
    frames = made_frames(read_image(ADA), 4)
    clip = write_clip(tmp_path / "in.mp4", [3000 * number for number in range(4)], pictures=frames.__getitem__)
    change_graph(bundle, "synthesis", spoilt("image", np.nan))
    shared = ("--bundle", str(bundle), "--engine", "onnxruntime", "--identity", str(ADA))
    picture, video = tmp_path / "out.png", tmp_path / "out.mp4"
    for command in (
        ("compose", "--attributes", str(LAUGHING), "-o", str(picture)),
        ("video", "--driving", str(clip), "-o", str(video)),
    ):
        result = fid_run(command[0], *shared, *command[1:], exit_code=1)
        assert "the graph synthesis gave a picture without any content on onnxruntime CPU; " in one_line(result)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "in.mp4"]
