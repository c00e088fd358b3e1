import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import toy
from fid.runtime.composer import Composer
from fid.runtime.engines.open import open_session
from fid.runtime.errors import FidError, InputError
from fid.runtime.identity import Identity, mapper_name
from fid.runtime.weights import bundle
from fid.runtime.weights.bundle import Bundle
from fid.runtime.weights.cache import sha256


@pytest.fixture
def copy(toy_bundle, tmp_path):
    return shutil.copytree(toy_bundle, tmp_path / "bundle")


def edit(folder, **changes):
    record = json.loads((folder / "bundle.json").read_text())
    record.update(changes)
    (folder / "bundle.json").write_text(json.dumps(record))
    return record


def run(bundle, graph, **arrays):
    return onnxruntime.InferenceSession(str(bundle.graph_path(graph))).run(None, arrays)[0]


@pytest.mark.parametrize("batch", [1, 3])
def test_the_toy_graphs_compute_what_numpy_predicts(toy_bundle, rng, batch):
    bundle = Bundle.load(toy_bundle)
    crop = rng.integers(0, 256, (batch, 256, 256, 3), np.uint8)
    identity = run(bundle, "identity", crop=crop)
    attributes = run(bundle, "attributes", crop=crop)
    w = run(bundle, "mapper", identity=identity, attributes=attributes)
    image = run(bundle, "synthesis", w_plus=toy.as_w_plus(w))
    np.testing.assert_allclose(identity, toy.expected_identity(crop), atol=1e-5)
    np.testing.assert_allclose(attributes, toy.expected_attributes(crop), atol=1e-5)
    np.testing.assert_allclose(w, toy.expected_w(identity, attributes), atol=1e-6)
    np.testing.assert_array_equal(image, toy.expected_image(w))
    np.testing.assert_array_equal(run(bundle, "reenact", crop=crop, **toy.plain(identity)), image)


def test_round_trip(toy_bundle):
    bundle = Bundle.load(toy_bundle)
    assert Bundle.from_json(json.dumps(bundle.to_json()), toy_bundle) == bundle
    assert next(iter(json.loads((toy_bundle / "bundle.json").read_text()))) == "format"
    assert bundle.graph("reenact").inputs == (toy.CROP, toy.IDENTITY, toy.W_PLUS_OFFSET)


def test_packed_is_the_same_bundle(toy_bundle, tmp_path, empty_cache):
    bundle = Bundle.load(toy_bundle)
    first, second = bundle.pack(tmp_path / "toy.fid"), bundle.pack(tmp_path / "again.fid")
    assert first.read_bytes() == second.read_bytes()
    unpacked = Bundle.load(first)
    assert unpacked.to_json() == bundle.to_json()
    assert empty_cache in unpacked.folder.parents
    assert Bundle.load(first).folder == unpacked.folder


@pytest.mark.parametrize("version", [0, 1, 3, "2", None])
def test_an_unknown_format_is_refused(copy, version):
    edit(copy, format=version)
    with pytest.raises(FidError, match="format"):
        Bundle.load(copy)


@pytest.mark.parametrize("missing", ["format", "name", "graphs", "weights", "crop", "resolution"])
def test_a_missing_entry_is_named(copy, missing):
    record = json.loads((copy / "bundle.json").read_text())
    del record[missing]
    (copy / "bundle.json").write_text(json.dumps(record))
    with pytest.raises(FidError, match=missing):
        Bundle.load(copy)


@pytest.mark.parametrize("content", ["", "[]", "null", '"x"', "{", "\x00\xff"])
def test_a_bundle_json_that_is_something_else(copy, content):
    (copy / "bundle.json").write_text(content)
    with pytest.raises(FidError, match="bundle"):
        Bundle.load(copy)


@pytest.mark.parametrize(
    "name", ["../reenact.onnx", "/etc/passwd", "a/b.onnx", "a\\b.onnx", "..", "", ".onnx", "C:x.onnx", "run.py", 3]
)
def test_a_name_that_leaves_the_folder_is_refused(copy, name):
    record = json.loads((copy / "bundle.json").read_text())
    record["graphs"]["reenact"]["file"] = name
    edit(copy, graphs=record["graphs"])
    with pytest.raises(FidError, match="bundle"):
        Bundle.load(copy)


def test_a_link_out_of_the_folder_is_refused(copy, tmp_path):
    shutil.move(copy / "weights.bin", tmp_path / "elsewhere.bin")
    (copy / "weights.bin").symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(FidError, match=r"weights\.bin is a link"):
        Bundle.load(copy)


def test_the_shipped_bundle_is_hashed_when_asked_for_alone(monkeypatch):
    monkeypatch.setattr(bundle, "sha256", lambda path: "another")
    with pytest.raises(FidError, match="does not have the SHA-256"):
        Bundle.load().verify()


@pytest.mark.parametrize("name", ["weights.bin", "mapper.onnx"])
def test_a_changed_or_missing_file_is_noticed(copy, name):
    content = bytearray((copy / name).read_bytes())
    content[100] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(FidError, match=f"{name} does not have the SHA-256"):
        Bundle.load(copy)
    (copy / name).unlink()
    with pytest.raises(FidError, match=f"{name} is missing"):
        Bundle.load(copy)


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "bundle.json"])
@pytest.mark.parametrize("place", ["initializer", "attribute"])
def test_a_graph_that_reads_a_strange_file_is_refused(copy, location, place):
    path = copy / "mapper.onnx"
    model = onnx.load(path, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.external_data)
    next(entry for entry in tensor.external_data if entry.key == "location").value = location
    if place == "attribute":
        model.graph.initializer.remove(tensor)
        model.graph.node.insert(0, onnx.helper.make_node("Constant", [], [tensor.name], value=tensor))
    path.write_bytes(model.SerializeToString())
    record = json.loads((copy / "bundle.json").read_text())
    record["graphs"]["mapper"]["sha256"] = sha256(path)
    edit(copy, graphs=record["graphs"])
    with pytest.raises(FidError, match="does not list as weights"):
        Bundle.load(copy)


def test_a_graph_that_is_not_onnx_is_refused(copy):
    (copy / "mapper.onnx").write_bytes(b"\x80\x04" + b"not a graph" * 9)
    record = json.loads((copy / "bundle.json").read_text())
    record["graphs"]["mapper"]["sha256"] = sha256(copy / "mapper.onnx")
    edit(copy, graphs=record["graphs"])
    with pytest.raises(FidError, match="not an ONNX graph"):
        Bundle.load(copy)


def test_another_crop_is_refused(copy):
    edit(copy, crop={"template": "arcface", "size": 112})
    with pytest.raises(FidError, match="arcface 112"):
        Bundle.load(copy)


def test_a_graph_without_file_must_be_one_that_can_be_prepared(copy):
    record = json.loads((copy / "bundle.json").read_text())
    record["graphs"]["identity"].update(file=None, sha256=None, prepared="identity")
    edit(copy, graphs=record["graphs"])
    assert Bundle.load(copy).graph("identity").prepared == "identity"
    record["graphs"]["identity"]["prepared"] = "something"
    edit(copy, graphs=record["graphs"])
    with pytest.raises(FidError, match="identity has no file"):
        Bundle.load(copy)


def test_no_bundle_there(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "photo.jpg"):
        with pytest.raises(InputError, match="bundle"):
            Bundle.load(path)


def test_unknown_graph(toy_bundle):
    with pytest.raises(FidError, match="no graph 'voice'"):
        Bundle.load(toy_bundle).graph_path("voice")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{"format": 1, "name": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"format": 1, "name": "\\ud800 alone"}', "not JSON"),
        (b'{"format": 1, "name": "\xed\xa0\x80"}', "not JSON"),
        (b"\xff\xfe{\x00}\x00", "not JSON"),
        (b'{"format": 1, "parity": NaN}', "not JSON"),
        (b"[]", "Expected `object`"),
    ],
)
def test_json_that_is_no_record_ends_in_a_sentence(copy, content, why):
    (copy / "bundle.json").write_bytes(content)
    with pytest.raises(FidError, match=why):
        Bundle.load(copy)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"resolution": 100_000}, "not 100000"),
        ({"resolution": True}, "Expected `int`, got `bool`"),
        ({"resolution": 512}, r"'image' of the graph synthesis is .*512, 512"),
        ({"w_size": 256}, r"'w' of the graph mapper"),
        ({"attributes_size": 0}, "refused"),
        ({"weights": [{"file": "weights.bin"}]}, r"missing required field `sha256` - at `\$.weights\[0\]`"),
    ],
)
def test_what_a_bundle_says_of_itself_must_fit_together(copy, changes, why):
    edit(copy, **changes)
    with pytest.raises(FidError, match=why):
        Bundle.load(copy)


@pytest.mark.parametrize("graph", ["identity", "attributes", "mapper", "synthesis"])
def test_a_graph_that_composing_needs_is_missing(copy, graph):
    graphs = json.loads((copy / "bundle.json").read_text())["graphs"]
    del graphs[graph]
    edit(copy, graphs=graphs)
    with pytest.raises(FidError, match=f"no graph '{graph}'"):
        Bundle.load(copy)


def change_graph(folder: Path, name: str, change: Callable[[onnx.ModelProto], None]) -> None:
    """Change a graph of a bundle; `bundle.json` gets the new SHA-256 and goes on saying what it said."""
    path = folder / f"{name}.onnx"
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    graphs = json.loads((folder / "bundle.json").read_text())["graphs"]
    graphs[name]["sha256"] = sha256(path)
    edit(folder, graphs=graphs)


def test_a_graph_that_does_something_else_than_its_bundle_says(copy):
    def narrower(model: onnx.ModelProto) -> None:
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 256

    change_graph(copy, "mapper", narrower)
    with pytest.raises(FidError, match=r"mapper.onnx gives w float32 \[batch, 256\], .* says w float32 \[batch, 512\]"):
        Bundle.load(copy)


def test_weights_that_are_no_numbers_are_refused(copy):
    weights = np.frombuffer((copy / "weights.bin").read_bytes(), np.float16).copy()
    weights[700] = np.nan  # of the bias
    (copy / "weights.bin").write_bytes(weights.tobytes())
    edit(copy, weights=[{"file": "weights.bin", "sha256": sha256(copy / "weights.bin")}])
    with pytest.raises(FidError, match="not numbers, in bias"):
        Bundle.load(copy)


def test_weights_that_end_before_a_tensor_are_refused(copy):
    (copy / "weights.bin").write_bytes((copy / "weights.bin").read_bytes()[:1500])
    edit(copy, weights=[{"file": "weights.bin", "sha256": sha256(copy / "weights.bin")}])
    with pytest.raises(FidError, match=r"the tensor bias of \w+.onnx is not there"):
        Bundle.load(copy)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_graph_that_may_never_end_is_refused(copy, hidden):
    def endless(model: onnx.ModelProto) -> None:
        body = onnx.helper.make_graph([], "body", [], [])
        node = onnx.helper.make_node("Loop", [], [], body=body)
        if hidden:  # in a branch of a node that looks harmless
            branch = onnx.helper.make_graph([node], "branch", [], [])
            node = onnx.helper.make_node("If", [], [], then_branch=branch, else_branch=body)
        model.graph.node.append(node)

    change_graph(copy, "synthesis", endless)
    with pytest.raises(FidError, match="operator Loop, which may never end"):
        Bundle.load(copy)


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_the_shipped_bundle_may_be_made_of_links(toy_bundle, tmp_path, monkeypatch, rng, link):
    installed = tmp_path / "site-packages"  # as uv installs a wheel: every file is a link into uv's cache
    installed.mkdir()
    for file in shutil.copytree(toy_bundle, tmp_path / "cache").iterdir():
        link(file, installed / file.name)
    monkeypatch.setattr("fid.runtime.assets.BUNDLE", installed)
    bundle = Bundle.load()
    crop = rng.integers(0, 256, (1, 256, 256, 3), np.uint8)
    for engine in ("onnxruntime", "openvino"):
        found = open_session(bundle.graph_path("attributes"), engine=engine).run(crop=crop)["attributes"]
        np.testing.assert_allclose(found, toy.expected_attributes(crop), atol=1e-5)
    assert mapper_name(bundle) == mapper_name(Bundle.load(toy_bundle))


@pytest.mark.usefixtures("empty_cache")
class TestBadZip:
    def test_without_bundle_json(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "x.fid", "w") as archive:
            archive.writestr("reenact.onnx", b"")
        with pytest.raises(FidError, match=r"no 'bundle\.json'"):
            Bundle.load(tmp_path / "x.fid")

    def test_without_a_listed_file(self, toy_bundle, tmp_path):
        with zipfile.ZipFile(tmp_path / "x.fid", "w") as archive:
            archive.write(toy_bundle / "bundle.json", "bundle.json")
        with pytest.raises(FidError, match=r"no '.*' inside"):
            Bundle.load(tmp_path / "x.fid")

    def test_damaged(self, toy_bundle, tmp_path):
        path = Bundle.load(toy_bundle).pack(tmp_path / "x.fid")
        content = bytearray(path.read_bytes())
        content[3000] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(FidError, match="damaged"):
            Bundle.load(path)

    @pytest.mark.parametrize("at", range(40, 2400, 118))
    def test_a_byte_that_changed_ends_in_a_sentence(self, toy_bundle, tmp_path, at):
        path = Bundle.load(toy_bundle).pack(tmp_path / "x.fid")
        content = bytearray(path.read_bytes())
        content[at] ^= 0xFF  # an error of zlib where it hits the stream
        path.write_bytes(content)
        with pytest.raises(FidError, match=r"damaged|refused|not a bundle"):
            Bundle.load(path)

    def test_only_listed_files_are_unpacked(self, toy_bundle, tmp_path, empty_cache):
        path = Bundle.load(toy_bundle).pack(tmp_path / "x.fid")
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("../escape.onnx", b"x")
            archive.writestr("extra.py", b"x")
        folder = Bundle.load(path).folder
        assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in toy_bundle.iterdir())
        assert not list(empty_cache.rglob("escape.onnx"))

    def test_too_large(self, toy_bundle, tmp_path, monkeypatch):
        path = Bundle.load(toy_bundle).pack(tmp_path / "x.fid")
        monkeypatch.setattr("fid.runtime.weights.bundle.MAX_BYTES", 1000)
        with pytest.raises(FidError, match="unpacks to more than"):
            Bundle.load(path)


@pytest.fixture
def with_fp16_graph(copy) -> Path:
    """A toy bundle whose synthesis graph has an FP16 form."""
    (copy / "synthesis.fp16.onnx").write_bytes((copy / "synthesis.onnx").read_bytes())
    record = json.loads((copy / "bundle.json").read_text())
    record["graphs"]["synthesis"]["fp16_graph"] = {
        "file": "synthesis.fp16.onnx",
        "sha256": sha256(copy / "synthesis.fp16.onnx"),
        "reason": None,
        "kept_fp32": ["conv1"],
        "bound": 1000.0,
        "gate": {"psnr_worst_db": 50.0},
    }
    edit(copy, graphs=record["graphs"])
    return copy


def test_an_fp16_form_is_found_and_checked(with_fp16_graph, tmp_path):
    bundle = Bundle.load(with_fp16_graph)
    assert bundle.fp16_graph_path("synthesis") == with_fp16_graph / "synthesis.fp16.onnx"
    assert bundle.fp16_graph_path("mapper") is None
    assert bundle.graph_path("synthesis") == with_fp16_graph / "synthesis.onnx"
    assert Bundle.from_json(json.dumps(bundle.to_json()), with_fp16_graph) == bundle
    assert zipfile.ZipFile(bundle.pack(tmp_path / "toy.fid")).namelist()[-1] == "synthesis.fp16.onnx"
    (with_fp16_graph / "synthesis.fp16.onnx").write_bytes(b"something else")
    with pytest.raises(FidError, match=r"synthesis\.fp16\.onnx does not have the SHA-256"):
        Bundle.load(with_fp16_graph)


def test_a_graph_may_stay_fp32_with_a_reason(with_fp16_graph):
    record = json.loads((with_fp16_graph / "bundle.json").read_text())
    record["graphs"]["synthesis"]["fp16_graph"] |= {
        "file": None,
        "sha256": None,
        "reason": "the worst picture has 3.0 dB",
    }
    edit(with_fp16_graph, graphs=record["graphs"])
    bundle = Bundle.load(with_fp16_graph)
    assert bundle.fp16_graph_path("synthesis") is None
    assert bundle.graph("synthesis").fp16_graph.reason == "the worst picture has 3.0 dB"


@pytest.mark.parametrize(
    "change", [{"file": "../x.onnx"}, {"file": 3}, {"bound": "large"}, {"kept_fp32": None}, {"gate": 1}]
)
def test_a_misstated_fp16_form_is_refused(with_fp16_graph, change):
    record = json.loads((with_fp16_graph / "bundle.json").read_text())
    record["graphs"]["synthesis"]["fp16_graph"] |= change
    edit(with_fp16_graph, graphs=record["graphs"])
    with pytest.raises(FidError, match="bundle"):
        Bundle.load(with_fp16_graph)


def test_cpus_take_the_fp32_graph(with_fp16_graph, monkeypatch):
    opened = {}

    def remember(path, *, fp16_graph=None, **options):
        opened[path.name] = fp16_graph
        return open_session(path, engine="onnxruntime", threads=1)

    monkeypatch.setattr("fid.runtime.composer.open_session", remember)
    composer = Composer(with_fp16_graph)
    composer.image(np.zeros(512, np.float32))
    composer.w(Identity(np.zeros(128, np.float32), "toy"), np.zeros(512, np.float32))
    assert opened == {"synthesis.onnx": with_fp16_graph / "synthesis.fp16.onnx", "mapper.onnx": None}
    missing = with_fp16_graph / "no.onnx"  # so that taking it would fail
    session = open_session(with_fp16_graph / "synthesis.onnx", fp16_graph=missing, engine="onnxruntime", threads=1)
    assert session.provider == "onnxruntime CPU"
