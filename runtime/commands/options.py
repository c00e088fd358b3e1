"""What the commands of `fid-run` share: their options, how they end, and what they show while they work."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..engines.table import ENGINES, is_remote
from ..errors import FidError, InputError

if TYPE_CHECKING:
    from ..composer import Composer
    from ..labels.credentials import Signer
    from ..labels.provenance import Note

from .progress import T, progress_of

FILE = click.Path(path_type=Path)


class EngineChoice(click.Choice[str]):
    """One of the engines, or the address of a Triton server."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """See `click.Choice.convert`."""
        return value if isinstance(value, str) and is_remote(value) else super().convert(value, param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Return what the help shows: all names would fill five lines."""
        return "NAME|triton://HOST:PORT"


ENGINE_HELP = f"What computes: {', '.join(ENGINES)}, or a Triton server."


@dataclass(frozen=True)
class Settings:
    """The options that all composing commands share."""

    bundle: Path | None  # None: the bundle that ships with fid
    engine: str  # see session.open_session
    require: str | None  # see session.open_session
    threads: int | None  # None: one per physical core
    resolution: int | None  # px; None: the bundle's own
    refine: int | None  # rounds that look closer at each identity photo; None: the composer's default
    provenance: bool  # put a note into every file
    mark: bool  # put an invisible mark into every picture
    sign_cert: Path | None  # the user's certificate and key: sign every file
    sign_key: Path | None
    as_json: bool  # print the result as JSON
    told: list[str] = field(default_factory=list)  # what `tell_fallbacks` has said
    signers: list[Signer] = field(default_factory=list)  # the one that was opened

    def composer(self) -> Composer:
        """Open the bundle."""
        from ..composer import Composer

        options = {"engine": self.engine, "require": self.require, "threads": self.threads}
        return Composer(self.bundle, resolution=self.resolution, refine=self.refine, **options)

    def made_of(self) -> dict[str, Any]:
        """Return what every result depends on, as JSON holds it; nothing is opened for it. Not the engine: what is done
        on one machine stays done on another."""
        from ..weights.bundle import Bundle

        labels = [self.provenance, self.mark, self.sign_cert is not None]
        made_of = {"bundle": Bundle.load(self.bundle).to_json(), "resolution": self.resolution}
        return made_of | {"refine": self.refine, "labels": labels}

    def note(
        self, composer: Composer, kind: str, with_photos: bool = False, inputs: Sequence[Path] = ()
    ) -> Note | None:
        """Return what the files say about themselves; `with_photos` when they show the input photos as well. `inputs`
        are named in what is signed."""
        from ..labels.provenance import MADE_BY_ALGORITHM, PART_BY_ALGORITHM

        signer = self._signer()
        if not (self.provenance or self.mark or signer):
            return None
        note = composer.note(kind, PART_BY_ALGORITHM if with_photos else MADE_BY_ALGORITHM)
        return replace(note, packet=self.provenance, mark=self.mark, signer=signer, inputs=tuple(inputs))

    def _signer(self) -> Signer | None:
        from ..labels.credentials import Signer

        if self.sign_cert is None or self.sign_key is None:
            if self.sign_cert is not None or self.sign_key is not None:
                raise click.UsageError("--sign-cert and --sign-key belong together.")
            return None
        if not self.signers:
            self.signers.append(Signer.load(self.sign_cert, self.sign_key))
        return self.signers[0]

    def tell_fallbacks(self, composer: Composer) -> None:
        """Say on stderr, each once, what is not as it was asked for. Before long work, when the sessions are open.

        Where nothing was asked for, an engine that does not work here is worth a sentence a day.
        """
        for fallback in composer.fallbacks:
            self.tell_fallback(fallback)

    def tell_fallback(self, fallback: str) -> None:
        """Say one sentence of `tell_fallbacks`, unless it has been said."""
        if fallback not in self.told:
            self.told.append(fallback)
            if self.engine != "auto" or self.require is not None or not said_today(fallback):
                click.echo(f"fid-run: {fallback}", err=True)

    def report(self, composer: Composer, text: str, **record: Any) -> None:
        """Say on stdout what was done, as text or JSON, and on stderr what is not as it was asked for."""
        self.tell_fallbacks(composer)
        if self.as_json:
            bundle = {"name": composer.bundle.name, "version": composer.bundle.version}
            shared = {"provider": composer.provider, "resolution": composer.resolution, "bundle": bundle}
            click.echo(json.dumps({**record, **shared}, default=str))
        else:
            click.echo(text)


def said_today(sentence: str) -> bool:
    """Return whether this has been said before on this day, and keep that it has been now."""
    from datetime import date

    from ..files import new_file
    from ..weights.cache import cache_folder, locked
    from ..weights.records import decode

    path, today = cache_folder("said.json"), date.today().isoformat()
    try:
        said = {text: day for text, day in decode(path.read_bytes(), dict[str, str]).items() if day == today}
    except (OSError, FidError):
        said = {}
    if sentence in said:
        return True
    with contextlib.suppress(OSError, FidError):  # it is said once more, then
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.name), new_file(path) as file:
            file.write_text(json.dumps({**said, sentence: today}, indent=1) + "\n")
    return False


def composing(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the shared options; it receives them as one `Settings`."""

    @wraps(command)
    def with_settings(**values: Any) -> None:
        own = {name: values.pop(name) for name in Settings.__dataclass_fields__ if name in values}
        resolution = own.pop("resolution")
        command(settings=Settings(**own, resolution=int(resolution) if resolution else None), **values)

    options = [
        click.option("--bundle", type=FILE, help="A folder or .fid file with graphs. [default: the one in fid]"),
        click.option("--engine", type=EngineChoice(ENGINES), default="auto", show_default=True, help=ENGINE_HELP),
        click.option("--require", metavar="NAME", help="Fail unless this engine, device or precision is what runs."),
        click.option("--threads", type=click.IntRange(min=1), help="CPU threads. [default: one per core]"),
        click.option(
            "--resolution",
            type=click.Choice(["256", "512", "1024"]),
            help="Side in px; 1024 uses the full generator, fetched when first asked for. [default: the bundle's own]",
        ),
        click.option(
            "--refine",
            type=click.IntRange(min=0, max=200),
            metavar="N",
            help="Rounds that look closer at each identity photo; 0: quicker, less like them. [default: 12]",
        ),
        click.option("--provenance/--no-provenance", default=True, help="Write a note 'synthetic' into files. [on]"),
        click.option("--mark/--no-mark", default=True, help="Put an invisible mark 'made by fid' into pictures. [on]"),
        click.option("--sign-cert", type=FILE, envvar="FID_SIGN_CERT", help="Your certificate: sign files (C2PA)."),
        click.option("--sign-key", type=FILE, envvar="FID_SIGN_KEY", help="The private key that belongs to it."),
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


def attempt(
    what: str, items: Sequence[Any], work: Callable[[Any], T], errors: type[FidError] = InputError
) -> tuple[list[T], list[str]]:
    """Do `work` on every item; return what came out, and one sentence for each item that ended in one of `errors`."""
    done, failed = [], []
    for item in progress_of(what, items, len(items)):
        try:
            done.append(work(item))
        except errors as error:
            failed.append(str(error))
    return done, failed


def finish(failed: list[str]) -> None:
    """Name what failed and end with exit code 1, if anything did."""
    if failed:
        for sentence in failed:
            click.echo(f"fid-run: left out: {sentence}", err=True)
        click.get_current_context().exit(1)


def make_folder(folder: Path | None) -> None:
    """Make a folder, if one is given; InputError when that cannot be."""
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"{folder} is a file; give a folder.") from None
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be made: {error.strerror}.") from error


def columns(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Return rows of words as lines, in columns."""
    table = [tuple(map(str, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in table]
