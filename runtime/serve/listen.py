"""The port that a server listens on, the address that its page has, and the extra that both need."""

from __future__ import annotations

import socket
from urllib.parse import quote

from ..errors import FidError, InputError
from .guard import Access

NEEDED = "fid-run serve needs the web extra: pip install 'fid-face[web]'."


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one. `FidError` when the port is taken, `InputError` for a strange host."""
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
    """What to type into the browser. The token stands after a #, so browsers never send it along or log it."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    host = f"[{host}]" if ":" in host else host
    token = "" if access.token is None else f"#token={quote(access.token)}"
    return f"http{'s' * secure}://{host}:{port}/{token}"


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
