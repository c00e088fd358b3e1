"""Fixtures for all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import stand_in_gpu
import toy

if "PYTEST_XDIST_WORKER" in os.environ:  # pytest runs two processes: threads of PyTorch's would only be in the way
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # for the tests that import onnxruntime themselves
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as for anything that a shell starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # some tests press Ctrl-C


@pytest.fixture(autouse=True)
def _no_tensorrt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `auto` chooses depends on what is installed and was measured: tests see TensorRT only where they bring or
    name it, and nothing measured."""
    from fid.runtime.engines import open as session

    monkeypatch.setattr(session, "remembered", lambda graph: "onnxruntime")
    monkeypatch.setattr(session, "has_bf16", lambda: False)
    real = session.installed
    if not {"gpu", "rtx"} & {mark.name for mark in request.node.iter_markers()}:
        monkeypatch.setattr(session, "installed", lambda engine: engine == "cuda" and real(engine))


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the toy bundle. Shared by all tests: copy it before changing it."""
    return toy.write_bundle(tmp_path_factory.mktemp("toy") / "bundle").folder


@pytest.fixture(scope="session")
def fetched() -> Callable[[str], Path]:
    """`fetched(name)` is the folder with the verified files of a third-party model, downloaded the first time."""
    from fid.runtime.weights import catalogue as models

    return lambda name: models.ensure(name, progress=False)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, and no offline folder."""
    monkeypatch.setenv("FID_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FID_MODELS", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> Iterator[Callable[..., stand_in_gpu.TensorRT]]:
    """`stand_in(library, **gpu)` puts a GPU and a TensorRT that are not there into this process and an empty cache."""
    from fid.runtime.engines.tensorrt import build as build_tensorrt

    yield lambda library=stand_in_gpu.LIBRARIES[2], **gpu: stand_in_gpu.install(monkeypatch, tmp_path, library, **gpu)
    build_tensorrt.library.cache_clear()
