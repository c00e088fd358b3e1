"""The jobs of a batch: what is done to one file. Each opens once in a worker, and is given files from then on."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..composer import Composer
from ..controls import AS_IT_IS, Controls
from ..errors import FidError, InputError
from ..identity import SUFFIX, Identity, average
from ..live.film import Film
from ..media.images import PHOTO_SUFFIXES, PICTURE_SUFFIXES, find_photos, write_image
from ..media.video import VIDEO_INPUTS, VIDEO_SUFFIXES, open_clip
from ..timing import collect_timings
from .manifest import sha256_of

if TYPE_CHECKING:
    from ..deidentify.run import Worker as Deidentifying
    from ..labels.provenance import Note

T = TypeVar("T")


class Opening(Protocol):
    """How composers are opened and what files say of themselves: `commands.options.Settings` is one."""

    @property
    def threads(self) -> int | None:
        """CPU threads; None for one per core."""
        ...

    def composer(self) -> Composer:
        """Open the bundle."""
        ...

    def note(self, composer: Composer, kind: str, with_photos: bool = ..., inputs: Sequence[Path] = ...) -> Note | None:
        """Return the note of a file; see `commands.options.Settings.note`."""
        ...


@dataclass(frozen=True)
class Made:
    """What came of one file."""

    faces: int | None = None  # composed or replaced
    more: dict[str, Any] = field(default_factory=dict)  # for the manifest
    report: dict[str, Any] | None = None  # to be written beside the output, as OUTPUT.json


Work = Callable[[Path, Path], Made]
"""What an open job does to a file: input and output as local paths; `FidError` in a sentence when it cannot be done."""


class Job(Protocol):
    """What a batch does to every file."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Endings of the inputs, in small letters."""
        ...

    def output(self, name: str) -> str:
        """Return the name of the output of an input, both below their places: of this name alone, whatever else is in
        the folder."""
        ...

    def made_of(self, name: str) -> dict[str, Any]:
        """Return what the output of an input depends on beside its bytes and the composer, as JSON holds it."""
        ...

    def open(self, opening: Opening, composer: Composer) -> Work:
        """Return what is done to each file, with all sessions open."""
        ...


@dataclass(frozen=True)
class Compose:
    """One person on the pose, expression and light of every photo."""

    identities: tuple[Path, ...]
    face: int | None = None
    identity_face: int | None = None
    paste: bool | None = None  # as in `Composer.compose`
    mask: str = "head"
    controls: Controls = AS_IT_IS
    who: tuple[Identity, ...] = ()  # of all `identities`, where they have been looked at
    suffixes = PHOTO_SUFFIXES

    @cached_property
    def _people(self) -> list[str | None]:
        return _digests(self.identities)

    def output(self, name: str) -> str:
        """See `Job.output`: the input's name, with .png added where fid does not write such files."""
        return name if PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES else f"{name}.png"

    def made_of(self, name: str) -> dict[str, Any]:
        """See `Job.made_of`."""
        looks = [self.face, self.identity_face, self.paste, self.mask, *vars(self.controls).values()]
        return {"job": "compose", "people": self._people, "looks": looks}

    def open(self, opening: Opening, composer: Composer) -> Work:
        """See `Job.open`."""
        who = average(self.who or [composer.identify(photo, self.identity_face) for photo in self.identities])
        composer.set_identity(who)
        composer.close_identity()
        composer.warm_up(who)
        signed = [path for path in self.identities if path.suffix.lower() != SUFFIX]

        def work(photo: Path, output: Path) -> Made:
            with collect_timings() as ms:
                image = composer.compose(photo, self.face, paste=self.paste, mask=self.mask, controls=self.controls)
            note = opening.note(composer, "composition", with_photos="paste" in ms, inputs=[*signed, photo])
            write_image(output, image, note)
            return Made(faces=1)

        return work


@dataclass(frozen=True)
class Pairs:
    """On every photo the person of the same name in another folder."""

    identities: Path  # a folder of photos or identity files
    face: int | None = None
    identity_face: int | None = None
    paste: bool = False
    mask: str = "head"
    controls: Controls = AS_IT_IS
    suffixes = PHOTO_SUFFIXES

    @cached_property
    def _partners(self) -> dict[str, Path]:
        if not self.identities.is_dir():
            raise InputError(f"{self.identities} is not a folder; pairs are matched between the files of two folders.")
        partners: dict[str, Path] = {}
        for path in find_photos([self.identities], (SUFFIX,)):
            if path.stem in partners:
                raise InputError(f"{partners[path.stem]} and {path} have the same name, so pairs are not clear.")
            partners[path.stem] = path
        return partners

    def output(self, name: str) -> str:
        """See `Job.output`."""
        return str(PurePosixPath(name).with_suffix(".png"))

    def made_of(self, name: str) -> dict[str, Any]:
        """See `Job.made_of`."""
        partner = self._partners.get(PurePosixPath(name).stem)
        status = None if partner is None else partner.stat()
        person = None if status is None else [status.st_size, status.st_mtime_ns]
        looks = [self.face, self.identity_face, self.paste, self.mask, *vars(self.controls).values()]
        return {"job": "pairs", "person": person, "looks": looks}

    def open(self, opening: Opening, composer: Composer) -> Work:
        """See `Job.open`."""

        def work(photo: Path, output: Path) -> Made:
            partner = self._partners.get(photo.stem)
            if partner is None:
                raise InputError(f"{photo.name} has no partner of its name in {self.identities}.")
            composer.set_identity(composer.identify(partner, self.identity_face))
            image = composer.compose(photo, self.face, paste=self.paste, mask=self.mask, controls=self.controls)
            write_image(output, image, opening.note(composer, "composition", with_photos=self.paste))
            return Made(faces=1)

        return work


@dataclass(frozen=True)
class Video:
    """One person in every clip."""

    identities: tuple[Path, ...]
    view: str = "paste"
    smooth: float = 1.0
    no_face: str = "hold"
    mask: str = "head"
    controls: Controls = AS_IT_IS
    light: bool = False
    badge: bool = False
    identity_face: int | None = None
    who: tuple[Identity, ...] = ()  # as in `Compose`
    suffixes = VIDEO_INPUTS

    @cached_property
    def _people(self) -> list[str | None]:
        return _digests(self.identities)

    def output(self, name: str) -> str:
        """See `Job.output`: the input's name, with .mkv added where fid does not write such files."""
        return name if PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES else f"{name}.mkv"

    def made_of(self, name: str) -> dict[str, Any]:
        """See `Job.made_of`."""
        looks = [self.view, self.smooth, self.no_face, self.mask, self.light, self.badge, self.identity_face]
        looks += vars(self.controls).values()
        return {"job": "video", "people": self._people, "looks": looks}

    def open(self, opening: Opening, composer: Composer) -> Work:
        """See `Job.open`."""
        from ..live.layout import Wishes

        who = average(self.who or [composer.identify(photo, self.identity_face) for photo in self.identities])
        wishes = Wishes(
            who, self.view, self.no_face, self.smooth, badge=self.badge, mask=self.mask, controls=self.controls
        )
        film = Film(composer, wishes, self.light)
        film.warm_up()
        return FilmWork(film, opening.note(composer, "reenactment", with_photos=self.view != "result-only"))


class SpanWork(Protocol):
    """A `Work` that may also be done on spans of a clip that are joined."""

    def prepare(self, path: Path, folder: Path, firsts: Sequence[int]) -> None:
        """Write into an empty folder what all spans need to know of the clip; `firsts`: their first frames."""
        ...

    def span(self, path: Path, prepared: Path, folder: Path, span: tuple[int, int]) -> None:
        """Do the frames of a span, numbers of the first and of the one after the last, into an empty folder."""
        ...

    def join(self, path: Path, prepared: Path, folders: Sequence[Path], output: Path) -> Made | None:
        """Join the folders of all spans in order; None where all has to be done once more, with what `prepared` says
        now, which goes through `prepare` again."""
        ...


@dataclass(frozen=True)
class FilmWork:
    """The work of `Video`; see `SpanWork`."""

    film: Film
    note: Note | None

    def __call__(self, path: Path, output: Path) -> Made:
        """Compose a whole clip."""
        frames, missing = self.film.write(open_clip(path), output, note=self.note)
        return Made(more={"frames": frames, "missing": missing})

    def prepare(self, path: Path, folder: Path, firsts: Sequence[int]) -> None:
        """See `SpanWork.prepare`."""
        from ..live.spans import prepare

        prepare(self.film, open_clip(path), folder, firsts)

    def span(self, path: Path, prepared: Path, folder: Path, span: tuple[int, int]) -> None:
        """See `SpanWork.span`."""
        from ..live.spans import write_span

        write_span(self.film, open_clip(path), prepared, folder, span, marked=self.note is not None and self.note.mark)

    def join(self, path: Path, prepared: Path, folders: Sequence[Path], output: Path) -> Made:
        """See `SpanWork.join`."""
        from ..media.video_rework import check_rework, join_spans

        clip = open_clip(path)
        check_rework(clip, output, self.note)
        frames, missing = join_spans(clip, folders, output, self.note)
        return Made(more={"frames": frames, "missing": missing, "spans": len(folders)})


@dataclass(frozen=True)
class Deidentify:
    """Everybody replaced in every photo and clip."""

    seed: int = 0
    identities: tuple[Path, ...] = ()
    faces: str = "all"
    unsure: str = "mosaic"
    mute: bool = False
    allow_none: bool = False
    who: tuple[Identity, ...] = ()  # as in `Compose`
    suffixes = (*PHOTO_SUFFIXES, *VIDEO_INPUTS)

    @cached_property
    def _people(self) -> list[str | None]:
        return _digests(self.identities)

    def output(self, name: str) -> str:
        """See `Job.output`."""
        from ..deidentify.run import output_name

        path = PurePosixPath(name)
        return str(path.with_name(output_name(path)))

    def made_of(self, name: str) -> dict[str, Any]:
        """See `Job.made_of`."""
        options = {name: value for name, value in vars(self).items() if name in ("seed", "faces", "unsure")}
        return {"job": "deidentify", **options, "sound": not self.mute, "none": self.allow_none, "people": self._people}

    def open(self, opening: Opening, composer: Composer) -> Work:
        """See `Job.open`."""
        from ..deidentify.run import Options, open_worker

        photos = find_photos(self.identities, (SUFFIX,)) if self.identities else []
        given = self.who or tuple(composer.identify(photo) for photo in photos)
        composer.close_identity()
        options = Options(self.seed, self.faces, self.unsure, self.mute, self.allow_none, given)
        note = opening.note(composer, "deidentification", with_photos=True)
        return DeidentifyWork(open_worker(composer, options, note=note, progress=_nobody_watches))


@dataclass(frozen=True)
class DeidentifyWork:
    """The work of `Deidentify`; see `SpanWork`."""

    worker: Deidentifying

    def __call__(self, path: Path, output: Path) -> Made:
        """De-identify a photo or a whole clip."""
        return self._made(self.worker.file(path, output), path, output)

    def prepare(self, path: Path, folder: Path, firsts: Sequence[int]) -> None:
        """See `SpanWork.prepare`."""
        self.worker.prepare(path, folder, firsts)

    def span(self, path: Path, prepared: Path, folder: Path, span: tuple[int, int]) -> None:
        """See `SpanWork.span`."""
        self.worker.span(path, prepared, folder, span)

    def join(self, path: Path, prepared: Path, folders: Sequence[Path], output: Path) -> Made | None:
        """See `SpanWork.join`."""
        told = self.worker.join(path, prepared, folders, output)
        return None if told is None else self._made(told, path, output, spans=len(folders))

    def _made(self, told: dict[str, Any], path: Path, output: Path, **more: Any) -> Made:
        from ..deidentify.run import summary

        report = {**summary([{**told, "input": path.name, "output": output.name}]), "failed": []}
        more = {name: report[name] for name in ("replaced", "hidden", "unsure", "still_matching")} | more
        return Made(report["people"], more, report)


@dataclass(frozen=True)
class Identify:
    """An identity file of every photo."""

    face: int | None = None
    suffixes = PHOTO_SUFFIXES

    def output(self, name: str) -> str:
        """See `Job.output`."""
        return str(PurePosixPath(name).with_suffix(SUFFIX))

    def made_of(self, name: str) -> dict[str, Any]:
        """See `Job.made_of`."""
        return {"job": "identify", "face": self.face}

    def open(self, opening: Opening, composer: Composer) -> Work:
        """See `Job.open`."""
        composer.provider  # noqa: B018 - opens a session, so that a missing engine fails here

        def work(photo: Path, output: Path) -> Made:
            composer.identify(photo, self.face).save(output)
            return Made(faces=1)

        return work


def with_people(job: T, opening: Opening) -> T:
    """Return the same job with the people of its identity photos, who were looked at in a process that has ended.

    Looking closer takes several hundred MB, of which a process gives little back; workers then do without, and need
    not find the photos where they are. Identity files are read here. Raises `FidError` as `Composer.identify` does.
    """
    if not isinstance(job, Compose | Video | Deidentify) or not job.identities:
        return job
    face = None if isinstance(job, Deidentify) else job.identity_face
    if all(path.suffix.lower() == SUFFIX for path in find_photos(job.identities, (SUFFIX,))):
        return replace(job, who=_identified(opening, job.identities, face))
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, context) as apart:
            who = apart.submit(_identified, opening, job.identities, face).result()
    except BrokenProcessPool:
        raise FidError("the process that looks at identity photos died; is there enough memory?") from None
    return replace(job, who=who)


def _identified(opening: Opening, paths: Sequence[Path], face: int | None) -> tuple[Identity, ...]:
    composer = opening.composer()
    return tuple(composer.identify(photo, face) for photo in find_photos(paths, (SUFFIX,)))


def _digests(paths: Sequence[Path]) -> list[str | None]:
    """What files, or the photos of folders, hold."""
    return [sha256_of(path) for path in find_photos(paths, (SUFFIX,))] if paths else []


@contextmanager
def _nobody_watches(what: str, count: int) -> Iterator[Callable[[int], None]]:
    yield lambda ready: None
