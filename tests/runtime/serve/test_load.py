"""A crowd at `fid-run serve`: silent connections beside working ones, and memory that stays. Not part of the default
run:

    pytest -n 0 -m slow -s tests/runtime/serve/test_load.py
"""

import asyncio
import collections
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from fid.runtime.assets import FACES
from serving import running

ADA, SHADE = (FACES / name for name in ("identity-ada.jpg", "attributes-shade.jpg"))
WORKING = 50

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def many_files() -> Iterator[None]:
    """This process holds thousands of connections."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, before[1]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Silent:
    """Connections that say nothing, or begin and do not go on; those that are closed are opened again."""

    def __init__(self, address: str, count: int) -> None:
        parts = urlsplit(address)
        self.host, self.port, self.count, self.opened = parts.hostname, parts.port, count, 0

    async def __aenter__(self) -> "Silent":
        self.tasks = [asyncio.create_task(self.hold(number)) for number in range(self.count)]
        await asyncio.sleep(1)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def hold(self, number: int) -> None:
        while True:
            try:
                own = f"127.0.0.{2 + number % 20}"
                reader, writer = await asyncio.open_connection(self.host, self.port, local_addr=(own, 0))
                self.opened += 1
                try:
                    if number % 3 == 0:
                        writer.write(b"GET / HTTP/1.1\r\nHost: 127")
                    await reader.read()
                finally:
                    writer.close()
            except OSError:
                pass
            await asyncio.sleep(5)


def requests(number: int) -> tuple[str, str, dict]:
    """Method, path and content of one of a mixed lot."""
    photo, aside = {"identity": ADA.read_bytes(), "attributes": SHADE.read_bytes()}, {"attributes": (None, "aside")}
    lot = (
        ("GET", "/", {}),
        ("GET", "/api/health", {}),
        ("GET", f"/faces/{ADA.name}", {}),
        ("POST", "/api/compose", {"files": {"identity": (None, "ben"), **aside}}),
        ("POST", "/api/compose", {"files": photo}),
        ("POST", "/api/identities", {"files": {"photo": ADA.read_bytes()}}),
        ("POST", "/api/attributes", {"files": {"photo": SHADE.read_bytes()}}),
        ("POST", "/api/compose", {"files": {"identity": b"no photo", **aside}}),
        ("POST", "/api/compose", {"files": {"identity": (None, "nobody"), **aside}}),
        ("POST", "/api/live", {"json": {"type": "offer", "sdp": "v=0"}}),
    )
    return lot[number % len(lot)]


async def work(address: str, count: int) -> collections.Counter[int]:
    """`count` mixed requests of `WORKING` clients at a time; their statuses."""
    statuses: collections.Counter[int] = collections.Counter()
    numbers = iter(range(count))

    async def client(place: int) -> None:
        transport = httpx.AsyncHTTPTransport(local_address=f"127.0.1.{1 + place}")
        async with httpx.AsyncClient(base_url=address, timeout=300, transport=transport) as one:
            for number in numbers:
                method, path, content = requests(number)
                statuses[(await one.request(method, path, **content)).status_code] += 1

    await asyncio.gather(*map(client, range(WORKING)))
    return statuses


def resident_mb(process: int = os.getpid()) -> float:
    """Of all processes that a process has started, and those that they have: the server and its decoders."""
    found = 0.0
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            status = Path(f"/proc/{child}/status").read_text()
            found += int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024 + resident_mb(child)
    return found


def test_2000_silent_connections_keep_nobody_out(toy_bundle: Path) -> None:
    async def crowd(address: str) -> tuple[collections.Counter[int], int]:
        async with Silent(address, 2000) as silent:
            return await work(address, 500), silent.opened

    with running(toy_bundle, "--queue", str(WORKING), "--sessions", str(WORKING)) as address:
        statuses, opened = asyncio.run(crowd(address))
    print(f"\n{opened} silent connections were opened; answers: {dict(statuses)}")
    assert opened >= 2000
    assert set(statuses) == {200, 400, 415, 422}
    assert statuses[200] == 350


def test_memory_stays_with_1000_mixed_requests_beside_300_idle_connections(toy_bundle: Path) -> None:
    async def crowd(address: str) -> tuple[collections.Counter[int], float, float]:
        async with Silent(address, 300):
            await work(address, 300)  # all is loaded, and every thread has had its turn
            before = resident_mb()
            statuses = await work(address, 1000)
            return statuses, before, resident_mb()

    with running(toy_bundle, "--queue", str(WORKING), "--sessions", str(WORKING)) as address:
        statuses, before, after = asyncio.run(crowd(address))
    print(f"\nresident {before:.1f} MB, then {after:.1f} MB; answers: {dict(statuses)}")
    assert 503 not in statuses
    assert sum(statuses.values()) == 1000
    assert statuses[200] == 700
    assert after < 1.03 * before
