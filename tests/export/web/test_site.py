"""The folder that is written: what is in it, what a list of it says, and what is refused."""

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
from fid.export.web.graphs import DETECT, web_graph
from fid.export.web.site import POLICY, write_site
from fid.runtime.assets import FACES
from fid.runtime.errors import InputError
from fid.runtime.labels.provenance import read_note
from fid.runtime.media.images import read_image
from fid.runtime.weights.bundle import Bundle
from fid.runtime.weights.prepare import prepared


def test_every_file_is_listed_with_its_hash(site: Path) -> None:
    record = json.loads((site / "site.json").read_text())
    there = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    assert there - {"sw.js", "site.json"} == record["files"].keys()
    for name, facts in record["files"].items():
        data = (site / name).read_bytes()
        assert (facts["sha256"], facts["size"]) == (hashlib.sha256(data).hexdigest(), len(data))
    worker = (site / "sw.js").read_text()
    listed = json.loads(re.search(r"JSON\.parse\('(.*?)'\)", worker)[1])  # type: ignore[index]
    assert listed.keys() == there - {"sw.js"}
    assert listed["site.json"][0] == hashlib.sha256((site / "site.json").read_bytes()).hexdigest()
    assert not [name for name, (_, at_once) in listed.items() if at_once and name.endswith((".onnx", ".wasm"))]


def test_the_page_may_talk_to_its_own_site_only(site: Path) -> None:
    page = (site / "index.html").read_text()
    assert f'content="{POLICY}"' in page
    assert "connect-src 'self';" in POLICY
    assert "'unsafe-inline'" not in POLICY
    own = [path.read_text() for path in (*site.glob("*.js"), site / "index.html", site / "page.css")]
    assert re.findall(r"(?:https?:)?//[\w-]+\.[\w.-]+/", "".join(own)) == []
    assert 'data-source="device"' in page


def test_the_notes_are_those_of_the_runtime(site: Path, site_bundle: Bundle, tmp_path: Path) -> None:
    notes = json.loads((site / "site.json").read_text())["notes"]
    picture = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
    (tmp_path / "noted.png").write_bytes(picture[:33] + base64.b64decode(notes["composition"]["png"]) + picture[33:])
    note = read_note(tmp_path / "noted.png")
    assert note is not None
    assert (note.kind, note.bundle, note.bundle_version) == ("composition", site_bundle.name, site_bundle.version)
    assert cv2.imread(str(tmp_path / "noted.png")).shape == (4, 4, 3)
    chunk = base64.b64decode(notes["composition"]["png"])
    length = int.from_bytes(chunk[:4], "big")
    assert zlib.crc32(chunk[4 : 8 + length]) == int.from_bytes(chunk[8 + length : 12 + length], "big")


def test_what_is_no_site_is_not_replaced(site_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "ann.jpg").write_text("a photo")
    with pytest.raises(InputError, match="holds something else than a site"):
        write_site(site_bundle, tmp_path / "photos")
    with pytest.raises(InputError, match="does not exist; create it first"):
        write_site(site_bundle, tmp_path / "none" / "site")


def test_the_small_identity_graph_gives_the_same_codes(fetched: Callable[[str], Path]) -> None:
    fetched("sface")
    crop = cv2.resize(read_image(FACES / "identity-eve.jpg"), (256, 256), interpolation=cv2.INTER_AREA)[None]
    graph = web_graph(Bundle.load(), "identity")
    assert len(graph) < 11_500_000
    code, right = (
        np.asarray(onnxruntime.InferenceSession(one, providers=["CPUExecutionProvider"]).run(None, {"crop": crop})[0])
        for one in (graph, str(prepared("identity")))
    )
    assert np.abs(code - right).max() < 1e-5


def test_the_detector_takes_any_size(fetched: Callable[[str], Path]) -> None:
    fetched("yunet")
    session = onnxruntime.InferenceSession(web_graph(Bundle.load(), DETECT), providers=["CPUExecutionProvider"])
    for height, width in ((320, 256), (64, 96)):
        found = session.run(["cls_8", "kps_32"], {"input": np.zeros((1, 3, height, width), np.float32)})
        assert [np.shape(one) for one in found] == [(1, height * width // 64, 1), (1, height * width // 1024, 10)]
