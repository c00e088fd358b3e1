"""Connections over real sockets: silent ones make room, slow ones end, and whoever is being answered stays."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from fid.runtime.serve.connections import Connections, Patience, allow_files, protocol
from fid.runtime.serve.guard import HEADERS
from fid.runtime.serve.listen import listen

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
Opening = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Answers:
    """An application that answers when it is told to, with as many bytes as it is told."""

    def __init__(self, size: int = 2) -> None:
        self.size, self.go = size, asyncio.Event()
        self.go.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.go.wait()
        headers = [(b"content-length", str(self.size).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": bytes(self.size)})


def during(patience: Patience, work: Callable[[Opening, Connections, Answers], Awaitable[None]], size: int = 2) -> None:
    """Run `work` while a server listens under these limits."""

    async def main() -> None:
        connections, answers = Connections(patience), Answers(size)
        http: Any = protocol(connections)
        config = uvicorn.Config(
            answers, http=http, log_config=None, lifespan="off", timeout_keep_alive=round(patience.idle_s), ws="none"
        )
        server = uvicorn.Server(config)
        with listen("127.0.0.1", 0) as listening:
            running = asyncio.create_task(server.serve([listening]))
            writers = []

            async def open_one() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
                reader, writer = await asyncio.open_connection(*listening.getsockname())
                writers.append(writer)
                return reader, writer

            try:
                await asyncio.wait_for(work(open_one, connections, answers), 30)
            finally:
                for writer in writers:
                    writer.close()
                answers.go.set()
                server.should_exit = True
                await running

    asyncio.run(main())


async def ended(reader: asyncio.StreamReader) -> bool:
    """Whether the server closes a connection without having said anything."""
    try:
        return await reader.read() == b""
    except ConnectionError:
        return True


async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.write(GET)
    return await reader.readuntil(b"\r\n\r\n")


def test_silent_connections_make_room_for_others() -> None:
    async def work(open_one: Opening, connections: Connections, _: Answers) -> None:
        silent = [await open_one() for _ in range(40)]
        for _ in range(5):
            assert b" 200 " in await asked(*await open_one())
        assert len(connections) <= 8
        assert await ended(silent[0][0])  # the first to come is the first to go

    during(Patience(total=10, per_client=8, header_s=60), work)


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHo"])
def test_a_header_has_to_come_in_time(sent: bytes) -> None:
    async def work(open_one: Opening, connections: Connections, _: Answers) -> None:
        reader, writer = await open_one()
        writer.write(sent)
        assert await ended(reader)
        reader, writer = await open_one()
        assert b" 200 " in await asked(reader, writer)
        await reader.read(2)
        writer.write(b"GET / HT")  # half of a further request
        assert await ended(reader)
        assert len(connections) == 0

    during(Patience(header_s=0.3, idle_s=60), work)


def test_a_connection_is_kept_for_further_requests_and_then_closed() -> None:
    async def work(open_one: Opening, connections: Connections, _: Answers) -> None:
        reader, writer = await open_one()
        for _ in range(3):
            assert b" 200 " in await asked(reader, writer)
            await reader.readexactly(2)
        assert await ended(reader)

    during(Patience(header_s=60, idle_s=1), work)


def test_who_is_being_answered_stays_and_a_newcomer_is_told() -> None:
    async def work(open_one: Opening, connections: Connections, answers: Answers) -> None:
        answers.go.clear()
        busy = [await open_one() for _ in range(3)]
        for _, writer in busy:
            writer.write(GET)
        while not all(not one.idle for one in connections._open) or len(connections) < 3:
            await asyncio.sleep(0.01)
        reader, writer = await open_one()
        refused = (await reader.read()).decode()
        assert refused.startswith("HTTP/1.1 503 ")
        assert all(f"{name}: {value}" in refused for name, value in HEADERS.items())
        answers.go.set()
        for reader, _ in busy:
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")

    during(Patience(total=3, per_client=3), work)


def test_a_client_that_takes_nothing_of_its_answer_is_given_up() -> None:
    async def work(open_one: Opening, connections: Connections, _: Answers) -> None:
        reader, writer = await open_one()
        writer.transport.pause_reading()
        writer.write(GET)
        await asyncio.sleep(0.1)
        assert len(connections) == 1  # still being answered
        while len(connections):
            await asyncio.sleep(0.05)
        writer.transport.resume_reading()
        assert 0 < len(await reader.read()) < size  # what was on the way, and no more

    size = 50_000_000
    during(Patience(reading_s=0.3, idle_s=60, header_s=60), work, size=size)


def test_clients_count_apart() -> None:
    class Connection:
        def __init__(self, host: str) -> None:
            self.host, self.idle, self.there, self.answered = host, True, True, False

        def end(self) -> None:
            self.there = False

    connections = Connections(Patience(total=4, per_client=2))
    crowd = [Connection("a") for _ in range(3)]
    assert all(connections.admit(one) for one in crowd)
    assert [one.there for one in crowd] == [False, True, True]  # the first made room
    others = [Connection("b"), Connection("c"), Connection("d")]
    for other in others:
        assert connections.admit(other)
    assert [one.there for one in (*crowd, *others)] == [False, False, True, True, True, True]  # of who has the most
    connections.used(crowd[2])
    assert connections.admit(Connection("e"))
    assert (crowd[2].there, others[0].there) == (True, False)  # the one used last goes last
    others[1].answered = True
    assert connections.admit(Connection("f"))
    assert (others[1].there, crowd[2].there) == (True, True)
    assert not others[2].there  # who has been answered goes after all who have not


def test_enough_files_may_be_open() -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
        allow_files(100)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= min(1124, before[1])
        with socket.socket() as one:
            assert one.fileno() >= 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
