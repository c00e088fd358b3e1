"""Figures by group of people: who stays themselves, by judges that training never saw, and for whom it fails.

A group is a tone and a sex, from file names TONE_SEX_NUMBER.jpg or a table. Thresholds are each group's own, because
recognisers find strangers of some groups more alike: the mean of its strangers and 3.09 of their standard deviations,
which a normal distribution exceeds once in 1,000 pairs (FAR 0.1 %); there are too few pairs to count.
"""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...runtime.errors import InputError
from .judges import ACCEPT, Seen
from .measures import point_distance
from .unseen import Looks

NAMED = re.compile(r"(?P<tone>light|medium|brown|dark)_(?P<sex>f|m)_.+")
FALSE_ACCEPTS = 3.09  # standard deviations above the mean that one of 1,000 normal numbers exceeds
FEWEST_STRANGERS = 10  # pairs that a threshold is taken from; of groups with fewer, from everybody
LANDMARKS = ("dlib", "face mesh")  # the first that is there


@dataclass(frozen=True)
class Group:
    """Whom a photograph shows, where that is known."""

    tone: str = ""
    sex: str = ""

    @property
    def name(self) -> str:
        """ "dark m", or "all" where nothing is known."""
        return f"{self.tone} {self.sex}".strip() or "all"


@dataclass(frozen=True)
class JudgeFigures:
    """What one recogniser says of some outputs and the photographs of the people in them."""

    judge: str
    similarity: float  # mean cosine; by dlib minus the mean distance
    accepted: float  # share at least as similar as the person's group's threshold
    retrieved: float  # share whose person is the most similar of all photographs
    threshold: float  # mean


@dataclass(frozen=True)
class GroupFigures:
    """Some outputs: those with the people of a group, or of a kind of pair."""

    name: str
    people: int
    outputs: int
    judges: tuple[JudgeFigures, ...]
    dlib_accepted: float | None  # share within 0.6, dlib's own threshold
    sex_kept: float | None  # share that faceres gives the sex of the photo, of people whose photo it reads rightly
    age_shift: float  # years, mean distance from the photo by faceres
    landmark_error: float  # mean distance to the attribute photo's points, fraction of the crop
    skin_shift: float | None  # CIE76 colour difference of the cheeks to the photo, in the photo's own light


@dataclass(frozen=True)
class GroupReport:
    """All outputs, by group and by kind of pair."""

    mean: GroupFigures
    groups: tuple[GroupFigures, ...]
    kinds: tuple[GroupFigures, ...]  # "same tone and sex", "other tone", "other sex"; those that there are


@dataclass(frozen=True)
class People:
    """Photographs, one per row, and what the judges say of them."""

    names: tuple[str, ...]
    groups: tuple[Group, ...]
    looks: Looks


def group_of(name: str) -> Group:
    """Return the group that a file name without ending tells: TONE_SEX_NUMBER."""
    found = NAMED.fullmatch(name)
    return Group(found["tone"], found["sex"]) if found else Group()


def read_groups(table: Path) -> dict[str, Group]:
    """Return groups by file name without folder and ending, from a TSV with the columns file, tone and sex.

    Raises InputError when it is no such table.
    """
    try:
        with open(table, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        return {Path(row["file"]).stem: Group(row["tone"], row["sex"]) for row in rows}
    except (OSError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{table} is no table of groups: expected tab-separated columns file, tone and sex."
        ) from error


def similarity(judge: str, codes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return how alike codes [N, D] and [M, D] are [N, M]: cosines, or minus dlib's distances."""
    if judge == "dlib":
        return -np.linalg.norm(codes[:, None] - others[None], axis=2)
    return codes @ others.T


def thresholds(judge: str, people: People) -> np.ndarray:
    """Return the similarity [N] from which each person is accepted at FAR 0.1 %, by strangers of their own group."""
    alike = similarity(judge, people.looks.codes[judge], people.looks.codes[judge])
    strangers = np.array([[a != b for b in people.names] for a in people.names])
    same = np.array([[a == b for b in people.groups] for a in people.groups])
    found = []
    for i in range(len(people.names)):
        group = np.array([other == people.groups[i] for other in people.groups])
        pairs = alike[np.triu(strangers & same & group[:, None], 1)]
        if len(pairs) < FEWEST_STRANGERS:
            pairs = alike[np.triu(strangers, 1)]
        found.append(pairs.mean() + FALSE_ACCEPTS * pairs.std() if len(pairs) else np.inf)
    return np.array(found)


def group_report(
    people: People, pairs: np.ndarray, output: Seen, attributes: Seen, looks: Looks, own: Looks | None = None
) -> GroupReport:
    """Return all figures of outputs that show the people of pairs [N, 2] (identity, attributes: rows of `people`).

    `output`, `attributes`: the outputs and their attribute photos; `looks`: what the unseen judges say of the outputs;
    `own`: of outputs with every photo as its own attributes, one per row of `people`.
    """
    limits = {judge: thresholds(judge, people) for judge in looks.codes}
    who = pairs[:, 0]
    names = [people.groups[i].name for i in who]

    def figures(name: str, rows: np.ndarray) -> GroupFigures:
        return _figures(name, rows, people, who, limits, output, attributes, looks, own)

    every = np.ones(len(pairs), bool)
    tones, sexes = (
        np.array([getattr(people.groups[i], part) == getattr(people.groups[j], part) for i, j in pairs])
        for part in ("tone", "sex")
    )
    kinds = {"same tone and sex": tones & sexes, "other tone": ~tones, "other sex": ~sexes}
    return GroupReport(
        figures("all", every),
        tuple(figures(name, np.array([one == name for one in names])) for name in sorted(set(names))),
        tuple(figures(name, rows) for name, rows in kinds.items() if rows.any()),
    )


def _figures(
    name: str,
    rows: np.ndarray,
    people: People,
    who: np.ndarray,
    limits: dict[str, np.ndarray],
    output: Seen,
    attributes: Seen,
    looks: Looks,
    own: Looks | None,
) -> GroupFigures:
    """The figures of the outputs that `rows` [N] selects; `who` [N] is the person of each."""
    mine = who[rows]
    judged = []
    for judge, codes in looks.codes.items():
        alike = similarity(judge, codes[rows], people.looks.codes[judge])
        self_alike = alike[np.arange(len(mine)), mine]
        nearest = np.array([people.names[i] for i in alike.argmax(axis=1)])
        right = nearest == np.array([people.names[i] for i in mine])
        accepted = self_alike >= limits[judge][mine]
        judged.append(
            JudgeFigures(judge, *(float(v.mean()) for v in (self_alike, accepted, right, limits[judge][mine])))
        )
    dlib = next((one for one in judged if one.judge == "dlib"), None)
    within = None
    if dlib is not None:
        apart = np.linalg.norm(looks.codes["dlib"][rows] - people.looks.codes["dlib"][mine], axis=1)
        within = float((apart <= ACCEPT).mean())
    points = next(judge for judge in LANDMARKS if judge in output.points)
    shown = np.unique(mine)
    skin = None
    if own is not None:
        skin = float(np.linalg.norm(own.skin[shown] - people.looks.skin[shown], axis=1).mean())
    return GroupFigures(
        name,
        len({people.names[i] for i in mine}),
        len(mine),
        tuple(judged),
        within,
        _sex_kept(people, mine, looks.male[rows]),
        float(np.abs(looks.age[rows] - people.looks.age[mine]).mean()),
        float(point_distance(output.points[points][rows], attributes.points[points][rows], 256).mean()),
        skin,
    )


def _sex_kept(people: People, who: np.ndarray, male: np.ndarray) -> float | None:
    """Of outputs with `male` [N] of the people `who` [N]: the share with the sex of their photo."""
    photo = people.looks.male > 0.5
    right = np.array([not group.sex or (group.sex == "m") == m for group, m in zip(people.groups, photo, strict=True)])
    counted = right[who]
    return float(((male > 0.5) == photo[who])[counted].mean()) if counted.any() else None


def worst(groups: Sequence[GroupFigures], judge: str) -> GroupFigures:
    """Return the group of which a recogniser accepts least."""
    return min(groups, key=lambda group: next(one.accepted for one in group.judges if one.judge == judge))
