"""A picture of what was found before the work: frames with the boxes, numbers and actions of all tracks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from ..media.table import column_of_frames, outlined_text, shrunk
from .places import Track

FRAMES = 6  # of a clip, at most
SURE, UNSURE = (40, 200, 80), (240, 160, 40)  # RGB


def preview_frames(tracks: Sequence[Track], count: int) -> list[int]:
    """Return the frames to show, at most `FRAMES` of so many: those in which most tracks are seen for the first
    time."""
    wanted: list[int] = []
    left = {track.number: {frame for frame, place in track.places.items() if place.seen} for track in tracks}
    while left and len(wanted) < FRAMES:
        tally: dict[int, int] = {}
        for frames in left.values():
            for frame in frames:
                tally[frame] = tally.get(frame, 0) + 1
        if not tally:
            break
        best = max(tally, key=lambda frame: (tally[frame], -frame))
        wanted.append(best)
        left = {number: frames for number, frames in left.items() if best not in frames}
    return sorted(set(wanted)) or [count // 2]


def draw_preview(frames: Iterable[tuple[int, np.ndarray]], tracks: Sequence[Track]) -> np.ndarray:
    """Return frames RGB uint8 [height, width, 3] with their numbers, one below the other, with boxes drawn: RGB
    uint8."""
    rows = []
    for number, image in frames:
        shown = shrunk(image)
        factor = shown.shape[1] / image.shape[1]
        for track in tracks:
            place = track.places.get(number)
            if place is not None:
                left, top, width, height = (round(value * factor) for value in place.box)
                colour = SURE if track.sure else UNSURE
                cv2.rectangle(shown, (left, top), (left + width, top + height), colour, 2)
                action = track.action or ("replace" if track.sure else "mosaic")
                outlined_text(shown, f"{track.number}: {action}", (left, max(14, top - 5)), colour)
        rows.append((f"frame {number}", shown))
    return column_of_frames(rows)
