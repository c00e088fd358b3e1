"""The server behind `fid-run serve`: one page, a small HTTP API, and live video over WebRTC.

Nothing that is uploaded is kept: photos are decoded in memory, and what the page needs for the next request (an
identity file, an attribute code) goes back to it instead of staying here. All computing happens in one thread, in the
order of arrival, so that a burst of requests makes a queue, which is bounded, and not a pile.

The API is described in `web/openapi.json`; who may call it, in `serve_guard.py`.
"""

from __future__ import annotations

import asyncio
import io
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import numpy as np

from .composer import Composer
from .errors import FidError, InputError
from .identity import Identity, average
from .images import PICTURE_SUFFIXES, decode_image, encode_image, stated_pixels
from .interpolate import SPACES, between, identity_between
from .serve_guard import Access, Guard, RefusedError, is_private

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from .webrtc import LiveSession

WEB = Path(__file__).parent / "web"
FACES = Path(__file__).parent / "faces"
NEEDED = "fid-run serve needs the web extra: pip install 'fid-face[web]'."

BODY_SECONDS = 30.0  # for the whole of a request's body to arrive
MAX_PHOTOS = 8  # of one person in one request
MAX_OFFER_BYTES = 1 << 16  # of a WebRTC offer; a browser's has 5 to 10 kB
MAX_CODE_BYTES = 1 << 16  # of an attribute code as .npy; a real one has 2 kB
MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
COMPOSE_FIELDS = (
    "identity", "identity_to", "identity_mix", "identity_face", "attributes", "attributes_to", "attributes_mix", "face",
    "space", "format",
)  # fmt: skip

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What one server takes on; beyond it there is an answer that says so, and no work."""

    upload_mb: float = 12.0  # of one request's body
    megapixels: float = 50.0  # of one picture, as its header says, before it is decoded
    sessions: int = 2  # live videos at a time
    queue: int = 16  # requests that are being read, wait or are computed at a time

    def __post_init__(self) -> None:
        if self.upload_mb <= 0 or self.sessions < 0 or self.queue < 1:
            raise InputError("limits must be positive; only sessions may be 0, which turns live video off.")
        if not 0 < self.megapixels * 1e6 <= 1 << 30:
            raise InputError(f"{self.megapixels:g} megapixels cannot be the limit; OpenCV reads up to 1073.")

    @property
    def upload_bytes(self) -> int:
        """`upload_mb` in bytes."""
        return round(self.upload_mb * 1e6)


class Worker:
    """The one thread that computes: requests and live frames, in the order of arrival."""

    def __init__(self, limit: int) -> None:
        self.limit, self.waiting = limit, 0
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="fid-compose")

    @contextmanager
    def place(self) -> Iterator[None]:
        """A request's place in the queue, taken before its body is read; `RefusedError` 503 when there is none."""
        if self.waiting >= self.limit:
            raise RefusedError(
                503, f"{self.waiting} requests are waiting already; try again in a moment.", retry_after="1"
            )
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """The result of `work(*arguments)`, called in the thread. Also for live frames: a session has one at a time."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)

    def close(self) -> None:
        """Drop what waits; what runs ends by itself."""
        self._executor.shutdown(wait=True, cancel_futures=True)


class Metrics:
    """Counts for Prometheus, in a registry of this server's own."""

    def __init__(self, server: Server) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

        self.registry = of = CollectorRegistry()
        self.requests = Counter("fid_requests", "Requests answered.", ["method", "route", "status"], registry=of)
        self.seconds = Histogram("fid_request_seconds", "From request to answer.", ["route"], registry=of)
        self.frames = Counter("fid_live_frames", "Live frames handed over.", registry=of)
        self.dropped = Counter("fid_live_frames_dropped", "Live frames replaced by a newer one.", registry=of)
        age, buckets = (
            "From arrival of a frame to its hand-over.",
            (0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1),
        )
        self.age = Histogram("fid_live_frame_age_seconds", age, buckets=buckets, registry=of)
        sessions = Gauge("fid_live_sessions", "Live videos now.", registry=of)
        sessions.set_function(lambda: len(server.sessions))
        queue = Gauge("fid_queue", "Requests being read, waiting or computed now.", registry=of)
        queue.set_function(lambda: server.worker.waiting)
        bundle = server.composer.bundle
        Info("fid_build", "What serves.", registry=of).info(
            {"version": _version(), "bundle": f"{bundle.name} {bundle.version}", "provider": server.composer.provider}
        )

    def text(self) -> bytes:
        """The exposition in Prometheus' text form."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


class Server:
    """What the routes share: the composer with its thread, the limits, the live sessions, the counts."""

    def __init__(self, composer: Composer, access: Access, limits: Limits | None = None, label: bool = True) -> None:
        """`label`: put the note "synthetic" into every picture. Raises `FidError` when the web extra is missing."""
        check_extra()
        self.composer, self.access, self.limits, self.label = composer, access, limits or Limits(), label
        self.worker = Worker(self.limits.queue)
        self.sessions: dict[str, LiveSession] = {}
        self.metrics = Metrics(self)
        self._shipped: dict[str, Any] = {}  # codes of the faces that ship, by file name, made when first asked for

    def app(self) -> Callable:
        """The ASGI application."""
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.routing import Mount, Route
        from starlette.staticfiles import StaticFiles

        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            yield
            await asyncio.gather(*(session.close() for session in list(self.sessions.values())))
            await asyncio.to_thread(self.worker.close)

        api = [
            Route("/health", self.health),
            Route("/identities", self.shipped, methods=["GET"]),
            Route("/identities", self.make_identity, methods=["POST"]),
            Route("/attributes", self.shipped, methods=["GET"]),
            Route("/attributes", self.make_attributes, methods=["POST"]),
            Route("/compose", self.compose, methods=["POST"]),
            Route("/live", self.start_live, methods=["POST"]),
            Route("/live/{session}", self.stop_live, methods=["DELETE"]),
        ]
        routes = [
            Mount("/api", routes=api),
            Route("/metrics", self.show_metrics),
            Mount("/faces", StaticFiles(directory=FACES)),
            Mount("/", StaticFiles(directory=WEB, html=True)),
        ]
        handlers = {
            RefusedError: _refused,
            InputError: _unusable,
            FidError: _failed,
            MemoryError: _full,
            HTTPException: _http,
            500: _bug,
        }
        starlette = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)  # pyright: ignore[reportArgumentType]
        return Guard(self._measured(starlette), self.access)

    async def health(self, _: Request) -> Response:
        """What runs, and how busy it is."""
        from starlette.responses import JSONResponse

        bundle = self.composer.bundle
        return JSONResponse(
            {
                "status": "ok",
                "version": _version(),
                "bundle": {"name": bundle.name, "version": bundle.version},
                "provider": self.composer.provider,
                "resolution": self.composer.resolution,
                "live": {"sessions": len(self.sessions), "limit": self.limits.sessions},
                "queue": {"waiting": self.worker.waiting, "limit": self.worker.limit},
                "upload": {"mb": self.limits.upload_mb, "megapixels": self.limits.megapixels},
            }
        )

    async def show_metrics(self, _: Request) -> Response:
        """Counts in Prometheus' text form."""
        from prometheus_client import CONTENT_TYPE_LATEST
        from starlette.responses import Response

        return Response(self.metrics.text(), headers={"content-type": CONTENT_TYPE_LATEST})

    async def shipped(self, request: Request) -> Response:
        """The faces that ship with fid, for the last part of the path: identities or attributes."""
        from starlette.responses import JSONResponse

        kind = request.url.path.rsplit("/", 1)[1]
        faces = [{"name": name, "picture": f"/faces/{path.name}"} for name, path in shipped_faces(kind).items()]
        return JSONResponse({kind: faces})

    async def make_identity(self, request: Request) -> Response:
        """Photos of one person -> an identity file."""
        async with self._form(request, ("photo", "face")) as form:
            identity = await self.worker.run(self._identity, form, "photo", "face")
            return _bytes(identity.to_bytes(), "application/octet-stream", "identity.npz")

    async def make_attributes(self, request: Request) -> Response:
        """A photo -> its attribute code as .npy."""
        async with self._form(request, ("photo", "face")) as form:
            code = await self.worker.run(self._attributes, form, "photo", "face")
            file = io.BytesIO()
            np.save(file, code, allow_pickle=False)
            return _bytes(file.getvalue(), "application/octet-stream", "attributes.npy")

    async def compose(self, request: Request) -> Response:
        """Identity and attributes -> a picture."""
        async with self._form(request, COMPOSE_FIELDS) as form:
            data, kind, stages = await self.worker.run(self._compose, form)
            timing = ", ".join(f"{stage};dur={ms:.1f}" for stage, ms in stages.items())
            return _bytes(data, kind, f"composition{kind.replace('image/', '.')}", {"server-timing": timing})

    async def start_live(self, request: Request) -> Response:
        """A WebRTC offer -> the answer; from then on video comes in and goes out."""
        from starlette.requests import ClientDisconnect

        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise RefusedError(415, "send the offer as application/json.")
        with self.worker.place():
            try:
                offer = json.loads(await asyncio.wait_for(_whole(request, MAX_OFFER_BYTES), BODY_SECONDS))
            except (ValueError, RecursionError, ClientDisconnect):
                raise RefusedError(400, "the offer is not JSON.") from None
            except TimeoutError:
                raise RefusedError(408, f"the offer did not arrive within {BODY_SECONDS:.0f} s.") from None
            return await self._answer_offer(offer, request.client.host if request.client else "127.0.0.1")

    async def _answer_offer(self, offer: Any, address: str) -> Response:
        """The session of an offer that came from `address`."""
        from starlette.responses import JSONResponse

        from .webrtc import LiveSession

        if not isinstance(offer, dict) or offer.get("type") != "offer" or not isinstance(offer.get("sdp"), str):
            raise RefusedError(400, 'a WebRTC offer is needed: {"type": "offer", "sdp": ...}.')
        if len(self.sessions) >= self.limits.sessions:
            raise RefusedError(
                503, f"{len(self.sessions)} live videos run already, which is the limit here.", retry_after="5"
            )
        session = LiveSession(self)
        self.sessions[session.name] = session
        try:
            await session.apply(offer.get("settings", {}))
            sdp = await session.answer(offer["sdp"], address)
        except BaseException:
            await session.close()
            raise
        return JSONResponse({"session": session.name, "type": "answer", "sdp": sdp})

    async def stop_live(self, request: Request) -> Response:
        """End a live session."""
        from starlette.responses import Response

        session = self.sessions.get(request.path_params["session"])
        if session is not None:  # else it ended by itself
            await session.close()
        return Response(status_code=204)

    def shipped_identity(self, name: str) -> Identity:
        """The identity of a face that ships; in the worker's thread only."""
        path = _shipped_face("identities", name)
        if path.name not in self._shipped:
            self._shipped[path.name] = self.composer.identify(path)
        return self._shipped[path.name]

    def _shipped_attributes(self, name: str) -> np.ndarray:
        path = _shipped_face("attributes", name)
        if path.name not in self._shipped:
            self._shipped[path.name] = self.composer.attribute_code(self.composer.crop(path))
        return self._shipped[path.name]

    def _compose(self, form: Form) -> tuple[bytes, str, dict[str, float]]:
        """The picture's bytes, their media type, and ms per stage."""
        suffix = "." + form.text("format", "png")
        if suffix not in PICTURE_SUFFIXES:
            raise RefusedError(400, f"there is no format {suffix[1:]!r}; there are png, jpeg and webp.")
        space = form.text("space", "w")
        if space not in SPACES:
            raise RefusedError(400, f"there is no space {space!r}; there are {' and '.join(SPACES)}.")
        self.composer.timings.clear()
        people = [self._identity(form, "identity", "identity_face")]
        codes = [self._attributes(form, "attributes", "face")]
        s, t = form.mix("identity"), form.mix("attributes")
        if s is not None:
            people.append(self._identity(form, "identity_to", "identity_face"))
        if t is not None:
            codes.append(self._attributes(form, "attributes_to", "face"))
        w = mixed_w(self.composer, people, codes, s or 0.0, t or 0.0, space)
        start = time.perf_counter()
        note = self.composer.note("interpolation" if len(people) + len(codes) > 2 else "composition")
        image = self.composer.image(w)
        stages = dict(self.composer.timings)
        start = time.perf_counter()
        data = encode_image(image, suffix, note if self.label else None)
        return data, MEDIA_TYPES[suffix], {**stages, "encode": 1e3 * (time.perf_counter() - start)}

    def _identity(self, form: Form, field: str, face: str) -> Identity:
        values = form.values(field)
        if not 1 <= len(values) <= MAX_PHOTOS:
            raise RefusedError(400, f"{field} is needed once to {MAX_PHOTOS} times; it is there {len(values)} times.")
        identities = []
        for value in values:
            if isinstance(value, str):
                identities.append(self.shipped_identity(value))
            elif value[:2] == b"PK":  # an .npz is a ZIP file
                identities.append(self.composer.identify(Identity.from_bytes(value, f"the file in {field}")))
            else:
                identities.append(self.composer.identity_of(self._crop(value, field, form.number(face))))
        return average(identities)

    def _attributes(self, form: Form, field: str, face: str) -> np.ndarray:
        values = form.values(field)
        if len(values) != 1:
            raise RefusedError(400, f"{field} is needed once; it is there {len(values)} times.")
        if isinstance(values[0], str):
            return self._shipped_attributes(values[0])
        if values[0][:6] == b"\x93NUMPY":
            return self._attribute_code(values[0], field)
        return self.composer.attribute_code(self._crop(values[0], field, form.number(face)))

    def _attribute_code(self, data: bytes, field: str) -> np.ndarray:
        """An attribute code that this server gave out before, float32 [attributes_size]."""
        wanted = self.composer.bundle.graph("attributes").outputs[0].shape[1:]
        try:
            code = np.load(io.BytesIO(data), allow_pickle=False) if len(data) <= MAX_CODE_BYTES else None
        except (OSError, ValueError, EOFError, MemoryError, SyntaxError):
            code = None
        if code is None or code.dtype != np.float32 or code.shape != wanted or not np.isfinite(code).all():
            raise InputError(f"the file in {field} is no attribute code of this bundle; send the photo again.")
        return code

    def _crop(self, data: bytes, field: str, face: int | None) -> np.ndarray:
        """The aligned crop of an uploaded photo, its size looked at before it is decoded."""
        name, array = f"The photo in {field}", np.frombuffer(data, np.uint8)
        if not data:
            raise InputError(f"{name} is empty; give a photo.")
        pixels = stated_pixels(array)
        if pixels == 0:
            raise RefusedError(415, f"{name} is no JPEG, PNG or WebP picture.")
        if pixels > self.limits.megapixels * 1e6:
            found, limit = pixels / 1e6, self.limits.megapixels
            raise RefusedError(413, f"{name} has {found:.0f} megapixels, and {limit:g} are the limit; make it smaller.")
        return self.composer.crop(decode_image(array, name), face)

    @asynccontextmanager
    async def _form(self, request: Request, fields: Sequence[str]) -> AsyncIterator[Form]:
        """The request's fields, all in memory, with a place in the queue for as long as they are used."""
        from starlette.datastructures import UploadFile
        from starlette.formparsers import MultiPartException, MultiPartParser
        from starlette.requests import ClientDisconnect

        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
            raise RefusedError(415, "send the fields as multipart/form-data.")
        with self.worker.place():
            limit = self.limits.upload_bytes
            stream = _limited(request, limit)
            parser = MultiPartParser(request.headers, stream, max_files=32, max_fields=32, max_part_size=4096)  # pyright: ignore[reportArgumentType]
            parser.spool_max_size = limit + 1  # never onto the disk
            try:
                items = (await asyncio.wait_for(parser.parse(), BODY_SECONDS)).multi_items()
            except MultiPartException as error:
                raise RefusedError(400, f"the form cannot be read: {error.message.rstrip('.').lower()}.") from error
            except (KeyError, ValueError, ClientDisconnect) as error:
                raise RefusedError(400, "the form cannot be read.") from error
            except TimeoutError:
                raise RefusedError(408, f"the photos did not arrive within {BODY_SECONDS:.0f} s.") from None
            values: list[tuple[str, str | bytes]] = []
            for name, item in items:
                values.append((name, await item.read() if isinstance(item, UploadFile) else item))
                if isinstance(item, UploadFile):
                    await item.close()
            yield Form(values, fields)

    def _measured(self, app: Starlette) -> Callable:
        """Counts and times every request that passed the guard."""

        async def measured(scope: Any, receive: Callable, send: Callable[[Any], Awaitable[None]]) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            start, status = time.perf_counter(), 500

            async def noting(message: Any) -> None:
                nonlocal status
                status = message.get("status", status)
                await send(message)

            try:
                await app(scope, receive, noting)
            finally:
                route, known = _route(scope["path"]), ("GET", "HEAD", "POST", "DELETE")
                method = scope["method"] if scope["method"] in known else "other"
                self.metrics.requests.labels(method, route, str(status)).inc()
                self.metrics.seconds.labels(route).observe(time.perf_counter() - start)

        return measured


class Form:
    """The fields of a form: text, or the bytes of a file."""

    def __init__(self, items: Sequence[tuple[str, str | bytes]], fields: Sequence[str]) -> None:
        unknown = sorted({name for name, _ in items} - set(fields))
        if unknown:
            raise RefusedError(400, f"there is no field {unknown[0][:40]!r} here; there are {', '.join(fields)}.")
        self._items = items

    def values(self, field: str) -> list[str | bytes]:
        """All that came under this name."""
        return [value for name, value in self._items if name == field]

    def text(self, field: str, default: str) -> str:
        """The one text under this name."""
        values = self.values(field) or [default]
        if len(values) != 1 or not isinstance(values[0], str):
            raise RefusedError(400, f"{field} is one text.")
        return values[0].lower()

    def number(self, field: str) -> int | None:
        """The one whole number from 1 under this name; None without."""
        text = self.text(field, "")
        if text and not (text.isascii() and text.isdigit() and int(text[:9]) >= 1 and len(text) < 9):
            raise RefusedError(400, f"{field} is a number from 1; it is {text[:40]!r}.")
        return int(text) if text else None

    def mix(self, what: str) -> float | None:
        """How far from `what` to `what`_to, 0..1; None when there is nothing to go to."""
        text = self.text(f"{what}_mix", "")
        if not self.values(f"{what}_to"):
            if text:
                raise RefusedError(400, f"{what}_mix needs {what}_to, to go there.")
            return None
        try:
            number = float(text or "0.5")
        except ValueError:
            number = -1.0
        if not 0 <= number <= 1:
            raise RefusedError(400, f"{what}_mix is a number from 0 to 1; it is {text[:40]!r}.")
        return number


def mixed_w(
    composer: Composer, people: Sequence[Identity], codes: Sequence[np.ndarray], s: float, t: float, space: str = "w"
) -> np.ndarray:
    """w float32 [w_size] at `s` of the way between one or two people and `t` between one or two attribute codes.

    In W the two to four compositions are blended bilinearly: with one of the two ways it is `interpolate`'s straight
    line. In z the codes are, and then mapped.
    """
    if space == "z":
        return composer.w(identity_between(people[0], people[-1], s), between(codes[0], codes[-1], t))
    corners = [[composer.w(person, code) for code in codes] for person in people]
    rows = [between(row[0], row[-1], t) if len(row) == 2 else row[0] for row in corners]
    return between(rows[0], rows[-1], s) if len(rows) == 2 else rows[0]


def shipped_faces(kind: str) -> dict[str, Path]:
    """The faces that ship with fid, by name; `kind` is "identities" or "attributes"."""
    prefix = {"identities": "identity", "attributes": "attributes"}[kind]
    return {path.stem.partition("-")[2]: path for path in sorted(FACES.glob(f"{prefix}-*.jpg"))}


def _shipped_face(kind: str, name: str) -> Path:
    faces = shipped_faces(kind)
    if name not in faces:
        raise RefusedError(400, f"{name[:40]!r} is none of the {kind} that ship with fid: {', '.join(faces)}.")
    return faces[name]


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


def serve(server: Server, listening: socket.socket, certificate: Path | None = None, key: Path | None = None) -> None:
    """Answer until Ctrl-C; with a certificate, over HTTPS. `InputError` for a certificate that cannot be used."""
    import uvicorn

    config = uvicorn.Config(
        server.app(),
        log_config=None,  # its own would close the log handlers of other libraries
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        limit_concurrency=256,
        timeout_graceful_shutdown=3,
        ssl_certfile=None if certificate is None else str(certificate),
        ssl_keyfile=None if key is None else str(key),
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise InputError(f"the certificate {certificate} cannot be used: {error.strerror or error}.") from error
    uvicorn.Server(config).run(sockets=[listening])


def warm_up(server: Server) -> None:
    """Fetch what is missing, open all graphs and compose once, so that the first request is as quick as the next."""
    composer = server.composer
    name = next(iter(shipped_faces("identities")))
    crop = composer.crop(_shipped_face("identities", name))
    w = composer.w(server.shipped_identity(name), composer.attribute_code(crop))
    for light in {False, composer.wants_light}:
        composer.image(w, light=light)


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


async def _limited(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body as it arrives; `RefusedError` 413 as soon as it is known to be too large.

    The connection stays open, and uvicorn passes over what still comes: closed on a sender that has not done, it would
    be reset, and the answer could be lost.
    """
    sentence = f"the request is too large; {limit / 1e6:g} MB are the limit."
    stated = request.headers.get("content-length", "0")
    if not stated.isdigit() or int(stated) > limit:
        raise RefusedError(413, sentence)
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise RefusedError(413, sentence)
        yield part


async def _whole(request: Request, limit: int) -> bytes:
    """The whole body; see `_limited`."""
    return b"".join([part async for part in _limited(request, limit)])


def _route(path: str) -> str:
    """A path as a label: few values, whatever is asked for."""
    if path.startswith("/api/live/"):
        return "/api/live/{session}"
    known = ("/api/health", "/api/identities", "/api/attributes", "/api/compose", "/api/live", "/metrics")
    return path if path in known else "other" if is_private(path) else "page"


def _bytes(data: bytes, media_type: str, name: str, headers: Mapping[str, str] | None = None) -> Response:
    from starlette.responses import Response

    extra = {"content-disposition": f'inline; filename="{name}"', "cache-control": "no-store", **(headers or {})}
    return Response(data, media_type=media_type, headers=extra)


def _answer(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse({"error": sentence}, status, headers)


async def _refused(_: Request, error: RefusedError) -> Response:
    return _answer(error.status, str(error), error.headers)


async def _unusable(_: Request, error: InputError) -> Response:
    return _answer(422, str(error))


async def _failed(_: Request, error: FidError) -> Response:
    return _answer(500, str(error))


async def _full(_: Request, __: MemoryError) -> Response:
    return _answer(503, "there is not enough memory for this picture now; use a smaller one.")


async def _http(_: Request, error: Any) -> Response:
    sentence = {404: "there is nothing at this address.", 405: "this address takes other methods."}
    return _answer(error.status_code, sentence.get(error.status_code, str(error.detail)), error.headers)


async def _bug(_: Request, __: Exception) -> Response:  # uvicorn prints the traceback
    return _answer(500, "something went wrong in the server; its terminal says what.")


def _version() -> str:
    try:
        return metadata.version("fid-face")
    except metadata.PackageNotFoundError:
        return "unknown"
