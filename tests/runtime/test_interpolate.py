"""The ends of an interpolation are the two compositions; what is written can be read again."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import toy
from fid.runtime.composer import Composer
from fid.runtime.errors import InputError
from fid.runtime.identity import Identity
from fid.runtime.interpolate import STRIP_GAP, between, interpolate, strip, write_interpolation
from fid.runtime.labels.provenance import read_note
from fid.runtime.media.images import read_image


@pytest.fixture
def composer(toy_bundle: Path) -> Composer:
    return Composer(toy_bundle, threads=1)


def noise(seed: int, side: int = 256) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)


def inputs(composer: Composer, people: int, attributes: int) -> tuple[list[Identity], list[np.ndarray]]:
    identities = [
        composer.identify(Identity(composer.identity_code(noise(i)), encoder(composer))) for i in range(people)
    ]
    return identities, [composer.attribute_code(noise(10 + i)) for i in range(attributes)]


def encoder(composer: Composer) -> str:
    return f"sha256:{composer.bundle.graph('identity').sha256}"


@pytest.mark.parametrize("space", ["w", "z"])
@pytest.mark.parametrize(("people", "attributes"), [(1, 2), (2, 1)])
def test_the_ends_are_the_two_compositions(composer: Composer, people: int, attributes: int, space: str) -> None:
    who, what = inputs(composer, people, attributes)
    frames = list(interpolate(composer, who, what, 5, space))
    assert len(frames) == 5
    np.testing.assert_array_equal(frames[0], composer.image(composer.w(who[0], what[0])))
    np.testing.assert_array_equal(frames[-1], composer.image(composer.w(who[-1], what[-1])))
    assert (frames[0] != frames[-1]).any()


def test_in_w_the_way_is_straight(composer: Composer) -> None:
    who, what = inputs(composer, 1, 2)
    ends = [toy.expected_w(who[0].code[None], code[None]) for code in what]
    middle = list(interpolate(composer, who, what, 3, "w"))[1]
    expected = toy.expected_image((ends[0] + ends[1]) / 2)[0]
    assert np.abs(middle.astype(int) - expected).max() <= 1


def test_in_z_the_identity_stays_a_unit_code(composer: Composer) -> None:
    who, what = inputs(composer, 2, 1)
    middle = list(interpolate(composer, who, what, 3, "z"))[1]
    code = who[0].code + who[1].code
    code /= np.linalg.norm(code)
    expected = toy.expected_image(toy.expected_w(code[None], what[0][None]))[0]
    assert np.abs(middle.astype(int) - expected).max() <= 1


def test_between_is_exact_at_both_ends() -> None:
    first, last = np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)
    np.testing.assert_array_equal(between(first, last, 0.0), first)
    np.testing.assert_array_equal(between(first, last, 1.0), last)


@pytest.mark.parametrize(("people", "attributes"), [(1, 1), (2, 2), (0, 2), (3, 1)])
def test_other_numbers_are_refused(composer: Composer, people: int, attributes: int) -> None:
    who, what = inputs(composer, people, attributes)
    with pytest.raises(InputError, match=f"there are {people} and {attributes}"):
        list(interpolate(composer, who, what, 5))


def test_other_mistakes_are_refused(composer: Composer) -> None:
    who, what = inputs(composer, 2, 1)
    with pytest.raises(InputError, match="at least 2 steps"):
        list(interpolate(composer, who, what, 1))
    with pytest.raises(InputError, match="no space 'p'"):
        list(interpolate(composer, who, what, 5, "p"))
    opposite = Identity(-who[0].code, who[0].encoder)
    with pytest.raises(InputError, match="exact opposites"):
        list(interpolate(composer, [who[0], opposite], what, 3, "z"))


def frames(count: int = 6, side: int = 64) -> list[np.ndarray]:
    first, last = noise(1, side).astype(float), noise(2, side).astype(float)
    return [np.rint(first + (last - first) * t).astype(np.uint8) for t in np.linspace(0, 1, count)]


def test_strip(tmp_path: Path, composer: Composer) -> None:
    pictures = frames(3)
    assert strip(pictures).shape == (64, 192, 3)
    whole = strip(pictures, (noise(3, 256), noise(4, 64)))
    assert whole.shape == (64, 5 * 64 + 2 * STRIP_GAP, 3)
    np.testing.assert_array_equal(whole[:, 64 + STRIP_GAP : 64 + STRIP_GAP + 192], np.hstack(pictures))
    np.testing.assert_array_equal(whole[:, -64:], noise(4, 64))
    assert (whole[:, 64 : 64 + STRIP_GAP] == 255).all()
    write_interpolation(tmp_path / "a.png", pictures, note=composer.note("interpolation"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), strip(pictures))


@pytest.mark.parametrize(("suffix", "decibel"), [(".gif", 22), (".mp4", 27)])
def test_animations_run_there_and_back(tmp_path: Path, composer: Composer, suffix: str, decibel: float) -> None:
    path, pictures = tmp_path / f"a{suffix}", frames()
    write_interpolation(path, pictures, frames_per_second=10, note=composer.note("interpolation"))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert read_note(path) == composer.note("interpolation")
    if suffix == ".gif":
        animation = cv2.imreadanimation(str(path))[1]
        read, rate = list(animation.frames), 1000 / animation.durations[0]
        assert animation.loop_count == 0
    else:
        video = cv2.VideoCapture(str(path))
        rate, read = video.get(cv2.CAP_PROP_FPS), []
        while (found := video.read())[0]:
            read.append(found[1])
    assert rate == pytest.approx(10)
    assert len(read) == 10  # six there and four back
    for shown, meant in zip(read, [*pictures, *pictures[-2:0:-1]], strict=True):
        assert cv2.PSNR(np.ascontiguousarray(shown[..., 2::-1]), meant) > decibel


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.webp, \.gif or \.mp4"):
        write_interpolation(tmp_path / "a.avi", frames())
