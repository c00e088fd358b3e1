"""One live video of `fid-run serve`: the browser's camera comes in over WebRTC, the composed video goes back.

The newest frame wins: one slot between network and worker, one between worker and encoder. So the delay does not grow
when frames come faster than they are composed; they are dropped, and counted. Every frame's age, from its arrival to
its hand-over to the encoder, is measured. A data channel carries settings one way and these figures the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from ..errors import FidError
from ..live.ages import percentiles
from ..live.encoder import use_true_rate
from ..weights.records import decode
from .guard import RefusedError

if TYPE_CHECKING:
    from aiortc import MediaStreamTrack, RTCDataChannel

    from ..composer import Composer
    from ..live.layout import Picture
    from .metrics import Metrics
    from .worker import Worker

from .picture import Labelling, PictureMaker, Settings

MAX_MESSAGE = 1 << 15  # characters of a message on the data channel; one with two identity files has 12 thousand
MAX_MESSAGES = 32  # that wait to be read; a slider sends one a frame
CONNECT_SECONDS = 20.0  # from the answer to the first frame
SILENCE_SECONDS = 10.0  # without a frame, and the session ends
STATS_SECONDS = 0.5  # between two reports to the page
WINDOW_SECONDS = 2.0  # that a reported rate is measured over
HIDDEN = re.compile(r"^(a=candidate:\S+ \S+ \S+ \S+ )\S+\.local ", flags=re.MULTILINE)
AGES = 120  # frames that reported percentiles are taken over


class LiveSession:
    """One peer connection with its settings and figures. `_work` runs in the worker's thread, the rest in the event
    loop."""

    def __init__(
        self,
        composer: Composer,
        worker: Worker,
        metrics: Metrics,
        changed: Callable[[Any, Settings], Awaitable[Settings]],
        ended: Callable[[str], object],
        label: Labelling,
    ) -> None:
        """`changed`: the settings with what a message of the page changes (`Faces.settings`). `ended` is told the
        session's name at its end. `label`: what its video says about itself."""
        from aiortc import RTCConfiguration, RTCPeerConnection

        use_true_rate()
        self.name = secrets.token_urlsafe(12)
        self._composer, self._worker, self._metrics = composer, worker, metrics
        self._changed, self._ended = changed, ended
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))  # nobody outside learns of it
        self._settings = Settings()
        self._newest: deque[tuple[Any, float]] = deque(maxlen=1)  # the slot: a video frame and when it arrived
        self._arrived, self._composed = asyncio.Event(), asyncio.Event()
        self._done: tuple[Picture, Any, float] | None = None  # the other: picture, its frame, when that arrived
        self._maker = PictureMaker(composer, label)
        self._last: Picture | None = None  # that was composed
        self._tasks: list[asyncio.Task] = []
        self._messages: asyncio.Queue[str | bytes] = asyncio.Queue(MAX_MESSAGES)
        self._channel: RTCDataChannel | None = None
        self._seen = time.monotonic()  # when the last frame arrived
        self._frames = 0
        self.dropped = 0
        self._hand_overs: deque[float] = deque(maxlen=256)
        self.ages_ms: deque[float] = deque(maxlen=AGES)
        self._ending: asyncio.Task[None] | None = None

    async def answer(self, offer: str, address: str) -> str:
        """Return the answer's SDP. `RefusedError` 400 for an offer that cannot be answered, 422 for one that is not one
        video.

        `address` is where the offer came from. Browsers hide their addresses behind names that only multicast DNS
        knows; that address takes their place. Where it is 127.0.0.1, and media take another way, the browser's own
        checks find the way, and the place holder keeps the connection waiting for them.
        """
        from aiortc import MediaStreamError, RTCSessionDescription

        connection = self._connection

        @connection.on("track")
        def _(track: MediaStreamTrack) -> None:
            if track.kind == "video":
                self._start(self._receive(track, MediaStreamError))

        @connection.on("datachannel")
        def _(channel: RTCDataChannel) -> None:
            self._channel = channel
            channel.on("message", self._on_message)

        @connection.on("connectionstatechange")
        async def _() -> None:
            if connection.connectionState in ("failed", "closed"):
                await self.close()

        try:
            await connection.setRemoteDescription(
                RTCSessionDescription(HIDDEN.sub(rf"\g<1>{address} ", offer), "offer")
            )
            if [transceiver.kind for transceiver in connection.getTransceivers()] != ["video"]:
                raise RefusedError(422, "an offer of exactly one video is needed, and no audio.")
            connection.addTrack(_outgoing_track(self._next))
            await connection.setLocalDescription(await connection.createAnswer())
        except RefusedError:
            raise
        except Exception as error:  # the parser lets through whatever it stumbles over
            raise RefusedError(400, "the offer's SDP is malformed, or knows neither VP8 nor H.264.") from error
        self._seen = time.monotonic() + CONNECT_SECONDS - SILENCE_SECONDS
        for work in (self._compose(), self._report(), self._follow_messages()):
            self._start(work)
        return connection.localDescription.sdp

    async def apply(self, settings: Any) -> None:
        """Change settings, all or none of them: `RefusedError` or `FidError` for what cannot be."""
        self._settings = await self._changed(settings, self._settings)

    async def close(self) -> None:
        """End the session and wait until it has ended; more than once does no harm."""
        if self._ending is None:
            self._ending = asyncio.ensure_future(self._end())
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        """The session counts until its sockets are closed, so whoever waits for the last one leaves none open."""
        try:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._connection.close()
        finally:
            self._ended(self.name)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` until the session ends; a bug in it ends the session, and its traceback is printed."""

        def done(task: asyncio.Task[None]) -> None:
            error = None if task.cancelled() else task.exception()
            if error is not None:
                traceback.print_exception(error)
                self._send({"error": "something went wrong in the server; its terminal says what."})
                self._end_soon()

        task = asyncio.ensure_future(work)
        task.add_done_callback(done)
        self._tasks.append(task)

    def _end_soon(self) -> None:
        """Close from inside of a task of the session, when what was said last has left."""
        asyncio.get_running_loop().call_later(0.2, lambda: asyncio.ensure_future(self.close()))

    def stats(self) -> dict[str, Any]:
        """Return what the page shows: rate, age, ms per stage, dropped frames, provider."""
        now = time.monotonic()
        recent = sum(now - at < WINDOW_SECONDS for at in self._hand_overs)
        return {
            "fps": round(recent / WINDOW_SECONDS, 1),
            "age_ms": percentiles(self.ages_ms) if self.ages_ms else dict.fromkeys(("p50", "p95", "p99")),
            "stage_ms": {stage: round(ms, 1) for stage, ms in self._last.timings.items()} if self._last else {},
            "frames": self._frames,
            "dropped": self.dropped,
            "face": self._last is not None and self._last.seen,
            "provider": self._composer.provider,
        }

    async def _receive(self, track: MediaStreamTrack, ended: type[Exception]) -> None:
        """Take every frame as it arrives; the newest replaces the one that waits."""
        with contextlib.suppress(ended):
            while True:
                self._put(await track.recv())

    def _put(self, frame: Any) -> None:
        self._seen = time.monotonic()
        if self._newest:
            self._drop()
        self._newest.append((frame, self._seen))
        self._arrived.set()

    async def _compose(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            try:
                done = await self._worker.run(self._work)
            except FidError as error:
                self._send({"error": str(error)})
                continue
            if done is None:
                continue
            if self._done is not None:
                self._drop()
            self._done, self._last = done, done[0]
            self._composed.set()

    def _work(self) -> tuple[Picture, Any, float] | None:
        """Compose the frame that is the newest now that the worker has come to it."""
        if not self._newest or not self._settings.people:
            return None
        frame, arrived = self._newest.pop()
        return self._maker.picture(frame, self._settings), frame, arrived

    def _drop(self) -> None:
        self.dropped += 1
        self._metrics.dropped.inc()

    async def _next(self) -> Any:
        """The next frame for the encoder, with the time stamp of the one it was made from."""
        from av import VideoFrame

        while self._done is None:
            self._composed.clear()
            await self._composed.wait()
        (picture, source, arrived), self._done = self._done, None
        frame = VideoFrame.from_ndarray(picture.image, format="rgb24")
        frame.pts, frame.time_base = source.pts, source.time_base
        now = time.monotonic()
        self._frames += 1
        self._hand_overs.append(now)
        self.ages_ms.append(1e3 * (now - arrived))
        self._metrics.frames.inc()
        self._metrics.age.observe(now - arrived)
        return frame

    async def _report(self) -> None:
        """Send figures to the page, and end a session that has gone silent."""
        while time.monotonic() - self._seen < SILENCE_SECONDS:
            self._send({"stats": self.stats()})
            await asyncio.sleep(STATS_SECONDS)
        self._send({"error": "the video was ended, because no camera frame arrived any more."})
        self._end_soon()

    def _on_message(self, message: str | bytes) -> None:
        try:
            self._messages.put_nowait(message)
        except asyncio.QueueFull:
            self._send({"error": "messages come faster than they can be read; some were dropped."})

    async def _follow_messages(self) -> None:
        """Messages of the page, one after the other."""
        while True:
            message = await self._messages.get()
            try:
                content = _parsed(message)
                if "ping" in content:
                    self._send({"pong": content["ping"]})
                else:
                    await self.apply(content)
            except (RefusedError, FidError) as error:
                self._send({"error": str(error)})

    def _send(self, content: dict[str, Any]) -> None:
        channel = self._channel
        if channel is not None and channel.readyState == "open" and channel.bufferedAmount < MAX_MESSAGE:
            channel.send(json.dumps(content))


def _parsed(message: str | bytes) -> dict[str, Any]:
    if not isinstance(message, str) or len(message) > MAX_MESSAGE:
        raise RefusedError(400, f"a message is JSON of at most {MAX_MESSAGE} characters.")
    return decode(message, dict[str, Any], lambda why: RefusedError(400, f"the message {why}."))


def _outgoing_track(next_frame: Any) -> MediaStreamTrack:
    from aiortc import MediaStreamTrack

    class Outgoing(MediaStreamTrack):
        kind = "video"

        async def recv(self) -> Any:
            return await next_frame()

    return Outgoing()
