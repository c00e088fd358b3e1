"""The application of Ray Serve on a real Ray on this machine: the same answers, and no request lost beyond a retry."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from fid.runtime.assets import FACES
from fid.runtime.commands.server import serve
from fid.runtime.errors import FidError, InputError
from fid.runtime.serve.picture import Labelling
from fid.runtime.serve.ray_app import Options, build, parse_options
from serving import check

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own, of Pydantic
SHADE = FACES / "attributes-shade.jpg"


def test_options_are_read_from_text() -> None:
    assert parse_options({"threads": "2", "gpus": "0.5", "token": "a" * 16}) == Options(
        threads=2, gpus=0.5, token="a" * 16
    )
    assert parse_options({"max_replicas": 7, "bundle": "x"}) == Options(max_replicas=7, bundle="x")
    with pytest.raises(InputError, match="there is no option replicas; known are bundle"):
        parse_options({"replicas": 1})
    whole = "a whole number"
    wrong = [
        ("threads", "many", whole),
        ("refine", "x", whole),
        ("mark", "?", "true or false"),
        ("gpus", "a", "a number"),
    ]
    for name, value, wanted in wrong:
        with pytest.raises(InputError, match=f"{name}={re.escape(value)} is not understood; give {wanted}"):
            parse_options({name: value})


def test_what_fid_run_serve_has_is_there_by_the_same_name_and_default() -> None:
    """But for the port, which is Ray's, and what replicas are in the place of."""
    elsewhere = {"host", "port", "certificate", "key", "workers", "as_json", "names", "threads", "token"}
    own = {field.name: field.default for field in fields(Options)}
    chosen = serve.make_context("serve", []).params
    assert {name: own[name] for name in chosen.keys() - elsewhere} == {n: chosen[n] for n in chosen.keys() - elsewhere}


def test_labels_and_limits_are_those_that_were_chosen(tmp_path: Path) -> None:
    options = parse_options(
        {"mark": "false", "provenance": "false", "badge": "true", "upload_mb": "3", "token": "none"}
    )
    assert options.label() == Labelling(False, False, True, None)
    assert (options.limits().upload_mb, options.limits().video_mb) == (3.0, 0.0), "no videos without a shared folder"
    assert replace(options, videos=str(tmp_path)).limits().video_mb == 100.0
    with pytest.raises(InputError, match="belong together"):
        build({"token": "none", "sign_cert": "own.pem"})


def test_without_ray_serve_or_a_token_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="token=none for a server on loopback only"):
        build({})
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(FidError, match=r"pip install 'fid-face\[ray,web\]'"):
        build({})


@pytest.fixture
def base(toy_bundle: Path, fetched: Callable[[str], Path]) -> Iterator[str]:
    fetched("yunet")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray import serve

    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False,
             logging_level="error")  # fmt: skip
    serve.start(http_options={"port": 8431})
    application = build({"bundle": str(toy_bundle), "token": "none", "min_replicas": "2", "max_replicas": "2"})
    serve.run(application)
    yield "http://127.0.0.1:8431/"
    serve.shutdown()
    ray.shutdown()


@pytest.mark.slow
def test_200_requests_while_a_replica_is_killed(base: str) -> None:
    files = {"identity": (None, "ada"), "attributes": SHADE.read_bytes()}
    expected = check(httpx.post(f"{base}api/compose", files=files, timeout=60))
    assert expected.status_code == 200
    assert httpx.get(f"{base}openapi.json").json()["openapi"].startswith("3.")
    assert check(httpx.get(f"{base}api/health")).json()["status"] == "ok"
    assert re.search(r'fid_requests_total{.*replica="\w+"', httpx.get(f"{base}metrics").text)
    retried = []

    def ask(number: int) -> bytes:
        if number == 60:
            replicas = [p for p in psutil.process_iter() if is_replica(p)]
            replicas[0].kill()
        for attempt in range(6):
            try:
                answer = httpx.post(f"{base}api/compose", files=files, timeout=120)
            except httpx.TransportError as error:
                retried.append((number, attempt, repr(error)))
                continue
            if answer.status_code == 200:
                return answer.content
            retried.append((number, attempt, answer.status_code))
        raise AssertionError(retried)

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(ask, range(200)))
    assert answers == [expected.content] * 200
    assert max((attempt for _, attempt, _ in retried), default=0) == 0, retried


def is_replica(process: Any) -> bool:
    try:
        return " ".join(process.cmdline()).startswith("ray::ServeReplica:default:fid")  # and what it does just now
    except psutil.Error:
        return False
