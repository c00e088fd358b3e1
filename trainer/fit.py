"""Trains the attribute encoder and the mapper: `fid-train fit`.

Every step sees a self batch (I_id = I_attr) and, after the warm start, every third one a cross batch (I_id != I_attr).

- Self: a generated face has a known w, so reconstruction is regression of w; no gradient passes through the generator.
  Alone (the warm start) it already teaches most of the task cheaply.
- Probe: the attributes of the self batch are put on other people, and a linear probe of w tells how far their landmarks
  move away. No gradient passes through the generator here either, so many more pairs are seen.
- Cross: identity, landmarks, coarse colour and the W adversary (equations 2 to 8, weights for our units) through the
  generator and the frozen encoders. Some identity codes are drawn from statistics of real people
  (`data.RealIdentities`).

All randomness is a function of the seed and the step, so a resumed run equals one that was never stopped.
"""

import copy
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from ..runtime.errors import FidError, InputError
from . import losses
from .checkpoint import (
    latest,
    load_into,
    optimizer_tensors,
    read_record,
    read_weights,
    restore_optimizer,
    save,
    tensors_of,
    write_json,
)
from .data import Faces, FrozenNetworks, RealIdentities, augment, read_dataset
from .loop import Budget, Progress, best_device, machine_record
from .networks import AttributeEncoder, Mapper, WDiscriminator
from .networks_mobilestylegan import Synthesis

SAVE_EVERY_S = 240
PROBE_SHIFTS = (1, 3, 7)  # each face's attributes are put on the people this far along the batch


@dataclass(frozen=True)
class FitConfig:
    """What `fid-train fit` does; the resolved configuration is printed and kept in every checkpoint."""

    resolution: int = 128  # of the generator that training sees
    psi: float = 0.8  # truncation of the generated faces
    steps: int = 2500
    warm_steps: int = 1500  # the first steps see self batches only
    self_batch: int = 16
    cross_batch: int = 8
    cross_every: int = 3  # a cross batch every so many steps
    real_identities: float = 0.33  # share of cross identities drawn from statistics of real people
    rate: float = 5e-4
    cross_rate: float = 4e-4  # after the warm start
    d_rate: float = 2e-4
    w_weight: float = 1.0  # self: mean squared error of w in standard deviations of W
    identity_weight: float = 1.0  # cross: 1 - cosine
    landmarks_weight: float = 1000.0  # cross: squared distance as a fraction of the crop
    probe_weight: float = 1000.0  # the same for many more pairs, by a linear probe of w instead of the generator
    colour_weight: float = 0.5  # cross: coarse colour
    adversarial_weight: float = 0.05
    r1_gamma: float = 1.0
    ema: float = 0.995
    seed: int = 1


class Trainable(nn.Module):
    """The networks that ship: E_attr and M."""

    def __init__(self) -> None:
        super().__init__()
        self.attributes = AttributeEncoder()
        self.mapper = Mapper()

    def forward(self, identity: Tensor, crop: Tensor) -> Tensor:
        """Identity codes [N, 128] and attribute crops [N, 3, S, S] in [-1, 1] -> w [N, 512]."""
        return self.mapper(identity, self.attributes(crop))


def parameter_counts() -> dict[str, int]:
    """Parameters of the networks that ship: 5,820,160 of E_attr and 3,280,384 of M."""
    with torch.device("meta"):
        networks = Trainable()
    parts = {"E_attr": networks.attributes, "M": networks.mapper}
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


def load_trained(checkpoint: Path) -> Trainable:
    """E_attr and M of a checkpoint folder, in evaluation mode. Raises FidError when it holds something else."""
    networks, weights = Trainable(), read_weights(checkpoint)
    load_into(networks.attributes, weights, "attributes")
    load_into(networks.mapper, weights, "mapper")
    return networks.eval()


def load_generator(checkpoint: Path | None, resolution: int) -> Synthesis:
    """A distilled generator from a checkpoint, or the published one at 1024 px. Frozen.

    Raises InputError when a checkpoint is needed and missing.
    """
    if resolution == 1024:
        return Synthesis.load(1024)
    if checkpoint is None:
        raise InputError(
            f"no generator given for {resolution} px: name a `fid-train distill` checkpoint with --generator."
        )
    network = Synthesis(resolution)
    load_into(network, read_weights(checkpoint), "synthesis")
    return network.eval().requires_grad_(False)


def landmark_probe(faces: Faces, frozen: FrozenNetworks, ridge: float = 100.0) -> Tensor:
    """Ridge regression of the inner face's landmarks (as fractions of the crop) on w in standard deviations: [512, 2K].

    Where a face's features are is nearly linear in w, so a step along w is worth about this much movement; it costs
    neither the generator nor the landmark network. Differences of w are what it is applied to, so it has no constant.
    """
    x = ((faces.w - frozen.w_mean) / frozen.w_std).double()
    y = (faces.landmarks.flatten(1) / 256).double()
    x, y = x - x.mean(0), y - y.mean(0)
    gram = x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return torch.linalg.solve(gram, x.T @ y).float()


class FitLoop:
    """State of one training run; `step` is one optimisation step."""

    def __init__(self, config: FitConfig, frozen: FrozenNetworks, dataset: Faces | None, device: torch.device) -> None:
        self.config, self.frozen, self.dataset, self.device = config, frozen, dataset, device
        torch.manual_seed(config.seed)
        self.networks = Trainable().to(device)
        self.networks.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - torch's stubs lack it
        self.discriminator = WDiscriminator().to(device)
        for module in (self.networks.mapper, self.discriminator):
            module.w_mean.copy_(frozen.w_mean)
            module.w_std.copy_(frozen.w_std)
        self.average = copy.deepcopy(self.networks).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.networks.parameters(), lr=config.rate, betas=(0.9, 0.99), weight_decay=1e-4
        )
        self.d_optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=config.d_rate, betas=(0.5, 0.99))
        self.real_identities = RealIdentities()
        self.done = 0
        self.probe = None
        if config.probe_weight:
            known = self.faces(2048, 7) if dataset is None else dataset.to(device)
            self.probe = landmark_probe(known, frozen)

    def generator(self, stream: int) -> torch.Generator:
        """The random numbers of this step; `stream` keeps its uses apart."""
        return torch.Generator().manual_seed((self.config.seed * 1_000_003 + self.done) * 16 + stream)

    def faces(self, n: int, stream: int) -> Faces:
        """n faces of the dataset, or fresh ones."""
        random = self.generator(stream)
        if self.dataset is None:
            return self.frozen.draw(n, self.config.psi, random)
        return self.dataset[torch.randint(len(self.dataset), (n,), generator=random)].to(self.device)

    def rate(self) -> float:
        """Learning rate of this step: a cosine over the warm start, then one from the cross rate to the end.

        The warm start begins with a linear warm-up over 100 steps and ends at 0.4 of its rate; the second cosine ends
        at 0.02 of the cross rate.
        """
        config = self.config
        if self.done < config.warm_steps:
            fraction = self.done / config.warm_steps
            return config.rate * min(1, (self.done + 1) / 100) * (0.4 + 0.6 * 0.5 * (1 + math.cos(math.pi * fraction)))
        fraction = (self.done - config.warm_steps) / max(config.steps - config.warm_steps, 1)
        return config.cross_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * fraction)))

    def self_losses(self, faces: Faces) -> dict[str, Tensor]:
        """In W, reconstruction where I_id = I_attr; by the probe, landmarks of these attributes on other people."""
        config = self.config
        attributes = self.networks.attributes(augment(faces.crop, self.generator(1)))
        w = self.networks.mapper(faces.identity, attributes)
        terms = {"w": config.w_weight * ((w - faces.w) / self.frozen.w_std).square().mean()}
        if self.probe is not None and self.done >= config.warm_steps:
            others = torch.cat([faces.identity.roll(shift, 0) for shift in PROBE_SHIFTS])
            count = len(PROBE_SHIFTS)
            moved = self.networks.mapper(others, attributes.repeat(count, 1)) - faces.w.repeat(count, 1)
            error = (moved / self.frozen.w_std) @ self.probe
            terms["probe"] = config.probe_weight * error.square().sum(1).mean() / (error.shape[1] // 2)
        return terms

    def cross_losses(self, attributes: Faces, people: Faces) -> tuple[Tensor, dict[str, Tensor]]:
        """w [N, 512] of the compositions and the weighted losses of the cross batch, by name."""
        config, random = self.config, self.generator(2)
        n = len(attributes)
        drawn = self.real_identities.draw(n, random).to(self.device)
        use_drawn = (torch.rand(n, generator=random) < config.real_identities).to(self.device)
        identity = torch.where(use_drawn[:, None], drawn, people.identity)
        w = self.networks(identity, augment(attributes.crop, self.generator(3)))
        image = self.frozen.synthesis(w)
        points = self.frozen.inner_face(image)
        return w, {
            "identity": config.identity_weight * losses.identity_cosine(self.frozen.identity(image), identity),
            "landmarks": config.landmarks_weight * losses.landmarks_l2(points, attributes.landmarks, 256),
            "colour": config.colour_weight * losses.coarse_colour(image, attributes.crop),
            "adversarial": config.adversarial_weight * losses.adversarial_g(self.discriminator(w)),
        }

    def train_discriminator(self, fake_w: Tensor) -> Tensor:
        """One step of D_W, equation (2)."""
        real_w = self.faces(2 * len(fake_w), 4).w.clone().requires_grad_(True)
        real_logits = self.discriminator(real_w)
        loss = losses.adversarial_d(real_logits, self.discriminator(fake_w.detach()))
        loss = loss + losses.r1_penalty(real_logits, real_w, self.config.r1_gamma)
        self.d_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.d_optimizer.step()
        return loss.detach()

    def step(self) -> dict[str, float]:
        """One step; returns the losses. Raises FidError when one is not finite, before the weights are touched."""
        config = self.config
        self.networks.train()
        terms = self.self_losses(self.faces(config.self_batch, 0))
        fake_w = None
        if self.done >= config.warm_steps and self.done % config.cross_every == 0:
            fake_w, cross = self.cross_losses(self.faces(config.cross_batch, 5), self.faces(config.cross_batch, 6))
            terms |= cross
        total = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(total):
            figures = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.items())
            raise FidError(f"the loss is not finite at step {self.done}: {figures}.")
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.networks.parameters(), 5.0)
        self.optimizer.step()
        if fake_w is not None:
            terms["discriminator"] = self.train_discriminator(fake_w)
        decay = min(config.ema, (self.done + 1) / (self.done + 10))
        with torch.no_grad():
            for mine, theirs in zip(_floats(self.average), _floats(self.networks), strict=True):
                mine.lerp_(theirs, 1 - decay)
        self.done += 1
        return {name: value.item() for name, value in terms.items()}

    def save(self, run: Path, record: dict[str, Any]) -> Path:
        """Writes a checkpoint: the average as the weights to ship, everything else to resume from."""
        weights = {**tensors_of("attributes", self.average.attributes), **tensors_of("mapper", self.average.mapper)}
        state = {
            **{f"networks.{k}": v for k, v in self.networks.state_dict().items()},
            **{f"average.{k}": v for k, v in self.average.state_dict().items()},
            **{f"discriminator.{k}": v for k, v in self.discriminator.state_dict().items()},
            **optimizer_tensors("optimizer", self.optimizer),
            **optimizer_tensors("d_optimizer", self.d_optimizer),
        }
        return save(run, self.done, weights, state, {"kind": "fit", "configuration": asdict(self.config), **record})

    def restore(self, checkpoint: Path) -> None:
        """Takes everything from a checkpoint's state."""
        state = read_weights(checkpoint, "state.safetensors")
        modules = {"networks": self.networks, "average": self.average, "discriminator": self.discriminator}
        for name, module in modules.items():
            own = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
            module.load_state_dict(own)
        restore_optimizer(self.optimizer, state, "optimizer")
        restore_optimizer(self.d_optimizer, state, "d_optimizer")
        self.done = int(read_record(checkpoint)["step"])

    @torch.no_grad()
    def grid(self, path: Path, rows: int = 5, columns: int = 5) -> None:
        """Writes an identity (top) x attributes (left) picture of the average networks."""
        random = torch.Generator().manual_seed(99)
        people, attributes = (self.frozen.draw(n, self.config.psi, random) for n in (columns, rows))
        corner = torch.full_like(people.image[:1], 255)
        lines = [torch.cat([corner, people.image])]
        for i in range(rows):
            crop = attributes.crop[i : i + 1].expand(columns, -1, -1, -1)
            image = (self.frozen.synthesis(self.average(people.identity, crop)) + 1) * 127.5
            lines.append(torch.cat([attributes.image[i : i + 1], image.clamp(0, 255).to(torch.uint8)]))
        table = np.concatenate([np.concatenate(list(line.permute(0, 2, 3, 1).cpu().numpy()), axis=1) for line in lines])
        cv2.imwrite(str(path), table[..., ::-1])


def _floats(module: nn.Module) -> list[Tensor]:
    return [v for v in module.state_dict().values() if v.is_floating_point()]


def _generator_name(generator: Path | None) -> str:
    """The generator's checkpoint as run.json names it, run/step; paths above say nothing to another machine."""
    if generator is None:
        return "published, 1024 px"
    folder = Path(read_record(generator)["folder"]).resolve()
    return f"{folder.parent.name}/{folder.name}"


def fit(
    run: Path,
    config: FitConfig,
    *,
    generator: Path | None,
    dataset: Path | None = None,
    max_minutes: float | None = None,
    resume: bool = False,
    init: Path | None = None,
    console: Console | None = None,
) -> Path:
    """Trains into `run` and returns its last checkpoint folder.

    `generator` is a `fid-train distill` run or checkpoint; `dataset` a folder of `fid-train dataset` (None: faces drawn
    online); `resume` goes on from the run's newest checkpoint; `init` starts from another run's weights. `run/run.json`
    keeps the configuration, the generator and the machine.
    """
    console, budget = console or Console(), Budget(max_minutes)
    device = best_device()
    frozen = FrozenNetworks.load(load_generator(generator, config.resolution), device)
    loop = FitLoop(config, frozen, read_dataset(dataset) if dataset else None, device)
    found = latest(run) if resume else None
    if found:
        loop.restore(found)
        console.print(f"resumed from {found.name}")
    elif init:
        for networks in (loop.networks, loop.average):
            networks.load_state_dict(load_trained(init).state_dict())
    run.mkdir(parents=True, exist_ok=True)
    write_json(
        run / "run.json",
        {"configuration": asdict(config), "generator": _generator_name(generator), "machine": machine_record()},
    )
    progress = Progress(console, config.steps, config.self_batch, loop.done)
    saved, smooth = budget.seconds, {}
    with budget.catching_signals():
        while loop.done < config.steps and not budget.over:
            for name, value in loop.step().items():
                smooth[name] = 0.98 * smooth.get(name, value) + 0.02 * value
            progress.show(loop.done, smooth)
            if budget.seconds - saved > SAVE_EVERY_S:
                saved = budget.seconds
                loop.save(run, {"figures": smooth})
                loop.grid(run / f"grid_{loop.done:06d}.png")
    checkpoint = loop.save(run, {"figures": smooth})
    loop.grid(run / f"grid_{loop.done:06d}.png")
    return checkpoint
