"""Whole videos of `fid-run serve`: uploaded, composed in turn with everything else, fetched once, and deleted.

A video lies in a folder of its own in the system's temporary folder, readable for the server's user alone, from its
upload until its result was fetched, it was deleted, or `LIFE_SECONDS` have passed; the server's end takes all of them.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FidError, InputError
from ..live.layout import Reenactment
from ..live.reenact import Reenactor
from ..media.images import TooLargeError
from ..media.video import Clip, open_clip
from ..media.video_rework import rework
from .form import stored_body
from .guard import RefusedError
from .picture import Labelling, Settings

if TYPE_CHECKING:
    import numpy as np
    from starlette.requests import Request

    from ..composer import Composer
    from .worker import Limits, Worker

MOST_VIDEOS = 4  # that are here at a time, in whatever state
MOST_SECONDS = 300.0  # of one video
LIFE_SECONDS = 900.0  # that an upload waits for its settings, and a result to be fetched


class StoppedError(FidError):
    """The user, or the end of the server, stopped the work."""


@dataclass
class Video:
    """One uploaded video and what became of it."""

    name: str
    folder: Path
    clip: Clip
    state: str = "uploaded"  # then running, then done or failed
    frames: int = 0  # that are ready
    error: str = ""
    began: float = 0.0  # by the monotonic clock
    stopped: bool = False
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def result(self) -> Path:
        """The composed video, when it is done."""
        return self.folder / "result.mp4"

    def report(self) -> dict[str, Any]:
        """Return what the page shows: state, progress, and about how many seconds are left."""
        clip, left = self.clip, None
        if self.state == "running" and self.frames:
            left = round((time.monotonic() - self.began) / self.frames * max(0, clip.frames - self.frames))
        told = {"video": self.name, "state": self.state, "frames": self.frames, "total": clip.frames}
        told |= {"width": clip.width, "height": clip.height, "seconds": round(clip.frames / float(clip.rate), 1)}
        return {**told, "seconds_left": left, "error": self.error or None}


class InTurn:
    """A reenactment whose frames are composed in the worker's thread, between requests and live frames; see
    `video_rework.FrameWork`."""

    def __init__(self, work: Reenactment, video: Video, worker: Worker, loop: asyncio.AbstractEventLoop) -> None:
        self._work, self._video, self._worker, self._loop = work, video, worker, loop

    def picture(self, image: np.ndarray, time_s: float) -> np.ndarray:
        """Return the frame RGB uint8 [height, width, 3] as RGB uint8, composed. `StoppedError` when it is not wanted
        any more."""
        if self._video.stopped:
            raise StoppedError("the work was stopped.")
        turn = self._worker.run(self._work.picture, image, time_s)
        return asyncio.run_coroutine_threadsafe(turn, self._loop).result()

    @property
    def state(self) -> Any:
        """What the reenactment remembers of former frames."""
        return self._work.state

    @state.setter
    def state(self, state: Any) -> None:
        self._work.state = state


class Videos:
    """The videos that are here. All methods in the event loop."""

    def __init__(self, composer: Composer, worker: Worker, limits: Limits, label: Labelling) -> None:
        """`label`: what every video says about itself."""
        self._composer, self._worker, self._limits, self._label = composer, worker, limits, label
        self._all: dict[str, Video] = {}
        self._endings: set[asyncio.Task[None]] = set()

    def find(self, name: str) -> Video:
        """Return the video of that name; `RefusedError` 404 for none."""
        if name not in self._all:
            raise RefusedError(404, "this video is not here: its time is over, or it was fetched or deleted.")
        return self._all[name]

    async def receive(self, request: Request) -> Video:
        """Store the body of a request, a video file, and look at it. `RefusedError` 413 for one that is too large or
        too long, 415 for what is no video, 503 when too many are here."""
        if not self._limits.video_mb:
            raise RefusedError(503, "this server takes no videos.")
        if len(self._all) >= MOST_VIDEOS:
            raise RefusedError(503, f"{len(self._all)} videos are here already; try again later.", retry_after="30")
        name, folder = secrets.token_urlsafe(12), Path(tempfile.mkdtemp(prefix="fid-video-"))
        try:
            path = folder / "upload"
            await stored_body(request, path, round(self._limits.video_mb * 1e6))
            try:
                clip = await asyncio.to_thread(open_clip, path, round(self._limits.megapixels * 1e6))
            except TooLargeError:
                raise RefusedError(413, f"its frames have more than {self._limits.megapixels:g} megapixels.") from None
            except InputError as error:
                raise RefusedError(415, "this is not a video that can be read; MP4, MOV and WebM are.") from error
            if clip.frames / float(clip.rate) > MOST_SECONDS:
                raise RefusedError(413, f"the video is longer than {MOST_SECONDS / 60:.0f} minutes; cut it first.")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        video = self._all[name] = Video(name, folder, clip)
        self._later(video)
        return video

    def start(self, video: Video, settings: Settings) -> None:
        """Begin to compose a video. `RefusedError` 400 without a person, 409 when it has been begun."""
        if not settings.people:
            raise RefusedError(400, "identity is needed: who is to be composed.")
        if video.state != "uploaded":
            raise RefusedError(409, f"this video is {video.state} already.")
        video.state, video.began = "running", time.monotonic()
        video.task = asyncio.ensure_future(self._compose(video, settings))

    async def _compose(self, video: Video, settings: Settings) -> None:
        from ..interpolate import identity_between

        who = identity_between(settings.people[0], settings.people[-1], settings.identity_mix)
        work = Reenactment(Reenactor(self._composer, light=None), settings.wishes(who, self._label.badge))
        note = self._label.note(self._composer.note("reenactment"))

        def tick(frames: int) -> None:
            video.frames = frames

        try:
            in_turn = InTurn(work, video, self._worker, asyncio.get_running_loop())
            await asyncio.to_thread(rework, video.clip, video.result, in_turn, settings={}, note=note, tick=tick)
            video.state = "done"
        except FidError as error:
            video.state, video.error = "failed", str(error).replace(str(video.folder / "upload"), "the video")
        except Exception:
            video.state, video.error = "failed", "something went wrong in the server; its terminal says what."
            raise
        finally:
            (video.folder / "upload").unlink(missing_ok=True)
            self._later(video)

    def _later(self, video: Video) -> None:
        """Delete the video when nobody has come for it."""
        state = video.state

        async def wait() -> None:
            await asyncio.sleep(LIFE_SECONDS)
            if video.state == state:
                await self.delete(video)

        self._keep(wait())

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    async def delete(self, video: Video) -> None:
        """Stop the work on a video and delete all of it."""
        video.stopped = True
        self._all.pop(video.name, None)
        if video.task is not None:
            await asyncio.gather(video.task, return_exceptions=True)
        await asyncio.to_thread(shutil.rmtree, video.folder, ignore_errors=True)

    async def close(self) -> None:
        """Delete every video."""
        await asyncio.gather(*(self.delete(video) for video in list(self._all.values())))
        for task in list(self._endings):
            task.cancel()
        await asyncio.gather(*self._endings, return_exceptions=True)
