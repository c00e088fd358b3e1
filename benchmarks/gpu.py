"""How fast is PyTorch on this GPU, in every form and precision, and what else runs here? See gpu.sh, which starts this.

Synthesis (w to picture) and reenactment (crop and identity code to picture), inputs and outputs on the device, every
call synchronised. `host` is the live form: the crop comes from host memory and the picture goes back there. Sessions
are those of fid, host memory to host memory, and the fastest one also goes through the whole frame of latency.py.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_torch import Clock, load_networks, measure_torch, reason_of, timed

ROOT = Path(__file__).resolve().parents[1]
OTHER_ENGINES = ("cuda", "tensorrt", "tensorrt-rtx")
TESTS_SECONDS = 180


def graphs_at_hand(bundles: list[Path]) -> dict[str, tuple[Path, Path | None]]:
    """Return graph and side, with "fp16" where it is typed so -> its file and its FP16 form: of the bundle that ships
    and of others, and the 1024 px generator where it is fetched."""
    from fid.runtime.weights.bundle import Bundle
    from fid.runtime.weights.prepare import prepared

    found: dict[str, tuple[Path, Path | None]] = {}
    for bundle in (Bundle.load(), *map(Bundle.load, bundles)):
        for graph in (g for g in ("reenact", "synthesis") if g in bundle.graphs):
            name, path, typed = f"{graph} {bundle.resolution}", bundle.graph_path(graph), bundle.fp16_graph_path(graph)
            found.setdefault(name, (path, None))
            if typed is not None:
                found[f"{name} fp16"] = (path, typed)
    with contextlib.suppress(Exception):  # the sessions at 256 px need nothing fetched
        found.setdefault("synthesis 1024", (prepared("synthesis-1024"), None))
    return found


def measure_sessions(
    record: dict[str, Any], bundles: list[Path], quick: bool, clock: Clock, save: Callable[[], None]
) -> None:
    """Fill record["sessions"]: engine -> graph -> figures of fid's own sessions, host memory to host memory; then
    record["frame"], the whole frame through the fastest of those that reenact at 256 px."""
    runs, best = 3 if quick else 100, (float("inf"), "", None)
    random = np.random.default_rng(0)
    feeds = {
        "crop": random.integers(0, 256, (1, 256, 256, 3), np.uint8),
        "identity": np.full((1, 128), 128**-0.5, np.float32),
        "appearance": np.zeros((1, 512), np.float32),
        "w_plus": 0.3 * random.standard_normal((1, 1, 512), np.float32),
        "w_plus_offset": np.zeros((1, 1, 512), np.float32),
    }
    try:
        graphs = graphs_at_hand(bundles)
    except Exception as error:
        record["sessions"] = {
            engine: {"all": {"reason": reason_of(error)}} for engine in (*OTHER_ENGINES, "onnxruntime")
        }
        return
    for engine in (*OTHER_ENGINES, "onnxruntime"):
        rows = record["sessions"].setdefault(engine, {})
        for name, (path, typed) in graphs.items():
            if typed is not None and engine == "onnxruntime":
                continue  # CPUs take the FP32 graphs
            if clock.left() < 30:
                rows[name] = {"reason": "no time was left"}
                continue
            try:
                from fid.runtime.engines.open import ENGINES, open_session

                if engine not in ENGINES:
                    raise LookupError("this version of fid has no such engine")
                start = time.perf_counter()
                session = open_session(path, engine=engine, static_batch=1, fp16_graph=typed)
                arrays = feeds_of(session, feeds)
                session.run(**arrays)
                ready = round(time.perf_counter() - start, 2)
                rows[name] = {"provider": session.provider, "fallback": session.fallback, "ready_s": ready}
                rows[name] |= timed(lambda session=session, arrays=arrays: session.run(**arrays), runs)
                if name.startswith("reenact 256") and not session.fallback and rows[name]["p50_ms"] < best[0]:
                    best = rows[name]["p50_ms"], f"{engine}, {name}", session
            except Exception as error:
                rows[name] = {"reason": reason_of(error)}
            save()
            print(engine, name, rows[name].get("p50_ms", rows[name].get("reason")), flush=True)
    try:
        record["frame"] = {best[1]: whole_frame(best[2], feeds, runs)} if best[2] is not None else {}
    except Exception as error:
        record["frame"] = {best[1]: {"reason": reason_of(error)}}
    save()
    print("whole frame", record["frame"], flush=True)


def feeds_of(session: Any, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what a session takes of `feeds`; W+ for as many styles as its generator has."""
    arrays = {tensor.name: feeds[tensor.name] for tensor in session.inputs}
    for tensor in session.inputs:
        if tensor.name.startswith("w_plus"):
            arrays[tensor.name] = np.repeat(feeds[tensor.name], tensor.shape[1], axis=1)
    return arrays


def whole_frame(session: Any, feeds: dict[str, np.ndarray], runs: int) -> dict[str, Any]:
    """Time decode, track, align, reenact, paste, encode of 720p JPEGs: figures, with the median of every stage."""
    from engines import Opened
    from latency import STAGES, Clip

    clip, warm = Clip(), 5
    person = {name: array for name, array in feeds_of(session, feeds).items() if name != "crop"}
    (output,) = session.outputs
    opened = Opened(lambda arrays: session.run(**arrays)[output.name], session.provider, 0.0)
    stages: list[dict[str, float]] = []
    figures = timed(lambda: stages.append(clip.frame(opened, person)), runs, warm)
    medians = {stage: round(statistics.median(one[stage] for one in stages[warm:]), 2) for stage in STAGES}
    return {"provider": session.provider, **figures, "stages_ms": medians}


def run_tests(quick: bool) -> dict[str, Any]:
    """Run the tests in tests/gpu: return how pytest ended and its last line."""
    plain = ("-o", "addopts=--import-mode=importlib")  # one process, and no plug-in that a bare machine lacks
    options = ("-q", "-p", "no:cacheprovider", *plain)
    command = [sys.executable, "-m", "pytest", *options, str(ROOT / "tests" / "gpu")]
    if quick:
        command.append("--collect-only")
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TESTS_SECONDS)
    except subprocess.TimeoutExpired:
        return {"reason": f"the tests took more than {TESTS_SECONDS} s"}
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"exit_code": done.returncode, "last_line": lines[-1] if lines else "", "failed": failed[:20]}


def machine(device: torch.device) -> dict[str, Any]:
    """Return GPU, driver, versions, commit."""
    from machine import machine_record

    record = machine_record() | {"torch": torch.__version__, "cuda": torch.version.cuda}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        record["gpu_properties"] = {
            "name": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cudnn": torch.backends.cudnn.version(),
        }
    return record


def gpu_state() -> list[str]:
    """Return clocks, temperature and power, as nvidia-smi tells them; nothing without it."""
    query = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,temperature.gpu,power.draw", "--format=csv"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.splitlines()
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="few runs of few forms, to see that it works")
    parser.add_argument("--minutes", type=float, default=9.0, help="what would begin after them is left out")
    parser.add_argument(
        "--bundle", type=Path, action="append", default=[], help="another to measure, as with FP16 graphs"
    )
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no CUDA device here; --device cpu --quick tries the script without one.")
    clock, device = Clock(options.minutes), torch.device(options.device)
    (networks, full), weights = load_networks()
    from records import with_run, write_json  # here: the runtime's imports are seen to above

    record: dict[str, Any] = {
        "benchmark": "gpu",
        "quick": options.quick,
        "settings": {"device": options.device, "minutes": options.minutes, "bundles": [b.name for b in options.bundle]},
        "weights": weights,
    }
    record |= {"gpu_before": gpu_state(), "tests": {}, "torch": {}, "sessions": {}, "frame": {}}
    try:
        contents = with_run(options.output, record, machine(device))
    except (KeyError, TypeError, ValueError):
        parser.error(f"{options.output} is no record of benchmarks; name another file, or one that is not there yet.")
    record = contents["runs"][-1]

    def save() -> None:
        write_json(options.output, contents)

    save()
    measure_sessions(record, options.bundle, options.quick, clock, save)
    record["tests"] = run_tests(options.quick)
    save()
    for _ in measure_torch(record["torch"], networks, full, device, options.quick, clock):
        save()
    record["gpu_after"] = gpu_state()
    record["seconds"] = round(60 * options.minutes - clock.left(), 1)
    save()
    fastest = [
        (figures["p50_ms"], f"{name} {form} {precision}")
        for name, batches in record["torch"].items()
        for form, precisions in batches.get("batch 1", {}).items()
        for precision, figures in precisions.items()
        if "p50_ms" in figures
    ]
    median = statistics.median(ms for ms, _ in fastest) if fastest else None
    print(
        json.dumps(
            {
                "record": options.output.name,
                "forms": len(fastest),
                "median_ms": median,
                "best": min(fastest, default=None),
            }
        )
    )


if __name__ == "__main__":
    main()
