"""Looking closer at identity photos while their people are composed already: nobody waits for the first picture.

What a photo shows beyond its codes takes rounds of gradients (`refine`), a second or more; the mapper alone needs
none. So a camera begins with the mapper's pictures, and each person is exchanged when the rounds are through.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from ..composer import Composer
from ..engines.machine import return_freed_memory
from ..errors import FidError
from ..identity import Identity

NICENESS = 10
"""Of the thread on Linux, so that it takes what frames leave of the cores."""


class Closer:
    """Looks closer at photos, one after the other, on a thread of its own.

    closer = Closer(composer, ["ann.jpg", "bob.jpg"])
    closer.start()
    closer.found()  # [(0, identity of ann.jpg)], once it is there; then []
    closer.stop()
    """

    def __init__(self, composer: Composer, photos: Sequence[Path], face: int | None = None) -> None:
        """`composer`: one that has identified the photos without looking closer; its open sessions are used too.
        `face`: see `Composer.identify`."""
        self._composer = composer.at(composer.resolution, threads=1)
        self._composer.on_choice = None  # has been told of these photos
        self._composer.go_on = lambda: not self._over.is_set()
        self._photos, self._face = list(photos), face
        self._over = threading.Event()
        self._found: queue.SimpleQueue[tuple[int, Identity]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="look closer", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End it, within one round."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def found(self) -> list[tuple[int, Identity]]:
        """Return what was found since the last call: the photo's place, from 0, and its person."""
        return [self._found.get() for _ in range(self._found.qsize())]

    def wait(self) -> None:
        """Return when all photos have been looked at."""
        self._thread.join()

    def _run(self) -> None:
        if sys.platform == "linux":  # where a thread has a niceness of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        try:
            for place, photo in enumerate(self._photos):
                self._found.put((place, self._composer.identify(photo, self._face)))
        except (FidError, InterruptedError):  # they go on as they are: every photo was good enough for the mapper
            pass
        del self._composer
        return_freed_memory()
