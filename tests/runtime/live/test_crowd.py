"""Several people in one clip: who becomes whom, who is known again, and what is asked for wrongly."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fid.runtime import Composer, Identity
from fid.runtime.assets import FACES
from fid.runtime.errors import InputError
from fid.runtime.identity import encoder_name
from fid.runtime.live.casting import Casting
from fid.runtime.live.crowd import Cast, Crowd, CrowdState
from fid.runtime.live.layout import Wishes
from fid.runtime.media.images import read_image
from fid.runtime.media.state import flatten, unflatten

ADA, BEN = (read_image(FACES / f"identity-{name}.jpg") for name in ("ada", "ben"))


@pytest.fixture
def composer(toy_bundle: Path, fetched: Callable[[str], Path]) -> Composer:
    fetched("yunet")
    return Composer(toy_bundle)


def somebody(composer: Composer, number: int) -> Identity:
    code = np.random.default_rng(number).standard_normal(128).astype(np.float32)
    return Identity(code / np.linalg.norm(code), encoder_name(composer.bundle), sources=0)


def scene(*places: tuple[np.ndarray, int]) -> np.ndarray:
    """Faces at their left edges in a frame RGB uint8 [300, 760, 3]."""
    frame = np.full((300, 760, 3), 150, np.uint8)
    for face, left in places:
        frame[20:276, left : left + 256] = face
    return frame


def crowd_of(composer: Composer, cast: Cast) -> Crowd:
    return Crowd(composer, cast, Wishes(somebody(composer, 1), "paste", smooth=0, mask="square"))


def changed(frame: np.ndarray, shown: np.ndarray, left: int) -> bool:
    """Whether the middle of the face there is another."""
    middle = (slice(120, 200), slice(left + 90, left + 170))
    return float(np.abs(frame[middle].astype(int) - shown[middle]).mean()) > 5


def test_the_person_of_a_number_alone_is_replaced_and_everybody_where_that_is_asked(composer: Composer) -> None:
    frame = scene((ADA, 20), (BEN, 400))
    one = crowd_of(composer, Cast(numbered=((1, somebody(composer, 1)),)))
    shown = one.show(frame, 0.0).image
    assert sorted((changed(frame, shown, 20), changed(frame, shown, 400))) == [False, True]
    assert one.people == 1
    everybody = crowd_of(composer, Cast(others=somebody(composer, 1)))
    shown = everybody.show(frame, 0.0).image
    assert changed(frame, shown, 20)
    assert changed(frame, shown, 400)
    assert everybody.summary().startswith("2 people replaced, ")


def test_who_comes_back_is_known_again_wherever_they_stand(composer: Composer, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.eye(128, dtype=np.float32)
    known = [composer.crop(face).astype(float) for face in (ADA, BEN)]
    looks = [lambda crop, face=face: np.abs(crop - face)[64:192, 64:192].mean() for face in known]
    monkeypatch.setattr(composer, "identity_code", lambda crop: codes[int(np.argmin([look(crop) for look in looks]))])
    here, there = scene((ADA, 20)), scene((BEN, 20), (ADA, 480))
    work = crowd_of(composer, Cast(numbered=((1, somebody(composer, 1)),)))  # the first who was seen: Ada
    assert changed(here, work.show(here, 0.0).image, 20)
    empty = scene()
    assert np.array_equal(work.show(empty, 0.1).image, empty)
    shown = work.show(there, 0.2).image
    assert not changed(there, shown, 20)
    assert changed(there, shown, 480)
    assert work.summary().startswith("1 person of 2 replaced, ")
    again = scene((ADA, 250))  # a cut, and somewhere else
    assert changed(again, work.show(again, 0.3).image, 250)
    assert len(work.codes) == 2


def test_a_run_that_was_stopped_goes_on_as_one_that_was_not(composer: Composer) -> None:
    cast = Cast(others=somebody(composer, 1))
    frames = [scene((ADA, 20 + 3 * n), (BEN, 400 - 2 * n)) for n in range(4)]
    through, first, then = (crowd_of(composer, cast) for _ in range(3))
    whole = [through.picture(frame, n / 25) for n, frame in enumerate(frames)]
    for n in (0, 1):
        first.picture(frames[n], n / 25)
    then.state = unflatten(CrowdState, flatten(first.state))
    assert np.array_equal(then.picture(frames[2], 2 / 25), whole[2])
    assert np.array_equal(then.picture(frames[3], 3 / 25), whole[3])


def test_several_people_are_always_pasted(composer: Composer) -> None:
    with pytest.raises(InputError, match="result-only"):
        Crowd(composer, Cast(), Wishes(somebody(composer, 1), "result-only"))


def test_roles() -> None:
    a, b, c = (Identity(np.eye(4, dtype=np.float32)[i], "toy") for i in range(3))
    cast = Cast(numbered=((2, a),), known=((np.eye(4, dtype=np.float32)[3], b),), others=c)
    nobody, known = np.eye(4, dtype=np.float32)[0], np.array([0.8, 0, 0, 0.6], np.float32)
    assert cast.role(2, known) is a
    assert cast.role(1, known) is b
    assert cast.role(1, nobody) is c
    assert Cast(numbered=((2, a),)).role(1, nobody) is None
    assert cast.identities == (a, b, c)


def test_what_the_options_mean() -> None:
    paths = Casting.parse([Path("ann.jpg@1"), Path("bob.jpg@2")], [], None, None)
    assert paths.numbered == ((1, Path("ann.jpg")), (2, Path("bob.jpg")))
    assert paths.several
    who = Casting.parse([], ["who.jpg=ann.jpg"], None, None)
    assert who.known == ((Path("who.jpg"), Path("ann.jpg")),)
    assert who.photos == [Path("who.jpg"), Path("ann.jpg")]
    assert not Casting.parse([Path("ann.jpg")], [], None, "largest").several
    assert Casting.parse([Path("ann.jpg")], [], 2, None).face == 2


@pytest.mark.parametrize(
    ("identities", "who", "face", "faces", "words"),
    [
        (["a.jpg@0"], [], None, None, "counted from 1"),
        (["a.jpg@1", "b.jpg@1"], [], None, None, "each number is given once"),
        (["a.jpg", "b.jpg@1"], [], None, None, "not clear who becomes a.jpg"),
        ([], ["who.jpg"], None, None, "WHO.jpg=IDENTITY.jpg"),
        (["a.jpg@1"], [], 1, None, "--face N is for one identity"),
        ([], ["w.jpg=a.jpg"], None, "all", "need an --identity without a number"),
    ],
)
def test_options_that_do_not_go_together(
    identities: list[str], who: list[str], face: int | None, faces: str | None, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        Casting.parse([Path(name) for name in identities], who, face, faces)
