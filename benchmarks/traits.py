"""How well does fid tell what a stand-in should look like, and do stand-ins fit? By group.

    python benchmarks/traits.py FACES --write -o traits.json

FACES holds aligned photographs and faces.tsv (file, tone, sex, age as decade, tab-separated; files of train/ and val/).
Sex and age are read from dlib's code by two linear read-outs (ridge), fitted to the photographs of train/ and, for
children, whom the photographs lack, to generated people whose age was judged by eye; looked at on val/ and on generated
people whose sex was judged by eye. Then everybody of val/ gets a stand-in, once as chosen by these and once by the
recogniser alone; kept is the sex where that of the stand-in, as read from the composition, is the one on record.

--write makes the file that ships (`runtime/graphs/stand_ins.npz`): the read-outs, and the synthetic people's codes and
traits. Without it the file that is there is looked at.
"""

import csv
import json
from functools import cache
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
from fid.runtime import Composer
from fid.runtime.assets import STAND_INS
from fid.runtime.deidentify.judges import Judges
from fid.runtime.deidentify.stand_in import People
from fid.runtime.deidentify.traits import CHEEKS, Traits, _shipped, colour, known_candidates, read_traits
from fid.runtime.files import replacing
from fid.runtime.media.images import read_image
from fid.runtime.sample import Sampler
from machine import machine_record

PEOPLE = 256  # synthetic people that are measured
CHILDREN = {  # number of a synthetic person: years, judged by eye
    **{1: 5, 5: 8, 6: 4, 7: 3, 8: 5, 12: 7, 25: 10, 33: 8, 39: 2, 47: 2, 57: 3, 62: 8, 68: 11, 74: 7, 80: 4, 85: 3},
    **{95: 7, 105: 6, 106: 2, 116: 5, 124: 1, 126: 10, 127: 1, 131: 2, 150: 5, 155: 8, 172: 9, 196: 11, 199: 12},
    **{200: 4, 214: 8, 215: 2, 219: 5, 230: 12, 231: 2, 239: 1, 240: 12, 243: 9, 249: 2, 250: 10},
}
LOOKS = (  # of each synthetic person: m and f of grown-ups, judged by eye; of a child, or unsure: -
    "f-mmf----mmm-mfmmfmmmfm-m-ff-mffm-m-mff-fffmffm-fmmfffmff-f-mm--"
    "fffm-fmmff-fm-ff-mf-m-fm-mfmmmf-f-f-fmf-f--ffmfffmmf-ff--mfm-f--"
    "fff-mffmm-fffffmmmfmmm-f-fm-mff-fffffffmfff--f-mfmmmmmfmfff-ffmf"
    "f-ff-mm--fffffm-mm-fm----fm-mmfffmfmff--fff---m--mf--ff-f--f-ffm"
)
MIDDLE = {"20-29": 25, "30-39": 35, "40-49": 45, "50-59": 55, "60-69": 65, "70+": 75}
RIDGE = 0.3  # weight of the squared read-outs, by five parts of train/


def logistic(codes: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the read-out float64 [129] of what is 0 or 1, by Newton's method."""
    rows, ridge = with_one(codes), ridge_matrix()
    readout = np.zeros(rows.shape[1])
    for _ in range(15):
        p = 1 / (1 + np.exp(-rows @ readout))
        curvature = (rows * (p * (1 - p))[:, None]).T @ rows + ridge
        readout -= np.linalg.solve(curvature, rows.T @ (p - right) + ridge @ readout)
    return readout


def linear(codes: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the read-out float64 [129] of a number."""
    rows = with_one(codes)
    return np.linalg.solve(rows.T @ rows + ridge_matrix(), rows.T @ right)


def with_one(codes: np.ndarray) -> np.ndarray:
    """Return codes [n, 128] with a column of ones."""
    return np.hstack([codes, np.ones((len(codes), 1))]).astype(np.float64)


def ridge_matrix() -> np.ndarray:
    """Return what keeps a read-out small, all but its last number: [129, 129]."""
    return np.diag([RIDGE] * 128 + [1e-9])


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


def measured_people(composer: Composer, judges: Judges) -> dict[str, np.ndarray]:
    """Return codes of both recognisers and colours of `PEOPLE` synthetic people."""
    sampler = Sampler(composer)
    sface, dlib, skin = [], [], []
    for number in range(PEOPLE):
        crop = cv2.resize(composer.image(sampler.w(number)), (256, 256), interpolation=cv2.INTER_AREA)
        codes = judges.look(crop)
        assert codes.dlib is not None
        sface.append(codes.sface)
        dlib.append(codes.dlib)
        skin.append(colour(crop, CHEEKS))
    return {"codes": np.array(sface), "dlib": np.array(dlib), "skin": np.array(skin)}


def write(people: dict[str, np.ndarray], rows: list[dict[str, str]], codes: np.ndarray) -> None:
    """Fit the read-outs and write the file that ships."""
    aged = [index for index, row in enumerate(rows) if row["age"] in MIDDLE]
    children = people["dlib"][list(CHILDREN)]
    years = [*(MIDDLE[rows[index]["age"]] for index in aged), *CHILDREN.values()]
    sex = logistic(codes, np.array([row["sex"] == "m" for row in rows], np.float64))
    age = linear(np.vstack([codes[aged], children]), np.array(years, np.float64))
    told = with_one(people["dlib"]) @ np.column_stack([sex, age])
    ages = told[:, 1].clip(18, 90)  # the eye saw that they are grown up: no grown-up becomes a child, nor a child one
    ages[list(CHILDREN)] = list(CHILDREN.values())
    arrays = {"readout": np.column_stack([sex, age]).astype(np.float32), "codes": people["codes"].astype(np.float16)}
    arrays |= {"male": (1 / (1 + np.exp(-told[:, 0]))).astype(np.float16)}
    with replacing(STAND_INS) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays, age=ages.astype(np.float16), skin=people["skin"])
    _shipped.cache_clear()


def stand_ins(
    composer: Composer, judges: Judges, rows: list[dict[str, str]], crops: list[np.ndarray], by_traits: bool
) -> dict[str, Any]:
    """Return how well the stand-ins of some people fit: sex, age, colour of the skin, cosine."""
    sampler = Sampler(composer)
    draw = cache(lambda number: sampler.person(number)[1])
    kept, years, skin, cosines = [], [], [], []
    for row, crop in zip(rows, crops, strict=True):
        more = {"measured": known_candidates(composer), "judges": judges} if by_traits else {}
        people = People(composer, draw, 0, **more)
        code = composer.identity_code(crop)
        person = people.all[people.add(crop, code)]
        image = composer.image(composer.w(person.stand_in, composer.attribute_code(crop)))
        small = cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA)
        seen = judges.look(small)
        assert seen.dlib is not None
        traits = read_traits(seen.dlib)
        kept.append(float((traits.male > 0.5) == (row["sex"] == "m")))
        years.append(abs(traits.age - MIDDLE.get(row["age"], np.nan)))
        skin.append(float(np.linalg.norm(colour(small, CHEEKS) - colour(crop, CHEEKS))))
        cosines.append(float(seen.sface @ code))
    return {
        "sex_kept": by_group(rows, np.array(kept)),
        "age_off_years": by_group(rows, np.array(years)),
        "skin_off_lab": by_group(rows, np.array(skin)),
        "cosine": {"mean": round(float(np.mean(cosines)), 3), "highest": round(float(np.max(cosines)), 3)},
    }


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
    codes = np.array([judges.look(crop).dlib for crop in crops])
    train = [index for index, row in enumerate(rows) if row["file"].startswith("train/")]
    val = [index for index, row in enumerate(rows) if row["file"].startswith("val/")]
    people = measured_people(composer, judges)
    if ships:
        write(people, [rows[index] for index in train], codes[train])

    told = [read_traits(code) for code in codes[val]]
    looked = [rows[index] for index in val]
    right = np.array([float((one.male > 0.5) == (row["sex"] == "m")) for one, row in zip(told, looked, strict=True)])
    off = np.array([abs(one.age - MIDDLE.get(row["age"], np.nan)) for one, row in zip(told, looked, strict=True)])
    made: list[Traits] = [read_traits(code) for code in people["dlib"]]
    grown = [number for number, look in enumerate(LOOKS) if look != "-"]
    sexes = [(made[number].male > 0.5) == (LOOKS[number] == "m") for number in grown]
    sex, years = folds([rows[index] for index in train], codes[train])
    result = {
        "benchmark": "traits",
        "photographs": {"train": len(train), "val": len(val)},
        "sex_right": {
            "val": by_group(looked, right),
            "train, in five parts": sex,
            "generated": round(np.mean(sexes), 3),
        },
        "age_off_years": {"val": by_group(looked, off), "train, in five parts": years},
        "children_called_below_18": round(float(np.mean([made[n].age < 18 for n in CHILDREN])), 3),
        "grown_ups_called_below_18": round(float(np.mean([made[n].age < 18 for n in grown])), 3),
        "stand_ins": stand_ins(composer, judges, looked, [crops[index] for index in val], True),
        "stand_ins_by_recogniser_alone": stand_ins(composer, judges, looked, [crops[index] for index in val], False),
        "machine": machine,
    }
    if output:
        output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
