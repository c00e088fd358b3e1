"""Who may talk to `fid-run serve`: checks on Host, Origin and token before anything of a request is looked at.

A port on loopback is open to every page in the user's browser. Three things keep strange pages out. A page whose name
was pointed at 127.0.0.1 after it was loaded (DNS rebinding) sends its own name as Host, and only names of this machine
pass. A page of another origin sends that origin, or says cross-site in Sec-Fetch-Site, and neither passes. And what
answers without a token answers on loopback only.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import re
import secrets
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ..errors import InputError

TOKEN_CHARACTERS = 16  # at least so many in a token that somebody chose
OPEN_PATHS = ("/api/health",)  # answers without the token: a load balancer has none, and it tells nothing private

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Sent with every answer: the page loads nothing from elsewhere, and nobody may frame it or embed its pictures."""


class RefusedError(Exception):
    """An answer other than 200: status, and one sentence for the person who asked."""

    def __init__(self, status: int, sentence: str, **headers: str) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass(frozen=True)
class Access:
    """Under which names the server answers, and to whom."""

    host: str  # the address that it listens on
    token: str | None = None  # asked for in `Authorization: Bearer TOKEN`; None only on loopback
    names: tuple[str, ...] = ()  # further host names, such as that of a proxy in front
    root_path: str = ""  # the folder that a proxy in front has for it, as "/fid"; "" for none

    def __post_init__(self) -> None:
        if self.token is None and not is_loopback(self.host):
            raise InputError(f"{self.host} can be reached from other machines, so a token is needed.")
        if self.token is not None and (len(self.token) < TOKEN_CHARACTERS or not self.token.isprintable()):
            raise InputError(f"the token is too short to be safe; use at least {TOKEN_CHARACTERS} characters.")
        if self.token is not None and not (self.token.isascii() and " " not in self.token):
            raise InputError("the token must be of ASCII characters without spaces, because it travels in a header.")
        if self.root_path and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", self.root_path):
            raise InputError(f"{self.root_path!r} is no path such as /fid, without a slash at its end.")

    def knows(self, host: str) -> bool:
        """Return whether a Host header ("localhost:8421") names this server.

        On loopback: loopback addresses and localhost. Else: any address, because DNS rebinding needs a name, and this
        machine's own names. Always: `names`.
        """
        name = _name_of(host)
        if name is None:
            return False
        if name in {"localhost", *(known.lower().rstrip(".") for known in self.names)} or is_loopback(name):
            return True
        if is_loopback(self.host):
            return False
        own = socket.gethostname().lower()
        return _is_address(name) or name in {self.host.lower(), own, f"{own}.local"}


class Guard:
    """ASGI middleware that answers 403 or 401 by itself, and adds `HEADERS` to every answer."""

    def __init__(self, app: App, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Callable, send: Callable) -> None:
        """One request. Below `Access.root_path` it is answered as if that were not there."""
        root = self._access.root_path
        if root and scope.get("path", "").startswith(f"{root}/"):
            scope = {**scope, "path": scope["path"].removeprefix(root)}
        if scope["type"] != "http":
            await (self._app(scope, receive, send) if scope["type"] == "lifespan" else _refuse_websocket(send))
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *added]}
            await send(message)

        refused = self._refusal(scope)
        if refused is None and root and scope["path"] == root:  # addresses in the page are relative to a folder
            headers = [(b"location", f"{root}/".encode()), (b"content-length", b"0")]
            await send_with_headers({"type": "http.response.start", "status": 307, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        if refused is None:
            await self._app(scope, receive, send_with_headers)
            return
        status, sentence = refused
        body = json.dumps({"error": sentence}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if status == 401:
            headers.append((b"www-authenticate", b'Bearer realm="fid"'))
        await send_with_headers({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and sentence when the request may not pass."""
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        hosts = headers.get("host", [])
        if len(hosts) != 1 or not self._access.knows(hosts[0]):
            return 403, "this server does not answer under that host name; --allow-host NAME adds one."
        origins = headers.get("origin", [])
        if any(not _same_origin(origin, hosts[0]) for origin in origins):
            return 403, "requests from pages of another origin are refused."
        site = headers.get("sec-fetch-site", ["none"])[0]
        opened = scope["method"] == "GET" and headers.get("sec-fetch-dest", [""])[0] == "document"
        if site not in ("same-origin", "none") and not (opened and not is_private(scope["path"])):
            return 403, "requests from pages of another origin are refused."
        if self._access.token is None or not is_private(scope["path"]):
            return None
        given = headers.get("authorization", [""])[0]
        kind, _, token = given.partition(" ")
        if kind.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), self._access.token.encode()):
            return None
        return 401, "this server asks for its token: Authorization: Bearer TOKEN."


def is_private(path: str) -> bool:
    """Return whether a path needs the token: everything but the page, its files, the faces that ship and the health."""
    return path.startswith(("/api", "/metrics")) and path not in OPEN_PATHS


def new_token() -> str:
    """Return a fresh random token, 192 bits."""
    return secrets.token_urlsafe(24)


def is_loopback(host: str) -> bool:
    """Return whether an address or name can be reached from this machine only."""
    if host.lower() == "localhost":
        return True
    return _is_address(host) and ipaddress.ip_address(host).is_loopback


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _name_of(host: str) -> str | None:
    """The name or address in "name:port" or "[address]:port", small letters; None for anything else."""
    try:
        parts = urlsplit(f"//{host}")
        name, _ = parts.hostname, parts.port  # reading the port checks it
    except ValueError:
        return None
    strange = parts.path or parts.query or parts.fragment or parts.username is not None
    return None if strange or not name else name.rstrip(".")


def _same_origin(origin: str, host: str) -> bool:
    """Whether an Origin header is that of a page which this server itself delivered under `host`."""
    try:
        parts = urlsplit(origin)
    except ValueError:  # a bracket without its other half
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()


async def _refuse_websocket(send: Callable) -> None:
    await send({"type": "websocket.close", "code": 1008})
