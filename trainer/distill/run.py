"""Distils the 256 px (or 128 px) generator from the 1024 px one: `fid-train distill`.

The target is the 1024 px image averaged over squares of pixels. The to-image head starts in closed form (least squares
from the last activations to the target's wavelet bands) and is then trained together with the last block: L1 on the
image and on its coarse copies (colour), squared error, LPIPS, and the identity code. All blocks before stay as
published, so their activations are computed once.

With `narrow`, a generator that was distilled before is made narrower first (`narrow.py`), which makes it faster, and
every block from the first narrowed one on is trained.
"""

import copy
import math
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from ...runtime.errors import FidError, InputError
from ...runtime.terminal import make_console
from .. import losses
from ..loop import (
    SAVE_EVERY_S,
    Budget,
    Preparing,
    Progress,
    StoppedError,
    best_device,
    kept_on,
    move_average,
    tune_machine,
)
from ..networks.lpips import LPIPS
from ..networks.mobilestylegan import CHANNELS, W_SIZE, DistilledToImage, Mapping, Synthesis, haar
from ..networks.sface import SFace
from ..pixels import psnr_db
from ..weights.checkpoint import (
    check_new,
    latest,
    load_into,
    make_folder,
    optimizer_tensors,
    read_record,
    read_weights,
    restore_optimizer,
    save,
    tensors_of,
    writing,
)
from ..weights.trained import kept_by_autograd
from .narrow import narrowed

SHARD = 32  # images in one file of targets
NARROWED_ON = 24  # images that a generator is made narrower on


@dataclass(frozen=True)
class DistillConfig:
    """What `fid-train distill` does."""

    resolution: int = 256
    images: int = 1024  # training targets; 64 more are held out
    held_out: int = 64
    held_out_psi: float = 0.8
    psi: tuple[float, float] = (0.5, 1.0)  # training targets are truncated by a factor drawn from this range
    batch: int = 8
    steps: int = 2000
    rate_head: float = 2e-3  # relative to the size of each tensor
    rate_block: float = 1e-3
    squared: float = 8.0  # weight of the squared error
    lpips: float = 0.03  # weight; 0 leaves it out
    lpips_window: int = 128  # px; LPIPS sees one square of the images, another at each step
    identity: float = 0.1  # weight of 1 - cosine of the identity codes; 0 leaves it out
    identity_every: int = 2  # steps
    widths: tuple[int, ...] | None = None  # channels of the blocks, for `narrow`
    seed: int = 7


def mean_w(mapping: Mapping) -> Tensor:
    """Return the mean of W [512], of 100,000 samples: the point that truncation pulls towards."""
    generator = torch.Generator().manual_seed(0)
    return torch.stack([mapping(torch.randn(1000, W_SIZE, generator=generator)).mean(0) for _ in range(100)]).mean(0)


def write_targets(
    folder: Path, config: DistillConfig, log: Callable[[str], None] = print, preparing: Preparing | None = None
) -> None:
    """Write shards of w [32, 512] float32 and 256 px targets [32, 3, 256, 256] float16; skip those that are there.

    Raises `StoppedError` when `preparing` has to stop.
    """
    preparing = preparing or Preparing()
    held_out_shards = -(-config.held_out // SHARD)
    n_shards = held_out_shards + -(-config.images // SHARD)
    paths = [folder / f"shard_{index:04d}.npz" for index in range(n_shards)]
    if all(path.exists() for path in paths):
        return
    make_folder(folder)
    device = best_device()
    mapping, teacher = Mapping.load(), Synthesis.load(1024).to(device)
    centre = mean_w(mapping)
    generator = torch.Generator().manual_seed(config.seed)
    start = time.monotonic()
    for index, path in enumerate(paths):
        z = torch.randn(SHARD, W_SIZE, generator=generator)
        low, high = config.psi
        psi = low + (high - low) * torch.rand(SHARD, 1, generator=generator)
        if index < held_out_shards:
            psi = torch.full_like(psi, config.held_out_psi)
        w = centre + psi * (mapping(z) - centre)
        if path.exists():
            continue
        with torch.no_grad():
            parts = w.to(device).split(8 if device.type == "cuda" else 1)
            made = [F.avg_pool2d(teacher(part), 4).half().cpu() for part in preparing("making targets", parts)]
            images = torch.cat(made)
        with writing(path) as partial, partial.open("wb") as file:
            np.savez(file, w=w.numpy(), image=images.numpy())
        log(f"targets: shard {index + 1} of {n_shards}, {time.monotonic() - start:.0f} s")


def read_targets(folder: Path, config: DistillConfig) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return (w, image) of the training targets and of the held-out ones; images float16 at the configured resolution.

    Raises InputError when a shard is broken.
    """

    def read(paths: list[Path]) -> tuple[Tensor, Tensor]:
        codes, images = [], []
        for path in paths:
            try:
                with path.open("rb") as file, np.load(file) as shard:
                    codes.append(torch.from_numpy(shard["w"]))
                    images.append(torch.from_numpy(shard["image"]))
            except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
                raise InputError(f"{path} is broken ({error}); delete it and start again.") from error
        if config.resolution != 256:
            images = [F.avg_pool2d(i.float(), 256 // config.resolution).half() for i in images]
        return torch.cat(codes), torch.cat(images)

    paths = sorted(folder.glob("shard_*.npz"))
    held_out_shards = -(-config.held_out // SHARD)
    return read(paths[held_out_shards:]), read(paths[:held_out_shards])


@torch.no_grad()
def closed_form_head(network: Synthesis, w: Tensor, images: Tensor, ridge: float = 1e-5) -> None:
    """Fit by ridge least squares from (activations, 1) to the target's 12 wavelet bands.

    Fills the head's skip and its constant colour. w is left to training: a few dozen images say nothing about its 512
    directions.
    """
    head = network.to_image
    assert isinstance(head, DistilledToImage)
    channels = head.skip.shape[1]
    size = channels + 1
    gram, moment = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, 12, dtype=torch.float64)
    for code, image in zip(w.split(4), images.split(4), strict=True):
        x = network.trunk(code, len(network.blocks)) * head.skip_modulation(code)
        for features, bands in zip(x, haar(image.float()), strict=True):
            rows = F.pad(features.reshape(channels, -1), (0, 0, 0, 1), value=1.0)
            gram += (rows @ rows.T).double()
            moment += (rows @ bands.reshape(12, -1).T).double()
    scale = gram.diagonal().mean()
    solution = torch.linalg.solve(gram + ridge * scale * torch.eye(size, dtype=torch.float64), moment).float()
    head.skip.copy_(solution[:channels].T[:, :, None, None])
    head.colour.bias.copy_(solution[-1])
    nn.init.zeros_(head.detail.weight)
    nn.init.zeros_(head.detail.bias)


@torch.no_grad()
def measure(network: Synthesis, w: Tensor, images: Tensor, identity: nn.Module | None = None) -> dict[str, float]:
    """Return PSNR (dB), colour drift (mean absolute difference of an image's mean colour, grey levels) and cosine of
    the identity codes on targets."""
    outputs = torch.cat([network(code).float() for code in w.split(4)])
    target = images.float()
    values = psnr_db(outputs, target)
    drift = (outputs.clamp(-1, 1).mean((2, 3)) - target.clamp(-1, 1).mean((2, 3))).abs().mean() * 127.5
    figures = {"psnr_mean": values.mean().item(), "psnr_min": values.min().item(), "colour_drift": drift.item()}
    if identity is not None:
        pairs = zip(outputs.split(8), target.split(8), strict=True)
        cosines = torch.cat([(identity(a.clamp(-1, 1)) * identity(b)).sum(1) for a, b in pairs])
        figures["identity_cosine"] = cosines.mean().item()
    return figures


def batches(n: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield endless batches of indices, every image once per pass."""
    while True:
        yield from torch.randperm(n, generator=generator)[: n // batch * batch].split(batch)


def typical_size(parameter: Tensor) -> float:
    """Return the root mean square of a tensor's numbers, or what a random start would give one of zeros.

    The published weights have their scales folded in, so tensors differ in size by orders of magnitude; Adam's steps
    are made relative to it.
    """
    size = parameter.detach().square().mean().sqrt().item()
    return size or 1 / math.sqrt(parameter[0].numel())


def image_loss(
    output: Tensor, target: Tensor, perceptual: nn.Module | None, config: DistillConfig, step: int = 0
) -> Tensor:
    """Return L1 on the image and on its 4x and 14x coarser copies, squared error against large mistakes, and LPIPS on
    the square of this step."""
    loss = (output - target).abs().mean() + config.squared * (output - target).square().mean()
    for factor in (4, 14):
        loss = loss + 0.5 * (F.avg_pool2d(output, factor) - F.avg_pool2d(target, factor)).abs().mean()
    if perceptual is not None:
        place = np.random.default_rng((config.seed, step))
        top, left = place.integers(0, max(output.shape[-1] - config.lpips_window, 0) + 1, size=2)
        window = (..., slice(top, top + config.lpips_window), slice(left, left + config.lpips_window))
        loss = loss + config.lpips * perceptual(output[window], target[window]).mean()
    return loss


def first_trained(network: Synthesis) -> int:
    """Return the number of the first block that is not as published, or of the last."""
    changed = [own != published for own, published in zip(network.widths, CHANNELS, strict=False)]
    return changed.index(True) if True in changed else len(changed) - 1


def start(config: DistillConfig, narrow: Path | None, w: Tensor, images: Tensor) -> Synthesis:
    """Return the generator that training begins with."""
    if narrow is None:
        network = Synthesis.load(config.resolution)
        closed_form_head(network, w[:64], images[:64])
        return network
    weights = read_weights(narrow)
    wide = Synthesis.shaped_as(weights, config.resolution, "synthesis.")
    load_into(wide, weights, "synthesis")
    try:
        return narrowed(wide, config.widths or (), w[:NARROWED_ON])
    except ValueError as error:
        raise InputError(f"{error}.") from error


class DistillLoop:
    """State of one training run; `done` counts its steps."""

    def __init__(
        self, config: DistillConfig, network: Synthesis, average: Synthesis, identity: nn.Module | None
    ) -> None:
        self.config, self.device, self.identity = config, best_device(), identity
        self.network, self.average = network.to(self.device).requires_grad_(False), average
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - torch's stubs lack it
        average.to(self.device).requires_grad_(False)
        self.first_block = first_trained(network)
        blocks = network.blocks[self.first_block :]
        parts = ((network.to_image, config.rate_head), *((block, config.rate_block) for block in blocks))
        groups = [
            {"params": [p.requires_grad_(True)], "rate": rate * typical_size(p)}
            for part, rate in parts
            for p in part.parameters()
        ]
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
        self.perceptual = LPIPS.load("alex").to(self.device) if config.lpips else None
        self.w = self.images = self.trunk = torch.empty(0)
        self.codes: Tensor | None = None  # identity codes of the targets
        self.order = batches(1, 1, torch.Generator())
        self.done = 0

    @torch.no_grad()
    def learn_from(self, w: Tensor, images: Tensor, preparing: Preparing) -> None:
        """Take the targets: w [N, 512] and images [N, 3, R, R], and compute once what does not change of them. Raises
        `StoppedError` when `preparing` has to stop."""
        device, block = self.device, self.first_block
        self.w = w.to(device)
        home = kept_on(device, len(w) * self.network.trunk(self.w[:1], block).nbytes)
        self.images = images.to(home)
        parts = preparing("computing the trunk", self.w.split(8))
        self.trunk = torch.cat([self.network.trunk(code, block).half().to(home) for code in parts])
        if self.identity is not None:
            self.codes = torch.cat([self.identity(image.to(device).float()) for image in self.images.split(8)])
        self.order = batches(len(w), self.config.batch, torch.Generator().manual_seed(self.config.seed))
        for _ in range(self.done):
            next(self.order)

    def step(self) -> float:
        """Take one step and return the loss. Raises FidError when it is not finite, before the weights are touched."""
        config, index = self.config, next(self.order)
        cosine = 0.5 * (1 + math.cos(math.pi * self.done / config.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * min(1.0, (self.done + 1) / 20) * (0.01 + 0.99 * cosine)
        x = self.trunk[index].to(self.device).float().contiguous(memory_format=torch.channels_last)
        output = self.network.tail(x, self.w[index], self.first_block)
        loss = image_loss(output, self.images[index].to(self.device).float(), self.perceptual, config, self.done)
        if self.identity is not None and self.codes is not None and self.done % config.identity_every == 0:
            loss = loss + config.identity * losses.identity_cosine(self.identity(output), self.codes[index])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if not torch.isfinite(loss):
            raise FidError(f"the loss is not finite at step {self.done}; the last good checkpoint is untouched.")
        self.optimizer.step()
        self.done += 1
        move_average(self.average.parameters(), self.network.parameters(), min(0.995, self.done / (self.done + 20)))
        return loss.item()

    def measure(self, held_out: tuple[Tensor, Tensor]) -> dict[str, float]:
        """Return `measure` of the average network on held-out targets."""
        w, images = (x.to(self.device) for x in held_out)
        return measure(self.average, w, images, self.identity)

    def save(self, run: Path, figures: dict[str, float]) -> Path:
        """Write a checkpoint: the average as the weights to ship, everything else to resume from."""
        state = {
            **tensors_of("synthesis", self.network),
            **tensors_of("average", self.average),
            **optimizer_tensors("optimizer", self.optimizer),
        }
        record = {"kind": "distill", "configuration": asdict(self.config), "generator": "MobileStyleGAN FFHQ 1024"}
        return save(run, self.done, tensors_of("synthesis", self.average), state, {**record, "figures": figures})


def resumed(checkpoint: Path, config: DistillConfig, identity: nn.Module | None) -> DistillLoop:
    """Return the loop of a run that stopped at a checkpoint."""
    state = read_weights(checkpoint, "state.safetensors")
    network = Synthesis.shaped_as(state, config.resolution, "synthesis.").eval()
    load_into(network, state, "synthesis")
    average = copy.deepcopy(network)
    load_into(average, state, "average")
    loop = DistillLoop(config, network, average, identity)
    restore_optimizer(loop.optimizer, state, "optimizer")
    loop.done = int(read_record(checkpoint)["step"])
    return loop


def memory_estimate(config: DistillConfig) -> int:
    """Return the bytes that distilling needs at its peak, about: targets and trunk activations, which stay in memory,
    and what autograd keeps of a step."""
    with torch.device("meta"):
        network, code = Synthesis(config.resolution), torch.zeros(1, W_SIZE)
    blocks = first_trained(network)
    target, trunk = 2 * 3 * config.resolution**2, network.trunk(code, blocks).nbytes // 2  # both in half precision
    w = torch.zeros(config.batch, W_SIZE, device="meta")
    step = kept_by_autograd(lambda: network.tail(network.trunk(w, blocks).detach(), w, blocks))
    return (config.images + config.held_out) * (target + trunk) + 2 * step  # once more for the losses' own networks


def distill(
    run: Path,
    config: DistillConfig,
    *,
    targets: Path | None = None,
    narrow: Path | None = None,
    max_minutes: float | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> Path:
    """Train a generator into `run` and return its last checkpoint folder.

    Targets are made first (in `targets`, default `run/targets`) and kept. `narrow`: a run or checkpoint of this command
    to make narrower, to `config.widths`. With `resume` it goes on from the newest checkpoint. Raises InputError for
    widths that do not fit; FidError when the loss is not finite, and the last good checkpoint stays.
    """
    console = console or make_console()
    if (narrow is None) != (config.widths is None):
        raise InputError("--narrow and --widths belong together: a generator, and the channels of its blocks.")
    check_new(run, resume)
    tune_machine()
    budget = Budget(max_minutes)
    targets, preparing = targets or run / "targets", Preparing(console.print, lambda: budget.over)
    with budget.catching_signals():
        try:
            write_targets(targets, config, console.print, preparing)
        except StoppedError as stopped:
            raise StoppedError(f"{stopped} {targets} keeps what is whole, and the same command goes on.") from None
        targets_of_training, held_out = read_targets(targets, config)
        torch.manual_seed(config.seed)
        identity = SFace.load().to(best_device()).eval().requires_grad_(False) if config.identity else None
        found = latest(run) if resume else None
        if found:
            loop = resumed(found, config, identity)
        else:
            network = start(config, narrow, *targets_of_training)
            loop = DistillLoop(config, network, copy.deepcopy(network), identity)
            console.print(f"closed form: {loop.measure(held_out)}")
        try:
            loop.learn_from(*targets_of_training, preparing)
        except StoppedError as stopped:
            console.print(f"{stopped} --resume begins with that again.")
            return found or loop.save(run, {})
        console.print(f"trunk activations of {len(loop.w)} images: {loop.trunk.nbytes / 2**30:.1f} GiB")
        progress, saved = Progress(console, config.steps, config.batch, loop.done), budget.seconds
        while loop.done < config.steps and not budget.over:
            loss = loop.step()
            progress.show(loop.done, {"loss": loss})
            if budget.seconds - saved > SAVE_EVERY_S:
                saved = budget.seconds
                loop.save(run, {})
    figures = loop.measure(held_out)
    console.print(f"held out: {figures}")
    return loop.save(run, figures)
