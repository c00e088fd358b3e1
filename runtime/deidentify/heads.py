"""Heads whose faces nobody saw: of people from behind, or with something before their face. They are hidden.

People are searched twice a second. Where a head ought to be and no face is known, its place is tied to that of the next
search, and carried on by one interval at both ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from ..assets import PEOPLE
from ..engines.open import open_session
from ..face.people import find_people, head_of
from .places import Box, Place, Track, between, same_place

EVERY_S = 0.5  # seconds from one search for people to the next
REACH = 1.0  # of a head's width: so far it may go in that time
UNSEEN = 2  # intervals in which a head may be missed before it is another one
SCORE = 0.6  # certainty that is noted: below that of a face, so that it counts as unsure

FindHeads = Callable[[np.ndarray], list[Box]]
"""Picture RGB uint8 [height, width, 3] -> where heads ought to be, with a face or without."""


def open_heads(threads: int | None = None) -> FindHeads:
    """Open the network that finds people; returns what finds their heads."""
    session = open_session(PEOPLE, engine="onnxruntime", threads=threads)

    def find(image: np.ndarray) -> list[Box]:
        return [head_of(box) for _, box in find_people(lambda picture: session.run(picture=picture), image)]

    return find


def without_face(heads: Iterable[Box], faces: Sequence[Place]) -> list[Box]:
    """Return the heads in whose place, or close around it, no face is known."""
    return [head for head in heads if not any(_holds(head, face.centre) for face in faces)]


def head_tracks(
    heads: Mapping[int, Sequence[Box]], faces: Sequence[Track], scenes: Callable[[int], tuple[int, int]], every: int
) -> list[Track]:
    """Return tracks of the heads whose faces nobody saw, without points and unsure, numbered behind those of the faces.

    heads: what was found, by frame. scenes: the first frame of a frame's scene, and that of the next one. every: frames
    from one search to the next.
    """
    tracks: list[Track] = []
    for frame in sorted(heads):
        known = [track.places[frame] for track in faces if frame in track.places]
        for box in without_face(heads[frame], known):
            place = Place(box, None, SCORE, True)
            near = (t for t in tracks if 0 < frame - t.last <= UNSEEN * every and scenes(t.last) == scenes(frame))
            track = next((t for t in near if same_place(t.places[t.last].box, box, REACH)), None)
            if track is None:
                tracks.append(Track(len(faces) + len(tracks), {frame: place}))
            else:
                track.put(frame, place)
    return [whole for track in tracks if (whole := _filled(track, faces, scenes(track.first), every)).places]


def _filled(track: Track, faces: Sequence[Track], scene: tuple[int, int], every: int) -> Track:
    """The track in every frame, from one interval before it to one after it, where no face is known."""
    places = dict(track.places)
    for before, after in pairwise(sorted(track.places)):
        filled = between(track.places[before], track.places[after], after - before)
        places |= dict(enumerate(filled, start=before + 1))
    for end, step in ((track.first, -1), (track.last, 1)):
        for frame in range(end + step, end + step * (every + 1), step):
            if scene[0] <= frame < scene[1]:
                places[frame] = Place(track.places[end].box, None, 0.0, False)
    kept = {}
    for frame, place in sorted(places.items()):
        known = [face.places[frame] for face in faces if frame in face.places]
        kept |= {frame: place} if without_face([place.box], known) else {}
    return Track(track.number, kept)


def _holds(head: Box, point: np.ndarray) -> bool:
    left, top, width, height = head
    return bool(abs(point[0] - left - width / 2) < 0.85 * width and abs(point[1] - top - height / 2) < 0.9 * height)
