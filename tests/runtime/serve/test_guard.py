"""Who is let in: names and addresses, origins, tokens. In closed form, without a server."""

import asyncio
import socket
from typing import Any

import pytest
from fid.runtime.errors import InputError
from fid.runtime.serve.guard import HEADERS, Access, Guard, is_loopback, is_private, new_token

TOKEN = "a-token-of-some-length"


def answer(access: Access, path: str = "/", method: str = "GET", **headers: str | None) -> tuple[int, dict[str, str]]:
    """Status and headers of one request through a guard in front of an application that says 200 to everything."""

    async def application(_: Any, __: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("the guard never reads a body")

    given = {"host": "127.0.0.1:8421", **{name.replace("_", "-"): value for name, value in headers.items()}}
    raw = [(name.encode(), value.encode()) for name, value in given.items() if value is not None]
    scope = {"type": "http", "method": method, "path": path, "headers": raw}
    asyncio.run(Guard(application, access)(scope, receive, send))
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8421", "localhost:8421", "LOCALHOST", "[::1]:8421", "127.9.9.9"]
)
def test_loopback_answers_to_its_own_names(host: str) -> None:
    assert answer(Access("127.0.0.1"), host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8421", "127.0.0.1.evil.example", "localhost.evil.example", "192.168.0.7", "8.8.8.8",
     "0.0.0.0", "", "127.0.0.1@evil.example", "evil.example/127.0.0.1", "[::1", "localhost:port", "a b", None],
)  # fmt: skip
def test_loopback_answers_to_no_other_name(host: str | None) -> None:
    """A page whose name was rebound to 127.0.0.1 sends its own name."""
    assert answer(Access("127.0.0.1"), host=host)[0] == 403


def test_two_host_headers_are_refused() -> None:
    scope_host = Access("127.0.0.1")
    assert answer(scope_host, **{"Host": "localhost"})[0] == 403  # beside the "host" of every request here


def test_beyond_loopback_addresses_and_own_names_are_known_and_strange_names_are_not() -> None:
    access = Access("0.0.0.0", TOKEN)
    for host in ("192.168.0.7:8421", "10.0.0.1", "[fe80::1]:8421", "localhost", socket.gethostname()):
        assert answer(access, host=host)[0] == 200, host
    assert answer(access, host="evil.example")[0] == 403


def test_further_names_are_known_when_given() -> None:
    assert answer(Access("127.0.0.1", None, ("Faces.Example",)), host="faces.example:443")[0] == 200


@pytest.mark.parametrize("origin", ["http://127.0.0.1:8421", "https://127.0.0.1:8421", None])
def test_the_own_origin_passes(origin: str | None) -> None:
    assert answer(Access("127.0.0.1"), "/api/compose", "POST", origin=origin)[0] == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "http://127.0.0.1:3000",
        "http://localhost:8421",
        "null",
        "",
        "file://",
        "http://127.0.0.1",
    ],
)
def test_another_origin_is_refused(origin: str) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        assert answer(Access("127.0.0.1"), "/api/compose", method, origin=origin)[0] == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site", "something"])
def test_fetches_of_other_sites_are_refused_and_a_link_to_the_page_works(site: str) -> None:
    access, fetch = Access("127.0.0.1"), {"sec_fetch_site": site}
    assert answer(access, "/api/identities", **fetch)[0] == 403
    assert answer(access, "/faces/identity-ada.jpg", sec_fetch_dest="image", **fetch)[0] == 403
    assert answer(access, "/", sec_fetch_dest="iframe", **fetch)[0] == 403
    assert answer(access, "/", "POST", sec_fetch_dest="document", **fetch)[0] == 403
    assert answer(access, "/metrics", sec_fetch_dest="document", **fetch)[0] == 403
    assert answer(access, "/", sec_fetch_dest="document", **fetch)[0] == 200


def test_the_own_page_fetches() -> None:
    for site in ("same-origin", "none"):
        assert answer(Access("127.0.0.1"), "/api/identities", sec_fetch_site=site)[0] == 200


@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, "Bearer ü"]
)
def test_a_wrong_token_is_refused_everywhere_but_on_the_page_and_the_health(given: str | None) -> None:
    access = Access("0.0.0.0", TOKEN)
    for path in ("/api/compose", "/api/live", "/api/live/x", "/api/identities", "/metrics", "/api/anything", "/api"):
        status, headers = answer(access, path, authorization=given)
        assert status == 401, path
        assert headers["www-authenticate"].startswith("Bearer")
    for path in ("/", "/page.js", "/faces/identity-ada.jpg", "/openapi.json", "/api/health"):
        assert answer(access, path, authorization=given)[0] == 200, path


def test_the_right_token_passes() -> None:
    for given in (f"Bearer {TOKEN}", f"bearer {TOKEN}"):
        assert answer(Access("0.0.0.0", TOKEN), "/api/compose", "POST", authorization=given)[0] == 200


def test_a_token_does_not_help_a_strange_origin() -> None:
    authorization = f"Bearer {TOKEN}"
    assert answer(Access("0.0.0.0", TOKEN), origin="http://evil.example", authorization=authorization)[0] == 403


def test_every_answer_carries_the_safe_headers() -> None:
    for host in ("localhost", "evil.example"):
        headers = answer(Access("127.0.0.1"), host=host)[1]
        assert HEADERS.items() <= headers.items()
    assert "default-src 'none'" in HEADERS["content-security-policy"]
    assert "frame-ancestors 'none'" in HEADERS["content-security-policy"]


def test_beyond_loopback_there_is_no_server_without_a_token() -> None:
    for host in ("0.0.0.0", "::", "192.168.0.7", "faces.example"):
        with pytest.raises(InputError, match="a token is needed"):
            Access(host)
    for token in ("short", "with spaces in between", "with-\u00fcmlauts-and-more", "with-a-newline\n-inside"):
        with pytest.raises(InputError, match="token"):
            Access("127.0.0.1", token)
    assert Access("0.0.0.0", new_token()).token != new_token()


def test_loopback() -> None:
    assert [host for host in ("localhost", "127.0.0.1", "127.1.2.3", "::1") if not is_loopback(host)] == []
    assert [host for host in ("0.0.0.0", "::", "10.0.0.1", "evil.example", "") if is_loopback(host)] == []


def test_private_paths() -> None:
    assert is_private("/api/compose")
    assert is_private("/api/healthx")
    assert not is_private("/api/health")


def test_a_websocket_is_closed() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(None, Access("127.0.0.1"))({"type": "websocket"}, None, send))  # pyright: ignore
    assert sent == [{"type": "websocket.close", "code": 1008}]
