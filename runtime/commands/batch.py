"""The commands of `fid-run batch`: one job on every file of a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .job_options import controls_options, hiding, moving, paste_option
from .options import FILE, Settings, composing, face_option, identity_face_option, identity_option, ray_options
from .progress import file_progress, rate_told

if TYPE_CHECKING:
    from ..batch.jobs import Job
    from ..batch.manifest import Line
    from ..batch.run import Doing, Plan, Tally
    from ..batch.worker import Setup

SOME_FAILED = 3  # exit code when not every file is done
NAMED = 10  # failures that are named at the end; the manifest has all


@dataclass(frozen=True)
class How:
    """By whom the files are done."""

    shard: str | None
    workers: int | None
    ray: str | None
    cpus: float | None
    gpus: float
    dry_run: bool
    chunk: float | None = None  # of clips alone


HOW = tuple(field.name for field in fields(How))


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def batch() -> None:
    """One job on every file of a folder and the folders in it.

    Each result has its file's name, and appears whole or not at all. manifest.jsonl in the folder of results has a line
    of JSON for every file; the same command again does only what is missing. Exit code 0 when all is done, 3 when
    something failed.
    """


def batching(command: Callable[..., Job]) -> Callable[..., None]:
    """Give a command that returns a job the options of a batch, and run it."""

    @wraps(command)
    def run_job(settings: Settings, source: str, target: str, **values: Any) -> None:
        how = How(**{name: values.pop(name) for name in HOW if name in values})
        _run(command(**values), settings, source, target, how)

    options = [
        click.option(
            "-i",
            "--input",
            "source",
            required=True,
            metavar="DIR",
            help="The folder to read, or an address such as s3://BUCKET/DIR.",
        ),
        click.option(
            "-o",
            "--output",
            "target",
            required=True,
            metavar="DIR",
            help="The folder to write, or an address such as s3://BUCKET/DIR.",
        ),
        click.option(
            "--shard",
            metavar="I/N",
            help="Do part I of N, counted from 0; parts are disjoint and the same on every machine. [default: all]",
        ),
        click.option("--dry-run", is_flag=True, help="Say how many files are to be done, and stop."),
    ]
    wrapped = ray_options(composing(run_job))
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


chunk_option = click.option(
    "--chunk",
    type=click.FloatRange(min=4),
    metavar="S",
    help="Share long clips out in spans of S seconds. [default: a clip in one piece]",
)


@batch.command()
@identity_option
@paste_option("--paste where the photo shows more than the head")
@controls_options
@face_option
@identity_face_option
@batching
def compose(identities: tuple[Path, ...], **options: Any) -> Job:
    """One person on every photo's pose, expression and light."""
    from ..batch.jobs import Compose

    return Compose(_absolute(identities), **options)


@batch.command()
@click.option(
    "--identity",
    "identities",
    type=FILE,
    required=True,
    metavar="DIR",
    help="The folder with a photo or identity file of each person.",
)
@paste_option("--crop")
@controls_options
@face_option
@identity_face_option
@batching
def pairs(identities: Path, paste: bool | None, **options: Any) -> Job:
    """On every photo the person of the same name in another folder."""
    from ..batch.jobs import Pairs

    return Pairs(identities.absolute(), paste=bool(paste), **options)


@batch.command()
@identity_option
@moving
@chunk_option
@identity_face_option
@batching
def video(identities: tuple[Path, ...], view: str | None, light: bool | None, **looks: Any) -> Job:
    """One person in every clip, with its sound."""
    from ..batch.jobs import Video
    from ..media.frame import pyav

    pyav()  # when it is missing, that is the one error, and nothing was begun
    return Video(_absolute(identities), view=view or "paste", light=bool(light), **looks)


@batch.command()
@hiding
@chunk_option
@batching
def deidentify(identities: tuple[Path, ...], **options: Any) -> Job:
    """Everybody replaced in every photo and clip.

    The verdict on each is in FILE.json. Exit code 3 also when somebody is still recognised.
    """
    from ..batch.jobs import Deidentify

    return Deidentify(identities=_absolute(identities), **options)


@batch.command()
@click.option(
    "--face",
    type=click.IntRange(min=1),
    metavar="N",
    help="Take face N of photos that show several, counted by size. [default: 1, the largest]",
)
@batching
def identify(face: int | None) -> Job:
    """An identity file (.npz) of every photo."""
    from ..batch.jobs import Identify

    return Identify(face)


def _absolute(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """Paths that mean the same in a worker elsewhere."""
    return tuple(path.absolute() for path in paths)


def _run(job: Job, settings: Settings, source: str, target: str, how: How) -> None:
    """Plan, do, and say what came of it."""
    from ..batch.jobs import with_people
    from ..batch.places import source_place, target_place
    from ..batch.run import Tally, make_plan, parse_shard, run
    from ..batch.worker import Setup
    from ..engines.machine import physical_cores

    part = None if how.shard is None else parse_shard(how.shard)
    inputs, results = source_place(source), target_place(target)
    plan = make_plan(job, inputs, results, settings.made_of(), part)
    tally = Tally(len(plan.tasks), matching=plan.matching)
    if how.dry_run or not plan.tasks:
        _finish(settings, tally, plan, [], target)
        return
    if settings.threads is None and how.ray is not None:
        settings = replace(settings, threads=max(1, int(how.cpus or 1)))
    elif settings.threads is None and how.workers is not None and how.workers > 1:
        settings = replace(settings, threads=max(1, physical_cores() // how.workers))
    if settings.bundle is not None:
        settings = replace(settings, bundle=settings.bundle.absolute())
    doing = _doing(Setup(with_people(job, settings), settings, inputs, results), settings, how)
    errors: list[str] = []
    with file_progress() as show:

        def watch(tally: Tally, line: Line) -> None:
            if line.error is not None and len(errors) < NAMED:
                errors.append(f"{line.input}: {line.error}")
            if line.fallback is not None:
                settings.tell_fallback(line.fallback)
            show(tally)

        run(plan.tasks, doing, results, part, tally, watch)
    _finish(settings, tally, plan, errors, target)


def _doing(setup: Setup, settings: Settings, how: How) -> Doing:
    """Where the files are done: here, in processes or on Ray; and long clips in spans where that is asked for."""
    from ..batch.on_ray import Cluster, work_on_ray
    from ..batch.processes import work_in_processes
    from ..batch.split import work_in_spans
    from ..batch.worker import work_here

    doing = partial(work_here, setup)
    if how.ray is not None:
        cluster = Cluster(how.ray, how.workers, how.cpus or settings.threads or 1, how.gpus)
        doing = partial(work_on_ray, setup, cluster=cluster)
    elif how.workers is not None and how.workers > 1:
        doing = partial(work_in_processes, setup, count=how.workers)
    if how.chunk is None:
        return doing
    return partial(work_in_spans, setup, doing=doing, seconds=how.chunk)


def _finish(settings: Settings, tally: Tally, plan: Plan, errors: list[str], target: str) -> None:
    """Say what was done, name what failed, and end with the exit code."""
    done, left = tally.done - tally.failed, tally.of - tally.done
    text = f"{done + plan.done} of {plan.files} files are done in {target}"
    text += f", {done} of them now, {rate_told(tally.rate)}" if done else ""
    text += f"; {left} to do" if left else f"; {tally.failed} failed" if tally.failed else ""
    record = {"files": plan.files, "before": plan.done, "done": done, "failed": tally.failed, "left": left}
    record |= {"output": target, "files_per_s": round(tally.rate, 3), "work_s": round(tally.work_s, 2)}
    if settings.as_json:
        click.echo(json.dumps({**record, "errors": errors, "still_matching": tally.matching}))
    else:
        click.echo(text)
    for error in errors:
        click.echo(f"fid-run: failed: {error}", err=True)
    if tally.failed > len(errors):
        click.echo(f"fid-run: {tally.failed - len(errors)} more failed; the manifest names them.", err=True)
    if tally.matching:
        click.echo(
            f"fid-run: somebody is still recognised in {tally.matching} files; do not publish those that the manifest "
            "names with still_matching before you have looked at them.",
            err=True,
        )
    if tally.failed or tally.matching:
        click.get_current_context().exit(SOME_FAILED)
