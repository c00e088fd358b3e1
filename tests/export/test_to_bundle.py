"""A whole export of tiny networks: what is written, what is measured, and that a wrong graph is refused."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from fid.export import parity, to_bundle
from fid.export.cli import command
from fid.export.fp16 import gate as gates
from fid.export.graphs import GraphModule
from fid.export.read import Networks
from fid.export.to_bundle import ExportConfig, export_bundle, with_controls
from fid.export.to_onnx import to_onnx
from fid.export.to_weights import WEIGHTS_FILE
from fid.runtime.composer import Composer
from fid.runtime.controls import Controls
from fid.runtime.engines.open import open_session
from fid.runtime.errors import FidError, InputError
from fid.runtime.weights.bundle import Bundle
from fid.trainer.networks.sface import SFace
from onnx import numpy_helper
from tiny import N_STYLES, tiny_networks

GRAPHS = ("attributes", "mapper", "synthesis", "synthesis-light", "reenact")


@pytest.fixture(scope="module")
def networks() -> Networks:
    return tiny_networks(appearance=True, light=True)


@pytest.fixture(autouse=True, scope="module")
def exported_once() -> Iterator[None]:
    """PyTorch's exporter takes seconds a graph: every test of this file gets the same models from it."""
    models: dict[str, bytes] = {}

    def remembered(module: GraphModule) -> onnx.ModelProto:
        name = f"{type(module).__name__} {float(sum(p.sum() for p in module.parameters()))}"
        if name not in models:
            models[name] = to_onnx(module).SerializeToString()
        return onnx.load_from_string(models[name])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(to_bundle, "to_onnx", remembered)
        yield


@pytest.fixture(scope="module")
def bundle(networks, tmp_path_factory) -> Bundle:
    return export_bundle(networks, tmp_path_factory.mktemp("export") / "bundle", ExportConfig(threads=1))


def external(path: Path) -> dict[str, dict[str, str]]:
    """Name -> location, offset and length of the tensors that an ONNX file refers to."""
    model = onnx.load(path, load_external_data=False)
    return {t.name: {e.key: e.value for e in t.external_data} for t in model.graph.initializer if t.external_data}


def test_bundle_says_what_it_holds(bundle):
    assert set(bundle.graphs) == {*GRAPHS, "identity"}
    assert bundle.precision == "fp16 weights, fp32 arithmetic"
    assert bundle.graphs["identity"].prepared == "identity"
    assert [t.name for t in bundle.graphs["reenact"].inputs] == ["crop", "identity", "w_plus_offset", "appearance"]
    assert [t.name for t in bundle.graphs["mapper"].inputs] == ["identity", "attributes", "appearance"]
    assert bundle.takes_appearance
    assert bundle.graphs["synthesis"].outputs[0].shape == ("batch", 256, 256, 3)
    assert bundle.provenance["trained"] == {"sha256": "00"}
    record = json.loads((bundle.folder / "bundle.json").read_text())
    for graph, figures in record["parity"].items():
        assert figures["inputs"] == 32, graph
        assert figures["max"] <= figures["tolerance"]["max"], graph
        assert figures["mean"] <= figures["tolerance"]["mean"], graph
        assert figures["provider"] == "onnxruntime CPU"
    assert record["parity"]["synthesis"]["tolerance"] == {"max": 1, "mean": 0.05, "rounding_psnr_db": 45}
    assert record["parity"]["mapper"]["tolerance"]["max"] == 1e-3


@pytest.mark.parametrize("graph", GRAPHS)
def test_described_ports_are_the_graphs_own_and_any_batch_runs(bundle, graph):
    session = open_session(bundle.graph_path(graph), engine="onnxruntime", threads=1)
    description = bundle.graphs[graph]
    for port, written in zip(
        (*session.inputs, *session.outputs), (*description.inputs, *description.outputs), strict=True
    ):
        assert (port.name, port.shape, port.dtype) == (written.name, written.shape, written.dtype)
    for batch in (1, 5):
        arrays = {t.name: np.zeros((batch, *t.shape[1:]), t.dtype) for t in description.inputs}
        outputs = session.run(**arrays)
        assert all(array.shape[0] == batch for array in outputs.values())


def test_weights_are_stored_once_and_in_half_precision(bundle):
    whole = external(bundle.graph_path("reenact"))
    assert {place["location"] for place in whole.values()} == {WEIGHTS_FILE}
    for graph in ("attributes", "mapper", "synthesis"):
        for name, place in external(bundle.graph_path(graph)).items():
            assert whole[name] == place, f"{graph}: {name}"
    model = onnx.load(bundle.graph_path("reenact"))
    stored = {t.name: t for t in model.graph.initializer}
    assert numpy_helper.to_array(stored["attributes.out.weight"]).dtype == np.float16
    assert numpy_helper.to_array(stored["attributes.out.bias"]).dtype == np.float32  # small: not worth rounding
    places = {tuple(sorted(place.items())) for graph in GRAPHS for place in external(bundle.graph_path(graph)).values()}
    bytes_needed = sum(int(dict(place)["length"]) for place in places)
    assert (bundle.folder / WEIGHTS_FILE).stat().st_size < bytes_needed + 64 * len(places)


def test_the_light_generator_shares_what_it_has_in_common(bundle):
    full, light = (external(bundle.graph_path(graph)) for graph in ("synthesis", "synthesis-light"))
    assert light.keys() == full.keys()
    assert {name for name in full if full[name] != light[name]} == {"synthesis.constant"}


def test_graphs_hold_nothing_of_the_machine_that_made_them(bundle):
    for graph in GRAPHS:
        content = bundle.graph_path(graph).read_bytes()
        model = onnx.load(bundle.graph_path(graph), load_external_data=False)
        assert not model.metadata_props
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
        assert str(Path(to_bundle.__file__).parents[1]).encode() not in content
        assert b".py" not in content


def test_openvino_reads_the_same_files(bundle, networks):
    pytest.importorskip("openvino")
    rng = np.random.default_rng(0)
    w_plus = rng.standard_normal((2, N_STYLES, 512)).astype(np.float32)
    images = [
        open_session(bundle.graph_path("synthesis"), engine=engine, threads=1).run(w_plus=w_plus)["image"].astype(int)
        for engine in ("onnxruntime", "openvino")
    ]
    assert np.abs(images[0] - images[1]).max() <= 1


def test_an_edited_tensor_is_refused_and_nothing_is_left(networks, tmp_path, monkeypatch):
    store = to_bundle.store

    def damage(model, path, weights):
        if path.name == "synthesis.onnx":
            (tensor,) = (t for t in model.graph.initializer if t.name == "synthesis.conv.bias")
            edited = numpy_helper.to_array(tensor) + 0.05
            tensor.CopyFrom(numpy_helper.from_array(edited.astype(np.float32), tensor.name))
        store(model, path, weights)

    monkeypatch.setattr(to_bundle, "store", damage)
    seen = {}
    with pytest.raises(FidError, match="does not agree with PyTorch") as refusal:
        export_bundle(networks, tmp_path / "bundle", ExportConfig(threads=1), report=seen.__setitem__)
    assert "synthesis: max" in str(refusal.value)
    assert "attributes" not in str(refusal.value)
    assert seen["synthesis"].fault is not None
    assert seen["reenact"].fault is None
    assert list(tmp_path.iterdir()) == []


def test_an_older_bundle_survives_a_refused_export(networks, tmp_path, monkeypatch, bundle):
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "bundle.json").write_text("the older one")

    def broken(module):
        raise FidError("no graph today.")

    monkeypatch.setattr(to_bundle, "to_onnx", broken)
    with pytest.raises(FidError, match="no graph today"):
        export_bundle(networks, target, ExportConfig(threads=1))
    assert (target / "bundle.json").read_text() == "the older one"
    assert list(tmp_path.iterdir()) == [target]


def test_self_contained_single_file(networks, tmp_path):
    target = tmp_path / "tiny.fid"
    bundle = export_bundle(networks, target, ExportConfig(self_contained=True, threads=1))
    assert sorted(tmp_path.iterdir()) == [target, tmp_path / "tiny.report.html"]
    assert bundle.graphs["identity"].file == "identity.onnx"
    crop = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 3), np.uint8)
    code = open_session(bundle.graph_path("identity"), engine="onnxruntime", threads=1).run(crop=crop)["identity"]
    with torch.no_grad():
        expected = SFace.load()(torch.from_numpy(crop).permute(0, 3, 1, 2) / 127.5 - 1).numpy()
    assert (code * expected).sum() > 0.9999  # FP16 weights


def test_other_peoples_folders_are_not_replaced(networks, tmp_path):
    (tmp_path / "thesis.txt").write_text("all my work")
    with pytest.raises(InputError, match="holds something else than a bundle"):
        export_bundle(networks, tmp_path)
    with pytest.raises(InputError, match=r"is a file"):
        export_bundle(networks, tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "all my work"


def test_a_finished_bundle_learns_to_scale_pose_and_expression(bundle, tmp_path, fetched):
    fetched("facemesh")
    made = with_controls(bundle, tmp_path / "more", 24, threads=1)
    assert made.graphs.keys() == {*bundle.graphs, "controls"}
    assert made.parity["controls"]["max"] < 1e-3
    composer = Composer(made, threads=1, refine=0)
    code = np.random.default_rng(0).standard_normal(made.attributes_size).astype(np.float32)
    still = composer.controlled(code, Controls(0.0, 0.0))
    half = composer.controlled(code, Controls(0.5, 0.5))
    np.testing.assert_allclose(half, (code + still) / 2, atol=1e-3)  # linear in how far it is followed
    assert np.abs(still - code).max() > 1e-3
    options = ["--controls", "--faces", "24", "-o", str(tmp_path / "new")]
    result = CliRunner().invoke(command, [str(bundle.folder), *options])
    assert result.exit_code == 0, result.output
    assert "controls" in result.output
    with pytest.raises(InputError, match="cannot be learned from 0 faces"):
        with_controls(bundle, tmp_path / "none", 0)


def test_command_prints_the_table_and_exits_1(networks, tmp_path, monkeypatch):
    monkeypatch.setattr("fid.export.read.read_networks", lambda *arguments: networks)
    monkeypatch.setattr(parity, "CODE", parity.Tolerance("relative", 1e-12, 1e-12))
    result = CliRunner().invoke(command, ["-o", str(tmp_path / "bundle"), "--threads", "1"])
    assert isinstance(result.exception, FidError)
    assert result.exception.exit_code == 1
    assert "REFUSED" in result.output
    assert "grey levels" in result.output
    assert not (tmp_path / "bundle").exists()


@pytest.fixture(scope="module")
def fp16_bundle(networks, tmp_path_factory) -> Bundle:
    """A .fid file with FP16 forms, exported once, and measured on few inputs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(to_bundle, "gate_inputs", few_inputs)
        target = tmp_path_factory.mktemp("fp16") / "tiny.fid"
        return export_bundle(networks, target, ExportConfig(fp16_graphs=True, faces=24, threads=1))


def few_inputs(networks: Networks, count: int) -> parity.Arrays:
    """Of the graphs that the gate looks at, `controls` not among them."""
    assert count >= 64
    arrays = parity.parity_inputs(networks, 8)
    return {name: values for name, values in arrays.items() if name not in ("pose", "expression")}


def test_fp16_graphs_lie_beside_the_others_in_one_file_each(fp16_bundle, bundle):
    assert fp16_bundle.precision == "fp16 weights, fp32 arithmetic, fp16 on GPUs"
    assert bundle.fp16_graph_path("synthesis") is None
    assert fp16_bundle.fp16_graph_path("mapper") is None  # it has no convolution
    assert fp16_bundle.parity["controls"]["max"] < 1e-3
    for graph in ("attributes", "synthesis", "reenact", "identity"):
        typed = fp16_bundle.graph(graph).fp16_graph
        assert typed is not None
        assert typed.file == f"{graph}.fp16.onnx"
        assert external(fp16_bundle.fp16_graph_path(graph)) == {}
        assert typed.kept_fp32 == ()
        assert 0 < typed.bound < 65504
        for name, value in typed.gate.items():
            if name.startswith("psnr_") and name != "psnr_db":
                assert value >= 45, f"{graph}: {name}"
            if "cosine_" in name:
                assert value >= 0.999, f"{graph}: {name}"
    assert {"psnr_mean_db", "psnr_worst_db", "identity_cosine_worst"} <= fp16_bundle.graph(
        "reenact"
    ).fp16_graph.gate.keys()
    assert "cosine_worst" in fp16_bundle.graph("attributes").fp16_graph.gate


def test_a_cpu_computes_the_fp16_graphs_too(fp16_bundle):
    w_plus = np.random.default_rng(0).standard_normal((2, N_STYLES, 512)).astype(np.float32)
    images = [
        open_session(path, engine="onnxruntime", threads=1).run(w_plus=w_plus)["image"].astype(int)
        for path in (fp16_bundle.graph_path("synthesis"), fp16_bundle.fp16_graph_path("synthesis"))
    ]
    assert np.abs(images[0] - images[1]).max() <= 2


def test_the_report_needs_no_other_file(bundle, fp16_bundle, tmp_path_factory):
    pages = [
        (bundle.folder / "report.html").read_text(),
        next(tmp_path_factory.getbasetemp().glob("fp16*/tiny.report.html")).read_text(),
    ]
    for page in pages:
        assert set(re.findall(r"(?:src|href)=(.{6})", page)) == {'"data:'}
        assert "The FP32 graphs against PyTorch" in page
    assert pages[0].count("<figure") == 4
    assert "FP16 against FP32" not in pages[0]
    assert "FP16 against FP32" in pages[1]
    assert "among the three that FP16 changes most" in pages[1]
    worst = fp16_bundle.graph("synthesis").fp16_graph.gate["psnr_worst_db"]
    assert f"{worst:.1f} dB from FP32" in pages[1]


def test_a_graph_that_fails_the_gate_stays_fp32_with_the_reason(networks, tmp_path, monkeypatch):
    def nothing_helps(model, reference, graph, inputs, **options):
        verdict = gates.gate(model, reference, graph, inputs, **options)
        return verdict and dataclasses.replace(verdict, reason="the worst picture has 3.0 dB, 45 are wanted")

    monkeypatch.setattr(to_bundle, "gate", nothing_helps)
    monkeypatch.setattr(to_bundle, "gate_inputs", few_inputs)
    bundle = export_bundle(networks, tmp_path / "bundle", ExportConfig(fp16_graphs=True, threads=1))
    assert bundle.precision == "fp16 weights, fp32 arithmetic"
    assert bundle.fp16_graph_path("reenact") is None
    assert not list(bundle.folder.glob("*.fp16.onnx"))
    assert bundle.graph("reenact").fp16_graph.reason == "the worst picture has 3.0 dB, 45 are wanted"
    assert "reenact stays FP32: the worst picture has 3.0 dB" in (bundle.folder / "report.html").read_text()
