import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from fid.runtime import assets
from fid.runtime.errors import FidError, InputError
from fid.runtime.face.crop import identity_view
from fid.runtime.weights import catalogue as models
from fid.runtime.weights import prepare
from fid.runtime.weights.cache import sha256
from onnx import TensorProto, helper

SFACE = "face_recognition_sface_2021dec_int8bq.onnx"


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.fixture
def crops(rng):
    """Smooth random pictures, uint8 [3, 256, 256, 3]."""
    noise = rng.integers(0, 256, (3, 256, 256, 3), np.uint8)
    crops = np.stack([cv2.GaussianBlur(picture, (0, 0), 6) for picture in noise]).astype(np.float32)
    crops = (crops - crops.min()) / (crops.max() - crops.min())
    return (crops * 255).astype(np.uint8)


@pytest.mark.parametrize(("axis", "block"), [(1, 2), (0, 3), (1, 4), (1, 0), (0, 0)])
def test_dequantise_follows_the_onnx_definition(rng, axis, block):
    values = rng.integers(-128, 128, (3, 6)).astype(np.int8)
    shape = [3, 6]
    shape[axis] = -(-shape[axis] // block) if block else shape[axis]
    shape = shape if block else [shape[axis]]
    scale = rng.uniform(0.01, 1, shape).astype(np.float32)
    zero = rng.integers(-9, 9, shape).astype(np.int8)
    expected = np.empty(values.shape, np.float32)
    for i, j in np.ndindex(values.shape):
        place = [i, j]
        place[axis] = place[axis] // block if block else place[axis]
        place = tuple(place) if block else (place[axis],)
        expected[i, j] = (np.float32(values[i, j]) - zero[place]) * scale[place]
    np.testing.assert_array_equal(prepare.dequantise(values, scale, zero, axis, block), expected)
    np.testing.assert_array_equal(
        prepare.dequantise(values, np.float32([0.5]), None, 1, 0), values.astype(np.float32) / 2
    )


@pytest.fixture(scope="module")
def path(fetched):
    """The prepared identity graph."""
    fetched("sface")
    return prepare.prepared("identity")


@pytest.fixture(scope="module")
def original(fetched, tmp_path_factory):
    """SFace as published, still quantised; only weights that its list of inputs names in vain are taken off the list,
    without which ONNX Runtime asks for them."""
    model = onnx.load(fetched("sface") / SFACE)
    data = model.graph.input[0]
    del model.graph.input[1:]
    assert data.name == "data"
    path = tmp_path_factory.mktemp("sface") / SFACE
    onnx.save(model, path)
    return path


class TestIdentity:
    def test_equals_the_original_file_on_the_same_view(self, path, original, crops):
        original = session(original)
        view = identity_view(crops).transpose(0, 3, 1, 2)
        codes = np.concatenate([original.run(None, {"data": picture[None]})[0] for picture in view])
        expected = codes / np.linalg.norm(codes, axis=1, keepdims=True)
        found = session(path).run(None, {"crop": crops})[0]
        assert found.dtype == np.float32
        assert found.shape == (3, 128)
        np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_equals_opencv_on_an_equivalent_crop(self, path, original, crops):
        recogniser = cv2.FaceRecognizerSF.create(str(original), "")
        views = identity_view(crops).round().astype(np.uint8)  # OpenCV takes whole numbers, and BGR
        codes = np.concatenate([recogniser.feature(np.ascontiguousarray(view[..., ::-1])) for view in views])
        codes /= np.linalg.norm(codes, axis=1, keepdims=True)
        ours = session(original)
        rounded = np.concatenate(
            [ours.run(None, {"data": v.transpose(2, 0, 1)[None].astype(np.float32)})[0] for v in views]
        )
        np.testing.assert_allclose(codes, rounded / np.linalg.norm(rounded, axis=1, keepdims=True), atol=1e-4)
        found = session(path).run(None, {"crop": crops})[0]
        assert (found * codes).sum(1).min() > 0.999  # what rounding costs on these smooth pictures
        assert (found * codes[[1, 2, 0]]).sum(1).max() < 0.995  # other pictures are further away

    def test_unit_length_and_independent_of_the_batch(self, path, crops):
        run = session(path)
        together = run.run(None, {"crop": crops})[0]
        alone = np.concatenate([run.run(None, {"crop": crop[None]})[0] for crop in crops])
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(together, alone, atol=1e-5)

    def test_the_order_of_colours_matters(self, path, crops):
        run = session(path)
        swapped = np.ascontiguousarray(crops[..., ::-1])
        assert np.abs(run.run(None, {"crop": crops})[0] - run.run(None, {"crop": swapped})[0]).max() > 0.01

    def test_a_black_crop_gives_a_finite_code(self, path):
        assert np.isfinite(session(path).run(None, {"crop": np.zeros((1, 256, 256, 3), np.uint8)})[0]).all()

    def test_the_file_is_plain_float(self, path):
        model = onnx.load(path)
        assert {"DequantizeLinear", "Dropout", "Constant"}.isdisjoint(node.op_type for node in model.graph.node)
        assert {tensor.data_type for tensor in model.graph.initializer} <= {TensorProto.FLOAT, TensorProto.INT64}
        used = {name for node in model.graph.node for name in node.input}
        assert {tensor.name for tensor in model.graph.initializer} <= used

    def test_its_weights_lie_beside_it_and_are_as_readable(self, path):
        assert path.stat().st_size < 100_000
        assert path.with_suffix(".bin").stat().st_mode == path.stat().st_mode

    def test_a_damaged_cache_is_made_again(self, fetched, tmp_path, monkeypatch):
        folder = fetched("sface")
        monkeypatch.setenv("FID_MODELS", str(folder))
        monkeypatch.setenv("FID_CACHE", str(tmp_path))
        path = prepare.prepared("identity")
        digest, made = sha256(path), path.stat().st_mtime_ns
        with monkeypatch.context() as untouched:
            untouched.setattr(prepare, "sha256", lambda path: pytest.fail("every start would take its time"))
            assert prepare.prepared("identity").stat().st_mtime_ns == made
        path.write_bytes(path.read_bytes()[:-7])
        assert sha256(prepare.prepared("identity")) == digest
        assert [p.name for p in (tmp_path / "prepared").iterdir()] == [path.parent.name]

    def test_needs_no_torch(self, path, fetched, tmp_path):
        program = (
            "import sys\nsys.modules['torch'] = None\n"
            "from fid.runtime.weights import prepare\nprint(prepare.prepared('identity'))\n"
            "assert not [name for name in sys.modules if name.startswith('torch') and sys.modules[name]]\n"
        )
        environment = os.environ | {"FID_MODELS": str(fetched("sface")), "FID_CACHE": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""


class TestSkeletons:
    """With a toy generator: a skeleton whose weights lie in the middle of a fetched file."""

    @pytest.fixture
    def matrix(self, rng):
        return rng.normal(size=(512, 512)).astype(np.float32)

    @pytest.fixture
    def toys(self, tmp_path, monkeypatch, empty_cache, matrix):
        """Folder that FID_MODELS names; the catalogue knows a toy generator in it."""
        folder = tmp_path / "models"
        skeletons = tmp_path / "graphs"
        folder.mkdir()
        skeletons.mkdir()
        (folder / "MappingNetwork.bin").write_bytes(b"\0" * 4096 + matrix.tobytes() + b"\1" * 100)
        files = tuple(
            models.File(path.name, path.stat().st_size, sha256(path), path.name) for path in sorted(folder.iterdir())
        )
        entry = models.Model("generator", "", "", "", "toy", "1", "toy-1.whl", 1, "0" * 64, files)
        monkeypatch.setattr(models, "catalogue", lambda: {"generator": entry})
        monkeypatch.setattr(assets, "SKELETONS", skeletons)
        monkeypatch.setenv("FID_MODELS", str(folder))
        weight = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=[512, 512])
        weight.data_location = TensorProto.EXTERNAL
        for key, value in {"location": "MappingNetwork.bin", "offset": 4096, "length": 512 * 512 * 4}.items():
            weight.external_data.add(key=key, value=str(value))
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["z", "weight"], ["w"])],
            "mapping",
            [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 512])],
            [helper.make_tensor_value_info("w", TensorProto.FLOAT, ["batch", 512])],
            [weight],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        (skeletons / "mapping.onnx").write_bytes(model.SerializeToString())
        return folder

    def test_the_skeleton_finds_its_weights(self, toys, matrix, rng):
        z = rng.normal(size=(2, 512)).astype(np.float32)
        path = prepare.prepared("mapping")
        np.testing.assert_allclose(session(path).run(None, {"z": z})[0], z @ matrix, rtol=1e-4, atol=1e-3)
        assert path.stat().st_size < 1000

    @pytest.mark.parametrize("links", [True, False])
    def test_linked_where_possible_and_copied_otherwise(self, toys, monkeypatch, links):
        if not links:

            def refuse(*_):
                raise OSError(18, "")

            monkeypatch.setattr(os, "link", refuse)
        weights = prepare.prepared("mapping").with_name("MappingNetwork.bin")
        assert weights.samefile(toys / "MappingNetwork.bin") == links
        assert weights.read_bytes() == (toys / "MappingNetwork.bin").read_bytes()

    def test_a_new_skeleton_is_prepared_anew(self, toys):
        first = prepare.prepared("mapping")
        assert prepare.prepared("mapping") == first
        model = onnx.load(assets.SKELETONS / "mapping.onnx", load_external_data=False)
        model.doc_string = "changed"
        (assets.SKELETONS / "mapping.onnx").write_bytes(model.SerializeToString())
        assert prepare.prepared("mapping") != first

    def test_a_missing_skeleton(self, toys):
        shutil.rmtree(assets.SKELETONS)
        with pytest.raises(FidError, match=r"lacks mapping\.onnx"):
            prepare.prepared("mapping")

    def test_full_disk(self, toys, monkeypatch):
        def full(*_):
            raise OSError(28, "")

        monkeypatch.setattr(shutil, "copyfile", full)
        with pytest.raises(FidError, match="the disk is full"):
            prepare.prepared("mapping")


def test_an_unknown_graph():
    with pytest.raises(InputError, match="known are identity, detector, recogniser, mapping, synthesis-1024"):
        prepare.prepared("voice")
