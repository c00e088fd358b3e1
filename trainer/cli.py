"""`fid-train`: distil a generator, make a dataset, fit the encoder and the mapper, evaluate a checkpoint."""

import json
import sys
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ..runtime.errors import FidError

NEEDED = {"torch": "PyTorch", "safetensors": "safetensors"}  # of the train extra, by import name

console = Console(highlight=False)
minutes_option = click.option("--max-minutes", type=float, help="Save and stop after this many minutes.")
resume_option = click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in the output folder.")
generator_option = click.option(
    "--generator",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A `fid-train distill` run or checkpoint: the generator to train through.",
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Print the resolved configuration and stop.")


def _plan(title: str, plan: dict[str, Any], dry_run: bool) -> None:
    """Prints the resolved configuration; leaves the program there on --dry-run."""
    console.print(f"[bold]{title}[/bold]")
    for name, value in plan.items():
        console.print(f"  {name:20} {value}")
    if dry_run:
        sys.exit(0)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
def main_group() -> None:
    """Train fid's networks. A run's folder holds its checkpoints; Ctrl-C saves and stops, --resume goes on."""


@main_group.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The run's folder.")
@click.option("--resolution", type=click.Choice(["128", "256"]), default="256", help="Of the generator to make.")
@click.option("--images", type=click.IntRange(min=32), default=1024, help="Training targets to make.")
@click.option("--steps", type=click.IntRange(min=1), default=2000)
@click.option("--targets", type=click.Path(path_type=Path), help="Folder of targets, shared between runs.")
@minutes_option
@resume_option
@dry_run_option
def distill(
    output: Path,
    resolution: str,
    images: int,
    steps: int,
    targets: Path | None,
    max_minutes: float | None,
    resume: bool,
    dry_run: bool,
) -> None:
    """Distil a small generator from the 1024 px one."""
    from .distill import DistillConfig
    from .distill import distill as run

    config = DistillConfig(resolution=int(resolution), images=images, steps=steps)
    _plan("distill", asdict(config), dry_run)
    checkpoint = run(output, config, targets=targets, max_minutes=max_minutes, resume=resume, console=console)
    console.print(f"saved {checkpoint}")


@main_group.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for the shards.")
@click.option("-n", "--count", type=click.IntRange(min=1), default=8192, help="Faces, in shards of 256.")
@click.option("--psi", type=float, default=0.8, help="Truncation.")
@click.option("--resolution", type=click.Choice(["128", "256"]), default="128")
@click.option("--seed", type=int, default=1)
@generator_option
@minutes_option
def dataset(
    output: Path, count: int, psi: float, resolution: str, seed: int, generator: Path | None, max_minutes: float | None
) -> None:
    """Write generated faces with their w, identity codes and landmarks; goes on where an earlier call stopped."""
    from .data import FrozenNetworks, write_dataset
    from .fit import load_generator
    from .loop import Budget, best_device

    frozen = FrozenNetworks.load(load_generator(generator, int(resolution)), best_device())
    budget = Budget(max_minutes)
    with budget.catching_signals():
        write_dataset(output, count, frozen, psi=psi, seed=seed, stop=lambda: budget.over, log=console.print)


@main_group.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The run's folder.")
@click.option(
    "--dataset", type=click.Path(path_type=Path, exists=True), help="Folder of `fid-train dataset`; none: online."
)
@click.option("--init", type=click.Path(path_type=Path, exists=True), help="Start from this checkpoint's weights.")
@click.option("--resolution", type=click.Choice(["128", "256"]), help="Of the generator that training sees.")
@click.option("--steps", type=click.IntRange(min=1))
@click.option("--warm-steps", type=click.IntRange(min=0), help="First steps, on self pairs only.")
@click.option("--self-batch", type=click.IntRange(min=1))
@click.option("--cross-batch", type=click.IntRange(min=1))
@click.option("--cross-every", type=click.IntRange(min=1), help="A cross batch every so many steps.")
@click.option("--landmarks-weight", type=float)
@click.option("--probe-weight", type=float, help="Landmarks of further pairs by a linear probe of w; 0 leaves it out.")
@click.option("--identity-weight", type=float)
@click.option("--rate", type=float, help="Learning rate of the warm start.")
@click.option("--cross-rate", type=float, help="Learning rate after it.")
@generator_option
@minutes_option
@resume_option
@dry_run_option
def fit(
    output: Path,
    dataset: Path | None,
    init: Path | None,
    resolution: str | None,
    generator: Path | None,
    max_minutes: float | None,
    resume: bool,
    dry_run: bool,
    **overrides: Any,
) -> None:
    """Train the attribute encoder and the mapper."""
    from .fit import FitConfig, parameter_counts
    from .fit import fit as run

    changes = {name: value for name, value in overrides.items() if value is not None}
    if resolution:
        changes["resolution"] = int(resolution)
    config = replace(FitConfig(), **changes)
    sizes = {name: f"{count:,} parameters" for name, count in parameter_counts().items()}
    _plan("fit", {**asdict(config), **sizes}, dry_run)
    checkpoint = run(
        output,
        config,
        generator=generator,
        dataset=dataset,
        max_minutes=max_minutes,
        resume=resume,
        init=init,
        console=console,
    )
    console.print(f"saved {checkpoint}")


@main_group.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--pairs", type=click.IntRange(min=2), default=256, help="Generated identity and attribute pairs.")
@click.option("--psi", type=float, default=0.8, help="Truncation of the generated pairs.")
@click.option("--resolution", type=click.Choice(["128", "256", "1024"]), default="256")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the figures to this JSON file.")
@generator_option
def evaluate(
    checkpoint: Path, pairs: int, psi: float, resolution: str, output: Path | None, generator: Path | None
) -> None:
    """Measure identity, leak, landmarks and reconstruction on held-out generated pairs."""
    from .checkpoint import write_json
    from .data import FrozenNetworks
    from .evaluate import EvaluateConfig
    from .evaluate import evaluate as measure
    from .fit import load_generator, load_trained
    from .loop import best_device

    device = best_device()
    frozen = FrozenNetworks.load(load_generator(generator, int(resolution)), device)
    figures = measure(load_trained(checkpoint).to(device), frozen, EvaluateConfig(pairs=pairs, psi=psi))
    if output:
        write_json(output, figures)
    click.echo(json.dumps(figures, indent=1))


def main(arguments: list[str] | None = None) -> None:
    """The console script: one sentence per error, exit code 2 for bad usage or input, 1 for a failure."""
    missing = [name for module, name in NEEDED.items() if find_spec(module) is None]
    if missing:
        click.echo(f"fid-train: {missing[0]} is not installed; run: pip install 'fid-face[train]'", err=True)
        sys.exit(1)
    try:
        main_group.main(arguments, prog_name="fid-train", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("fid-train: interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except FidError as error:
        click.echo(f"fid-train: {error}", err=True)
        sys.exit(error.exit_code)
