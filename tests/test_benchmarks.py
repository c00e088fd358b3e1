"""The parts of the benchmark scripts whose mistakes would make wrong figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import accuracy
import click
import engines
import evaluate_photos
import machine
import numpy as np
import peers
import pytest
import records
import report
import roofline
import timing
import torch


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


def row(p50: float, speedup: float, psnr: float | None) -> dict[str, object]:
    near = {"max": 1.0, "mean": 0.001, "psnr_db": psnr, "lpips": 0.0001}
    near |= {"identity_cosine_mean": 0.9999, "identity_cosine_min": 0.9998}
    times = {"p50_ms": p50, "p95_ms": p50, "p99_ms": p50, "min_ms": p50, "per_second": 1e3 / p50, "runs": 2}
    return {"provider": "x", **times, "speedup": speedup, "open_s": 0.1, "ms": [p50, p50], "against_torch": near}


RECORD = {
    "machine": {
        **{"cpu": "Some CPU", "cpus": 2, "cpu_features": ["avx2"], "gpu": None, "commit": "0123"},
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
        }
    ],
}


def test_the_short_table_names_the_fastest_first_and_only_what_runs() -> None:
    assert report.short_table(RECORD).splitlines()[2:] == [
        "| onnxruntime | 25.0 ms, 3.20x | – | 0.9998, 61.2 dB |",
        "| torch | 80.0 ms, 1.00x | 100.0 ms, 1.00x | 0.9998, equal |",
    ]


def test_the_report_holds_every_engine_with_its_reason(tmp_path: Path) -> None:
    text, page = report.markdown(RECORD), report.page(RECORD)
    assert "- tensorrt does not run here: no GPU" in text
    assert "1280 x 720 JPEG" in text
    assert page.count("<svg") == 2
    assert "no GPU" in page
    readme = tmp_path / "README.md"
    readme.write_text("# x\n<!-- speed: benchmarks/results/old.json -->\n| a |\n|---|\n| 1 |\n\nend\n")
    record = tmp_path / "new.json"
    record.write_text(json.dumps(RECORD))
    report.write_readme(record, readme)
    assert readme.read_text() == (
        f"# x\n<!-- speed: benchmarks/results/new.json -->\n{report.short_table(RECORD)}\nend\n"
    )


def test_the_peers_formula_for_a_picture() -> None:
    image = np.zeros((3, 2, 2), np.float32)
    image[0], image[2] = 1, -2
    np.testing.assert_array_equal(peers.as_picture(image), np.full((2, 2, 3), (0, 127, 255), np.uint8))


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
