"""Photographs of real people: read, pair, compose and measure them."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...runtime.engines.open import open_detector
from ...runtime.errors import InputError
from ...runtime.face.align import align
from ...runtime.face.detect import Detector, choose_face
from ...runtime.media.images import PHOTO_SUFFIXES, read_image
from .. import personalize
from ..networks.exported import BundleNetworks
from ..pixels import as_crops, from_uint8, to_uint8
from . import measures
from .compare import distributions, identity_measures, pair_measures, reconstruction_measures
from .compose import EvaluateConfig, Networks, Report, _table, compose_crops, sorted_pairs, tile
from .groups import Group, People, group_of, group_report, read_groups
from .judges import Judges, Seen
from .unseen import UnseenJudges


@dataclass(frozen=True)
class Photos:
    """Aligned photographs."""

    crops: np.ndarray  # uint8 [N, 256, 256, 3], RGB
    people: tuple[str, ...]  # who each shows
    skipped: tuple[str, ...]  # one sentence for each photo that cannot be used
    groups: tuple[Group, ...] = ()  # of each, where they are asked for


def read_photos(folder: Path, table: Path | None = None) -> Photos:
    """Aligned photographs of a folder: PERSON_anything.jpg in it, TONE_SEX_NUMBER.jpg, or a folder for each person.

    `table`: a TSV of groups (`groups.read_groups`) in place of such names. Photos without a usable face are skipped and
    named. Raises InputError when fewer than two people are left.
    """
    known = {} if table is None else read_groups(table)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES and path.is_file())
    detector = open_detector()
    crops, people, skipped, groups = [], [], [], []
    for path in files:
        try:
            crops.append(aligned(detector, read_image(path), str(path.relative_to(folder))))
        except InputError as error:
            skipped.append(str(error))
            continue
        inside = path.relative_to(folder).parts
        named = group_of(path.stem)
        groups.append(known.get(path.stem, named))
        alone = path.stem if named.tone or path.stem in known else path.stem.partition("_")[0]
        people.append(inside[0] if len(inside) > 1 else alone)
    if len(set(people)) < 2:
        raise InputError(
            f"{folder} holds usable photos of {len(set(people))} people and at least 2 are needed; name them "
            "PERSON_anything.jpg or give each person a folder."
        )
    return Photos(np.stack(crops), tuple(people), tuple(skipped), tuple(groups))


def aligned(detector: Detector, image: np.ndarray, name: str) -> np.ndarray:
    """Return the aligned crop uint8 [256, 256, 3] of the largest face. Raises InputError, naming the photo, without
    one."""
    face = choose_face(detector.faces(image), None, name)
    return align(detector.refine(image, face).points).crop(image)


def photo_pairs(people: Sequence[str], count: int, seed: int) -> np.ndarray:
    """Pairs of photos (identity, attributes) [n, 2] that show different people: `count`, or all that there are."""
    every = np.array([(i, j) for i, a in enumerate(people) for j, b in enumerate(people) if a != b])
    chosen = np.random.default_rng(seed).choice(len(every), min(count, len(every)), replace=False)
    return every[np.sort(chosen)]


def measure_photos(
    networks: Networks,
    judges: Judges,
    photos: Photos,
    config: EvaluateConfig,
    report: Report,
    unseen: UnseenJudges | None = None,
) -> tuple[dict[str, Any], Seen]:
    """Tables 1 and 2 on photographs, and what the judges say about each photo; with `unseen` also by group."""
    frozen, names = judges.frozen, photos.people
    seen = judges.look(photos.crops)
    codes = torch.from_numpy(seen.codes[judges.encoder]).to(frozen.w_mean.device)
    index = photo_pairs(names, config.pairs, config.seed)
    identity, attributes = seen[index[:, 0]], seen[index[:, 1]]
    found = networks.offsets(photos.crops) if isinstance(networks, BundleNetworks) else None
    offsets = None if found is None else found[torch.from_numpy(index[:, 0])]
    people_codes = codes[index[:, 0]]
    _, crops = compose_crops(networks, frozen, people_codes, attributes.crops, identity.crops, config.batch, offsets)
    output = judges.look(crops)
    _, own_crops = compose_crops(networks, frozen, codes, photos.crops, photos.crops, config.batch, found)
    own = judges.look(own_crops)
    same = np.array([(i, j) for i, a in enumerate(names) for j, b in enumerate(names) if a == b and i < j])
    figures = {
        "pairs": len(index),
        "photos": len(names),
        "people": len(set(names)),
        "skipped": list(photos.skipped),
        **pair_measures(identity, attributes, output, judges.features_name),
        "reconstruction": reconstruction_measures(judges, seen, own),
    }
    if unseen is not None:
        people = People(names, photos.groups, unseen.look(seen))
        by_group = group_report(people, index, output, attributes, unseen.look(output), unseen.look(own))
        figures["groups"] = asdict(by_group)
    order = list(dict.fromkeys(names))
    halves = [seen.features[[order.index(name) % 2 == odd for name in names]] for odd in (0, 1)]
    size = min(len(output), *map(len, halves))  # sets of one size, no photo twice, nobody in both
    figures["frechet_distance"] |= {
        "output": measures.frechet_distance(output.features[:size], halves[0][:size]),
        "floor": measures.frechet_distance(halves[1][:size], halves[0][:size]),
        "n": size,
    }
    if len(same):
        figures["same_person"] = {
            judge: identity_measures(judge, all_codes[same[:, 0]], all_codes[same[:, 1]])
            for judge, all_codes in seen.codes.items()
        }
    report.identity |= distributions("pairs of photographs", identity, attributes, output)
    firsts = [names.index(person) for person in dict.fromkeys(names)]
    top, left = firsts[:5], [i for i in range(len(names)) if names[i] not in {names[f] for f in firsts[:5]}]
    left = left[:: max(1, len(left) // 5)][:5] or firsts[:5]
    of_top = None if found is None else found[top]
    report.pictures["Photographs"] = _table(
        networks, judges, seen.codes[judges.encoder][top], seen.crops[top], seen.crops[left], config.batch, of_top
    )
    report.pictures["Pairs of photographs"] = sorted_pairs(identity, attributes, output)
    report.pictures["Reconstruction of photographs"] = tile([seen.crops[:8], own.crops[:8]])
    return figures, seen


INVERTED = 8  # of the people that are personalised, those whose photo is inverted as well, and who are pictured


def refined_pairs(people: Sequence[str], count: int, on: int) -> list[tuple[int, list[int]]]:
    """Return photos by number: the first one of `count` people, spread evenly, and the last ones of up to `on` others
    each."""
    names = list(dict.fromkeys(people))
    chosen = [names[i] for i in np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int)]
    last = {name: i for i, name in enumerate(people)}
    pairs = []
    for name in chosen:
        others = [other for other in names if other != name]
        spread = np.linspace(0, len(others) - 1, min(on, len(others))).round().astype(int)
        pairs.append((people.index(name), [last[others[i]] for i in spread]))
    return pairs


def measure_refined(
    networks: personalize.Networks,
    judges: Judges,
    photos: Photos,
    seen: Seen,
    config: EvaluateConfig,
    report: Report,
    log: Callable[[str], None],
    unseen: UnseenJudges | None = None,
) -> dict[str, Any]:
    """Return Table 1 on the same pairs of photographs straight from the mapper and personalised, and how near the
    generator comes to the photographs of up to `INVERTED` of the people when w is optimised for each alone (the
    ceiling)."""
    device = judges.frozen.w_mean.device
    pairs = refined_pairs(photos.people, config.refine, config.refine_on)
    also_inverted = np.linspace(0, len(pairs) - 1, min(INVERTED, len(pairs))).round().astype(int)
    straight, refined, inverted = [], [], []
    for number, (identity, others) in enumerate(pairs):
        log(f"personalising {photos.people[identity]}, {number + 1} of {len(pairs)}")
        crops = from_uint8(photos.crops[[identity, *others]]).to(device)
        own, code = crops[:1], torch.from_numpy(seen.codes["SFace"][identity]).to(device)
        with torch.no_grad():
            appearance, attributes = networks.attributes(own)[0], networks.attributes(crops[1:])
        how = personalize.FROM_NOTHING if networks.closer is None else personalize.PersonalizeConfig()
        offset = personalize.refine(networks, code, own, how).w_plus_offset
        with torch.no_grad():
            n = len(attributes)
            w = networks.mapper(code.expand(n, -1), attributes, appearance.expand(n, -1))
            for pictures, of_person in ((straight, w), (refined, w[:, None] + offset)):
                parts = of_person.split(config.batch)
                pictures.append(np.concatenate([as_crops(to_uint8(networks.synthesis(part))) for part in parts]))
        if number in also_inverted:
            inverted.append(as_crops(to_uint8(personalize.invert(networks, code, own, personalize.INVERSION))))
    own_index = np.array([identity for identity, _ in pairs])
    identity, attributes = (
        seen[np.array([i for i, others in pairs for _ in others])],
        seen[np.array([other for _, others in pairs for other in others])],
    )
    looked = {"straight": judges.look(np.concatenate(straight)), "personalised": judges.look(np.concatenate(refined))}
    ceiling = judges.look(np.concatenate(inverted))
    report.pictures["Personalised people"] = tile(
        [
            photos.crops[own_index[also_inverted]],
            photos.crops[[pairs[number][1][0] for number in also_inverted]],
            *([pictures[number][0] for number in also_inverted] for pictures in (straight, refined)),
            np.concatenate(inverted),
        ]
    )
    figures: dict[str, Any] = {
        "people": len(pairs),
        "pairs": len(identity),
        **{name: pair_measures(identity, attributes, one, judges.features_name) for name, one in looked.items()},
        "ceiling": reconstruction_measures(judges, seen[own_index[also_inverted]], ceiling),
    }
    if unseen is not None:
        people = People(photos.people, photos.groups, unseen.look(seen))
        index = np.array([(identity, other) for identity, others in pairs for other in others])
        for name, one in looked.items():
            by_group = group_report(people, index, one, attributes, unseen.look(one))
            figures[name]["groups"] = asdict(by_group)
    return figures
