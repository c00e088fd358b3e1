"""ONNX Runtime on CUDA with bound buffers: the real IOBinding, on memory of a GPU that is not there."""

from __future__ import annotations

import numpy as np
import pytest
import toy
from fid.runtime.engines import cuda
from fid.runtime.engines import ort as session_onnxruntime
from fid.runtime.engines.open import open_session
from fid.runtime.engines.ort import OnnxRuntimeSession
from fid.runtime.engines.session import KEPT
from fid.runtime.errors import FidError
from stand_in_gpu import Cuda, Error


class Recorder:
    """Wraps a session: keeps the number of the recorded graph of every run, and which were released."""

    def __init__(self, session, settings):
        self.session, self.settings = session, settings
        self.numbers, self.released = [], []

    def __getattr__(self, name):
        return getattr(self.session, name)

    def run_with_iobinding(self, binding, options):
        try:
            self.numbers.append(options.get_run_config_entry("gpu_graph_id"))
        except Exception:  # there is none
            self.numbers.append(None)
        self.session.run_with_iobinding(binding)

    def get_providers(self):
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def release_captured_graph(self, number):
        self.released.append(number)


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """CUDA in host memory, and an ONNX Runtime that says it has it."""
    device = Cuda()
    device.opened = []
    device.refuses_graphs = False
    monkeypatch.setattr(cuda, "cudart", lambda: device)
    monkeypatch.setattr(cuda, "DRIVER", tmp_path / "none")
    monkeypatch.setattr(session_onnxruntime, "has_cuda", lambda: True)
    monkeypatch.setattr(session_onnxruntime, "DEVICE", "cpu")
    real = session_onnxruntime._open

    def opened(path, provider, threads, settings=None):
        if settings and device.refuses_graphs:
            raise FidError("This session cannot use the graph capture feature.")
        session = real(path, "CPUExecutionProvider", threads)
        if provider == "CPUExecutionProvider":
            return session
        device.opened.append(Recorder(session, settings))
        return device.opened[-1]

    monkeypatch.setattr(session_onnxruntime, "_open", opened)
    return device


@pytest.fixture
def crop(rng):
    return rng.integers(0, 256, (3, 256, 256, 3), np.uint8)


def test_pictures_equal_numpy_and_every_size_is_recorded_by_itself(gpu, toy_bundle, crop):
    session = open_session(toy_bundle / "reenact.onnx", engine="cuda")
    assert (session.provider, session.fallback) == ("onnxruntime CUDA", None)
    identity = toy.expected_identity(crop)
    expected = toy.expected_image(toy.expected_w(identity, toy.expected_attributes(crop)))
    for batch in (1, 3, 1, 2):
        found = session.run(crop=crop[:batch], **toy.plain(identity[:batch]))["image"]
        assert np.abs(found.astype(int) - expected[:batch]).max() <= 1
    (opened,) = gpu.opened
    assert opened.settings == {"enable_cuda_graph": "1"}
    assert opened.numbers == ["1", "2", "1", "3"]


def test_the_identity_code_crosses_once_and_buffers_stay(gpu, toy_bundle, crop):
    session = open_session(toy_bundle / "reenact.onnx", engine="cuda")
    identity = toy.expected_identity(crop)
    first = session.run(crop=crop[:1], **toy.plain(identity[:1]))["image"]
    blocks = len(gpu.blocks)
    gpu.sent.clear()
    second = session.run(crop=crop[1:2], **toy.plain(identity[:1]))["image"]
    assert gpu.sent == [crop[1:2].nbytes]
    assert len(gpu.blocks) == blocks
    assert not np.array_equal(first, second)


def test_memory_of_sizes_that_are_not_used_is_given_back(gpu, toy_bundle):
    session = OnnxRuntimeSession(toy_bundle / "mapper.onnx", "CUDA", 1)
    for batch in range(1, 8):
        session.run(identity=np.zeros((batch, 128), np.float32), attributes=np.zeros((batch, 512), np.float32))
    assert len(gpu.blocks) == KEPT * 3 * 2
    assert gpu.opened[0].released == [1, 2, 3]


def test_a_graph_that_cannot_be_recorded_runs_without(gpu, toy_bundle, crop):
    gpu.refuses_graphs = True
    session = open_session(toy_bundle / "identity.onnx", engine="cuda")
    np.testing.assert_allclose(session.run(crop=crop)["identity"], toy.expected_identity(crop), atol=1e-5)
    assert [(opened.settings, opened.numbers) for opened in gpu.opened] == [(None, [None])]


def test_without_nvidias_bindings_onnx_runtime_copies_for_itself(gpu, toy_bundle, crop, monkeypatch):
    gpu.broken = Error.cudaErrorInsufficientDriver
    session = open_session(toy_bundle / "identity.onnx", engine="cuda")
    np.testing.assert_allclose(session.run(crop=crop)["identity"], toy.expected_identity(crop), atol=1e-5)
    assert (gpu.opened[0].settings, gpu.opened[0].numbers, gpu.blocks) == (None, [], {})


class TestCuda:
    def test_facts(self, gpu, tmp_path, monkeypatch):
        assert cuda.gpu() == cuda.Gpu("Toy GPU", "8.9", "", "13.0")
        (tmp_path / "version").write_text(
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue Jun  6 22:20:39 UTC 2026\nGCC version: 13\n"
        )
        monkeypatch.setattr(cuda, "DRIVER", tmp_path / "version")
        assert cuda.gpu().driver == "535.54.03"

    @pytest.mark.parametrize(
        ("error", "sentence"),
        [
            (Error.cudaErrorInsufficientDriver, "there is no NVIDIA driver here, or it is older"),
            (Error.cudaErrorNoDevice, "no GPU that it can use"),
            (Error.cudaErrorMemoryAllocation, "not enough free memory"),
            (Error.cudaErrorStreamCaptureInvalidated, "CUDA reports cudaErrorStreamCaptureInvalidated"),
        ],
    )
    def test_errors_are_sentences(self, gpu, error, sentence):
        gpu.broken = error
        with pytest.raises(FidError, match=sentence):
            cuda.gpu()

    def test_memory_is_given_back(self, gpu):
        buffers = cuda.Buffers({"x": ((2, 3), "float32"), "y": ((1, 4), "uint8")}, cuda.Stream())
        assert len(gpu.blocks) == 4
        assert sorted(len(block) for block in gpu.blocks.values()) == [4, 4, 24, 24]
        del buffers
        assert gpu.blocks == {}

    def test_half_allocated_buffers_are_given_back(self, gpu):
        gpu.memory = 30
        with pytest.raises(FidError, match="not enough free memory"):
            cuda.Buffers({"x": ((2, 3), "float32")}, cuda.Stream())
        assert gpu.blocks == {}

    def test_what_is_sent_comes_back(self, gpu):
        buffers = cuda.Buffers({"x": ((2, 3), "float32")}, cuda.Stream())
        values = np.arange(6, dtype=np.float32).reshape(2, 3)
        buffers.send("x", values)
        buffers._host["x"][...] = 0  # only the GPU has them now
        np.testing.assert_array_equal(buffers.fetch(("x",))["x"], values)
