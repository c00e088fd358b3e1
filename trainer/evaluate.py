"""Measures a checkpoint or a bundle the way the paper does, on faces that training never saw: `fid-train evaluate`.

`evaluate` gives the short figures, by the networks of training. Identity: SFace cosine between the output and the
identity image; the leak is the same measure against the attribute image, beside random pairs. Landmarks: mean distance
of the inner face's points to those of the attribute image, as a share of the same distance between random pairs.
Reconstruction: both measures where I_id = I_attr.

`evaluate_all` adds the paper's tables and figures, also by networks that training never saw (`judges.py`):
Table 1 on generated pairs and on photographs, Table 2 (reconstruction), Table 3 (ablations), Fig. 9 (PCA of W), and
Figs 13 and 15 (identity and attributes along driving clips). Some people of the photographs can also be personalised,
and their photographs inverted, which shows what the generator could reach. `evaluate_page.py` writes them down.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ..runtime.align import align
from ..runtime.cache import sha256
from ..runtime.cli_options import progress_of
from ..runtime.composer import Composer
from ..runtime.detect import Detector, choose_face
from ..runtime.errors import InputError
from ..runtime.images import PHOTO_SUFFIXES, read_image
from ..runtime.table import compose_table
from . import measures, personalize
from .checkpoint import read_record
from .data import Faces, FrozenNetworks, joined
from .judges import ACCEPT, Judges, Seen
from .loop import best_device, machine_record, tune_machine
from .measures import summary
from .networks_bundle import BundleMapping, BundleNetworks, BundleSynthesis, as_crops, from_uint8, to_uint8
from .networks_mobilestylegan import W_SIZE, Synthesis
from .networks_stylegan2 import Synthesis as StyleGAN2Synthesis
from .trained import generator_name, load_generator, load_mapping, load_trained

AXES = ("pitch", "yaw", "roll")
SHIPPED_SIDE = 256  # px, of the bundle's own generator
Networks = Callable[[Tensor, Tensor, Tensor], Tensor]
"""E_attr and M: identity codes [N, 128], attribute and identity crops [N, 3, S, S] in [-1, 1] -> w [N, 512]."""


@dataclass(frozen=True)
class EvaluateConfig:
    """What `fid-train evaluate` measures."""

    pairs: int = 256
    psi: float = 0.8
    seed: int = 1_000_000_007  # far from the seeds of training
    batch: int = 8
    frames: int = 120  # of a driving clip, from its start
    clip_people: int = 2  # identities a clip drives: so many generated ones, and as many of the photographs
    cloud: int = 2000  # w of the generator that show its W
    refine: int = 0  # people of the photographs that are personalised, too; each on as many photos of others
    refine_on: int = 8


@dataclass(frozen=True)
class Outputs:
    """Compositions, and what the networks of training say about them."""

    w: Tensor  # [N, 512]
    identity: Tensor  # [N, 128], unit codes
    landmarks: Tensor  # [N, K, 2], inner face, px of a 256 px crop
    crops: np.ndarray  # uint8 [N, 256, 256, 3], RGB


@dataclass(frozen=True)
class GeneratedPairs:
    """Generated people, generated faces that give attributes, and what comes out."""

    people: Faces
    attributes: Faces
    output: Outputs  # people with these attributes
    own: Outputs  # I_id = I_attr: the attribute images again


@dataclass(frozen=True)
class Photos:
    """Aligned photographs."""

    crops: np.ndarray  # uint8 [N, 256, 256, 3], RGB
    people: tuple[str, ...]  # who each shows
    skipped: tuple[str, ...]  # one sentence for each photo that cannot be used


@dataclass(frozen=True)
class Clip:
    """The aligned faces of a driving clip."""

    name: str
    crops: np.ndarray  # uint8 [T, 256, 256, 3], RGB
    numbers: np.ndarray  # [T], of the frames; frames without a usable face are missing
    frames: int  # that were read


@dataclass
class Report:
    """Everything that was measured: `figures` are the JSON file, the rest is for the page."""

    figures: dict[str, Any]
    pictures: dict[str, np.ndarray] = field(default_factory=dict)  # title -> RGB uint8
    clouds: dict[str, np.ndarray] = field(default_factory=dict)  # name -> [N, 2] on the axes of the generator's w
    identity: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)  # title -> output, leak, random -> [N]


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a checkpoint of `fid-train fit`, or a bundle."""

    name: str  # "run/step_000200", or "bundle default 0.1.0"
    networks: Networks
    composer: Composer | None  # of a bundle

    @classmethod
    def read(cls, path: Path | None, device: torch.device, resolution: int = SHIPPED_SIDE) -> "Subject":
        """A run's or checkpoint's folder, a bundle's folder, a .fid file, or None for the bundle that ships."""
        if path is None or path.is_file() or (path / "bundle.json").is_file():
            composer = Composer(path, resolution=resolution, threads=torch.get_num_threads())
            bundle = composer.bundle
            return cls(f"bundle {bundle.name} {bundle.version}", BundleNetworks(composer), composer)
        folder = Path(read_record(path)["folder"]).resolve()
        return cls(f"{folder.parent.name}/{folder.name}", load_trained(path).to(device), None)

    def refinable(self, path: Path | None, generator: Path | None, device: torch.device) -> personalize.Networks:
        """The same networks in the form that people are refined through; a checkpoint needs the generator's."""
        if self.composer is not None:
            return personalize.bundle_networks(self.composer, device)
        if path is None or generator is None:
            raise InputError("--refine on a checkpoint needs --generator, the one that it was trained through.")
        return personalize.trained_networks(path, generator, device)

    def generator(self, checkpoint: Path | None, resolution: int) -> Synthesis | StyleGAN2Synthesis | BundleSynthesis:
        """The generator to look through: a `fid-train distill` checkpoint's, a file's, a bundle's own, or the shipped
        bundle's.

        At 1024 px a checkpoint is looked at through the published generator. Raises InputError for a side that needs a
        checkpoint.
        """
        if self.composer is not None and checkpoint is None:
            return BundleSynthesis(self.composer)
        if checkpoint is None and resolution == SHIPPED_SIDE:
            return BundleSynthesis(Composer(threads=torch.get_num_threads()))
        return load_generator(checkpoint, resolution)


def _distance(points: Tensor, others: Tensor) -> Tensor:
    """Mean distance [N] of landmarks [N, K, 2], as a fraction of the 256 px crop."""
    return (points - others).norm(dim=2).mean(dim=1) / 256


@torch.no_grad()
def compose(
    networks: Networks, frozen: FrozenNetworks, identity: Tensor, image: Tensor, portrait: Tensor, batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(w, pictures in [-1, 1]) batch by batch, of identity codes [N, 128], attribute and identity images uint8
    [N, 3, S, S]."""
    starts = range(0, len(identity), batch)
    for i in progress_of("composing", starts, len(starts)):
        crops = (images[i : i + batch].float() / 127.5 - 1 for images in (image, portrait))
        w = networks(identity[i : i + batch], *crops)
        yield w, frozen.synthesis(w)


def compose_crops(
    networks: Networks, frozen: FrozenNetworks, identity: Tensor, crops: np.ndarray, portraits: np.ndarray, batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """w [N, 512] and crops uint8 [N, 256, 256, 3] of identity codes [N, 128], attribute and identity crops of that
    shape."""
    image, portrait = (
        torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).to(identity.device)
        for images in (crops, portraits)
    )
    parts = [
        (w.cpu().numpy(), as_crops(to_uint8(picture)))
        for w, picture in compose(networks, frozen, identity, image, portrait, batch)
    ]
    return np.concatenate([w for w, _ in parts]), np.concatenate([c for _, c in parts])


@torch.no_grad()
def generated_pairs(networks: Networks, frozen: FrozenNetworks, config: EvaluateConfig) -> GeneratedPairs:
    """Draws `config.pairs` pairs through `frozen.synthesis` and composes them."""
    random = torch.Generator().manual_seed(config.seed)

    def drawn(what: str) -> Faces:
        parts = frozen.draw_w(config.pairs, config.psi, random).split(config.batch)
        return joined([frozen.make(w) for w in progress_of(what, parts, len(parts))])

    people, attributes = drawn("drawing people"), drawn("drawing attributes")

    def outputs(identity: Faces) -> Outputs:
        parts = [
            (w, frozen.identity(image), frozen.inner_face(image), as_crops(to_uint8(image)))
            for w, image in compose(networks, frozen, identity.identity, attributes.image, identity.image, config.batch)
        ]
        w, codes, points, crops = zip(*parts, strict=True)
        return Outputs(torch.cat(w), torch.cat(codes), torch.cat(points), np.concatenate(crops))

    return GeneratedPairs(people, attributes, outputs(people), outputs(attributes))


def short_figures(pairs: GeneratedPairs, frozen: FrozenNetworks, config: EvaluateConfig) -> dict[str, Any]:
    """Figures by the networks of training, by name; cosines as mean and std."""
    people, attributes, output, own = pairs.people, pairs.attributes, pairs.output, pairs.own

    def cosine(a: Tensor, b: Tensor) -> dict[str, float]:
        values = (a * b).sum(dim=1)
        return {"mean": values.mean().item(), "std": values.std().item()}

    rolled = attributes.landmarks.roll(1, 0)
    random_distance = _distance(attributes.landmarks, rolled).mean()
    return {
        "configuration": asdict(config),
        "resolution": frozen.synthesis.resolution,
        "identity_cosine": cosine(output.identity, people.identity),
        "leak_cosine": cosine(output.identity, attributes.identity),
        "random_cosine": cosine(people.identity, attributes.identity),
        "landmark_error": (_distance(output.landmarks, attributes.landmarks).mean() / random_distance).item(),
        "random_landmark_distance": random_distance.item(),
        "reconstruction_cosine": cosine(own.identity, attributes.identity),
        "reconstruction_landmark_error": (
            _distance(own.landmarks, attributes.landmarks).mean() / random_distance
        ).item(),
        "w_deviation": ((output.w - frozen.w_mean) / frozen.w_std).square().mean().sqrt().item(),
        "generated_w_deviation": ((people.w - frozen.w_mean) / frozen.w_std).square().mean().sqrt().item(),
    }


def evaluate(networks: Networks, frozen: FrozenNetworks, config: EvaluateConfig) -> dict[str, Any]:
    """Short figures of E_attr and M through `frozen.synthesis` on `config.pairs` pairs."""
    return short_figures(generated_pairs(networks, frozen, config), frozen, config)


def run(
    path: Path | None,
    config: EvaluateConfig,
    *,
    generator: Path | None = None,
    resolution: int = SHIPPED_SIDE,
    photos: Path | None = None,
    clips: Sequence[Path] = (),
    ablations: Mapping[str, Path] | None = None,
    arcface: Path | None = None,
    inception: Path | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Report:
    """Reads everything that is named, so that mistakes show at once, and measures it; `log` gets a line per stage."""
    tune_machine()
    device = best_device()
    subject = Subject.read(path, device, resolution)
    others = {name: Subject.read(other, device).networks for name, other in (ablations or {}).items()}
    if config.refine and photos is None:
        raise InputError("--refine is for people of --photos; name their folder.")
    refinable = subject.refinable(path, generator, device) if config.refine else None
    synthesis = subject.generator(generator, resolution)
    known_photos = read_photos(photos) if photos else None
    known_clips = [read_clip(clip, config.frames) for clip in clips]
    mapping = load_mapping(generator)
    if isinstance(synthesis, BundleSynthesis) and synthesis.composer.bundle.own_generator:
        mapping = BundleMapping(synthesis.composer)
    frozen = FrozenNetworks.load(synthesis, device, mapping=mapping)  # pyright: ignore[reportArgumentType] - alike
    judges = Judges.load(frozen, arcface, inception)
    report = evaluate_all(
        subject.networks,
        judges,
        config,
        photos=known_photos,
        clips=known_clips,
        ablations=others,
        refinable=refinable,
        log=log,
    )
    looked_through = subject.name if isinstance(synthesis, BundleSynthesis) and subject.composer else "shipped bundle's"
    if not isinstance(synthesis, BundleSynthesis):
        looked_through = generator_name(generator, resolution)
    origin = {"evaluated": subject.name, "generator": looked_through, "machine": machine_record()}
    if subject.composer is not None:
        origin["bundle_sha256"] = sha256(subject.composer.bundle.folder / "bundle.json")
    report.figures = _plain({**origin, **report.figures})
    return report


def evaluate_all(
    networks: Networks,
    judges: Judges,
    config: EvaluateConfig,
    *,
    photos: Photos | None = None,
    clips: Sequence[Clip] = (),
    ablations: Mapping[str, Networks] | None = None,
    refinable: personalize.Networks | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Report:
    """Short figures, the paper's tables and the pictures of the page. Ablations share the generator of `networks`.

    `refinable`: the same networks again, where people of the photographs are to be personalised.
    """
    frozen = judges.frozen
    log(f"composing {config.pairs} generated pairs")
    pairs = generated_pairs(networks, frozen, config)
    report = Report(short_figures(pairs, frozen, config))
    figures = report.figures
    figures["judges"] = {
        "identity": ["SFace", *(["dlib"] if judges.dlib else []), *(["ArcFace"] if judges.arcface else [])],
        "features": judges.features_name,
        "not_measured": judges.absent,
    }
    log("judging them")
    people, attributes = (judges.look(_crops(faces)) for faces in (pairs.people, pairs.attributes))
    output, own = judges.look(pairs.output.crops), judges.look(pairs.own.crops)
    figures["generated"] = {
        "pairs": config.pairs,
        **pair_measures(people, attributes, output, judges.features_name),
        "reconstruction": reconstruction_measures(judges, attributes, own),
    }
    report.identity |= _distributions("generated pairs", people, attributes, output)
    report.pictures["Generated people"] = _table(
        networks, judges, people.codes["SFace"][:5], people.crops[:5], attributes.crops[:5], config.batch
    )
    report.pictures["Generated pairs"] = _sorted_pairs(people, attributes, output)
    report.pictures["Reconstruction of generated faces"] = tile([attributes.crops[:8], own.crops[:8]])
    spaces = {"ours": pairs.output.w.cpu().numpy()}

    if ablations:
        figures["ablations"] = {}
        rows = [people.crops[:8], attributes.crops[:8], output.crops[:8]]
        for name, other in ablations.items():
            log(f"ablation {name}")
            w, crops = compose_crops(other, frozen, pairs.people.identity, attributes.crops, people.crops, config.batch)
            figures["ablations"][name] = pair_measures(people, attributes, judges.look(crops), judges.features_name)
            spaces[name] = w
            rows.append(crops[:8])
        report.pictures["Ablations"] = tile(rows)
    figures["w_space"], report.clouds = w_space(frozen, spaces, config)

    drivers = [(f"generated {i + 1}", people[[i]]) for i in range(min(config.clip_people, config.pairs))]
    if photos is not None:
        log(f"{len(photos.crops)} photographs of {len(set(photos.people))} people")
        figures["photos"], seen = _measure_photos(networks, judges, photos, config, report)
        firsts = [photos.people.index(person) for person in dict.fromkeys(photos.people)][: config.clip_people]
        drivers += [(f"photograph {i + 1}", seen[[first]]) for i, first in enumerate(firsts)]
        if refinable is not None:
            figures["refined"] = _measure_refined(refinable, judges, photos, seen, config, report, log)
    if clips:
        figures["clips"] = {}
        for clip in clips:
            log(f"clip {clip.name}, {len(clip.crops)} frames, {len(drivers)} identities")
            figures["clips"][clip.name] = _measure_clip(networks, judges, clip, drivers, config, report)
    return report


def pair_measures(identity: Seen, attributes: Seen, output: Seen, features: str) -> dict[str, Any]:
    """Table 1: output against identity image (identity) and attribute image (expression, pose), leak and random beside.

    The three go row by row. The Frechet distance compares the outputs with the identity images; its floor is that of
    the identity images to the attribute images, as many.
    """
    return {
        "frechet_distance": {
            "features": features,
            "output": measures.frechet_distance(output.features, identity.features),
            "floor": measures.frechet_distance(attributes.features, identity.features),
            "n": len(output),
        },
        "identity": {
            judge: {
                "output": identity_measures(judge, output.codes[judge], codes),
                "leak": identity_measures(judge, output.codes[judge], attributes.codes[judge]),
                "random": identity_measures(judge, codes, attributes.codes[judge]),
            }
            for judge, codes in identity.codes.items()
        },
        "expression": {
            name: {
                "output": summary(measures.point_distance(output.points[name], points, 256)),
                "random": summary(measures.point_distance(identity.points[name], points, 256)),
            }
            for name, points in attributes.points.items()
        },
        "pose": {
            name: {
                "output": summary(measures.pose_distance(output.poses[name], angles)),
                "random": summary(measures.pose_distance(identity.poses[name], angles)),
                **{axis: measures.correlation(output.poses[name][:, k], angles[:, k]) for k, axis in enumerate(AXES)},
            }
            for name, angles in attributes.poses.items()
        },
    }


def identity_measures(judge: str, codes: np.ndarray, others: np.ndarray) -> dict[str, Any]:
    """Cosine of codes [N, D] row by row; by dlib also distance, and share of rows within its threshold."""
    result: dict[str, Any] = {"cosine": summary(measures.cosine(codes, others))}
    if judge == "dlib":
        distance = np.linalg.norm(codes - others, axis=1)
        result |= {"distance": summary(distance), "accept": float((distance <= ACCEPT).mean())}
    return result


def reconstruction_measures(judges: Judges, target: Seen, own: Seen) -> dict[str, Any]:
    """Table 2: how far outputs with I_id = I_attr are from their image."""
    errors = measures.rmse(own.crops, target.crops)
    return {
        "n": len(own),
        "rmse": summary(errors),
        "psnr": summary(measures.psnr(errors)),
        "lpips": summary(judges.perceptual_distance(own.crops, target.crops)),
        "identity": {judge: identity_measures(judge, codes, target.codes[judge]) for judge, codes in own.codes.items()},
        "expression": {
            name: summary(measures.point_distance(points, target.points[name], 256))
            for name, points in own.points.items()
        },
        "pose": {
            name: summary(measures.pose_distance(angles, target.poses[name])) for name, angles in own.poses.items()
        },
    }


def w_space(
    frozen: FrozenNetworks, spaces: Mapping[str, np.ndarray], config: EvaluateConfig
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fig. 9: where w [N, 512] lie on the two widest axes of the generator's own w, in its standard deviations there.

    `deviation` is over all 512 dimensions, in standard deviations of untruncated w. A w per layer ([N, n, 512]) counts
    by its mean.
    """
    random = torch.Generator().manual_seed(config.seed + 1)
    z = torch.randn(config.cloud, W_SIZE, generator=random).to(frozen.w_mean.device)
    with torch.no_grad():
        own = frozen.w_mean + config.psi * (frozen.mapping(z) - frozen.w_mean)
    mean, std = frozen.w_mean.cpu().numpy(), frozen.w_std.cpu().numpy()
    pca = measures.Pca.fit(own.cpu().numpy())
    scale = pca.project(own.cpu().numpy()).std(axis=0)
    figures: dict[str, Any] = {"axes_share": pca.share.tolist(), "clouds": {}}
    clouds = {}
    for name, w in {"generator": own.cpu().numpy(), **spaces}.items():
        w = w.mean(axis=1) if w.ndim == 3 else w
        clouds[name] = pca.project(w) / scale
        figures["clouds"][name] = {
            "n": len(w),
            "mean": clouds[name].mean(axis=0).tolist(),
            "std": clouds[name].std(axis=0).tolist(),
            "deviation": float(np.sqrt((((w - mean) / std) ** 2).mean())),
        }
    return figures, clouds


def read_photos(folder: Path) -> Photos:
    """Aligned photographs of a folder: PERSON_anything.jpg in it, or a folder for each person.

    Photos without a usable face are skipped and named. Raises InputError when fewer than two people are left.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES and path.is_file())
    detector = Detector()
    crops, people, skipped = [], [], []
    for path in files:
        try:
            crops.append(aligned(detector, read_image(path), str(path.relative_to(folder))))
        except InputError as error:
            skipped.append(str(error))
            continue
        inside = path.relative_to(folder).parts
        people.append(inside[0] if len(inside) > 1 else path.stem.partition("_")[0])
    if len(set(people)) < 2:
        raise InputError(
            f"{folder} holds usable photos of {len(set(people))} people and at least 2 are needed; name them "
            "PERSON_anything.jpg or give each person a folder."
        )
    return Photos(np.stack(crops), tuple(people), tuple(skipped))


def aligned(detector: Detector, image: np.ndarray, name: str) -> np.ndarray:
    """The aligned crop uint8 [256, 256, 3] of the largest face. Raises InputError, naming the photo, without one."""
    face = choose_face(detector.faces(image), None, name)
    return align(detector.refine(image, face).points).crop(image)


def read_clip(path: Path, frames: int) -> Clip:
    """The first `frames` frames of a video file, each aligned on its own. Raises InputError without a usable face."""
    video, detector = cv2.VideoCapture(str(path)), Detector()
    crops, numbers, count = [], [], 0
    try:
        if not video.isOpened():
            raise InputError(f"{path} is not a video that OpenCV can read.")
        while count < frames:
            more, frame = video.read()
            if not more:
                break
            try:
                crops.append(aligned(detector, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), path.name))
                numbers.append(count)
            except InputError:
                pass
            count += 1
    finally:
        video.release()
    if len(crops) < 3:
        raise InputError(f"{path} shows a usable face in {len(crops)} of {count} frames and at least 3 are needed.")
    return Clip(path.stem, np.stack(crops), np.array(numbers), count)


def photo_pairs(people: Sequence[str], count: int, seed: int) -> np.ndarray:
    """Pairs of photos (identity, attributes) [n, 2] that show different people: `count`, or all that there are."""
    every = np.array([(i, j) for i, a in enumerate(people) for j, b in enumerate(people) if a != b])
    chosen = np.random.default_rng(seed).choice(len(every), min(count, len(every)), replace=False)
    return every[np.sort(chosen)]


def _measure_photos(
    networks: Networks, judges: Judges, photos: Photos, config: EvaluateConfig, report: Report
) -> tuple[dict[str, Any], Seen]:
    """Tables 1 and 2 on photographs, and what the judges say about each photo."""
    frozen, names = judges.frozen, photos.people
    seen = judges.look(photos.crops)
    codes = torch.from_numpy(seen.codes["SFace"]).to(frozen.w_mean.device)
    index = photo_pairs(names, config.pairs, config.seed)
    identity, attributes = seen[index[:, 0]], seen[index[:, 1]]
    _, crops = compose_crops(networks, frozen, codes[index[:, 0]], attributes.crops, identity.crops, config.batch)
    output = judges.look(crops)
    _, own_crops = compose_crops(networks, frozen, codes, photos.crops, photos.crops, config.batch)
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
    report.identity |= _distributions("pairs of photographs", identity, attributes, output)
    firsts = [names.index(person) for person in dict.fromkeys(names)]
    top, left = firsts[:5], [i for i in range(len(names)) if names[i] not in {names[f] for f in firsts[:5]}]
    left = left[:: max(1, len(left) // 5)][:5] or firsts[:5]
    report.pictures["Photographs"] = _table(
        networks, judges, seen.codes["SFace"][top], seen.crops[top], seen.crops[left], config.batch
    )
    report.pictures["Pairs of photographs"] = _sorted_pairs(identity, attributes, output)
    report.pictures["Reconstruction of photographs"] = tile([seen.crops[:8], own.crops[:8]])
    return figures, seen


def refined_pairs(people: Sequence[str], count: int, on: int) -> list[tuple[int, list[int]]]:
    """Photos by number: the first one of `count` people, spread evenly, and the last ones of up to `on` others each."""
    names = list(dict.fromkeys(people))
    chosen = [names[i] for i in np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int)]
    last = {name: i for i, name in enumerate(people)}
    pairs = []
    for name in chosen:
        others = [other for other in names if other != name]
        spread = np.linspace(0, len(others) - 1, min(on, len(others))).round().astype(int)
        pairs.append((people.index(name), [last[others[i]] for i in spread]))
    return pairs


def _measure_refined(
    networks: personalize.Networks,
    judges: Judges,
    photos: Photos,
    seen: Seen,
    config: EvaluateConfig,
    report: Report,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Table 1 on the same pairs of photographs straight from the mapper and personalised, and how near the generator
    comes to each person's photograph when w is optimised for it alone (the ceiling)."""
    device = judges.frozen.w_mean.device
    pairs = refined_pairs(photos.people, config.refine, config.refine_on)
    straight, refined, inverted = [], [], []
    for number, (identity, others) in enumerate(pairs):
        log(f"personalising {photos.people[identity]}, {number + 1} of {len(pairs)}")
        crops = from_uint8(photos.crops[[identity, *others]]).to(device)
        own, code = crops[:1], torch.from_numpy(seen.codes["SFace"][identity]).to(device)
        with torch.no_grad():
            appearance, attributes = networks.attributes(own)[0], networks.attributes(crops[1:])
        offset, _, _ = personalize.refine(networks, code, own, personalize.PersonalizeConfig())
        with torch.no_grad():
            n = len(attributes)
            w = networks.mapper(code.expand(n, -1), attributes, appearance.expand(n, -1))
            for pictures, of_person in ((straight, w), (refined, w + offset)):
                parts = of_person.split(config.batch)
                pictures.append(np.concatenate([as_crops(to_uint8(networks.synthesis(part))) for part in parts]))
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
            photos.crops[own_index],
            [photos.crops[others[0]] for _, others in pairs],
            [pictures[0] for pictures in straight],
            [pictures[0] for pictures in refined],
            np.concatenate(inverted),
        ]
    )
    return {
        "people": [photos.people[i] for i in own_index],
        "pairs": len(identity),
        **{name: pair_measures(identity, attributes, one, judges.features_name) for name, one in looked.items()},
        "ceiling": reconstruction_measures(judges, seen[own_index], ceiling),
    }


def _measure_clip(
    networks: Networks,
    judges: Judges,
    clip: Clip,
    people: Sequence[tuple[str, Seen]],
    config: EvaluateConfig,
    report: Report,
) -> dict[str, Any]:
    """Figs 13 and 15: how steady the identity is along a clip, and how well pose and mouth follow it."""
    frozen = judges.frozen
    driving = judges.look(clip.crops)
    shown = np.linspace(0, len(driving) - 1, 8).round().astype(int)
    blank = np.full_like(clip.crops[0], 255)
    rows = [[blank, *clip.crops[shown]]]
    figures: dict[str, Any] = {
        "frames": clip.frames,
        "faces": len(driving),
        "driving": {
            **sequence_measures(driving, clip.numbers),
            "pose_agreement": pose_agreement(driving),
            "series": _series(driving),
        },
        "people": {},
    }
    for name, person in people:
        code = torch.from_numpy(person.codes["SFace"]).to(frozen.w_mean.device).expand(len(driving), -1)
        _, crops = compose_crops(
            networks, frozen, code, clip.crops, np.repeat(person.crops[:1], len(driving), axis=0), config.batch
        )
        output = judges.look(crops)
        figures["people"][name] = {
            **sequence_measures(output, clip.numbers),
            **following_measures(output, driving),
            "identity": {
                judge: {
                    "output": identity_measures(judge, codes, person.codes[judge]),
                    "leak": identity_measures(judge, codes, driving.codes[judge]),
                }
                for judge, codes in output.codes.items()
            },
            "series": _series(output),
        }
        rows.append([person.crops[0], *crops[shown]])
    report.pictures[f"Clip {clip.name}"] = tile(rows)
    return figures


def pose_agreement(seen: Seen) -> dict[str, float]:
    """Correlation of the face mesh's pose with dlib's on the same frames: how far a correlation can be believed.

    Nothing without dlib.
    """
    if "dlib" not in seen.poses:
        return {}
    mesh, other = seen.poses["face mesh"], seen.poses["dlib"]
    return {axis: measures.correlation(mesh[:, k], other[:, k]) for k, axis in enumerate(AXES)}


def sequence_measures(seen: Seen, numbers: np.ndarray) -> dict[str, Any]:
    """Identity drift by every recogniser, landmark jitter in px of the crop, spread of the pose in degrees."""
    drifts = {judge: measures.drift(codes) for judge, codes in seen.codes.items()}
    return {
        "identity_drift": {judge: {**summary(d), "max": float(d.max())} for judge, d in drifts.items()},
        "jitter": {name: measures.jitter(points, numbers) for name, points in seen.points.items()},
        "pose_spread": {name: dict(zip(AXES, p.std(axis=0).tolist(), strict=True)) for name, p in seen.poses.items()},
    }


def following_measures(output: Seen, driving: Seen) -> dict[str, Any]:
    """Correlation of pose and of the lips' gap between outputs and driving frames, and the distances of Table 1."""
    return {
        "pose_correlation": {
            name: {axis: measures.correlation(output.poses[name][:, k], angles[:, k]) for k, axis in enumerate(AXES)}
            for name, angles in driving.poses.items()
        },
        "pose_error": {
            name: summary(measures.pose_distance(output.poses[name], angles)) for name, angles in driving.poses.items()
        },
        "expression": {
            name: summary(measures.point_distance(output.points[name], points, 256))
            for name, points in driving.points.items()
        },
        "mouth_correlation": measures.correlation(output.mouth, driving.mouth),
    }


def _series(seen: Seen) -> dict[str, list[float]]:
    """What the page draws over the frames of a clip."""
    judge = "dlib" if "dlib" in seen.codes else "SFace"
    columns = {
        f"drift by {judge}": measures.drift(seen.codes[judge]),
        **{axis: seen.poses["face mesh"][:, k] for k, axis in enumerate(AXES)},
        "mouth": seen.mouth,
    }
    return {name: [round(float(value), 4) for value in values] for name, values in columns.items()}


def _distributions(title: str, identity: Seen, attributes: Seen, output: Seen) -> dict[str, dict[str, np.ndarray]]:
    """What the page draws as histograms: cosines [N] of SFace and ArcFace, distances [N] of dlib."""

    def compared(judge: str, a: Seen, b: Seen) -> np.ndarray:
        a_codes, b_codes = a.codes[judge], b.codes[judge]
        return np.linalg.norm(a_codes - b_codes, axis=1) if judge == "dlib" else measures.cosine(a_codes, b_codes)

    return {
        f"{judge} {'distance' if judge == 'dlib' else 'cosine'} of the output, {title}": {
            "identity image": compared(judge, output, identity),
            "attribute image": compared(judge, output, attributes),
            "two random people": compared(judge, identity, attributes),
        }
        for judge in output.codes
    }


def _plain(value: Any) -> Any:
    """The same, ready for JSON: what is not a finite number becomes None."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _crops(faces: Faces) -> np.ndarray:
    """Crops uint8 [N, 256, 256, 3] of generated faces."""
    return as_crops(np.ascontiguousarray(faces.image.permute(0, 2, 3, 1).cpu().numpy()))


def _table(
    networks: Networks, judges: Judges, codes: np.ndarray, top: np.ndarray, left: np.ndarray, batch: int
) -> np.ndarray:
    """The paper's table: identities [n] on top, attributes [m] on the left."""
    every = torch.from_numpy(np.tile(codes, (len(left), 1))).to(judges.frozen.w_mean.device)
    portraits = np.tile(top, (len(left), 1, 1, 1))
    _, crops = compose_crops(networks, judges.frozen, every, np.repeat(left, len(top), axis=0), portraits, batch)
    cells = crops.reshape(len(left), len(top), *crops.shape[1:])
    labels = [[""] * len(top), [""] * len(left)]
    return compose_table(list(top), list(left), [list(row) for row in cells], *labels)


def _sorted_pairs(identity: Seen, attributes: Seen, output: Seen) -> np.ndarray:
    """Identity, attributes, output of the pairs with the worst, median and best identity, three of each, by column."""
    judge = "dlib" if "dlib" in output.codes else "SFace"
    if judge == "dlib":
        order = np.argsort(-np.linalg.norm(output.codes[judge] - identity.codes[judge], axis=1), kind="stable")
    else:
        order = np.argsort(measures.cosine(output.codes[judge], identity.codes[judge]), kind="stable")
    middle = len(order) // 2
    chosen = list(dict.fromkeys([*order[:3], *order[max(middle - 1, 0) : middle + 2], *order[-3:]]))
    return tile([identity.crops[chosen], attributes.crops[chosen], output.crops[chosen]])


def tile(rows: Sequence[Any], side: int = 144, gap: int = 4) -> np.ndarray:
    """Pictures uint8 [256, 256, 3] in rows, as one RGB picture on white, each brought to `side` px."""
    height, width = len(rows) * (side + gap) - gap, max(len(row) for row in rows) * (side + gap) - gap
    page = np.full((height, width, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            small = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
            page[r * (side + gap) :][:side, c * (side + gap) :][:, :side] = small
    return page
