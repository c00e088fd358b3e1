"""A dataset drawn on a Ray cluster (`fid-train dataset --ray`): actors that load the networks once write its shards
into a folder that all machines share."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ...runtime.batch.on_ray import TRIES, Cluster, joined, room
from ...runtime.errors import FidError
from .dataset import FIRST_SHARDS, Shards


@dataclass(frozen=True)
class Drawing:
    """What is drawn, and by which generator."""

    shards: Shards
    generator: Path | None  # as in `weights.trained.load_generator`
    name: str  # of the generator, for dataset.json
    resolution: int


class ShardWriter:
    """The actor: writes shards with the networks of one generator."""

    def __init__(self, drawing: Drawing, threads: int) -> None:
        self._drawing, self._threads = drawing, threads
        self._frozen: Any = None

    def write(self, index: int) -> int:
        """Write one shard and return its number."""
        import torch

        from ..loop import best_device, tune_machine
        from ..weights.trained import load_generator, load_mapping
        from .dataset import FrozenNetworks

        if self._frozen is None:
            torch.set_num_threads(self._threads)
            tune_machine()
            generator = self._drawing.generator
            synthesis = load_generator(generator, self._drawing.resolution)
            self._frozen = FrozenNetworks.load(synthesis, best_device(), mapping=load_mapping(generator))
        self._drawing.shards.write(index, self._frozen)
        return index


def write_dataset_on_ray(
    drawing: Drawing, address: str, share: dict[str, Any], *, stop: Callable[[], bool], log: Callable[[str], None]
) -> None:
    """Write the shards that are not there yet; the same as `dataset.write_dataset` writes with as many threads.
    `share`: workers, cpus and gpus, as in `commands.options.ray_options`.

    Shards with rare faces wait for the first ones, from which it is seen what is rare. Raises `FidError` when the
    cluster cannot be reached or a shard cannot be written.
    """
    generator = None if drawing.generator is None else drawing.generator.absolute()
    shards, drawing = drawing.shards, replace(drawing, generator=generator)
    cluster = Cluster(address, share["workers"], share["cpus"] or 1.0, share["gpus"])
    shards.begin(drawing.name, drawing.resolution)
    start, done = time.monotonic(), 0
    missing = shards.missing()
    first = [index for index in missing if index < min(FIRST_SHARDS, shards.plain)]
    with joined(cluster) as ray:
        options = {"num_cpus": cluster.cpus, "num_gpus": cluster.gpus}
        actor = ray.remote(max_restarts=-1, max_task_retries=TRIES - 1, **options)(ShardWriter)
        count = min(cluster.workers or room(ray, cluster), max(1, len(missing)))
        pool = ray.util.ActorPool([actor.remote(drawing, max(1, int(cluster.cpus))) for _ in range(count)])
        for indices in (first, [index for index in missing if index not in set(first)]):
            waiting = iter(indices)
            for index in islice(waiting, count):
                pool.submit(_write, index)
            while pool.has_next():
                try:
                    index = pool.get_next_unordered()
                except ray.exceptions.RayError as error:
                    raise FidError(f"a shard could not be written on Ray: {str(error).splitlines()[-1]}") from error
                done += 1
                log(f"shard {index + 1} of {shards.count} ({done} of {len(missing)}), {time.monotonic() - start:.0f} s")
                following = None if stop() else next(waiting, None)
                if following is not None:
                    pool.submit(_write, following)


def _write(actor: Any, index: int) -> Any:
    return actor.write.remote(index)
