"""Measures a checkpoint or a bundle the way the paper does, on faces that training never saw: `fid-train evaluate`.

`evaluate` gives the short figures, by the networks of training. Identity: SFace cosine between the output and the
identity image; the leak is the same measure against the attribute image, beside random pairs. Landmarks: mean distance
of the inner face's points to those of the attribute image, as a share of the same distance between random pairs.
Reconstruction: both measures where I_id = I_attr.

`evaluate_all` adds the paper's tables and figures, also by networks that training never saw (`judges`):
Table 1 on generated pairs and on photographs, Table 2 (reconstruction), Table 3 (ablations), Fig. 9 (PCA of W), and
Figs 13 and 15 (identity and attributes along driving clips). Some people of the photographs can also be personalised,
and their photographs inverted, which shows what the generator could reach. `evaluate_page.py` writes them down.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...runtime.composer import Composer
from ...runtime.errors import InputError
from ...runtime.identity import encoder_name
from ...runtime.weights.cache import sha256
from .. import personalize
from ..data.dataset import FrozenNetworks
from ..loop import best_device, machine_record, tune_machine
from ..networks.exported import BundleIdentity, BundleMapping, BundleNetworks, BundleSynthesis
from ..networks.mobilestylegan import Synthesis
from ..weights.checkpoint import read_record
from ..weights.generator import Synthesis as UsersSynthesis
from ..weights.identity import IdentityEncoder, check_identity_encoder, load_identity_encoder
from ..weights.trained import generator_name, load_generator, load_mapping, load_trained
from .clips import Clip, measure_clip, read_clip
from .compare import distributions, pair_measures, reconstruction_measures, w_factors, w_space
from .compose import (
    EvaluateConfig,
    Networks,
    Report,
    _crops,
    _table,
    compose_crops,
    generated_pairs,
    short_figures,
    sorted_pairs,
    tile,
)
from .judges import Judges
from .photos import Photos, measure_photos, measure_refined, read_photos
from .unseen import UnseenJudges

SHIPPED_SIDE = 256  # px, of the bundle's own generator


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a checkpoint of `fid-train fit`, or a bundle."""

    name: str  # "run/step_000200", or "bundle default 0.1.0"
    networks: Networks
    composer: Composer | None  # of a bundle

    @classmethod
    def read(
        cls, path: Path | None, device: torch.device, resolution: int = SHIPPED_SIDE, rounds: int | None = None
    ) -> "Subject":
        """Return a run's or checkpoint's folder, a bundle's folder, a .fid file, or None for the bundle that ships."""
        if path is None or path.is_file() or (path / "bundle.json").is_file():
            composer = Composer(path, resolution=resolution, threads=torch.get_num_threads(), refine=rounds)
            bundle = composer.bundle
            return cls(f"bundle {bundle.name} {bundle.version}", BundleNetworks(composer), composer)
        folder = Path(read_record(path)["folder"]).resolve()
        return cls(f"{folder.parent.name}/{folder.name}", load_trained(path).to(device), None)

    def refinable(self, path: Path | None, generator: Path | None, device: torch.device) -> personalize.Networks:
        """Return the same networks in the form that people are refined through; a checkpoint needs the generator's."""
        if self.composer is not None:
            return personalize.bundle_networks(self.composer, device)
        if path is None or generator is None:
            raise InputError("--refine on a checkpoint needs --generator, the one that it was trained through.")
        return personalize.trained_networks(path, generator, device)

    def generator(self, checkpoint: Path | None, resolution: int) -> Synthesis | UsersSynthesis | BundleSynthesis:
        """Return the generator to look through: a `fid-train distill` checkpoint's, a file's, a bundle's own, or the
        shipped bundle's.

        At 1024 px a checkpoint is looked at through the published generator. Raises InputError for a side that needs a
        checkpoint.
        """
        if self.composer is not None and checkpoint is None:
            return BundleSynthesis(self.composer)
        if checkpoint is None and resolution == SHIPPED_SIDE:
            return BundleSynthesis(Composer(threads=torch.get_num_threads()))
        return load_generator(checkpoint, resolution)


def run(
    path: Path | None,
    config: EvaluateConfig,
    *,
    generator: Path | None = None,
    identity_encoder: Sequence[Path] = (),
    resolution: int = SHIPPED_SIDE,
    photos: Path | None = None,
    clips: Sequence[Path] = (),
    ablations: Mapping[str, Path] | None = None,
    arcface: Path | None = None,
    inception: Path | None = None,
    pose: Path | None = None,
    groups: Path | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Report:
    """Reads everything that is named, so that mistakes show at once, and measures it; `log` gets a line per stage."""
    tune_machine()
    device = best_device()
    subject, encoder = Subject.read(path, device, resolution, config.rounds), load_identity_encoder(identity_encoder)
    if subject.composer is not None:
        encoder = bundle_encoder(subject.composer, encoder)
    for other in (*([path] if subject.composer is None and path else []), *(ablations or {}).values()):
        check_identity_encoder(other, encoder)
    others = {name: Subject.read(other, device).networks for name, other in (ablations or {}).items()}
    for option, given in (("--refine", config.refine), ("--groups", groups)):
        if given and photos is None:
            raise InputError(f"{option} is for people of --photos; name their folder.")
    refinable = subject.refinable(path, generator, device) if config.refine else None
    synthesis = subject.generator(generator, resolution)
    known_photos = read_photos(photos, groups) if photos else None
    known_clips = [read_clip(clip, config.frames) for clip in clips]
    mapping = load_mapping(generator)
    if isinstance(synthesis, BundleSynthesis) and synthesis.composer.bundle.own_generator:
        mapping = BundleMapping(synthesis.composer)
    frozen = FrozenNetworks.load(synthesis, device, mapping=mapping, encoder=encoder)  # pyright: ignore[reportArgumentType] - alike
    judges = Judges.load(frozen, arcface, inception, pose)
    unseen = UnseenJudges.load() if photos else None
    report = evaluate_all(
        subject.networks,
        judges,
        config,
        photos=known_photos,
        clips=known_clips,
        ablations=others,
        refinable=refinable,
        unseen=unseen,
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
    unseen: UnseenJudges | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Report:
    """Short figures, the paper's tables and the pictures of the page. Ablations share the generator of `networks`.

    `refinable`: the same networks again, where people of the photographs are to be personalised. `unseen`: what
    measures photographs by group.
    """
    frozen = judges.frozen
    log(f"composing {config.pairs} generated pairs")
    pairs = generated_pairs(networks, frozen, config)
    report = Report(short_figures(pairs, frozen, config))
    figures = report.figures
    figures["judges"] = judges.record
    log("judging them")
    people, attributes = (judges.look(_crops(faces)) for faces in (pairs.people, pairs.attributes))
    output, own = judges.look(pairs.output.crops), judges.look(pairs.own.crops)
    figures["generated"] = {
        "pairs": config.pairs,
        **pair_measures(people, attributes, output, judges.features_name),
        "reconstruction": reconstruction_measures(judges, attributes, own),
    }
    report.identity |= distributions("generated pairs", people, attributes, output)
    report.pictures["Generated people"] = _table(
        networks, judges, people.codes[judges.encoder][:5], people.crops[:5], attributes.crops[:5], config.batch
    )
    report.pictures["Generated pairs"] = sorted_pairs(people, attributes, output)
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
    figures["w_space"]["factors"], report.factors = w_factors(networks, pairs.people, pairs.attributes, frozen, config)

    drivers = [(f"generated {i + 1}", people[[i]]) for i in range(min(config.clip_people, config.pairs))]
    if photos is not None:
        log(f"{len(photos.crops)} photographs of {len(set(photos.people))} people")
        figures["photos"], seen = measure_photos(networks, judges, photos, config, report, unseen)
        firsts = [photos.people.index(person) for person in dict.fromkeys(photos.people)][: config.clip_people]
        drivers += [(f"photograph {i + 1}", seen[[first]]) for i, first in enumerate(firsts)]
        if refinable is not None:
            figures["refined"] = measure_refined(refinable, judges, photos, seen, config, report, log, unseen)
    if clips:
        figures["clips"] = {}
        for clip in clips:
            log(f"clip {clip.name}, {len(clip.crops)} frames, {len(drivers)} identities")
            figures["clips"][clip.name] = measure_clip(networks, judges, clip, drivers, config, report)
    return report


def bundle_encoder(composer: Composer, given: IdentityEncoder | None) -> IdentityEncoder | None:
    """Return the identity encoder of a bundle that has one of its own; None for SFace. Raises InputError when another
    is given."""
    name = encoder_name(composer.bundle)
    if given is not None:
        raise InputError(
            f"the bundle {composer.bundle.name} has its identity encoder in it: leave --identity-encoder out."
        )
    if name == "sface":
        return None
    origin = composer.bundle.provenance.get("identity_encoder", {"kind": name})
    return IdentityEncoder(BundleIdentity(composer), str(origin["kind"]), dict(origin))


def _plain(value: Any) -> Any:
    """The same, ready for JSON: what is not a finite number becomes None."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
