"""The port that a server listens on, the address that its page has, and the extra that both need."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from urllib.parse import quote

from ..errors import FidError, InputError
from .guard import Access

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
