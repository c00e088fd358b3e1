"""Several processes that train as one (`torchrun`): each takes its rows of a global batch; gradients are averaged.

One process on the whole batch computes the same losses, batch norms included.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
from torch import Tensor, nn

from ...runtime.errors import InputError


@dataclass(frozen=True)
class Processes:
    """This process among its peers; the default is one alone, for which every method does nothing."""

    rank: int = 0
    world: int = 1

    @classmethod
    def start(cls) -> "Processes":
        """Join the peers that `torchrun` announced in the environment: NCCL where there are GPUs, gloo elsewhere."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls()
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(minutes=30))
        return cls(dist.get_rank(), world)

    def stop(self) -> None:
        """Leave the peers."""
        if self.world > 1:
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """True in the one process that prints and writes."""
        return self.rank == 0

    def rows(self, n: int) -> slice:
        """Return this process's rows of a global batch of n. Raises InputError when it cannot be divided evenly."""
        if n % self.world:
            raise InputError(
                f"a batch of {n} cannot be shared by {self.world} processes: give a multiple of {self.world}."
            )
        share = n // self.world
        return slice(self.rank * share, (self.rank + 1) * share)

    def gathered(self, mine: Tensor) -> Tensor:
        """Return the rows of all processes, in order; with gradient where these have one."""
        if self.world == 1:
            return mine
        if mine.requires_grad:
            return torch.cat(differentiable.all_gather(mine.contiguous()))
        parts = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(parts, mine.contiguous())
        return torch.cat(parts)

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the processes, of numbers that each of them has; without gradient."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values)
            values /= self.world
        return values

    def any(self, flag: bool, device: torch.device) -> bool:
        """Tell whether it is true in any process; all get the same answer."""
        return flag if self.world == 1 else bool(self.mean(torch.tensor(float(flag), device=device)) > 0)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make every process's gradients those of the global batch."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.world == 1 or not gradients:
            return
        flat = self.mean(torch.cat([g.flatten() for g in gradients]))
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def synchronise_batch_norms(self, network: nn.Module) -> None:
        """Make its batch norms see the global batch, in place; names and numbers of the weights stay."""
        if self.world > 1:
            for module in network.modules():
                if type(module) is nn.BatchNorm2d:
                    module.__class__ = _GlobalBatchNorm


class _GlobalBatchNorm(nn.BatchNorm2d):
    """Batch norm over all processes. PyTorch's SyncBatchNorm does the same, but on GPUs only."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        count = x.numel() // x.shape[1] * dist.get_world_size()
        values = x.float()
        sums = torch.stack((values.sum((0, 2, 3)), values.square().sum((0, 2, 3))))
        mean, square = cast(Tensor, differentiable.all_reduce(sums)) / count
        variance = (square - mean.square()).clamp_min(0)
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.running_mean.lerp_(mean, self.momentum or 0.1)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum or 0.1)
            self.num_batches_tracked += 1
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return (values * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]).to(x.dtype)
