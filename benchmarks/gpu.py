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
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
FORMS = ("eager", "cuda graph", "compile", "compile reduce-overhead")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
BATCHES = (1, 4, 8)
SIDES = {"synthesis": (256, 1024), "reenact": (256, 1024)}
OTHER_ENGINES = ("cuda", "tensorrt", "tensorrt-rtx")
TESTS_SECONDS = 180


class Clock:
    """The time that is left."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    def left(self) -> float:
        return self.end - time.monotonic()


def load_networks() -> tuple[Any, dict[str, str]]:
    """The networks of the shipped bundle (`export.read.Networks`) with the 1024 px generator, and whose weights."""
    with contextlib.suppress(ImportError):
        import platformdirs  # noqa: F401 - only looks whether it is there
    if "platformdirs" not in sys.modules:  # the runtime asks it for one folder, and FID_CACHE names that already
        sys.modules["platformdirs"] = types.ModuleType("platformdirs")
    from fid.trainer.networks.mobilestylegan import Synthesis
    from fid.trainer.networks.trained import AttributeEncoder, Mapper

    torch.manual_seed(0)
    origin = {}
    try:
        from fid.export.read import read_bundle
        from fid.runtime.weights.bundle import Bundle

        networks = read_bundle(Bundle.load())
        origin["256"] = "the shipped bundle"
    except Exception as error:  # a missing library is as good a reason as a missing file
        networks = types.SimpleNamespace(
            attributes=AttributeEncoder().eval(),
            mapper=Mapper(appearance=48).eval(),
            synthesis=_filled(Synthesis(256)),
            resolution=256,
        )
        origin["256"] = f"random ({_reason(error)})"
    try:
        full = Synthesis.load(1024)
        origin["1024"] = "the published generator"
    except Exception as error:
        full = _filled(Synthesis(1024))
        origin["1024"] = f"random ({_reason(error)})"
    return (networks, full), origin


def _filled(network: torch.nn.Module) -> torch.nn.Module:
    """Random weights of about the published generator's size, so that activations neither vanish nor overflow."""
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            if name.endswith("modulation.bias") or name.endswith("up.bias"):
                tensor.fill_(1.0)
            elif tensor.ndim > 1:
                tensor.normal_(0, float(np.prod(tensor.shape[1:])) ** -0.5)
    return network.eval()


class Reenact(torch.nn.Module):
    """uint8 crop [N, 256, 256, 3], code [N, 128], appearance [N, 512] -> uint8 picture [N, R, R, 3], as
    `export.graphs.ReenactGraph`."""

    def __init__(self, networks: Any, synthesis: torch.nn.Module) -> None:
        super().__init__()
        self.attributes, self.mapper, self.synthesis = networks.attributes, networks.mapper, synthesis

    def forward(self, crop: torch.Tensor, identity: torch.Tensor, appearance: torch.Tensor) -> torch.Tensor:
        x = crop.permute(0, 3, 1, 2).float() / 127.5 - 1
        return picture(self.synthesis(self.mapper(identity, self.attributes(x), appearance)))


class Synthesise(torch.nn.Module):
    """w [N, 512] -> uint8 picture [N, R, R, 3]."""

    def __init__(self, synthesis: torch.nn.Module) -> None:
        super().__init__()
        self.synthesis = synthesis

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return picture(self.synthesis(w))


def picture(image: torch.Tensor) -> torch.Tensor:
    """float [N, 3, R, R] in about [-1, 1] -> uint8 [N, R, R, 3]."""
    return ((image.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def inputs_of(graph: str, batch: int, networks: Any, device: torch.device) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(batch)
    if graph == "synthesis":
        mapper = networks.mapper
        w = mapper.w_mean + 0.8 * mapper.w_std * torch.randn(batch, 512, generator=random)
        return [w.to(device)]
    code = torch.nn.functional.normalize(torch.randn(batch, 128, generator=random))
    crop = torch.randint(0, 256, (batch, 16, 16, 3), generator=random).repeat_interleave(16, 1).repeat_interleave(16, 2)
    appearance = 0.15 * torch.randn(batch, 512, generator=random)
    return [crop.to(torch.uint8).to(device), code.to(device), appearance.to(device)]


@contextlib.contextmanager
def precision_of(name: str, device: torch.device) -> Iterator[None]:
    """FP32 with TF32 off, TF32 in convolutions and products, or autocast to BF16 or FP16."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    matmul.allow_tf32 = cudnn.allow_tf32 = name != "fp32"
    cudnn.benchmark = True
    cast = contextlib.nullcontext()
    if name in ("bf16", "fp16"):
        cast = torch.autocast(device.type, torch.bfloat16 if name == "bf16" else torch.float16, cache_enabled=False)
    try:
        with cast, torch.no_grad():
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


def in_form(form: str, module: torch.nn.Module, inputs: list[torch.Tensor]) -> Callable[[], torch.Tensor]:
    """A call of the module on these inputs, which stay where they are."""
    if form == "cuda graph":
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                module(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = module(*inputs)

        def replay() -> torch.Tensor:
            graph.replay()
            return output

        return replay
    if form.startswith("compile"):
        torch._dynamo.reset()
        mode = "reduce-overhead" if "overhead" in form else "default"
        compiled = torch.compile(module, dynamic=False, mode=mode)
        return lambda: compiled(*inputs)
    return lambda: module(*inputs)


def timed(call: Callable[[], Any], runs: int, warm: int = 5) -> dict[str, float]:
    """Every call to its end: p50, p95, p99 and min in ms."""
    for _ in range(warm):
        call()
    _synchronise()
    ms = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        _synchronise()
        ms.append(1e3 * (time.perf_counter() - start))
    p50, p95, p99 = (round(float(np.percentile(ms, q)), 4) for q in (50, 95, 99))
    return {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "min_ms": round(min(ms), 4), "runs": runs}


def measure_torch(
    record: dict[str, Any],
    networks: Any,
    full: Any,
    device: torch.device,
    quick: bool,
    clock: Clock,
    save: Callable[[], None],
) -> None:
    """Fills record["torch"]: graph and side -> batch -> form -> precision -> figures, the quickest to measure first."""
    runs = 3 if quick else 100
    jobs = [
        (form, graph, side, batch, precision)
        for form in FORMS
        for batch in BATCHES[: 1 if quick else None]
        for graph, sides in SIDES.items()
        for side in sides[: 1 if quick else None]
        for precision in PRECISIONS
        if batch == 1 or form in ("eager", "cuda graph")
    ]
    modules: dict[tuple[str, int], torch.nn.Module] = {}
    expected: dict[tuple[str, int, int], torch.Tensor] = {}
    for form, graph, side, batch, precision in jobs:
        place = record["torch"].setdefault(f"{graph} {side}", {}).setdefault(f"batch {batch}", {}).setdefault(form, {})
        if clock.left() < (60 if form.startswith("compile") else 5):
            place[precision] = {"reason": "no time was left"}
            continue
        if device.type == "cpu" and (form == "cuda graph" or "overhead" in form):
            place[precision] = {"reason": "no CUDA device"}
            continue
        if device.type == "cpu" and precision != "fp32":
            place[precision] = {"reason": "measured on GPUs only"}
            continue
        if quick and form.startswith("compile") and graph == "reenact":
            place[precision] = {"reason": "left out by --quick"}
            continue
        if (graph, side) not in modules:
            synthesis = networks.synthesis if side == 256 else full
            module = Synthesise(synthesis) if graph == "synthesis" else Reenact(networks, synthesis)
            modules[graph, side] = module.to(device).eval().requires_grad_(False)
        arrays = inputs_of(graph, batch, networks_on_cpu(networks), device)
        if (graph, side, batch) not in expected:
            with precision_of("fp32", device):
                expected[graph, side, batch] = modules[graph, side](*arrays).clone()
        try:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            with precision_of(precision, device):
                call = in_form(form, modules[graph, side], arrays)
                call()
                _synchronise()
                ready = time.perf_counter() - start
                figures = {"ready_s": round(ready, 2), **timed(call, runs)}
                figures |= against(call(), expected[graph, side, batch])
                if graph == "reenact" and form == "eager" and batch == 1:
                    figures["host"] = timed(from_host(modules[graph, side], arrays, device), runs)
            if device.type == "cuda":
                figures["peak_vram_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
            figures["per_second"] = round(1e3 * batch / figures["p50_ms"], 2)
            place[precision] = figures
        except Exception as error:  # one form that does not work here must not cost the others
            place[precision] = {"reason": _reason(error)}
        save()
        print(
            form,
            graph,
            side,
            batch,
            precision,
            place[precision].get("p50_ms", place[precision].get("reason")),
            flush=True,
        )


def networks_on_cpu(networks: Any) -> Any:
    """Only the statistics of w, which the inputs are drawn from."""
    mapper = networks.mapper
    return types.SimpleNamespace(mapper=types.SimpleNamespace(w_mean=mapper.w_mean.cpu(), w_std=mapper.w_std.cpu()))


def from_host(module: torch.nn.Module, arrays: list[torch.Tensor], device: torch.device) -> Callable[[], np.ndarray]:
    """The live form of a call: crop up, picture down."""
    crop, *person = arrays[0].cpu(), *arrays[1:]
    if device.type == "cuda":
        crop = crop.pin_memory()
    return lambda: module(crop.to(device, non_blocking=True), *person).cpu().numpy()


def against(got: torch.Tensor, expected: torch.Tensor) -> dict[str, float | None]:
    """Grey levels and PSNR against FP32 eager."""
    apart = (got.int() - expected.int()).abs().double()
    squared = float(apart.square().mean())
    return {"max": float(apart.max()), "psnr_db": round(10 * float(np.log10(255**2 / squared)), 2) if squared else None}


def graphs_at_hand(bundles: list[Path]) -> dict[str, tuple[Path, Path | None]]:
    """Graph and side, with "fp16" where it is typed so -> its file and its FP16 form: of the bundle that ships and of
    others, and the 1024 px generator where it is fetched."""
    from fid.runtime.weights.bundle import Bundle
    from fid.runtime.weights.prepare import prepared

    found: dict[str, tuple[Path, Path | None]] = {}
    for bundle in (Bundle.load(), *map(Bundle.load, bundles)):
        for graph in (g for g in ("reenact", "synthesis") if g in bundle.graphs):
            name, path, half = f"{graph} {bundle.resolution}", bundle.graph_path(graph), bundle.half_path(graph)
            found.setdefault(name, (path, None))
            if half is not None:
                found[f"{name} fp16"] = (path, half)
    with contextlib.suppress(Exception):  # the sessions at 256 px need nothing fetched
        found.setdefault("synthesis 1024", (prepared("synthesis-1024"), None))
    return found


def measure_sessions(
    record: dict[str, Any], bundles: list[Path], quick: bool, clock: Clock, save: Callable[[], None]
) -> None:
    """Fills record["sessions"]: engine -> graph -> figures of fid's own sessions, host memory to host memory; then
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
        record["sessions"] = {engine: {"all": {"reason": _reason(error)}} for engine in (*OTHER_ENGINES, "onnxruntime")}
        return
    for engine in (*OTHER_ENGINES, "onnxruntime"):
        rows = record["sessions"].setdefault(engine, {})
        for name, (path, half) in graphs.items():
            if half is not None and engine == "onnxruntime":
                continue  # CPUs take the FP32 graphs
            if clock.left() < 30:
                rows[name] = {"reason": "no time was left"}
                continue
            try:
                from fid.runtime.engines.open import ENGINES, open_session

                if engine not in ENGINES:
                    raise LookupError("this version of fid has no such engine")
                start = time.perf_counter()
                session = open_session(path, engine=engine, static_batch=1, half=half)
                arrays = {tensor.name: feeds[tensor.name] for tensor in session.inputs}
                for tensor in session.inputs:
                    if tensor.name.startswith("w_plus"):  # as many styles as the generator has
                        arrays[tensor.name] = np.repeat(feeds[tensor.name], tensor.shape[1], axis=1)
                session.run(**arrays)
                ready = round(time.perf_counter() - start, 2)
                rows[name] = {"provider": session.provider, "fallback": session.fallback, "ready_s": ready}
                rows[name] |= timed(lambda session=session, arrays=arrays: session.run(**arrays), runs)
                if name.startswith("reenact 256") and not session.fallback and rows[name]["p50_ms"] < best[0]:
                    best = rows[name]["p50_ms"], f"{engine}, {name}", session
            except Exception as error:
                rows[name] = {"reason": _reason(error)}
            save()
            print(engine, name, rows[name].get("p50_ms", rows[name].get("reason")), flush=True)
    try:
        record["frame"] = {best[1]: whole_frame(best[2], feeds, runs)} if best[2] is not None else {}
    except Exception as error:
        record["frame"] = {best[1]: {"reason": _reason(error)}}
    save()
    print("whole frame", record["frame"], flush=True)


def whole_frame(session: Any, feeds: dict[str, np.ndarray], runs: int) -> dict[str, Any]:
    """Decode, track, align, reenact, paste, encode of 720p JPEGs: figures, with the median of every stage."""
    from engines import Opened
    from latency import STAGES, Clip

    clip, warm = Clip(), 5
    person = {tensor.name: feeds[tensor.name] for tensor in session.inputs if tensor.name != "crop"}
    (output,) = session.outputs
    opened = Opened(lambda arrays: session.run(**arrays)[output.name], session.provider, 0.0)
    stages: list[dict[str, float]] = []
    figures = timed(lambda: stages.append(clip.frame(opened, person)), runs, warm)
    medians = {stage: round(statistics.median(one[stage] for one in stages[warm:]), 2) for stage in STAGES}
    return {"provider": session.provider, **figures, "stages_ms": medians}


def run_tests(quick: bool) -> dict[str, Any]:
    """The tests in tests/gpu: how pytest ended and its last line."""
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
    """GPU, driver, versions, commit."""
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
    """Clocks, temperature and power, as nvidia-smi tells them; nothing without it."""
    query = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,temperature.gpu,power.draw", "--format=csv"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.splitlines()
    return []


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200].rstrip(": ")


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
    measure_torch(record, networks, full, device, options.quick, clock, save)
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
