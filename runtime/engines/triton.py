"""Sessions on a Triton Inference Server: this machine sends tensors, and a GPU elsewhere computes.

`--engine triton://HOST:PORT` speaks gRPC, `triton+http://HOST:PORT` HTTP. The server's models are those that
`fid-export --triton` wrote of the very same bundle: each carries the digest of its graph, which is compared.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FidError
from ..tensor import Tensor
from .session import check_inputs

SHA256_KEY = "fid_sha256"  # of a model's parameters
OPEN_S, RUN_S = 5.0, 20.0  # seconds for an answer, to a question about a model and to a request
TRIES = 2  # of a request, each with a connection of its own
MISSING = "Triton's client is not installed: `pip install 'fid-face[triton]'`."
DTYPES = {"UINT8": "uint8", "FP32": "float32", "TYPE_UINT8": "uint8", "TYPE_FP32": "float32"}
WIRE = {"uint8": "UINT8", "float32": "FP32"}


class TritonSession:
    """See `session.Session`. `address`: see `table.is_remote`. For one request at a time.

    Raises FidError in one sentence when the server does not answer, or does not hold this graph.
    """

    def __init__(self, path: Path | str, address: str) -> None:
        path = Path(path)
        self._http, self._host = address.startswith("triton+http"), address.partition("://")[2].rstrip("/")
        self._model, self._lock = model_name(path.stem), threading.Lock()
        self._module, self._client = _module(self._http), None
        config = self._asked(self._config)
        held = config.get("parameters", {}).get(SHA256_KEY, {}).get("string_value")
        if held != digest_of(path):
            raise FidError(
                f"the Triton server at {self._host} holds another {path.stem} than this bundle; write its repository "
                "again with fid-export --triton."
            )
        self._batch = int(config.get("max_batch_size", 0))
        self.inputs, self.outputs = (tuple(map(self._tensor, config[side])) for side in ("input", "output"))
        self.provider = f"triton {self._host}"
        self.fallback: str | None = None

    def _tensor(self, port: dict[str, Any]) -> Tensor:
        dims = tuple(int(side) for side in port["dims"])
        shape = ("batch", *dims) if self._batch else dims
        return Tensor(str(port["name"]), shape, DTYPES.get(str(port["data_type"]), str(port["data_type"])))

    def run(self, **arrays: NDArray) -> dict[str, NDArray]:
        """See `session.Session.run`. What is more than the server takes at once goes in several requests."""
        check_inputs(self.inputs, arrays)
        count = len(next(iter(arrays.values())))
        if not self._batch or count <= self._batch:
            return self._asked(self._infer, arrays)
        parts = [
            self._asked(self._infer, {name: array[start : start + self._batch] for name, array in arrays.items()})
            for start in range(0, count, self._batch)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _infer(self, client: Any, arrays: dict[str, NDArray]) -> dict[str, NDArray]:
        inputs = []
        for name, array in arrays.items():
            inputs.append(self._module.InferInput(name, list(array.shape), WIRE[array.dtype.name]))
            inputs[-1].set_data_from_numpy(np.ascontiguousarray(array))
        outputs = [self._module.InferRequestedOutput(tensor.name) for tensor in self.outputs]
        limit = {"timeout": round(RUN_S * 1e6)} if self._http else {"client_timeout": RUN_S}
        result = client.infer(self._model, inputs, outputs=outputs, **limit)
        return {tensor.name: np.array(result.as_numpy(tensor.name)) for tensor in self.outputs}

    def _config(self, client: Any) -> dict[str, Any]:
        """What the server says of the model, as JSON."""
        if self._http:
            return client.get_model_config(self._model)
        return client.get_model_config(self._model, as_json=True, client_timeout=OPEN_S)["config"]

    def _asked(self, ask: Any, *arguments: Any) -> Any:
        """What the server answers; asked again over a new connection when it did not answer."""
        with self._lock:
            for left in reversed(range(TRIES)):
                try:
                    self._client = self._client or self._connected()
                    return ask(self._client, *arguments)
                except Exception as error:  # of gRPC, of gevent, of sockets, of Triton
                    self._close()
                    if not _is_gone(error):
                        raise FidError(
                            f"the Triton server at {self._host} refused {self._model}: {_text(error)}."
                        ) from error
                    if not left:
                        raise FidError(
                            f"the Triton server at {self._host} does not answer ({_text(error)}); start it, or choose "
                            "another --engine."
                        ) from error
        raise AssertionError  # every try returns or raises

    def _connected(self) -> Any:
        if self._http:
            return self._module.InferenceServerClient(self._host, connection_timeout=OPEN_S, network_timeout=RUN_S)
        return self._module.InferenceServerClient(self._host)

    def _close(self) -> None:
        client, self._client = self._client, None
        with contextlib.suppress(Exception):  # it is gone already
            if client is not None:
                client.close()


def model_name(graph: str) -> str:
    """Return the name of a graph's model in a repository of Triton."""
    return f"fid_{graph.replace('-', '_')}"


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a graph and of the weights beside it, 64 hexadecimal digits."""
    path = path.resolve()
    weights = "".join(_sha256(str(file), file.stat().st_mtime_ns) for file in sorted(path.parent.glob("*.bin")))
    return hashlib.sha256(f"{_sha256(str(path), path.stat().st_mtime_ns)}{weights}".encode()).hexdigest()


@cache
def _sha256(path: str, changed_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _module(http: bool) -> Any:
    try:
        if http:
            import tritonclient.http as module
        else:
            import tritonclient.grpc as module
    except ImportError as error:
        raise FidError(MISSING) from error
    return module


def _is_gone(error: Exception) -> bool:
    """Whether nobody answered, rather than somebody with a refusal."""
    status = getattr(error, "status", lambda: None)()
    if status is None:
        return not hasattr(error, "message")  # Triton's own errors have one
    return any(word in str(status) for word in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "499"))


def _text(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:200]
