"""The server behind `fid-run serve`: one page, a small HTTP API, and live video over WebRTC.

Nothing that is uploaded is kept: photos are decoded in memory, and what the page needs for the next request (an
identity file, an attribute code) goes back to it instead of staying here. All computing happens in one thread, in the
order of arrival, so that a burst of requests makes a queue, which is bounded, and not a pile.

The API is described in `web/openapi.json`; who may call it, in `guard.py`.
"""

from __future__ import annotations

import asyncio
import io
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..assets import FACES, WEB, installed_version, shipped_faces
from ..composer import FULL_RESOLUTION, Composer
from ..labels.provenance import inserted_note
from ..timing import collect_timings
from ..weights.bundle import CONTROLS
from ..weights.records import decode
from .answers import exception_handlers, file_answer
from .connections import Connections, Patience, protocol, run
from .faces import COMPOSE_FIELDS, KINDS, Faces, shipped_face
from .form import read_body, read_form
from .guard import Access, Guard, RefusedError, is_private
from .listen import Peers, check_extra
from .metrics import Metrics, merged
from .picture import Labelling, Settings
from .videos import MOST_SECONDS, Videos
from .worker import Limits, Worker

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from .live_session import LiveSession

MAX_OFFER_BYTES = 1 << 16  # of a WebRTC offer; a browser's has 5 to 10 kB


@dataclass(frozen=True)
class Offer:
    """What `POST /api/live` takes."""

    type: str
    sdp: str
    settings: dict[str, Any] = field(default_factory=dict)


class Server:
    """What the routes share: the composer with its thread, the limits, the live sessions, the counts."""

    def __init__(
        self,
        composer: Composer,
        access: Access,
        limits: Limits | None = None,
        label: Labelling | None = None,
        peers: Peers | None = None,
        videos: Path | None = None,
    ) -> None:
        """`label`: what every picture says about itself. `peers`: the other processes that answer on the same
        port. `videos`: a folder for uploaded videos that several servers share, so that any of them answers for all.
        Raises `FidError` when the web extra is missing."""
        check_extra()
        self.peers = peers
        self.composer, self.access, self.limits = composer, access, limits or Limits()
        self.label = label or Labelling()
        self.worker = Worker(self.limits.queue)
        self.faces = Faces(composer, self.worker, self.limits, self.label)
        self.videos = Videos(composer, self.worker, self.limits, self.label, videos)
        self.sessions: dict[str, LiveSession] = {}
        build = {
            "version": installed_version() or "unknown",
            "bundle": f"{composer.bundle.name} {composer.bundle.version}",
            "provider": composer.provider,
        }
        self.metrics = Metrics(lambda: len(self.sessions), lambda: self.worker.waiting, build)

    def app(self) -> Callable:
        """Return the ASGI application."""
        from starlette.applications import Starlette
        from starlette.routing import Mount, Route
        from starlette.staticfiles import StaticFiles

        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            if self.peers is not None:
                await self.peers.listen(self._answer_peer)
            if self.videos.shared:
                self.videos.sweep()  # what one that died has left
            yield
            if self.peers is not None:
                await self.peers.close()
            await asyncio.gather(*(session.close() for session in list(self.sessions.values())), self.videos.close())
            await asyncio.to_thread(self.faces.close)
            await asyncio.to_thread(self.worker.close)

        api = [
            Route("/health", self.health),
            Route("/identities", self.shipped, methods=["GET"]),
            Route("/identities", self.make_identity, methods=["POST"]),
            Route("/attributes", self.shipped, methods=["GET"]),
            Route("/attributes", self.make_attributes, methods=["POST"]),
            Route("/compose", self.compose, methods=["POST"]),
            Route("/notes", self.notes),
            Route("/faces", self.find_faces, methods=["POST"]),
            Route("/check", self.check, methods=["POST"]),
            Route("/videos", self.take_video, methods=["POST"]),
            Route("/videos/{video}", self.show_video, methods=["GET"]),
            Route("/videos/{video}", self.start_video, methods=["POST"]),
            Route("/videos/{video}", self.delete_video, methods=["DELETE"]),
            Route("/videos/{video}/result", self.fetch_video, methods=["GET"]),
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
        """Return what runs, and how busy it is."""
        from starlette.responses import JSONResponse

        bundle = self.composer.bundle
        return JSONResponse(
            {
                "status": "ok",
                "version": installed_version() or "unknown",
                "bundle": {"name": bundle.name, "version": bundle.version},
                "provider": self.composer.provider,
                "resolution": self.composer.resolution,
                "resolutions": self._resolutions(),
                "controls": CONTROLS in bundle.graphs,
                "live": {"sessions": len(self.sessions), "limit": self.limits.sessions},
                "queue": {"waiting": self.worker.waiting, "limit": self.worker.limit},
                "upload": {"mb": self.limits.upload_mb, "megapixels": self.limits.megapixels},
                "video": {"mb": self.limits.video_mb, "seconds": MOST_SECONDS},
            }
        )

    def _resolutions(self) -> list[int]:
        own = self.composer.bundle.resolution
        return [own] if self.composer.bundle.own_generator else sorted({own, FULL_RESOLUTION})

    async def show_metrics(self, _: Request) -> Response:
        """Return counts in Prometheus' text form."""
        from prometheus_client import CONTENT_TYPE_LATEST
        from starlette.responses import Response

        text = self.metrics.text()
        if self.peers is not None:
            own, others = self.peers.number, range(self.peers.count)
            answers = await asyncio.gather(*(self.peers.ask(i, "metrics") for i in others if i != own))
            texts = {own: text, **dict(zip((i for i in others if i != own), answers, strict=True))}
            text = merged([(str(i), texts[i] or b"") for i in sorted(texts)])
        return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})

    async def _answer_peer(self, question: str) -> bytes:
        """What another process of this server asks: "metrics", or to end a live session."""
        if question == "metrics":
            return self.metrics.text()
        await self._stop(question.removeprefix("stop "))
        return b"stopped"

    async def _stop(self, name: str) -> None:
        session = self.sessions.get(name)
        if session is not None:  # else it ended by itself
            await session.close()

    async def shipped(self, request: Request) -> Response:
        """Return the faces that ship with fid, for the last part of the path: identities or attributes."""
        from starlette.responses import JSONResponse

        kind = request.url.path.rsplit("/", 1)[1]
        faces = [{"name": name, "picture": f"faces/{path.name}"} for name, path in shipped_faces(KINDS[kind]).items()]
        return JSONResponse({kind: faces})

    async def make_identity(self, request: Request) -> Response:
        """Answer photos of one person with an identity file."""
        with self.worker.place():
            form = await read_form(request, ("photo", "face"), self.limits.upload_bytes)
            identity = await self.faces.identity(form, "photo", "face")
            return file_answer(identity.to_bytes(), "application/octet-stream", "identity.npz")

    async def make_attributes(self, request: Request) -> Response:
        """Answer a photo with its attribute code as .npy."""
        with self.worker.place():
            form = await read_form(request, ("photo", "face"), self.limits.upload_bytes)
            code = await self.faces.attributes(form, "photo", "face")
            file = io.BytesIO()
            np.save(file, code, allow_pickle=False)
            return file_answer(file.getvalue(), "application/octet-stream", "attributes.npy")

    async def compose(self, request: Request) -> Response:
        """Answer identity and attributes with a picture."""
        with self.worker.place():
            form = await read_form(request, COMPOSE_FIELDS, self.limits.upload_bytes)
            with collect_timings() as timings:
                data, kind = await self.faces.picture(form)
            timing = ", ".join(f"{stage};dur={ms:.1f}" for stage, ms in timings.items())
            return file_answer(data, kind, f"composition{kind.replace('image/', '.')}", {"server-timing": timing})

    async def notes(self, _: Request) -> Response:
        """Return what the page puts into the files that it makes itself, so that they say that they are synthetic."""
        from starlette.responses import JSONResponse

        none = {"png": "", "mp4": ""}
        note = inserted_note(self.composer.note("reenactment")) if self.label.provenance else none
        return JSONResponse({"reenactment": note})

    async def find_faces(self, request: Request) -> Response:
        """Answer a photo with the places of its faces."""
        from starlette.responses import JSONResponse

        with self.worker.place():
            form = await read_form(request, ("photo",), self.limits.upload_bytes)
            return JSONResponse(await self.faces.places(form, "photo"))

    async def check(self, request: Request) -> Response:
        """Answer a picture with the labels of fid that it bears."""
        from starlette.responses import JSONResponse

        with self.worker.place():
            form = await read_form(request, ("photo",), self.limits.upload_bytes)
            return JSONResponse(await self.faces.labels(form, "photo"))

    async def take_video(self, request: Request) -> Response:
        """Store a video."""
        from starlette.responses import JSONResponse

        with self.worker.place():
            return JSONResponse((await self.videos.receive(request)).report(), 201)

    async def start_video(self, request: Request) -> Response:
        """Begin to compose a stored video, with the settings of a live one."""
        from starlette.responses import JSONResponse

        video = self.videos.find(request.path_params["video"])
        with self.worker.place():
            body = await read_body(request, MAX_OFFER_BYTES)
            told = decode(body, dict[str, Any], lambda why: RefusedError(400, f"the body {why}."))
            video = self.videos.start(video, await self.faces.settings(told, Settings()))
        return JSONResponse(video.report(), 202)

    async def show_video(self, request: Request) -> Response:
        """Tell how far a video is."""
        from starlette.responses import JSONResponse

        return JSONResponse(self.videos.find(request.path_params["video"]).report())

    async def fetch_video(self, request: Request) -> Response:
        """Answer with a composed video, and delete it when all of it has been sent."""
        from starlette.background import BackgroundTask
        from starlette.responses import FileResponse

        video = self.videos.find(request.path_params["video"])
        if video.state != "done":
            raise RefusedError(409, f"this video is {video.state}, and not done.")
        headers = {"cache-control": "no-store"}
        gone = BackgroundTask(self.videos.delete, video)
        path = self.videos.result(video)
        return FileResponse(path, headers=headers, media_type="video/mp4", filename="fid.mp4", background=gone)

    async def delete_video(self, request: Request) -> Response:
        """Stop and delete a video."""
        from starlette.responses import Response

        await self.videos.delete(self.videos.find(request.path_params["video"]))
        return Response(status_code=204)

    async def start_live(self, request: Request) -> Response:
        """Answer a WebRTC offer; from then on video comes in and goes out."""
        from starlette.requests import ClientDisconnect

        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise RefusedError(415, "send the offer as application/json.")
        with self.worker.place():
            try:
                body = await read_body(request, MAX_OFFER_BYTES)
            except ClientDisconnect:
                raise RefusedError(400, "the offer did not arrive.") from None
            offer = decode(body, Offer, lambda why: RefusedError(400, f"the offer {why}."))
            return await self._answer_offer(offer, request.client.host if request.client else "127.0.0.1")

    async def _answer_offer(self, offer: Offer, address: str) -> Response:
        """The session of an offer that came from `address`."""
        from starlette.responses import JSONResponse

        if offer.type != "offer":
            raise RefusedError(400, 'a WebRTC offer is needed: {"type": "offer", "sdp": ...}.')
        if len(self.sessions) >= self.limits.sessions:
            raise RefusedError(
                503, f"{len(self.sessions)} live videos run already, which is the limit here.", retry_after="5"
            )
        session = self.new_session()
        try:
            await session.apply(offer.settings)
            sdp = await session.answer(offer.sdp, address)
        except BaseException:
            await session.close()
            raise
        return JSONResponse({"session": session.name, "type": "answer", "sdp": sdp})

    def new_session(self) -> LiveSession:
        """Return a live session of this server, which counts until it has ended."""
        from .live_session import LiveSession

        def ended(name: str) -> None:
            self.sessions.pop(name, None)

        session = LiveSession(self.composer, self.worker, self.metrics, self.faces.settings, ended, self.label)
        if self.peers is not None:
            session.name = self.peers.own(session.name)
        self.sessions[session.name] = session
        return session

    async def stop_live(self, request: Request) -> Response:
        """End a live session."""
        from starlette.responses import Response

        name = request.path_params["session"]
        if self.peers is None or (owner := self.peers.owner(name)) == self.peers.number:
            await self._stop(name)
        else:
            await self.peers.ask(owner, f"stop {name}")
        return Response(status_code=204)

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


def serve(
    server: Server,
    listening: socket.socket,
    certificate: Path | None = None,
    key: Path | None = None,
    patience: Patience | None = None,
) -> None:
    """Answer until Ctrl-C or SIGTERM; with a certificate that `listen.check_certificate` has passed, over HTTPS."""
    import uvicorn

    connections = Connections(patience or Patience())
    config = uvicorn.Config(
        server.app(),
        loop="asyncio",
        http=protocol(connections),  # type: ignore[arg-type] - makes one, as a class would
        log_config=None,  # its own would close the log handlers of other libraries
        log_level="error",  # it warns of each request that is no HTTP
        access_log=False,
        server_header=False,
        ws="none",
        timeout_keep_alive=round(connections.patience.idle_s),
        timeout_graceful_shutdown=3,
        ssl_certfile=None if certificate is None else str(certificate),
        ssl_keyfile=None if key is None else str(key),
    )
    run(config, listening, connections, server.faces.close)


def warm_up(server: Server) -> None:
    """Fetch what is missing, open all graphs and compose once, so that the first request is as quick as the next."""
    composer = server.composer
    name = next(iter(shipped_faces("identity")))
    crop = composer.crop(shipped_face("identities", name))
    w = composer.w(server.faces.shipped_identity(name), composer.attribute_code(crop))
    for light in {False, composer.wants_light}:
        composer.image(w, light=light)


def _route(path: str) -> str:
    """A path as a label: few values, whatever is asked for."""
    if path.startswith("/api/live/"):
        return "/api/live/{session}"
    if path.startswith("/api/videos/"):
        return "/api/videos/{video}" + ("/result" if path.endswith("/result") else "")
    known = (
        "/api/health",
        "/api/notes",
        "/api/identities",
        "/api/attributes",
        "/api/compose",
        "/api/faces",
        "/api/check",
        "/api/videos",
    )
    known += ("/api/videos", "/api/live", "/metrics")
    return path if path in known else "other" if is_private(path) else "page"
