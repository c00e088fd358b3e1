import hashlib
import io
import json
import os
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import stand_in_gpu
from fid.runtime import assets
from fid.runtime.commands import doctor
from fid.runtime.engines import ort as session_onnxruntime
from fid.runtime.engines.open import open_session
from fid.runtime.errors import FidError
from fid.runtime.weights import catalogue as models
from rich.console import Console


@pytest.fixture
def toy_models(tmp_path, monkeypatch, empty_cache):
    """One small model that FID_MODELS holds and one that is nowhere."""
    content = b"weights" * 100
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "here.onnx").write_bytes(content)

    def entry(name):
        file = models.File(f"{name}.onnx", len(content), hashlib.sha256(content).hexdigest(), "inside")
        return models.Model(name, "", "tests", "", "toy", "1", "toy-1.whl", 5_000_000, "0" * 64, (file,))

    monkeypatch.setattr(models, "catalogue", lambda: {"here": entry("here"), "gone": entry("gone")})
    monkeypatch.setenv("FID_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def shipped(monkeypatch, toy_bundle, tmp_path):
    """The toy bundle in the place of the shipped one."""
    folder = shutil.copytree(toy_bundle, tmp_path / "shipped")
    monkeypatch.setattr(assets, "BUNDLE", folder)
    return folder


@pytest.fixture
def no_builders(monkeypatch):
    """Without the subprocesses that look for TensorRT and for other devices."""
    monkeypatch.setattr(doctor, "_device", lambda name, *_: doctor.Check(name, "missing", "not installed"))
    monkeypatch.setattr(doctor, "_builder", lambda name, *_: doctor.Check(name, "missing", "not installed"))


def states(report, part):
    return {check["name"]: check["state"] for check in report[part]}


def text(report, everything=True):
    console = Console(file=io.StringIO(), width=200)
    doctor.render(report, everything, console)
    return console.file.getvalue()


def test_a_machine_where_all_is_well(toy_models, shipped, empty_cache):
    (toy_models / "gone.onnx").write_bytes((toy_models / "here.onnx").read_bytes())
    report = doctor.examine()
    assert json.loads(json.dumps(report)) == report
    assert report["ok"]
    assert states(report, "engines")["onnxruntime"] == "works"
    assert states(report, "models") == {"here": "works", "gone": "works"}
    assert states(report, "bundle") == {"shipped bundle": "works"}
    assert report["cache"]["folder"] == str(empty_cache)
    assert report["python"]["executable"] == sys.executable
    assert report["packages"]["onnxruntime"]
    assert not empty_cache.joinpath("models").exists()  # nothing was fetched
    printed = text(report)
    assert "Pictures can be composed here." in printed
    assert "ran a trial graph and a shipped one on onnxruntime CPU" in printed
    assert str(toy_models) in printed
    short = text(report, everything=False)
    assert "Pictures can be composed here." in short
    assert "works: onnxruntime, " in short
    wrong = [check for part in ("engines", "models", "bundle", "extras") for check in report[part]]
    assert len(short.splitlines()) == 3 + sum((c["state"] == "broken") * (1 + bool(c["fix"])) for c in wrong)


@pytest.mark.usefixtures("no_builders")
class TestWhatIsWrong:
    def test_a_missing_model_is_no_fault_and_has_its_line(self, toy_models, shipped):
        report = doctor.examine()
        assert report["ok"]
        assert states(report, "models") == {"here": "works", "gone": "missing"}
        assert "fid-run models fetch gone" in report["fixes"]
        assert "fid-run models fetch gone" in text(report)

    def test_a_damaged_model(self, toy_models, shipped):
        (toy_models / "here.onnx").write_bytes(b"WEIGHTS" * 100)
        report = doctor.examine()
        assert states(report, "models")["here"] == "broken"
        assert report["fixes"][0] == "fid-run models fetch here"
        short = text(report, everything=False)
        assert "broken here: " in short
        assert "  fid-run models fetch here" in short
        assert "gone" not in short  # missing, and nothing is wrong with that

    def test_a_damaged_bundle(self, toy_models, shipped):
        (shipped / "weights.bin").write_bytes(b"")
        report = doctor.examine()
        assert states(report, "bundle") == {"shipped bundle": "broken"}
        assert not report["ok"]
        assert "Pictures cannot be composed here yet" in text(report)

    def test_a_bundle_that_is_whole_and_does_not_run(self, toy_models, shipped, monkeypatch):
        def without_weights(path, **options):
            if path.parent == shipped:
                raise FidError("ONNX Runtime cannot open mapper.onnx: weights.bin is a link.")
            return open_session(path, **options)

        monkeypatch.setattr(doctor, "open_session", without_weights)
        report = doctor.examine()
        assert states(report, "bundle") == {"shipped bundle": "broken"}
        assert states(report, "engines")["onnxruntime"] == "broken"
        assert not report["ok"]
        assert "its graphs do not run: ONNX Runtime cannot open" in text(report, everything=False)

    def test_a_missing_extra_has_one_pip_line(self, toy_models, shipped, monkeypatch):
        real = doctor.installed_version
        absent = {"openvino", "torch", "onnxscript"}
        monkeypatch.setattr(doctor, "installed_version", lambda package: None if package in absent else real(package))
        report = doctor.examine()
        assert states(report, "extras")["openvino"] == "missing"
        assert states(report, "extras")["train"] == "missing"
        assert states(report, "engines")["openvino"] == "missing"
        for extra in ("openvino", "train"):
            assert report["fixes"].count(f"pip install 'fid-face[{extra}]'") == 1
            assert f"pip install 'fid-face[{extra}]'" in text(report)

    def test_a_broken_engine_is_not_believed(self, toy_models, shipped, monkeypatch):
        def fail(*_):
            raise FidError("ONNX Runtime cannot open trial.onnx: no.")

        monkeypatch.setattr(session_onnxruntime, "_open", fail)
        report = doctor.examine()
        assert states(report, "engines")["onnxruntime"] == "broken"
        assert not report["ok"]

    def test_a_wrong_result_is_noticed(self, toy_models, shipped, monkeypatch):
        run = session_onnxruntime.OnnxRuntimeSession.run
        monkeypatch.setattr(
            session_onnxruntime.OnnxRuntimeSession,
            "run",
            lambda self, **a: {k: v + 1 for k, v in run(self, **a).items()},
        )
        report = doctor.examine()
        assert [c["detail"] for c in report["engines"] if c["name"] == "onnxruntime"] == [
            "onnxruntime CPU computes a wrong result"
        ]

    @pytest.mark.parametrize("gpu", [None, "NVIDIA H100, 580.1"])
    def test_gpu_packages_are_suggested_where_there_is_one(self, toy_models, shipped, monkeypatch, gpu):
        import onnxruntime

        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
        monkeypatch.setattr(doctor, "_gpu", lambda: gpu)
        report = doctor.examine()
        assert any("onnxruntime-gpu" in fix for fix in report["fixes"]) == (gpu is not None)
        assert states(report, "engines")["onnxruntime CUDA"] == "missing"

    def test_providers_that_are_only_compiled_in(self, toy_models, shipped, monkeypatch):
        # the GPU build of ONNX Runtime without a GPU lists all three, and opens a CPU session without a word
        import onnxruntime

        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this build has CUDA")
        names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
        real = onnxruntime.InferenceSession
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
        monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
        monkeypatch.setattr(
            onnxruntime, "InferenceSession", lambda path, options, providers: real(path, options, names[-1:])
        )
        report = doctor.examine()
        found = states(report, "engines")
        assert (found["onnxruntime CUDA"], found["onnxruntime TensorRT"]) == ("broken", "broken")
        assert report["ok"]


class TestBuilders:
    """`_builder` against a package that stands in for TensorRT, which cannot be installed from PyPI alone."""

    @pytest.fixture
    def check(self, tmp_path, monkeypatch):
        """Examine a stand-in; `extra` is run when it is imported."""

        def examine(extra="", engine="tensorrt", library="tensorrt 11.4.0.106"):
            trial = tmp_path / "trial"
            trial.mkdir()
            x, y = doctor._trial_graph(trial / "trial.onnx")
            (tmp_path / f"{engine.replace('-', '_')}.py").write_text(
                "import sys, stand_in_gpu\n"
                "from fid.runtime.engines import cuda\n"
                "device = stand_in_gpu.Cuda()\n"
                f"trt = stand_in_gpu.TensorRT({library!r}, device)\n"
                "cuda.cudart = lambda: device\n"
                "trt.__spec__ = __spec__\n"
                "sys.modules[__name__] = trt\n" + extra
            )
            tests = str(Path(stand_in_gpu.__file__).parent)
            monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), tests]))
            found = doctor._builder(engine, trial / "trial.onnx", x, y, "", "")
            assert "\n" not in found.detail
            return found

        return examine

    @pytest.mark.parametrize(
        ("engine", "library"), [("tensorrt", "tensorrt 10.13.3.9"), ("tensorrt-rtx", "tensorrt-rtx 1.7.1.116")]
    )
    def test_works(self, check, engine, library):
        found = check("", engine, library)
        assert (found.state, found.detail) == (
            "works",
            f"{library.split()[1]} built and ran a trial graph on {engine} CUDA fp32",
        )

    def test_no_driver(self, check):
        found = check("device.broken = stand_in_gpu.Error.cudaErrorInsufficientDriver")
        assert found.state == "broken"
        assert found.detail.startswith(
            "11.4.0.106 builds engines; tensorrt does not work here: there is no NVIDIA driv"
        )

    def test_no_build(self, check):
        assert "cannot build trial.onnx: no tactic fits" in check("trt.behave['fails'] = True").detail

    def test_a_plan_that_does_not_load(self, check):
        found = check("trt.behave['loads'] = False")
        assert found.state == "broken"
        assert "cannot load the engine of trial" in found.detail

    def test_a_wrong_result(self, check):
        assert "is refused: y has a cosine of" in check("trt.behave['noise'] = -9").detail

    @pytest.mark.parametrize(
        ("extra", "said"),
        [
            ("raise ImportError('libnvonnxparser.so.11: cannot open shared object file')", "libnvonnxparser"),
            ("import os; os._exit(139)", "exit code 139"),
        ],
    )
    def test_broken(self, check, extra, said):
        found = check(extra)
        assert found.state == "broken"
        assert said in found.detail

    def test_missing(self, tmp_path):
        if find_spec("tensorrt") is not None:
            pytest.skip("TensorRT is installed")
        x, y = doctor._trial_graph(tmp_path / "trial.onnx")
        found = doctor._builder("tensorrt", tmp_path / "trial.onnx", x, y, "not installed", "pip install it")
        assert (found.state, found.detail, found.fix) == ("missing", "not installed", "pip install it")


def test_the_real_catalogue_and_extras_are_reported(monkeypatch, empty_cache, no_builders):
    report = doctor.examine()
    assert list(states(report, "models")) == list(models.catalogue())
    assert {"train", "openvino", "dev"} <= states(report, "extras").keys()
    assert all(re.fullmatch(r"(pip|fid-run) .+", fix) for fix in report["fixes"])
