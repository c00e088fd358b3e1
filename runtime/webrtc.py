"""One live video of `fid-run serve`: the browser's camera comes in over WebRTC, the composed video goes back.

The newest frame wins: one slot between network and worker, one between worker and encoder. So the delay does not grow
when frames come faster than they are composed; they are dropped, and counted. Every frame's age, from its arrival to
its hand-over to the encoder, is measured. A data channel carries settings one way and these figures the other.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from .align import Alignment, align
from .crop import CROP_SIZE
from .detect import Detector, Face
from .errors import FidError
from .identity import Identity
from .paste import Paster
from .serve import Refusal, mixed_w

if TYPE_CHECKING:
    from aiortc import MediaStreamTrack, RTCDataChannel

    from .serve import Server

VIEWS = ("result", "paste", "side-by-side")
NO_FACE = ("hold", "pass", "blank")
MAX_SIDE = 1280  # px; larger frames are made smaller on arrival
MAX_MESSAGE = 1 << 15  # characters of a message on the data channel; one with two identity files has 12 thousand
MAX_MESSAGES = 32  # that wait to be read; a slider sends one a frame
CONNECT_SECONDS = 20.0  # from the answer to the first frame
SILENCE_SECONDS = 10.0  # without a frame, and the session ends
STATS_SECONDS = 0.5  # between two reports to the page
WINDOW_SECONDS = 2.0  # that a reported rate is measured over
AGES = 120  # frames that reported percentiles are taken over


class LiveSession:
    """One peer connection with its settings and figures. Everything but `_work` runs in the event loop."""

    def __init__(self, server: Server) -> None:
        from aiortc import RTCConfiguration, RTCPeerConnection

        self.name = secrets.token_urlsafe(12)
        self._server = server
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))  # nobody outside learns of it
        self._people: list[Identity] = []  # one, or two to go between
        self._mix = 0.0
        self._view, self._no_face = "result", "hold"
        self._newest: tuple[Any, float] | None = None  # the slot: a video frame and when it arrived
        self._arrived, self._composed = asyncio.Event(), asyncio.Event()
        self._done: tuple[np.ndarray, Any, float] | None = None  # the other: picture, its frame, when that arrived
        self._worker = FrameWorker()
        self._tasks: list[asyncio.Task] = []
        self._messages: asyncio.Queue[str | bytes] = asyncio.Queue(MAX_MESSAGES)
        self._channel: RTCDataChannel | None = None
        self._seen = time.monotonic()  # the last frame
        self._frames = 0
        self.dropped = 0
        self._hand_overs: deque[float] = deque(maxlen=256)
        self.ages_ms: deque[float] = deque(maxlen=AGES)
        self._closed = False

    async def answer(self, offer: str) -> str:
        """The answer's SDP. `Refusal` 400 for an offer that cannot be read, 422 for one that is not one video."""
        from aiortc import MediaStreamError, RTCSessionDescription

        connection = self._connection

        @connection.on("track")
        def _(track: MediaStreamTrack) -> None:
            if track.kind == "video":
                self._tasks.append(asyncio.ensure_future(self._receive(track, MediaStreamError)))

        @connection.on("datachannel")
        def _(channel: RTCDataChannel) -> None:
            self._channel = channel
            channel.on("message", self._on_message)

        @connection.on("connectionstatechange")
        async def _() -> None:
            if connection.connectionState in ("failed", "closed"):
                await self.close()

        try:
            await connection.setRemoteDescription(RTCSessionDescription(offer, "offer"))
        except Exception as error:  # the parser lets through whatever it stumbles over
            raise Refusal(400, "the offer's SDP cannot be read.") from error
        kinds = [transceiver.kind for transceiver in connection.getTransceivers()]
        if kinds != ["video"]:
            raise Refusal(422, "an offer of exactly one video is needed, and no audio.")
        connection.addTrack(_outgoing_track(self._next))
        try:
            local = await connection.createAnswer()
            await connection.setLocalDescription(local)
        except Exception as error:
            raise Refusal(422, "no codec of the offer is known here; VP8 and H.264 are.") from error
        self._seen = time.monotonic() + CONNECT_SECONDS - SILENCE_SECONDS
        self._tasks += [asyncio.ensure_future(work) for work in (self._compose(), self._report(), self._obey())]
        return connection.localDescription.sdp

    async def apply(self, settings: Any) -> None:
        """Change settings, all or none of them: `Refusal` or `FidError` for what cannot be."""
        if not isinstance(settings, dict):
            raise Refusal(400, "settings are a JSON object.")
        unknown = settings.keys() - {"identity", "identity_to", "identity_mix", "view", "no_face"}
        if unknown:
            raise Refusal(400, f"there is no setting {min(unknown)[:40]!r}.")
        mix, view = settings.get("identity_mix", self._mix), settings.get("view", self._view)
        no_face = settings.get("no_face", self._no_face)
        if isinstance(mix, bool) or not isinstance(mix, int | float) or not 0 <= mix <= 1:
            raise Refusal(400, "identity_mix is a number from 0 to 1.")
        if view not in VIEWS or no_face not in NO_FACE:
            raise Refusal(400, f"view is one of {', '.join(VIEWS)}, and no_face one of {', '.join(NO_FACE)}.")
        people = self._people
        if "identity" in settings or "identity_to" in settings:
            ends = [settings.get("identity"), settings.get("identity_to")]
            people = await self._server.worker.run(self._identities, [end for end in ends if end is not None])
        self._people, self._mix, self._view, self._no_face = people, float(mix), view, no_face

    async def close(self) -> None:
        """End the session; more than once does no harm."""
        if self._closed:
            return
        self._closed = True
        self._server.sessions.pop(self.name, None)
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._connection.close()

    def stats(self) -> dict[str, Any]:
        """What the page shows: rate, age, ms per stage, dropped frames, provider."""
        now = time.monotonic()
        recent = sum(now - at < WINDOW_SECONDS for at in self._hand_overs)
        ages = np.percentile(self.ages_ms, [50, 95, 99]).round(1).tolist() if self.ages_ms else [None] * 3
        return {
            "fps": round(recent / WINDOW_SECONDS, 1),
            "age_ms": dict(zip(("p50", "p95", "p99"), ages, strict=True)),
            "stage_ms": {stage: round(ms, 1) for stage, ms in self._worker.stage_ms.items()},
            "frames": self._frames,
            "dropped": self.dropped,
            "face": self._worker.face_seen,
            "provider": self._server.composer.provider,
        }

    def _identities(self, ends: list[Any]) -> list[Identity]:
        """In the worker's thread: the name of a face that ships, or {"npz": an identity file in base64}."""
        people = []
        for end in ends:
            if isinstance(end, str):
                people.append(self._server.shipped_identity(end))
                continue
            text = end.get("npz") if isinstance(end, dict) else None
            try:
                data = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
            except ValueError:
                data = b""
            if not data:
                raise Refusal(400, 'an identity is the name of a face that ships, or {"npz": base64}.')
            people.append(self._server.composer.identify(Identity.from_bytes(data, "the identity")))
        return people

    async def _receive(self, track: MediaStreamTrack, ended: type[Exception]) -> None:
        """Take every frame as it arrives; the newest replaces the one that waits."""
        with contextlib.suppress(ended):
            while True:
                frame = await track.recv()
                self._seen = max(self._seen, time.monotonic())
                if self._newest is not None:
                    self.dropped += 1
                    self._server.metrics.dropped.inc()
                self._newest = frame, time.monotonic()
                self._arrived.set()

    async def _compose(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            if self._newest is None or not self._people:
                continue
            (frame, arrived), self._newest = self._newest, None
            options = self._people, self._mix, self._view, self._no_face
            try:
                picture = await self._server.worker.run(self._worker.picture, self._server, frame, *options)
            except FidError as error:
                self._send({"error": str(error)})
                continue
            if picture is None:
                continue
            if self._done is not None:
                self.dropped += 1
                self._server.metrics.dropped.inc()
            self._done = picture, frame, arrived
            self._composed.set()

    async def _next(self) -> Any:
        """The next frame for the encoder, with the time stamp of the one it was made from."""
        from av import VideoFrame

        while self._done is None:
            self._composed.clear()
            await self._composed.wait()
        (picture, source, arrived), self._done = self._done, None
        frame = VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = source.pts, source.time_base
        now = time.monotonic()
        self._frames += 1
        self._hand_overs.append(now)
        self.ages_ms.append(1e3 * (now - arrived))
        self._server.metrics.frames.inc()
        self._server.metrics.age.observe(now - arrived)
        return frame

    async def _report(self) -> None:
        """Send figures to the page, and end a session that has gone silent."""
        while time.monotonic() - self._seen < SILENCE_SECONDS:
            self._send({"stats": self.stats()})
            await asyncio.sleep(STATS_SECONDS)
        self._send({"error": "the video was ended, because no camera frame arrived any more."})
        asyncio.get_running_loop().call_later(0.2, lambda: asyncio.ensure_future(self.close()))

    def _on_message(self, message: str | bytes) -> None:
        try:
            self._messages.put_nowait(message)
        except asyncio.QueueFull:
            self._send({"error": "messages come faster than they can be read; some were dropped."})

    async def _obey(self) -> None:
        """Messages of the page, one after the other."""
        while True:
            message = await self._messages.get()
            try:
                content = _parsed(message)
                if isinstance(content, dict) and "ping" in content:
                    self._send({"pong": content["ping"]})
                else:
                    await self.apply(content)
            except (Refusal, FidError) as error:
                self._send({"error": str(error)})

    def _send(self, content: dict[str, Any]) -> None:
        channel = self._channel
        if channel is not None and channel.readyState == "open" and channel.bufferedAmount < MAX_MESSAGE:
            channel.send(json.dumps(content))


class FrameWorker:
    """A frame becomes a picture; in the worker's thread only. Keeps what one live video needs from frame to frame."""

    def __init__(self) -> None:
        self.stage_ms: dict[str, float] = {}  # of the last frame
        self.face_seen = False
        self._detector: Detector | None = None
        self._paster = Paster()
        self._last: np.ndarray | None = None  # what is held while there is no face

    def picture(
        self, server: Server, frame: Any, people: list[Identity], mix: float, view: str, no_face: str
    ) -> np.ndarray | None:
        """RGB uint8 [height, width, 3], even sides; None when there is nothing to show yet."""
        start = time.perf_counter()
        image = _rgb(frame)
        alignment = self._find(image)
        found = time.perf_counter()
        self.face_seen = alignment is not None
        self.stage_ms = {"find": 1e3 * (found - start)}
        side = server.composer.resolution
        if alignment is None:
            self._paster.reset()
            if no_face == "hold":
                return self._last
            if no_face == "blank":
                return np.zeros_like(self._last if self._last is not None else image)
            return image if view == "paste" else _square(image, side)
        crop = alignment.crop(image)
        composer = server.composer
        composed = composer.image(mixed_w(composer, people, [composer.attribute_code(crop)], mix, 0.0))
        made = time.perf_counter()
        if view == "paste":
            picture = self._paster.paste(image, composed, alignment, crop=crop)
        elif view == "side-by-side":
            picture = np.hstack([cv2.resize(crop, composed.shape[1::-1], interpolation=cv2.INTER_AREA), composed])
        else:
            picture = composed
        self.stage_ms |= {"compose": 1e3 * (made - found), "show": 1e3 * (time.perf_counter() - made)}
        self._last = picture
        return picture

    def _find(self, image: np.ndarray) -> Alignment | None:
        """The alignment of the largest face; None without one."""
        if self._detector is None:
            self._detector = Detector()
        faces: list[Face] = self._detector.faces(image)
        return align(faces[0].points, CROP_SIZE) if faces else None


def _parsed(message: str | bytes) -> Any:
    if not isinstance(message, str) or len(message) > MAX_MESSAGE:
        raise Refusal(400, f"a message is JSON of at most {MAX_MESSAGE} characters.")
    try:
        return json.loads(message)
    except (ValueError, RecursionError):
        raise Refusal(400, "the message is not JSON.") from None


def _outgoing_track(next_frame: Any) -> MediaStreamTrack:
    from aiortc import MediaStreamTrack

    class Outgoing(MediaStreamTrack):
        kind = "video"

        async def recv(self) -> Any:
            return await next_frame()

    return Outgoing()


def _rgb(frame: Any) -> np.ndarray:
    """A video frame as RGB uint8 [height, width, 3], even sides of at most `MAX_SIDE`."""
    factor = min(1.0, MAX_SIDE / max(frame.width, frame.height))
    width, height = (max(2, round(side * factor) // 2 * 2) for side in (frame.width, frame.height))
    return frame.to_ndarray(format="rgb24", width=width, height=height)


def _square(image: np.ndarray, side: int) -> np.ndarray:
    """The middle of a frame, RGB uint8 [side, side, 3]."""
    height, width = image.shape[:2]
    shortest = min(height, width)
    top, left = (height - shortest) // 2, (width - shortest) // 2
    return cv2.resize(image[top : top + shortest, left : left + shortest], (side, side), interpolation=cv2.INTER_AREA)
