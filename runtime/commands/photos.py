"""The commands of `fid-run` that take photos: compose, grid, pairs, interpolate, sample, demo."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..assets import shipped_faces
from ..errors import InputError
from ..terminal import counted
from ..timing import Timings, collect_timings
from .job_options import controls_options, paste_option
from .options import (
    FILE,
    Settings,
    attempt,
    composing,
    expand,
    face_option,
    finish,
    identity_face_option,
    identity_option,
    make_folder,
)
from .progress import progress_of

if TYPE_CHECKING:
    import numpy as np

    from ..composer import Composer
    from ..controls import Controls

from ..looks import Look, by_stem, compose_cells, labels, look_at_attributes, look_at_identity, table_of

STRIP_STEPS, ANIMATION_STEPS = 7, 48


@click.command()
@identity_option
@click.option("--attributes", type=FILE, required=True, help="The photo that gives pose, expression and light.")
@click.option("-o", "--output", type=FILE, required=True, help="The picture to write: PNG, JPEG or WebP.")
@click.option(
    "--save-identity",
    type=FILE,
    metavar="FILE.npz",
    help="Also write the identity as a file that can be given as --identity later, without any photo in it.",
)
@paste_option("--paste where the photo shows more than the head")
@controls_options
@face_option
@identity_face_option
@composing
def compose(
    settings: Settings,
    identities: tuple[Path, ...],
    attributes: Path,
    output: Path,
    save_identity: Path | None,
    paste: bool | None,
    mask: str,
    controls: Controls,
    face: int | None,
    identity_face: int | None,
) -> None:
    """Compose one picture. Several identity photos are averaged: a steadier identity."""
    from ..identity import SUFFIX, average
    from ..media.images import check_output, write_image

    given = expand(identities)
    inputs = [*given, attributes]
    check_output(output, inputs=inputs)
    if save_identity is not None:
        check_output(save_identity, (SUFFIX,), inputs)
    composer = settings.composer()
    with collect_timings() as ms:
        who = composer.set_identity(average([composer.identify(photo, identity_face) for photo in identities]))
        image = composer.compose(attributes, face, paste=paste, mask=mask, controls=controls)
    pasted = "paste" in ms
    inputs = [path for path in inputs if path.suffix.lower() != SUFFIX]
    write_image(output, image, settings.note(composer, "composition", pasted, inputs=inputs))
    if save_identity is not None:
        who.save(save_identity)
    what = f"{image.shape[1]} x {image.shape[0]} px, the head replaced" if pasted else f"{composer.resolution} px"
    text = f"{output} ({what}, {_face_ms(ms):.0f} ms on {composer.provider})"
    settings.report(composer, text, output=output, ms=ms, identity_file=save_identity, pasted=pasted)


@click.command()
@click.option(
    "--identities",
    type=FILE,
    multiple=True,
    required=True,
    help="Who stands on top: a folder of photos or identity files, or one file; may be repeated.",
)
@click.option(
    "--attributes",
    type=FILE,
    multiple=True,
    required=True,
    help="Whose pose, expression and light stand on the left: a folder of photos, or one photo; may be repeated.",
)
@click.option("-o", "--output", type=FILE, required=True, help="The table to write: PNG, JPEG or WebP.")
@click.option(
    "--files", type=FILE, metavar="DIR", help="Also write every cell into this folder, as IDENTITY--ATTRIBUTES.png."
)
@paste_option("--crop")
@controls_options
@face_option
@identity_face_option
@composing
def grid(
    settings: Settings,
    identities: tuple[Path, ...],
    attributes: tuple[Path, ...],
    output: Path,
    files: Path | None,
    paste: bool | None,
    mask: str,
    controls: Controls,
    face: int | None,
    identity_face: int | None,
) -> None:
    """Compose a table: identities on top, attributes on the left."""
    from ..identity import SUFFIX
    from ..media.images import check_not_input, check_output, find_photos, write_image

    top, left = find_photos(identities, (SUFFIX,)), find_photos(attributes)
    inputs = [*top, *left]
    check_output(output, inputs=inputs)
    make_folder(files)
    composer = settings.composer()
    tops, failed = attempt("identities", top, lambda path: look_at_identity(composer, path, identity_face))
    looks = face, bool(paste), controls
    lefts, failed_left = attempt("attributes", left, lambda path: look_at_attributes(composer, path, *looks))
    failed += failed_left
    if not tops or not lefts:
        finish(failed)
    top_names, left_names = labels([one.path for one in tops]), labels([one.path for one in lefts])
    with collect_timings() as ms:
        cells = _composed(composer, tops, lefts, mask)
    table = table_of(tops, lefts, cells, top_names, left_names)
    write_image(output, table, settings.note(composer, "grid", with_photos=True))
    written = []
    if files is not None:
        for attribute, row in zip(left_names, cells, strict=True):
            for identity, cell in zip(top_names, row, strict=True):
                written.append(files / f"{identity}--{attribute}.png")
                check_not_input(written[-1], inputs)
                write_image(written[-1], cell, settings.note(composer, "composition", bool(paste)))
    each_ms = _face_ms(ms) / (len(tops) * len(lefts))
    size = f"{counted(len(tops), 'person', 'people')} x {counted(len(lefts), 'photo')}"
    text = f"{output} ({size}, {each_ms:.0f} ms each on {composer.provider})"
    text += f", and {counted(len(written), 'file')} in {files}" if files is not None else ""
    settings.report(composer, text, output=output, files=written, failed=failed)
    finish(failed)


@click.command()
@click.option(
    "--identities",
    type=FILE,
    required=True,
    metavar="DIR",
    help="The folder with a photo or identity file of each person.",
)
@click.option(
    "--attributes",
    type=FILE,
    required=True,
    metavar="DIR",
    help="The folder with photos of the same names that give pose, expression and light.",
)
@click.option(
    "-o", "--output", type=FILE, required=True, metavar="DIR", help="The folder that gets a PNG for each pair."
)
@paste_option("--crop")
@controls_options
@face_option
@identity_face_option
@composing
def pairs(
    settings: Settings,
    identities: Path,
    attributes: Path,
    output: Path,
    paste: bool | None,
    mask: str,
    controls: Controls,
    face: int | None,
    identity_face: int | None,
) -> None:
    """Compose photos of the same name in two folders; what has no partner is named at the end."""
    from ..identity import SUFFIX
    from ..media.images import check_not_input, find_photos, write_image

    for folder in (identities, attributes):
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder; pairs are matched between the files of two folders.")
    who, what = by_stem(find_photos([identities], (SUFFIX,))), by_stem(find_photos([attributes]))
    matched = [name for name in who if name in what]
    alone = [str(who.get(name) or what[name]) for name in sorted(who.keys() ^ what.keys())]
    if not matched:
        raise InputError(f"no file in {identities} has the name of one in {attributes}, so there are no pairs.")
    make_folder(output)
    inputs = [*who.values(), *what.values()]
    for name in matched:
        check_not_input(output / f"{name}.png", inputs)
    composer = settings.composer()

    def compose_pair(name: str) -> Path:
        composer.set_identity(composer.identify(who[name], identity_face))
        path = output / f"{name}.png"
        image = composer.compose(what[name], face, paste=bool(paste), mask=mask, controls=controls)
        write_image(path, image, settings.note(composer, "composition", bool(paste)))
        return path

    with collect_timings() as ms:
        written, failed = attempt("pairs", matched, compose_pair)
    done = f"{len(written)} of {counted(len(matched), 'pair')} in {output}"
    text = f"{done} ({_face_ms(ms) / len(written):.0f} ms each on {composer.provider})" if written else done
    text += "".join(f"\n  without a partner: {path}" for path in alone)
    settings.report(composer, text, files=written, without_partner=alone, failed=failed)
    finish(failed)


@click.command()
@click.option(
    "--identity",
    "identities",
    type=FILE,
    multiple=True,
    required=True,
    help="A photo, identity file, or folder of one person; give two to go from one to the other.",
)
@click.option(
    "--attributes",
    type=FILE,
    multiple=True,
    required=True,
    help="A photo that gives pose, expression and light; give two to go from one to the other.",
)
@click.option(
    "-o",
    "--output",
    type=FILE,
    required=True,
    help="What to write, by its ending: a strip (PNG, JPEG, WebP) or an animation (GIF, MP4).",
)
@click.option(
    "--space",
    type=click.Choice(["w", "z"]),
    default="w",
    show_default=True,
    help="Go through W, the generator's space, or through the two codes before it, z.",
)
@click.option(
    "--steps",
    type=click.IntRange(2, 1000),
    metavar="N",
    help=f"Pictures from one end to the other. [default: {STRIP_STEPS} in a strip, {ANIMATION_STEPS} in an animation]",
)
@click.option(
    "--fps", type=click.FloatRange(1, 60), default=25.0, show_default=True, help="Pictures a second of an animation."
)
@paste_option("--crop")
@controls_options
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
    paste: bool | None,
    mask: str,
    controls: Controls,
    face: int | None,
    identity_face: int | None,
) -> None:
    """Go from one photo to another, as a strip or animation.

    Either the attributes change and the identity stays (one --identity, two --attributes), or the other way round.
    """
    from ..interpolate import ANIMATION_SUFFIXES, OUTPUT_SUFFIXES, check_numbers, write_interpolation
    from ..interpolate import interpolate as interpolate_between
    from ..media.images import check_output

    check_output(output, OUTPUT_SUFFIXES, [*identities, *attributes])
    check_numbers(len(identities), len(attributes))
    if paste and len(attributes) > 1:
        raise InputError("--paste needs one attribute photo: there is no photo between two to paste into.")
    animated = output.suffix.lower() in ANIMATION_SUFFIXES
    steps = steps or (ANIMATION_STEPS if animated else STRIP_STEPS)
    composer = settings.composer()
    who = [look_at_identity(composer, path, identity_face) for path in identities]
    what = [look_at_attributes(composer, path, face, bool(paste), controls) for path in attributes]
    people = [one.identity for one in who if one.identity is not None]
    codes = [one.attributes for one in what if one.attributes is not None]
    way, home = interpolate_between(composer, people, codes, steps, space), what[0].home
    if home is not None:
        way = (home.with_head(composer, frame, mask) for frame in way)
    frames = list(progress_of("interpolating", way, steps))
    moving = [one.crop for one in (who if len(who) == 2 else what)]
    ends = [] if animated else [crop for crop in moving if crop is not None]
    note = settings.note(composer, "interpolation", with_photos=bool(ends) or bool(paste))
    write_interpolation(output, frames, ends if len(ends) == 2 else (), frames_per_second=fps, note=note)
    text = f"{output} ({steps} steps in {space}, {composer.resolution} px, on {composer.provider})"
    settings.report(composer, text, output=output, steps=steps, space=space)


@click.command()
@click.option("-n", "--count", type=click.IntRange(min=1), default=1, show_default=True, help="How many people.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    help="The first person's number; the same number is the same person. [default: a random one]",
)
@click.option(
    "--psi",
    type=click.FloatRange(0, 1.5),
    default=0.8,
    show_default=True,
    help="Variety: 0 draws the mean face, 1 as different people as there are.",
)
@click.option(
    "-o", "--output", type=FILE, required=True, metavar="DIR", help="The folder that gets person-NUMBER.png and .npz."
)
@composing
def sample(settings: Settings, count: int, seed: int | None, psi: float, output: Path) -> None:
    """Draw people who do not exist.

    Writes pictures, and identity files that can be used in place of a photo.
    """
    import secrets

    from ..media.images import write_image
    from ..sample import Sampler

    make_folder(output)
    composer = settings.composer()
    sampler = Sampler(composer, psi)
    first = secrets.randbelow(10**6) if seed is None else seed
    written = []
    for number in progress_of("drawing", range(first, first + count), count):
        image, identity = sampler.person(number)
        write_image(output / f"person-{number}.png", image, settings.note(composer, "sample"))
        identity.save(output / f"person-{number}.npz")
        written.append(output / f"person-{number}.png")
    text = (
        f"{counted(count, 'person', 'people')} in {output}, from --seed {first} (psi {psi:g}, on {composer.provider})"
    )
    settings.report(composer, text, files=written, seed=first, psi=psi)


@click.command()
@click.option(
    "--photos",
    type=FILE,
    multiple=True,
    help="Your own photos, a folder or one file, may be repeated: one HTML page of what fid does with them. "
    "[default: a table of faces that ship with fid]",
)
@click.option(
    "-o", "--output", type=FILE, help="What to write. [default: fid-demo.png, or fid-demo.html with --photos]"
)
@identity_face_option
@composing
def demo(settings: Settings, photos: tuple[Path, ...], output: Path | None, identity_face: int | None) -> None:
    """Compose a table from faces that ship with fid, or a page from your own photos."""
    if photos:
        _write_gallery(settings, photos, output or Path("fid-demo.html"), identity_face)
    else:
        _write_demo(settings, output or Path("fid-demo.png"))


def _write_gallery(settings: Settings, photos: tuple[Path, ...], output: Path, face: int | None) -> None:
    """Write one HTML page with a table, an interpolation, a turn and a de-identified photo."""
    from ..gallery.draw import MOST_PEOPLE, sections
    from ..gallery.page import page
    from ..media.images import check_output, find_photos, replacing

    found = find_photos(photos)
    check_output(output, (".html", ".htm"), found)
    composer = settings.composer()
    start = time.perf_counter()
    people, failed = attempt("photos", found[:MOST_PEOPLE], lambda path: look_at_identity(composer, path, face))
    if not people:
        finish(failed)
    parts = sections(composer, people, lambda kind, with_photos: settings.note(composer, kind, with_photos))
    body = list(progress_of("drawing", parts, 4))
    told = f"{counted(len(people), 'photo')} of yours"
    told += f", the first of {len(found)}" if len(found) > len(people) + len(failed) else ""
    words = f"Made from {told}. Every picture here is synthetic and says so. The line below each is the command for it."
    with replacing(output) as temporary:
        temporary.write_text(page("What fid does with your photos", words, body), encoding="utf-8")
    seconds = time.perf_counter() - start
    text = f"{output.absolute()}\n{told}, in {seconds:.0f} s on {composer.provider}; open it in a browser"
    settings.report(composer, text, output=output.absolute(), photos=[one.path for one in people], failed=failed)
    finish(failed)


def _write_demo(settings: Settings, output: Path) -> None:
    from ..media.images import check_output, write_image

    check_output(output)
    composer = settings.composer()
    top, left = (list(shipped_faces(kind).values()) for kind in ("identity", "attributes"))
    tops = [look_at_identity(composer, path) for path in progress_of("identities", top, len(top))]
    with collect_timings() as encoding:
        lefts = [look_at_attributes(composer, path) for path in progress_of("attributes", left, len(left))]
    start = time.perf_counter()
    cells = _composed(composer, tops, lefts)
    count = len(tops) * len(lefts)
    face_ms = 1e3 * (time.perf_counter() - start) / count + encoding["attributes"] / len(lefts)
    names = [[one.path.stem.partition("-")[2] for one in side] for side in (tops, lefts)]
    write_image(output, table_of(tops, lefts, cells, *names), settings.note(composer, "grid", with_photos=True))
    text = f"{output.absolute()}\n{counted(count, 'face')} of {composer.resolution} px at {face_ms:.0f} ms a face"
    text += f" (encode attributes, map, generate), on {composer.provider}"
    settings.report(composer, text, output=output.absolute(), faces=count, ms_per_face=round(face_ms, 2))


def _composed(
    composer: Composer, tops: Sequence[Look], lefts: Sequence[Look], mask: str = "head"
) -> list[list[np.ndarray]]:
    """Compose every cell of a table, with a progress bar: [attributes][identities] of `looks.compose_cells`."""
    count = len(tops) * len(lefts)
    cells = list(progress_of("composing", compose_cells(composer, tops, lefts, mask), count))
    return [cells[start : start + len(tops)] for start in range(0, count, len(tops))]


def _face_ms(ms: Timings) -> float:
    """Return the ms from aligned crops to pictures: attribute encoder, mapper and generator."""
    return sum(ms.get(stage, 0.0) for stage in ("attributes", "mapper", "synthesis"))
