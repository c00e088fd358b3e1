"""The parts of the benchmark scripts whose mistakes would make wrong figures."""

import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import accuracy
import against
import against_table
import click
import engines
import evaluate_photos
import latency
import machine
import numpy as np
import peers
import pytest
import records
import report
import roofline
import roofline_openvino
import scaling
import timing
import torch
from click.testing import CliRunner
from fid.runtime.errors import FidError
from fid.runtime.weights.bundle import Bundle


def photo(person: str, code: list[float]) -> evaluate_photos.Photo:
    pixels = np.zeros((1, 1, 3), np.uint8)
    return evaluate_photos.Photo(person, pixels, pixels, np.array(code, np.float32))


def test_people_need_both_photos(tmp_path: Path) -> None:
    for name in (
        "002_smiling.jpg",
        "002_neutral.png",
        "001_neutral.jpg",
        "003_neutral.jpg",
        "003_smiling.jpg",
        "x.txt",
    ):
        (tmp_path / name).touch()
    people = evaluate_photos.people_of(tmp_path, "neutral", "smiling")
    assert list(people) == ["002", "003"]
    assert people["002"] == (tmp_path / "002_neutral.png", tmp_path / "002_smiling.jpg")


def test_people_are_taken_evenly_and_never_twice() -> None:
    names = [f"{index:02}" for index in range(10)]
    assert evaluate_photos.spread(names, 4) == ["00", "03", "06", "09"]
    assert evaluate_photos.spread(names, 10) == names
    with pytest.raises(click.UsageError, match="11 people were asked for and 10 are left"):
        evaluate_photos.spread(names, 11)


def test_cosines_leave_out_two_photos_of_one_person() -> None:
    photos = [photo("a", [1, 0]), photo("a", [0.6, 0.8]), photo("b", [0, 1])]
    np.testing.assert_allclose(evaluate_photos.cosines_between_people(photos), [0.0, 0.8], rtol=1e-6)


def test_a_large_picture_is_encoded_from_its_area_means() -> None:
    image = np.zeros((1024, 1024, 3), np.uint8)
    image[:, ::2] = 200
    np.testing.assert_array_equal(evaluate_photos.as_crop(image), np.full((256, 256, 3), 100, np.uint8))


def test_a_record_names_commit_processor_and_versions_and_no_path() -> None:
    record = machine.machine_record()
    assert {"commit", "cpu", "cpus", "load_1min", "python", "versions"} <= set(record)
    assert str(machine.ROOT) not in json.dumps(record)


def test_candidates_take_turns_and_the_first_run_of_a_turn_does_not_count() -> None:
    order: list[str] = []
    plan = timing.Plan(rounds=2, inner=2, warm_up=1)
    turns = timing.interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, plan)
    assert "".join(order) == "ab" + "aaabbb" * 2
    assert {name: ms.shape for name, ms in turns.items()} == {"a": (2, 2), "b": (2, 2)}


def test_a_slow_candidate_takes_three_turns() -> None:
    turns = timing.interleaved({"a": lambda: None}, timing.Plan(rounds=9, inner=1, warm_up=0, seconds=0.0))
    assert len(turns["a"]) == 3


def test_the_speedup_is_taken_turn_by_turn_so_that_a_slow_minute_does_not_count() -> None:
    base = np.array([[10.0, 10.0], [40.0, 40.0], [10.0, 10.0]])
    assert timing.speedup(base, base / 2) == 2.0
    assert timing.summary(base, batch=4) == {
        **{"p50_ms": 10.0, "p95_ms": 40.0, "p99_ms": 40.0, "min_ms": 10.0},
        **{"runs": 6, "per_second": 400.0},
    }


def test_quantiles_reach_from_the_shortest_run_to_the_longest() -> None:
    assert timing.quantiles(np.arange(21.0).reshape(3, 7)) == [float(2 * tenth) for tenth in range(11)]


def test_records_hold_summaries_and_stay_small() -> None:
    """A row for each run, pair or frame belongs on the page that is made at once; the repository keeps every copy."""
    paths = sorted(records.RESULTS.glob("*.json"))
    assert sum(path.stat().st_size for path in paths) < 400_000

    def longest(record: object) -> int:
        inner = record.values() if isinstance(record, dict) else record if isinstance(record, list) else ()
        return max([len(inner) if isinstance(record, list) else 0, *map(longest, inner)])

    assert max(longest(json.loads(path.read_text())) for path in paths) <= 50


def test_runs_are_only_ever_added(tmp_path: Path) -> None:
    here = {"cpu": "Some CPU", "cpus": 2, "commit": "0123456789ab+changes", "gpu": None, "date": "2026-01-01"}
    here |= {"load_1min": 0.1}
    path = records.add_run(tmp_path, {"benchmark": "latency", "x": 1}, here)
    first = json.loads(path.read_text())["runs"]
    assert path.name == "some-cpu-2cpu-0123456789ab-changes.json"
    assert records.add_run(tmp_path, {"benchmark": "latency", "x": 2}, here) == path
    record = json.loads(path.read_text())
    assert record["runs"][:1] == first
    assert records.last_runs(record)["latency"]["x"] == 2
    (tmp_path / "other.json").write_text('{"pairs": 3}')
    assert [found for found, _ in records.records(tmp_path)] == [path]
    gpu = here | {"gpu": "NVIDIA H100 80GB HBM3, 81559 MiB, 580.0", "commit": None}
    assert records.name_of(gpu) == "nvidia-h100-80gb-hbm3-no-commit"


def test_a_run_keeps_what_differs_from_the_machine_of_the_file(tmp_path: Path) -> None:
    first = {"cpu": "Some CPU", "cpus": 2, "commit": "0123", "date": "2026-01-01", "load_1min": 0.1, "clock_mhz": 2000}
    first |= {"versions": {"numpy": "2.4.0", "onnxruntime": "1.30.0", "nncf": "3.4.0"}}
    later = first | {"clock_mhz": 3000, "load_1min": 0.7, "versions": {"numpy": "2.4.0", "onnxruntime": "1.31.1"}}
    records.add_run(tmp_path, {"benchmark": "latency"}, first)
    record = json.loads(records.add_run(tmp_path, {"benchmark": "quality"}, later).read_text())
    assert record["machine"] == first
    assert "machine" not in record["runs"][0]
    assert record["runs"][1]["machine"] == {"clock_mhz": 3000, "versions": {"onnxruntime": "1.31.1", "nncf": None}}
    assert record["runs"][1]["load_1min"] == 0.7


def test_a_partial_run_stands_only_where_there_is_no_full_one() -> None:
    part, full = {"benchmark": "latency", "partial": True}, {"benchmark": "latency", "partial": False}
    other = {"benchmark": "roofline", "partial": True}
    assert records.last_runs({"runs": [full, other, part]}) == {"latency": full, "roofline": other}


def measured(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[list[tuple[str, int]], dict[str, object]]:
    """What latency.py would measure with these arguments, graph and batch each, and the run that it adds."""
    runs, graphs = [], []
    monkeypatch.setattr(latency, "measure_graph", lambda graph, _, batch, *rest: graphs.append((graph, batch)) or {})
    monkeypatch.setattr(latency, "measure_frame", lambda *_: graphs.append(("frame", 1)) or {})
    monkeypatch.setattr(latency, "add_run", lambda folder, run, _: runs.append(run) or folder)
    done = CliRunner().invoke(latency.main, list(arguments))
    assert done.exit_code == 0, done.output
    return graphs, runs[0]


def test_a_batch_that_is_asked_for_is_measured_on_every_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs, run = measured(monkeypatch, "--graphs", "synthesis", "--batch", "4")
    assert (graphs, run["partial"]) == ([("synthesis", 4)], True)
    graphs, run = measured(monkeypatch)
    assert {graph for graph, batch in graphs if batch > 1} == {"reenact"}
    assert [batch for graph, batch in graphs if graph == "reenact"] == [1, 4, 8]
    assert ("frame", 1) in graphs
    assert run["partial"] is False
    graphs, run = measured(monkeypatch, "--resolution", "1024")
    assert (graphs, run["partial"]) == ([("synthesis-1024", 1), ("reenact-1024", 1)], True)


def test_nothing_to_measure_is_a_mistake() -> None:
    done = CliRunner().invoke(latency.main, ["--graphs", "mapper", "--resolution", "1024"])
    assert done.exit_code == 2
    assert "nothing to measure" in done.output


@pytest.mark.parametrize(
    ("op", "inputs", "output", "kind", "group", "gflop", "mb"),
    [
        ("Conv", [[1, 8, 4, 4], [16, 8, 1, 1]], [1, 16, 4, 4], "Conv 1x1", "pointwise convolution", 4096e-9, 2048e-6),
        (
            "Conv",
            [[1, 8, 4, 4], [8, 1, 3, 3]],
            [1, 8, 4, 4],
            "Conv depthwise",
            "depthwise convolution",
            2304e-9,
            1312e-6,
        ),
        ("MatMul", [[1, 16, 8], [1, 8, 16]], [1, 16, 16], "MatMul", "pointwise convolution", 4096e-9, 2048e-6),
        ("ConvTranspose", [[1, 4, 2, 2], [4, 1, 2, 2]], [1, 1, 4, 4], "ConvTranspose", "wavelet", 128e-9, 192e-6),
        ("Add", [[1, 8, 4, 4], [1, 1, 4, 4]], [1, 8, 4, 4], "Add", "elementwise", 128e-9, 1088e-6),
        ("Reshape", [[1, 8, 16], [4]], [1, 8, 4, 4], "Reshape", "elementwise", 0.0, 0.0),
    ],
)
def test_operations_and_bytes_of_a_node(op, inputs, output, kind, group, gflop, mb) -> None:
    details = {
        "op_name": op,
        "input_type_shape": [{"float": shape} for shape in inputs],
        "output_type_shape": [{"float": output}],
    }
    counted = roofline.count(details)
    assert (counted["kind"], counted["group"]) == (kind, group)
    assert counted["gflop"] == pytest.approx(gflop)
    assert counted["mb"] == pytest.approx(mb)


def test_openvino_nodes_are_counted_as_it_runs_them() -> None:
    openvino = pytest.importorskip("openvino")
    nodes = roofline_openvino.profile("synthesis-light", 1, 2, "f32")
    kinds = {node["kind"] for node in nodes}
    assert {"Conv 1x1", "Conv depthwise", "ConvTranspose", "DepthToSpace", "Gemm"} <= kinds
    assert not any(node["bf16"] for node in nodes)
    pointwise = sum(node["gflop"] for node in nodes if node["kind"] == "Conv 1x1")
    assert pointwise == pytest.approx(4.0, rel=0.03)  # by hand, from the widths 512, 512, 512, 320, 160
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        low = roofline_openvino.profile("synthesis-light", 1, 2, "bf16")
        assert sum(node["bf16"] for node in low) > len(low) / 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino.Core, "get_property", lambda *_: [])
        with pytest.raises(engines.NotHereError, match="no bfloat16"):
            roofline_openvino.profile("synthesis-light", 1, 2, "bf16")


def test_a_node_in_bfloat16_has_the_floor_of_bfloat16() -> None:
    limits = {"matrix_gflops": 100.0, "matrix_bf16_gflops": 200.0, "copy_gb_s": 10.0}
    node = {"gflop": 1.0, "mb": 1.0}
    assert roofline._floor(node, limits)["floor_ms"] == pytest.approx(10.0)
    assert roofline._floor(node | {"bf16": True}, limits)["floor_ms"] == pytest.approx(5.0)
    assert roofline.name_of("reenact", "onnxruntime") == "reenact"
    assert roofline.name_of("reenact", "openvino-bf16") == "reenact on openvino-bf16"


def test_layers_of_the_generator_are_named_by_block_and_place() -> None:
    def node(name: str, kind: str, output: str) -> dict[str, str]:
        group = next((group for group, kinds in roofline.GROUPS.items() if kind in kinds), "elementwise")
        return {"name": name, "kind": kind, "group": group, "output": output}

    nodes = [
        node("of_e_attr", "Conv 1x1", "1x64x8x8"),
        node("first", "Conv dense", "1x512x4x4"),
        *(node("d", "Conv depthwise", "1x128x8x8"), node("p", "MatMul", "1x512x64")),
        *(node("d", "Conv depthwise", "1x512x8x8"), node("p", "MatMul", "1x512x64")),
        *(node("h", "MatMul", "1x64x64"), node("b", "MatMul", "1x12x64"), node("style", "Gemm", "1x512")),
        node("sum", "Add", "1x12x16x16"),
    ]
    assert roofline.layers(nodes) == [
        "Conv 1x1 of_e_attr",
        "4 px, dense convolution",
        *("8 px block, conv1, depthwise convolution", "8 px block, conv1, pointwise convolution"),
        *("8 px block, conv2, depthwise convolution", "8 px block, conv2, pointwise convolution"),
        *("8 px to-image head, conv1, pointwise convolution", "8 px to-image head, bands, pointwise convolution"),
        *("Gemm style", "16 px, Add sum"),
    ]
    most = [{"layer": "8 px block, conv1", "ms": 5.0, "floor_ms": 2.0}]
    assert roofline.verdict("synthesis", {"ms": 10.0, "floor_ms": 6.0}, most) == (
        "synthesis takes 10.0 ms and its floor is 6.0 ms, 60 % of that. Most to gain: 8 px block, conv1 (3.0 ms)."
    )


def test_growth_is_what_a_longer_clip_holds_above_the_shortest(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"50": 500.0, "400": 512.5}

    def process(command: list[str], **options: object) -> SimpleNamespace:
        figures = {"resident_mb": held.get(command[3]), "ms_a_frame": 9.0}
        return SimpleNamespace(returncode=command[3] not in held, stdout=json.dumps(figures).encode())

    monkeypatch.setattr(scaling.subprocess, "run", process)
    rows = scaling.by_clip_length(1, (50, 100, 400))
    assert {length: row.get("growth_mb") for length, row in rows.items()} == {"50": 0.0, "100": None, "400": 12.5}


def test_equal_outputs_and_known_distances() -> None:
    codes = np.array([[3.0, 4.0]], np.float32)
    assert accuracy.compare(codes, codes) == {"max": 0.0, "mean": 0.0, "cosine_min": 1.0}
    assert accuracy.compare(np.array([[4.0, -3.0]], np.float32), codes) == {
        **{"max": 1.41, "mean": 1.41},
        "cosine_min": 0.0,
    }
    with pytest.raises(ValueError, match="shapes differ"):
        accuracy.compare(codes, codes[:, :1])


def test_an_engine_that_is_not_here_says_why() -> None:
    with pytest.raises(engines.NotHereError, match="no CUDA"):
        engines.open_engine("cuda", "mapper", 1)


@pytest.mark.parametrize("error", [FidError("not fetched.\nMore."), torch.OutOfMemoryError("not fetched")])
def test_what_cannot_be_opened_is_a_reason_in_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(engines, "graph_path", fail)
    monkeypatch.setattr(engines, "torch_module", fail)
    for engine in ("onnxruntime", "torch"):
        with pytest.raises(engines.NotHereError, match=r"^not fetched$"):
            engines.open_engine(engine, "mapper", 1)


def test_an_engine_without_its_library_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    for engine in ("openvino", "openvino-int8"):
        with pytest.raises(engines.NotHereError, match="openvino"):
            engines.open_engine(engine, "mapper", 1)


def row(p50: float, speedup: float, psnr: float | None) -> dict[str, object]:
    near = {"max": 1.0, "mean": 0.001, "psnr_db": psnr, "lpips": 0.0001}
    near |= {"identity_cosine_mean": 0.9999, "identity_cosine_min": 0.9998}
    times = {"p50_ms": p50, "p95_ms": p50, "p99_ms": p50, "min_ms": p50, "per_second": 1e3 / p50, "runs": 2}
    return {
        "provider": "x",
        **times,
        "speedup": speedup,
        "open_s": 0.1,
        "quantiles_ms": [p50, p50],
        "against_torch": near,
    }


def judged(cosine: float) -> dict[str, object]:
    """A row of quality.py."""
    mean, of = {"mean": 0.1}, {"cosine": {"mean": cosine}, "accept": 0.953}
    return {
        "against_torch": row(1.0, 1.0, 20.0)["against_torch"],
        "frechet_distance": {"output": 0.0311},
        "identity": {"SFace": {"output": of, "leak": of}, "dlib": {"output": of | {"cosine": {"mean": 0.9583}}}},
        "expression": {"face mesh": {"output": mean}},
        "pose": {"face mesh": {"output": mean}},
        "reconstruction": {"rmse": mean, "psnr": mean, "lpips": mean, "identity": {"SFace": of}},
    }


NODE = {
    **{"name": "MatMul_1", "layer": "128 px block, conv2", "kind": "MatMul", "group": "wavelet", "output": "1x8"},
    **{"ms": 2.0, "gflop": 0.1, "mb": 10.0, "floor_ms": 1.0, "of_roof": 0.5},
}
RECORD = {
    "machine": {
        **{"cpu": "Some CPU", "cpus": 2, "cpu_features": ["avx2", "avx512_bf16"], "gpu": None, "commit": "0123"},
        **{"date": "2026-01-01", "versions": {"torch": "2"}},
    },
    "bundle": {"name": "default", "version": "0.1.0", "precision": "fp16 weights", "sha256": "00"},
    "runs": [
        {
            **{"benchmark": "latency", "load_1min": 0.1},
            "settings": {"threads": 2, "plan": "in turns", "frame_px": [720, 1280]},
            "graphs": {
                "reenact batch 1": {
                    "torch": row(80.0, 1.0, None),
                    "onnxruntime": row(25.04, 3.2, 61.24),
                    "tensorrt": {"reason": "no GPU"},
                }
            },
            "frame": {"torch": row(100.0, 1.0, None) | {"stages_ms": {"decode": 2.0}}},
            "fresh_process": {"reenact": {"torch": {"open_s": 1.0, "cold_start_s": 2.0, "peak_ram_mb": 500.0}}},
        },
        {
            **{"benchmark": "quality", "load_1min": 0.2, "machine": {"clock_mhz": 3000, "versions": {"torch": "2.1"}}},
            "settings": {"pairs": 64, "psi": 0.8, "threads": 2},
            "engines": {"openvino-int8": judged(0.6035), "cuda": {"reason": "no driver"}},
        },
        {
            **{"benchmark": "scaling", "load_1min": 0.2},
            "by": {
                **{name: {"onnxruntime": {"1": row(80.0, 1.0, None)}} for name in ("batch", "threads", "resolution")},
                "processes": {"onnxruntime": {"1": {"per_second": 5.0}}},
                "clip_length": {
                    "50": {"resident_mb": 500.0, "growth_mb": 0.0, "ms_a_frame": 9.0},
                    "100": {"reason": "the process ended with 1"},
                    "400": {"resident_mb": 512.5, "growth_mb": 12.5, "ms_a_frame": 9.0},
                },
                "faces": {"1": {"found": 1, "p50_ms": 100.0}},
            },
        },
        {
            **{"benchmark": "roofline", "load_1min": 0.2, "roof": {"matrix_gflops": 150.0, "copy_gb_s": 25.0}},
            "graphs": {
                "reenact": {
                    "verdict": "reenact reaches 60 %.",
                    **{"total": NODE, "groups": {"wavelet": NODE}, "most_to_gain": [NODE], "nodes": [NODE]},
                }
            },
        },
        {
            **{"benchmark": "peers", "load_1min": 0.2, "settings": {"versions": {"openvino": "1"}}},
            "peers": {
                "identity": {"OpenCV 4": {"p50_ms": 12.0, "note": peers.APART}, "OpenCV 5": {"reason": "refused"}},
                "own engine": {"reason": "no wheel"},
            },
        },
        {
            **{"benchmark": "gpu", "load_1min": 0.2, "weights": {"256": "the shipped bundle"}},
            "tests": {"exit_code": 0, "last_line": "9 passed"},
            "sessions": {
                "cuda": {"reenact 256 fp16": row(3.0, 1.0, None)},
                "tensorrt": {"all": {"reason": "no engine"}},
            },
            "frame": {"cuda, reenact 256 fp16": row(20.0, 1.0, None) | {"stages_ms": {"decode": 2.0}}},
            "torch": {"synthesis 256": {"batch 1": {"eager": {"fp16": row(7.0, 1.0, None) | {"psnr_db": 60.0}}}}},
        },
    ],
}


def test_the_short_table_names_the_fastest_first_and_only_what_runs() -> None:
    assert report.short_table(RECORD).splitlines()[2:] == [
        "| onnxruntime | 25.0 ms, 3.20x | – | 0.9998, 61.2 dB |",
        "| torch | 80.0 ms, 1.00x | 100.0 ms, 1.00x | 0.9998, equal |",
    ]


def test_the_report_holds_every_engine_with_its_reason() -> None:
    text, page = report.markdown(RECORD), report.page(RECORD)
    assert "- tensorrt does not run here: no GPU" in text
    assert "1280 x 720 JPEG" in text
    assert page.count("<svg") == 10  # latency 3, scaling 4 and clip and faces, roofline 1
    assert "no GPU" in page
    assert "| openvino-int8 | 0.6035 | 0.6035 | 0.953 | 0.0311 |" in text
    assert "0.9583" not in text  # dlib's cosines hide a loss
    assert "- otherwise when quality ran: clock_mhz 3000, torch 2.1" in text
    assert "| 400 | 512.5 | 12.5 | 9.0 |" in text
    assert "- reenact reaches 60 %." in text
    assert "| reenact | 128 px block, conv2 |" in text
    assert "- OpenCV 4 ran by itself" in text
    assert "| reenact 256 fp16, cuda | 3.00 |" in text
    assert "- tests/gpu: 9 passed" in text


def test_the_page_gets_the_table_and_the_machine(tmp_path: Path) -> None:
    page = tmp_path / "measured.md"
    old = "On Old CPU, 1 CPUs, at 256 px, batch 1; ratios are to PyTorch eager:"
    mark = "<!-- speed: benchmarks/results/old.json -->"
    page.write_text(f"# x\n\n{old}\n\n{mark}\n| a |\n|---|\n| 1 |\n\nend\n")
    record = tmp_path / "new.json"
    record.write_text(json.dumps(RECORD))
    report.write_short_table(record, page)
    assert page.read_text() == (
        "# x\n\nOn Some CPU, 2 CPUs with AVX2, AVX512-BF16, at 256 px, batch 1; ratios are to PyTorch eager:\n\n"
        f"<!-- speed: benchmarks/results/new.json -->\n{report.short_table(RECORD)}\nend\n"
    )
    record.write_text(json.dumps(RECORD | {"runs": [RECORD["runs"][0] | {"partial": True}]}))
    with pytest.raises(click.UsageError, match=r"new\.json has no full run"):
        report.write_short_table(record, page)


def test_the_peers_formula_for_a_picture() -> None:
    image = np.zeros((3, 2, 2), np.float32)
    image[0], image[2] = 1, -2
    np.testing.assert_array_equal(peers.as_picture(image), np.full((2, 2, 3), (0, 127, 255), np.uint8))


def test_an_environment_that_cannot_be_made_is_a_reason() -> None:
    row = peers.own_environment("no-such-python", [["x"]], "")
    assert row == {"reason": "no-such-python made no environment", "note": peers.APART}


def test_an_older_openvino_is_tried_where_the_last_fails_and_both_answers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([{"reason": "RuntimeError"}, {"p50_ms": 9.0}])
    monkeypatch.setattr(peers, "own_environment", lambda *_: next(answers))
    rows = peers.own_engines()
    assert [row.get("p50_ms", row.get("reason")) for row in rows.values()] == ["RuntimeError", 9.0]
    assert list(rows) == [f"OpenVINO {version}" for version in peers.OLD_OPENVINO]


@pytest.fixture
def gpu() -> ModuleType:
    """gpu.py, by its file: `gpu` is a folder of tests too."""
    spec = importlib.util.spec_from_file_location("benchmark_gpu", machine.ROOT / "benchmarks" / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_graphs_typed_in_fp16_are_those_of_another_bundle(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(folder: Path | None = None) -> SimpleNamespace:
        typed = None if folder is None else folder / "typed.onnx"
        graphs = dict.fromkeys(("mapper", "synthesis") if folder else ("reenact", "synthesis"))
        return SimpleNamespace(resolution=256, graphs=graphs, graph_path=Path, fp16_graph_path=lambda _: typed)

    def fail(_: str) -> Path:
        raise FidError("not fetched.")

    monkeypatch.setattr("fid.runtime.weights.bundle.Bundle.load", load)
    monkeypatch.setattr("fid.runtime.weights.prepare.prepared", fail)
    assert gpu.graphs_at_hand([Path("b16")]) == {
        **{"reenact 256": (Path("reenact"), None), "synthesis 256": (Path("synthesis"), None)},
        "synthesis 256 fp16": (Path("synthesis"), Path("b16/typed.onnx")),
    }


def test_gpu_sessions_and_the_whole_frame_on_the_fastest(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Bundle.load().graph_path("reenact")
    at_hand = {"reenact 256": (graph, None), "reenact 256 fp16": (graph, graph)}
    monkeypatch.setattr(gpu, "graphs_at_hand", lambda _: at_hand)
    monkeypatch.setattr(gpu, "OTHER_ENGINES", ("an engine to come",))
    record: dict[str, dict] = {"sessions": {}}
    gpu.measure_sessions(record, [], True, gpu.Clock(5), lambda: None)
    assert "no such engine" in record["sessions"]["an engine to come"]["reenact 256 fp16"]["reason"]
    assert record["sessions"]["onnxruntime"].keys() == {"reenact 256"}  # CPUs take the FP32 graph
    ((name, frame),) = record["frame"].items()
    assert name == "onnxruntime, reenact 256"
    assert list(frame["stages_ms"]) == list(latency.STAGES)


def test_the_gpu_script_names_its_usage_without_a_file_to_write() -> None:
    done = subprocess.run([machine.ROOT / "benchmarks" / "gpu.sh"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")


def test_a_cuda_device_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    script = machine.ROOT / "benchmarks" / "gpu.sh"
    done = subprocess.run(
        [script, tmp_path / "x.json"], env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "sees no CUDA device" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "x.json").exists()


def test_sides_come_in_turns_and_ratios_are_of_pairs() -> None:
    assert list(against.turns_of(3)) == [("old", "new"), ("new", "old"), ("old", "new")]
    assert against.ratio({"old": [4.0, 40.0, 9.0], "new": [2.0, 20.0, 3.0]}) == 2.0
    runs = {
        name: iter([{"wall": [t], "cpu": [2 * t]} for t in times]) for name, times in (("old", [6, 8]), ("new", [3, 2]))
    }
    row = against.in_turns({name: partial(next, own) for name, own in runs.items()}, 2)
    assert (row["wall_ms"], row["cpu_ms"]) == ({"old": 6, "new": 2}, {"old": 12, "new": 4})
    assert (row["wall_ratio"], row["cpu_ratio"]) == (3.0, 3.0)  # the median of 2 and 4


def both_clocks(old: float, new: float) -> dict[str, object]:
    ms = {"old": old, "new": new}
    return {"wall_ms": ms, "cpu_ms": ms, "wall_ratio": round(old / new, 2), "cpu_ratio": round(old / new, 2)}


def test_the_table_takes_the_best_engine_of_each_side() -> None:
    live = {"fps": {"old": 10.0, "new": 15.0}, "resident_mb": {"old": 400.0, "new": 200.0}}
    live |= {kind: {"old": 2.0, "new": 1.0} for kind in ("age_p99_ms", "first_frame_s", "cpu_ms_a_frame")}
    parts = {
        "reenact onnxruntime": both_clocks(90.0, 80.0),
        "reenact openvino": both_clocks(100.0, 50.0),
        "reenact openvino-bf16": both_clocks(60.0, 30.0),
        "reenact openvino-int8": both_clocks(60.0, 20.0),
        "reenact beside torch": {"missing": "no torch"},
        "live openvino-bf16": live,
        "install": {"mb": {"old": 400.0, "new": 300.0}},
    }
    lines = {line[:52].strip(): line[52:].split() for line in against_table.table(parts)}
    assert lines["reenact, ms, bfloat16, best engine of each side"] == ["60.0", "30.0", "2.00", "2.00", ">=", "1.8"]
    assert lines["reenact, ms, eight bits beside bfloat16"][:3] == ["60.0", "20.0", "3.00"]
    assert lines["reenact, ms, float32, onnxruntime"][:3] == ["90.0", "80.0", "1.12"]
    assert lines["reenact, ms, float32, best engine of each side"][:3] == ["90.0", "50.0", "1.80"]
    assert lines["live, frames a second, bfloat16"][:3] == ["10.0", "15.0", "1.50"]
    assert lines["live, resident, MB, openvino-bf16"][:3] == ["400.0", "200.0", "0.50"]  # which share
    assert lines["lean install, MB"][:3] == ["400.0", "300.0", "0.75"]
    assert "reenact beside torch: no torch" in lines
    assert not any("1024" in line for line in lines)  # not measured yet


def test_a_side_answers_orders() -> None:
    """A real graph in a process of its own; a graph that cannot be opened is a reason, and the process goes on."""
    side = against.Side(Path(sys.executable))
    try:
        assert "onnxruntime CPU" in side.ask({"open": ["onnxruntime", "mapper", 1]})["provider"]
        answer = side.ask({"run": 2})
        assert [len(answer[clock]) for clock in ("wall", "cpu")] == [2, 2]
        assert min(answer["wall"]) > 0
        assert "reason" in side.ask({"open": ["no such engine", "mapper", 1]})
    finally:
        side.close()
