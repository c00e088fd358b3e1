import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime
import pytest
import toy
from fid.runtime.assets import BUNDLE
from fid.runtime.engines import machine
from fid.runtime.engines import open as session_module
from fid.runtime.engines import ort as ort_sessions
from fid.runtime.engines.machine import physical_cores
from fid.runtime.engines.open import ENGINES, open_session, satisfies
from fid.runtime.engines.session import check_inputs
from fid.runtime.errors import FidError, InputError

CPU_ENGINES = ["onnxruntime", "openvino", "openvino-bf16"]


@pytest.fixture(autouse=True)
def _cache(empty_cache):
    """OpenVINO writes its builds there."""


@pytest.fixture
def crop(rng):
    return rng.integers(0, 256, (2, 256, 256, 3), np.uint8)


def opened(toy_bundle, graph, engine, **options):
    if engine.startswith("openvino"):
        pytest.importorskip("openvino")
    return open_session(toy_bundle / f"{graph}.onnx", engine=engine, threads=1, **options)


@pytest.mark.parametrize("engine", CPU_ENGINES)
class TestEveryEngine:
    def test_codes_equal_numpy(self, toy_bundle, crop, engine):
        tolerance = 0.02 if engine.endswith("bf16") else 1e-5  # bfloat16 keeps 8 bits
        found = opened(toy_bundle, "identity", engine).run(crop=crop)["identity"]
        np.testing.assert_allclose(found, toy.expected_identity(crop), atol=tolerance)
        found = opened(toy_bundle, "attributes", engine).run(crop=crop)["attributes"]
        np.testing.assert_allclose(found, toy.expected_attributes(crop), atol=tolerance)

    def test_pictures_equal_numpy(self, toy_bundle, crop, engine):
        identity = toy.expected_identity(crop[::-1])
        expected = toy.expected_image(toy.expected_w(identity, toy.expected_attributes(crop)))
        found = opened(toy_bundle, "reenact", engine).run(crop=crop, **toy.plain(identity))["image"]
        assert found.dtype == np.uint8
        levels = 3 if engine.endswith("bf16") else 1
        assert np.abs(found.astype(int) - expected).max() <= levels

    def test_any_batch_and_the_results_stay(self, toy_bundle, rng, engine):
        session = opened(toy_bundle, "identity", engine, static_batch=2)
        results = []
        for batch in (1, 2, 3, 4, 5, 6, 1):
            crop = rng.integers(0, 256, (batch, 256, 256, 3), np.uint8)
            results.append((session.run(crop=crop)["identity"], toy.expected_identity(crop)))
        for found, expected in results:
            np.testing.assert_allclose(found, expected, atol=0.02)

    def test_what_it_says_about_itself(self, toy_bundle, engine):
        session = opened(toy_bundle, "reenact", engine)
        assert [(t.name, t.shape, t.dtype) for t in session.inputs] == [
            ("crop", ("batch", 256, 256, 3), "uint8"),
            ("identity", ("batch", 128), "float32"),
            ("w_plus_offset", ("batch", toy.N_STYLES, 512), "float32"),
        ]
        assert [(t.name, t.shape, t.dtype) for t in session.outputs] == [("image", ("batch", 256, 256, 3), "uint8")]
        assert satisfies(session.provider, engine) or session.fallback is not None

    def test_from_many_threads(self, toy_bundle, rng, engine):
        session = opened(toy_bundle, "identity", engine)
        crops = [rng.integers(0, 256, (1, 256, 256, 3), np.uint8) for _ in range(8)]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda crop: session.run(crop=crop)["identity"], crops))
        for code, crop in zip(found, crops, strict=True):
            np.testing.assert_allclose(code, toy.expected_identity(crop), atol=0.02)

    def test_an_array_that_is_not_contiguous(self, toy_bundle, crop, engine):
        found = opened(toy_bundle, "identity", engine).run(crop=crop[..., ::-1])["identity"]
        np.testing.assert_allclose(found, toy.expected_identity(crop[..., ::-1]), atol=0.02)

    @pytest.mark.parametrize("content", [b"", b"not a graph", b"<!doctype html>"])
    def test_a_file_that_is_no_graph(self, toy_bundle, tmp_path, engine, content):
        shutil.copytree(toy_bundle, tmp_path / "bad")
        (tmp_path / "bad" / "identity.onnx").write_bytes(content)
        with pytest.raises(FidError, match=r"cannot (open|build)") as caught:
            opened(tmp_path / "bad", "identity", engine)
        assert "\n" not in str(caught.value)

    def test_missing_weights(self, toy_bundle, tmp_path, engine):
        shutil.copytree(toy_bundle, tmp_path / "bad")
        (tmp_path / "bad" / "weights.bin").unlink()
        with pytest.raises(FidError, match="cannot open"):
            opened(tmp_path / "bad", "mapper", engine)

    def test_wrong_arrays(self, toy_bundle, crop, engine):
        session = opened(toy_bundle, "identity", engine)
        for arrays, match in [
            ({}, "takes crop; it was given nothing"),
            ({"picture": crop}, "takes crop; it was given picture"),
            ({"crop": crop.astype(np.float32)}, "must be an array of uint8; it is float32"),
            ({"crop": crop.tolist()}, "must be an array of uint8; it is list"),
            ({"crop": crop[0]}, r"must have shape \[batch, 256, 256, 3\]; it has \[256, 256, 3\]"),
            ({"crop": crop.transpose(0, 3, 1, 2)}, "must have shape"),
            ({"crop": crop[:0]}, "must have shape"),
        ]:
            with pytest.raises(ValueError, match=match):
                session.run(**arrays)

    def test_nothing_is_printed_nor_kept_outside_of_the_cache(self, toy_bundle, tmp_path, engine):
        # both engines report to their makers when imported as they are, and leave an id in the home folder
        if engine.startswith("openvino"):
            pytest.importorskip("openvino")
        program = (
            "import numpy as np\nfrom fid.runtime.engines.open import open_session\n"
            f"s = open_session({str(toy_bundle / 'identity.onnx')!r}, engine={engine!r})\n"
            "s.run(crop=np.zeros((1, 256, 256, 3), np.uint8))\n"
        )
        home = tmp_path / "home"
        home.mkdir()
        environment = os.environ | {"FID_CACHE": str(tmp_path / "cache"), "HOME": str(home)}
        for name in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "CI"):
            environment.pop(name, None)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert list(home.rglob("*")) == []


def test_two_batch_sizes_must_agree(toy_bundle, crop):
    session = opened(toy_bundle, "reenact", "onnxruntime")
    with pytest.raises(ValueError, match=r"identity must have shape \[batch, 128\]; it has \[1, 128\]"):
        session.run(crop=crop, **toy.plain(np.zeros((1, 128), np.float32)))


def test_auto_on_a_cpu_is_onnxruntime(toy_bundle):
    session = opened(toy_bundle, "identity", "auto")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        assert session.provider == "onnxruntime CPU"
    assert session.fallback is None


def test_the_quicker_form_is_made_once(empty_cache, monkeypatch):
    monkeypatch.setattr(ort_sessions, "has_avx512", lambda: False)
    path = BUNDLE / "synthesis-light.onnx"
    w_plus = np.random.default_rng(0).standard_normal((2, 17, 512)).astype(np.float32) * 0.3
    first = open_session(path, engine="onnxruntime").run(w_plus=w_plus)["image"]
    (kept,) = (empty_cache / "forms").glob("*.onnx")
    assert b"MatMul" in kept.read_bytes()
    monkeypatch.setitem(sys.modules, "onnx", None)  # not needed any more
    session = open_session(path, engine="onnxruntime")
    for _ in range(3):  # the first two give memory back
        np.testing.assert_array_equal(session.run(w_plus=w_plus)["image"], first)


def test_a_cpu_with_avx512_convolves(empty_cache, monkeypatch):
    monkeypatch.setattr(ort_sessions, "has_avx512", lambda: True)
    monkeypatch.setitem(sys.modules, "onnx", None)  # takes 0.4 s, and is not needed
    open_session(BUNDLE / "synthesis-light.onnx", engine="onnxruntime")
    assert not (empty_cache / "forms").exists()


@pytest.mark.parametrize(
    ("features", "measured", "here", "expected"),
    [
        ({"avx512f", "avx512_bf16"}, None, True, "openvino-bf16"),
        ({"amx_bf16"}, "openvino-bf16", True, "openvino-bf16"),
        ({"amx_bf16"}, "openvino-int8", True, "openvino-bf16"),
        ({"avx512_bf16"}, "onnxruntime", True, "onnxruntime"),
        ({"avx512_bf16"}, None, False, "onnxruntime"),
        ({"avx512f"}, None, True, "onnxruntime"),
    ],
)
def test_gradients_are_computed_in_bfloat16_where_nothing_speaks_against_it(
    features, measured, here, expected, empty_cache, monkeypatch
):
    monkeypatch.setattr(machine, "processor_features", lambda: frozenset(features))
    monkeypatch.setattr(session_module, "has_bf16", machine.has_bf16)
    monkeypatch.setattr(session_module, "find_spec", lambda name: object() if here else None)
    if measured:
        machine.remember({"synthesis": measured})
    assert session_module.quickest_for_gradients() == expected


def test_the_quicker_form_is_used_where_the_cache_cannot_be_written(empty_cache):
    empty_cache.mkdir()
    (empty_cache / "forms").write_text("a file in the way")
    assert open_session(BUNDLE / "synthesis-light.onnx", engine="onnxruntime").provider == "onnxruntime CPU"


def test_two_threads_at_once_may_be_the_first_to_open_with_openvino(tmp_path):
    """OpenVINO 2026.4 alone hangs in two of three such processes, with Python's lock in its hands."""
    pytest.importorskip("openvino")
    program = (
        "import sys, threading\nfrom fid.runtime.engines.ov import _openvino\nsys.setswitchinterval(1e-6)\n"
        "both = threading.Barrier(2)\n"
        "def first():\n    both.wait()\n    _openvino().Type.u8.to_dtype()\n"
        "threads = [threading.Thread(target=first) for _ in range(2)]\n"
        "[thread.start() for thread in threads]\n[thread.join() for thread in threads]\n"
    )
    for _ in range(4):
        assert subprocess.run([sys.executable, "-c", program], cwd=tmp_path, timeout=60).returncode == 0


def test_openvino_says_its_precision(toy_bundle):
    assert opened(toy_bundle, "identity", "openvino").provider == "openvino CPU f32"
    session = opened(toy_bundle, "identity", "openvino-bf16")
    assert session.provider == ("openvino CPU bf16" if session.fallback is None else "openvino CPU f32")


def test_openvino_on_a_cpu_without_bf16(toy_bundle, monkeypatch):
    openvino = pytest.importorskip("openvino")
    real = openvino.Core.get_property

    def without(self, *names):
        return ["FP32"] if names[-1] == "OPTIMIZATION_CAPABILITIES" else real(self, *names)

    monkeypatch.setattr(openvino.Core, "get_property", without)
    session = opened(toy_bundle, "identity", "openvino-bf16")
    assert session.provider == "openvino CPU f32"
    assert "does not have it" in (session.fallback or "")
    with pytest.raises(FidError, match=r"bf16 is required and openvino CPU f32 is what runs \(bf16 was asked for"):
        opened(toy_bundle, "identity", "openvino-bf16", require="bf16")


def test_the_openvino_cache_knows_the_weights(toy_bundle, tmp_path, crop):
    # The second graph differs in its weights only: a build taken from the cache for the first would be wrong.
    first = opened(toy_bundle, "attributes", "openvino").run(crop=crop)["attributes"]
    shutil.copytree(toy_bundle, tmp_path / "other")
    content = np.fromfile(tmp_path / "other" / "weights.bin", np.float16)
    (content * np.float16(0.5)).tofile(tmp_path / "other" / "weights.bin")
    second = opened(tmp_path / "other", "attributes", "openvino").run(crop=crop)["attributes"]
    np.testing.assert_allclose(second, first / 2, atol=1e-3)


@pytest.mark.parametrize(
    ("provider", "name", "expected"),
    [
        ("onnxruntime CPU", "onnxruntime", True),
        ("onnxruntime CPU", "cpu", True),
        ("onnxruntime CPU", "cuda", False),
        ("onnxruntime CUDA", "cuda", True),
        ("onnxruntime CUDA", "onnxruntime-cuda", True),
        ("openvino CPU f32", "openvino-bf16", False),
        ("openvino CPU bf16", "openvino-bf16", True),
        ("tensorrt_rtx", "tensorrt", False),
    ],
)
def test_satisfies(provider, name, expected):
    assert satisfies(provider, name) is expected


class TestRequire:
    @pytest.mark.parametrize("name", ["tensorrt", "cuda", "nonsense"])
    def test_what_does_not_run_is_an_error(self, toy_bundle, name):
        if name == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this build has CUDA")
        with pytest.raises(FidError, match=f"(?i){name}"):
            opened(toy_bundle, "identity", "auto", require=name)

    def test_it_also_chooses(self, toy_bundle):
        pytest.importorskip("openvino")
        assert opened(toy_bundle, "identity", "auto", require="openvino").provider == "openvino CPU f32"
        assert opened(toy_bundle, "identity", "auto", require="onnxruntime").provider == "onnxruntime CPU"

    def test_a_contradiction(self, toy_bundle):
        with pytest.raises(FidError, match="openvino is required and onnxruntime CPU is what runs"):
            opened(toy_bundle, "identity", "onnxruntime", require="openvino")


class TestCuda:
    """What ONNX Runtime does on a machine with its CUDA build and no CUDA: a CPU session, silently."""

    @pytest.fixture(autouse=True)
    def _build(self, monkeypatch):
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this build has CUDA")
        real = onnxruntime.InferenceSession
        monkeypatch.setattr(
            onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
        )
        monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
        monkeypatch.setattr(
            onnxruntime,
            "InferenceSession",
            lambda path, options, providers: real(path, options, ["CPUExecutionProvider"]),
        )

    def test_the_truth_is_told(self, toy_bundle):
        session = opened(toy_bundle, "identity", "cuda")
        assert session.provider == "onnxruntime CPU"
        assert "does not work here" in (session.fallback or "")

    def test_required(self, toy_bundle):
        with pytest.raises(FidError, match="cuda is required and onnxruntime CPU is what runs"):
            opened(toy_bundle, "identity", "auto", require="cuda")

    def test_auto_takes_the_cpu_and_says_why(self, toy_bundle):
        session = opened(toy_bundle, "identity", "auto")
        assert session.provider == "onnxruntime CPU"
        assert session.fallback == (
            "cuda does not work here: ONNX Runtime did not start CUDA; is there an NVIDIA driver?; "
            "onnxruntime CPU runs in its place."
        )


def test_cuda_without_its_build(toy_bundle):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this build has CUDA")
    with pytest.raises(FidError, match="onnxruntime-gpu"):
        opened(toy_bundle, "identity", "cuda")


def test_openvino_not_installed(toy_bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(FidError, match=r"pip install 'fid-face\[openvino\]'") as caught:
        open_session(toy_bundle / "identity.onnx", engine="openvino")
    assert caught.value.exit_code == 1


def test_bad_arguments(toy_bundle, tmp_path):
    with pytest.raises(InputError, match=f"known are {', '.join(ENGINES)}"):
        open_session(toy_bundle / "identity.onnx", engine="tensorflow")
    with pytest.raises(InputError, match="at least 1"):
        open_session(toy_bundle / "identity.onnx", threads=0)
    with pytest.raises(FidError, match="there is no graph"):
        open_session(tmp_path / "missing.onnx")


def test_check_inputs_accepts_a_fixed_shape():
    port = toy.Tensor("x", (2, 3), "float32")
    assert check_inputs((port,), {"x": np.zeros((2, 3), np.float32)}) is None
    with pytest.raises(ValueError, match="x"):
        check_inputs((port,), {"x": np.zeros((2, 4), np.float32)})


class TestThreads:
    def test_at_least_one_and_no_more_than_the_cpus(self):
        assert 1 <= physical_cores() <= (os.cpu_count() or 1)

    @pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")
    def test_affinity_counts(self):
        program = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        program += "from fid.runtime.engines.open import physical_cores; print(physical_cores())"
        assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "1\n"

    def test_the_count_reaches_the_engine(self, toy_bundle, monkeypatch):
        monkeypatch.setattr(session_module, "physical_cores", lambda: 3)
        session = open_session(toy_bundle / "identity.onnx", engine="onnxruntime")
        assert session._session.get_session_options().intra_op_num_threads == 3

    def test_an_idle_session_leaves_the_cpu_alone(self, toy_bundle):
        session = open_session(toy_bundle / "identity.onnx", engine="onnxruntime", threads=4)
        session.run(crop=np.zeros((8, 256, 256, 3), np.uint8))
        before = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - before < 0.1


def test_the_toy_graphs_are_small(toy_bundle):
    assert sum(path.stat().st_size for path in toy_bundle.iterdir()) < 32_000
    assert onnx.load(toy_bundle / "reenact.onnx", load_external_data=False).graph.initializer[0].name
