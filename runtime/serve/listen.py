"""The port that a server listens on, alone or with other processes, the address of its page, and the extra it needs.

Where several processes answer on one port, the system gives each connection to any of them. A live video belongs to the
process that answered its offer, whose name its session carries; who is asked to end somebody else's passes that on, and
`/metrics` of any of them tells of all. Uploaded videos lie in a folder that all share.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..errors import FidError, InputError
from .guard import Access

ANSWER_S = 5.0  # seconds that another process has for an answer
MAX_LINE = 200  # bytes of a question
NEEDED = "fid-run serve needs the web extra: pip install 'fid-face[web]'."


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket; port 0 takes a free one. `FidError` when the port is taken, `InputError` for a strange
    host."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise InputError(f"there is no address {host} on this machine; try 127.0.0.1.") from None
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        reason = (error.strerror or str(error)).lower()
        raise FidError(f"port {port} of {host} cannot be used: {reason}; --port chooses another.") from error
    return listening


def page_address(access: Access, listening: socket.socket, secure: bool = False) -> str:
    """Return what to type into the browser. The token stands after a #, so browsers never send it along or log it."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = own_address(listening.family)
    host = f"[{host}]" if ":" in host else host
    token = "" if access.token is None else f"#token={quote(access.token)}"
    return f"http{'s' * secure}://{host}:{port}/{token}"


def own_address(family: int = socket.AF_INET) -> str:
    """Return the address under which other machines reach this one; its name where it has no way to any."""
    elsewhere = ("2001:db8::1", 9) if family == socket.AF_INET6 else ("192.0.2.1", 9)  # in no network: for documents
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as asking:
            asking.connect(elsewhere)  # sends nothing, but finds the way
            return asking.getsockname()[0]
    except OSError:
        return socket.gethostname() if family == socket.AF_INET else own_address()


def check_certificate(certificate: Path | None, key: Path | None) -> None:
    """Raise `InputError` in one sentence unless HTTPS can be served with this certificate and its key (PEM files)."""
    if certificate is None:
        if key is not None:
            raise InputError("--key goes with --certificate.")
        return

    def secret() -> str:
        raise InputError(f"the key {key or certificate} is encrypted; give one without a password.")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, secret)
    except OSError as error:  # ssl.SSLError is one
        reason = error.strerror or str(error)
        raise InputError(f"the certificate {certificate} cannot be used: {reason}.") from error


def check_extra() -> None:
    """Raise `FidError`, with the pip line, when the web extra is missing."""
    try:
        import aiortc  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise FidError(NEEDED) from error


@dataclass
class Peers:
    """This process among those of one server. They listen on sockets in a folder for this user alone."""

    number: int
    count: int
    folder: Path
    _server: asyncio.Server | None = field(default=None, repr=False)

    @property
    def videos(self) -> Path:
        """Return the folder of uploaded videos, made where it is not there."""
        folder = self.folder / "videos"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def own(self, session: str) -> str:
        """Return the name under which all of them know a live session of this one."""
        return f"{self.number}.{session}"

    def owner(self, session: str) -> int:
        """Return whose a session is; this one's for a name that tells nothing."""
        number = session.partition(".")[0]
        return int(number) if number.isdecimal() and int(number) < self.count else self.number

    async def listen(self, answer: Callable[[str], Coroutine[Any, Any, bytes]]) -> None:
        """Answer what the others ask, from now on."""

        async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError, ValueError, TimeoutError):
                line = await asyncio.wait_for(reader.readline(), ANSWER_S)
                writer.write(await answer(line[:MAX_LINE].decode().strip()))
                await writer.drain()
            writer.close()

        self._server = await asyncio.start_unix_server(asked, str(self._socket(self.number)))

    async def close(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.close()
            self._socket(self.number).unlink(missing_ok=True)

    async def ask(self, number: int, question: str) -> bytes | None:
        """Return what another one answers; None when it does not, because it is being started again for instance."""
        try:
            async with asyncio.timeout(ANSWER_S):
                reader, writer = await asyncio.open_unix_connection(str(self._socket(number)))
                writer.write(f"{question}\n".encode())
                answer = await reader.read()
                writer.close()
                return answer
        except (OSError, TimeoutError):
            return None

    def _socket(self, number: int) -> Path:
        return self.folder / f"{number}.sock"
