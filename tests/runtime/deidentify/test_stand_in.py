"""Who stands in: strangers to the recogniser who look alike, by what was measured of them beforehand."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from fid.runtime import Composer, Identity
from fid.runtime.assets import shipped_faces
from fid.runtime.deidentify import stand_in, traits
from fid.runtime.deidentify.judges import Judges
from fid.runtime.deidentify.stand_in import MOST, SAFE, STRANGER, TRIED, People, colour_difference
from fid.runtime.deidentify.traits import (
    CHEEKS,
    GROWN,
    Candidates,
    Traits,
    colour,
    known_candidates,
    look_at,
    read_traits,
)
from fid.runtime.media.images import read_image
from fid.runtime.sample import Sampler

MEN = {"ada": False, "dave": True}


@pytest.fixture(scope="module")
def judges(fetched: Callable[[str], Path]) -> Judges:
    """Both recognisers, with the bundle that ships."""
    for name in ("sface", "dlib", "yunet"):
        fetched(name)
    return Judges(Composer(engine="onnxruntime", threads=1))


def candidates(*people: tuple[float, float, tuple[float, float, float]]) -> Candidates:
    """People of (male, age, skin)."""
    male, age, skin = (np.array(values, np.float32) for values in zip(*people, strict=True))
    return Candidates(np.arange(len(people)), np.eye(len(people), 128, dtype=np.float32), male, age, skin)


def test_sex_counts_more_than_age_and_an_unsure_sex_less() -> None:
    skin = (60.0, 15.0, 15.0)
    people = candidates((1.0, 40, skin), (0.0, 40, skin), (1.0, 70, skin))
    man = people.apart(Traits(1.0, 40), np.array(skin))
    assert man.tolist() == pytest.approx([0, traits.SEX_WEIGHT, np.log(70 / 40) * traits.AGE_WEIGHT])
    unsure = people.apart(Traits(0.5, 40), np.array(skin))
    assert unsure[0] == unsure[1] < man[1]


def test_a_child_of_the_other_sex_fits_a_child_better_than_a_grown_up_does() -> None:
    skin = (60.0, 15.0, 15.0)
    people = candidates((0.0, 8, skin), (0.0, 18, skin), (0.0, 4, skin))
    for age, nearest in ((14.0, 0), (9.0, 0), (1.0, 2), (18.0, 1), (30.0, 1)):
        assert int(np.argmin(people.apart(Traits(1.0, age), np.array(skin)))) == nearest
    assert Traits(0.9, 9).like(Traits(0.1, 3))
    assert not Traits(0.9, 17).like(Traits(0.9, 18))
    assert not Traits(0.9, 30).like(Traits(0.1, 30))


def test_without_the_second_recogniser_the_skin_alone_counts() -> None:
    people = candidates((1.0, 40, (60, 15, 15)), (0.0, 40, (30, 15, 15)))
    assert people.apart(None, np.array((30, 15, 15))).tolist() == [30 * traits.SKIN_WEIGHT, 0]
    assert look_at(None, np.zeros((256, 256, 3), np.uint8), np.zeros(128, np.float32)) is None
    unknown = Candidates(people.numbers, people.codes)
    assert unknown.apart(Traits(1.0, 40), np.zeros(3)).tolist() == [0, 0]


def test_another_seed_looks_at_others_and_the_same_seed_at_the_same() -> None:
    people = candidates(*[(float(n % 2), 20.0 + n, (60, 15, 15)) for n in range(40)])
    first, again, other = (people.some(seed, 10) for seed in (0, 0, 1))
    assert first.numbers.tolist() == again.numbers.tolist() != other.numbers.tolist()
    assert first.age is not None
    assert np.array_equal(first.age, 20 + first.numbers)
    assert np.array_equal(first.codes, people.codes[first.numbers])


def test_another_generator_has_no_measured_people(toy_bundle: Path) -> None:
    assert known_candidates(Composer(toy_bundle)) is None


def test_measured_people_are_those_of_the_sampler(judges: Judges) -> None:
    """What was measured of them beforehand, and of their compositions, is what is measured now."""
    composer = judges._composer
    known, sampler = known_candidates(composer), Sampler(composer)
    assert known is not None
    assert known.male is not None
    assert known.age is not None
    assert known.skin is not None
    assert len(np.unique(known.numbers)) == len(known.numbers)
    photos = [read_image(shipped_faces("attributes")[name]) for name in ("outdoors", "shade", "speaking")]
    attributes = [composer.attribute_code(photo) for photo in photos]
    for index in (11, len(known.numbers) - 1):
        identity = sampler.person(int(known.numbers[index]))[1]
        assert float(known.codes[index] @ identity.code) > 0.95
        images = [composer.image(composer.w(identity, code)) for code in attributes]
        crops = [cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA) for image in images]
        views = [view for crop in crops for view in (crop, np.ascontiguousarray(crop[:, ::-1]))]
        codes = [code for view in views if (code := judges.second(view)) is not None]
        told = read_traits(np.mean(codes, axis=0), np.mean([composer.identity_code(crop) for crop in crops], axis=0))
        assert abs(told.male - known.male[index]) < 0.1
        assert abs(told.age - known.age[index]) < 4
        assert np.linalg.norm(np.mean([colour(crop, CHEEKS) for crop in crops], axis=0) - known.skin[index]) < 2


def test_a_child_gets_a_child(judges: Judges) -> None:
    composer = judges._composer
    sampler, measured = Sampler(composer), known_candidates(composer)
    assert measured is not None
    assert measured.age is not None
    child = 2081  # to the eye a girl of four; no candidate
    assert child not in measured.numbers
    crop = cv2.resize(sampler.person(child)[0], (256, 256), interpolation=cv2.INTER_AREA)
    people = People(composer, cache(lambda number: sampler.person(number)[1]), 0, measured=measured, judges=judges)
    person = people.all[people.add(crop, composer.identity_code(crop))]
    assert measured.age[measured.numbers == person.seed] < GROWN


def test_generated_people_get_strangers_of_their_sex_and_skin(judges: Judges) -> None:
    composer = judges._composer
    sampler, measured = Sampler(composer), known_candidates(composer)

    @cache
    def draw(number: int) -> Identity:
        return sampler.person(number)[1]

    people = People(composer, draw, 0, measured=measured, judges=judges)
    shades = []
    for name, is_man in MEN.items():
        crop = read_image(shipped_faces("identity")[name])
        told = look_at(judges, crop, code := composer.identity_code(crop))
        assert told is not None
        assert (told.male > 0.5) == is_man, name
        person = people.all[people.add(crop, code)]
        assert float(person.stand_in.code @ code) < STRANGER + 0.05
        image = composer.image(composer.w(person.stand_in, composer.attribute_code(crop)))
        small = cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA)
        composed = composer.identity_code(small)
        assert float(composed @ code) < SAFE
        seen = look_at(judges, small, composed)
        assert seen is not None
        assert (seen.male > 0.5) == is_man, name
        shades.append(colour_difference(crop, small))
    assert np.mean(shades) < 25
    assert len({person.seed for person in people.all}) == len(MEN)


def test_a_composition_of_the_other_sex_is_taken_only_where_all_are(
    judges: Judges, monkeypatch: pytest.MonkeyPatch
) -> None:
    composer = judges._composer
    sampler, measured = Sampler(composer), known_candidates(composer)
    person_of = cache(lambda number: sampler.person(number)[1])
    crop = read_image(shipped_faces("identity")["dave"])
    original = look_at(judges, crop, code := composer.identity_code(crop))
    assert original is not None
    monkeypatch.setattr(stand_in, "SAFE", 2.0)  # so that everybody who is composed is looked at

    def chosen(right: int) -> tuple[int, list[int]]:
        """The stand-in where composition number `right` alone looks like the original, and who was composed."""
        drawn: list[int] = []

        def draw(number: int) -> Identity:
            drawn.append(number)
            return person_of(number)

        def look(_: Judges, view: np.ndarray, code: np.ndarray) -> Traits:
            return original if view is crop else Traits(float(len(drawn) - 1 == right), original.age)

        monkeypatch.setattr(stand_in, "look_at", look)
        people = People(composer, draw, 0, measured=measured, judges=judges)
        return people.all[people.add(crop, code)].seed, drawn[:-1]

    for right, count in ((0, TRIED), (TRIED - 1, TRIED), (TRIED, TRIED + 1), (MOST, MOST)):
        seed, composed = chosen(right)
        assert len(composed) == count
        assert seed == composed[right] if right < MOST else seed in composed
