"""The table of engines and devices, and sessions on devices that are not here: by stand-ins, and by a real plug-in."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from fid.runtime.engines import devices, machine, open, table
from fid.runtime.engines.compare import compare
from fid.runtime.engines.devices import DeviceSession
from fid.runtime.engines.open import open_session, satisfies
from fid.runtime.errors import FidError


class FakeSession:
    """A session of ONNX Runtime that says something else about its provider than what computes: the CPU."""

    def __init__(self, real: Any, providers: list[str], nodes: dict[str, int], wrong: float) -> None:
        self._real, self._providers, self._nodes, self._wrong = real, providers, nodes, wrong
        self.batches: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def get_providers(self) -> list[str]:
        return self._providers

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [SimpleNamespace(ep_name=n, get_nodes=lambda c=c: [None] * c) for n, c in self._nodes.items()]

    def run(self, names: list[str], arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.batches.append(len(next(iter(arrays.values()))))
        return [np.asarray(one) + np.float32(self._wrong) for one in self._real.run(names, arrays)]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[FakeSession]]:
    """`build(provider)`: ONNX Runtime as if it were a build with that provider."""

    def pretend(provider: str, nodes: int = 3, live: str | None = None, wrong: float = 0.0) -> list[FakeSession]:
        made: list[FakeSession] = []
        real = onnxruntime.InferenceSession

        def session(path: str, options: Any, providers: Any = None) -> FakeSession:
            found = [live or provider, "CPUExecutionProvider"]
            made.append(
                FakeSession(real(path, options, providers=["CPUExecutionProvider"]), found, {provider: nodes}, wrong)
            )
            return made[-1]

        fake = SimpleNamespace(
            **{name: getattr(onnxruntime, name) for name in ("SessionOptions", "set_default_logger_severity")},
            __version__=onnxruntime.__version__,
            InferenceSession=session,
            get_available_providers=lambda: [provider, "CPUExecutionProvider"],
        )
        monkeypatch.setattr(devices, "ort", fake)
        return made

    return pretend


@pytest.fixture
def macos(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")


def codes(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"identity": 128, "attributes": 512}
    return {name: rng.standard_normal((count, size)).astype(np.float32) for name, size in shapes.items()}


def test_every_engine_has_one_row_and_a_command_to_install_it() -> None:
    names = [row.name for row in table.TABLE]
    assert len(set(names)) == len(names)
    assert ("auto", *names) == table.ENGINES
    assert set(open.GPU_ENGINES) | set(machine.CPU_ENGINES) | set(table.DEVICE_ENGINES) == set(names)
    for row in table.TABLE:
        assert row.install.startswith("pip install ")
        assert row.devices
        assert row.precisions
    assert [row.name for row in table.TABLE if row.name in table.DEVICE_ENGINES and row.on_hardware] == []


@pytest.mark.parametrize("engine", table.DEVICE_ENGINES)
def test_a_provider_is_what_its_engine_asks_for(engine: str) -> None:
    row = table.engine_row(engine)
    name = f"ep {row.title.removesuffix(' plug-in')}" if engine.startswith("ep:") else row.title.split()[-1]
    provider = f"openvino {name} f16" if engine.startswith("openvino:") else f"onnxruntime {name}"
    assert satisfies(f"{provider} (Maker of Chips 770)", engine)
    assert not satisfies("onnxruntime CPU", engine)


def test_coreml_runs_one_by_one_and_says_what_runs(
    build: Callable[..., list[FakeSession]], macos: None, toy_bundle: Path
) -> None:
    made = build("CoreMLExecutionProvider")
    session = open_session(toy_bundle / "mapper.onnx", engine="coreml", require="coreml")
    assert session.provider == "onnxruntime CoreML"
    assert session.fallback is None
    arrays = codes(3)
    expected = open_session(toy_bundle / "mapper.onnx", engine="onnxruntime").run(**arrays)["w"]
    assert np.abs(session.run(**arrays)["w"] - expected).max() < 1e-6
    assert made[0].batches == [1, 1, 1]  # shapes are static there
    assert session.inputs[0].shape[0] == "batch"


def test_a_build_that_falls_back_in_silence_is_found_out(
    build: Callable[..., list[FakeSession]], macos: None, toy_bundle: Path
) -> None:
    build("CoreMLExecutionProvider", live="CPUExecutionProvider")
    session = open_session(toy_bundle / "mapper.onnx", engine="coreml")
    assert session.provider == "onnxruntime CPU"
    assert session.fallback is not None
    assert session.fallback.startswith(
        "ONNX Runtime CoreML did not start; ONNX Runtime would compute on CPU; onnxruntime"
    )
    with pytest.raises(FidError, match=r"coreml is required and onnxruntime CPU is what runs"):
        open_session(toy_bundle / "mapper.onnx", engine="coreml", require="coreml")


def test_a_provider_that_takes_no_node_is_found_out(
    build: Callable[..., list[FakeSession]], macos: None, toy_bundle: Path
) -> None:
    build("CoreMLExecutionProvider", nodes=0)
    with pytest.raises(FidError, match="takes no part of this graph"):
        DeviceSession(toy_bundle / "mapper.onnx", "coreml", 1)


def test_what_is_not_installed_or_of_another_system_is_said_with_a_command(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for engine, said in (("coreml", "exists for darwin only"), ("directml", "exists for win32 only")):
        with pytest.raises(FidError, match=said):
            open_session(toy_bundle / "mapper.onnx", engine=engine)
    monkeypatch.setattr(table, "find_spec", lambda name: None)
    with pytest.raises(
        FidError, match="TensorRT-RTX plug-in is not installed: `pip install onnxruntime-ep-nv-tensorrt"
    ):
        open_session(toy_bundle / "mapper.onnx", engine="ep:tensorrt-rtx")


@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed here")
def test_a_device_that_openvino_does_not_see_costs_one_sentence(toy_bundle: Path, empty_cache: Path) -> None:
    session = open_session(toy_bundle / "mapper.onnx", engine="openvino:npu")
    if "NPU" in session.provider:
        pytest.skip("there is an NPU here")
    assert session.fallback is not None
    assert session.fallback.startswith("OpenVINO sees no NPU here; it sees ")
    assert session.fallback.endswith("onnxruntime CPU runs in its place.")


class Plugin:
    """A plug-in and its devices, in the place of an installed one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, devices_here: int, problem: str = "") -> None:
        device = SimpleNamespace(vendor="Maker", metadata={"Description": "Chip 770"}, type=SimpleNamespace(name="GPU"))
        found = [SimpleNamespace(ep_name="WebGpuExecutionProvider", device=device)] * devices_here

        def register(name: str, library: str) -> None:
            if problem:
                raise RuntimeError(f"Failed to load library {library} with error: {problem}")

        module = SimpleNamespace(get_library_path=lambda: "/nowhere.so", get_ep_name=lambda: "WebGpuExecutionProvider")
        monkeypatch.setattr(devices, "has_module", lambda engine: True)
        monkeypatch.setattr(devices.importlib, "import_module", lambda name: module)
        monkeypatch.setattr(devices.ort, "register_execution_provider_library", register, raising=False)
        monkeypatch.setattr(devices.ort, "get_ep_devices", lambda: found, raising=False)
        devices._register.cache_clear()


def test_a_plug_in_without_a_device_costs_one_sentence(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Plugin(monkeypatch, 0)
    session = open_session(toy_bundle / "mapper.onnx", engine="ep:webgpu")
    assert session.fallback == (
        "the WebGPU plug-in is installed and offers no device here; onnxruntime CPU runs in its place."
    )


def test_a_plug_in_that_does_not_load_costs_one_sentence(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Plugin(monkeypatch, 1, "libcuda.so.1: cannot open shared object file")
    session = open_session(toy_bundle / "mapper.onnx", engine="ep:webgpu")
    assert session.fallback is not None
    assert session.fallback.startswith(
        "the WebGPU plug-in does not load: libcuda.so.1: cannot open shared object file;"
    )


@pytest.mark.skipif(find_spec("onnxruntime_ep_webgpu") is None, reason="the WebGPU plug-in is not installed here")
def test_a_real_plug_in_is_registered_in_a_process_of_its_own(toy_bundle: Path) -> None:
    """It offers a device or none; either is said, and the process ends well."""
    code = (
        "import sys, json; from fid.runtime.engines.open import open_session;"
        "s = open_session(sys.argv[1], engine='ep:webgpu'); print(json.dumps([s.provider, s.fallback]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(toy_bundle / "mapper.onnx")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    provider, fallback = json.loads(done.stdout.splitlines()[-1])
    assert provider.startswith("onnxruntime ep WebGPU (") if fallback is None else "offers no device" in fallback


# ---- what auto takes


def measured(engine: str, ms: float, cosine: float, provider: str) -> dict[str, Any]:
    stages = {name: {"p50": ms} for name in ("attributes", "mapper", "synthesis")}
    return {"engine": engine, "stage_ms": stages, "identity_cosine": cosine, "provider": provider}


def test_a_faster_device_is_taken_only_when_it_composes_the_same_person() -> None:
    slow = measured("onnxruntime", 50, 1.0, "onnxruntime CPU")
    fast = measured("openvino:gpu", 5, 0.999, "openvino GPU f16 (Chip 770)")
    assert set(machine.faster([slow, fast]).values()) == {"openvino:gpu"}
    for cosine in (0.9, float("nan")):  # another person; a picture of numbers that are none
        assert set(machine.faster([slow, {**fast, "identity_cosine": cosine}]).values()) == {"onnxruntime"}


def test_a_device_that_computes_something_else_does_not_pass_the_comparison(
    build: Callable[..., list[FakeSession]], macos: None, toy_bundle: Path
) -> None:
    graph = toy_bundle / "mapper.onnx"
    build("CoreMLExecutionProvider")
    assert compare(DeviceSession(graph, "coreml", 1), graph)[1] is None
    build("CoreMLExecutionProvider", wrong=0.5)
    fault = compare(DeviceSession(graph, "coreml", 1), graph)[1]
    assert fault is not None
    assert "w has a cosine of" in fault


@pytest.fixture
def remembering(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    """`auto` with what was measured, which other tests do without, and no NVIDIA engine."""
    monkeypatch.setattr(open, "remembered", machine.remembered)
    monkeypatch.setattr(open, "installed", lambda engine: False)
    machine._remembered.cache_clear()


def test_auto_takes_the_measured_device_and_no_other_one(
    build: Callable[..., list[FakeSession]], remembering: None, macos: None, toy_bundle: Path
) -> None:
    build("CoreMLExecutionProvider")
    graph = toy_bundle / "mapper.onnx"
    assert open_session(graph).provider == "onnxruntime CPU"
    machine.remember({"mapper": "coreml"}, {"coreml": "onnxruntime CoreML"})
    assert open_session(graph).provider == "onnxruntime CoreML"
    machine.remember({"mapper": "coreml"}, {"coreml": "onnxruntime CoreML (of another machine)"})
    session = open_session(graph)
    assert session.provider == "onnxruntime CPU"
    assert session.fallback is not None
    assert "onnxruntime CoreML has not been measured yet: run fid-run bench" in session.fallback


def test_another_version_is_measured_anew(remembering: None, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.remember({"mapper": "ep:webgpu"}, {"ep:webgpu": "onnxruntime ep WebGPU (Chip 770)"})
    assert machine.remembered("mapper") == "ep:webgpu"
    real = machine.installed_version
    monkeypatch.setattr(machine, "installed_version", lambda p: "9.9" if p == "onnxruntime-ep-webgpu" else real(p))
    machine._remembered.cache_clear()
    assert machine.remembered("mapper") == "onnxruntime"


@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed here")
def test_the_table_names_the_devices_that_the_package_knows() -> None:
    """OpenVINO's own plug-ins, and the providers that ONNX Runtime lists by name, are those of the table."""
    import openvino

    libraries = {path.name for path in (Path(openvino.__file__).parent / "libs").glob("libopenvino_*_plugin.*")}
    for device in ("gpu", "npu"):
        assert any(f"_{device}_" in name for name in libraries), libraries
    known = set(onnxruntime.get_all_providers())
    assert {row.provider for row in table.TABLE if row.provider} - known <= {"NvTensorRTRTXExecutionProvider"}


def test_the_page_on_engines_is_the_table() -> None:
    page = (Path(__file__).parents[3] / "docs" / "engines.md").read_text()
    names = {"linux": "Linux", "win32": "Windows", "darwin": "macOS"}
    for row in table.TABLE:
        systems = ", ".join(names[one] for one in row.platforms) or "all"
        cells = (
            f"`{row.name}`",
            row.devices,
            row.precisions,
            "one by one" if row.static else "any",
            systems,
            f"`{row.install}`",
            "yes" if row.on_hardware else "no",
        )
        assert f"| {' | '.join(cells)} |" in page, cells
