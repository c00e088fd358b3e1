"""What works on this machine: every engine is really tried, every model and the shipped bundle really hashed."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..assets import installed_version
from ..engines.devices import offered
from ..engines.machine import physical_cores
from ..engines.open import open_session, satisfies
from ..engines.table import DEVICE_ENGINES, engine_row, fits_platform
from ..errors import FidError
from ..terminal import make_console
from ..weights import catalogue
from ..weights.bundle import Bundle
from ..weights.cache import cache_folder

if TYPE_CHECKING:
    from rich.console import Console


DISTRIBUTION = "fid-face"
TRY_BUILDER = "fid.runtime.engines.try_builder"

GPU_BUILD = f"pip install '{DISTRIBUTION}[gpu]' && pip install --force-reinstall --no-deps onnxruntime-gpu"

PACKAGES = (
    "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "opencv-python-headless", "opencv-python", "openvino",
    "tensorrt", "tensorrt-rtx", "cuda-bindings", "torch",
)  # fmt: skip
"""Packages whose versions explain most differences between two machines."""


@dataclass(frozen=True)
class Check:
    """One thing that was tried."""

    name: str
    state: str  # "works", "missing" (not installed, and nothing is wrong with that) or "broken"
    detail: str  # one line: what runs, or what is wrong
    fix: str = ""  # a command, "" where there is nothing to fix or no one command does it
    needed: bool = False  # composing a picture needs it


def examine() -> dict[str, Any]:
    """Try everything and return the report, ready for `json.dump`. Downloads nothing; takes a few seconds.

    `ok`: whether a picture can be composed. `engines`, `models`, `bundle`, `extras`: lists of `Check` as
    dictionaries. `fixes`: the commands among them, each once, those of what is broken first. Besides: `fid` (its
    version), `python`, `platform`, `cpu`, `gpu`, `packages`, `cache`.
    """
    gpu = _gpu()
    parts = {
        "engines": list(_engines(gpu is not None)),
        "models": [_model(name) for name in catalogue.catalogue()],
        "bundle": [_bundle()],
        "extras": list(_extras()),
    }
    checks = [check for part in parts.values() for check in part]
    ordered = [c.fix for state in ("broken", "missing") for c in checks if c.state == state and c.fix]
    return {
        "ok": all(check.state == "works" for check in checks if check.needed),
        "fid": installed_version(DISTRIBUTION) or "not installed",
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "platform": platform.platform(),
        "cpu": {"cores": physical_cores(), "machine": platform.machine()},
        "gpu": gpu or "no NVIDIA GPU found",
        "packages": {name: version for name in PACKAGES if (version := installed_version(name)) is not None},
        "cache": _cache(),
        **{name: [asdict(check) for check in part] for name, part in parts.items()},
        "fixes": list(dict.fromkeys(ordered)),
    }


def render(report: dict[str, Any], everything: bool = False, console: Console | None = None) -> None:
    """Print a report of `examine` as text: what works in one line, and what is wrong with its mend; with `everything`
    all that was tried. `console` is stdout when not given."""
    console = console or make_console(markup=True)
    (_render_all if everything else _render_short)(report, console)
    verdict = "Pictures can be composed here." if report["ok"] else "Pictures cannot be composed here yet: see above."
    console.print(verdict)


def _render_short(report: dict[str, Any], console: Console) -> None:
    from rich.markup import escape

    checks = [check for part in ("engines", "models", "bundle", "extras") for check in report[part]]
    engines = [check["name"] for check in report["engines"] if check["state"] == "works"]
    machine = f"Python {report['python']['version']}, {report['cpu']['cores']} cores, {report['gpu']}"
    console.print(escape(f"fid {report['fid']}, {machine}"))
    console.print(f"works: {', '.join(engines) or 'no engine'} (fid-run doctor --all shows all that was tried)")
    for check in checks:
        if check["state"] == "broken" or (check["state"] == "missing" and check["needed"]):
            console.print(f"[red]{check['state']}[/] {escape(check['name'])}: {escape(check['detail'])}")
            if check["fix"]:
                console.print(escape(f"  {check['fix']}"))


def _render_all(report: dict[str, Any], console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    python, cache = report["python"], report["cache"]
    packages = ", ".join(f"{name} {version}" for name, version in report["packages"].items())
    facts = Table.grid(padding=(0, 2))
    for name, value in {
        "fid": report["fid"],
        "python": f"{python['version']} ({python['executable']})",
        "platform": report["platform"],
        "cpu": f"{report['cpu']['cores']} cores, {report['cpu']['machine']}",
        "gpu": report["gpu"],
        "packages": packages,
        "cache": f"{cache['folder']} ({cache['used_mb']} MB used, {cache['free_mb']} MB free)",
        **({"FID_MODELS": cache["offline_folder"]} if cache["offline_folder"] else {}),
    }.items():
        facts.add_row(name, escape(str(value)))
    console.print(facts)
    colours = {"works": "green", "missing": "yellow", "broken": "red"}
    for part in ("engines", "models", "bundle", "extras"):
        table = Table.grid(padding=(0, 2))
        for check in report[part]:
            state = f"[{colours[check['state']]}]{check['state']}[/]"
            table.add_row(" ", escape(check["name"]), state, escape(check["detail"]))
        console.print(f"\n[bold]{part}[/]")
        console.print(table)
    if report["fixes"]:
        console.print("\n[bold]to get what is missing[/]")
        for fix in report["fixes"]:
            console.print(f"  {fix}", markup=False)
    console.print()


def _gpu() -> str | None:
    """Name and driver of the NVIDIA GPUs, None without any."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return "; ".join(done.stdout.strip().splitlines()) or None if done.returncode == 0 else None


def _cache() -> dict[str, Any]:
    folder = cache_folder()
    existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    used = {}  # by inode: prepared graphs link to fetched files
    for root, _, names in os.walk(folder):
        for name in names:
            found = os.lstat(os.path.join(root, name))
            used[found.st_ino] = found.st_size
    return {
        "folder": str(folder),
        "used_mb": round(sum(used.values()) / 1e6, 1),
        "free_mb": round(shutil.disk_usage(existing).free / 1e6),
        "offline_folder": os.environ.get("FID_MODELS"),
    }


def _model(name: str) -> Check:
    found = catalogue.verify(name)
    state = {"present": "works", "missing": "missing", "damaged": "broken"}[found.state]
    detail = f"{found.detail} For {catalogue.model(name).used_for}."
    return Check(name, state, detail, "" if state == "works" else f"fid-run models fetch {name}")


def _bundle() -> Check:
    reinstall = f"pip install --force-reinstall {DISTRIBUTION}"
    try:
        bundle = Bundle.load()
        bundle.verify()
    except FidError as error:
        return Check("shipped bundle", "broken", str(error), reinstall, needed=True)
    try:
        _run_once(bundle, "onnxruntime")
    except Exception as error:  # whatever an engine throws is what the report is for
        return Check(
            "shipped bundle", "broken", f"its graphs do not run: {error}".splitlines()[0], reinstall, needed=True
        )
    size = sum((bundle.folder / name).stat().st_size for name, _ in bundle.files())
    detail = f"{bundle.name} {bundle.version}, {bundle.resolution} px, {size / 1e6:.1f} MB, SHA-256 as listed."
    return Check("shipped bundle", "works", detail, needed=True)


def _run_once(bundle: Bundle, engine: str) -> None:
    """Open a graph that ships, with its weights in the file beside it, and run it. Raises whatever the engine does."""
    session = open_session(bundle.graph_path("mapper"), engine=engine)
    shapes = {tensor.name: [1 if isinstance(side, str) else side for side in tensor.shape] for tensor in session.inputs}
    found = session.run(**{name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    if not np.isfinite(found["w"]).all():
        raise FidError(f"{session.provider} computes a wrong result with the shipped graphs.")


def _extras() -> Iterator[Check]:
    """One check per extra of the installed distribution: are the packages of it here?"""
    wanted: dict[str, list[str]] = {}
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        requirements = []
    for requirement in requirements:
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", requirement)
        package = re.match(r"[\w.-]+", requirement)
        if extra and package and package[0] != DISTRIBUTION:
            wanted.setdefault(extra[1], []).append(package[0])
    for extra, packages in wanted.items():
        absent = [package for package in packages if installed_version(package) is None]
        if absent:
            fix = f"pip install '{DISTRIBUTION}[{extra}]'"
            yield Check(extra, "missing", f"not installed: {', '.join(absent)}", fix)
        else:
            yield Check(extra, "works", f"installed: {', '.join(packages)}")


def _trial_graph(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write a small graph, y = relu(x @ weight); return an x float32 [1, 8] and the right y."""
    from onnx import TensorProto, helper, numpy_helper

    weight = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["sum"]), helper.make_node("Relu", ["sum"], ["y"])],
        "trial",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    x = np.arange(8, dtype=np.float32)[None] / 8
    return x, np.maximum(x @ weight, 0)


def _engines(gpu: bool) -> Iterator[Check]:
    """One check per engine. What needs a GPU is suggested only where there is one."""
    try:
        shipped = Bundle.load()
    except FidError:  # the check of the bundle says so
        shipped = None
    no_gpu = "" if gpu else "; needs an NVIDIA GPU"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trial.onnx"
        x, y = _trial_graph(path)

        def attempt(name: str, engine: str, want: str, install: str, needed: bool = False) -> Check:
            try:
                session = open_session(path, engine=engine)
                found = session.run(x=x)["y"]
                if shipped is not None:
                    _run_once(shipped, engine)
            except FidError as error:
                return Check(name, "broken", str(error), "", needed)
            except Exception as error:  # whatever an engine throws is what the report is for
                return Check(name, "broken", f"{type(error).__name__}: {error}".splitlines()[0], "", needed)
            if not satisfies(session.provider, want):
                return Check(name, "broken", session.fallback or f"runs on {session.provider}", install, needed)
            if not np.allclose(found, y, atol=0.02):
                return Check(name, "broken", f"{session.provider} computes a wrong result", "", needed)
            return Check(name, "works", f"ran a trial graph and a shipped one on {session.provider}", "", needed)

        yield attempt("onnxruntime", "onnxruntime", "onnxruntime-cpu", "", needed=True)
        import onnxruntime

        providers = onnxruntime.get_available_providers()  # what was compiled in; whether it works is tried
        if "CUDAExecutionProvider" in providers:
            yield attempt("onnxruntime CUDA", "cuda", "cuda", "")
        else:
            yield Check(
                "onnxruntime CUDA", "missing", f"this build of onnxruntime is for the CPU{no_gpu}", GPU_BUILD * gpu
            )
        if "TensorrtExecutionProvider" in providers:
            yield _tensorrt_provider(path, x, y)
        else:
            yield Check(
                "onnxruntime TensorRT", "missing", f"this build of onnxruntime is for the CPU{no_gpu}", GPU_BUILD * gpu
            )
        if installed_version("openvino") is None:
            yield Check("openvino", "missing", "not installed", f"pip install '{DISTRIBUTION}[openvino]'")
        else:
            yield attempt("openvino", "openvino", "openvino", "")
            bf16 = attempt("openvino bf16", "openvino-bf16", "openvino-bf16", "")
            slow_cpu = bf16.state == "broken" and "does not have it" in bf16.detail
            yield Check(bf16.name, "missing", "this CPU has no bfloat16 arithmetic") if slow_cpu else bf16
        yield _builder(
            "tensorrt", path, x, y, f"not installed{no_gpu}", f"pip install '{DISTRIBUTION}[tensorrt]'" * gpu
        )
        yield _builder(
            "tensorrt-rtx", path, x, y, f"not installed{no_gpu}", f"pip install '{DISTRIBUTION}[tensorrt-rtx]'" * gpu
        )
        yield from (_device(name, path, x, y) for name in DEVICE_ENGINES if fits_platform(name))


def _device(name: str, path: Path, x: np.ndarray, y: np.ndarray) -> Check:
    """An engine of the table for another device than CPU and NVIDIA GPU, tried in a process of its own."""
    row = engine_row(name)
    if not offered(name):
        return Check(name, "missing", f"{row.title} is not installed; for {row.devices}")
    record, said = _tried(name, path, x)
    reason = (record.get("fallback") or record.get("problem") or said).partition("; onnxruntime")[0].rstrip(".")
    if "y" not in record or not satisfies(record["provider"], name):
        nothing = "offers no device" in reason or "sees no" in reason
        return Check(name, "missing" if nothing else "broken", reason)
    if not np.allclose(record["y"], y, atol=0.02):
        return Check(name, "broken", f"{record['provider']} computes a wrong result")
    return Check(name, "works", f"ran a trial graph on {record['provider']}")


def _tried(engine: str, path: Path, x: np.ndarray) -> tuple[dict[str, Any], str]:
    """What `try_builder` tells of an engine, {} when it ended without; and what it said last."""
    call = [sys.executable, "-m", TRY_BUILDER, engine, str(path), json.dumps(x.tolist())]
    environment = os.environ | {"FID_CACHE": str(path.parent / engine.replace(":", "-"))}
    try:
        done = subprocess.run(call, capture_output=True, text=True, timeout=120, env=environment)
    except subprocess.TimeoutExpired:
        return {}, "did not run a trial graph within two minutes"
    lines = [line for line in (*done.stdout.splitlines(), *done.stderr.splitlines()) if line.strip()]
    record = next((json.loads(line) for line in lines if line.startswith("{")), {})
    return record, next(reversed(lines), f"exit code {done.returncode}")[:200]


def _tensorrt_provider(path: Path, x: np.ndarray, y: np.ndarray) -> Check:
    """ONNX Runtime's TensorRT provider, tried on its own."""
    import onnxruntime

    name = "onnxruntime TensorRT"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    onnxruntime.set_default_logger_severity(4)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["TensorrtExecutionProvider"])
        found = np.asarray(session.run(["y"], {"x": x})[0])
    except Exception as error:  # the bindings raise a dozen unrelated types
        return Check(name, "broken", f"{type(error).__name__}: {error}".splitlines()[0])
    if session.get_providers()[0] != "TensorrtExecutionProvider":
        return Check(name, "broken", "TensorRT's libraries or a GPU are missing; it fell back to the CPU.")
    if not np.allclose(found, y, atol=0.02):
        return Check(name, "broken", "computes a wrong result")
    return Check(name, "works", "ran a trial graph")


def _builder(engine: str, path: Path, x: np.ndarray, y: np.ndarray, missing: str, install: str) -> Check:
    """Let TensorRT or TensorRT-RTX build, load and run the trial graph, in a process of its own. What it builds goes
    with the trial graph."""
    record, said = _tried(engine, path, x)
    if not record:
        return Check(engine, "broken", said)
    problem, version = record.get("problem", ""), record.get("version", "")
    if "is not installed" in problem and not version:
        return Check(engine, "missing", missing, install)
    if not record.get("built"):
        return Check(engine, "broken", problem)
    if "y" not in record or not satisfies(record["provider"], engine):
        return Check(engine, "broken", f"{version} builds engines; {record.get('fallback') or problem}")
    if not np.allclose(record["y"], y, atol=0.02):
        return Check(engine, "broken", f"{version} computes a wrong result")
    return Check(engine, "works", f"{version} built and ran a trial graph on {record['provider']}")
