"""How do identity and attributes hold up on real photographs? The identity x attributes table over a folder of photos.

The folder holds two photos a person, named PERSON_KIND.EXT, such as `001_neutral.jpg` and `001_smiling.jpg`. The
identities are the photos of one kind of some people, the attributes those of the other kind of other people, both taken
evenly over the sorted names. The photos are read and nothing of them is written except the table, which is meant to be
looked at and not to be committed.

Similarity is the cosine of identity codes of the bundle's own identity encoder (SFace in the default bundle). That is
the network the mapper was trained with, so it flatters: compare bundles with it, and look at the picture. dlib's
network (extra eval) took no part in training: how many outputs it takes for the person of the identity photo.

    python benchmarks/evaluate_photos.py --photos DIR --identities 8 --attributes 8 -o OUT.json
"""

import json
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import click
import cv2
import numpy as np
from fid.runtime import Composer
from fid.runtime.face.crop import CROP_SIZE
from fid.runtime.media.images import find_photos, read_image, write_image
from fid.runtime.media.table import compose_table
from fid.runtime.timing import collect_timings
from machine import machine_record

WARM_UP = 3


@dataclass(frozen=True)
class Photo:
    """One photo with what the bundle sees of it."""

    person: str
    pixels: np.ndarray  # uint8 [height, width, 3], RGB
    crop: np.ndarray  # uint8 [256, 256, 3], RGB, aligned
    code: np.ndarray  # float32 [128], unit identity code


def people_of(folder: Path, identity_kind: str, attribute_kind: str) -> dict[str, tuple[Path, Path]]:
    """Return person -> (identity photo, attribute photo), sorted, of everyone who has both."""
    by_name = {path.stem: path for path in find_photos([folder])}
    people = sorted({stem.partition("_")[0] for stem in by_name})
    kinds = (identity_kind, attribute_kind)
    return {
        person: (by_name[f"{person}_{kinds[0]}"], by_name[f"{person}_{kinds[1]}"])
        for person in people
        if all(f"{person}_{kind}" in by_name for kind in kinds)
    }


def spread(names: list[str], count: int) -> list[str]:
    """Return `count` of `names`, evenly over the list."""
    if count > len(names):
        raise click.UsageError(f"{count} people were asked for and {len(names)} are left; lower the counts.")
    return [names[index] for index in np.linspace(0, len(names) - 1, count).round().astype(int)]


def look(composer: Composer, path: Path) -> Photo:
    """Read, align and encode one photo."""
    pixels = read_image(path)
    crop = composer.crop(pixels)
    return Photo(path.stem.partition("_")[0], pixels, crop, composer.identity_code(crop))


def as_crop(image: np.ndarray) -> np.ndarray:
    """Return a composed picture, which is aligned as it is, at the size of a crop: uint8 [256, 256, 3], RGB."""
    return cv2.resize(image, (CROP_SIZE, CROP_SIZE), interpolation=cv2.INTER_AREA)


def summary(values: np.ndarray) -> dict[str, float]:
    """Return mean, standard deviation, minimum and maximum."""
    return {
        "mean": round(float(np.mean(values)), 4),
        "std": round(float(np.std(values)), 4),
        "min": round(float(np.min(values)), 4),
        "max": round(float(np.max(values)), 4),
    }


def cosines_between_people(photos: list[Photo]) -> np.ndarray:
    """Return the cosine of every two photos that show different people."""
    return np.array([a.code @ b.code for i, a in enumerate(photos) for b in photos[i + 1 :] if a.person != b.person])


def by_dlib(tops: list[Photo], cells: list[list[np.ndarray]]) -> dict[str, float] | None:
    """Return the distance of outputs to their identity photos by dlib, and the share within its threshold; None without
    dlib."""
    if find_spec("dlib") is None:
        return None
    from fid.trainer.evaluate.judges import ACCEPT, Dlib

    dlib = Dlib.load()
    _, codes = dlib.look(np.stack([top.crop for top in tops]))
    _, outputs = dlib.look(np.stack([as_crop(cell) for row in cells for cell in row]))
    distance = np.linalg.norm(outputs.reshape(len(cells), len(tops), -1) - codes, axis=2)
    return {"distance": round(float(distance.mean()), 4), "one_person": round(float((distance < ACCEPT).mean()), 4)}


def compose_all(
    composer: Composer, identities: list[Photo], attributes: list[Photo]
) -> tuple[list[list[np.ndarray]], list[float], dict[str, float]]:
    """Compose every cell from the pixels of its photo: pictures [attributes][identities], ms a call, median ms a
    stage."""
    composer.set_identity(identities[0].pixels)
    for _ in range(WARM_UP):
        composer.compose(attributes[0].pixels)
    cells: list[list[np.ndarray]] = [[] for _ in attributes]
    call_ms: list[float] = []
    stages: dict[str, list[float]] = {}
    for identity in identities:
        composer.set_identity(identity.pixels)
        for row, attribute in zip(cells, attributes, strict=True):
            start = time.perf_counter()
            with collect_timings() as timings:
                row.append(composer.compose(attribute.pixels))
            call_ms.append(1e3 * (time.perf_counter() - start))
            for stage, stage_ms in timings.items():
                stages.setdefault(stage, []).append(stage_ms)
    return cells, call_ms, {stage: round(float(np.median(values)), 2) for stage, values in stages.items()}


@click.command(help=__doc__)
@click.option("--photos", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--identities", type=click.IntRange(min=2), default=8, show_default=True, help="How many people on top.")
@click.option("--attributes", type=click.IntRange(min=1), default=8, show_default=True, help="How many on the left.")
@click.option("--identity-kind", default="neutral", show_default=True, help="KIND in the names of identity photos.")
@click.option("--attribute-kind", default="smiling", show_default=True, help="KIND in the names of attribute photos.")
@click.option("--bundle", type=click.Path(exists=True, path_type=Path), help="Default: the bundle that ships with fid.")
@click.option("--engine", default="auto", show_default=True, help="auto, onnxruntime or openvino.")
@click.option("--threads", type=click.IntRange(min=1), help="Default: the engine's own choice.")
@click.option("--resolution", type=click.Choice(["256", "1024"]), default="256", show_default=True)
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="The table. Default: OUT.png.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="OUT.json.")
def main(
    photos: Path,
    identities: int,
    attributes: int,
    identity_kind: str,
    attribute_kind: str,
    bundle: Path | None,
    engine: str,
    threads: int | None,
    resolution: str,
    picture: Path | None,
    output: Path,
) -> None:
    machine = machine_record()
    people = people_of(photos, identity_kind, attribute_kind)
    on_top = spread(list(people), identities)
    on_left = spread([person for person in people if person not in on_top], attributes)

    composer = Composer(bundle, engine=engine, threads=threads, resolution=int(resolution))
    tops = [look(composer, people[person][0]) for person in on_top]
    lefts = [look(composer, people[person][1]) for person in on_left]
    second_photos = [look(composer, people[person][1]) for person in on_top]
    cells, call_ms, stage_ms = compose_all(composer, tops, lefts)

    codes = np.array([[composer.identity_code(as_crop(cell)) for cell in row] for row in cells])
    to_identity = np.einsum("aic,jc->aij", codes, np.array([top.code for top in tops]))
    to_attributes = np.einsum("aic,ac->ai", codes, np.array([left.code for left in lefts]))
    own = np.diagonal(to_identity, axis1=1, axis2=2)

    record = {
        "benchmark": "evaluate_photos",
        "photos": photos.name,
        "identities": on_top,
        "attributes": on_left,
        "kinds": {"identity": identity_kind, "attributes": attribute_kind},
        "cosine": {
            "output_to_identity_photo": summary(own),
            "output_to_attribute_photo": summary(to_attributes),
            "different_people": summary(cosines_between_people([*tops, *lefts])),
            "same_person_two_photos": summary(
                np.array([a.code @ b.code for a, b in zip(tops, second_photos, strict=True)])
            ),
            "output_to_identity_photo_by_person": {
                person: round(float(cosine), 4) for person, cosine in zip(on_top, own.mean(axis=0), strict=True)
            },
        },
        "dlib": by_dlib(tops, cells),
        "nearest_identity_is_the_right_one": round(float((to_identity.argmax(axis=2) == range(len(tops))).mean()), 4),
        "ms_per_face": {
            "what": "Composer.compose on one photo in memory: detect, align, encode, map, generate; batch 1",
            "faces": len(call_ms),
            "median": round(float(np.median(call_ms)), 2),
            "p95": round(float(np.percentile(call_ms, 95)), 2),
            "stages_median": stage_ms,
        },
        "provider": composer.provider,
        "resolution": int(resolution),
        "threads": threads,
        "bundle": {"name": composer.bundle.name, "version": composer.bundle.version},
        "machine": machine,
    }
    table = compose_table([top.crop for top in tops], [left.crop for left in lefts], cells, on_top, on_left)
    write_image(picture or output.with_suffix(".png"), table)
    output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
