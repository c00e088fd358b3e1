"""A small server that speaks the V2 inference protocol over gRPC and HTTP, in the place of Triton.

It reads a model repository as Triton would: config.pbtxt by the real protobuf, graphs by ONNX Runtime, an ensemble step
by step as its scheduling says. It batches nothing and knows nothing of versions.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

TYPES = {"UINT8": np.uint8, "FP32": np.float32}


class Repository:
    """The models of a folder."""

    def __init__(self, folder: Path) -> None:
        self.configs: dict[str, Any] = {}
        self.sessions: dict[str, onnxruntime.InferenceSession] = {}
        self.calls: list[tuple[str, int]] = []  # model, batch
        for path in sorted(folder.glob("*/config.pbtxt")):
            config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
            assert config.name == path.parent.name
            assert (path.parent / "1").is_dir()
            self.configs[config.name] = config
            if config.platform != "ensemble":
                graph = path.parent / "1" / config.default_model_filename
                self.sessions[config.name] = onnxruntime.InferenceSession(
                    str(graph), providers=["CPUExecutionProvider"]
                )

    def infer(self, name: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What a model makes of its inputs; ValueError where they do not fit its config."""
        config = self.configs[name]
        self.calls.append((name, len(next(iter(arrays.values())))))
        for port in config.input:
            shape = list(arrays[port.name].shape)
            if config.max_batch_size and shape[0] > config.max_batch_size:
                raise ValueError(f"batch of {shape[0]}, the most is {config.max_batch_size}")
            if shape[bool(config.max_batch_size) :] != list(port.dims):
                raise ValueError(f"{port.name} has shape {shape}")
        if config.platform != "ensemble":
            outputs = [port.name for port in config.output]
            return dict(zip(outputs, self.sessions[name].run(outputs, arrays), strict=True))
        known = dict(arrays)
        for step in config.ensemble_scheduling.step:
            made = self.infer(step.model_name, {own: known[value] for own, value in step.input_map.items()})
            known |= {value: made[own] for own, value in step.output_map.items()}
        return {port.name: known[port.name] for port in config.output}


class Grpc(service_pb2_grpc.GRPCInferenceServiceServicer):
    """The protocol over gRPC."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def ModelConfig(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        if request.name not in self._repository.configs:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        return service_pb2.ModelConfigResponse(config=self._repository.configs[request.name])

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        arrays = {
            port.name: np.frombuffer(raw, TYPES[port.datatype]).reshape(port.shape)
            for port, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        try:
            made = self._repository.infer(request.model_name, arrays)
        except ValueError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        answer = service_pb2.ModelInferResponse(model_name=request.model_name)
        for name, array in made.items():
            answer.outputs.add(name=name, datatype=datatype(array), shape=array.shape)
            answer.raw_output_contents.append(np.ascontiguousarray(array).tobytes())
        return answer


def handler(repository: Repository) -> type[BaseHTTPRequestHandler]:
    """The protocol over HTTP, with its extension for binary tensors."""

    class Http(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            name = self.path.split("/")[3]
            if name not in repository.configs:
                return self._say(400, json.dumps({"error": f"unknown model: '{name}' is not found"}).encode())
            config = json_format.MessageToDict(repository.configs[name], preserving_proto_field_name=True)
            return self._say(200, json.dumps(config).encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            split = int(self.headers["Inference-Header-Content-Length"])
            head, raw = json.loads(body[:split]), body[split:]
            arrays, at = {}, 0
            for port in head["inputs"]:
                size = port["parameters"]["binary_data_size"]
                arrays[port["name"]] = np.frombuffer(raw[at : at + size], TYPES[port["datatype"]]).reshape(
                    port["shape"]
                )
                at += size
            name = self.path.split("/")[3]
            try:
                made = repository.infer(name, arrays)
            except ValueError as error:
                return self._say(400, json.dumps({"error": str(error)}).encode())
            outputs = [
                {"name": key, "datatype": datatype(array), "shape": list(array.shape),
                 "parameters": {"binary_data_size": array.nbytes}}
                for key, array in made.items()
            ]  # fmt: skip
            head = json.dumps({"model_name": name, "outputs": outputs}).encode()
            raw = b"".join(np.ascontiguousarray(array).tobytes() for array in made.values())
            return self._say(200, head + raw, {"Inference-Header-Content-Length": str(len(head))})

        def _say(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in {**(headers or {}), "content-length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    return Http


def datatype(array: np.ndarray) -> str:
    return next(name for name, kind in TYPES.items() if array.dtype == kind)


@contextmanager
def over_grpc(repository: Repository, port: int = 0) -> Iterator[str]:
    """HOST:PORT of a server."""
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", -1)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Grpc(repository), server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


@contextmanager
def over_http(repository: Repository) -> Iterator[str]:
    """HOST:PORT of a server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(repository))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
