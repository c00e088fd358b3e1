"""The server behind `fid-run serve`: one page, a small HTTP API, and live video over WebRTC.

Nothing that is uploaded is kept: photos are decoded in memory, and what the page needs for the next request (an
identity file, an attribute code) goes back to it instead of staying here. All computing happens in one thread, in the
order of arrival, so that a burst of requests makes a queue, which is bounded, and not a pile.

The API is described in `web/openapi.json`; who may call it, in `guard.py`.
"""

from __future__ import annotations

import asyncio
import io
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..assets import FACES, WEB, installed_version, shipped_faces
from ..composer import Composer
from ..errors import InputError
from ..identity import Identity, average
from ..interpolate import SPACES
from ..media.images import PICTURE_SUFFIXES, decode_image, encode_image, stated_pixels
from .guard import Access, Guard, RefusedError, is_private

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from .live_session import LiveSession

from ..interpolate import mixed_w
from ..timing import Timings, collect_timings, stage
from .answers import exception_handlers, file_answer
from .form import Form, read_body, read_form
from .listen import check_extra
from .metrics import Metrics
from .worker import Limits, Worker

MAX_PHOTOS = 8  # of one person in one request
MAX_OFFER_BYTES = 1 << 16  # of a WebRTC offer; a browser's has 5 to 10 kB
MAX_CODE_BYTES = 1 << 16  # of an attribute code as .npy; a real one has 2 kB
MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
KINDS = {"identities": "identity", "attributes": "attributes"}  # lists of faces that ship, and how their files begin
COMPOSE_FIELDS = (
    "identity", "identity_to", "identity_mix", "identity_face", "attributes", "attributes_to", "attributes_mix", "face",
    "space", "format",
)  # fmt: skip


class Server:
    """What the routes share: the composer with its thread, the limits, the live sessions, the counts."""

    def __init__(self, composer: Composer, access: Access, limits: Limits | None = None, label: bool = True) -> None:
        """`label`: put the note "synthetic" into every picture. Raises `FidError` when the web extra is missing."""
        check_extra()
        self.composer, self.access, self.limits, self.label = composer, access, limits or Limits(), label
        self.worker = Worker(self.limits.queue)
        self.sessions: dict[str, LiveSession] = {}
        build = {
            "version": installed_version() or "unknown",
            "bundle": f"{composer.bundle.name} {composer.bundle.version}",
            "provider": composer.provider,
        }
        self.metrics = Metrics(lambda: len(self.sessions), lambda: self.worker.waiting, build)
        self._shipped: dict[str, Any] = {}  # codes of the faces that ship, by file name, made when first asked for

    def app(self) -> Callable:
        """The ASGI application."""
        from starlette.applications import Starlette
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
        starlette = Starlette(routes=routes, lifespan=lifespan, exception_handlers=exception_handlers())
        return Guard(self._measured(starlette), self.access)

    async def health(self, _: Request) -> Response:
        """What runs, and how busy it is."""
        from starlette.responses import JSONResponse

        bundle = self.composer.bundle
        return JSONResponse(
            {
                "status": "ok",
                "version": installed_version() or "unknown",
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
        faces = [{"name": name, "picture": f"/faces/{path.name}"} for name, path in shipped_faces(KINDS[kind]).items()]
        return JSONResponse({kind: faces})

    async def make_identity(self, request: Request) -> Response:
        """Photos of one person -> an identity file."""
        with self.worker.place():
            form = await read_form(request, ("photo", "face"), self.limits.upload_bytes)
            identity = await self.worker.run(self._identity, form, "photo", "face")
            return file_answer(identity.to_bytes(), "application/octet-stream", "identity.npz")

    async def make_attributes(self, request: Request) -> Response:
        """A photo -> its attribute code as .npy."""
        with self.worker.place():
            form = await read_form(request, ("photo", "face"), self.limits.upload_bytes)
            code = await self.worker.run(self._attributes, form, "photo", "face")
            file = io.BytesIO()
            np.save(file, code, allow_pickle=False)
            return file_answer(file.getvalue(), "application/octet-stream", "attributes.npy")

    async def compose(self, request: Request) -> Response:
        """Identity and attributes -> a picture."""
        with self.worker.place():
            form = await read_form(request, COMPOSE_FIELDS, self.limits.upload_bytes)
            data, kind, stages = await self.worker.run(self._compose, form)
            timing = ", ".join(f"{stage};dur={ms:.1f}" for stage, ms in stages.items())
            return file_answer(data, kind, f"composition{kind.replace('image/', '.')}", {"server-timing": timing})

    async def start_live(self, request: Request) -> Response:
        """A WebRTC offer -> the answer; from then on video comes in and goes out."""
        from starlette.requests import ClientDisconnect

        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise RefusedError(415, "send the offer as application/json.")
        with self.worker.place():
            try:
                offer = json.loads(await read_body(request, MAX_OFFER_BYTES))
            except (ValueError, RecursionError, ClientDisconnect):
                raise RefusedError(400, "the offer is not JSON.") from None
            return await self._answer_offer(offer, request.client.host if request.client else "127.0.0.1")

    async def _answer_offer(self, offer: Any, address: str) -> Response:
        """The session of an offer that came from `address`."""
        from starlette.responses import JSONResponse

        if not isinstance(offer, dict) or offer.get("type") != "offer" or not isinstance(offer.get("sdp"), str):
            raise RefusedError(400, 'a WebRTC offer is needed: {"type": "offer", "sdp": ...}.')
        if len(self.sessions) >= self.limits.sessions:
            raise RefusedError(
                503, f"{len(self.sessions)} live videos run already, which is the limit here.", retry_after="5"
            )
        session = self.new_session()
        try:
            await session.apply(offer.get("settings", {}))
            sdp = await session.answer(offer["sdp"], address)
        except BaseException:
            await session.close()
            raise
        return JSONResponse({"session": session.name, "type": "answer", "sdp": sdp})

    def new_session(self) -> LiveSession:
        """Return a live session of this server, which counts until it has ended."""
        from .live_session import LiveSession

        session = LiveSession(
            self.composer, self.worker, self.metrics, self.shipped_identity, lambda name: self.sessions.pop(name, None)
        )
        self.sessions[session.name] = session
        return session

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

    def _compose(self, form: Form) -> tuple[bytes, str, Timings]:
        """The picture's bytes, their media type, and ms per stage."""
        suffix = "." + form.text("format", "png")
        if suffix not in PICTURE_SUFFIXES:
            raise RefusedError(400, f"there is no format {suffix[1:]!r}; there are png, jpeg and webp.")
        space = form.text("space", "w")
        if space not in SPACES:
            raise RefusedError(400, f"there is no space {space!r}; there are {' and '.join(SPACES)}.")
        with collect_timings() as timings:
            people = [self._identity(form, "identity", "identity_face")]
            codes = [self._attributes(form, "attributes", "face")]
            s, t = form.mix("identity"), form.mix("attributes")
            if s is not None:
                people.append(self._identity(form, "identity_to", "identity_face"))
            if t is not None:
                codes.append(self._attributes(form, "attributes_to", "face"))
            image = self.composer.image(mixed_w(self.composer, people, codes, s or 0.0, t or 0.0, space))
            note = self.composer.note("interpolation" if len(people) + len(codes) > 2 else "composition")
            with stage("encode"):
                data = encode_image(image, suffix, note if self.label else None)
        return data, MEDIA_TYPES[suffix], timings

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
                identities.append(self.composer.identity_of(self._crop(value, field, form.number(face)), refine=True))
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


def _shipped_face(kind: str, name: str) -> Path:
    faces = shipped_faces(KINDS[kind])
    if name not in faces:
        raise RefusedError(400, f"{name[:40]!r} is none of the {kind} that ship with fid: {', '.join(faces)}.")
    return faces[name]


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
    name = next(iter(shipped_faces("identity")))
    crop = composer.crop(_shipped_face("identities", name))
    w = composer.w(server.shipped_identity(name), composer.attribute_code(crop))
    for light in {False, composer.wants_light}:
        composer.image(w, light=light)


def _route(path: str) -> str:
    """A path as a label: few values, whatever is asked for."""
    if path.startswith("/api/live/"):
        return "/api/live/{session}"
    known = ("/api/health", "/api/identities", "/api/attributes", "/api/compose", "/api/live", "/metrics")
    return path if path in known else "other" if is_private(path) else "page"
