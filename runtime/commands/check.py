"""`fid-run check`: does a picture or video say that fid made it?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import FILE, attempt, json_line, json_option

if TYPE_CHECKING:
    from ..read_labels import Labels


@click.command()
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option(
    "--quick",
    is_flag=True,
    help="Look for the mark only at the size that the file has: faster, and blind to resized pictures.",
)
@json_option
def check(files: tuple[Path, ...], quick: bool, as_json: bool) -> None:
    """Say of pictures and videos whether they are fid's: by signed credentials, note, and invisible mark.

    Exit code 0 when every file is, 1 when one is not, 2 when one cannot be read.
    """
    from ..read_labels import check_labels

    done, failed = attempt("files", files, lambda path: check_labels(path, sizes=not quick))
    if as_json:
        click.echo(json_line([labels.report() for labels in done]))
    else:
        for labels in done:
            click.echo(_sentence(labels))
    for sentence in failed:
        click.echo(f"fid-run: {sentence}", err=True)
    if failed or not all(labels.by_fid for labels in done):
        click.get_current_context().exit(2 if failed else 1)


def _sentence(labels: Labels) -> str:
    """What was found in one file, in a line."""
    own = labels.credentials
    if own is None:
        signed = "not looked for (pip install 'fid-face[c2pa]')" if labels.unchecked else "none"
    else:
        signed = f"{own.state}, by {own.generator or 'an unknown program'}, signed by {own.signer or 'nobody named'}"
    note = f"{labels.note.kind}, bundle {labels.note.bundle}" if labels.note else "none"
    mark = f"{'found' if labels.mark.marked else 'none'} ({labels.mark.sigma:.1f} sigma)"
    verdict = "made by fid" if labels.by_fid else "nothing says that fid made it"
    return f"{labels.path}: {verdict}; credentials: {signed}; note: {note}; mark: {mark}"
