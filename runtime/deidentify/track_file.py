"""Track files: who is where in a photo or clip and what is to happen to them, as JSON that a person can edit.

    {"format": 1, "tracks": [{"track": 0, "person": 0, "action": "replace", "places": [
        {"frame": 0, "box": [left, top, width, height], "points": [[x, y], ...], "score": 0.93, "seen": true}]}]}

A place without `points` gets a mosaic. Tracks with the same `person` get the same stand-in.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import replacing
from .places import Place, Track

FORMAT = 1
ACTIONS = ("replace", "mosaic", "keep")


def write_tracks(path: Path, tracks: Sequence[Track], persons: dict[int, int], digits: int = 1) -> None:
    """Write a track file; `persons`: who it is, by track. `digits` of px behind the point: one is enough for people."""
    told = []
    for track in tracks:
        places = []
        for frame, place in sorted(track.places.items()):
            own: dict[str, Any] = {"frame": frame, "box": np.round(place.box, digits).tolist()}
            own |= {} if place.points is None else {"points": np.round(place.points, digits).tolist()}
            places.append({**own, "score": round(place.score, digits + 2), "seen": place.seen})
        person = persons.get(track.number, track.person)
        action = track.action or ("replace" if track.sure else "mosaic")
        told.append({"track": track.number, "person": person, "action": action, "places": places})
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"format": FORMAT, "tracks": told}) + "\n")


def read_tracks(path: Path) -> list[Track]:
    """Read a track file. Raises `InputError` in one sentence for anything else."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a track file: it cannot be read as JSON.") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT or not isinstance(record.get("tracks"), list):
        raise InputError(
            f"{path} is not a track file of format {FORMAT}; `fid-run deidentify --write-tracks` makes one."
        )
    try:
        tracks = [_track(own) for own in record["tracks"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is a damaged track file: {error} is missing or wrong.") from error
    if len({track.number for track in tracks}) != len(tracks):
        raise InputError(f"{path} has two tracks of the same number.")
    return tracks


def _track(own: dict[str, Any]) -> Track:
    if own["action"] not in ACTIONS:
        raise ValueError(f"the action {own['action']!r} (known are {', '.join(ACTIONS)})")
    places = {}
    for place in own["places"]:
        box = tuple(float(value) for value in place["box"])
        points = np.array(place["points"], np.float64) if "points" in place else None
        whole = len(box) == 4 and np.isfinite(box).all() and min(box[2:]) > 0
        if not whole or (points is not None and (points.shape != (5, 2) or not np.isfinite(points).all())):
            raise ValueError(f"the place in frame {place['frame']}")
        there = Place(box, points, float(place.get("score", 1.0)), bool(place.get("seen", points is not None)))  # type: ignore[arg-type]
        places[int(place["frame"])] = there
    if not places or min(places) < 0:
        raise ValueError(f"the frames of track {own['track']}")
    person = own.get("person")
    return Track(int(own["track"]), places, None if person is None else int(person), str(own["action"]))
