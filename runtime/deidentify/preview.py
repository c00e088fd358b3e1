"""A picture of what was found before the work: frames with the boxes, numbers and actions of all tracks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from .places import Track

FRAMES = 6  # of a clip, at most
SIDE = 960  # px, longest side of each
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
        factor = min(1.0, SIDE / max(image.shape[:2]))
        size = round(image.shape[1] * factor), round(image.shape[0] * factor)
        shown = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        for track in tracks:
            place = track.places.get(number)
            if place is not None:
                left, top, width, height = (round(value * factor) for value in place.box)
                colour = SURE if track.sure else UNSURE
                cv2.rectangle(shown, (left, top), (left + width, top + height), colour, 2)
                action = track.action or ("replace" if track.sure else "mosaic")
                _write(shown, f"{track.number}: {action}", (left, max(14, top - 5)), colour)
        _write(shown, f"frame {number}", (8, 20), (255, 255, 255))
        rows.append(shown)
    width = max(row.shape[1] for row in rows)
    return np.vstack([np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0))) for row in rows])


def _write(image: np.ndarray, text: str, place: tuple[int, int], colour: tuple[int, int, int]) -> None:
    for thickness, shade in ((4, (0, 0, 0)), (1, colour)):
        cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, shade, thickness, cv2.LINE_AA)
