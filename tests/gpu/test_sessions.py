"""Every GPU engine on the shipped bundle, against ONNX Runtime on the CPU. An engine that is not installed is skipped.

    pytest tests/gpu -rs

What NVIDIA's libraries build here goes into a cache of the test's own.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from fid.runtime.engines import cuda
from fid.runtime.engines.compare import compare, trial_inputs
from fid.runtime.engines.open import GPU_ENGINES, installed, open_session
from fid.runtime.engines.tensorrt.build import Batch
from fid.runtime.errors import FidError
from fid.runtime.weights.bundle import Bundle

pytestmark = pytest.mark.gpu

GRAPHS = ("attributes", "mapper", "synthesis", "reenact")
MIN_PSNR_DB = 45.0  # as in check_engine: FP32 on a GPU rounds to TF32 inside of convolutions
MIN_COSINE = 0.999


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests of this file: engines take minutes."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FID_CACHE", str(cache))


@pytest.fixture(params=GPU_ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """An engine that runs here."""
    if not installed(request.param):
        pytest.skip(f"{request.param} is not installed")
    if request.param == "tensorrt-rtx":
        from fid.runtime.engines.tensorrt.build import library
        from fid.runtime.engines.tensorrt.session import engine_key

        try:
            engine_key(library(request.param), graph("mapper"), Batch(), cuda.gpu())
        except FidError as error:
            pytest.skip(str(error))
    return request.param


def graph(name: str) -> Path:
    """A graph of the shipped bundle."""
    return Bundle.load().graph_path(name)


def assert_close(found: dict, expected: dict) -> None:
    """Pictures by their PSNR, codes by their cosine."""
    for name, right in expected.items():
        difference = found[name].astype(np.float64) - right
        if right.dtype == np.uint8:
            psnr_db = 10 * np.log10(255**2 / max(float((difference**2).mean()), 1e-9))
            assert psnr_db >= MIN_PSNR_DB, f"{name}: {psnr_db:.1f} dB, max {np.abs(difference).max()}"
        else:
            lengths = np.linalg.norm(found[name], axis=1) * np.linalg.norm(right, axis=1)
            cosine = ((found[name] * right).sum(1) / lengths).min()
            assert cosine >= MIN_COSINE, f"{name}: cosine {cosine:.6f}, max {np.abs(difference).max()}"


@pytest.mark.parametrize("name", GRAPHS)
def test_outputs_equal_the_cpu_at_any_batch(engine, name):
    session = open_session(graph(name), require=engine)
    assert session.fallback is None
    reference = open_session(graph(name), engine="onnxruntime")
    arrays = trial_inputs(session, graph(name))
    for batch in (1, 2, 8, 1, 3):
        part = {key: np.ascontiguousarray(array[:batch]) for key, array in arrays.items()}
        assert_close(session.run(**part), reference.run(**part))


def test_the_same_input_gives_the_same_output_and_changes_are_seen(engine):
    session = open_session(graph("reenact"), require=engine)
    arrays = trial_inputs(session, graph("reenact"))
    ann, bob = ({name: arrays[name][i : i + 1] for name in ("identity", "appearance")} for i in (0, 1))
    crops = [arrays["crop"][i : i + 1] for i in range(4)]
    first = [session.run(crop=crop, **ann)["image"] for crop in crops]
    second = [session.run(crop=crop, **bob)["image"] for crop in crops]
    third = [session.run(crop=crop, **ann)["image"] for crop in crops]
    for a, b, c in zip(first, second, third, strict=True):
        np.testing.assert_array_equal(a, c)
        assert np.abs(a.astype(int) - b).mean() > 1
    assert np.abs(first[0].astype(int) - first[1]).mean() > 1


def test_what_the_engine_computes_is_compared(engine):
    figures, fault = compare(open_session(graph("synthesis"), require=engine), graph("synthesis"))
    assert fault is None
    assert figures["image_psnr_db"] >= MIN_PSNR_DB


def test_graphs_typed_in_fp16(engine, tmp_path):
    pytest.importorskip("torch")
    from fid.export.fp16.convert import to_fp16
    from fid.export.graphs import bundle_graphs
    from fid.export.read import read_networks
    from fid.export.to_onnx import to_onnx

    path = tmp_path / "synthesis.onnx"
    module = bundle_graphs(read_networks(None, None).for_inference())["synthesis"]
    onnx.save(to_fp16(to_onnx(module)).model, path)
    session = open_session(graph("synthesis"), fp16_graph=path, require=engine)
    assert session.fallback is None
    w_plus = trial_inputs(session, graph("synthesis"))["w_plus"]
    assert_close(session.run(w_plus=w_plus), open_session(graph("synthesis"), engine="onnxruntime").run(w_plus=w_plus))


def test_engines_come_from_the_cache_the_second_time(engine, cache, capsys):
    if engine == "cuda":
        pytest.skip("has no cache")
    open_session(graph("mapper"), require=engine)
    capsys.readouterr()
    open_session(graph("mapper"), require=engine)
    assert capsys.readouterr().err == ""
    records = [json.loads(path.read_text()) for path in (cache / "engines").glob("*/manifest.json")]
    (record,) = [record for record in records if (record["name"], record["library"]) == ("mapper", engine)]
    assert record["checked"]["w_cosine"] >= MIN_COSINE


def test_a_damaged_plan_is_built_again(engine, cache, capsys):
    if engine == "cuda":
        pytest.skip("has no cache")
    open_session(graph("mapper"), require=engine)
    for manifest in (cache / "engines").glob("*/manifest.json"):
        if json.loads(manifest.read_text())["name"] == "mapper":
            plan = manifest.with_name("engine.plan")
            content = bytearray(plan.read_bytes())
            content[len(content) // 2] ^= 1
            plan.write_bytes(content)
    capsys.readouterr()
    session = open_session(graph("mapper"), require=engine)
    assert "is not the one that was built here" in capsys.readouterr().err
    arrays = trial_inputs(session, graph("mapper"))
    assert_close(session.run(**arrays), open_session(graph("mapper"), engine="onnxruntime").run(**arrays))


def test_auto_takes_the_gpu():
    session = open_session(graph("mapper"))
    if not any(map(installed, GPU_ENGINES)):
        pytest.skip("no GPU engine is installed")
    assert "CUDA" in session.provider.split(), session.fallback


class TestCuda:
    def test_facts(self):
        found = cuda.gpu()
        assert found.name
        assert float(found.compute_capability) >= 5
        assert float(found.cuda) >= 12

    def test_what_is_sent_comes_back(self):
        buffers = cuda.Buffers({"x": ((2, 3), "float32"), "y": ((5,), "uint8")}, cuda.Stream())
        for name, values in {
            "x": np.arange(6, dtype=np.float32).reshape(2, 3),
            "y": np.arange(5, dtype=np.uint8),
        }.items():
            buffers.send(name, values)
            buffers._host[name][...] = 0  # only the GPU has them now
            np.testing.assert_array_equal(buffers.fetch((name,))[name], values)

    def test_recorded_work_is_done_again(self):
        runtime, stream = cuda.cudart(), cuda.Stream()
        buffers = cuda.Buffers({"a": ((4,), "float32"), "b": ((4,), "float32")}, stream)

        def copy() -> bool:
            kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
            cuda.check(runtime.cudaMemcpyAsync(buffers.address("b"), buffers.address("a"), 16, kind, stream.handle))
            return True

        recorded = stream.capture(copy)
        assert recorded is not None
        for value in (1, 2):
            buffers.send("a", np.full(4, value, np.float32))
            recorded.launch()
            np.testing.assert_array_equal(buffers.fetch(("b",))["b"], np.full(4, value, np.float32))

    def test_too_much_memory_is_a_sentence(self):
        with pytest.raises(FidError, match="not enough free memory"):
            cuda.Buffers({"x": ((1 << 40,), "float32")}, cuda.Stream())
