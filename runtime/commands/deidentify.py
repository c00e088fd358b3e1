"""`fid-run deidentify`: replace everybody in photos and videos, and say whether anybody is left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..errors import FidError, InputError
from ..terminal import counted
from .job_options import hiding
from .options import FILE, Settings, attempt, composing, finish, make_folder
from .progress import frame_progress

STILL_THERE = 3  # exit code when somebody still matches


@click.command()
@click.argument("source", type=FILE)
@click.option(
    "-o", "--output", type=FILE, required=True, help="What to write: a file for a file, a folder for a folder."
)
@hiding
@click.option(
    "--tracks",
    type=FILE,
    metavar="FILE.json",
    help="Take from this file who is where and what to do with whom, as --write-tracks wrote it and you edited it.",
)
@click.option("--write-tracks", type=FILE, metavar="FILE.json", help="Also write into this file who was found where.")
@click.option("--preview", type=FILE, metavar="FILE.png", help="Write a picture of who is found, and stop.")
@composing
def deidentify(
    settings: Settings,
    source: Path,
    output: Path,
    seed: int,
    identities: tuple[Path, ...],
    faces: str,
    unsure: str,
    mute: bool,
    allow_none: bool,
    tracks: Path | None,
    write_tracks: Path | None,
    preview: Path | None,
) -> None:
    """Replace every person of a photo, a video, or a folder of them.

    Whoever cannot be replaced is hidden by a mosaic. The report, in OUTPUT.json or in report.json of the folder, tells
    of every face whether recognisers still take it for the same person. Exit code 3 when one does.
    """
    from ..deidentify import track_file
    from ..deidentify.run import Options, open_worker, plan, summary
    from ..deidentify.track_file import read_tracks
    from ..files import replacing
    from ..media.frame import pyav
    from ..media.images import PICTURE_SUFFIXES, check_not_input, check_output, find_photos
    from ..media.video import VIDEO_INPUTS

    if source.is_dir() and (tracks or write_tracks or preview):
        raise InputError("--tracks, --write-tracks and --preview are for one file, not for a folder.")
    jobs, record = plan(source, output)
    if any(path.suffix.lower() in VIDEO_INPUTS for path, _ in jobs):
        pyav()  # when it is missing, that is the one error, and nothing was begun
    people = find_photos(identities, (".npz",)) if identities else []
    inputs = [source, *people, *([tracks] if tracks else [])]
    for path, suffixes in ((write_tracks, (".json",)), (preview, PICTURE_SUFFIXES)):
        if path is not None:
            check_output(path, suffixes, inputs)
    for path in (*(made for _, made in jobs), record):
        check_not_input(path, inputs)
    known = None if tracks is None else read_tracks(tracks)
    if source.is_dir():
        make_folder(output)
    composer = settings.composer()
    given = tuple(map(composer.identify, people))
    note = settings.note(composer, "deidentification", with_photos=True)
    options = Options(seed, faces, unsure, mute, allow_none, given, write_tracks)
    worker = open_worker(composer, options, note=note, progress=frame_progress)
    settings.tell_fallbacks(composer)
    if preview is not None:
        found = worker.preview(source, preview, known)
        if write_tracks is not None:
            track_file.write_tracks(write_tracks, found, {})
        found_text = f"{counted(len(found), 'face')} found, whoever comes back counted again"
        return click.echo(f"{preview}: {found_text}; nothing else was written.")
    done, failed = attempt("files", jobs, lambda job: worker.file(job[0], job[1], known), FidError)
    if not done:
        finish(failed)
    report = {**summary(done), "failed": failed}
    with replacing(record) as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n")
    settings.report(composer, _told(report, output, record), report=record, **report)
    finish(failed)
    if report["still_matching"]:
        click.echo(f"fid-run: {_left(report)}", err=True)
        click.get_current_context().exit(STILL_THERE)


def _told(report: dict[str, Any], output: Path, record: Path) -> str:
    """What was done and what the verdict is, in a sentence or two."""
    text = f"{output}: {counted(report['people'], 'person', 'people')} replaced in "
    text += f"{counted(report['replaced'], 'place')}, {report['hidden']} hidden"
    text += f", {report['unsure']} unsure; " if report["unsure"] else "; "
    text += f"faces still recognised: {report['still_matching']}, gone: {report['gone']}, "
    text += f"unknown (the original is not recognised either): {report['unknown']}"
    text += f"; by {' and '.join(report['recognisers'])}" if report["recognisers"] else ""
    if report["cosine_before"] is not None and report["cosine_after"] is not None:
        text += f" (mean cosine {report['cosine_before']} before, {report['cosine_after']} after; "
        text += f"{report['match_above']} and more is a match)"
    missing = sum(file.get("missing", 0) for file in report["files"])
    text += f"; videos are damaged, frames missing: {missing}" if missing else ""
    return f"{text}; see {record}"


def _left(report: dict[str, Any]) -> str:
    """Who is still there, in a sentence."""
    places = []
    for file in report["files"]:
        faces = [face for face in file["verdict"]["faces"] if face["verdict"] == "matches"]
        frames = [span for face in faces for span in face["still_matching_frames"]] + file["verdict"]["missed_frames"]
        if frames:
            shown = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in sorted(frames)[:8])
            places.append(f"{file['output']} (frames {shown}{' ...' if len(frames) > 8 else ''})")
    return f"somebody is still recognised in {'; '.join(places)}; do not publish it before you have looked at these."
