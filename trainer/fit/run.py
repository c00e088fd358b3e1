"""Trains the attribute encoder and the mapper: `fid-train fit`.

A step composes identity and attribute images, at times the same (I_id = I_attr, a self pair), at times not (a cross
pair). Two kinds of recipe share the loop; `presets.PRESETS` has them.

- The paper's: every pair goes through the generator, every third one is a cross pair, equations 2 to 8.
- Ours (`live`), which learns with far fewer gradients through the generator:
  - Self: a generated face has a known w, so reconstruction is regression of w. Alone (the warm start) it already
    teaches most of the task cheaply.
  - Transfer and probe: the attributes of the self batch are put on other people. Where their w should go is known
    roughly (`data.Transfer`), and a small network that knows w only guesses what E_id and E_lnd would say. It learns
    from the dataset and, at every cross step, from what they really said.
  - Cross, every third step after the warm start: identity, landmarks, coarse colour and the W adversary through the
    generator and the frozen encoders.
  - The mapper sees the attribute code of the identity image, too, through a narrow layer (`appearance`): on photographs
    the identity code says little about skin, hair, sex and age. Identity codes are led towards ones drawn from
    statistics of real people (`data.RealIdentities`), so that it is not trusted in these.

All randomness is a function of the seed and the step, so a resumed run equals one that was never stopped, and several
processes (`torchrun`) equal one.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import torch
from rich.console import Console

from ...runtime.errors import FidError, InputError
from ...runtime.terminal import make_console
from ...runtime.weights.records import decode
from ..data.dataset import Faces, FrozenNetworks, made_with, read_dataset, read_photos
from ..loop import (
    SAVE_EVERY_S,
    Budget,
    Preparing,
    Progress,
    StoppedError,
    Watch,
    best_device,
    kept_on,
    machine_record,
    tune_machine,
)
from ..networks.inception import InceptionV3
from ..presets import FitConfig
from ..weights.checkpoint import check_new, latest, make_folder, write_json, writing
from ..weights.identity import IdentityEncoder, check_identity_encoder, load_identity_encoder
from ..weights.trained import generator_name, load_generator, load_mapping, load_trained
from .loop import FitLoop
from .processes import Processes


def sources_of(
    generator: Path | None, resolution: int, encoder: IdentityEncoder | None, others: dict[str, Path | None]
) -> dict[str, str | None]:
    """Return what a run learns from, by the name of the option, as run.json keeps it: paths say nothing elsewhere."""
    sources: dict[str, str | None] = {"generator": generator_name(generator, resolution)}
    sources |= {name: path.resolve().name if path else None for name, path in others.items()}
    return sources if encoder is None else sources | {"identity-encoder": encoder.name}


def check_sources(run: Path, sources: dict[str, str | None]) -> None:
    """Raise InputError when a run would go on with another generator or other data than run.json names."""
    path = run / "run.json"
    kept: dict[str, Any] = {}
    if path.is_file():
        kept = decode(path.read_bytes(), dict[str, Any], lambda why: FidError(f"{path} {why}; start another run."))
    for name, now in sources.items():
        if (before := kept.get(name, now)) != now:
            raise InputError(
                f"{run} has learnt with --{name} {before or 'left out'} and is to go on with {now or 'none'}: give the "
                "same, or start another run with --init."
            )


def fit(
    run: Path,
    config: FitConfig,
    *,
    generator: Path | None,
    dataset: Path | None = None,
    photos: Path | None = None,
    fan: Path | None = None,
    encoder: Path | None = None,
    identity_encoder: Sequence[Path] = (),
    max_minutes: float | None = None,
    resume: bool = False,
    init: Path | None = None,
    compiled: bool = False,
    console: Console | None = None,
) -> Path:
    """Train into `run` and return its last checkpoint folder.

    `generator` is a `fid-train distill` run or checkpoint, or a StyleGAN file of the user's; `dataset` a folder of
    `fid-train dataset` (None: faces drawn online); `photos` a folder of the user's own photographs, further inputs;
    `fan` a file of FAN to use for landmarks; `encoder` a file of InceptionV3 weights to start from; `identity_encoder`
    files of E_id in the place of SFace (`weights.identity`); `resume` goes on from the run's newest checkpoint; `init`
    starts from another run's or a bundle's weights; `compiled` lets torch.compile speed all but the mapper up.
    `run/run.json` keeps the configuration, the generator and the machine;
    TensorBoard reads the scalars and grids in `run/`.
    """
    check_new(run, resume)
    console, budget, processes = console or make_console(), Budget(max_minutes), Processes.start()
    if not processes.first:
        console = make_console(quiet=True)
    tune_machine()
    with budget.catching_signals():
        device = best_device()
        synthesis = load_generator(generator, config.resolution)
        own = load_identity_encoder(identity_encoder)
        if own is not None and config.real_identities:
            console.print(f"real_identities=0: codes of real people are known of SFace, not of {own.name}")
            config = replace(config, real_identities=0.0)
        frozen = FrozenNetworks.load(synthesis, device, fan, load_mapping(generator), own)
        preparing = Preparing(console.print, lambda: processes.any(budget.over, device))
        known_photos = read_photos(photos, frozen, console.print, preparing) if photos else None
        known_faces = faces_of(dataset, config.resolution, device, frozen) if dataset else None
        loop = FitLoop(config, frozen, known_faces, device, photos=known_photos, processes=processes)
        sources = sources_of(generator, config.resolution, own, {"dataset": dataset, "photos": photos, "fan": fan})
        found = latest(run) if resume else None
        if found:
            check_sources(run, sources)
            check_identity_encoder(found, own)
            loop.restore(found)
            console.print(f"resumed from {found.name}")
        elif init:
            console.print(loop.begin_with(load_trained(init)))
        elif encoder:
            for networks in (loop.networks, loop.average):
                networks.attributes.load_state_dict(InceptionV3.load(encoder).state_dict())
        if compiled:
            for network in (frozen.synthesis, frozen.identity, frozen.landmarks, loop.networks.attributes):
                network.compile(dynamic=False)
        if processes.first:
            make_folder(run)
            record = {"configuration": asdict(config), **sources, "processes": processes.world}
            write_json(run / "run.json", {**record, "machine": machine_record()})
        checkpoint = train(run, loop, budget, console, preparing, found)
    processes.stop()
    return checkpoint


def faces_of(dataset: Path, resolution: int, device: torch.device, frozen: FrozenNetworks) -> Faces:
    """Return the faces of a dataset folder, on the device where it has room. Raises InputError for another size, or
    another identity encoder."""
    faces, encoder = read_dataset(dataset), made_with(dataset).get("identity_encoder")
    if encoder != frozen.encoder:
        raise InputError(
            f"the faces in {dataset} were made with the identity encoder {encoder or 'SFace'} and training takes "
            f"{frozen.encoder or 'SFace'}: make a dataset with the same --identity-encoder."
        )
    if faces.image.shape[-1] != resolution:
        raise InputError(
            f"the faces in {dataset} have {faces.image.shape[-1]} px and training sees {resolution}: "
            "make a dataset of that size, or leave --dataset out."
        )
    return faces.to(kept_on(device, faces.image.nbytes))


def train(
    run: Path, loop: FitLoop, budget: Budget, console: Console, preparing: Preparing, found: Path | None = None
) -> Path:
    """Take the loop's steps until its end or that of the time, with checkpoints, and return the last one's folder.

    `found` is the checkpoint that the loop goes on from. Of several processes only the first one writes; the others
    return `run`.
    """
    config, processes, smooth, saved = loop.config, loop.processes, {}, budget.seconds

    def keep() -> Path:
        grid, path = loop.grid(), run / f"grid_{loop.done:06d}.png"
        with writing(path) as partial:
            partial.write_bytes(cv2.imencode(".png", grid[..., ::-1])[1].tobytes())
        watch.picture(loop.done, grid)
        return loop.save(run, {"figures": smooth})

    with Watch(run if processes.first else None) as watch:
        try:
            loop.start(preparing)
        except StoppedError as stopped:
            console.print(f"{stopped} --resume begins with that again, --dataset spares the drawing.")
            return found or (loop.save(run, {"figures": smooth}) if processes.first else run)
        progress = Progress(console, config.steps, max(config.self_batch, config.cross_batch), loop.done)
        while loop.done < config.steps and not processes.any(budget.over, loop.device):
            figures = loop.step()
            smooth |= {name: 0.95 * smooth.get(name, value) + 0.05 * value for name, value in figures.items()}
            watch.scalars(loop.done, {**figures, "rate": loop.rate()})
            progress.show(loop.done, smooth)
            if processes.first and budget.seconds - saved > SAVE_EVERY_S:
                saved = budget.seconds
                keep()
        return keep() if processes.first else run
