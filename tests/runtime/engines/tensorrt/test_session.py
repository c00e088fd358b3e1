"""Sessions on TensorRT against a stand-in of it and of CUDA: buffers, recording, batches, refusals, fallbacks.

The stand-in computes with ONNX Runtime, so the pictures are right and only the GPU is missing; `tests/gpu` runs the
same sessions on a real one.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import toy
from fid.runtime.engines import cuda
from fid.runtime.engines.open import open_session, open_tensorrt, satisfies
from fid.runtime.engines.session import KEPT
from fid.runtime.engines.tensorrt import cache as engine_cache
from fid.runtime.engines.tensorrt.build import Batch
from fid.runtime.errors import FidError, InputError
from stand_in_gpu import LIBRARIES, Error

RTX = LIBRARIES[3]


@pytest.fixture
def crop(rng):
    return rng.integers(0, 256, (2, 256, 256, 3), np.uint8)


def expected_picture(crop, identity):
    return toy.expected_image(toy.expected_w(identity, toy.expected_attributes(crop)))


@pytest.mark.parametrize("library", LIBRARIES)
class TestEveryLibrary:
    def test_pictures_equal_numpy(self, stand_in, toy_bundle, crop, library):
        trt = stand_in(library)
        engine = library.split()[0]
        session = open_session(toy_bundle / "reenact.onnx", require=engine)
        assert session.provider == f"{engine} CUDA fp32"
        assert session.fallback is None
        assert [(t.name, t.shape, t.dtype) for t in (*session.inputs, *session.outputs)] == [
            ("crop", ("batch", 256, 256, 3), "uint8"),
            ("identity", ("batch", 128), "float32"),
            ("w_plus_offset", ("batch", toy.N_STYLES, 512), "float32"),
            ("image", ("batch", 256, 256, 3), "uint8"),
        ]
        identity = toy.expected_identity(crop)
        found = session.run(crop=crop, **toy.plain(identity))["image"]
        assert found.dtype == np.uint8
        assert np.abs(found.astype(int) - expected_picture(crop, identity)).max() <= 1
        assert len(trt.builds) == 1
        assert trt.builds[0]["shapes"]["crop"] == [(1, 256, 256, 3), (1, 256, 256, 3), (4, 256, 256, 3)]

    def test_the_second_session_builds_nothing(self, stand_in, toy_bundle, crop, library):
        trt = stand_in(library)
        engine = library.split()[0]
        for _ in range(2):
            session = open_session(toy_bundle / "identity.onnx", engine=engine)
            np.testing.assert_allclose(session.run(crop=crop)["identity"], toy.expected_identity(crop), atol=1e-5)
        assert len(trt.builds) == 1

    def test_a_graph_without_a_dynamic_batch(self, stand_in, tmp_path, library):
        from fid.runtime.commands.doctor import _trial_graph

        x, y = _trial_graph(tmp_path / "trial.onnx")
        stand_in(library)
        session = open_session(tmp_path / "trial.onnx", engine=library.split()[0])
        np.testing.assert_allclose(session.run(x=x)["y"], y, atol=1e-6)


def test_precision_is_asked_for_as_the_libraries_want_it(stand_in, toy_bundle):
    # 10.x: strongly typed networks by a flag; 11: always. TensorRT-RTX: fixed places for memory, and what to build for.
    trt = stand_in(LIBRARIES[0])
    open_session(toy_bundle / "mapper.onnx", engine="tensorrt")
    assert trt.builds[0]["network"] == 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    trt = stand_in(RTX)
    open_session(toy_bundle / "mapper.onnx", engine="tensorrt-rtx")
    assert trt.builds[0]["flags"] == ["REQUIRE_USER_ALLOCATION"]
    assert list(trt.builds[0]["targets"].values()) == ["SM80", "SM86", "SM89", "SM120"]


def test_timings_are_kept_for_the_next_build_on_this_gpu(stand_in, toy_bundle):
    trt = stand_in()
    for graph in ("mapper", "attributes"):
        open_session(toy_bundle / f"{graph}.onnx", engine="tensorrt")
    assert [build["timings"] for build in trt.builds] == [b"", b"timings of Toy GPU"]


def test_kernels_of_tensorrt_rtx_are_kept(stand_in, toy_bundle, empty_cache):
    stand_in(RTX)
    open_session(toy_bundle / "mapper.onnx", engine="tensorrt-rtx")
    (file,) = (empty_cache / "engines").glob("kernels-*")
    assert engine_cache.read_sealed(file.name) == b"kernels for Toy GPU"


class TestRuns:
    """How the GPU is used; with full TensorRT, which does not record by itself."""

    @pytest.fixture
    def trt(self, stand_in):
        return stand_in()

    @pytest.fixture
    def session(self, trt, toy_bundle):
        return open_tensorrt(toy_bundle / "reenact.onnx", "tensorrt")

    def test_buffers_are_allocated_once_and_the_work_is_recorded_once(self, trt, session, crop):
        identity = toy.expected_identity(crop)
        session.run(crop=crop[:1], **toy.plain(identity[:1]))
        blocks, graphs, launched = len(trt.cuda.blocks), len(trt.cuda.graphs), trt.cuda.launched
        for _ in range(5):
            session.run(crop=crop[1:], **toy.plain(identity[1:]))
        assert (len(trt.cuda.blocks), len(trt.cuda.graphs)) == (blocks, graphs)
        assert trt.cuda.launched == launched + 5

    def test_the_identity_code_crosses_once(self, trt, session, crop):
        identity = toy.expected_identity(crop)
        session.run(crop=crop[:1], **toy.plain(identity[:1]))
        trt.cuda.sent.clear()
        session.run(crop=crop[1:], **toy.plain(identity[:1].copy()))
        assert trt.cuda.sent == [crop[1:].nbytes]
        found = session.run(crop=crop[1:], **toy.plain(identity[1:]))["image"]
        assert trt.cuda.sent == [crop[1:].nbytes, crop[1:].nbytes, identity[1:].nbytes]
        assert np.abs(found.astype(int) - expected_picture(crop[1:], identity[1:])).max() <= 1

    def test_any_batch_and_the_results_stay(self, trt, session, rng):
        # the engine takes 1 to 4: more are run in parts
        results = []
        for batch in (1, 2, 9, 4, 1):
            crop = rng.integers(0, 256, (batch, 256, 256, 3), np.uint8)
            identity = toy.expected_identity(crop[::-1])
            results.append((session.run(crop=crop, **toy.plain(identity))["image"], expected_picture(crop, identity)))
        for found, expected in results:
            assert found.shape == expected.shape
            assert np.abs(found.astype(int) - expected).max() <= 1

    def test_a_smaller_batch_than_the_engine_takes_is_filled_up(self, trt, toy_bundle, crop):
        session = open_tensorrt(toy_bundle / "identity.onnx", "tensorrt", Batch(4, 4, 4))
        found = session.run(crop=crop)["identity"]
        np.testing.assert_allclose(found, toy.expected_identity(crop), atol=1e-5)

    def test_memory_of_sizes_that_are_not_used_is_given_back(self, trt, toy_bundle, rng):
        session = open_tensorrt(toy_bundle / "mapper.onnx", "tensorrt", Batch(1, 1, 9))
        for batch in range(1, 10):
            session.run(identity=np.zeros((batch, 128), np.float32), attributes=np.zeros((batch, 512), np.float32))
        assert len(session._ready) == KEPT
        assert len(trt.cuda.blocks) == KEPT * 3 * 2  # three tensors, on the GPU and on the host

    def test_work_that_cannot_be_recorded_runs_all_the_same(self, trt, toy_bundle, crop):
        trt.cuda.can_record = False
        session = open_tensorrt(toy_bundle / "identity.onnx", "tensorrt")
        np.testing.assert_allclose(session.run(crop=crop)["identity"], toy.expected_identity(crop), atol=1e-5)
        assert trt.cuda.launched == 0

    def test_wrong_arrays(self, session, crop):
        with pytest.raises(ValueError, match="must be an array of uint8; it is float32"):
            session.run(crop=crop.astype(np.float32), **toy.plain(np.zeros((2, 128), np.float32)))

    def test_a_gpu_without_memory(self, trt, toy_bundle):
        trt.cuda.memory = 1000
        with pytest.raises(FidError, match="the GPU has not enough free memory"):
            open_tensorrt(toy_bundle / "identity.onnx", "tensorrt")
        trt.behave["no_context"] = True
        with pytest.raises(FidError, match="cannot make an execution context"):
            open_tensorrt(toy_bundle / "identity.onnx", "tensorrt")


class TestComparison:
    """A new engine is compared with FP32 before anybody gets to see its output."""

    def test_the_figures_stand_in_the_manifest(self, stand_in, toy_bundle, empty_cache):
        stand_in()
        open_session(toy_bundle / "reenact.onnx", engine="tensorrt")
        (manifest,) = (empty_cache / "engines").glob("*/manifest.json")
        record = json.loads(manifest.read_text())
        assert record["checked"]["image_psnr_db"] > 45
        assert (record["gpu"], record["driver"], record["cuda"]) == ("Toy GPU", "580.95.05", "13.0")
        assert record["compute_capability"] == "8.9"
        assert record["refused"] is None

    @pytest.mark.parametrize(
        ("graph", "noise", "fault"),
        [
            ("reenact", 9, r"image is \d+\.\d dB from FP32, and 45 dB are asked for"),
            ("identity", 9.0, r"identity has a cosine of -?0\.\d+ with FP32"),
            ("identity", np.nan, "identity has a cosine of nan with FP32"),
        ],
    )
    def test_an_engine_that_falls_short_is_refused_and_not_built_again(
        self, stand_in, toy_bundle, empty_cache, graph, noise, fault
    ):
        trt = stand_in()
        trt.behave["noise"] = noise
        for _ in range(2):
            session = open_session(toy_bundle / f"{graph}.onnx", engine="tensorrt")
            assert session.provider == "onnxruntime CPU"
            assert session.fallback is not None
            assert session.fallback.startswith(
                f"tensorrt does not work here: the TensorRT engine of {graph} is refused: "
            )
        with pytest.raises(FidError, match=fault):
            open_session(toy_bundle / f"{graph}.onnx", require="tensorrt")
        assert len(trt.builds) == 1
        assert [path.stat().st_size for path in empty_cache.rglob("engine.plan")] == [0]

    def test_inputs_are_like_those_that_it_will_see(self, stand_in, toy_bundle):
        from fid.runtime.engines.compare import trial_inputs

        stand_in()
        session = open_session(toy_bundle / "synthesis.onnx", engine="tensorrt")
        w = trial_inputs(session, toy_bundle / "synthesis.onnx")["w_plus"][:, -1]
        crop = trial_inputs(open_session(toy_bundle / "identity.onnx"), toy_bundle / "identity.onnx")["crop"]
        assert crop.std() > 20  # faces
        tint = w - toy.expected_attributes(crop) - toy.weights()["bias"].astype(np.float32)
        np.testing.assert_allclose(np.linalg.norm(tint[:, :128], axis=1), toy.TINT, rtol=1e-4)


class TestFP16Graph:
    """The same graph typed in FP16, for GPU engines; here one that tells itself apart by its weights."""

    @pytest.fixture
    def typed(self, toy_bundle, tmp_path):
        folder = shutil.copytree(toy_bundle, tmp_path / "typed")
        content = np.fromfile(folder / "weights.bin", np.float16)
        content[512:] += np.float16(1e-3)  # the bias
        content.tofile(folder / "weights.bin")
        return folder / "mapper.onnx"

    codes = {"identity": np.zeros((1, 128), np.float32), "attributes": np.zeros((1, 512), np.float32)}  # noqa: RUF012

    def test_it_is_what_a_gpu_runs(self, stand_in, toy_bundle, typed):
        stand_in()
        session = open_session(toy_bundle / "mapper.onnx", fp16_graph=typed)
        bias = np.fromfile(typed.parent / "weights.bin", np.float16)[512:].astype(np.float32)
        np.testing.assert_allclose(session.run(**self.codes)["w"][0], bias, atol=1e-6)

    def test_a_cpu_runs_the_other(self, toy_bundle, typed):
        session = open_session(toy_bundle / "mapper.onnx", fp16_graph=typed)
        found = session.run(**self.codes)["w"][0]
        np.testing.assert_allclose(found, toy.weights()["bias"].astype(np.float32), atol=1e-6)

    def test_one_that_falls_short_gives_way_to_fp32_on_the_same_engine(self, stand_in, toy_bundle, typed):
        content = np.fromfile(typed.parent / "weights.bin", np.float16)
        content[512:] = 30
        content.tofile(typed.parent / "weights.bin")
        trt = stand_in()
        session = open_session(toy_bundle / "mapper.onnx", fp16_graph=typed)
        assert session.provider == "tensorrt CUDA fp32"
        assert (session.fallback or "").startswith("tensorrt does not work here in FP16: the TensorRT engine of mapper")
        assert len(trt.builds) == 2


class TestRefusals:
    def test_a_plan_is_never_opened(self, tmp_path, stand_in):
        stand_in()
        for name in ("synthesis.plan", "synthesis.engine", "synthesis.trt"):
            (tmp_path / name).write_bytes(b"native code")
            with pytest.raises(InputError, match="only those built here are loaded") as caught:
                open_session(tmp_path / name)
            assert caught.value.exit_code == 2

    def test_parse_errors_name_the_node(self, stand_in, tmp_path):
        import onnx

        port = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("Unheard", ["w"], ["y"], name="rare")],
            "g",
            [port("w", 1, ["batch", 8])],
            [port("y", 1, ["batch", 8])],
        )
        (tmp_path / "rare.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
        stand_in()
        with pytest.raises(FidError) as caught:
            open_tensorrt(tmp_path / "rare.onnx", "tensorrt")
        assert str(caught.value) == (
            "TensorRT 11.4.0.106 cannot take rare.onnx: "
            "node rare (Unheard): Plugin not found, Assertion failed: no such operator."
        )

    def test_a_build_that_fails(self, stand_in, toy_bundle, empty_cache):
        trt = stand_in()
        trt.behave["fails"] = True
        with pytest.raises(FidError, match=r"^TensorRT 11\.4\.0\.106 cannot build mapper\.onnx: no tactic fits\.$"):
            open_tensorrt(toy_bundle / "mapper.onnx", "tensorrt")
        assert not list(empty_cache.rglob("engine.plan"))

    def test_a_plan_that_does_not_load_is_built_once_more(self, stand_in, toy_bundle, crop):
        # deserialize_cuda_engine raises nothing: it gives None
        trt = stand_in()
        open_session(toy_bundle / "identity.onnx", engine="tensorrt")
        trt.behave["loads"] = False
        with pytest.raises(FidError, match=r"cannot load the engine of identity that it built: The engine plan file"):
            open_tensorrt(toy_bundle / "identity.onnx", "tensorrt")
        assert len(trt.builds) == 2
        trt.behave["loads"] = True
        open_tensorrt(toy_bundle / "identity.onnx", "tensorrt").run(crop=crop)
        assert len(trt.builds) == 3

    def test_missing_weights(self, stand_in, toy_bundle, tmp_path):
        shutil.copytree(toy_bundle, tmp_path / "bad")
        (tmp_path / "bad" / "weights.bin").unlink()
        stand_in()
        with pytest.raises(FidError, match=r"mapper\.onnx takes its weights from .*weights\.bin, which cannot be read"):
            open_tensorrt(tmp_path / "bad" / "mapper.onnx", "tensorrt")

    @pytest.mark.parametrize("content", [b"", b"not a graph", b"<!doctype html>"])
    def test_a_file_that_is_no_graph(self, stand_in, tmp_path, content):
        (tmp_path / "bad.onnx").write_bytes(content)
        stand_in()
        with pytest.raises(FidError) as caught:
            open_tensorrt(tmp_path / "bad.onnx", "tensorrt")
        assert "\n" not in str(caught.value)


class TestWithoutAGpu:
    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (Error.cudaErrorInsufficientDriver, "there is no NVIDIA driver here, or it is older"),
            (Error.cudaErrorNoDevice, "there is an NVIDIA driver and no GPU that it can use"),
        ],
    )
    @pytest.mark.parametrize("engine", ["auto", "tensorrt-rtx"])
    def test_the_next_engine_runs_and_one_sentence_says_why(self, stand_in, toy_bundle, crop, engine, error, reason):
        trt = stand_in(RTX)
        trt.cuda.broken = error
        session = open_session(toy_bundle / "identity.onnx", engine=engine)
        assert session.provider == "onnxruntime CPU"
        assert session.fallback is not None
        assert session.fallback.startswith(f"tensorrt-rtx does not work here: {reason}")
        assert session.fallback.endswith("; onnxruntime CPU runs in its place.")
        assert "\n" not in session.fallback
        np.testing.assert_allclose(session.run(crop=crop)["identity"], toy.expected_identity(crop), atol=1e-5)
        assert trt.builds == []

    def test_required(self, stand_in, toy_bundle):
        stand_in(RTX).cuda.broken = Error.cudaErrorNoDevice
        with pytest.raises(FidError, match="tensorrt-rtx is required and onnxruntime CPU is what runs"):
            open_session(toy_bundle / "identity.onnx", require="tensorrt-rtx")

    def test_not_installed(self, toy_bundle):
        for engine, title in (("tensorrt", "TensorRT"), ("tensorrt-rtx", "TensorRT-RTX")):
            with pytest.raises(FidError) as caught:
                open_session(toy_bundle / "identity.onnx", engine=engine)
            assert str(caught.value) == f"{title} is not installed: `pip install 'fid-face[{engine}]'`."

    def test_without_nvidias_bindings(self, stand_in, toy_bundle, monkeypatch):
        real = cuda.cudart
        stand_in(RTX)
        monkeypatch.setattr(cuda, "cudart", real)
        monkeypatch.setitem(__import__("sys").modules, "cuda.bindings.runtime", None)
        session = open_session(toy_bundle / "identity.onnx")
        assert "pip install cuda-bindings" in (session.fallback or "")

    def test_a_gpu_that_tensorrt_rtx_does_not_know(self, stand_in, toy_bundle):
        stand_in(RTX, name="NVIDIA H100", capability=(9, 0))
        session = open_session(toy_bundle / "identity.onnx")
        assert "does not support this GPU (NVIDIA H100, compute capability 9.0)" in (session.fallback or "")

    def test_a_gpu_of_its_own_kind_gets_its_own_engine(self, stand_in, toy_bundle):
        trt = stand_in(RTX, name="NVIDIA RTX 2080", capability=(7, 5))
        assert satisfies(open_session(toy_bundle / "identity.onnx").provider, "tensorrt-rtx")
        assert list(trt.builds[0]["targets"].values()) == ["SM75"]


@pytest.mark.parametrize(
    ("provider", "name", "expected"),
    [
        ("tensorrt-rtx CUDA fp16", "tensorrt-rtx", True),
        ("tensorrt-rtx CUDA fp16", "tensorrt", False),
        ("tensorrt CUDA fp16", "tensorrt-rtx", False),
        ("tensorrt CUDA fp16", "tensorrt", True),
        ("tensorrt CUDA fp16", "fp16", True),
    ],
)
def test_satisfies(provider, name, expected):
    assert satisfies(provider, name) is expected
