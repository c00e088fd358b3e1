"""Figures by group: the arithmetic on people that are made up, so that every figure is known."""

from pathlib import Path

import numpy as np
import pytest
from fid.runtime.errors import InputError
from fid.trainer.evaluate.groups import Group, People, group_of, group_report, read_groups, thresholds, worst
from fid.trainer.evaluate.judges import Seen
from fid.trainer.evaluate.measures import unit
from fid.trainer.evaluate.unseen import Looks, cheek_colour

GROUPS = tuple(Group(tone, sex) for tone in ("light", "dark") for sex in "fm" for _ in range(6))
NAMES = tuple(f"person {i}" for i in range(len(GROUPS)))


def looks(codes: np.ndarray, male: np.ndarray, age: float, skin: float = 50.0) -> Looks:
    n = len(codes)
    return Looks({"mobileface": unit(codes)}, male, np.full(n, age), np.tile([skin, 10.0, 10.0], (n, 1)))


def seen(points: np.ndarray) -> Seen:
    nothing = np.zeros((len(points), 1))
    return Seen(nothing, {}, {"face mesh": points}, {}, *[nothing] * 4)


@pytest.fixture
def people(rng: np.random.Generator) -> People:
    codes = rng.standard_normal((len(GROUPS), 64))
    codes[18:] += 3 * rng.standard_normal(64)  # one group's strangers look alike
    male = np.array([group.sex == "m" for group in GROUPS], float)
    male[0] = 1.0  # whose photo is read wrongly
    return People(NAMES, GROUPS, looks(codes, male, 30.0))


def test_who_stays_and_who_does_not(people: People) -> None:
    pairs = np.array([(i, (i + 1) % 24) for i in range(24)] + [(i, (i + 12) % 24) for i in range(24)])
    codes, male = people.looks.codes["mobileface"][pairs[:, 0]], people.looks.male[pairs[:, 0]].copy()
    codes[6:12] = people.looks.codes["mobileface"][12:18]  # six outputs of light men show others, and women
    male[6:12] = 0.0
    points = np.zeros((48, 5, 2))
    moved = points + np.array([3.0, 4.0])
    report = group_report(
        people, pairs, seen(moved), seen(points), looks(codes, male, 34.0), looks(np.eye(24), np.zeros(24), 30, 53.0)
    )
    assert [group.name for group in report.groups] == ["dark f", "dark m", "light f", "light m"]
    assert (report.mean.people, report.mean.outputs) == (24, 48)
    by_name = {group.name: group for group in report.groups}
    assert by_name["light m"].judges[0].accepted == by_name["light m"].judges[0].retrieved == 0.5
    assert by_name["dark f"].judges[0].accepted == by_name["dark f"].judges[0].retrieved == 1.0
    assert report.mean.judges[0].accepted == pytest.approx(42 / 48)
    assert worst(report.groups, "mobileface").name == "light m"
    assert by_name["light m"].sex_kept == 0.5
    assert by_name["light f"].sex_kept == 1.0
    assert report.mean.age_shift == 4
    assert report.mean.skin_shift == pytest.approx(3)
    assert report.mean.landmark_error == pytest.approx(5 / 256)
    assert report.mean.dlib_accepted is None
    kinds = {kind.name: kind.outputs for kind in report.kinds}
    assert kinds == {"same tone and sex": 20, "other tone": 26, "other sex": 4}


def test_a_group_whose_strangers_look_alike_has_a_higher_threshold(people: People) -> None:
    found = thresholds("mobileface", people)
    assert found[18:].min() > found[:18].max() + 0.2
    assert len(np.unique(found[18:].round(9))) == 1


def test_groups_too_small_share_a_threshold(people: People) -> None:
    few = People(NAMES[:8], GROUPS[:8], looks(people.looks.codes["mobileface"][:8], people.looks.male[:8], 30.0))
    assert len(np.unique(thresholds("mobileface", few)[6:].round(9))) == 1


def test_names_and_tables_tell_groups(tmp_path: Path) -> None:
    assert group_of("dark_m_007") == Group("dark", "m")
    assert group_of("dark_m_007").name == "dark m"
    assert group_of("ann_1") == Group()
    assert Group().name == "all"
    table = tmp_path / "faces.tsv"
    table.write_text("file\ttone\tsex\nval/ann.jpg\tmedium\tf\n")
    assert read_groups(table) == {"ann": Group("medium", "f")}
    table.write_text("file,tone\nann,medium\n")
    with pytest.raises(InputError, match=r"faces\.tsv is no table of groups"):
        read_groups(table)


def test_the_colour_of_cheeks_is_cie_lab() -> None:
    crop = np.full((1, 256, 256, 3), (119, 119, 119), np.uint8)  # sRGB 119 is L* 50
    mesh = np.full((1, 468, 3), 128.0)
    np.testing.assert_allclose(cheek_colour(crop, mesh), [[50.0, 0.0, 0.0]], atol=0.2)
