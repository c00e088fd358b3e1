"""Which of fid's labels a picture or video bears: signed credentials, the note, the mark in its pixels."""

from __future__ import annotations

import io
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .errors import FidError
from .labels.credentials import Credentials, read_credentials
from .labels.mark import Found, detect_mark
from .labels.provenance import Note, note_in, read_note
from .media.images import read_image
from .media.video import VIDEO_INPUTS, open_clip, read_frames

FIRST, EVERY, LAST = 3, 8, 250  # frames of a clip that are looked at: the first ones, then every so many, up to here


@dataclass(frozen=True)
class Labels:
    """What was found in one file."""

    path: Path
    credentials: Credentials | None
    unchecked: str  # why credentials were not looked for; "" where they were
    note: Note | None
    mark: Found

    @property
    def by_fid(self) -> bool:
        """Whether any layer says that fid made it."""
        own = self.credentials
        signed = own is not None and own.generator == "fid" and own.state != "invalid"
        return self.mark.marked or self.note is not None or signed

    def report(self) -> dict[str, Any]:
        """As JSON has it."""
        note = self.note and {
            name: getattr(self.note, name) for name in ("kind", "bundle", "bundle_version", "version")
        }
        return {
            "file": str(self.path),
            "made_by_fid": self.by_fid,
            "credentials": self.credentials and asdict(self.credentials),
            "credentials_unchecked": self.unchecked or None,
            "note": note,
            "mark": {"found": self.mark.marked, "sigma": round(self.mark.sigma, 1), "scale": round(self.mark.scale, 3)},
        }


def check_labels(path: Path, *, sizes: bool = True) -> Labels:
    """Look for all layers in a picture or video file; `sizes` as in `detect_mark`.

    Raises `InputError` for what is neither. Without c2pa-python, `unchecked` says that credentials were not looked for.
    """
    if path.suffix.lower() in VIDEO_INPUTS:
        with closing(read_frames(open_clip(path))) as frames:
            chosen = (image for n, (_, image) in enumerate(islice(frames, LAST)) if n < FIRST or n % EVERY == 0)
            mark = detect_mark(chosen, sizes=sizes)
    else:
        mark = detect_mark(read_image(path), sizes=sizes)
    with path.open("rb") as file:
        return Labels(path, *_credentials(file), read_note(path), mark)


def labels_of(data: bytes, name: str, image: np.ndarray) -> Labels:
    """Look for all layers in the bytes of a picture file of that name, decoded RGB uint8 [height, width, 3]."""
    return Labels(Path(name), *_credentials(io.BytesIO(data)), note_in(data), detect_mark(image))


def _credentials(file: BinaryIO) -> tuple[Credentials | None, str]:
    """The credentials of an open file, and why they were not looked for."""
    try:
        return read_credentials(file), ""
    except FidError as error:
        return None, str(error)
