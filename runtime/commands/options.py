"""What the commands of `fid-run` share: their options, how they end, and what they show while they work."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..engines.table import ENGINES, is_remote
from ..errors import FidError, InputError

if TYPE_CHECKING:
    from ..composer import Composer
    from ..face.detect import Choice
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


ENGINE_HELP = f"What computes: {', '.join(ENGINES)}, or a Triton server; `fid-run doctor` says which work here."


@dataclass(frozen=True)
class Settings:
    """The options that all composing commands share."""

    bundle: Path | None  # None: the bundle that ships with fid
    engine: str  # see session.open_session
    require: str | None  # see session.open_session
    threads: int | None  # None: one per physical core
    resolution: int | None  # px; None: the bundle's own
    min_confidence: float  # how sure the detector has to be of a face, 0..1
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
        options |= {"min_confidence": self.min_confidence, "on_choice": self.tell_choice}
        return Composer(self.bundle, resolution=self.resolution, refine=self.refine, **options)

    def made_of(self) -> dict[str, Any]:
        """Return what every result depends on, as JSON holds it; nothing is opened for it. Not the engine: what is done
        on one machine stays done on another."""
        from ..weights.bundle import Bundle

        labels = [self.provenance, self.mark, self.sign_cert is not None]
        made_of = {"bundle": Bundle.load(self.bundle).to_json(), "resolution": self.resolution}
        return made_of | {"refine": self.refine, "min_confidence": self.min_confidence, "labels": labels}

    def tell_choice(self, choice: Choice, of_identity: bool) -> None:
        """Say on stderr which of several faces was taken and how to take another, and what may be no face at all."""
        for remark in choice.remarks("--identity-face" if of_identity else "--face"):
            if remark not in self.told:
                self.told.append(remark)
                click.echo(f"fid-run: {remark}", err=True)

    def note(
        self, composer: Composer, kind: str, with_photos: bool = False, inputs: Sequence[Path] = ()
    ) -> Note | None:
        """Return what the files say about themselves; `with_photos` when they show the input photos as well. `inputs`
        are named in what is signed."""
        from ..labels.provenance import MADE_BY_ALGORITHM, PART_BY_ALGORITHM

        signer = self.signer()
        if not (self.provenance or self.mark or signer):
            return None
        note = composer.note(kind, PART_BY_ALGORITHM if with_photos else MADE_BY_ALGORITHM)
        return replace(note, packet=self.provenance, mark=self.mark, signer=signer, inputs=tuple(inputs))

    def signer(self) -> Signer | None:
        """Return the user's certificate and key, opened once; None without them. `InputError` for what cannot sign."""
        from ..labels.credentials import Signer

        if not self.signers and (given := Signer.given(self.sign_cert, self.sign_key)) is not None:
            self.signers.append(given)
        return next(iter(self.signers), None)

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
            click.echo(json_line({**record, **shared}))
        else:
            click.echo(text)


# As in face/detect.py, which would take a third of a second of every --help.
DOUBTFUL_SCORE, MIN_SCORE = 0.45, 0.7

DIGITS = 5  # significant ones of a figure in JSON: more than any figure of these is good for


def json_line(value: Any) -> str:
    """Return a value as one line of JSON, numbers with a point to `DIGITS` significant digits, paths as text."""

    def short(part: Any) -> Any:
        if isinstance(part, float):
            return float(f"{part:.{DIGITS}g}") if math.isfinite(part) else None
        if isinstance(part, Mapping):
            return {key: short(one) for key, one in part.items()}
        return [short(one) for one in part] if isinstance(part, list | tuple) else part

    return json.dumps(short(value), default=str)


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
        command(settings=Settings(**own), **values)

    options = [
        bundle_option,
        engine_option,
        click.option(
            "--require",
            metavar="NAME",
            help="Fail unless this is what really runs: an engine, a device, or FP16 or FP32.",
        ),
        threads_option,
        click.option(
            "--resolution",
            type=int,
            metavar="PX",
            help="Side of composed pictures: 256 or 1024 with the graphs that ship with fid (1024 is the full "
            "generator, 38 MB, fetched once); another bundle tells what it has when it has not the number. "
            "[default: the bundle's own]",
        ),
        click.option(
            "--min-confidence",
            type=click.FloatRange(DOUBTFUL_SCORE, 1),
            metavar="SHARE",
            default=MIN_SCORE,
            show_default=True,
            help=f"How sure the detector must be that a face is one, {DOUBTFUL_SCORE} to 1. Real faces have 0.92 and "
            "more, drawings and animals often less.",
        ),
        click.option(
            "--refine",
            type=click.IntRange(min=0, max=200),
            metavar="N",
            help="Rounds that look closer at each identity photo; 0 is quicker and less like the person. [default: 20]",
        ),
        click.option(
            "--provenance/--no-provenance",
            default=True,
            show_default=True,
            help="Write a note into files that they are synthetic.",
        ),
        click.option(
            "--mark/--no-mark",
            default=True,
            show_default=True,
            help="Put an invisible mark 'made by fid' into pictures.",
        ),
        click.option(
            "--sign-cert",
            type=FILE,
            envvar="FID_SIGN_CERT",
            help="Sign files as Content Credentials (C2PA) with this certificate of yours, PEM.",
        ),
        click.option(
            "--sign-key",
            type=FILE,
            envvar="FID_SIGN_KEY",
            help="The private key of the certificate in --sign-cert, PEM.",
        ),
        json_option,
    ]
    for option in reversed(options):
        with_settings = option(with_settings)
    return with_settings


bundle_option = click.option(
    "--bundle",
    type=FILE,
    help="The graphs to compose with: a folder or a .fid file. [default: those that ship with fid]",
)


engine_option = click.option(
    "--engine",
    type=EngineChoice(ENGINES),
    metavar="NAME",
    default="auto",
    show_default=True,
    help=ENGINE_HELP,
)


threads_option = click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads to use. [default: one per core]"
)


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as one line of JSON, for programs."
)


identity_option = click.option(
    "--identity",
    "identities",
    type=FILE,
    multiple=True,
    required=True,
    help="A photo of the person, an identity file (.npz), or a folder of their photos; may be repeated, and all are "
    "averaged.",
)


face_option = click.option(
    "--face",
    type=click.IntRange(min=1),
    metavar="N",
    help="Take face N of attribute photos that show several, counted by size. [default: 1, the largest]",
)


identity_face_option = click.option(
    "--identity-face",
    type=click.IntRange(min=1),
    metavar="N",
    help="Take face N of identity photos that show several, counted by size. [default: 1, the largest]",
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


def expand(paths: Sequence[Path]) -> list[Path]:
    """Return the paths given, and in the place of every folder its photos and identity files."""
    from ..identity import SUFFIX
    from ..media.images import find_photos

    return [file for path in paths for file in (find_photos([path], (SUFFIX,)) if path.is_dir() else [path])]


def columns(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Return rows of words as lines, in columns."""
    table = [tuple(map(str, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in table]


def ray_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command that many workers share the options --workers, --ray, --cpus and --gpus."""
    options = [
        click.option(
            "--workers",
            type=click.IntRange(1, 4096),
            metavar="N",
            help="Work with N processes. [default: 1; on Ray as many as it holds]",
        ),
        click.option(
            "--ray",
            metavar="ADDRESS",
            help="Work on a Ray cluster: auto, HOST:PORT, or local to start one here. [default: none]",
        ),
        click.option(
            "--cpus",
            type=click.FloatRange(0.1),
            metavar="N",
            help="CPUs that Ray reserves for each worker. [default: as --threads]",
        ),
        click.option(
            "--gpus",
            type=click.FloatRange(0),
            metavar="N",
            default=0.0,
            show_default=True,
            help="GPUs that Ray reserves for each worker.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command
