"""Looking closer while pictures are shown: who is shown changes when it is through, and it ends with the show."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from fid.runtime.assets import FACES
from fid.runtime.composer import Composer
from fid.runtime.live.closer import Closer
from fid.runtime.live.webcam import Sinks
from filming import show_of

ADA = FACES / "identity-ada.jpg"


def test_photos_are_looked_at_closer_by_the_composers_own_sessions() -> None:
    composer = Composer(engine="onnxruntime", threads=1, refine=2)
    straight = composer.identify(ADA, refine=False)
    assert straight.w_plus_offset is None
    told: list[object] = []
    composer.on_choice = lambda choice, of_identity: told.append(choice)
    closer = Closer(composer, [ADA])
    closer.start()
    closer.wait()
    ((place, closer_look),) = closer.found()
    assert (place, closer.found(), told) == (0, [], [])
    np.testing.assert_array_equal(closer_look.code, straight.code)
    expected = composer.identify(ADA)
    assert expected.w_plus_offset is not None
    np.testing.assert_allclose(closer_look.w_plus_offset, expected.w_plus_offset, atol=1e-4)


class Waiting:
    """In the place of a composer: looks for as long as nobody calls it off, at all photos but the first."""

    resolution = 256

    def __init__(self) -> None:
        self.go_on, self.begun = (lambda: True), threading.Event()

    def at(self, resolution: int, threads: int) -> "Waiting":
        assert (resolution, threads) == (256, 1)
        return self

    def identify(self, photo: Path, face: int | None) -> str:
        if photo.name == "ada.jpg":
            return "ada, looked at closer"
        self.begun.set()
        while self.go_on():
            time.sleep(0.01)
        raise InterruptedError


def test_the_person_shown_is_exchanged_and_the_rest_ends_with_the_show(tmp_path: Path) -> None:
    composer: Any = Waiting()
    closer = Closer(composer, [Path("ada.jpg"), Path("ben.jpg")])
    show, work, _ = show_of(tmp_path, Sinks(window=False), frames=30, closer=closer)
    assert work.wishes.identity == "ada"
    show.run()  # a clip of a second; looking at the second photo would never end
    assert show.live.wishes.identity == "ada, looked at closer"
    assert show._identities == ["ada, looked at closer", "ben"]
    assert composer.begun.is_set()


def test_somebody_else_who_was_chosen_meanwhile_stays(tmp_path: Path) -> None:
    found = [(0, "ada, looked at closer")]
    closer: Any = SimpleNamespace(start=lambda: None, stop=lambda: None, found=lambda: [found.pop()] if found else [])
    show, _, _ = show_of(tmp_path, Sinks(window=False), frames=20, closer=closer)
    show.do("identity 2")
    show.run()
    assert show.live.wishes.identity == "ben"
    show.do("identity 1")
    assert show.live.wishes.identity == "ada, looked at closer"
