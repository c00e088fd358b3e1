"""Teach E_attr and M expressions that they hardly follow, closed eyes and wide mouths among them: `fid-train
expressions`.

The generator seldom draws closed eyes, so what learns from its faces does not look for them, although it can draw them:
a few directions in W do it and leave person, pose and light nearly alone (`directions.py`). Faces moved along them are
shown as attribute images, and what is to be answered needs no picture: where the networks put the face as it was, moved
by the same d,

    M(z_id, E_attr(G(w + d))) = M'(z_id, E'_attr(G(w))) + d,

M' and E'_attr being what training began from. So everything else stays where it was, and no gradient goes through the
generator but the few that the directions come from. Of photographs nobody knows w, but the face mesh tells what
compositions lack of their expressions, and their answers move by that (`views.py`).
"""

import copy
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from ...runtime.errors import FidError, InputError
from ...runtime.weights.records import decode
from ..data.augment import augment
from ..data.dataset import Faces, FrozenNetworks, made_with, read_dataset, read_photos
from ..data.statistics import RealIdentities
from ..fit.run import check_sources, sources_of
from ..loop import (
    SAVE_EVERY_S,
    Budget,
    Preparing,
    Progress,
    StoppedError,
    best_device,
    machine_record,
    move_average,
    tune_machine,
)
from ..networks.trained import AttributeEncoder
from ..pixels import to_float
from ..presets import FitConfig
from ..weights.checkpoint import (
    check_new,
    latest,
    make_folder,
    optimizer_tensors,
    read_weights,
    restore_optimizer,
    save,
    tensors_of,
    write_json,
)
from ..weights.trained import Trainable, load_generator, load_mapping, load_trained
from .directions import EXPRESSIONS, EYES, LIPS, ExpressionsConfig, direction, gradients
from .views import Edited, Photos, Taught, kept, write_lacks, write_views

DRAWN = (
    "sampled",
    "codes",
    "colour",
    "held",
    "ridge",
    "views",
    "people",
    "seed",
)  # what is kept in a run's folder follows them


@dataclass(frozen=True)
class _Kept:
    """Of run.json."""

    configuration: ExpressionsConfig


def kept_config(run: Path) -> ExpressionsConfig | None:
    """Return the configuration in a run's run.json; None where there is none. Raises FidError when it is damaged."""
    path = run / "run.json"
    if not path.is_file():
        return None
    return decode(path.read_bytes(), _Kept, lambda why: FidError(f"{path} {why}; start another run.")).configuration


def check_drawn(run: Path, config: ExpressionsConfig) -> None:
    """Raise InputError when a run would go on with pictures that were drawn otherwise than `config` says."""
    kept = kept_config(run) or config
    for name in DRAWN:
        if (before := getattr(kept, name)) != (now := getattr(config, name)):
            raise InputError(
                f"{run} has drawn its pictures with {name}={before} and is to go on with {now}: give the same, or "
                "start another run."
            )


class ExpressionsLoop:
    """State of one run; `step` is one optimisation step."""

    def __init__(
        self,
        config: ExpressionsConfig,
        networks: Trainable,
        faces: Faces,
        edited: Edited,
        taught: Taught,
        frozen: FrozenNetworks,
        photos: Photos | None = None,
    ) -> None:
        """`networks`: to begin from. `photos`: further attribute images."""
        self.config, self.faces, self.edited = config, faces, edited
        self.w_mean, self.w_std, self.device = frozen.w_mean, frozen.w_std, frozen.w_mean.device
        self.moves, self.codes_square = taught.moves.to(self.device), taught.codes.to(self.device)
        weights = torch.ones(len(taught.numbers), 1)
        weights[LIPS], weights[EYES] = config.lips, config.eyes
        self.numbers = (weights * taught.numbers).to(self.device)
        self.before = networks.to(self.device).eval().requires_grad_(False)
        self.networks = copy.deepcopy(self.before).requires_grad_(True)
        self.average = copy.deepcopy(self.before)
        for module in (self.before, self.networks):
            module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - torch's stubs lack it
        self.photos = None
        if photos is not None and config.photo_batch:  # and their mirror images
            self.photos = Photos(torch.cat((photos.crops, photos.crops.flip(3))), photos.amounts.repeat(2, 1))
        self.real, self.done = RealIdentities(), 0
        groups = [
            {"params": self.networks.attributes.parameters(), "lr": config.rate_attributes},
            {"params": self.networks.mapper.parameters(), "lr": config.rate_mapper},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.codes = self.codes_of(edited.crops[:, 0])
        self.photo_codes = None if self.photos is None else self.codes_of(self.photos.crops)

    @torch.no_grad()
    def codes_of(self, crops: Tensor) -> Tensor:
        """Return what E_attr said before of crops uint8 [N, 3, 128, 128]: [N, 512]."""
        return torch.cat([self.encoded(self.before.attributes, part.to(self.device)) for part in crops.split(64)])

    def encoded(self, encoder: nn.Module, crops: Tensor) -> Tensor:
        """Return codes [N, 512], float32, of crops [N, 3, 128, 128], uint8 or float in [-1, 1]."""
        views = to_float(crops) if crops.dtype == torch.uint8 else crops
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
            return encoder(views.contiguous(memory_format=torch.channels_last)).float()

    def rate(self) -> float:
        """Return the share of the rates at this step: a warm-up over 100 steps, a cosine to 0.02."""
        return min(1, (self.done + 1) / 100) * (0.51 + 0.49 * math.cos(math.pi * self.done / self.config.steps))

    def step(self) -> dict[str, float]:
        """Take one step and return the losses: mean squared errors of w, in its standard deviations, and of pose and
        expression in theirs, and the mean squared distance of identity codes. Raises FidError when they are not
        finite, before the weights are touched."""
        config = self.config
        random = torch.Generator().manual_seed(config.seed * 1_000_003 + self.done)

        def some(n: int, below: int) -> Tensor:
            return torch.randint(below, (n,), generator=random)

        shown, view = some(config.batch, len(self.faces)), some(config.batch, self.edited.crops.shape[1])
        crops, before = self.edited.crops[shown, view], self.codes[shown]
        amounts = config.gain * self.edited.amounts[shown, view]
        if self.photos is not None and self.photo_codes is not None:
            index = some(config.photo_batch, len(self.photo_codes))
            crops, amounts = (
                torch.cat((crops, self.photos.crops[index])),
                torch.cat((amounts, self.photos.amounts[index])),
            )
            before = torch.cat((before, self.photo_codes[index]))
        n = len(crops)
        people, portraits = some(n, len(self.faces)), some(n, self.edited.crops.shape[1])
        themselves = config.batch // 6  # pairs whose identity and attributes are of one face
        people[:themselves] = shown[:themselves]
        own = self.faces.identity[people].to(self.device)
        identity = own.clone()
        if config.real_identities:
            identity = self.real.towards(own, config.real_identities, random, slice(None), n)
            identity[:themselves] = own[:themselves]
        before, portrait = before.to(self.device), self.codes[people].to(self.device)
        with torch.no_grad():
            as_it_was = self.standard(self.before.mapper(identity, before, portrait))
            target = as_it_was + amounts.to(self.device) @ self.moves
        self.networks.train()
        for module in self.networks.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()  # its statistics are those of the faces that everything was learnt from
        attributes = self.encoded(self.networks.attributes, augment(to_float(crops.to(self.device)), random))
        with torch.no_grad():
            looks = self.encoded(self.networks.attributes, self.edited.crops[people, portraits].to(self.device))
        error = self.standard(self.networks.mapper(identity, attributes, looks)) - target
        losses = {
            "w": error.square().mean(),
            "numbers": (error @ self.numbers.T).square().mean(),
            "codes": (error @ self.codes_square * error).sum(1).mean(),
        }
        total = losses["w"] + config.numbers_weight * losses["numbers"] + config.codes_weight * losses["codes"]
        figures = {name: loss.item() for name, loss in losses.items()}
        if not all(map(math.isfinite, figures.values())):
            raise FidError(f"the loss is not finite at step {self.done}: {figures}; the last checkpoint is untouched.")
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.rate()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.networks.parameters(), 0.7)
        self.optimizer.step()
        decay = min(config.ema, (self.done + 1) / (self.done + 10))
        move_average([*self.average.parameters()], [*self.networks.parameters()], decay)
        self.done += 1
        return figures

    def standard(self, w: Tensor) -> Tensor:
        """Return w [N, 512] in standard deviations of W."""
        return (w - self.w_mean) / self.w_std

    def save(self, run: Path, figures: dict[str, float]) -> Path:
        """Write a checkpoint, which `fid-export` and `fid-train evaluate` take as one of `fid-train fit`."""
        weights = {**tensors_of("attributes", self.average.attributes), **tensors_of("mapper", self.average.mapper)}
        state = {f"networks.{name}": value for name, value in self.networks.state_dict().items()}
        state |= optimizer_tensors("optimizer", self.optimizer)
        looks = self.average.mapper.appearance
        shape = FitConfig(appearance=0 if looks is None else looks.out_features)
        record = {"kind": "fit", "configuration": asdict(shape), "expressions": asdict(self.config), "figures": figures}
        return save(run, self.done, weights, state, record)

    def restore(self, checkpoint: Path) -> None:
        """Go on from a checkpoint of `save`."""
        kept = load_trained(checkpoint).to(self.device)
        self.average.load_state_dict(kept.state_dict())
        state = read_weights(checkpoint, "state.safetensors")
        prefix = "networks."
        own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        self.networks.load_state_dict(own)
        restore_optimizer(self.optimizer, state, "optimizer")
        self.done = int(checkpoint.name.removeprefix("step_"))


def teach(
    run: Path,
    config: ExpressionsConfig,
    *,
    init: Path,
    dataset: Path,
    generator: Path | None = None,
    photos: Path | None = None,
    max_minutes: float | None = None,
    resume: bool = False,
    console: Console,
) -> Path | None:
    """Train into `run` and return its last checkpoint folder, or None when there was no time for a step.

    `init`: a run, checkpoint or bundle to begin from, with the light attribute encoder and a mapper into W. `dataset`:
    faces of `fid-train dataset`, of the same generator. `photos`: photographs as further attribute images. What is
    drawn is kept in `run`, so a run that was stopped goes on with `resume`.
    """
    check_new(run, resume)
    budget = Budget(max_minutes)
    tune_machine()
    with budget.catching_signals():
        networks = load_trained(init)
        if not isinstance(networks.attributes, AttributeEncoder) or networks.mapper.n_styles:
            raise InputError(
                f"{init} has another attribute encoder than the light one, or a mapper into W+: begin from a run of "
                "the preset `live`."
            )
        faces = _faces_for(dataset, networks, init, config)
        preparing = Preparing(console.print, lambda: budget.over)
        if own := made_with(dataset).get("identity_encoder"):
            console.print(f"real_identities=0: codes of real people are known of SFace, not of {own}")
            config = replace(config, real_identities=0.0)
        frozen = FrozenNetworks.load(load_generator(generator, 256), best_device(), mapping=load_mapping(generator))
        found = latest(run) if resume else None
        sources = sources_of(generator, 256, None, {"init": init, "dataset": dataset, "photos": photos})
        check_sources(run, sources)
        check_drawn(run, config)
        make_folder(run)
        write_json(run / "run.json", {"configuration": asdict(config), **sources, "machine": machine_record()})
        try:
            taught = _taught(run, frozen, faces, config, preparing)
            edited = write_views(run / "views", faces, taught.moves, frozen, config, preparing)
            known = None
            if photos is not None:
                real = read_photos(photos, frozen, console.print, preparing)
                known = write_lacks(run / "lacks", real, faces, taught, networks, frozen, config, preparing)
        except StoppedError as stopped:
            console.print(f"{stopped} --resume goes on from there.")
            return found
        loop = ExpressionsLoop(config, networks, faces, edited, taught, frozen, known)
        if found:
            loop.restore(found)
            console.print(f"resumed from {found.name}")
        progress, smooth, saved = Progress(console, config.steps, config.batch, loop.done), {}, budget.seconds
        while loop.done < config.steps and not budget.over:
            figures = loop.step()
            smooth |= {name: 0.95 * smooth.get(name, value) + 0.05 * value for name, value in figures.items()}
            progress.show(loop.done, smooth)
            if budget.seconds - saved > SAVE_EVERY_S:
                saved = budget.seconds
                loop.save(run, smooth)
        return loop.save(run, smooth)


def _faces_for(dataset: Path, networks: Trainable, init: Path, config: ExpressionsConfig) -> Faces:
    """The faces of a dataset that fits the networks and is large enough. Raises InputError otherwise."""
    faces = read_dataset(dataset)
    if faces.identity.shape[1] != networks.mapper.identity_size:
        raise InputError(
            f"the faces in {dataset} have identity codes of {faces.identity.shape[1]} numbers and {init} takes "
            f"{networks.mapper.identity_size}: make a dataset with the same --identity-encoder."
        )
    if len(faces) < config.sampled:
        raise InputError(
            f"{dataset} holds {len(faces)} faces and the directions come from {config.sampled}: make a larger "
            f"dataset, or --set sampled={len(faces)}."
        )
    return faces


def _taught(run: Path, frozen: FrozenNetworks, faces: Faces, config: ExpressionsConfig, preparing: Preparing) -> Taught:
    """The directions and what else is learnt of W, kept in the run's folder."""

    def learnt() -> dict[str, Tensor]:
        given = gradients(frozen, faces.w[: 3 * config.sampled].to(frozen.w_mean.device), config, preparing)
        codes = given.codes.flatten(0, 1)
        return {
            "moves": torch.stack([direction(expression, given, config) for expression in EXPRESSIONS.values()]),
            "numbers": given.numbers.mean(0),
            "codes": codes.T @ codes / len(codes),
            "spread": given.spread,
        }

    return Taught(**kept(run / "directions.npz", learnt))
