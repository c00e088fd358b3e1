"""How fast is PyTorch on a GPU, eager, compiled and as CUDA graph, in every precision? gpu.py asks."""

import contextlib
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from timing import summary

FORMS = ("eager", "cuda graph", "compile", "compile reduce-overhead")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
BATCHES = (1, 4, 8)
SIDES = {"synthesis": (256, 1024), "reenact": (256, 1024)}


class Clock:
    """The time that is left."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    def left(self) -> float:
        return self.end - time.monotonic()


def load_networks() -> tuple[Any, dict[str, str]]:
    """Return the networks of the shipped bundle (`export.read.Networks`) with the 1024 px generator, and whose
    weights."""
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
        origin["256"] = f"random ({reason_of(error)})"
    try:
        full = Synthesis.load(1024)
        origin["1024"] = "the published generator"
    except Exception as error:
        full = _filled(Synthesis(1024))
        origin["1024"] = f"random ({reason_of(error)})"
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
    """Map float [N, 3, R, R] in about [-1, 1] -> uint8 [N, R, R, 3]."""
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
    """Compute within it in FP32 with TF32 off, TF32 in convolutions and products, or autocast to BF16 or FP16."""
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
    """Return a call of the module on these inputs, which stay where they are."""
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
    """Run every call to its end and return p50, p95, p99 and min in ms."""
    for _ in range(warm):
        call()
    _synchronise()
    ms = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        _synchronise()
        ms.append(1e3 * (time.perf_counter() - start))
    return summary(np.array(ms))


def measure_torch(
    place: dict[str, Any], networks: Any, full: Any, device: torch.device, quick: bool, clock: Clock
) -> Iterator[None]:
    """Fill `place`: graph and side -> batch -> form -> precision -> figures, the quickest to measure first; yields
    after each."""
    jobs = [
        (form, graph, side, batch, precision)
        for form in FORMS
        for batch in BATCHES[: 1 if quick else None]
        for graph, sides in SIDES.items()
        for side in sides[: 1 if quick else None]
        for precision in PRECISIONS
        if batch == 1 or form in ("eager", "cuda graph")
    ]
    bench = _Bench(networks, full, device, 3 if quick else 100)
    for form, graph, side, batch, precision in jobs:
        rows = place.setdefault(f"{graph} {side}", {}).setdefault(f"batch {batch}", {}).setdefault(form, {})
        if reason := left_out(form, graph, precision, device, quick, clock):
            rows[precision] = {"reason": reason}
            continue
        try:
            rows[precision] = bench.measure(form, graph, side, batch, precision)
        except Exception as error:  # one form that does not work here must not cost the others
            rows[precision] = {"reason": reason_of(error)}
        told = rows[precision].get("p50_ms", rows[precision].get("reason"))
        print(form, graph, side, batch, precision, told, flush=True)
        yield


def left_out(form: str, graph: str, precision: str, device: torch.device, quick: bool, clock: Clock) -> str | None:
    """Return why a form is not measured here, or None."""
    if clock.left() < (60 if form.startswith("compile") else 5):
        return "no time was left"
    if device.type == "cpu" and (form == "cuda graph" or "overhead" in form):
        return "no CUDA device"
    if device.type == "cpu" and precision != "fp32":
        return "measured on GPUs only"
    return "left out by --quick" if quick and form.startswith("compile") and graph == "reenact" else None


class _Bench:
    """The modules on the device, and what each gives in FP32 eager."""

    def __init__(self, networks: Any, full: Any, device: torch.device, runs: int) -> None:
        self.networks, self.full, self.device, self.runs = networks, full, device, runs
        self.modules: dict[tuple[str, int], torch.nn.Module] = {}
        self.expected: dict[tuple[str, int, int], torch.Tensor] = {}

    def module(self, graph: str, side: int) -> torch.nn.Module:
        """Return a graph's module, moved to the device the first time."""
        if (graph, side) not in self.modules:
            synthesis = self.networks.synthesis if side == 256 else self.full
            module = Synthesise(synthesis) if graph == "synthesis" else Reenact(self.networks, synthesis)
            self.modules[graph, side] = module.to(self.device).eval().requires_grad_(False)
        return self.modules[graph, side]

    def measure(self, form: str, graph: str, side: int, batch: int, precision: str) -> dict[str, Any]:
        """Return times, memory and the distance to FP32 eager of one form."""
        module, device = self.module(graph, side), self.device
        arrays = inputs_of(graph, batch, networks_on_cpu(self.networks), device)
        if (graph, side, batch) not in self.expected:
            with precision_of("fp32", device):
                self.expected[graph, side, batch] = module(*arrays).clone()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        with precision_of(precision, device):
            call = in_form(form, module, arrays)
            call()
            _synchronise()
            ready = time.perf_counter() - start
            figures = {"ready_s": round(ready, 2), **timed(call, self.runs)}
            figures |= against(call(), self.expected[graph, side, batch])
            if graph == "reenact" and form == "eager" and batch == 1:
                figures["host"] = timed(from_host(module, arrays, device), self.runs)
        if device.type == "cuda":
            figures["peak_vram_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        figures["per_second"] = round(1e3 * batch / figures["p50_ms"], 2)
        return figures


def networks_on_cpu(networks: Any) -> Any:
    """Return only the statistics of w, which the inputs are drawn from."""
    mapper = networks.mapper
    return types.SimpleNamespace(mapper=types.SimpleNamespace(w_mean=mapper.w_mean.cpu(), w_std=mapper.w_std.cpu()))


def from_host(module: torch.nn.Module, arrays: list[torch.Tensor], device: torch.device) -> Callable[[], np.ndarray]:
    """Return the live form of a call, crop up, picture down."""
    crop, *person = arrays[0].cpu(), *arrays[1:]
    if device.type == "cuda":
        crop = crop.pin_memory()
    return lambda: module(crop.to(device, non_blocking=True), *person).cpu().numpy()


def against(got: torch.Tensor, expected: torch.Tensor) -> dict[str, float | None]:
    """Return the difference in grey levels and the PSNR against FP32 eager."""
    apart = (got.int() - expected.int()).abs().double()
    squared = float(apart.square().mean())
    return {"max": float(apart.max()), "psnr_db": round(10 * float(np.log10(255**2 / squared)), 2) if squared else None}


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def reason_of(error: BaseException) -> str:
    """Return an exception as one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200].rstrip(": ")
