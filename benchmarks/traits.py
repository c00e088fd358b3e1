"""How well does fid tell what a stand-in should look like, and do stand-ins fit? By group.

    python benchmarks/traits.py FACES --write -o traits.json

FACES holds aligned photographs and faces.tsv (file, tone, sex, age as decade, tab-separated; files of train/ and val/).
Sex, age and who is a child are read from the codes of dlib's recogniser and SFace by linear read-outs (ridge),
fitted to the photographs of train/ and, for children, whom the photographs lack, to generated people who were judged
by eye (`synthetic_people.py`); looked at on val/ and on generated people whose sex was judged by eye. Then everybody of
val/ gets a stand-in, once as chosen by these and once by the recogniser alone, and so do generated children who were
never fitted to; kept is the sex where that of the stand-in, as read from the composition, is the one on record.

--write makes the file that ships (`runtime/graphs/stand_ins.npz`): the read-outs, and the synthetic people's numbers,
codes and traits. Traits are those of their compositions with three shipped photos of other people: a composition is of
another skin, and more often of another sex, than the picture that the generator draws of somebody. Without it the file
that is there is looked at.
"""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
from fid.runtime import Composer
from fid.runtime.assets import STAND_INS, shipped_faces
from fid.runtime.deidentify.judges import Judges
from fid.runtime.deidentify.stand_in import People
from fid.runtime.deidentify.traits import CHEEKS, GROWN, Traits, _shipped, colour, known_candidates, read_traits
from fid.runtime.files import replacing
from fid.runtime.media.images import read_image
from fid.runtime.sample import Sampler
from machine import machine_record
from synthetic_people import CHILDREN, GROWN_UPS, LOOKS, OTHER_CHILDREN, RARE

NUMBERS = (*range(256), *RARE)  # synthetic people that are measured
WITH = ("outdoors", "shade", "speaking")  # photos that they are composed with
MIDDLE = {"20-29": 25, "30-39": 35, "40-49": 45, "50-59": 55, "60-69": 65, "70+": 75}
RIDGE = 0.3  # weight of the squared read-outs, by five parts of train/
SFACE_SCALE = 0.5  # of SFace's code beside dlib's, by the same
CHILDREN_COUNT = 2.0  # times, in fitting who is a child


def logistic(codes: np.ndarray, right: np.ndarray, count: float = 1.0) -> np.ndarray:
    """Return the read-out float64 [257] of what is 0 or 1, by Newton's method; those with 1 count so many times."""
    rows, ridge = with_one(codes), ridge_matrix()
    readout, weight = np.zeros(rows.shape[1]), np.where(right > 0.5, count, 1.0)
    for _ in range(15):
        p = 1 / (1 + np.exp(-rows @ readout))
        curvature = (rows * (weight * p * (1 - p))[:, None]).T @ rows + ridge
        readout -= np.linalg.solve(curvature, rows.T @ (weight * (p - right)) + ridge @ readout)
    return readout


def linear(codes: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the read-out float64 [257] of a number."""
    rows = with_one(codes)
    return np.linalg.solve(rows.T @ rows + ridge_matrix(), rows.T @ right)


def with_one(codes: np.ndarray) -> np.ndarray:
    """Return codes [n, 256] with a column of ones."""
    return np.hstack([codes, np.ones((len(codes), 1))]).astype(np.float64)


def ridge_matrix() -> np.ndarray:
    """Return what keeps a read-out small, all but its last number: [257, 257]."""
    return np.diag([RIDGE] * 128 + [RIDGE / SFACE_SCALE**2] * 128 + [1e-9])


def by_group(rows: list[dict[str, str]], values: np.ndarray) -> dict[str, float]:
    """Return means of values [n] over all rows and for each tone and sex."""
    groups: dict[str, list[float]] = {"all": list(values)}
    for row, value in zip(rows, values, strict=True):
        groups.setdefault(f"{row['tone']} {row['sex']}", []).append(value)
    return {name: round(float(np.nanmean(some)), 3) for name, some in sorted(groups.items())}


def folds(rows: list[dict[str, str]], codes: np.ndarray) -> tuple[float, float]:
    """Return the share of right sexes and the mean error of ages, of photographs that the read-outs did not see: five
    parts in turn."""
    order = np.random.default_rng(0).permutation(len(rows))
    male = np.array([row["sex"] == "m" for row in rows], np.float64)
    age = np.array([MIDDLE.get(row["age"], np.nan) for row in rows])
    right, off = [], []
    for part in range(5):
        out, own = order[part::5], np.setdiff1d(order, order[part::5])
        aged = own[~np.isnan(age[own])]
        right += list((with_one(codes[out]) @ logistic(codes[own], male[own]) > 0) == (male[out] > 0.5))
        off += list(np.abs(with_one(codes[out]) @ linear(codes[aged], age[aged]) - age[out]))
    return round(float(np.mean(right)), 3), round(float(np.nanmean(off)), 2)


def look(judges: Judges, crop: np.ndarray) -> np.ndarray:
    """Return dlib's and SFace's code of an aligned crop in one, float32 [256]."""
    codes = judges.look(crop)
    assert codes.dlib is not None
    return np.concatenate([codes.dlib, codes.sface])


def told_by(codes: np.ndarray) -> Traits:
    """Return what the read-outs that ship say of codes [256]."""
    return read_traits(codes[:128], codes[128:])


def small(image: np.ndarray) -> np.ndarray:
    """Return a generated picture as an aligned crop."""
    return cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA)


def write(composer: Composer, judges: Judges, rows: list[dict[str, str]], codes: np.ndarray) -> None:
    """Fit the read-outs to photographs and synthetic people, and write the file that ships."""
    sampler = Sampler(composer)
    grown = [*(number for number, look in enumerate(LOOKS) if look != "-"), *GROWN_UPS]
    seen = {number: look(judges, small(sampler.person(number)[0])) for number in (*CHILDREN, *grown)}
    aged = [index for index, row in enumerate(rows) if row["age"] in MIDDLE]
    children, others = (np.array([seen[number] for number in some]) for some in (CHILDREN, grown))
    years = [*(MIDDLE[rows[index]["age"]] for index in aged), *(age for age, _ in CHILDREN.values())]
    sexed = [number for number, (_, sex) in CHILDREN.items() if sex]
    sex = logistic(codes, np.array([row["sex"] == "m" for row in rows], np.float64))
    age = linear(np.vstack([codes[aged], children]), np.array(years, np.float64))
    is_child = np.repeat([0.0, 0.0, 1.0], [len(codes), len(others), len(children)])
    child = logistic(np.vstack([codes, others, children]), is_child, CHILDREN_COUNT)
    boy = logistic(np.array([seen[number] for number in sexed]), np.array([CHILDREN[n][1] == "m" for n in sexed]))
    readout = np.column_stack([sex, age, child, boy])

    attributes = [composer.attribute_code(read_image(shipped_faces("attributes")[name])) for name in WITH]
    own, skin, told = [], [], []
    for number in NUMBERS:
        person = sampler.person(number)[1]
        crops = [small(composer.image(composer.w(person, code))) for code in attributes]
        own.append(person.code)
        skin.append(np.mean([colour(crop, CHEEKS) for crop in crops], axis=0))
        told.append(with_one(np.mean([look(judges, crop) for crop in crops], axis=0)[None])[0] @ readout)
    male, ages, child, boy = np.transpose(told)
    by_eye = np.isin(NUMBERS, list(CHILDREN))
    stay = by_eye == (child > 0)  # children who look grown up when composed, and the other way, are nobody's stand-in
    male, ages = np.where(by_eye, boy, male), np.where(by_eye, ages.clip(0, GROWN - 1), ages.clip(GROWN, 90))
    arrays = {"readout": readout.astype(np.float32), "numbers": np.array(NUMBERS, np.int32)[stay]}
    arrays |= {"male": 1 / (1 + np.exp(-male)), "age": ages, "skin": np.array(skin), "codes": np.array(own)}
    for name in ("male", "age", "skin", "codes"):
        arrays[name] = arrays[name].astype(np.float16)[stay]
    with replacing(STAND_INS) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    _shipped.cache_clear()


@dataclass(frozen=True)
class StandIn:
    """Who stands in for a crop, and how that looks."""

    child: bool  # by eye
    traits: Traits  # of the composition
    skin_off: float
    cosine: float


def stand_ins(composer: Composer, judges: Judges, crops: list[np.ndarray], by_traits: bool = True) -> list[StandIn]:
    """Return who stands in for each of some people, one by one."""
    sampler = Sampler(composer)
    draw = cache(lambda number: sampler.person(number)[1])
    found = []
    for crop in crops:
        more = {"measured": known_candidates(composer), "judges": judges} if by_traits else {}
        people = People(composer, draw, 0, **more)
        code = composer.identity_code(crop)
        person = people.all[people.add(crop, code)]
        composed = small(composer.image(composer.w(person.stand_in, composer.attribute_code(crop))))
        codes, off = look(judges, composed), np.linalg.norm(colour(composed, CHEEKS) - colour(crop, CHEEKS))
        found.append(StandIn(person.seed in CHILDREN, told_by(codes), float(off), float(codes[128:] @ code)))
    return found


def of_grown_ups(rows: list[dict[str, str]], found: list[StandIn]) -> dict[str, Any]:
    """Return how well the stand-ins of some people on record fit: sex, age, colour of the skin, cosine."""
    pairs = list(zip(rows, found, strict=True))
    kept = [float((one.traits.male > 0.5) == (row["sex"] == "m")) for row, one in pairs]
    years = [abs(one.traits.age - MIDDLE.get(row["age"], np.nan)) for row, one in pairs]
    cosines = [one.cosine for one in found]
    return {
        "sex_kept": by_group(rows, np.array(kept)),
        "age_off_years": by_group(rows, np.array(years)),
        "skin_off_lab": by_group(rows, np.array([one.skin_off for one in found])),
        "cosine": {"mean": round(float(np.mean(cosines)), 3), "highest": round(float(np.max(cosines)), 3)},
        "child": share(one.child for one in found),
    }


def of_children(crops: list[np.ndarray], composer: Composer, judges: Judges) -> dict[str, Any]:
    """Return how well the stand-ins of `OTHER_CHILDREN` fit."""
    found, own = stand_ins(composer, judges, crops), [told_by(look(judges, crop)) for crop in crops]
    both = [
        (sex == "m", a, b.traits) for (_, sex), a, b in zip(OTHER_CHILDREN.values(), own, found, strict=True) if sex
    ]
    return {
        "sex_right": share((own.male > 0.5) == boy for boy, own, _ in both),
        "sex_kept": share((other.male > 0.5) == boy for boy, _, other in both),
        "people": len(crops),
        "read_as_children": share(traits.age < GROWN for traits in own),
        "child": share(one.child for one in found),
        "composition_read_as_child": share(one.traits.age < GROWN for one in found),
        "skin_off_lab": round(float(np.mean([one.skin_off for one in found])), 3),
    }


def share(values: Iterable[bool]) -> float:
    """Return which part is true."""
    return round(float(np.mean(list(values))), 3)


@click.command(help=__doc__)
@click.argument("faces", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--write", "ships", is_flag=True, help="Fit the read-outs and write the file that ships.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Record, JSON.")
def main(faces: Path, ships: bool, output: Path | None) -> None:
    machine, composer = machine_record(), Composer(engine="onnxruntime", threads=1)
    judges = Judges(composer)
    with (faces / "faces.tsv").open() as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if (faces / row["file"]).is_file()]
    crops = [read_image(faces / row["file"]) for row in rows]
    codes = np.array([look(judges, crop) for crop in crops])
    train = [index for index, row in enumerate(rows) if row["file"].startswith("train/")]
    val = [index for index, row in enumerate(rows) if row["file"].startswith("val/")]
    if ships:
        write(composer, judges, [rows[index] for index in train], codes[train])

    told, looked, shown = [told_by(code) for code in codes[val]], [rows[n] for n in val], [crops[n] for n in val]
    right = np.array([float((one.male > 0.5) == (row["sex"] == "m")) for one, row in zip(told, looked, strict=True)])
    off = np.array([abs(one.age - MIDDLE.get(row["age"], np.nan)) for one, row in zip(told, looked, strict=True)])
    sampler = Sampler(composer)
    pictures = [small(sampler.person(number)[0]) for number in (*range(len(LOOKS)), *OTHER_CHILDREN)]
    made = [told_by(look(judges, picture)) for picture in pictures[: len(LOOKS)]]
    grown = [number for number, sex in enumerate(LOOKS) if sex != "-"]
    sex, years = folds([rows[index] for index in train], codes[train])
    known, alone = known_candidates(composer), stand_ins(composer, judges, shown, by_traits=False)
    assert known is not None
    result = {
        "benchmark": "traits",
        "photographs": {"train": len(train), "val": len(val)},
        "candidates": {"all": len(known.numbers), "children": sum(number in CHILDREN for number in known.numbers)},
        "sex_right": {
            "val": by_group(looked, right),
            "train, in five parts": sex,
            "generated": share((made[number].male > 0.5) == (LOOKS[number] == "m") for number in grown),
        },
        "age_off_years": {"val": by_group(looked, off), "train, in five parts": years},
        "grown_ups_called_below_18": {
            "val": share(one.age < GROWN for one in told),
            "generated": share(made[number].age < GROWN for number in grown),
        },
        "stand_ins": of_grown_ups(looked, stand_ins(composer, judges, shown)),
        "stand_ins_by_recogniser_alone": of_grown_ups(looked, alone),
        "stand_ins_of_children": of_children(pictures[len(LOOKS) :], composer, judges),
        "machine": machine,
    }
    if output:
        output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
