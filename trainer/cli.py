"""`fid-train`: distil a generator, make a dataset, fit the encoder and the mapper, evaluate a checkpoint."""

import os
import sys
from dataclasses import asdict, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from ..runtime.commands.group import end_with_one_line
from ..runtime.commands.options import ray_options
from ..runtime.errors import InputError
from ..runtime.terminal import make_console
from .options import (
    Source,
    dry_run_option,
    encoder_option,
    file_option,
    folder_option,
    generator_option,
    minutes_option,
    resume_option,
)
from .presets import PRESETS

NEEDED = {"torch": "PyTorch", "safetensors": "safetensors"}  # of the train extra, by import name
console = make_console(quiet=os.environ.get("RANK", "0") != "0")  # of several processes one speaks


def _plan(title: str, plan: dict[str, Any], dry_run: bool) -> None:
    """Prints the resolved configuration; leaves the program there on --dry-run."""
    console.print(title, style="bold")
    for name, value in plan.items():
        console.print(f"  {name:20} {value}")
    if dry_run:
        sys.exit(0)


def _about(sizes: dict[str, int]) -> dict[str, str]:
    return {name: f"about {size / 2**30:.1f} GiB" for name, size in sizes.items()}


class FitByDefault(click.Group):
    """A group where options without a subcommand are those of `fit`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line; see `click.Command.parse_args`."""
        if args and args[0].startswith("-") and args[0] not in ctx.help_option_names:
            args = ["fit", *args]
        return super().parse_args(ctx, args)


@click.group(cls=FitByDefault, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
def main_group() -> None:
    """Train fid's networks. A run's folder holds its checkpoints; Ctrl-C saves and stops, --resume goes on."""


@main_group.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The run's folder.")
@click.option("--resolution", type=click.Choice(["128", "256"]), default="256", help="Of the generator to make.")
@click.option("--images", type=click.IntRange(min=32), default=1024, help="Training targets to make.")
@click.option("--steps", type=click.IntRange(min=1), default=2000)
@click.option("--batch", type=click.IntRange(min=1), default=8, help="Pictures of a step.")
@click.option("--targets", type=click.Path(path_type=Path), help="Folder of targets, shared between runs.")
@click.option(
    "--narrow",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A run or checkpoint of this command to make narrower and train on.",
)
@click.option("--widths", help="With --narrow: channels of the blocks, such as 512,512,512,320,160.")
@minutes_option
@resume_option
@dry_run_option
def distill(
    output: Path,
    resolution: str,
    images: int,
    steps: int,
    batch: int,
    targets: Path | None,
    narrow: Path | None,
    widths: str | None,
    max_minutes: float | None,
    resume: bool,
    dry_run: bool,
) -> None:
    """Distil a small generator from the 1024 px one, or a narrower one from that."""
    from .distill.run import DistillConfig, memory_estimate
    from .distill.run import distill as run

    try:
        channels = tuple(map(int, widths.split(","))) if widths else None
    except ValueError as error:
        raise click.BadParameter(f"{widths!r} is no list of numbers such as 512,512,512,320,160.") from error
    config = DistillConfig(resolution=int(resolution), images=images, steps=steps, batch=batch, widths=channels)
    _plan("distill", {**asdict(config), **_about({"memory": memory_estimate(config)})}, dry_run)
    checkpoint = run(
        output,
        config,
        targets=targets,
        narrow=narrow,
        max_minutes=max_minutes,
        resume=resume,
        console=console,
    )
    console.print(f"saved {checkpoint}")


@main_group.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The graph, parts.onnx.")
@click.option("--photos", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Aligned crops, 256 px.")
@minutes_option
@dry_run_option
def parts(output: Path, photos: Path | None, max_minutes: float | None, dry_run: bool) -> None:
    """Teach the small network that tells hair from face and neck, for pasting."""
    from .parts.run import PartsConfig, make

    _plan("parts", asdict(PartsConfig()), dry_run)
    make(output, PartsConfig(), photos, console, max_minutes)
    console.print(f"saved {output}")


@main_group.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for the shards.")
@click.option("-n", "--count", type=click.IntRange(min=1), default=8192, help="Faces, in shards of 256.")
@click.option("--psi", type=float, default=0.8, help="Truncation.")
@click.option("--resolution", type=click.Choice(["128", "256"]), default="256")
@click.option("--seed", type=int, default=1)
@click.option(
    "--rare",
    type=click.FloatRange(0, 0.9),
    default=0.25,
    help="Share with dark skin, which the generator seldom draws.",
)
@ray_options
@generator_option
@encoder_option
@minutes_option
@dry_run_option
def dataset(
    output: Path,
    count: int,
    psi: float,
    resolution: str,
    seed: int,
    rare: float,
    generator: Path | None,
    identity_encoder: tuple[Path, ...],
    max_minutes: float | None,
    dry_run: bool,
    ray: str | None,
    **share: Any,
) -> None:
    """Write generated faces with their w, identity codes and landmarks; goes on where an earlier call stopped."""
    from .data.dataset import BATCH, FACE_BYTES, SHARD, FrozenNetworks, Shards, write_dataset
    from .data.on_ray import Drawing, write_dataset_on_ray
    from .loop import Budget, best_device, tune_machine
    from .weights.identity import load_identity_encoder
    from .weights.trained import drawing_memory, generator_name, load_generator, load_mapping

    if ray is None and share["workers"] is not None:
        raise click.UsageError("--workers goes with --ray.")
    made = {"psi": psi, "seed": seed, "rare": rare, "generator": generator_name(generator, int(resolution))}
    face = 3 * int(resolution) ** 2 + FACE_BYTES
    needed = {"disk": count * face, "memory": drawing_memory(int(resolution), BATCH) + 2 * SHARD * face}
    _plan("dataset", {"count": count, "resolution": int(resolution), **made, **_about(needed)}, dry_run)
    budget = Budget(max_minutes)
    with budget.catching_signals():
        if ray is not None:
            if identity_encoder:
                raise click.UsageError("--ray draws with the identity encoder that ships, without --identity-encoder.")
            shards = Shards(output.absolute(), count, psi, seed, rare)
            drawn = Drawing(shards, generator, made["generator"], int(resolution))
            write_dataset_on_ray(drawn, ray, share, stop=lambda: budget.over, log=console.print)
            return
        tune_machine()
        synthesis = load_generator(generator, int(resolution))
        encoder = load_identity_encoder(identity_encoder)
        frozen = FrozenNetworks.load(synthesis, best_device(), mapping=load_mapping(generator), encoder=encoder)
        write_dataset(output, count, frozen, **made, stop=lambda: budget.over, log=console.print)


def _changed(config: Any, settings: tuple[str, ...]) -> Any:
    """The configuration with NAME=VALUE settings applied; values are read as the type that they replace."""
    changes: dict[str, Any] = {}
    known = {field.name: getattr(field.type, "__name__", str(field.type)) for field in fields(config)}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in known:
            raise InputError(f"--set {setting}: expected NAME=VALUE with NAME one of {', '.join(known)}.")
        kind = known[name]
        try:
            if kind == "str":
                changes[name] = text
            elif kind == "bool":
                changes[name] = {"true": True, "false": False}[text.lower()]
            elif kind == "int":
                changes[name] = int(text)
            else:
                changes[name] = None if text.lower() == "none" else float(text)
        except (ValueError, KeyError) as error:
            raise InputError(f"--set {setting}: {name} is a value of type {kind}, which {text!r} is not.") from error
    return replace(config, **changes)


@main_group.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The run's folder.")
@click.option("--preset", type=click.Choice(list(PRESETS)), help="A row of the table of presets. [default: live]")
@click.option("--steps", type=click.IntRange(min=1), help="Of optimisation, in all.")
@click.option("--resolution", type=click.Choice(["128", "256", "1024"]), help="Of the generator that training sees.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Any other value that --dry-run shows.")
@folder_option("--dataset", "Folder of `fid-train dataset`; none: faces are drawn online.")
@folder_option("--photos", "Folder of your own photographs, as further identity and attribute images.")
@click.option(
    "--init",
    type=Source(path_type=Path, exists=True),
    help="Start from the weights of this checkpoint or bundle; `default` is the bundle that ships.",
)
@file_option("--encoder", "Start the inception encoder from this file of InceptionV3 weights.")
@file_option("--fan", "Use this file of face-alignment's FAN for landmarks, not the face mesh.")
@click.option("--compile", "compiled", is_flag=True, help="Let torch.compile speed all but the mapper up.")
@generator_option
@encoder_option
@minutes_option
@resume_option
@dry_run_option
def fit(
    output: Path,
    preset: str | None,
    steps: int | None,
    resolution: str | None,
    settings: tuple[str, ...],
    resume: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Train the attribute encoder and the mapper (the default command).

    Several processes: torchrun --nproc-per-node 2 -m fid.trainer.cli fit ...
    """
    from .fit.run import fit as run
    from .weights.checkpoint import check_new, latest
    from .weights.identity import load_identity_encoder
    from .weights.trained import kept_config, memory_estimate, parameter_counts

    check_new(output, resume)
    config = PRESETS[preset or "live"]
    if resume and not preset and latest(output):  # a run goes on as it was
        config = kept_config(output)
    given = {"steps": steps, "resolution": int(resolution) if resolution else None}
    config = _changed(replace(config, **{name: value for name, value in given.items() if value is not None}), settings)
    encoder = load_identity_encoder(options["identity_encoder"])
    own = () if encoder is None else (int(encoder.network.code_size),)
    named = {} if encoder is None else {"identity_encoder": encoder.name}
    sizes = {name: f"{count:,} parameters" for name, count in parameter_counts(config, *own).items()}
    _plan("fit", {**asdict(config), **named, **sizes, **_about({"memory": memory_estimate(config, *own)})}, dry_run)
    checkpoint = run(output, config, resume=resume, console=console, **options)
    console.print(f"saved {checkpoint}")


@main_group.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The run's folder.")
@click.option("--init", type=Source(path_type=Path, exists=True), default="default", help="Weights to begin from.")
@folder_option("--dataset", "Folder of `fid-train dataset`, of the same generator.", required=True)
@folder_option("--photos", "Folder of photographs, to learn what compositions lack of their expressions.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Any value that --dry-run shows.")
@generator_option
@minutes_option
@resume_option
@dry_run_option
def expressions(output: Path, settings: tuple[str, ...], dry_run: bool, **options: Any) -> None:
    """Teach the networks expressions that generated faces seldom have: closed eyes, wide mouths, smiles, brows."""
    from .expressions.directions import ExpressionsConfig
    from .expressions.run import kept_config, teach

    kept = kept_config(output) if options["resume"] else None  # a run goes on as it was
    config = _changed(kept or ExpressionsConfig(), settings)
    _plan("expressions", asdict(config), dry_run)
    if checkpoint := teach(output, config, console=console, **options):
        console.print(f"saved {checkpoint}")


@main_group.command()
@click.argument("subject", metavar="[CHECKPOINT|BUNDLE]", required=False, type=click.Path(path_type=Path, exists=True))
@click.option("--pairs", type=click.IntRange(min=2), default=256, help="Identity and attribute pairs.")
@click.option("--psi", type=float, default=0.8, help="Truncation of the generated pairs.")
@click.option("--resolution", type=click.Choice(["128", "256", "1024"]), default="256")
@click.option(
    "--photos",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of photos PERSON_anything.jpg, or of a folder for each person. Figures are given by group where names"
    " are TONE_SEX_NUMBER.jpg (light, medium, brown or dark; f or m).",
)
@click.option(
    "--groups",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Groups of the photos in place of such names: tab-separated columns file, tone, sex.",
)
@click.option(
    "--refine",
    type=click.IntRange(min=0),
    default=0,
    help="People of --photos who are personalised as well, eight of them inverted, too; a minute each on 2 cores.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=0),
    help="In which a bundle looks closer at each of --photos, as `fid-run --refine`. [default: that of fid-run]",
)
@click.option(
    "--clip",
    "clips",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Driving video (extra `video`); may be given several times.",
)
@click.option("--frames", type=click.IntRange(min=3), default=120, help="Of a clip, from its start.")
@click.option(
    "--ablation",
    "ablations",
    multiple=True,
    metavar="NAME=CHECKPOINT",
    help="Another one, to stand beside; several times.",
)
@click.option("--arcface", type=click.Path(path_type=Path, exists=True), help="An ArcFace network of yours, ONNX.")
@click.option("--inception", type=click.Path(path_type=Path, exists=True), help="InceptionV3 weights of yours.")
@file_option("--pose", "A HopeNet or 6DRepNet of yours, ONNX, for head poses.")
@click.option("--page", type=click.Path(path_type=Path, file_okay=False), help="Folder for index.html and the tables.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the figures to this JSON file.")
@generator_option
@encoder_option
def evaluate(
    subject: Path | None,
    pairs: int,
    psi: float,
    resolution: str,
    photos: Path | None,
    groups: Path | None,
    refine: int,
    rounds: int | None,
    clips: tuple[Path, ...],
    frames: int,
    ablations: tuple[str, ...],
    arcface: Path | None,
    inception: Path | None,
    pose: Path | None,
    page: Path | None,
    output: Path | None,
    generator: Path | None,
    identity_encoder: tuple[Path, ...],
) -> None:
    """Measure a checkpoint or a bundle as the paper does; without an argument, the bundle that ships.

    Prints the tables: identity, expression and pose on held-out generated pairs and on photos, reconstruction,
    ablations, driving clips. The generator is the bundle's own or, for a checkpoint, --generator or the shipped one.
    """
    from ..runtime.media.images import check_output
    from .evaluate.compose import EvaluateConfig
    from .evaluate.page import write_page
    from .evaluate.plots import check_matplotlib
    from .evaluate.run import run as measure
    from .evaluate.tables import markdown
    from .weights.checkpoint import write_json

    if page:
        check_matplotlib()
    if output:  # before minutes of work
        check_output(output, (".json",), [*clips, *(path for path in (subject, groups, arcface, inception) if path)])
    named = [name_path.partition("=") for name_path in ablations]
    if bad := [name for name, equals, path in named if not (name and equals and Path(path).exists())]:
        raise click.UsageError(f"--ablation is NAME=CHECKPOINT with a checkpoint that exists, and {bad[0]!r} is not.")
    report = measure(
        subject,
        EvaluateConfig(pairs=pairs, psi=psi, frames=frames, refine=refine, rounds=rounds),
        generator=generator,
        identity_encoder=identity_encoder,
        resolution=int(resolution),
        photos=photos,
        clips=clips,
        ablations={name: Path(path) for name, _, path in named},
        arcface=arcface,
        inception=inception,
        pose=pose,
        groups=groups,
        log=make_console(stderr=True).print,
    )
    if output:
        write_json(output, report.record())
    click.echo(markdown(report.figures))
    if page:
        click.echo(f"saved {write_page(page, report)}")


@main_group.command()
@click.argument("photos", nargs=-1, required=True, metavar="PHOTO...", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The identity file, .npz.")
@click.option("--bundle", type=click.Path(path_type=Path, exists=True), help="Whose networks; none: the one in fid.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="In place of a bundle: a `fid-train fit` run or checkpoint; needs --generator.",
)
@generator_option
@click.option("--steps", type=click.IntRange(min=1), help="[default: 110]", show_default=False)
@click.option(
    "--max-minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="End by then, with what is found. [default: none]",
)
@click.option("--seed", type=int, help="Of the faces that the person is tried on. [default: 1]", show_default=False)
@dry_run_option
def personalize(
    photos: tuple[Path, ...],
    output: Path,
    bundle: Path | None,
    checkpoint: Path | None,
    generator: Path | None,
    dry_run: bool,
    **overrides: Any,
) -> None:
    """Refine one person's identity, from one or more photos or a folder of them; about a minute on 2 cores.

    The file is an identity for `fid-run compose --identity`, for the bundle that it was made with. Ctrl-C ends the
    search and keeps what it has found.
    """
    from . import personalize as people

    if (checkpoint is None) != (generator is None) or (bundle is not None and checkpoint is not None):
        raise click.UsageError("give either --bundle, or --checkpoint and --generator, or none of them.")
    usual = people.usual_config(bundle, checkpoint)
    config = replace(usual, **{name: value for name, value in overrides.items() if value is not None})
    _plan("personalize", asdict(config), dry_run)
    trained = (checkpoint, generator) if checkpoint and generator else None
    people.personalize(photos, output, config, bundle=bundle, trained=trained, console=console)
    console.print(f"saved {output}")


def main(arguments: list[str] | None = None) -> None:
    """Run the console script: one sentence per error, exit code 2 for bad usage or input, 1 for a failure."""
    missing = [name for module, name in NEEDED.items() if find_spec(module) is None]
    if missing:
        click.echo(f"fid-train: {missing[0]} is not installed; run: pip install 'fid-face[train]'", err=True)
        sys.exit(1)
    end_with_one_line("fid-train", lambda: main_group.main(arguments, prog_name="fid-train", standalone_mode=False))


if __name__ == "__main__":
    main()
