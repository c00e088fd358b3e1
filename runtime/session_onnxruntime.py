"""Sessions on ONNX Runtime: CPU everywhere, CUDA with the onnxruntime-gpu build."""

from __future__ import annotations

import contextlib
import io
import os
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .bundle import Tensor
from .errors import FidError
from .session import check_inputs

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # since 1.31 its import starts reporting to its maker
import onnxruntime as ort

DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}


class OnnxRuntimeSession:
    """See `session.Session`. `device`: "CPU", "CUDA", or "auto" for CUDA where it works. `half`: the graph for CUDA,
    where that is another one."""

    def __init__(self, path: Path | str, device: str, threads: int, half: Path | str | None = None) -> None:
        ort.set_default_logger_severity(4)  # failures come as exceptions; the log would reach the user's terminal
        compiled_in = "CUDAExecutionProvider" in ort.get_available_providers()  # which says nothing about a GPU
        if device == "CUDA" and not compiled_in:
            raise FidError(
                "this build of ONNX Runtime has no CUDA: "
                "`pip uninstall onnxruntime`, then `pip install 'onnxruntime-gpu[cuda,cudnn]'`."
            )
        self.fallback: str | None = None
        session: ort.InferenceSession | None = None
        if device != "CPU" and compiled_in:
            try:
                session = _open(half or path, "CUDAExecutionProvider", threads)
            except FidError as error:
                if device == "CUDA":
                    self.fallback = f"CUDA was asked for and does not work here: {error}"
        self._session = session or _open(path, "CPUExecutionProvider", threads)
        live = self._session.get_providers()[0].removesuffix("ExecutionProvider")
        self.provider = f"onnxruntime {live}"
        self.inputs = tuple(map(_tensor, self._session.get_inputs()))
        self.outputs = tuple(map(_tensor, self._session.get_outputs()))
        self._names = [tensor.name for tensor in self.outputs]

    def run(self, **arrays: NDArray) -> dict[str, NDArray]:
        """See `session.Session.run`."""
        check_inputs(self.inputs, arrays)
        return dict(zip(self._names, map(np.asarray, self._session.run(self._names, arrays)), strict=True))


def _open(path: Path | str, provider: str, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle sessions leave the cores alone
    problem = _load_cuda() if provider == "CUDAExecutionProvider" else ""
    try:
        session = ort.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # the bindings raise a dozen unrelated types
        raise FidError(f"ONNX Runtime cannot open {Path(path).name}: {_first_line(error)}.") from error
    if session.get_providers()[0] != provider:  # it falls back without an exception
        reason = f": {problem}" if problem else "; is there an NVIDIA driver?"
        raise FidError(f"ONNX Runtime did not start {provider.removesuffix('ExecutionProvider')}{reason}.")
    return session


@cache
def _load_cuda() -> str:
    """Load the CUDA libraries of NVIDIA's wheels, once; "" or the first problem."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):  # it prints what it does not find
        ort.preload_dlls()
    return next((line.strip().rstrip(".") for line in printed.getvalue().splitlines() if "Failed" in line), "")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:300]


def _tensor(port: ort.NodeArg) -> Tensor:
    shape = tuple(size if isinstance(size, int) else str(size) for size in port.shape)
    return Tensor(port.name, shape, DTYPES.get(str(port.type), str(port.type)))
