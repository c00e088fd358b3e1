"""De-identify one photo or clip: find, replace, and give the verdict; and the report over all files."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from ..composer import Composer
from ..errors import InputError
from ..face.detect import Face
from ..identity import Identity
from ..labels.provenance import Note
from ..live.spans import SHOWN, SHOWN_S
from ..media import video_rework
from ..media.images import PHOTO_SUFFIXES, PICTURE_SUFFIXES, check_output, read_image, write_image
from ..media.state import flatten, unflatten
from ..media.video import VIDEO_INPUTS, VIDEO_SUFFIXES, Clip, frame_stamps, open_clip, read_frames
from ..media.video_rework import join_spans, rework, rework_span
from ..sample import Sampler
from .heads import SCORE, FindHeads, open_heads, without_face
from .judges import MATCH, MATCH_DLIB, STRICT, Judges
from .places import Place, Track, place_of
from .preview import draw_preview, preview_frames
from .replace import Deidentifier, DeidentifierState, tracks_of_photo
from .scan import Scanner
from .stand_in import People
from .track_file import read_tracks, write_tracks
from .traits import known_candidates
from .verdict import Verdict, careful_frames

FACES, TRACKS, WHO, AGAIN, COUNTS = "faces.jsonl", "tracks.json", "who.npz", "again", "counts.json"
"""What is known of a clip that is shared out in spans: found faces, tracks, the end of `prepare`, that this is the
second time; and of each span, how many were replaced."""

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class Options:
    """What the user chose."""

    seed: int = 0  # which synthetic people are looked at
    faces: str = "all"  # or "largest"
    unsure: str = "mosaic"  # or "keep"
    mute: bool = False  # leave the sound out
    allow_none: bool = False  # copy a file in which there is nobody
    stand_ins: tuple[Identity, ...] = ()  # in the place of synthetic people
    write_tracks: Path | None = None  # a track file of what was found


class Worker:
    """De-identifies files with one composer."""

    def __init__(
        self,
        composer: Composer,
        draw: Callable[[int], Identity],
        options: Options,
        *,
        made_of: dict[str, Any] | None = None,
        note: Note | None = None,
        progress: Progress,
    ) -> None:
        """`draw`: the synthetic person of a number. `made_of`: what else the pictures depend on. `progress`: see
        `commands.progress.frame_progress`."""
        self._composer, self._draw, self._options = composer, draw, options
        self._note, self._progress = note, progress
        self._made_of = {**(made_of or {}), "seed": options.seed, "faces": options.faces, "unsure": options.unsure}
        self._made_of |= {"stand_ins": [person.fingerprint for person in options.stand_ins], "mute": options.mute}
        self._judges: Judges | None = None
        self._heads: FindHeads | None = None

    def file(self, path: Path, output: Path, given: Sequence[Track] | None = None) -> dict[str, Any]:
        """De-identify one photo or video file; returns its part of the report. `given`: the tracks of a track file, in
        the place of what would be found."""
        moving = path.suffix.lower() in VIDEO_INPUTS
        own = self._clip(path, output, given) if moving else self._photo(path, output, given)
        if self._options.write_tracks is not None:
            write_tracks(self._options.write_tracks, own["tracks"], own["persons"])
        told = {name: value for name, value in own.items() if name != "persons"}
        return {"input": str(path), "output": str(output), **told, "tracks": len(own["tracks"])}

    def preview(self, path: Path, output: Path, given: Sequence[Track] | None = None) -> list[Track]:
        """Write a picture of what was found in a photo or video file, and change nothing; returns the tracks."""
        if path.suffix.lower() not in VIDEO_INPUTS:
            image = read_image(path, still=True)
            tracks = self._found_in(image) if given is None else list(given)
            write_image(output, draw_preview([(0, image)], tracks))
            return tracks
        clip = open_clip(path)
        tracks = self._scan(clip, {}, lambda frame, faces: None) if given is None else list(given)
        wanted = set(preview_frames(tracks, clip.frames))
        with closing(read_frames(clip)) as frames:
            shown = [(number, image) for number, (_, image) in enumerate(frames) if number in wanted]
        write_image(output, draw_preview(shown, tracks))
        return tracks

    def _work(self, tracks: Sequence[Track], still: bool = False) -> Deidentifier:
        people = People(
            self._composer,
            self._draw,
            self._options.seed,
            self._options.stand_ins,
            measured=known_candidates(self._composer),
            judges=self._open_judges(),
        )
        faces, unsure = self._options.faces, self._options.unsure
        return Deidentifier(self._composer, people, tracks, faces=faces, unsure=unsure, still=still)

    def _photo(self, path: Path, output: Path, given: Sequence[Track] | None) -> dict[str, Any]:
        image = read_image(path, still=True)
        tracks = self._found_in(image) if given is None else list(given)
        self._refuse_none(tracks, path)
        for again in (True, False):
            work = self._work(tracks, still=True)
            result = work.picture(image, 0.0)
            verdict = Verdict(self._composer.detector, self._open_judges(), work.chosen)
            verdict.add(image, result)
            if not (again and verdict.missed and self._options.faces == "all" and given is None):
                break
            found = [Track(len(tracks) + i, {0: place_of(face)}) for i, face in enumerate(verdict.missed[0])]
            tracks = [*tracks, *found]
        write_image(output, result, self._note if work.counts["replaced"] else None)  # else nothing in it is synthetic
        return _told(work, verdict, tracks)

    def prepare(self, path: Path, folder: Path, firsts: Sequence[int]) -> None:
        """Find everybody in a clip that is to be shared out in spans, and who is who, and write both into a folder,
        with what is remembered where each span of these first frames begins to run."""
        clip = self._opened(path)
        (folder / FACES).touch(mode=0o600)
        with _adding_faces(folder / FACES) as (known, keep):
            tracks = self._scan(clip, dict(known), keep)
        self._refuse_none(tracks, path)
        write_tracks(folder / TRACKS, tracks, {}, digits=12)
        work = self._work(read_tracks(folder / TRACKS))
        begins = {lead_begin(first, clip.fps) for first in firsts}
        with self._progress(f"{path.name}, following", clip.frames) as tick, closing(read_frames(clip)) as frames:
            for number, (stamp, image) in enumerate(frames):
                if number % video_rework.PART_FRAMES == 0:
                    state = work.state  # the trackers forget, as they do between the parts of a clip in one piece
                    if number in begins:
                        _write_state(folder / f"{number}.npz", state)
                work.follow(image, float(stamp * clip.time_base))
                tick(number + 1)
        _write_state(folder / WHO, work.state)

    def span(self, path: Path, prepared: Path, folder: Path, span: tuple[int, int]) -> None:
        """De-identify the frames of one span, numbers of the first and of the one after the last, into an empty folder
        for `join`."""
        clip, (first, after) = self._opened(path), span
        stamps, begin = frame_stamps(clip), lead_begin(first, clip.fps)
        assert stamps is not None  # else it was not split
        work, who = self._prepared(prepared)
        begun = _read_state(prepared / f"{begin}.npz")
        work.state = replace(begun, people=who.people, persons=who.persons, counts=np.zeros_like(who.counts))
        with closing(read_frames(clip, stamps[begin], stamps[first])) as frames:
            for number, (stamp, image) in enumerate(frames, start=begin):
                if number > begin and number % video_rework.PART_FRAMES == 0:
                    _ = work.state  # as in `prepare`
                work.picture(image, float(stamp * clip.time_base))
        work.state = replace(work.state, counts=np.zeros_like(who.counts))
        marked = self._note is not None and self._note.mark and any(track.sure for track in work.tracks)
        stop = stamps[after] if after < len(stamps) else None
        rework_span(clip, folder, work, stamps[first], stop, marked=marked)
        (folder / COUNTS).write_text(json.dumps(work.counts))

    def join(self, path: Path, prepared: Path, folders: Sequence[Path], output: Path) -> dict[str, Any] | None:
        """Join the folders of all spans in order, and give the verdict over the whole: what `file` returns. None where
        faces had been missed: they have been added to `prepared`, and all begins again with `prepare`."""
        clip, (work, who) = self._opened(path), self._prepared(prepared)
        work.state = who
        work.counts.clear()
        for folder in folders:
            work.counts.update(json.loads((folder / COUNTS).read_text()))
        note = self._note if any(track.sure for track in work.tracks) else None
        frames, missing = join_spans(clip, folders, output, note)
        verdict, again = self._verdict(clip, output, work), prepared / AGAIN
        if verdict.missed and self._options.faces == "all" and not again.exists():
            again.touch()
            with _adding_faces(prepared / FACES) as (known, keep):
                for frame, faces in verdict.missed.items():
                    keep(frame, [*known.get(frame, []), *faces])
            return None
        sound = "unchanged" if clip.sound else "none"
        own = {"frames": frames, "missing": missing, "sound": sound, **_told(work, verdict, work.tracks)}
        own = {name: value for name, value in own.items() if name != "persons"}
        return {"input": str(path), "output": str(output), **own, "tracks": len(work.tracks)}

    def _prepared(self, folder: Path) -> tuple[Deidentifier, DeidentifierState]:
        """What `prepare` has written: a worker on these tracks, and what it remembers at the end of the clip."""
        return self._work(read_tracks(folder / TRACKS)), _read_state(folder / WHO)

    def _opened(self, path: Path) -> Clip:
        clip = open_clip(path)
        return replace(clip, sound=0) if self._options.mute else clip

    def _clip(self, path: Path, output: Path, given: Sequence[Track] | None) -> dict[str, Any]:
        clip = self._opened(path)
        with _kept_faces(output, {"clip": _digest(path)}) as (known, keep):
            for again in (True, False):
                tracks = self._scan(clip, dict(known), keep) if given is None else list(given)
                self._refuse_none(tracks, path)
                work = self._work(tracks)
                note = self._note if any(track.sure for track in tracks) else None
                settings = {**self._made_of, "tracks": _fingerprint(tracks)}
                with self._progress(f"{path.name}, replacing", clip.frames) as tick:
                    frames, missing = rework(clip, output, work, settings=settings, note=note, tick=tick)
                try:
                    verdict = self._verdict(clip, output, work)
                except KeyboardInterrupt:
                    unchecked = "is written, but was not checked: somebody may be left in it"
                    raise KeyboardInterrupt(f"stopped; {output} {unchecked}.") from None
                if not (again and verdict.missed and self._options.faces == "all" and given is None):
                    break
                for frame, faces in verdict.missed.items():  # once more, with what was missed
                    keep(frame, [*known.get(frame, []), *faces])
        sound = "unchanged" if clip.sound else "none"
        return {"frames": frames, "missing": missing, "sound": sound, **_told(work, verdict, tracks)}

    def _scan(self, clip: Clip, known: dict[int, list[Face]], keep: Callable[[int, list[Face]], None]) -> list[Track]:
        scanner = Scanner(self._composer.detector, clip.fps, known, keep, self._open_heads())
        with (
            self._progress(f"{clip.path.name}, searching", clip.frames) as tick,
            closing(read_frames(clip, exact=False)) as frames,  # a level darker or two, and nothing of it is kept
        ):
            for count, (_, image) in enumerate(frames, start=1):
                scanner.add(image)
                tick(count)
        return scanner.finish()

    def _verdict(self, clip: Clip, output: Path, work: Deidentifier) -> Verdict:
        rhythm = careful_frames(clip.fps, clip.frames)
        verdict = Verdict(self._composer.detector, self._open_judges(), work.chosen, *rhythm)
        with (
            self._progress(f"{clip.path.name}, checking", clip.frames) as tick,
            closing(read_frames(clip, exact=False)) as originals,  # both a level darker or two
            closing(read_frames(open_clip(output), exact=False)) as results,
        ):
            for count, ((_, original), (_, result)) in enumerate(zip(originals, results, strict=False), start=1):
                verdict.add(original, result)
                tick(count)
        return verdict

    def _refuse_none(self, tracks: Sequence[Track], path: Path) -> None:
        if not tracks and not self._options.allow_none:
            raise InputError(
                f"{path}: no face was found, so nothing was written; look at it yourself, and give --allow-none if "
                "nobody is in it."
            )

    def _found_in(self, image: np.ndarray) -> list[Track]:
        """The tracks of a photo: faces, and heads of people whose face is not seen."""
        tracks, find = tracks_of_photo(self._composer, image), self._open_heads()
        if find is not None:
            faces = [track.places[0] for track in tracks]
            for box in without_face(find(image), faces):
                tracks.append(Track(len(tracks), {0: Place(box, None, SCORE, True)}))
        return tracks

    def _open_heads(self) -> FindHeads | None:
        """What finds people's heads; None where not everybody is to be hidden."""
        if self._heads is None and self._options.faces == "all" and self._options.unsure == "mosaic":
            self._heads = open_heads(self._composer.threads)
        return self._heads

    def _open_judges(self) -> Judges:
        if self._judges is None:
            self._judges = Judges(self._composer)
        return self._judges


def open_worker(composer: Composer, options: Options, *, note: Note | None, progress: Progress) -> Worker:
    """Return a worker whose sessions are open, with synthetic people of the composer's generator."""
    sampler = Sampler(composer)
    draw = cache(lambda number: sampler.person(number)[1])
    if options.stand_ins:
        composer.warm_up(options.stand_ins[0])  # closes what looked closer at their photos
    else:
        composer.wait_for_frames()
    made_of: dict[str, Any] = {"bundle": composer.bundle.to_json(), "engine": composer.provider}
    made_of |= {"resolution": composer.resolution}
    return Worker(composer, draw, options, made_of=made_of, note=note, progress=progress)


def plan(source: Path, output: Path) -> tuple[list[tuple[Path, Path]], Path]:
    """Return (input, output) of each file, and where the report goes. Raises `InputError` for what cannot be."""
    if not source.exists():
        raise InputError(f"{source} does not exist.")
    if not source.is_dir():
        check_output(output, VIDEO_SUFFIXES if source.suffix.lower() in VIDEO_INPUTS else PICTURE_SUFFIXES, [source])
        return [(source, output)], output.with_name(f"{output.name}.json")
    known = (*PHOTO_SUFFIXES, *VIDEO_INPUTS)
    files = sorted(path for path in source.iterdir() if path.is_file() and path.suffix.lower() in known)
    if not files:
        raise InputError(f"there are no photos and no videos in the folder {source}.")
    if output.exists() and output.samefile(source):
        raise InputError(f"{output} is the folder of the originals; give another one for the results.")
    return [(path, output / output_name(path)) for path in files], output / "report.json"


def output_name(path: PurePath) -> str:
    """Return the name of what is written for a photo or video: its own, where a file of that kind can be written."""
    can, other = (VIDEO_SUFFIXES, ".mkv") if path.suffix.lower() in VIDEO_INPUTS else (PICTURE_SUFFIXES, ".png")
    return path.name if path.suffix.lower() in can else f"{path.name}{other}"


def summary(files: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the report over all files: counts of faces and frames, and whether anybody still matches."""
    verdicts = [file["verdict"] for file in files]
    faces = [face for verdict in verdicts for face in verdict["faces"]]
    means = {}
    for name in ("cosine_before", "cosine_after", "distance_before", "distance_after"):
        values = [face[name] for face in faces if face[name] is not None]
        means[name] = round(float(np.mean(values)), 3) if values else None
    counts = {name: sum(file["counts"][name] for file in files) for name in ("replaced", "hidden", "unsure")}
    totals = {name: sum(verdict[name] for verdict in verdicts) for name in ("still_matching", "gone", "unknown")}
    head = {"match_above": MATCH, "match_below_dlib": MATCH_DLIB, "strict_above": STRICT}
    names = verdicts[0]["recognisers"] if verdicts else []
    people = sum(file["people"] for file in files)
    return {"recognisers": names, **head, "people": people, **totals, **counts, **means, "files": list(files)}


def _told(work: Deidentifier, verdict: Verdict, tracks: Sequence[Track]) -> dict[str, Any]:
    counts = {name: work.counts[name] for name in ("replaced", "hidden", "unsure")}
    seeds = [person.seed for person in work.people.all]
    told = {"people": len(seeds), "stand_ins": seeds, "tracks": tracks, "persons": work.persons, "counts": counts}
    return {**told, "verdict": verdict.report(work.persons)}


@contextmanager
def _kept_faces(
    output: Path, settings: dict[str, Any]
) -> Iterator[tuple[dict[int, list[Face]], Callable[[int, list[Face]], None]]]:
    """What a stopped run of the first pass found by frame, and what keeps more, in a folder for the user alone that
    holds no pictures; removed at the end."""
    folder = output.with_name(f".{output.name}.faces")
    record, lines = folder / "settings.json", folder / "faces.jsonl"
    text = json.dumps(settings, sort_keys=True)
    if not record.is_file() or record.read_text() != text:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        for path, content in ((lines, ""), (record, text)):
            path.touch(mode=0o600)
            path.write_text(content)
    with _adding_faces(lines) as (known, keep):
        try:
            yield known, keep
        except InputError:
            if not any(known.values()):  # nobody is in it: there is nothing to go on from
                shutil.rmtree(folder)
            raise
        except KeyboardInterrupt as stop:
            kept = f"what was found so far is kept in {folder}, and the same command goes on from there"
            raise KeyboardInterrupt(str(stop) or f"stopped; {kept}.") from None
    shutil.rmtree(folder)


@contextmanager
def _adding_faces(path: Path) -> Iterator[tuple[dict[int, list[Face]], Callable[[int, list[Face]], None]]]:
    """What a file says was found, by frame, and what adds to both."""
    known = dict(_read_faces(path))
    with path.open("a", buffering=1) as file:

        def keep(frame: int, faces: list[Face]) -> None:
            known[frame] = faces
            rows = [[*face.box, face.score, *face.points.ravel().tolist()] for face in faces]
            file.write(json.dumps([frame, rows]) + "\n")

        yield known, keep


def _read_faces(path: Path) -> Iterator[tuple[int, list[Face]]]:
    for line in path.read_text().splitlines():
        try:
            frame, rows = json.loads(line)
        except ValueError:  # the last line of a run that was killed
            return
        yield frame, [Face((r[0], r[1], r[2], r[3]), np.array(r[5:]).reshape(5, 2), r[4]) for r in rows]


def lead_begin(first: int, fps: float) -> int:
    """Return the frame from which everything is computed so that a span that begins with frame `first` is as it is in
    the whole clip: the beginning of a part, where trackers forget."""
    lead = max(SHOWN, round(SHOWN_S * fps))
    return max(0, (first - lead) // video_rework.PART_FRAMES * video_rework.PART_FRAMES)


def _write_state(path: Path, state: DeidentifierState) -> None:
    path.touch(mode=0o600)
    np.savez_compressed(path, allow_pickle=False, **flatten(state))


def _read_state(path: Path) -> DeidentifierState:
    with np.load(path, allow_pickle=False) as arrays:
        return unflatten(DeidentifierState, dict(arrays))


def _fingerprint(tracks: Sequence[Track]) -> str:
    digest = hashlib.sha256()
    for track in tracks:
        for frame, place in sorted(track.places.items()):
            digest.update(np.round([frame, *place.box], 1).tobytes())
    return digest.hexdigest()[:16]


def _digest(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"
