"""A real `fid-run serve` with the toy bundle in a process of its own, and a client that holds answers to the API's own
description."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fid.runtime.serve.app
import httpx
from openapi_schema_validator import OAS31Validator

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FIREFOX = next(filter(None, map(shutil.which, ("firefox", "firefox-esr"))), None)
OPENAPI = json.loads((fid.runtime.serve.app.WEB / "openapi.json").read_text())


def started(bundle: Path, *options: str) -> subprocess.Popen[str]:
    """A server on a free port, which says on its output where it is when it is there."""
    start = [sys.executable, "-c", "from fid.runtime.commands.cli import main; main()"]
    command = [*start, "serve", "--bundle", str(bundle), "--port", "0", "--json"]
    quiet = os.environ | {"PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        [*command, "--threads", "1", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=quiet
    )


def address_of(process: subprocess.Popen[str]) -> str:
    """Wait until a server is there."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate(timeout=60)[1]
    return json.loads(line)["address"]


@contextmanager
def running(bundle: Path, *options: str) -> Iterator[str]:
    """The address of a server on a free port; it is stopped as Ctrl-C would, and has to end cleanly."""
    process = started(bundle, *options)
    try:
        yield address_of(process)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == 130, said
    assert said.splitlines()[-1:] == ["fid-run: stopped."], said
    assert "Traceback" not in said, said


def check(answer: httpx.Response) -> httpx.Response:
    """The answer, if the API's description knows its status and its JSON body."""
    path = re.sub(r"^/api/live/.+", "/api/live/{session}", answer.request.url.path)
    known = OPENAPI["paths"].get(path, {}).get(answer.request.method.lower())
    if known is None:
        return answer
    described = known["responses"].get(str(answer.status_code))
    assert described is not None, f"{answer.request.method} {path} answered {answer.status_code}: {answer.text[:300]}"
    described = resolve(described)
    if "content" not in described:
        assert answer.content == b""
        return answer
    kind = answer.headers["content-type"].partition(";")[0]
    assert kind in described["content"], (path, answer.status_code, kind)
    schema = described["content"][kind].get("schema")
    if kind == "application/json":
        OAS31Validator({**resolve(schema), "components": OPENAPI["components"]}).validate(answer.json())
    return answer


def resolve(part: dict[str, Any]) -> dict[str, Any]:
    """Follow one reference inside the description."""
    found: Any = OPENAPI
    if "$ref" not in part:
        return part
    for step in part["$ref"].removeprefix("#/").split("/"):
        found = found[step]
    return found
