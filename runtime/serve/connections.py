"""How many connections a server holds, and for how long: silent ones never keep working ones out.

A connection is idle until the whole header of a request has come, and again when its answer has left. One that is idle
for too long is closed; where a client or the server as a whole has as many as it may, the one that has been idle
longest makes room for the next, and those first that have never asked for anything; of the server's, one of the client
that has the most. So a newcomer is turned away only while all the others are being answered, whoever has been answered
stays, and who opens many connections closes his own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .guard import HEADERS

if TYPE_CHECKING:
    import uvicorn


@dataclass(frozen=True)
class Patience:
    """How many connections there may be, and how long each may be silent."""

    total: int = 512
    per_client: int = 128  # from one address; a proxy in front is one
    header_s: float = 10.0  # from the connection, or the first byte of a further request, to the end of its header
    idle_s: float = 15.0  # after an answer
    reading_s: float = 30.0  # that a client may take no bytes of its answer
    handshake_s: float = 10.0  # of TLS


class Connections:
    """The open connections, the one used last at the end."""

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        self._open: dict[Any, None] = {}  # as an ordered set

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, connection: Any) -> bool:
        """Take a new connection in, for which the longest idle one may have to go; False where all are at work."""
        idle = [other for other in self._open if other.idle]
        own = [other for other in idle if other.host == connection.host]
        if sum(other.host == connection.host for other in self._open) >= self.patience.per_client:
            last = min(own, key=lambda other: other.answered, default=None)
        elif len(self._open) >= self.patience.total:
            crowds = Counter(other.host for other in idle)
            last = min(idle, key=lambda other: (-crowds[other.host], other.answered), default=None)
        else:
            self._open[connection] = None
            return True
        if last is None:
            return False
        self.leave(last)
        last.end()
        self._open[connection] = None
        return True

    def used(self, connection: Any) -> None:
        """Note that a connection has just begun or ended a request."""
        if connection in self._open:
            self._open[connection] = self._open.pop(connection)

    def leave(self, connection: Any) -> None:
        """Forget a connection."""
        self._open.pop(connection, None)


def protocol(connections: Connections) -> Callable[..., asyncio.Protocol]:
    """Return what makes uvicorn's HTTP protocol of each connection, under these limits."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class LimitedProtocol(H11Protocol):
        host, answered = "", False
        _header: asyncio.TimerHandle | None = None
        _reading: asyncio.TimerHandle | None = None

        @property
        def idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def end(self) -> None:
            self.transport.abort()

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.host = self.client[0] if self.client else ""
            if connections.admit(self):
                self._header = self.loop.call_later(connections.patience.header_s, self.end)
            else:
                transport.write(FULL)
                transport.close()

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():  # turned away
                return
            super().data_received(data)
            if self._header is None and self.idle:
                self._header = self.loop.call_later(connections.patience.header_s, self.end)
            elif self._header is not None and not self.idle:
                self._header = _stopped(self._header)
                connections.used(self)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self.answered = True
            connections.used(self)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._reading = self.loop.call_later(connections.patience.reading_s, self.end)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._reading = _stopped(self._reading)

        def connection_lost(self, exc: Exception | None) -> None:
            connections.leave(self)
            self._header, self._reading = _stopped(self._header), _stopped(self._reading)
            super().connection_lost(exc)
            self._unset_keepalive_if_required()

    return LimitedProtocol


def _stopped(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def _full() -> bytes:
    body = json.dumps({"error": "too many requests are answered at this moment; try again in a moment."}).encode()
    headers = {
        **HEADERS,
        "content-type": "application/json",
        "content-length": str(len(body)),
        "retry-after": "1",
        "connection": "close",
    }
    lines = [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(["HTTP/1.1 503 Service Unavailable", *lines, "", ""]).encode() + body


FULL = _full()
"""The answer to a connection that cannot be taken in."""


def run(
    config: uvicorn.Config, listening: socket.socket, connections: Connections, stopping: Callable[[], None]
) -> None:
    """Answer on a bound socket until a signal comes. `config.http` is `protocol(connections)`; `stopping` is called
    before the requests that are being answered get their time to end."""
    import uvicorn

    allow_files(2 * connections.patience.total)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            """Bound the time that a handshake of TLS may take, which uvicorn has no option for."""
            loop = asyncio.get_running_loop()
            create = loop.create_server

            def bounded(*arguments: Any, **options: Any) -> Any:
                if options.get("ssl") is not None:
                    options["ssl_handshake_timeout"] = connections.patience.handshake_s
                return create(*arguments, **options)

            loop.create_server = bounded  # type: ignore[method-assign]
            await super().startup(sockets)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            """Say that it stops, and end."""
            stopping()
            await super().shutdown(sockets)

    Server(config).run(sockets=[listening])


def allow_files(least: int) -> None:
    """Let this process have at least so many files open at a time, as far as the system allows."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on Windows, which has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = least + 1024 if hard == resource.RLIM_INFINITY else min(least + 1024, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
