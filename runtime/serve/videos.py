"""Whole videos of `fid-run serve`: uploaded, composed in turn with everything else, fetched once, and deleted.

A video lies in a folder of its own, readable for the server's user alone, from its upload until its result was fetched,
it was deleted, or `LIFE_SECONDS` have passed; the server's end takes all of them. What became of it stands beside it,
so that any process that sees the folder answers for it; the one that is told to begin composes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FidError, InputError
from ..files import new_file
from ..live.layout import Reenactment
from ..live.reenact import Reenactor
from ..media.images import TooLargeError
from ..media.video import Clip, open_clip
from ..media.video_rework import rework
from ..weights.records import decode
from .form import stored_body
from .guard import RefusedError
from .picture import Labelling, Settings

if TYPE_CHECKING:
    import numpy as np
    from starlette.requests import Request

    from ..composer import Composer
    from .worker import Limits, Worker

MOST_SECONDS = 300.0  # of one video
LIFE_SECONDS = 900.0  # that an upload waits for its settings, and a result to be fetched
TOLD_SECONDS = 0.3  # from one word on progress to the next
BEAT_SECONDS, LOST_SECONDS = 2.0, 30.0  # from one sign of life of who composes to the next; without any, it is gone


class StoppedError(FidError):
    """The user, or the end of the server, stopped the work."""


@dataclass(frozen=True)
class Video:
    """One uploaded video and what became of it, as it stands on the disk."""

    name: str
    total: int  # frames
    width: int
    height: int
    length_s: float
    state: str = "uploaded"  # then running, then done or failed
    frames: int = 0  # that are ready
    error: str = ""
    began: float = 0.0  # s since 1970

    def report(self) -> dict[str, Any]:
        """Return what the page shows: state, progress, and about how many seconds are left."""
        left = None
        if self.state == "running" and self.frames:
            left = round((time.time() - self.began) / self.frames * max(0, self.total - self.frames))
        told = {"video": self.name, "state": self.state, "frames": self.frames, "total": self.total}
        told |= {"width": self.width, "height": self.height, "seconds": self.length_s}
        return {**told, "seconds_left": left, "error": self.error or None}


@dataclass
class Running:
    """What this process composes."""

    folder: Path
    stopped: bool = False
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def unwanted(self) -> bool:
        """Whether it was stopped here, or deleted by another process."""
        return self.stopped or not self.folder.exists()


class InTurn:
    """A reenactment whose frames are composed in the worker's thread, between requests and live frames; see
    `video_rework.FrameWork`."""

    def __init__(self, work: Reenactment, running: Running, worker: Worker, loop: asyncio.AbstractEventLoop) -> None:
        self._work, self._running, self._worker, self._loop = work, running, worker, loop

    def picture(self, image: np.ndarray, time_s: float) -> np.ndarray:
        """Return the frame RGB uint8 [height, width, 3] as RGB uint8, composed. `StoppedError` when it is not wanted
        any more."""
        if self._running.unwanted:
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

    def __init__(
        self, composer: Composer, worker: Worker, limits: Limits, label: Labelling, shared: Path | None = None
    ) -> None:
        """`label`: what every video says about itself. `shared`: a folder that several servers use as one; None: one
        of its own, made for the first video and deleted at the end."""
        self._composer, self._worker, self._limits, self._label = composer, worker, limits, label
        self.shared, self._at = shared is not None, shared
        self._running: dict[str, Running] = {}
        self._sweeping: asyncio.Task[None] | None = None

    @property
    def _folder(self) -> Path:
        if self._at is None:
            self._at = Path(tempfile.mkdtemp(prefix="fid-videos-"))
        return self._at

    def find(self, name: str) -> Video:
        """Return the video of that name; `RefusedError` 404 for none."""
        try:
            if self._at is None or re.fullmatch(r"[\w-]{16}", name, re.ASCII) is None:
                raise FileNotFoundError
            record = self._at / name / "video.json"
            video, silent_s = decode(record.read_bytes(), Video), time.time() - record.stat().st_mtime
        except FileNotFoundError:
            raise RefusedError(404, "this video is not here: its time is over, or it was fetched or deleted.") from None
        if video.state == "running" and silent_s > LOST_SECONDS:
            return replace(video, state="failed", error="the process that composed it has died; send it again.")
        return video

    def result(self, video: Video) -> Path:
        """Return where a composed video is."""
        return self._folder / video.name / "result.mp4"

    def _keep(self, video: Video) -> Video:
        """Write down what became of a video, unless it has been deleted."""
        with contextlib.suppress(FileNotFoundError), new_file(self._folder / video.name / "video.json") as record:
            record.write_text(json.dumps(asdict(video)))
        return video

    async def receive(self, request: Request) -> Video:
        """Store the body of a request, a video file, and look at it. `RefusedError` 413 for one that is too large or
        too long, 415 for what is no video, 503 when too many are here."""
        if not self._limits.video_mb:
            raise RefusedError(503, "this server takes no videos.")
        self.sweep()
        here = sum(not path.name.startswith(".") for path in self._folder.iterdir())
        if here >= self._limits.videos:
            raise RefusedError(503, f"{here} videos are here already; try again later.", retry_after="30")
        name = secrets.token_urlsafe(12)
        folder = self._folder / name
        folder.mkdir(mode=0o700)
        try:
            path = folder / "upload"
            await stored_body(request, path, round(self._limits.video_mb * 1e6))
            try:
                clip = await self._opened(name)
            except TooLargeError:
                raise RefusedError(413, f"its frames have more than {self._limits.megapixels:g} megapixels.") from None
            except InputError as error:
                raise RefusedError(415, "this is not a video that can be read; MP4, MOV and WebM are.") from error
            if clip.frames / float(clip.rate) > MOST_SECONDS:
                raise RefusedError(413, f"the video is longer than {MOST_SECONDS / 60:.0f} minutes; cut it first.")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        length_s = round(clip.frames / float(clip.rate), 1)
        return self._keep(Video(name, clip.frames, clip.width, clip.height, length_s))

    async def _opened(self, name: str) -> Clip:
        path, pixels = self._folder / name / "upload", round(self._limits.megapixels * 1e6)
        return await asyncio.to_thread(open_clip, path, pixels)

    def start(self, video: Video, settings: Settings) -> Video:
        """Begin to compose a video. `RefusedError` 400 without a person, 409 when it has been begun."""
        if not settings.people:
            raise RefusedError(400, "identity is needed: who is to be composed.")
        folder = self._folder / video.name
        try:
            (folder / "begun").touch(exist_ok=False)  # by one process, whoever is asked at the same time
        except FileExistsError:
            raise RefusedError(409, f"this video is {self.find(video.name).state} already.") from None
        except FileNotFoundError:
            self.find(video.name)
        video = self._keep(replace(video, state="running", began=time.time()))
        running = self._running[video.name] = Running(folder)
        running.task = asyncio.ensure_future(self._compose(video, running, settings))
        return video

    async def _compose(self, video: Video, running: Running, settings: Settings) -> None:
        from ..interpolate import identity_between

        who = identity_between(settings.people[0], settings.people[-1], settings.identity_mix)
        work = Reenactment(Reenactor(self._composer, light=None), settings.wishes(who, self._label.badge))
        note = self._label.note(self._composer.note("reenactment"))
        in_turn = InTurn(work, running, self._worker, asyncio.get_running_loop())
        told_s = 0.0

        def tick(frames: int) -> None:
            nonlocal video, told_s
            video = replace(video, frames=frames)
            if time.monotonic() - told_s > TOLD_SECONDS:
                told_s = time.monotonic()
                self._keep(video)

        beating = asyncio.ensure_future(self._beat(running.folder))
        try:
            clip = await self._opened(video.name)
            await asyncio.to_thread(rework, clip, self.result(video), in_turn, settings={}, note=note, tick=tick)
            video = replace(video, state="done")
        except FidError as error:
            told = str(error).replace(str(running.folder / "upload"), "the video")
            video = replace(video, state="failed", error=told)
        except Exception:
            told = "something went wrong in the server; its terminal says what."
            video = replace(video, state="failed", error=told)
            raise
        finally:
            beating.cancel()
            (running.folder / "upload").unlink(missing_ok=True)
            self._keep(video)
            self._running.pop(video.name, None)

    async def _beat(self, folder: Path) -> None:
        """Show while a video is composed that somebody does it."""
        while True:
            with contextlib.suppress(FileNotFoundError):
                os.utime(folder / "video.json")
            await asyncio.sleep(BEAT_SECONDS)

    def sweep(self) -> None:
        """Delete from now on what nobody has come for."""
        if self._sweeping is None:
            self._sweeping = asyncio.ensure_future(self._sweep())

    async def _sweep(self) -> None:
        while True:
            for folder in list(self._folder.iterdir()):
                with contextlib.suppress(FileNotFoundError):
                    touched = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
                    if time.time() - touched > LIFE_SECONDS:
                        await self._remove(folder)
            await asyncio.sleep(LIFE_SECONDS / 30)

    async def delete(self, video: Video) -> None:
        """Stop the work on a video, wherever it is done, and delete all of it."""
        running = self._running.get(video.name)
        if running is not None:
            await self._stop(running)
        await self._remove(self._folder / video.name)

    async def _stop(self, running: Running) -> None:
        running.stopped = True
        if running.task is not None:
            await asyncio.gather(running.task, return_exceptions=True)

    async def _remove(self, folder: Path) -> None:
        gone = folder.with_name(f".{folder.name}")  # in one step, so that nobody writes into it any more
        with contextlib.suppress(OSError):  # another process was quicker
            folder.rename(gone)
        await asyncio.to_thread(shutil.rmtree, gone, ignore_errors=True)

    async def close(self) -> None:
        """End all work, and delete every video of a folder of its own."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
            self._sweeping = None
        await asyncio.gather(*(self._stop(running) for running in list(self._running.values())))
        if not self.shared and self._at is not None:
            await asyncio.to_thread(shutil.rmtree, self._at, ignore_errors=True)
            self._at = None
