"""The HTTP API with the toy bundle and real photos: right answers, and one sentence for everything that is wrong."""

import asyncio
import functools
import io
import ipaddress
import os
import re
import signal
import socket
import ssl
import struct
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import fid.runtime.commands.cli
import fid.runtime.serve.app
import fid.runtime.serve.faces
import httpx
import numpy as np
import openapi_spec_validator
import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from fid.runtime.assets import FACES, shipped_faces
from fid.runtime.composer import Composer
from fid.runtime.controls import Controls
from fid.runtime.errors import FidError, InputError
from fid.runtime.identity import Identity
from fid.runtime.interpolate import interpolate, mixed_w
from fid.runtime.labels.mark import embed_mark
from fid.runtime.labels.provenance import read_note
from fid.runtime.media.images import decode_image
from fid.runtime.serve import form
from fid.runtime.serve.app import Server
from fid.runtime.serve.faces import KINDS
from fid.runtime.serve.guard import Access, RefusedError
from fid.runtime.serve.listen import listen, page_address
from fid.runtime.serve.worker import Limits
from fid.runtime.weights.catalogue import Status
from serving import OPENAPI, address_of, check, running, started
from starlette.routing import Mount

ADA, BEN = (FACES / f"identity-{name}.jpg" for name in ("ada", "ben"))
SHADE = FACES / "attributes-shade.jpg"


@pytest.fixture(scope="module")
def composer(toy_bundle: Path, fetched: Callable[[str], Path]) -> Composer:
    fetched("yunet")
    return Composer(toy_bundle, engine="onnxruntime", threads=1)


@pytest.fixture(scope="module")
def server(composer: Composer) -> Iterator[Server]:
    server = Server(composer, Access("127.0.0.1"), Limits(upload_mb=2.0, megapixels=3.0, sessions=1, queue=4))
    yield server
    server.faces.close()
    server.worker.close()


def ask(server: Server, method: str, path: str, **request: Any) -> httpx.Response:
    """One request to the application, its answer held to the API's description."""
    return asyncio.run(ask_later(server, method, path, **request))


async def ask_later(server: Server, method: str, path: str, **request: Any) -> httpx.Response:
    """The same, in a running loop."""
    transport = httpx.ASGITransport(server.app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8421") as client:
        return check(await client.request(method, path, **request))


def compose(server: Server, *fields: tuple[str, Any]) -> httpx.Response:
    """A composition; text stays text, and bytes and paths become files."""
    return ask(server, "POST", "/api/compose", files=[form_field(name, value) for name, value in fields])


def form_field(name: str, value: Any) -> tuple[str, tuple[str | None, Any]]:
    if isinstance(value, Path):
        return name, (value.name, value.read_bytes())
    return name, ("file", value) if isinstance(value, bytes) else (None, str(value))


def picture(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return decode_image(np.frombuffer(answer.content, np.uint8), "the answer")


def sentence(answer: httpx.Response, status: int) -> str:
    """What a refusal said: one sentence."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert re.fullmatch(r"[^\n]+\.", error), error
    return error


def png_header(width: int, height: int) -> bytes:
    """A small PNG file whose header promises many pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return head + bytes(4) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")) + bytes(64)


def test_photos_are_composed_as_the_composer_does(server: Server, composer: Composer, tmp_path: Path) -> None:
    answer = compose(server, ("identity", BEN), ("attributes", SHADE))
    composer.set_identity(BEN)
    np.testing.assert_array_equal(picture(answer), embed_mark(composer.compose(SHADE)))
    (tmp_path / "answer.png").write_bytes(answer.content)
    note = read_note(tmp_path / "answer.png")
    assert note is not None
    assert (note.bundle, note.kind, note.synthetic) == ("toy", "composition", True)
    stages = re.findall(r"(\w+);dur=([\d.]+)", answer.headers["server-timing"])
    assert {"detect", "attributes", "synthesis", "encode"} <= dict(stages).keys()
    assert answer.headers["cache-control"] == "no-store"


def test_names_files_and_codes_mean_the_same(server: Server) -> None:
    expected = picture(compose(server, ("identity", "ada"), ("attributes", "shade")))
    identity = ask(server, "POST", "/api/identities", files=[form_field("photo", ADA)])
    code = ask(server, "POST", "/api/attributes", files=[form_field("photo", SHADE)])
    assert Identity.from_bytes(identity.content, "answer").sources == 1
    for who, what in ((ADA, "shade"), ("ada", SHADE), (identity.content, code.content)):
        np.testing.assert_array_equal(picture(compose(server, ("identity", who), ("attributes", what))), expected)


def test_several_photos_are_averaged(server: Server, composer: Composer) -> None:
    answer = ask(server, "POST", "/api/identities", files=[form_field("photo", photo) for photo in (ADA, BEN)])
    made, expected = Identity.from_bytes(answer.content, "answer"), composer.set_identity(ADA, BEN)
    assert made.sources == 2
    np.testing.assert_array_equal(made.code, expected.code)


@pytest.mark.parametrize("format", ["png", "jpeg", "jpg", "webp", "PNG"])
def test_formats(server: Server, format: str) -> None:
    answer = compose(server, ("identity", "ada"), ("attributes", "shade"), ("format", format))
    assert picture(answer).shape == (256, 256, 3)


@pytest.mark.parametrize("space", ["w", "z"])
def test_mixing_agrees_with_interpolation(server: Server, composer: Composer, space: str) -> None:
    ada, ben = composer.identify(ADA), composer.identify(BEN)
    codes = [composer.attribute_code(composer.crop(FACES / f"attributes-{name}.jpg")) for name in ("shade", "aside")]
    people_way = list(interpolate(composer, [ada, ben], codes[:1], 5, space))
    codes_way = list(interpolate(composer, [ada], codes, 5, space))
    fixed = ("identity", "ada"), ("attributes", "shade"), ("space", space)
    for step, mix in enumerate(np.linspace(0, 1, 5)):
        found = picture(compose(server, *fixed, ("identity_to", "ben"), ("identity_mix", mix)))
        np.testing.assert_array_equal(found, embed_mark(people_way[step]))
        found = picture(compose(server, *fixed, ("attributes_to", "aside"), ("attributes_mix", mix)))
        np.testing.assert_array_equal(found, embed_mark(codes_way[step]))


def test_pose_and_expression_are_scaled(server: Server, composer: Composer) -> None:
    ada = composer.identify(ADA)
    fixed = ("identity", "ada"), ("attributes", "shade")
    assert ask(server, "GET", "/api/health").json()["controls"]
    code = composer.attribute_code(composer.crop(FACES / "attributes-shade.jpg"), Controls(0.0, 0.5))
    expected = embed_mark(composer.image(composer.w(ada, code)))
    found = picture(compose(server, *fixed, ("pose", "0"), ("expression", "0.5")))
    np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(found, picture(compose(server, *fixed)))
    assert "pose is a number" in sentence(compose(server, *fixed, ("pose", "up")), 400)
    assert "outside 0" in sentence(compose(server, *fixed, ("expression", "1.6")), 422)


def test_both_ways_at_once_are_bilinear_in_w(composer: Composer) -> None:
    people = [composer.identify(ADA), composer.identify(BEN)]
    codes = list(np.random.default_rng(1).standard_normal((2, 512)).astype(np.float32))
    corner = [[composer.w(person, code) for code in codes] for person in people]
    for s, t, expected in ((0, 0, corner[0][0]), (1, 0, corner[1][0]), (0, 1, corner[0][1]), (1, 1, corner[1][1])):
        np.testing.assert_array_equal(mixed_w(composer, people, codes, s, t), expected)
    middle = mixed_w(composer, people, codes, 0.5, 0.5)
    np.testing.assert_allclose(middle, np.mean([w for row in corner for w in row], axis=0), atol=1e-6)  # rounding


def test_what_ships_is_listed_and_its_pictures_are_there(server: Server) -> None:
    for kind in ("identities", "attributes"):
        listed = ask(server, "GET", f"/api/{kind}").json()[kind]
        assert [face["name"] for face in listed] == list(shipped_faces(KINDS[kind]))
        for face in listed:
            assert decode_image(np.frombuffer(ask(server, "GET", "/" + face["picture"]).content, np.uint8), "face").size


def test_the_page_and_its_files(server: Server) -> None:
    page = ask(server, "GET", "/").text
    files = re.findall(r"(?:src|href)=\"([^\"]+)\"", page)
    assert {"page.css", "page.js", "icon.svg", "openapi.json"} <= set(files)
    for file in files:  # all of it from here: no other address occurs
        assert ask(server, "GET", f"/{file}").status_code == 200
    for path in fid.runtime.serve.app.WEB.iterdir():
        if path.suffix in (".html", ".js", ".css"):
            assert "//" not in re.sub(r"^\s*// .*$|(?<=; )// .*$", "", path.read_text(), flags=re.MULTILINE), path
            assert "style=" not in path.read_text()  # the content security policy forbids it


def test_files_outside_the_page_are_not_given_out(server: Server) -> None:
    for path in ("/../serve.py", "/%2e%2e/serve.py", "/faces/../models.toml", "/faces/%2e%2e%2fmodels.toml", "/x"):
        assert sentence(ask(server, "GET", path), 404) == "there is nothing at this address."


def test_health(server: Server) -> None:
    told = ask(server, "GET", "/api/health").json()
    assert told["status"] == "ok"
    assert told["version"] == metadata.version("fid-face")
    assert told["bundle"] == {"name": "toy", "version": "0.0.1"}
    assert told["provider"] == "onnxruntime CPU"
    assert told["live"] == {"sessions": 0, "limit": 1}
    assert told["queue"] == {"waiting": 0, "limit": 4}


def test_metrics(composer: Composer) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    server = Server(composer, Access("127.0.0.1"))
    compose(server, ("identity", "ada"), ("attributes", "shade"))
    ask(server, "GET", "/api/nothing/of/the/kind")
    ask(server, "BREW", "/api/compose")
    answer = ask(server, "GET", "/metrics")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    seen = {tuple(sorted(sample.labels.items())): sample.value for sample in families["fid_requests"].samples}
    assert seen[("method", "POST"), ("route", "/api/compose"), ("status", "200")] == 1
    assert seen[("method", "GET"), ("route", "other"), ("status", "404")] == 1
    assert seen[("method", "other"), ("route", "/api/compose"), ("status", "405")] == 1
    assert {"fid_request_seconds", "fid_live_frames", "fid_live_frame_age_seconds", "fid_queue"} <= families.keys()
    assert families["fid_build_info"].samples[0].labels["bundle"] == "toy 0.0.1"


def test_the_description_is_valid_and_complete(server: Server) -> None:
    openapi_spec_validator.validate(OPENAPI)
    measured = server.app()._app.__closure__  # pyright: ignore[reportFunctionMemberAccess]
    starlette = next(cell.cell_contents for cell in measured if hasattr(cell.cell_contents, "routes"))
    real = set()
    for route in starlette.routes:
        for inner in route.routes if isinstance(route, Mount) else [route]:
            path = route.path + inner.path if isinstance(route, Mount) else inner.path
            real |= {(path, method.lower()) for method in inner.methods - {"HEAD"}}
    described = {(path, method) for path, item in OPENAPI["paths"].items() for method in item if method != "parameters"}
    assert real == described
    fields = OPENAPI["paths"]["/api/compose"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert tuple(fields["properties"]) == fid.runtime.serve.app.COMPOSE_FIELDS


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ([("attributes", "shade")], 400, "identity is needed"),
        ([("identity", "ada")], 400, "attributes is needed"),
        ([("identity", "ada")] * 9 + [("attributes", "shade")], 400, "9 times"),
        ([("identity", "ada"), ("attributes", "shade"), ("attributes", "aside")], 400, "needed once"),
        ([("identity", "nobody"), ("attributes", "shade")], 400, "ada, ben, carl"),
        ([("identity", "../../etc/passwd"), ("attributes", "shade")], 400, "none of the identities"),
        ([("identity", "ada"), ("attributes", "")], 400, "none of the attributes"),
        ([("identity", b""), ("attributes", "shade")], 422, "is empty"),
        ([("identity", "ada"), ("attributes", b"")], 422, "is empty"),
        ([("identity", "ada"), ("attributes", b"no picture at all")], 415, "not a picture"),
        ([("identity", "ada"), ("attributes", b"GIF89a" + bytes(50))], 415, "not a picture"),
        ([("identity", "ada"), ("attributes", b"<svg xmlns='x'/>")], 415, "not a picture"),
        ([("identity", "ada"), ("attributes", b"\xff\xd8\xff" + bytes(50))], 415, "not a picture"),
        ([("identity", "ada"), ("attributes", SHADE.read_bytes()[:3000])], 422, "cannot|no face|broken"),
        ([("identity", "ada"), ("attributes", png_header(64, 64))], 422, "broken, cut off"),
        ([("identity", b"PK\x03\x04" + bytes(99)), ("attributes", "shade")], 422, "not an identity file"),
        ([("identity", "ada"), ("attributes", b"\x93NUMPY" + bytes(99))], 422, "no attribute code"),
        ([("identity", "ada"), ("attributes", "shade"), ("color", "red")], 400, "no field 'color'"),
        ([("identity", "ada"), ("attributes", "shade"), ("format", "exe")], 400, "no format 'exe'"),
        ([("identity", "ada"), ("attributes", "shade"), ("format", b"png")], 400, "format is one text"),
        ([("identity", "ada"), ("attributes", "shade"), ("space", "y")], 400, "no space 'y'"),
        ([("identity", "ada"), ("attributes", "shade"), ("identity_mix", "0.5")], 400, "needs identity_to"),
        ([("identity", "ada"), ("attributes", SHADE), ("face", "0")], 400, "face is a number"),
        ([("identity", "ada"), ("attributes", SHADE), ("face", "9" * 5000)], 400, "face is a number|form cannot"),
        ([("identity", "ada"), ("attributes", SHADE), ("face", "2")], 422, "face 2 was asked for"),
    ],
)  # fmt: skip
def test_malformed_requests(server: Server, fields: list[tuple[str, Any]], status: int, words: str) -> None:
    assert re.search(words, sentence(compose(server, *fields), status))


@pytest.mark.parametrize("mix", ["-0.1", "1.1", "nan", "inf", "half", "1e999", "0,5"])
def test_mixes_beyond_0_to_1(server: Server, mix: str) -> None:
    fields = ("identity", "ada"), ("attributes", "shade"), ("identity_to", "ben"), ("identity_mix", mix)
    assert "from 0 to 1" in sentence(compose(server, *fields), 400)


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "application/json", 415),
        (b"a=b", "application/x-www-form-urlencoded", 415),
        (b"", None, 415),
        (b"x", "multipart/form-data", 400),
        (b"", "multipart/form-data; boundary=b", 400),
        (b"--b\r\n\r\nno disposition\r\n--b--\r\n", "multipart/form-data; boundary=b", 400),
        (b"--b\r\nContent-Disposition: form-data; name=identity", "multipart/form-data; boundary=b", 400),
        (b"\x00" * 1000, "multipart/form-data; boundary=b", 400),
        (b"--b\r\nContent-Disposition: form-data; name=x\r\n\r\n" + b"y" * 9000 + b"\r\n--b--\r\n",
         "multipart/form-data; boundary=b", 400),
        (b"--b\r\nContent-Disposition: form-data; name=x\r\n\r\ny\r\n" * 99 + b"--b--\r\n",
         "multipart/form-data; boundary=b", 400),
    ],
)  # fmt: skip
def test_bodies_that_are_no_form(server: Server, body: bytes, kind: str | None, status: int) -> None:
    headers = {} if kind is None else {"content-type": kind}
    for path in ("/api/compose", "/api/identities", "/api/attributes"):
        sentence(ask(server, "POST", path, content=body, headers=headers), status)
    assert server.worker.waiting == 0


def test_an_identity_of_another_encoder_and_a_code_of_another_shape(server: Server) -> None:
    stranger = Identity(np.eye(128, dtype=np.float32)[0], "another").to_bytes()
    assert "identity encoder another" in sentence(compose(server, ("identity", stranger), ("attributes", "shade")), 422)
    for array in (np.zeros(7, np.float32), np.zeros(512), np.full(512, np.nan, np.float32)):
        file = io.BytesIO()
        np.save(file, array)
        assert "no attribute code" in sentence(
            compose(server, ("identity", "ada"), ("attributes", file.getvalue())), 422
        )


def test_too_many_bytes(server: Server) -> None:
    large = bytes(server.limits.upload_bytes + 1)
    assert "2 MB are the limit" in sentence(compose(server, ("identity", "ada"), ("attributes", large)), 413)

    async def parts() -> Any:  # without Content-Length
        yield b"--b\r\nContent-Disposition: form-data; name=identity; filename=f\r\n\r\n"
        for _ in range(100):
            yield bytes(100_000)
        raise AssertionError("it goes on reading")

    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = ask(server, "POST", "/api/compose", content=parts(), headers=headers)
    assert "2 MB are the limit" in sentence(answer, 413)
    for stated in ("-1", "1e3", "99999999999"):
        answer = ask(server, "POST", "/api/compose", content=b"x", headers={**headers, "content-length": stated})
        sentence(answer, 413)


@pytest.mark.parametrize("size", [(2000, 2000), (65000, 65000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_before_they_are_decoded(server: Server, size: tuple[int, int]) -> None:
    answer = compose(server, ("identity", "ada"), ("attributes", png_header(*size)))
    assert "megapixels, and 3 are the limit" in sentence(answer, 413)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_too_many_pixels_in_every_format(server: Server, suffix: str) -> None:
    data = cv2.imencode(suffix, np.zeros((1800, 1800, 3), np.uint8))[1].tobytes()
    assert len(data) < 200_000
    assert "3 megapixels, and 3" in sentence(compose(server, ("identity", "ada"), ("attributes", data)), 413)
    fits = cv2.imencode(suffix, np.full((300, 300, 3), 127, np.uint8))[1].tobytes()
    assert "no face" in sentence(compose(server, ("identity", "ada"), ("attributes", fits)), 422)


def test_nothing_uploaded_touches_the_disk(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def rollover(_: Any) -> None:
        raise AssertionError("a file was written")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", rollover)
    large = SHADE.read_bytes() + bytes(1_800_000)  # what follows the end of a JPEG is not looked at
    assert compose(server, ("identity", "ada"), ("attributes", large)).status_code == 200


def test_slow_bodies_are_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(form, "BODY_SECONDS", 0.05)

    async def parts() -> Any:
        yield b"--b\r\n"
        await asyncio.sleep(5)

    headers = {"content-type": "multipart/form-data; boundary=b"}
    sentence(ask(server, "POST", "/api/compose", content=parts(), headers=headers), 408)
    assert server.worker.waiting == 0


def test_slow_offers_are_given_up_and_stand_in_the_queue(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(form, "BODY_SECONDS", 0.05)
    waiting = []

    async def parts() -> Any:
        waiting.append(server.worker.waiting)
        yield b"{"
        await asyncio.sleep(5)

    headers = {"content-type": "application/json"}
    sentence(ask(server, "POST", "/api/live", content=parts(), headers=headers), 408)
    assert (waiting, server.worker.waiting) == ([1], 0)
    monkeypatch.setattr(server.worker, "limit", 0)
    assert "are waiting already" in sentence(ask(server, "POST", "/api/live", content=b"{}", headers=headers), 503)


def test_a_bug_is_a_500_without_details(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(server.faces, "picture", broken)
    assert "secret" not in sentence(compose(server, ("identity", "ada"), ("attributes", "shade")), 500)
    for error, status in ((FidError("the disk is full."), 500), (MemoryError(), 503)):
        monkeypatch.setattr(server.faces, "picture", lambda _, error=error: (_ for _ in ()).throw(error))
        sentence(compose(server, ("identity", "ada"), ("attributes", "shade")), status)
    assert server.worker.waiting == 0


def test_other_methods_and_addresses(server: Server) -> None:
    for method, path in (("GET", "/api/compose"), ("DELETE", "/api/identities"), ("PUT", "/metrics")):
        transport = ask_undocumented(server, method, path)
        assert (transport.status_code, transport.json()["error"]) == (405, "this address takes other methods.")


def ask_undocumented(server: Server, method: str, path: str) -> httpx.Response:
    async def later() -> httpx.Response:
        transport = httpx.ASGITransport(server.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8421") as client:
            return await client.request(method, path)

    return asyncio.run(later())


def test_the_queue_is_bounded_and_everybody_gets_an_answer(server: Server) -> None:
    async def crowd() -> tuple[list[httpx.Response], httpx.Response, int]:
        files = [form_field("identity", "ada"), form_field("attributes", SHADE)]
        transport = httpx.ASGITransport(server.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8421") as client:
            asked = [asyncio.ensure_future(client.post("/api/compose", files=files)) for _ in range(50)]
            most = 0
            while not all(one.done() for one in asked):
                most = max(most, server.worker.waiting)
                health = await client.get("/api/health")
                await asyncio.sleep(0.005)
            return [check(await one) for one in asked], health, most

    answers, health, most = asyncio.run(crowd())
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= server.limits.queue
    assert most == server.limits.queue
    assert health.status_code == 200
    assert {answer.headers["retry-after"] for answer in answers if answer.status_code == 503} == {"1"}
    assert len({answer.content for answer in answers if answer.status_code == 200}) == 1
    assert server.worker.waiting == 0


def test_limits_make_sense() -> None:
    for wrong in ({"upload_mb": 0}, {"sessions": -1}, {"queue": 0}, {"megapixels": 0}, {"megapixels": 5000}):
        with pytest.raises(InputError):
            Limits(**wrong)  # pyright: ignore[reportArgumentType]
    assert Limits(sessions=0).sessions == 0


def test_a_taken_port_and_a_strange_host() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(FidError, match=f"port {port} of 127.0.0.1 cannot be used: .*--port"):
            listen("127.0.0.1", port)
        assert page_address(Access("127.0.0.1"), taken) == f"http://127.0.0.1:{port}/"
        secret = Access("127.0.0.1", "a-token/of some+length".replace(" ", "-"))
        assert page_address(secret, taken, secure=True) == f"https://127.0.0.1:{port}/#token=a-token/of-some%2Blength"
    with pytest.raises(InputError, match="no address"):
        listen("no.such.host.invalid", 0)
    with pytest.raises(FidError, match="cannot be used"):
        listen("192.0.2.77", 0)  # an address of somebody else, kept for documents


def test_refusals_name_their_headers() -> None:
    assert RefusedError(503, "later.", retry_after="1").headers == {"retry-after": "1"}


def test_fid_run_serve_answers_50_clients_and_ends_with_ctrl_c(toy_bundle: Path, composer: Composer) -> None:
    with running(toy_bundle, "--queue", "8", "--token", "a-token-of-some-length") as address:
        base, _, token = address.partition("#token=")
        headers = {"authorization": f"Bearer {token}"}

        async def crowd() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=base, timeout=60, headers=headers) as client:
                fields = [form_field("identity", "ada"), form_field("attributes", SHADE)]
                return await asyncio.gather(*(client.post("/api/compose", files=fields) for _ in range(50)))

        answers = [check(answer) for answer in asyncio.run(crowd())]
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) <= {200, 503}
        assert statuses.count(200) >= 8
        composer.set_identity(ADA)
        np.testing.assert_array_equal(
            picture(next(a for a in answers if a.status_code == 200)), embed_mark(composer.compose(SHADE))
        )
        assert check(httpx.get(base + "api/identities")).status_code == 401
        large = {"identity": bytes(13_000_000)}
        assert check(httpx.post(base + "api/compose", files=large, headers=headers)).status_code == 413
        host, port = re.findall(r"//([\d.]+):(\d+)/", base)[0]
        with socket.create_connection((host, int(port)), timeout=60) as raw:  # still sending when the answer is made
            start = f"POST /api/compose HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {token}\r\n"
            start += "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 13000000\r\n\r\n"
            raw.sendall(start.encode())
            time.sleep(0.5)
            raw.sendall(bytes(13_000_000))
            assert b" 413 " in raw.recv(1000)
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
            assert b" 400 " in raw.recv(1000)
        assert httpx.get(base + "api/health").json()["queue"]["waiting"] == 0


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the decoding processes by Linux's /proc")
def test_sigterm_ends_a_server_while_a_photo_takes_for_ever(toy_bundle: Path) -> None:
    process = started(toy_bundle)
    try:
        address = address_of(process)
        post = functools.partial(httpx.post, address + "api/attributes", timeout=60)
        assert post(files={"photo": SHADE.read_bytes()}).status_code == 200
        tasks = Path(f"/proc/{process.pid}/task").iterdir()
        every = [int(child) for task in tasks for child in (task / "children").read_text().split()]
        children = [child for child in every if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]
        assert children
        for child in children:
            os.kill(child, signal.SIGSTOP)
        with ThreadPoolExecutor() as threads:
            asked = threads.submit(post, files={"photo": ADA.read_bytes()})
            while httpx.get(address + "api/health").json()["queue"]["waiting"] == 0:
                time.sleep(0.05)
            process.terminate()
            _, said = process.communicate(timeout=60)
            assert asked.exception() is not None or asked.result().status_code == 500
        assert process.returncode == -signal.SIGTERM, said
        assert "ResourceWarning" not in said, said
        for child in children:
            assert not Path(f"/proc/{child}").exists()
    finally:
        process.kill()


def write_certificate(path: Path, lock: KeySerializationEncryption | None = None) -> Path:
    """A certificate of 127.0.0.1 for itself, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fid")])
    now, address = datetime.now(UTC), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    made = made.add_extension(x509.SubjectAlternativeName([address]), critical=False)
    certificate = made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock or NoEncryption()) + certificate)
    return path


def test_https(toy_bundle: Path, tmp_path: Path) -> None:
    certificate = write_certificate(tmp_path / "certificate.pem")
    trusted = ssl.create_default_context(cafile=str(certificate))
    with running(toy_bundle, "--certificate", str(certificate)) as address:
        assert address.startswith("https://127.0.0.1:")
        assert httpx.get(address + "api/health", verify=trusted).json()["status"] == "ok"
        headers = {"origin": address.rstrip("/")}
        form = {"identity": (None, "ada"), "attributes": (None, "shade")}
        assert httpx.post(address + "api/compose", files=form, headers=headers, verify=trusted).status_code == 200


def test_bad_options_are_one_line(toy_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.pem").write_text("no certificate")
    locked = write_certificate(tmp_path / "locked.pem", BestAvailableEncryption(b"secret"))
    bundle = ("--bundle", str(toy_bundle), "--port", "0")
    for options, words in (
        (("--host", "no.such.host.invalid"), "no address"),
        (("--token", "short"), "too short"),
        (("--key", "x.pem"), "--key goes with --certificate"),
        (("--certificate", str(tmp_path / "broken.pem")), "cannot be used"),
        (("--certificate", str(tmp_path / "missing.pem")), "No such file"),
        (("--certificate", str(locked)), "encrypted"),
        (("--root-path", "fid/"), "'fid/' is no path such as /fid"),
        (("--upload-mb", "0"), "limits must be positive"),
    ):
        result = CliRunner().invoke(fid.runtime.commands.cli.main, ["serve", *bundle, *options])
        assert result.exit_code == 2, result.output
        assert words in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr


def test_the_address_is_that_of_this_machine(toy_bundle: Path) -> None:
    with listen("0.0.0.0", 0) as everywhere:
        address = page_address(Access("0.0.0.0", "a-token-of-some-length"), everywhere)
        host = re.findall(r"//([^:]+):", address)[0]
        assert host not in ("0.0.0.0", "127.0.0.1")
        assert Access("0.0.0.0", "a-token-of-some-length").knows(host)


@pytest.mark.parametrize("wanted", [512, 2048, 99999999])
def test_an_unknown_resolution_is_refused(server: Server, wanted: int) -> None:
    answer = compose(server, ("identity", "ada"), ("attributes", "shade"), ("resolution", wanted))
    assert f"no resolution {wanted}; this bundle composes at 256 or 1024" in sentence(answer, 422)


def test_the_full_generator_is_used_where_it_is(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = ("identity", "ada"), ("attributes", "shade")
    assert picture(compose(server, *fields, ("resolution", 256))).shape == (256, 256, 3)
    state = Status("generator", "missing", "", "")
    monkeypatch.setattr("fid.runtime.serve.faces.catalogue.status", lambda name: state)
    answer = compose(server, *fields, ("resolution", 1024))
    assert "fid-run models fetch generator" in sentence(answer, 422)
    monkeypatch.setattr("fid.runtime.serve.faces.catalogue.status", lambda name: replace(state, state="present"))
    monkeypatch.setattr(Composer, "image", lambda self, w: np.zeros((self.resolution, self.resolution, 3), np.uint8))
    assert picture(compose(server, *fields, ("resolution", 1024))).shape == (1024, 1024, 3)
    assert ask(server, "GET", "/api/health").json()["resolutions"] == [256, 1024]


def test_a_complaint_names_the_photo(server: Server) -> None:
    grey = cv2.imencode(".png", np.full((300, 300, 3), 127, np.uint8))[1].tobytes()
    files = [form_field("photo", ADA), ("photo", ("holiday/beach.png", grey))]
    said = sentence(ask(server, "POST", "/api/identities", files=files), 422)
    assert said.startswith("photo 2 of 2 in photo (beach.png)")
    assert "no face" in said
    said = sentence(compose(server, ("identity", "ada"), ("attributes", grey)), 422)
    assert said.startswith("the photo in attributes: no face") or said.startswith("the photo in attributes has no face")
    hidden = [("photo", ("\u202ea\x07b.png", b"PK\x03\x04 no identity"))]
    assert "(a%07b.png) is not an identity file" in sentence(ask(server, "POST", "/api/identities", files=hidden), 422)


def deep(depth: int) -> bytes:
    """An .npy file whose header is a literal of nested brackets."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': " + b"(" * depth + b"1" + b")" * depth + b"}\n"
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header)) + header


@pytest.mark.parametrize("depth", [5, 150, 4000])
def test_deep_headers_of_arrays_are_refused(server: Server, depth: int) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("format.npy", deep(depth))
        archive.writestr("code.npy", deep(depth))
        archive.writestr("encoder.npy", deep(depth))
    answer = compose(server, ("identity", file.getvalue()), ("attributes", "shade"))
    assert "is not an identity file" in sentence(answer, 422)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "no attribute code" in sentence(compose(server, ("identity", "ada"), ("attributes", deep(depth))), 422)


@pytest.mark.parametrize("origin", ["http://[", "http://]", "//[::1", "http://[::1]:x", "\x00"])
def test_a_malformed_origin_is_a_stranger(server: Server, origin: str) -> None:
    answer = ask(server, "GET", "/api/health", headers={"origin": origin})
    assert "another origin" in sentence(answer, 403)
    assert answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"type": "offer", "sdp": "v=0\\r\\n\\ud800"}',
        b'{"type": "offer", "sdp": "v=0\xed\xa0\x80"}',
        b'{"type": "offer", "sdp": "v=0", "settings": ' + b"[" * 20_000,
        b'{"type": "offer", "sdp": "v=0", "settings": []}',
        b'{"type": "offer", "sdp": 7}',
        b'{"type": "answer", "sdp": "v=0"}',
        b"[]",
    ],
)
def test_offers_that_are_none(server: Server, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = ask(server, "POST", "/api/live", content=body, headers=headers)
    sentence(answer, 400)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not server.sessions


def test_below_a_folder_of_a_proxy(composer: Composer) -> None:
    server = Server(composer, Access("127.0.0.1", root_path="/apps/fid"))
    page = ask(server, "GET", "/apps/fid/").text
    for file in ("page.css", "page.js"):
        assert f'"{file}"' in page  # relative, so that it is looked for in the same folder
        assert ask(server, "GET", f"/apps/fid/{file}").status_code == 200
        assert ask(server, "GET", f"/{file}").status_code == 200  # a proxy may take its folder away
    face = ask(server, "GET", "/apps/fid/api/identities").json()["identities"][0]["picture"]
    assert ask(server, "GET", f"/apps/fid/{face}").status_code == 200
    moved = ask(server, "GET", "/apps/fid")
    assert (moved.status_code, moved.headers["location"]) == (307, "/apps/fid/")
    guarded = Server(composer, Access("127.0.0.1", "a-token-of-some-length", root_path="/fid"))
    assert ask(guarded, "GET", "/fid/api/identities").status_code == 401
    assert ask(guarded, "GET", "/fid/api/health").status_code == 200


def test_a_missing_extra_is_one_line_with_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "starlette", None)
    result = CliRunner().invoke(fid.runtime.commands.cli.main, ["serve"])
    assert result.exit_code == 1
    assert result.stderr == "fid-run: fid-run serve needs the web extra: pip install 'fid-face[web]'.\n"
