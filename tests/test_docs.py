"""Every command block of the README and docs/ is run, in order, page by page, on small inputs, or it says why not."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from documentation import PAGES, blocks, lines
from fid.runtime.assets import FACES
from fid.runtime.commands.bench import made_frames
from fid.runtime.media.images import read_image

from .runtime.media.test_video import write_clip

# What is not run, by the beginning of the line or a part of it, and why.
NOT_RUN = {
    r"^pip install": "the tests' environment has it, and .ci/run installs from nothing",
    r"pytest$": "these are the tests",
    r"--host 0\.0\.0\.0": "it would open the machine to its network; tests/runtime/serve has certificates and tokens",
    r"--vcam": "no virtual camera is there; tests/runtime/live has one that stands in",
    r"^fid-run webcam --identity ann1\.jpg(?: --identity bob\.jpg)?$": "no camera is there; others play a file",
    r"^fid-run webcam --list": "it ends with 1 where no camera is there; tests/runtime/media lists some",
    r"tensorrt-rtx": "it needs an RTX GPU; `pytest -m rtx` builds without one",
    r"openvino:gpu|ep:webgpu": "it needs the device; tests/runtime/engines has stand-ins",
    r"/api/videos/NAME": "it needs the name that the server gave; tests/runtime/serve/test_videos.py has one",
    r"--sign-cert": "it needs a certificate that another one signed; tests/runtime/test_read_labels.py makes both",
    r"http\.server": "it serves until it is stopped; tests/export/web opens such a site in a browser",
    r"benchmarks/(?:report|batch)\.py": "it takes up to 50 minutes; tests/test_benchmarks.py runs parts of reports",
    r"^fid-train (?:distill|--generator|--init)": "it takes hours; tests/trainer runs small ones to the end",
    r"runs/(?:live|mine|g256)": "it needs what hours of training leave; tests/trainer and tests/export have small ones",
    r"mine\.pt|\.pkl|ffhq/|paper/": "it needs a StyleGAN that cannot be shipped; tests/test_paper.py has a random one",
    r"^sbatch|JOB_COMPLETION_INDEX": "it needs Slurm or Kubernetes; tests/runtime/batch runs shards",
    r"serve --workers|^serve run|^docker": "it runs until it is stopped; tests of each start them",
    r"^torchrun": "it needs two machines; tests/trainer runs two processes of one",
    r"--ray|--triton|triton:|triton\+": "it needs a cluster or a server; tests/runtime have stand-ins of both",
    r"--fp16|bundle16|bundle/": "it takes minutes; tests/export/fp16 and tests/export/test_to_bundle.py do it",
}
# What is done on less: a part of the line, and what stands there instead.
SMALL = {
    r"--duration 10": "--duration 1",
    r"fid-run bench\b(?! --c)": "fid-run bench --camera clip.mp4",
    r"bench (.*)--seconds 10": r"bench \1--seconds 1",
    r"fid-run bench --camera clip\.mp4 --json": "fid-run bench --camera clip.mp4 --seconds 1 --json",
    r"(webcam .*--record out\.mp4)": r"\1 --camera clip.mp4 --headless --duration 1",
    r"--count 8": "--count 2",
    r" --identity eve\.jpg@2": "",  # the clip shows one person
    r"--who bob\.jpg": "--who ann1.jpg",
    r"--face 2 --driving": "--face 1 --driving",
    r"--workers 8": "--workers 2",
    r"--shard 3/16": "--shard 0/1",
    r"-n 8192": "-n 4",
    r"--pairs 64": "--pairs 2",
    r"--trim 2\.5:10": "--trim 0.5:10",
    r"(fid-train personalize .*)": r"\1 --steps 2",
}
EXIT_CODES = {r"^fid-run check picture\.jpg clip\.mp4": 1}  # the clip is not one of fid's


def why_not(line: str) -> str | None:
    """The reason why a line is not run, if there is one."""
    return next((reason for pattern, reason in NOT_RUN.items() if re.search(pattern, line)), None)


def test_no_reason_and_no_smaller_input_is_left_over() -> None:
    shown = [line for page in PAGES for line in lines(page)]
    assert [
        pattern for pattern in (*NOT_RUN, *SMALL, *EXIT_CODES) if not any(re.search(pattern, s) for s in shown)
    ] == []
    assert all(len(reason.split()) > 3 for reason in NOT_RUN.values())


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the pages name: photos, folders of photos, a clip."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "ann").mkdir()
    shutil.copy(FACES / "identity-ada.jpg", folder / "ann")
    for name, face in {"ann": "identity-ada", "ann1": "identity-ada", "ann2": "identity-ada"}.items():
        shutil.copy(FACES / f"{face}.jpg", folder / f"{name}.jpg")
    for name, face in {"bob": "attributes-laughing", "eve": "attributes-aside"}.items():
        shutil.copy(FACES / f"{face}.jpg", folder / f"{name}.jpg")
    shutil.copy(FACES / "identity-ada.jpg", folder / "ada.jpg")
    folders = {"people": ("ada", "dave"), "poses": ("shade", "speaking")}
    for place, faces in (folders | {"album": ("ben",), "archive": ("eve",), "photos": ("carl",)}).items():
        (folder / place).mkdir()
        for number, name in enumerate(faces):
            kind = "attributes" if place == "poses" else "identity"
            shutil.copy(FACES / f"{kind}-{name}.jpg", folder / place / f"{number}.jpg")
    pair = np.hstack([read_image(FACES / "identity-eve.jpg"), read_image(FACES / "identity-carl.jpg")[:, ::-1]])
    cv2.imwrite(str(folder / "party.jpg"), pair[..., ::-1])
    cv2.imwrite(str(folder / "landscape.jpg"), np.full((300, 400, 3), 90, np.uint8))
    frames = made_frames(read_image(FACES / "identity-ada.jpg"), 8)
    write_clip(folder / "clip.mp4", [22500 * number for number in range(8)], pictures=frames.__getitem__)
    (folder / "clips").mkdir()
    shutil.copy(folder / "clip.mp4", folder / "clips")
    for name in ("picture.jpg", "picture.png"):
        fid_run(folder, f"fid-run compose --refine 0 --identity ann.jpg --attributes bob.jpg -o {name}")
    return folder


def fid_run(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    """Run one line of a page in `folder`, as bash does."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "TQDM_DISABLE": "1"}
    return subprocess.run(["bash", "-ec", line], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def port() -> int:
    """A free TCP port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def servers() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Servers that a page starts; they are stopped in the end as Ctrl-C would."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for server in started:
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=30) == 130


def serve(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Start `fid-run serve` and wait until it answers."""
    server = subprocess.Popen([Path(sys.executable).parent / "fid-run", "serve", "--port", str(port)], cwd=folder)
    for _ in range(300):
        assert server.poll() is None, "fid-run serve ended"
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health").close()
            break
        except OSError:
            time.sleep(0.1)
    return server


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(lines(page))])
def test_a_page_runs(
    page: str, inputs: Path, tmp_path: Path, port: int, servers: list[subprocess.Popen[bytes]]
) -> None:
    folder = shutil.copytree(inputs, tmp_path / "page")
    for line in lines(page):
        if why_not(line):
            continue
        if line == "fid-run serve":
            servers.append(serve(folder, port))
            continue
        small = line.replace("127.0.0.1:8421", f"127.0.0.1:{port}")
        for pattern, instead in SMALL.items():
            small = re.sub(pattern, instead, small)
        done = fid_run(folder, small)
        expected = next((code for pattern, code in EXIT_CODES.items() if re.search(pattern, line)), 0)
        assert done.returncode == expected, f"{small}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        output = re.search(r"(?:-o|--output|--preview|--save-identity) (\S+)", small)
        assert output is None or (folder / output[1]).exists() or "--preview" in small, small


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_python_of_a_page_runs(page: str, inputs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(inputs, tmp_path / "page")
    for block in blocks(page, "python"):
        done = subprocess.run([sys.executable, "-c", block], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stderr}"
