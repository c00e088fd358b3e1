"""The commands of `fid-run` that take moving pictures: webcam, video."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError
from .job_options import moving
from .options import (
    FILE,
    Settings,
    columns,
    composing,
    expand,
    identity_face_option,
    json_line,
)
from .progress import duration, frame_progress

if TYPE_CHECKING:
    from ..composer import Composer
    from ..controls import Controls
    from ..identity import Identity
    from ..live.casting import Casting
    from ..live.closer import Closer
    from ..live.crowd import Cast, Crowd
    from ..live.film import Film
    from ..live.layout import Reenactment, Wishes
    from ..live.reenact import Reenactor
    from ..live.webcam import Webcam
    from ..media.video import Clip

IMPORTED_S = time.perf_counter()  # about when the process began, where the system tells nothing better


def casting_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say who becomes whom, besides `--identity`."""
    options = [
        click.option(
            "--who",
            multiple=True,
            metavar="WHO.jpg=ANN.jpg",
            help="Whoever looks like the person of WHO.jpg becomes the one of ANN.jpg; repeatable.",
        ),
        click.option(
            "--face",
            type=click.IntRange(min=1),
            metavar="N",
            help="Replace person N alone, counted in the order of appearance and by size. [default: the largest face]",
        ),
        click.option(
            "--faces", type=click.Choice(["largest", "all"]), help="Replace everybody. [default: the largest face]"
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.option(
    "--identity",
    "identities",
    type=FILE,
    multiple=True,
    metavar="FILE[@N]",
    help="A photo, identity file, or folder of photos of a person; repeat for more people, who are on the keys 1 to 9. "
    "FILE@N: for person N before the camera.",
)
@casting_options
@click.option(
    "--camera",
    default="0",
    show_default=True,
    metavar="N|NAME|FILE",
    help="The camera, by number or name as --list says, or a video file that plays one.",
)
@click.option("--list", "list_only", is_flag=True, help="List the cameras and stop.")
@click.option("--mirror", is_flag=True, help="Swap left and right of what is shown.")
@click.option(
    "--size", metavar="WxH", help="Ask the camera for this size, such as 1280x720. [default: the camera's own]"
)
@click.option(
    "--fps-cap",
    type=click.FloatRange(min=1),
    metavar="N",
    help="Show at most N pictures a second. [default: as many as can be]",
)
@moving
@click.option(
    "--record",
    type=FILE,
    metavar="FILE.mp4",
    help="Record what is shown, without the figures over it: MP4, MOV or MKV.",
)
@click.option("--vcam", is_flag=True, help="Send what is shown to a virtual camera, for video calls.")
@click.option("--headless", is_flag=True, help="Open no window; Ctrl-C ends it.")
@click.option(
    "--duration",
    type=click.FloatRange(min=0.1),
    metavar="S",
    help="Stop after S seconds. [default: when the window is closed]",
)
@identity_face_option
@composing
def webcam(
    settings: Settings,
    identities: tuple[Path, ...],
    who: tuple[str, ...],
    face: int | None,
    faces: str | None,
    camera: str,
    list_only: bool,
    mirror: bool,
    size: str | None,
    fps_cap: float | None,
    view: str | None,
    smooth: float,
    no_face: str,
    mask: str,
    controls: Controls,
    light: bool | None,
    badge: bool,
    record: Path | None,
    vcam: bool,
    headless: bool,
    duration: float | None,
    identity_face: int | None,
) -> None:
    """Compose what a camera sees, live.

    Press h in the window for its keys. A file in the place of a camera is played at its own speed.
    """
    start = time.perf_counter()
    if list_only:
        _list_cameras(settings.as_json)
        return
    if not (identities or who):
        raise click.UsageError("Missing option '--identity'.")
    width, height = _parse_size(size)
    with _no_cycles_looked_for():
        casting, source, composer = _begin(settings, (identities, who, face, faces), camera, record, vcam)
        from ..engines.open import on_cpu
        from ..live.layout import Wishes  # while sessions open
        from ..live.webcam import Sinks, Webcam
        from ..media.camera import Camera

        reenactor, people, cast, closer = _get_ready(settings, composer, casting, identity_face, light, mask)
    wishes = Wishes(people[0], view or "paste", no_face, smooth, mirror, badge, mask, controls)
    work, people = _work_of(reenactor, wishes, people, cast)
    show = Webcam(
        Camera(source, width=width, height=height, fps=fps_cap, again=duration is not None, notice=_say),
        work,
        people,
        Sinks(not headless, record, vcam),
        fps_cap=fps_cap,
        note=lambda kind, view: settings.note(composer, kind, with_photos=view != "result-only"),
        say=_say,
        closer=closer,
    )

    def ready() -> None:
        composer.wait_for_frames(light=reenactor.light)  # no run that nobody sees: the first frame is sooner there
        settings.tell_fallbacks(composer)

    if not on_cpu(settings.engine):
        ready()  # a GPU's engine may be built for minutes, and no camera runs meanwhile
    show.run(duration, ready)
    _tell(settings, show, work, start, record)


def _work_of(
    reenactor: Reenactor, wishes: Wishes, people: list[Identity], cast: Cast | None
) -> tuple[Reenactment | Crowd, list[Identity]]:
    """What composes the frames, and who is on the keys: nobody where several people are replaced."""
    from ..live.crowd import Crowd
    from ..live.layout import Reenactment

    if cast is None:
        return Reenactment(reenactor, wishes), people
    return Crowd(reenactor.composer, cast, wishes, light=reenactor.light), []


@contextmanager
def _no_cycles_looked_for() -> Iterator[None]:
    """Python's search for cycles of objects, put off: a start makes many, and none that matters; 30 to 50 ms."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _begin(
    settings: Settings, who: tuple[Any, ...], camera: str, record: Path | None, vcam: bool
) -> tuple[Casting, int | Path, Composer]:
    """Check what was asked for, and only then begin to open sessions; returns who becomes whom (`who` is for
    `Casting.parse`), the camera or the file that is meant, and the composer."""
    from ..engines.machine import share_freed_memory
    from ..live.casting import Casting
    from ..media.camera_list import find_camera

    casting = Casting.parse(*who)
    if record is not None:  # before a camera is looked for or anything is loaded
        _check_record(record, [*expand(casting.photos), *([Path(camera)] if Path(camera).is_file() else [])])
    source = find_camera(camera)
    if vcam:
        from ..live.webcam import virtual_cameras

        virtual_cameras()  # before the models are loaded, who has none learns of it
    share_freed_memory()
    composer = settings.composer()
    composer.open_ahead()
    if isinstance(source, Path):
        from ..media.frame import pyav_ahead

        pyav_ahead()
    return casting, source, composer


def _check_record(record: Path, inputs: list[Path]) -> None:
    """`InputError` or `FidError` where a recording cannot be made, or would take the place of an input."""
    from ..media.images import check_output
    from ..media.video import VIDEO_SUFFIXES, pyav

    pyav()
    check_output(record, VIDEO_SUFFIXES, inputs)


def _say(sentence: str) -> None:
    click.echo(f"fid-run: {sentence}", err=True)


def _tell(settings: Settings, show: Webcam, work: Reenactment | Crowd, start: float, record: Path | None) -> None:
    """Report on a camera's run that began at `start`, as `time.perf_counter`."""
    from ..live.crowd import Crowd
    from ..live.webcam import process_age_s, resident_mb

    composer, report = work.composer, show.report()
    text = f"{report['frames']} pictures at {report['fps']:.1f} a second on {composer.provider}, frame age p50 "
    text += "{p50:.0f}, p95 {p95:.0f}, p99 {p99:.0f} ms".format(**report["frame_age_ms"])
    text += f"; {work.summary()}" if isinstance(work, Crowd) else ""
    more: dict[str, Any] = {"generator": "light" if work.light else "full"}
    now = time.perf_counter()
    first_s = process_age_s(now - IMPORTED_S) - (now - show.live.first_s) if show.live.first_s else None
    more |= {"ready_s": round(show.live.started_s - start, 2), "first_frame_s": first_s and round(first_s, 2)}
    more["resident_mb"] = round(resident_mb(), 1)
    settings.report(composer, text, **report, **more, record=record)


def _get_ready(
    settings: Settings, composer: Composer, casting: Casting, identity_face: int | None, light: bool | None, mask: str
) -> tuple[Reenactor, list[Identity], Cast | None, Closer | None]:
    """Return a reenactor whose sessions are still opening, everybody who is to be composed, who becomes whom, and what
    looks closer at the photos, where that is still to be done."""
    from ..live.closer import Closer
    from ..live.reenact import Reenactor

    reenactor = Reenactor(composer, light=light)
    composer.open_ahead(light=reenactor.light, parts=mask != "square")
    cast = casting.cast(composer, identity_face) if casting.several else None
    closer = None
    if cast is None:
        people = [composer.identify(photo, identity_face, refine=False) for photo in casting.everybody]
        if composer.rounds:
            closer = Closer(composer, casting.everybody, identity_face)
        composer.close_identity()
    else:
        people = list(cast.identities)
    return reenactor, people, cast, closer


@click.command()
@click.option(
    "--identity",
    "identities",
    type=FILE,
    multiple=True,
    metavar="FILE[@N]",
    help="A photo of the person, an identity file (.npz), or a folder of their photos; may be repeated, and all are "
    "averaged. FILE@N: for person N of the clip.",
)
@casting_options
@click.option("--driving", type=FILE, required=True, help="The video that gives pose, expression and light.")
@click.option("-o", "--output", type=FILE, required=True, help="The video to write: MP4, MOV or MKV.")
@click.option(
    "--trim", metavar="A:B", help="Take only second A to second B; either may be left out. [default: all of it]"
)
@click.option(
    "--preview",
    type=FILE,
    metavar="FILE.png",
    help="Write five frames and what becomes of them as one picture, say how long all of it will take, and stop.",
)
@moving
@identity_face_option
@composing
def video(
    settings: Settings,
    identities: tuple[Path, ...],
    who: tuple[str, ...],
    face: int | None,
    faces: str | None,
    driving: Path,
    output: Path,
    trim: str | None,
    preview: Path | None,
    view: str | None,
    smooth: float,
    no_face: str,
    mask: str,
    controls: Controls,
    light: bool | None,
    badge: bool,
    identity_face: int | None,
) -> None:
    """Compose a whole video, with its sound.

    A run that was stopped goes on where it was when the same command is given again.
    """
    from ..live.casting import Casting
    from ..live.crowd import Crowd
    from ..live.film import Film
    from ..live.layout import Wishes
    from ..media.images import check_output
    from ..media.video import VIDEO_SUFFIXES, open_clip, parse_trim

    if not (identities or who):
        raise click.UsageError("Missing option '--identity'.")
    casting = Casting.parse(identities, who, face, faces)
    inputs = [driving, *expand(casting.photos)]
    check_output(output, VIDEO_SUFFIXES, inputs)
    if preview is not None:
        check_output(preview, inputs=inputs)
    span = parse_trim(trim) if trim is not None else (0.0, None)
    clip = open_clip(driving)
    composer = settings.composer()
    cast = casting.cast(composer, identity_face) if casting.several else None
    person = casting.person(composer, identity_face) if cast is None else cast.identities[0]
    wishes = Wishes(person, view or "paste", no_face, smooth, badge=badge, mask=mask, controls=controls)
    film = Film(composer, wishes, light=bool(light), cast=cast)
    film.warm_up()
    settings.tell_fallbacks(composer)
    note = settings.note(composer, "reenactment", with_photos=wishes.view != "result-only")
    if preview is not None:
        return _preview(settings, film, clip, span, preview)
    total = max(1, round(min((span[1] or 1e9) - span[0], clip.frames / clip.fps - span[0]) * clip.fps))
    start, work = time.perf_counter(), film.reenactment()
    with frame_progress(driving.name, total) as tick:
        frames, missing = film.write(clip, output, trim=span, note=note, tick=tick, work=work)
    fps = frames / max(time.perf_counter() - start, 1e-9)
    text = f"{output} ({frames} frames, {fps:.1f} a second, on {composer.provider})"
    text += f"; {work.summary()}" if isinstance(work, Crowd) else ""
    text += f"; {driving} is damaged, frames missing: {missing}" if missing else ""
    report = {"output": output, "frames": frames, "missing": missing, "fps": round(fps, 2), "sound_tracks": clip.sound}
    report |= {"people": work.people} if isinstance(work, Crowd) else {}
    settings.report(composer, text, **report)


def _preview(settings: Settings, film: Film, clip: Clip, trim: tuple[float, float | None], output: Path) -> None:
    """Write a picture of what a clip will look like, and say how long it will take."""
    from ..live.film import PREVIEWED
    from ..media.images import write_image

    with frame_progress(clip.path.name, PREVIEWED) as tick:
        found = film.preview(clip, trim, tick)
    write_image(output, found.image, settings.note(film.composer, "reenactment", with_photos=True))
    text = f"{output}: what becomes of frames from all over {clip.path}; all {found.frames} will take about "
    text += f"{duration(found.seconds)} on {film.composer.provider}; nothing else was written"
    settings.report(film.composer, text, preview=output, frames=found.frames, seconds=found.seconds)


def _list_cameras(as_json: bool) -> None:
    """Print the cameras of this machine, one a line or as JSON."""
    from ..media.camera_list import describe_cameras, list_cameras

    cameras = list_cameras()
    as_text = columns((str(c.index), c.name, c.backend) for c in cameras) if cameras else [describe_cameras([])]
    click.echo(json_line([vars(c) for c in cameras]) if as_json else "\n".join(as_text))


def _parse_size(text: str | None) -> tuple[int | None, int | None]:
    """ "1280x720" as width and height in px; neither without a text."""
    if text is None:
        return None, None
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise InputError(f"--size {text} is not understood; give WIDTHxHEIGHT, such as 1280x720.")
    return int(width), int(height)
