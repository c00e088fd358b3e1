"""The training loop of the attribute encoder and the mapper: steps, losses, averages."""

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...runtime.errors import FidError, InputError
from .. import losses
from ..data.augment import augment
from ..data.dataset import UNWATCHED, Faces, FrozenNetworks
from ..data.statistics import Light, Transfer
from ..loop import Preparing, move_average
from ..networks.trained import IDENTITY_SIZE, WDiscriminator
from ..pixels import to_bytes
from ..presets import FitConfig
from ..weights.checkpoint import (
    optimizer_tensors,
    read_record,
    read_weights,
    restore_optimizer,
    save,
    tensors_of,
)
from ..weights.trained import Trainable
from .draw import Draws, Stream, step_seed
from .probe import Memory, Probe, Seen
from .processes import Processes

PROBE_RATE = 1e-3  # of its own training at the start; a fifth of it afterwards
PROBE_BATCH = 128
PROBE_SHIFTS = (1, 3, 7)  # each face's attributes are put on the people this far along the batch


class Known(NamedTuple):
    """What is known of faces without looking at the pictures again."""

    w: Tensor  # [N, 512]
    identity: Tensor  # [N, 128]
    landmarks: Tensor  # [N, K, 2], pixels of a 256 px crop
    skin: Tensor  # [N, 3], `losses.skin_colour`
    light: Tensor  # [N, 3], the part of it that is the picture's light

    @property
    def tone(self) -> Tensor:
        """The part of the skin colour that is the person's, [N, 3]."""
        return self.skin - self.light

    def at(self, index: Tensor, device: torch.device) -> "Known":
        """Return the same of some faces, on a device."""
        return Known(*(values[index].to(device) for values in self))


class FitLoop:
    """State of one training run; `step` is one optimisation step."""

    def __init__(
        self,
        config: FitConfig,
        frozen: FrozenNetworks,
        dataset: Faces | None,
        device: torch.device,
        *,
        photos: Faces | None = None,
        processes: Processes | None = None,
    ) -> None:
        if config.w_plus and config.probe_weight:
            raise InputError("the probe knows W only: W+ needs --set probe_weight=0.")
        if config.probe_weight and config.probe_memory < config.cross_batch:
            raise InputError(
                f"probe_memory={config.probe_memory} does not hold one cross batch of {config.cross_batch}; give more, "
                "or do without the probe: --set probe_weight=0."
            )
        if not config.train_attributes and dataset is None:
            raise InputError("--set train_attributes=false needs a --dataset, whose attribute codes are kept.")
        self.config, self.frozen, self.dataset, self.device = config, frozen, dataset, device
        self.processes = processes or Processes()
        self._draws = Draws(config, frozen, dataset, photos, self.processes, device)
        torch.manual_seed(config.seed)
        size = frozen.identity.code_size
        self.networks = Trainable(config, size, frozen.synthesis.n_styles).to(device)
        self.networks.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - torch's stubs lack it
        self.discriminator = WDiscriminator().to(device)
        self.probe = Probe(len(frozen.landmarks.inner_face), identity_size=size).to(device)
        for module in (self.networks.mapper, self.discriminator, self.probe):
            module.w_mean.copy_(frozen.w_mean)
            module.w_std.copy_(frozen.w_std)
        self._first_probe = copy.deepcopy(self.probe.state_dict())  # a run that was stopped early begins with it again
        self.average = copy.deepcopy(self.networks).eval().requires_grad_(False)
        self.processes.synchronise_batch_norms(self.networks)
        betas = (0.9, config.beta2)
        self.networks.attributes.requires_grad_(config.train_attributes)
        parameters = [p for p in self.networks.parameters() if p.requires_grad]
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "optimizer": torch.optim.AdamW(parameters, config.rate, betas, weight_decay=config.weight_decay),
            "d_optimizer": torch.optim.Adam(
                self.discriminator.parameters(), config.d_rate, (config.d_beta1, config.beta2)
            ),
            "probe_optimizer": torch.optim.AdamW(self.probe.parameters(), PROBE_RATE, weight_decay=0.05),
        }
        if config.adversarial_rate is not None:
            self.optimizers["a_optimizer"] = torch.optim.Adam(parameters, config.adversarial_rate, betas)
        self.modules = {
            "networks": self.networks,
            "average": self.average,
            "discriminator": self.discriminator,
            "probe": self.probe,
        }
        self.known = Known(*[torch.empty(0)] * 5)  # of the faces that the probe learns from
        self.memory = Memory(config.probe_memory)
        self.codes = torch.empty(0)  # attribute codes [views, N, A] of the dataset, where E_attr is not trained
        self.light: Light | None = None
        self.transfer: Transfer | None = None
        self.done = 0

    @property
    def draws(self) -> Draws:
        """What this step draws."""
        return replace(self._draws, step=self.done)

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute within it in bf16 where the configuration asks for it."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.config.bf16 else nullcontext()

    def start(self, preparing: Preparing = UNWATCHED) -> None:
        """Learn what has to be learnt of faces once: attribute codes, light, transfer, and a new run's probe."""
        config = self.config
        if not config.train_attributes and self.dataset is not None:
            self.codes = self.attribute_codes(self.dataset, preparing=preparing)
        coloured = config.skin_weight and config.colour_weight
        if not (len(self.codes) or config.probe_weight or config.transfer_weight or coloured):
            return
        faces = self.dataset
        if faces is None:
            # of step 0, a resumed run's too
            random = torch.Generator().manual_seed(step_seed(config.seed, 0, Stream.KNOWN_FACES))
            faces = self.frozen.draw(config.probe_faces, config.psi, random, preparing=preparing)
        border = faces.border
        if config.skin_weight:
            self.light = Light(border, faces.skin)
        if config.transfer_weight and not config.w_plus:
            self.transfer = Transfer(faces.w, faces.landmarks / 256, border)
        self.known = self.known_of(faces)
        if config.probe_weight:
            self.start_probe(preparing)

    @torch.no_grad()
    def attribute_codes(self, faces: Faces, batch: int = 16, preparing: Preparing = UNWATCHED) -> Tensor:
        """Return codes [2, N, A] of faces as they are and as a camera would have them."""
        encoder, random = self.networks.attributes.eval(), torch.Generator().manual_seed(self.config.seed)
        views: tuple[list[Tensor], ...] = ([], [])
        for index in preparing("computing attribute codes", torch.arange(len(faces)).split(batch)):
            crop = faces[index].to(self.device).crop
            views[0].append(encoder(crop))
            views[1].append(encoder(augment(crop, random)))
        return torch.stack([torch.cat(view) for view in views])

    def start_probe(self, preparing: Preparing = UNWATCHED) -> None:
        """Train a new run's probe on the known faces alone."""
        if self.done:
            return
        self.probe.load_state_dict(self._first_probe)
        self.optimizers["probe_optimizer"].state.clear()
        landmarks, skin = (x.to(self.device) for x in (self.known.landmarks / 256, self.known.skin))
        self.probe.landmarks_mean.copy_(landmarks.mean(0))
        self.probe.landmarks_std.copy_(landmarks.std(0).mean())
        self.probe.skin_mean.copy_(skin.mean(0))
        self.probe.skin_std.copy_(skin.std(0))
        for step in preparing("training the probe", range(self.config.probe_steps)):
            self.train_probe(self.config.seed + step, PROBE_RATE * (1 - 0.8 * step / self.config.probe_steps))

    def train_probe(self, seed: int, rate: float) -> None:
        """Take one step of the probe on known faces, and on what was seen of compositions."""
        random = torch.Generator().manual_seed(seed)
        index = torch.randint(len(self.known.w), (PROBE_BATCH,), generator=random)
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):  # dropout
            torch.manual_seed(seed)
            self.probe.train()
            loss = self.probe.error(*self.known.at(index, self.device)[:4])
            if len(self.memory):
                seen = self.memory.sample(PROBE_BATCH, random)
                loss = loss + self.probe.error(*seen[:4])
                if self.config.probe_slope_weight:
                    w, target, slope = (x[: PROBE_BATCH // 2] for x in (seen.w, seen.target, seen.slope))
                    loss = loss + self.config.probe_slope_weight * self.probe.slope_error(w, target, slope)
        self.optimise("probe_optimizer", loss, rate)

    def optimise(self, name: str, loss: Tensor, rate: float | None = None, clip: float | None = None) -> None:
        """Take one step of an optimiser on a loss, the gradients averaged over the processes."""
        optimizer = self.optimizers[name]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for group in optimizer.param_groups:
            group["lr"] = rate or group["lr"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.processes.average_gradients(parameters)
        size = nn.utils.clip_grad_norm_(parameters, clip or math.inf)
        if not math.isfinite(loss.item()) or not math.isfinite(size.item()):
            raise FidError(
                f"a loss of {name} or its gradient is not finite at step {self.done}: {loss.item():.4g}, {size:.4g}; "
                "the last checkpoint is untouched."
            )
        optimizer.step()

    def rate(self) -> float:
        """Return the learning rate of this step: a cosine over the warm start, then one from the cross rate to the end.

        The warm start begins with a linear warm-up over 100 steps and ends at 0.4 of its rate; the second cosine ends
        at 0.02 of the cross rate.
        """
        config = self.config
        warm = self.done < config.warm_steps
        if not config.cosine:
            return config.rate if warm else config.cross_rate
        if warm:
            fraction = self.done / config.warm_steps
            return config.rate * min(1, (self.done + 1) / 100) * (0.4 + 0.6 * 0.5 * (1 + math.cos(math.pi * fraction)))
        fraction = (self.done - config.warm_steps) / max(config.steps - config.warm_steps, 1)
        return config.cross_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * fraction)))

    def identity_loss(self, code: Tensor, target: Tensor) -> Tensor:
        """Return the configured form of equation (4). Weights of the L1 form are those of codes of 128 numbers."""
        if self.config.identity_loss == "cosine":
            return self.config.identity_weight * losses.identity_cosine(code, target)
        return self.config.identity_weight * IDENTITY_SIZE / code.shape[1] * losses.identity_l1(code, target)

    def landmarks_loss(self, points: Tensor, target: Tensor) -> Tensor:
        """Return the configured form of equation (5), of points [N, K, 2] as fractions of the crop, and what the
        configuration adds for eyes, brows and lips."""
        measure = losses.landmarks_l2 if self.config.landmarks_loss == "l2" else losses.landmarks_squared
        loss, network = measure(points, target), self.frozen.landmarks
        if share := self.config.expression_weight:
            loss = loss + share * losses.gaps_squared(points, target, network.gaps, network.gap_weights)
        return self.config.landmarks_weight * loss

    def known_of(self, faces: Faces) -> Known:
        """Return what the losses in W need to know of faces."""
        skin = faces.skin if self.light else faces.w.new_zeros(len(faces), 3)
        return Known(faces.w, faces.identity, faces.landmarks, skin, self.light(faces.border) if self.light else skin)

    def self_batch(self) -> tuple[Known, Tensor]:
        """Return this process's share of a self batch: what is known of it, and attribute codes (with gradient to
        E_attr)."""
        n, draws = self.config.self_batch, self.draws
        if len(self.codes):
            random, rows = draws.random(Stream.SELF_FACES), self.processes.rows(n)
            index = torch.randint(self.codes.shape[1], (n,), generator=random)[rows]
            view = torch.randint(len(self.codes), (n,), generator=random)[rows]
            return self.known.at(index, self.device), self.codes[view, index]
        faces = draws.faces(n, Stream.SELF_FACES)
        return self.known_of(faces), self.networks.attributes(draws.seen_crop(faces, n, Stream.SELF_VIEW))

    def self_losses(self) -> dict[str, Tensor]:
        """Return the losses in W: reconstruction where I_id = I_attr; by the transfer and the probe, these attributes
        on other people."""
        config, (known, attributes) = self.config, self.self_batch()
        identity = self.draws.identities(known.identity, config.self_batch, Stream.SELF_IDENTITIES)
        w, target = self.networks.mapper(identity, attributes, attributes), known.w
        if config.w_plus:
            target = target[:, None]
        kept = _kept(identity, known.identity).view(-1, *[1] * (w.ndim - 1))
        terms = {"w": config.w_weight * (kept * ((w - target) / self.frozen.w_std).square()).mean()}
        if self.done >= config.warm_steps and (self.transfer or config.probe_weight):
            terms |= self.others_losses(known, identity, kept, attributes)
        return terms

    def others_losses(self, known: Known, identity: Tensor, kept: Tensor, attributes: Tensor) -> dict[str, Tensor]:
        """Return the losses of the attributes of a self batch on the other people of it."""
        config, sums = self.config, {}
        everybody = [self.processes.gathered(x) for x in (identity, kept, attributes, known.w, known.tone)]
        rows = self.processes.rows(config.self_batch)
        for shift in PROBE_SHIFTS:
            other, own, looks, person, tone = (x.roll(shift, 0)[rows] for x in everybody)
            w = self.networks.mapper(other, attributes, looks)
            terms = {}
            if self.transfer:
                error = (w - self.transfer(person, known.w)) / self.frozen.w_std
                terms["transfer"] = config.transfer_weight * (own * error.square()).mean()
            if config.probe_weight:
                code, points, skin = self.probe.eval()(w)
                terms["probe identity"] = config.probe_weight * self.identity_loss(code, other)
                terms["probe landmarks"] = config.probe_weight * self.landmarks_loss(points, known.landmarks / 256)
                if self.light:
                    error = (skin - tone - known.light) / self.probe.skin_std
                    terms["probe skin"] = config.skin_weight * error.square().mean()
            for name, value in terms.items():
                sums.setdefault(name, []).append(value)
        return {name: torch.stack(values).mean() for name, values in sums.items()}

    def image_losses(self, same: bool) -> tuple[Seen, tuple[Tensor, ...], dict[str, Tensor]]:
        """Take a batch of pairs through the generator and the frozen encoders, equations (3) to (8).

        `same`: I_id = I_attr. Returns what was seen; the inputs (identity codes, attribute and identity crops); and the
        weighted losses by name.
        """
        config, n, draws = self.config, self.config.cross_batch, self.draws
        people = attributes = draws.with_photos(draws.faces(n, Stream.CROSS_ATTRIBUTES), n, Stream.ATTRIBUTE_PHOTOS)
        if not same:
            people = draws.with_photos(draws.faces(n, Stream.CROSS_PEOPLE), n, Stream.PEOPLE_PHOTOS)
        identity = people.identity if same else draws.identities(people.identity, n, Stream.CROSS_IDENTITIES)
        crop = draws.seen_crop(attributes, n, Stream.CROSS_VIEW)
        portrait = draws.seen_crop(people, n, Stream.CROSS_PORTRAIT)
        w = self.networks(identity, crop, portrait)
        image = self.frozen.synthesis(w)
        with torch.autocast(self.device.type, enabled=False):  # bf16 has steps of a pixel, where landmarks are
            image = image.float()
            code, points = self.frozen.identity(image), self.frozen.inner_face(image)
        terms = {"identity": self.identity_loss(code, identity)}
        if config.landmarks_weight:
            terms["landmarks"] = self.landmarks_loss(points / 256, attributes.landmarks / 256)
        if config.colour_weight:
            target = attributes.crop
            if self.light:
                tone, before = (self.known_of(faces).tone for faces in (people, attributes))
                target = losses.with_skin(target, tone - before)
            terms["colour"] = config.colour_weight * losses.coarse_colour(image, target)
        if config.reconstruction_weight and same:
            scales = 5 if config.resolution >= 11 << 4 else 4
            with torch.autocast(self.device.type, enabled=False):  # its variances are small differences
                mix = losses.mix(image, attributes.crop, scales=scales).mean()
            terms["reconstruction"] = config.reconstruction_weight * mix
        if config.adversarial_weight and config.adversarial_rate is None:
            terms["adversarial"] = config.adversarial_weight * losses.adversarial_g(self.discriminator(w))
        slope = torch.zeros_like(w)
        if config.probe_weight and config.probe_slope_weight:
            loss = losses.identity_cosine(code, identity) * len(w)
            slope = torch.autograd.grad(loss, w, retain_graph=True)[0] * self.frozen.w_std
        seen = Seen(w, code, points, losses.skin_colour(image), identity, slope)
        return Seen(*(x.detach().float() for x in seen)), (identity, crop, portrait), terms

    def train_adversary(self, fake_w: Tensor, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Train by equations (2) and, where it is optimised apart, (3): a step of D_W, and one of the mapper
        against it."""
        config, figures = self.config, {}
        if config.adversarial_rate is not None:
            with self.autocast():
                loss = config.adversarial_weight * losses.adversarial_g(self.discriminator(self.networks(*inputs)))
            self.optimise("a_optimizer", loss)
            figures["adversarial"] = loss.detach()
        real_w = self.draws.real_w(2 * config.cross_batch, Stream.REAL_W).clone().requires_grad_(True)
        real_logits = self.discriminator(real_w)
        loss = losses.adversarial_d(real_logits, self.discriminator(fake_w))
        loss = loss + losses.r1_penalty(real_logits, real_w, config.r1_gamma)
        self.optimise("d_optimizer", loss)
        return {**figures, "discriminator": loss.detach()}

    def step(self) -> dict[str, float]:
        """Take one step and return the losses. Raises FidError when one is not finite, before the weights are
        touched."""
        config = self.config
        self.networks.train()
        self.networks.attributes.train(config.train_attributes)
        terms: dict[str, Tensor] = {}
        seen = inputs = None
        cross = self.done % config.cross_every == 0
        with self.autocast():
            if config.self_batch:
                terms = self.self_losses()
            if self.done >= config.warm_steps and (cross or config.self_images):
                seen, inputs, more = self.image_losses(same=not cross)
                terms |= more
        total = torch.stack(list(terms.values())).sum()
        figures = dict(
            zip(terms, self.processes.mean(torch.stack(list(terms.values())).detach()).tolist(), strict=True)
        )
        if not all(map(math.isfinite, figures.values())):
            said = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            raise FidError(f"the loss is not finite at step {self.done}: {said}.")
        self.optimise("optimizer", total, self.rate(), clip=5.0)
        if seen is not None and inputs is not None and config.adversarial_weight:
            more = self.train_adversary(seen.w, inputs)
            figures |= {name: self.processes.mean(value).item() for name, value in more.items()}
        if config.probe_weight and self.done >= config.warm_steps:
            if seen is not None:
                self.memory.add(Seen(*(self.processes.gathered(x) for x in seen)))
            for turn in range(config.probe_turns):
                self.train_probe(step_seed(config.seed, self.done, turn), 0.2 * PROBE_RATE)
        decay = min(config.ema, (self.done + 1) / (self.done + 10))
        move_average(_floats(self.average), _floats(self.networks), decay)
        self.done += 1
        return figures

    def save(self, run: Path, record: dict[str, Any]) -> Path:
        """Write a checkpoint: the average as the weights to ship, everything else to resume from."""
        weights = {**tensors_of("attributes", self.average.attributes), **tensors_of("mapper", self.average.mapper)}
        state: dict[str, Tensor] = {}
        for name, module in self.modules.items():
            state |= {f"{name}.{k}": v for k, v in module.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            state |= optimizer_tensors(name, optimizer)
        state |= {f"memory.{k}": v for k, v in self.memory.state().items()}
        own = {} if self.frozen.encoder is None else {"identity_encoder": self.frozen.encoder}
        kept = {"kind": "fit", "configuration": asdict(self.config), **own, **record}
        return save(run, self.done, weights, state, kept)

    def restore(self, checkpoint: Path) -> None:
        """Take everything from a checkpoint's state. Raises FidError when it is another configuration's."""
        state = read_weights(checkpoint, "state.safetensors")
        for name, module in self.modules.items():
            own = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
            try:
                module.load_state_dict(own)
            except RuntimeError as error:
                raise FidError(
                    f"{checkpoint} was trained with other networks than this configuration's; resume with its own "
                    "preset and options, or start in a new folder."
                ) from error
        for name, optimizer in self.optimizers.items():
            restore_optimizer(optimizer, state, name)
        kept = {k.removeprefix("memory."): v for k, v in state.items() if k.startswith("memory.")}
        self.memory.restore({k: v.to(self.device) for k, v in kept.items()})
        self.done = int(read_record(checkpoint)["step"])

    def begin_with(self, trained: Trainable) -> str:
        """Take what fits of other weights (`Trainable.begin_with`); returns what was taken, for people."""
        taken = [networks.begin_with(trained) for networks in (self.networks, self.average)]
        return f"begins with the attribute encoder {'and the mapper' if all(taken) else 'only'}"

    @torch.no_grad()
    def grid(self, rows: int = 5, columns: int = 5) -> np.ndarray:
        """Return an identity (top) x attributes (left) picture of the average networks, RGB uint8 [H, W, 3]."""
        random = torch.Generator().manual_seed(99)
        people, attributes = (self.frozen.draw(n, self.config.psi, random) for n in (columns, rows))
        corner = torch.full_like(people.image[:1], 255)
        lines = [torch.cat([corner, people.image])]
        for i in range(rows):
            crop = attributes.crop[i : i + 1].expand(columns, -1, -1, -1)
            image = to_bytes(self.frozen.synthesis(self.average(people.identity, crop, people.crop)))
            lines.append(torch.cat([attributes.image[i : i + 1], image]))
        return np.concatenate([np.concatenate(list(line.permute(0, 2, 3, 1).cpu().numpy()), axis=1) for line in lines])


def _kept(led: Tensor, codes: Tensor) -> Tensor:
    """How much of a person is left in a code that was led away from theirs, [N]: the square of the cosine.

    As much does the person's own w count as a target; where little is left, only what the frozen encoders say does.
    """
    return (led * codes).sum(1).clamp_min(0).square()


def _floats(module: nn.Module) -> list[Tensor]:
    return [v for v in module.state_dict().values() if v.is_floating_point()]
