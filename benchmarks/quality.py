"""Does a faster engine cost identity or expression? The paper's Tables 1 and 2 for every engine and precision.

All engines compose the same generated pairs, drawn by PyTorch in float32; the judges are those of `fid-train evaluate`.

    python benchmarks/quality.py --pairs 64
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from accuracy import compare
from engines import CPU_ENGINES, ENGINES, NotHereError, Opened, as_w_plus, input_names, networks, open_engine
from fid.runtime.engines.machine import physical_cores
from fid.trainer.data.dataset import FrozenNetworks
from fid.trainer.evaluate.compare import pair_measures, reconstruction_measures
from fid.trainer.evaluate.compose import EvaluateConfig, generated_pairs
from fid.trainer.evaluate.judges import Judges
from fid.trainer.pixels import from_uint8, to_float, to_uint8
from machine import machine_record
from records import QUICK_RESULTS, RESULTS, add_run

LIGHT = "-light"  # of an engine's name: through the light generator
MEASURED = (
    *(engine for engine in ENGINES if engine not in ("torch-compile", "torch-cudagraph")),
    *(f"{engine}{LIGHT}" for engine in CPU_ENGINES),
)


class ThroughEngine:
    """E_attr, M and G of one engine in the places of the networks in `fid.trainer.evaluate.run`.

    The mapper's w goes to the generator as it is; pictures come out 8 bits deep, as from the runtime.
    """

    def __init__(self, engine: str, threads: int) -> None:
        self.generator = f"synthesis{LIGHT}" if engine.endswith(LIGHT) else "synthesis"
        graphs = ("attributes", "mapper", self.generator)
        opened = {name: open_engine(engine.removesuffix(LIGHT), name, threads) for name in graphs}
        self.opened: dict[str, Opened] = opened
        self.resolution, self.provider = 256, opened[self.generator].provider

    def networks(self, identity: torch.Tensor, crop: torch.Tensor, portrait: torch.Tensor) -> torch.Tensor:
        """Map codes [N, 128], attribute and identity crops [N, 3, 256, 256] in [-1, 1] -> w [N, 512]."""
        rows = []
        for code, *crops in zip(identity.numpy(), to_uint8(crop), to_uint8(portrait), strict=True):
            attributes, appearance = (self.opened["attributes"].run({"crop": one[None]}) for one in crops)
            codes = {"identity": code[None], "attributes": attributes, "appearance": appearance}
            rows.append(self.opened["mapper"].run({name: codes[name] for name in input_names("mapper")})[0])
        return torch.from_numpy(np.stack(rows))

    def synthesis(self, w: torch.Tensor) -> torch.Tensor:
        """Map w [N, 512] -> pictures [N, 3, 256, 256] in [-1, 1]."""
        run = self.opened[self.generator].run
        pictures = [run({"w_plus": as_w_plus(row[None], self.generator)}) for row in w.numpy()]
        return from_uint8(np.concatenate(pictures))


@torch.no_grad()
def measure(engines: tuple[str, ...], config: EvaluateConfig, threads: int) -> dict[str, Any]:
    """Return tables 1 and 2 by engine, with the difference of its pictures to PyTorch's; or the reason why not."""
    torch.set_num_threads(threads)
    reference = networks()
    frozen = FrozenNetworks.load(reference.synthesis, torch.device("cpu"))
    judges = Judges.load(frozen)

    def own(identity: torch.Tensor, crop: torch.Tensor, portrait: torch.Tensor) -> torch.Tensor:
        return reference.mapper(identity, *map(reference.attributes, (crop, portrait)))

    pairs = generated_pairs(own, frozen, config)
    people, attributes = (judges.look(to_uint8(to_float(f.image))) for f in (pairs.people, pairs.attributes))
    rows: dict[str, Any] = {}
    for engine in engines:
        click.echo(engine, err=True)
        try:
            through = ThroughEngine(engine, threads)
        except NotHereError as problem:
            rows[engine] = {"reason": str(problem)}
            continue
        crop = to_float(pairs.attributes.image)
        made = []
        for who in (pairs.people, pairs.attributes):
            w = through.networks(who.identity, crop, to_float(who.image))
            made.append(to_uint8(through.synthesis(w)))
        output, again = judges.look(made[0]), judges.look(made[1])
        rows[engine] = {
            "provider": through.provider,
            "against_torch": compare(made[0], pairs.output.crops),
            **pair_measures(people, attributes, output, judges.features_name),
            "reconstruction": reconstruction_measures(judges, attributes, again),
        }
    return rows


@click.command(help=__doc__)
@click.option("--engines", multiple=True, type=click.Choice(MEASURED), help="May be repeated. Default: all.")
@click.option("--pairs", type=click.IntRange(min=2), help="How many.  [default: 64; 4 with --quick]")
@click.option("--threads", type=click.IntRange(min=1), help="Default: one per physical core.")
@click.option("--quick", is_flag=True, help="Few pairs, to see that it works; kept apart from the records.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="Default: benchmarks/results/.")
def main(engines: tuple[str, ...], pairs: int | None, threads: int | None, quick: bool, output: Path | None) -> None:
    machine, threads = machine_record(), threads or physical_cores()
    config = replace(EvaluateConfig(), pairs=pairs or (4 if quick else 64))
    figures = measure(engines or MEASURED, config, threads)
    settings = {"pairs": config.pairs, "psi": config.psi, "threads": threads}
    run = {"benchmark": "quality", "quick": quick, "partial": bool(engines), "settings": settings}
    path = add_run(output or (QUICK_RESULTS if quick else RESULTS), run | {"engines": _plain(figures)}, machine)
    click.echo(json.dumps({"record": path.name, "engines": {n: r.get("against_torch") for n, r in figures.items()}}))


def _plain(value: Any) -> Any:
    """The same, ready for JSON: what is not a finite number becomes None."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


if __name__ == "__main__":
    main()
