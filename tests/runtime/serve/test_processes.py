"""`fid-run serve --workers`: several processes on one port are one server, and one that dies is there again."""

import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
from fid.runtime.assets import FACES
from fid.runtime.media.images import read_image
from fid.runtime.serve.listen import Peers
from fid.runtime.serve.metrics import Metrics, merged
from serving import address_of, check, running, started

from ..media.test_video import write_clip

SHADE = FACES / "attributes-shade.jpg"


@pytest.fixture(autouse=True)
def detector(fetched: Callable[[str], Path]) -> None:
    fetched("yunet")


def compose(base: str) -> httpx.Response:
    files = {"identity": (None, "ada"), "attributes": SHADE.read_bytes()}
    return check(httpx.post(f"{base}api/compose", files=files, timeout=60))


def counts(base: str) -> dict[str, float]:
    """Requests to compose that each process has answered, by its number."""
    text = check(httpx.get(f"{base}metrics", timeout=60)).text
    found = re.findall(r'fid_requests_total{(.*route="/api/compose".*)} ([\d.]+)', text)
    return {re.search(r'worker="(\d)"', labels)[1]: float(value) for labels, value in found}  # type: ignore[index]


def workers_of(server: psutil.Process) -> list[psutil.Process]:
    """The processes that answer; one that died and was not waited for yet has no command line and is none."""
    workers = []
    for child in server.children():
        with suppress(psutil.NoSuchProcess):  # ZombieProcess is one of these
            if "spawn_main" in " ".join(child.cmdline()):
                workers.append(child)
    return workers


def test_two_processes_answer_as_one_and_one_that_is_killed_comes_back(toy_bundle: Path, tmp_path: Path) -> None:
    with running(toy_bundle, "--workers", "2") as base:
        first = compose(base).content
        for _ in range(20):  # connections, which the system gives to either
            assert compose(base).content == first
        assert sum(counts(base).values()) == 21
        (server,) = (one for one in psutil.Process().children() if "--workers" in one.cmdline())
        workers = workers_of(server)
        assert len(workers) == 2
        workers[0].kill()
        lost = 0
        for _ in range(20):
            try:
                assert compose(base).status_code == 200
            except httpx.TransportError:  # it was being answered when the process died
                lost += 1
                assert compose(base).status_code == 200
        assert lost <= 1
        end = time.monotonic() + 60
        while len(workers_of(server)) < 2:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert check(httpx.delete(f"{base}api/live/1.nobody")).status_code == 204
        clip = write_clip(tmp_path / "clip.mp4", [0, 22500, 45000], pictures=lambda number: read_image(SHADE))
        told = httpx.post(f"{base}api/videos", content=clip.read_bytes(), timeout=60).json()
        own = f"{base}api/videos/{told['video']}"
        told = httpx.post(own, json={"identity": "ada"}, timeout=60).json()
        while told["state"] == "running":  # each time a connection, which the system gives to either
            time.sleep(0.1)
            told = httpx.get(own, timeout=60).json()
        assert (told["state"], told["frames"]) == ("done", 3)
        assert httpx.get(f"{own}/result", timeout=60).content[4:8] == b"ftyp"


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_one_that_started_it(toy_bundle: Path, sent: signal.Signals) -> None:
    process = started(toy_bundle, "--workers", "2")
    try:
        address_of(process)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(sent)
        _, said = process.communicate(timeout=60)
        assert process.returncode == -sent, said
        _, left = psutil.wait_procs(family, timeout=60)
        assert not left
        assert "Traceback" not in said
    finally:
        process.kill()


def test_what_cannot_open_is_one_sentence(tmp_path: Path) -> None:
    process = started(tmp_path / "nothing", "--workers", "2")
    said = process.communicate(timeout=60)[1]
    assert process.returncode in (1, 2)
    assert re.fullmatch(r"fid-run: [^\n]*nothing[^\n]*\n", said), said


def test_a_session_names_its_process() -> None:
    peers = Peers(1, 3, Path())
    assert peers.own("abc") == "1.abc"
    assert [peers.owner(name) for name in ("0.abc", "2.x", "7.x", "abc", "-1.x", ".")] == [0, 2, 1, 1, 1, 1]


def test_metrics_of_several_keep_their_numbers_apart() -> None:
    several = [Metrics(lambda n=n: n, lambda: 0, {"version": "1"}) for n in (1, 2)]
    for number, one in enumerate(several):
        one.requests.labels("GET", "/", "200").inc(number + 5)
        one.seconds.labels("/").observe(0.1)
    text = merged([(str(number), one.text()) for number, one in enumerate(several)]).decode()
    assert 'fid_requests_total{method="GET",route="/",status="200",worker="0"} 5.0' in text
    assert 'fid_requests_total{method="GET",route="/",status="200",worker="1"} 6.0' in text
    assert 'fid_live_sessions{worker="1"} 2.0' in text
    assert text.count("# TYPE fid_requests_total counter") + text.count("# TYPE fid_requests counter") == 1
    assert text.count("# TYPE fid_request_seconds histogram") == 1
    assert 'fid_request_seconds_bucket{le="+Inf",route="/",worker="0"} 1.0' in text
