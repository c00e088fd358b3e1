"""The builder: every attribute against NVIDIA's own bindings, graphs as TensorRT takes them, Ctrl-C.

`tests/tensorrt_names.json` holds the members of the classes that fid touches, as `dir()` lists them in the Python
modules of NVIDIA's wheels tensorrt-cu12-bindings 10.13.3.9, tensorrt-cu13-bindings 11.0.0.114 and 11.4.0.106 (imported
with empty libraries in the place of libnvinfer, libnvinfer_plugin and libnvonnxparser, which PyPI does not carry) and
of tensorrt-rtx 1.7.1.116. `add_*` of networks and names with an underscore are left out.
"""

from __future__ import annotations

import ast
import importlib
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import toy
from fid.runtime.engines import cuda
from fid.runtime.engines.tensorrt import build as build_tensorrt
from fid.runtime.engines.tensorrt import session as session_tensorrt
from fid.runtime.engines.tensorrt.build import Batch, build, for_tensorrt, graph_facts, library
from onnx import TensorProto, helper, numpy_helper
from stand_in_gpu import LIBRARIES, RECORD, names_of

# Expression in a file -> the class of TensorRT whose instance it is.
OBJECTS = {
    build_tensorrt: {
        "builder": "Builder",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "e": "ParserError",
        "config": "IBuilderConfig",
        "profile": "IOptimizationProfile",
        "known": "ITimingCache",
        "config.get_timing_cache()": "ITimingCache",
        "network.get_input(i)": "ITensor",
        "tensor": "ITensor",
    },
    session_tensorrt: {
        "runtime": "Runtime",
        "self._engine": "ICudaEngine",
        "loaded": "ICudaEngine",
        "engine": "ICudaEngine",
        "self._config": "IRuntimeConfig",
        "self._cache": "IRuntimeCache",
        "self._context": "IExecutionContext",
        "self._engine.get_tensor_dtype(name)": "DataType",
    },
}
ONLY_RTX = {
    "num_compute_capabilities", "set_compute_capability", "REQUIRE_USER_ALLOCATION", "ComputeCapability",
    "create_runtime_config", "CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy",
}  # fmt: skip
"""What the code touches behind `if lib.rtx` alone."""
NOT_RTX = {"STRONGLY_TYPED"}
"""What it touches for full TensorRT alone, or looks for before it takes it."""


def touched(module) -> set[tuple[str, str]]:
    """(class, attribute) for every attribute of a TensorRT object in a module; class "" for the library's module."""
    found = set()
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            if owner in OBJECTS[module]:
                found.add((OBJECTS[module][owner], node.attr))
            elif owner in ("trt", "lib.trt", "self._lib.trt", "self.trt"):
                found.add(("", node.attr))
            elif owner.startswith(("trt.", "lib.trt.", "self._lib.trt.")):
                found.add((owner.rsplit(".", 1)[1], node.attr))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            owner = ast.unparse(node.args[0])
            if owner.startswith(("trt.", "lib.trt.")):
                name = node.args[1]
                attribute = name.value if isinstance(name, ast.Constant) else "SM89"  # f"SM{target}"
                found.add((owner.rsplit(".", 1)[1], str(attribute)))
    return found


def test_the_walk_sees_what_the_code_touches():
    found = touched(build_tensorrt) | touched(session_tensorrt)
    for expected in [
        ("", "Builder"),
        ("Builder", "build_serialized_network"),
        ("ParserError", "node_name"),
        ("IBuilderConfig", "progress_monitor"),
        ("ComputeCapability", "SM89"),
        ("IExecutionContext", "execute_async_v3"),
        ("IRuntimeConfig", "cuda_graph_strategy"),
        ("BuilderFlag", "REQUIRE_USER_ALLOCATION"),
    ]:
        assert expected in found
    assert len(found) > 40


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("module", list(OBJECTS), ids=lambda module: module.__name__)
def test_every_attribute_is_in_the_bindings(module, name):
    rtx = name.startswith("tensorrt-rtx")
    classes = {kind for kind in RECORD["classes"] if names_of(name, kind)}
    missing = set()
    for kind, attribute in touched(module):
        if attribute in (NOT_RTX if rtx else ONLY_RTX) or attribute.startswith("__init"):
            continue
        if not rtx and kind in ("IRuntimeConfig", "IRuntimeCache", *ONLY_RTX):
            continue
        if attribute not in (classes | {"__version__"} if kind == "" else names_of(name, kind)):
            missing.add((kind, attribute))
    assert missing == set()


def test_every_call_of_cuda_is_in_the_bindings():
    runtime = pytest.importorskip("cuda.bindings.runtime")
    tree = ast.parse(Path(cuda.__file__).read_text())
    owners = ("runtime", "self._runtime", "runtime.cudaError_t")
    kinds = ("self._runtime.cudaMemcpyKind", "self._runtime.cudaStreamCaptureMode")
    count = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (owner := ast.unparse(node.value)) in owners + kinds:
            place = runtime
            for part in owner.removeprefix("self._").split(".")[1:]:
                place = getattr(place, part)
            assert hasattr(place, node.attr), f"{owner}.{node.attr}"
            count += 1
    assert count > 20


def test_the_names_are_the_installed_librarys_own():
    trt = pytest.importorskip("tensorrt_rtx")
    name = f"tensorrt-rtx {trt.__version__}"
    if name not in LIBRARIES:
        pytest.skip(f"the names of {name} are not recorded")
    for kind in RECORD["classes"]:
        for attribute in names_of(name, kind):
            assert hasattr(getattr(trt, kind), attribute), f"{kind}.{attribute}"


class TestGraphs:
    """TensorRT takes uint8 at the borders only, and there only a Cast may touch it."""

    @pytest.fixture
    def picture(self, tmp_path):
        """Through a graph that transposes bytes on both sides, as the exporter's do."""
        node = helper.make_node
        nodes = [
            node("Transpose", ["crop"], ["nchw"], name="a", perm=[0, 3, 1, 2]),
            node("Cast", ["nchw"], ["float"], name="b", to=TensorProto.FLOAT),
            node("Mul", ["float", "gain"], ["bright"]),
            node("Cast", ["bright"], ["bytes"], name="c", to=TensorProto.UINT8),
            node("Transpose", ["bytes"], ["image"], name="d", perm=[0, 2, 3, 1]),
        ]
        port = helper.make_tensor_value_info
        graph = helper.make_graph(
            nodes,
            "picture",
            [port("crop", TensorProto.UINT8, ["batch", 4, 6, 3])],
            [port("image", TensorProto.UINT8, ["batch", 4, 6, 3])],
            [numpy_helper.from_array(np.float32([[[0.5]], [[1]], [[0.25]]]), "gain")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        (tmp_path / "picture.onnx").write_bytes(model.SerializeToString())
        return tmp_path / "picture.onnx"

    def test_bytes_are_only_cast_and_the_numbers_stay(self, picture, rng):
        model = for_tensorrt(picture)
        onnx.checker.check_model(model, full_check=True)
        assert [node.op_type for node in model.graph.node] == ["Cast", "Transpose", "Mul", "Transpose", "Cast"]
        crop = rng.integers(0, 256, (2, 4, 6, 3), np.uint8)
        results = [
            onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"crop": crop})[0]
            for content in (picture.read_bytes(), model.SerializeToString())
        ]
        np.testing.assert_array_equal(results[0], results[1])
        np.testing.assert_array_equal(results[1][..., 1], crop[..., 1])

    def test_weights_stay_where_they_are(self, toy_bundle):
        model = for_tensorrt(toy_bundle / "reenact.onnx")
        places = [entry.value for tensor in model.graph.initializer for entry in tensor.external_data]
        assert "weights.bin" in places

    def test_facts_follow_the_graph_and_its_weights(self, toy_bundle, tmp_path):
        import shutil

        facts = graph_facts(toy_bundle / "mapper.onnx")
        assert facts.precision == "fp32"
        copy = shutil.copytree(toy_bundle, tmp_path / "copy")
        assert graph_facts(copy / "mapper.onnx") == facts
        content = bytearray((copy / "weights.bin").read_bytes())
        content[0] ^= 1
        (copy / "weights.bin").write_bytes(content)
        assert graph_facts(copy / "mapper.onnx").sha256 != facts.sha256

    @pytest.mark.parametrize(("stored", "computed", "expected"), [(16, 32, "fp32"), (16, 16, "fp16"), (32, 32, "fp32")])
    def test_precision_is_that_of_the_arithmetic(self, tmp_path, stored, computed, expected):
        kinds = {16: TensorProto.FLOAT16, 32: TensorProto.FLOAT}
        weight = numpy_helper.from_array(np.ones((2, 2), np.float16 if stored == 16 else np.float32), "weight")
        nodes = [
            helper.make_node("Cast", ["x"], ["x_typed"], to=kinds[computed]),
            helper.make_node("Cast", ["weight"], ["w_typed"], to=kinds[computed]),
            helper.make_node("MatMul", ["x_typed", "w_typed"], ["product"]),
            helper.make_node("Cast", ["product"], ["y"], to=TensorProto.FLOAT),
        ]
        port = helper.make_tensor_value_info
        graph = helper.make_graph(nodes, "g", [port("x", 1, ["batch", 2])], [port("y", 1, ["batch", 2])], [weight])
        (tmp_path / "g.onnx").write_bytes(helper.make_model(graph).SerializeToString())
        assert graph_facts(tmp_path / "g.onnx").precision == expected


class TestBuild:
    def test_progress_is_watched_and_an_interrupt_stops_within_a_step(self, stand_in, toy_bundle):
        trt = stand_in()
        trt.behave["during_build"] = lambda: time.sleep(0.4)
        seen: list[float] = []
        threads = set(threading.enumerate())  # other tests may have left some

        def watch(share):
            seen.append(share)
            if share >= 0.25:
                raise KeyboardInterrupt  # what Ctrl-C comes to; test_engine_cache sends a real one to a process

        with pytest.raises(KeyboardInterrupt):
            build(library("tensorrt"), toy_bundle / "mapper.onnx", Batch(), watch=watch)
        assert seen[0] < 0.5
        assert trt.builds == []
        assert set(threading.enumerate()) <= threads

    def test_phases_add_up(self, stand_in):
        trt = stand_in()
        monitor = build_tensorrt._monitor(trt)
        assert monitor.share() == 0
        monitor.phase_start("outer", None, 4)
        assert monitor.step_complete("outer", 0)
        assert monitor.share() == 0.25
        monitor.phase_start("inner", "outer", 2)
        monitor.step_complete("inner", 0)
        assert monitor.share() == 0.25 + 0.25 / 2
        monitor.phase_finish("inner")
        monitor.phase_finish("outer")
        assert monitor.share() == 1
        monitor.stopped = True
        assert not monitor.step_complete("outer", 3)

    def test_a_builder_that_raises(self, stand_in, toy_bundle):
        trt = stand_in()

        def fail():
            raise RuntimeError("out of luck\nand more")

        trt.behave["during_build"] = fail
        with pytest.raises(build_tensorrt.FidError, match=r"^the builder failed: out of luck\.$"):
            build(library("tensorrt"), toy_bundle / "mapper.onnx", Batch())


def test_a_library_that_cannot_be_imported(monkeypatch):
    def fail(name):
        raise ImportError("libnvonnxparser.so.11: cannot open shared object file\nmore", name=name + "_bindings")

    monkeypatch.setattr(importlib, "import_module", fail)
    library.cache_clear()
    with pytest.raises(build_tensorrt.FidError, match=r"TensorRT cannot be imported \(libnvonnxparser") as caught:
        library("tensorrt")
    assert "\n" not in str(caught.value)


def test_the_toy_graphs_pass_unchanged(toy_bundle):
    model = for_tensorrt(toy_bundle / "synthesis.onnx")
    before = onnx.load(toy_bundle / "synthesis.onnx", load_external_data=False)
    assert [n.op_type for n in model.graph.node] == [n.op_type for n in before.graph.node]
    assert toy.weights()
