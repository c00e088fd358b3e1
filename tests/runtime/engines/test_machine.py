"""The faster CPU engine: found in the figures of a bench, kept for this machine, and what `auto` then opens."""

import ctypes
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from fid.runtime.engines import machine as choice
from fid.runtime.engines import open as session
from fid.runtime.errors import FidError


def row(engine: str, attributes: float, synthesis: float, cosine: float = 1.0) -> dict:
    stages = {"attributes": {"p50": attributes}, "mapper": {"p50": 1.0}, "synthesis": {"p50": synthesis}}
    return {"engine": engine, "stage_ms": stages, "identity_cosine": cosine}


def test_each_graph_gets_its_faster_engine() -> None:
    rows = [row("onnxruntime", 6, 80), row("openvino", 6, 70), {"engine": "cuda", "missing": "no GPU"}]
    assert choice.faster(rows) == {"attributes": "onnxruntime", "mapper": "onnxruntime", "synthesis": "openvino"}
    assert choice.faster([rows[0], row("openvino", 6, 77)])["synthesis"] == "onnxruntime"  # too little to gain
    assert choice.faster([rows[0], row("openvino", 1, 7, cosine=0.9)])["synthesis"] == "onnxruntime"  # another person
    half = row("openvino-bf16", 6, 40, cosine=0.9997)
    assert choice.faster([*rows, half])["synthesis"] == "openvino-bf16"
    assert choice.faster([*rows, {**half, "identity_cosine": 0.99}])["synthesis"] == "openvino"
    eight = row("openvino-int8", 6, 30, cosine=0.9957)
    assert choice.faster([*rows, half, eight])["synthesis"] == "openvino-int8"
    assert choice.faster([*rows, half, {**eight, "identity_cosine": 0.9949}])["synthesis"] == "openvino-bf16"


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row("onnxruntime", 6, 80)],
        [row("onnxruntime", 6, 80), {"engine": "openvino", "missing": "x"}],
        [row("openvino", 6, 80), row("openvino-bf16", 6, 40)],
    ],
)
def test_nothing_is_chosen_without_one_to_beat_and_another(rows: list[dict]) -> None:
    assert choice.faster(rows) == {}


@pytest.mark.usefixtures("empty_cache")
def test_it_is_kept_for_this_machine_and_these_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choice.remembered("synthesis") == "onnxruntime"
    path = choice.remember({"synthesis": "openvino", "attributes": "onnxruntime"})
    assert choice.remembered("synthesis") == choice.remembered("synthesis-light") == "openvino"
    assert choice.remembered("attributes") == choice.remembered("synthesis-1024") == "onnxruntime"
    kept = json.loads(path.read_text())
    for broken in ("", "[]", '{"graphs": 3}', json.dumps({**kept, "graphs": {"synthesis": "nonsense"}})):
        path.write_text(broken)
        choice._remembered.cache_clear()
        assert choice.remembered("synthesis") == "onnxruntime"
    choice.remember({"synthesis": "openvino"})
    monkeypatch.setattr(choice, "installed_version", lambda package: "another")
    choice._remembered.cache_clear()
    assert choice.remembered("synthesis") == "onnxruntime"


def test_auto_opens_it_and_says_when_it_cannot(toy_bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = toy_bundle / "mapper.onnx"
    monkeypatch.setattr(session, "installed", lambda engine: False)
    monkeypatch.setattr(session, "remembered", lambda graph: {"mapper": "openvino"}.get(graph, "onnxruntime"))
    opened = session.open_session(graph)
    assert (opened.provider, opened.fallback) == ("openvino CPU f32", None)
    monkeypatch.setattr(session, "remembered", lambda graph: "openvino-bf16")
    half = session.open_session(graph)  # a CPU without bf16 computes in float32 and says so
    assert half.provider == ("openvino CPU bf16" if half.fallback is None else "openvino CPU f32")
    monkeypatch.setattr(session, "remembered", lambda graph: {"mapper": "openvino"}.get(graph, "onnxruntime"))
    assert session.open_session(toy_bundle / "attributes.onnx").provider == "onnxruntime CPU"

    def broken(*arguments: object) -> None:
        raise FidError("libopenvino.so is missing.")

    monkeypatch.setattr("fid.runtime.engines.ov.OpenVINOSession", broken)
    opened = session.open_session(graph)
    assert opened.provider == "onnxruntime CPU"
    assert opened.fallback == (
        "openvino does not work here: libopenvino.so is missing; onnxruntime CPU runs in its place."
    )


ARENAS = """
import ctypes, sys, threading
from fid.runtime.engines.machine import share_freed_memory
if sys.argv[2] == "shared":
    share_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
together = threading.Barrier(4)
def work():
    together.wait()
    libc.malloc(5000)
    together.wait()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no such places")
def test_all_threads_take_memory_from_one_place(tmp_path: Path) -> None:
    assert hasattr(ctypes.CDLL(None), "mallopt")
    counts = {}
    for how in ("shared", "apart"):
        out = tmp_path / how
        subprocess.run([sys.executable, "-c", ARENAS, str(out), how], check=True)
        counts[how] = out.read_text().count("<heap nr=")
    assert counts["shared"] == 1 < counts["apart"]
