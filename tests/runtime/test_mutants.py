"""3,000 broken files of each kind: one sentence each, no traceback, no wait, no 500. Not part of the default run:

    pytest -n 0 -m slow tests/runtime/test_mutants.py

A failure names the number of the mutant, which makes it again.
"""

import asyncio
import collections
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from fid.runtime.assets import FACES
from fid.runtime.composer import Composer
from fid.runtime.errors import FidError
from fid.runtime.identity import Identity
from fid.runtime.serve.app import Server
from fid.runtime.serve.guard import Access
from fid.runtime.weights.bundle import Bundle
from mutants import json_mutant, mutant, within

COUNT = int(os.environ.get("FID_MUTANTS", "3000"))
LONGEST_S = 20.0

pytestmark = pytest.mark.slow


def outcomes(load: Callable[[int], object]) -> collections.Counter[str]:
    """What came of each mutant: "read", or the sentence's first words."""
    found: collections.Counter[str] = collections.Counter()
    for number in range(COUNT):
        with within(LONGEST_S, lambda number=number: f"mutant {number}"):
            try:
                load(number)
                found["read"] += 1
            except FidError as error:
                one_sentence = str(error).endswith(".") and "\n" not in str(error)
                found["refused" if one_sentence else f"mutant {number}: {error}"] += 1
            except Exception as error:
                raise AssertionError(f"mutant {number} ends in {error!r}") from error
    assert found.keys() <= {"read", "refused"}, found
    assert found["refused"] > COUNT / 3, found
    return found


def test_fid_files(toy_bundle: Path, tmp_path: Path, empty_cache: Path) -> None:
    good = Bundle.load(toy_bundle).pack(tmp_path / "good.fid").read_bytes()

    def load(number: int) -> None:
        shutil.rmtree(empty_cache / "bundles", ignore_errors=True)
        (tmp_path / "mutant.fid").write_bytes(mutant(good, number))
        Bundle.load(tmp_path / "mutant.fid")

    assert outcomes(load).total() == COUNT


def test_bundle_json(toy_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(toy_bundle, tmp_path / "bundle")
    content = (folder / "bundle.json").read_bytes()
    record = json.loads(content)

    def load(number: int) -> None:
        changed = json_mutant(record, number) if number % 3 else mutant(content, number)
        (folder / "bundle.json").write_bytes(changed)
        Bundle.load(folder)

    assert outcomes(load).total() == COUNT


@pytest.fixture(scope="module")
def composer(toy_bundle: Path, fetched: Callable[[str], Path]) -> Composer:
    fetched("yunet")
    return Composer(toy_bundle, engine="onnxruntime", threads=1)


def test_identity_files(composer: Composer) -> None:
    good = composer.identify(FACES / "identity-ada.jpg").to_bytes()
    found = outcomes(lambda number: composer.identify(Identity.from_bytes(mutant(good, number), "the file")))
    assert found.total() == COUNT


def test_identity_files_and_codes_that_are_uploaded(composer: Composer) -> None:
    server = Server(composer, Access("127.0.0.1"))
    identity = composer.identify(FACES / "identity-ada.jpg").to_bytes()
    statuses: collections.Counter[int] = collections.Counter()

    async def ask() -> None:
        transport = httpx.ASGITransport(server.app(), raise_app_exceptions=False)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://127.0.0.1:8421", timeout=LONGEST_S
        ) as client:
            code = (await client.post("/api/attributes", files={"photo": (None, "shade")})).content
            for number in range(COUNT):
                own = {"identity": mutant(identity, number), "attributes": code}
                if number % 2:
                    own = {"identity": identity, "attributes": mutant(code, number)}
                answer = await client.post("/api/compose", files={name: ("f", data) for name, data in own.items()})
                statuses[answer.status_code] += 1
                assert answer.status_code in (200, 400, 413, 415, 422), (number, answer.text)
                assert "content-security-policy" in answer.headers, number

    asyncio.run(ask())
    server.faces.close()
    server.worker.close()
    assert statuses[200] < COUNT / 2
