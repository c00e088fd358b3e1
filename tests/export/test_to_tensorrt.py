"""Engines of a bundle: the command, and real builds by TensorRT-RTX, which needs no GPU for them (marker `rtx`)."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from click.testing import CliRunner
from fid.export import cli
from fid.export.fp16.convert import to_fp16
from fid.export.graphs import SynthesisGraph, bundle_graphs
from fid.export.read import read_networks
from fid.export.to_onnx import to_onnx
from fid.export.to_tensorrt import build_engines
from fid.runtime.engines.tensorrt import cache as engine_cache
from fid.runtime.engines.tensorrt.build import RTX_TARGETS, Batch, build, graph_facts, library
from fid.runtime.errors import FidError, InputError
from fid.runtime.weights import catalogue as models
from fid.runtime.weights.bundle import Bundle
from fid.runtime.weights.prepare import prepared
from fid.trainer.networks.mobilestylegan import Synthesis
from onnx import TensorProto, helper
from stand_in_gpu import LIBRARIES, Error

RTX = LIBRARIES[3]


class TestEnginesOfABundle:
    def test_all_graphs_on_a_gpu_are_built_and_compared(self, stand_in, toy_bundle):
        trt = stand_in()
        facts = build_engines(Bundle.load(toy_bundle), "tensorrt", Batch(1, 2, 4))
        assert [fact.graph for fact in facts] == ["identity", "attributes", "mapper", "synthesis", "reenact"]
        assert len(trt.builds) == 5
        assert {fact.engine.key.batch for fact in facts} == {"1:2:4"}
        assert facts[0].checked.startswith("identity cosine 1.000")
        assert facts[-1].checked.endswith(" dB")

    def test_tensorrt_rtx_needs_no_gpu(self, stand_in, toy_bundle):
        trt = stand_in(RTX)
        trt.cuda.broken = Error.cudaErrorInsufficientDriver
        seen = []
        facts = build_engines(Bundle.load(toy_bundle), "tensorrt-rtx", Batch(), seen.append)
        assert seen == facts
        assert {fact.checked for fact in facts} == {"at first use, on the GPU"}
        assert {fact.engine.key.compute_capability for fact in facts} == {"80 86 89 120"}
        trt.cuda.broken = None  # the same cache on a machine with a GPU
        build_engines(Bundle.load(toy_bundle), "tensorrt-rtx", Batch())
        assert len(trt.builds) == 5

    def test_what_was_exported_is_what_a_session_opens(self, stand_in, toy_bundle):
        from fid.runtime.engines.open import open_session

        trt = stand_in()
        build_engines(Bundle.load(toy_bundle), "tensorrt", Batch(1, 4, 16))
        open_session(toy_bundle / "synthesis.onnx", engine="tensorrt")
        assert len(trt.builds) == 5

    def test_tensorrt_without_a_gpu(self, stand_in, toy_bundle):
        stand_in().cuda.broken = Error.cudaErrorNoDevice
        with pytest.raises(FidError, match="no GPU that it can use"):
            build_engines(Bundle.load(toy_bundle), "tensorrt", Batch())


class TestCommand:
    @pytest.fixture
    def run(self, monkeypatch, toy_bundle, tmp_path):
        """`fid-export` with the export itself left out."""
        monkeypatch.setattr("fid.export.read.read_networks", lambda *_: SimpleNamespace(provenance={}))
        monkeypatch.setattr("fid.export.to_bundle.export_bundle", lambda *_, **__: Bundle.load(toy_bundle))
        return lambda *words: CliRunner().invoke(cli.command, ["-o", str(tmp_path / "bundle"), *words])

    def test_the_table(self, stand_in, run):
        stand_in(RTX).cuda.broken = Error.cudaErrorNoDevice
        result = run("--engine", "tensorrt-rtx", "--batch", "1:1:8")
        assert result.exception is None
        table = result.output[result.output.index("tensorrt-rtx engines for") :]
        assert " ".join(table.split()).startswith(
            "tensorrt-rtx engines for SM 80 86 89 120, batch 1:1:8, in this machine's cache"
        )
        assert table.count("at first use, on the GPU") == table.count("fp32") == 5
        assert max(map(len, table.splitlines())) <= 80

    def test_a_missing_library_is_told_before_the_export(self, run, monkeypatch):
        library.cache_clear()
        for name in ("tensorrt", "tensorrt_rtx"):
            monkeypatch.setitem(sys.modules, name, None)
        for engine in ("tensorrt", "tensorrt-rtx"):
            result = run("--engine", engine)
            assert isinstance(result.exception, FidError)
            assert f"pip install 'fid-face[{engine}]'" in str(result.exception)
            assert result.output == ""

    def test_wrong_batch_sizes(self, run):
        result = run("--engine", "tensorrt", "--batch", "4:1")
        assert isinstance(result.exception, InputError)
        assert "expected MIN:OPT:MAX" in str(result.exception)


@pytest.mark.rtx
class TestRealBuilds:
    """Every graph that fid has, built ahead of time for SM 80, 86, 89 and 120 by NVIDIA's own parser and builder."""

    @pytest.fixture
    def lib(self):
        pytest.importorskip("tensorrt_rtx")
        return library("tensorrt-rtx")

    @staticmethod
    def graph(name: str) -> Path:
        """A graph of the shipped bundle, or one that is prepared from fetched files."""
        bundle = Bundle.load()
        return bundle.graph_path(name) if name in bundle.graphs else prepared(name)

    @staticmethod
    def typed(name: str, folder: Path) -> Path:
        """A graph typed in FP16 by the exporter, from the networks themselves."""
        if name == "synthesis-1024":
            module = SynthesisGraph(Synthesis.load(1024, models.ensure("generator")), 1024)
        else:
            module = bundle_graphs(read_networks(None, None).for_inference())[name]
        path = folder / f"{name}.onnx"
        onnx.save(to_fp16(to_onnx(module)).model, path)
        return path

    @pytest.mark.parametrize(
        "name", ["identity", "attributes", "mapper", "mapping", "synthesis", "reenact", "synthesis-1024"]
    )
    def test_fp32(self, lib, name):
        path = self.graph(name)
        assert graph_facts(path).precision == "fp32"
        built = build(lib, path, Batch(), targets=RTX_TARGETS)
        assert len(built.plan) > 1_000_000

    @pytest.mark.parametrize("name", ["attributes", "synthesis", "reenact", "synthesis-1024"])
    def test_fp16(self, lib, name, tmp_path):
        path = self.typed(name, tmp_path)
        assert graph_facts(path).precision == "fp16"
        plan = build(lib, path, Batch(), targets=RTX_TARGETS).plan
        assert len(plan) > 1_000_000

    @pytest.mark.parametrize("batch", [Batch(1, 1, 1), Batch(2, 4, 8)], ids=str)
    def test_other_batch_sizes(self, lib, batch):
        assert build(lib, self.graph("mapper"), batch, targets=("89",)).plan

    def test_an_engine_without_a_driver_is_none_and_a_sentence(self, lib):
        plan = build(lib, self.graph("mapping"), Batch(), targets=("89",)).plan
        try:
            from fid.runtime.engines.cuda import gpu

            gpu()
        except FidError:
            lib.log.last.clear()
            assert lib.trt.Runtime(lib.log).deserialize_cuda_engine(plan) is None
            assert "error" in lib.said().lower()
        else:
            pytest.skip("there is a GPU")

    def test_parse_errors_name_the_node(self, lib, tmp_path):
        port = helper.make_tensor_value_info
        graph = helper.make_graph(
            [helper.make_node("Det", ["x"], ["y"], name="the_rare_one")],
            "g",
            [port("x", TensorProto.FLOAT, ["batch", 4, 4])],
            [port("y", TensorProto.FLOAT, ["batch"])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        (tmp_path / "rare.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(FidError, match=r"^TensorRT-RTX [\d.]+ cannot take rare\.onnx: node the_rare_one \(Det\): "):
            build(lib, tmp_path / "rare.onnx", Batch(), targets=("89",))

    def test_ctrl_c_stops_a_build(self, lib, empty_cache, monkeypatch):
        threads = set(threading.enumerate())  # other tests may have left some
        monkeypatch.delenv("FID_CACHE")  # the graph is the user's own
        path = self.graph("reenact")  # takes a second; one is asked four times in it

        def watch(share: float) -> None:
            raise KeyboardInterrupt  # what Ctrl-C comes to

        with pytest.raises(KeyboardInterrupt):
            build(lib, path, Batch(), targets=RTX_TARGETS, watch=watch)
        assert set(threading.enumerate()) <= threads

    def test_the_whole_bundle_through_the_cache(self, lib, toy_bundle, empty_cache):
        try:
            facts = build_engines(Bundle.load(toy_bundle), "tensorrt-rtx", Batch())
        except FidError as error:  # a GPU that TensorRT-RTX does not know
            pytest.skip(str(error))
        assert len(facts) == 5
        for fact in facts:
            again = engine_cache.obtain(fact.engine.key, fact.graph, lambda watch: b"built again")
            assert again.plan == fact.engine.plan
