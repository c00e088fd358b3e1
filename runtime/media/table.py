"""The paper's table: identities on top, attributes on the left, and in each cell the one with the other.

And the frames of a clip, numbered, one below the other: what previews are made of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

MAX_SIDE = 16_000  # px; a larger table gets smaller cells (WebP ends at 16,383, most viewers soon after)
PAPER, INK, FAINT = (255, 255, 255), (40, 40, 40), (140, 140, 140)  # RGB
FONT, WEIGHT = "sans", 400  # OpenCV's built-in Unicode font
FRAME_SIDE = 960  # px, longest side of a frame in a column of frames


@dataclass(frozen=True)
class Geometry:
    """Where things stand in a table; px."""

    rows: int  # attributes
    columns: int  # identities
    cell: int  # side of a picture
    gap: int  # between neighbouring cells
    margin: int  # around everything
    caption: int  # height of the strip with the labels, above the top row and left of the left column

    @classmethod
    def fit(cls, rows: int, columns: int, side: int, max_side: int = MAX_SIDE) -> Geometry:
        """Return the layout for pictures of `side` px, made smaller where the table would be larger than `max_side`."""
        cell = min(side, int(max_side / (max(rows, columns) + 1.3) / 1.06))
        return cls(rows, columns, cell, max(1, cell // 32), max(1, cell // 16), max(8, cell // 9))

    @property
    def width(self) -> int:
        """px, of the whole table"""
        return self.left(self.columns - 1) + self.cell + self.margin

    @property
    def height(self) -> int:
        """px, of the whole table"""
        return self.top(self.rows - 1) + self.cell + self.margin

    def left(self, column: int) -> int:
        """Return the left edge of a column of compositions; -1 is the column with the attribute photos."""
        return self._edge(column)

    def top(self, row: int) -> int:
        """Return the top edge of a row of compositions; -1 is the row with the identity photos."""
        return self._edge(row)

    def _edge(self, index: int) -> int:
        apart = self.margin if index >= 0 else 0  # the inputs stand a little off
        return self.margin + self.caption + (index + 1) * (self.cell + self.gap) + apart


def compose_table(
    identities: Sequence[np.ndarray],
    attributes: Sequence[np.ndarray],
    cells: Sequence[Sequence[np.ndarray]],
    identity_labels: Sequence[str],
    attribute_labels: Sequence[str],
) -> np.ndarray:
    """Draw the table, RGB uint8 [height, width, 3].

    `identities` (c pictures, on top) and `attributes` (r pictures, on the left) are the inputs' aligned crops; `cells`
    is [r][c], row by row. All pictures are RGB uint8, square, of any size. Labels too long for a cell are shortened.
    """
    rows, columns = len(attributes), len(identities)
    if not rows or not columns or len(cells) != rows or any(len(row) != columns for row in cells):
        raise ValueError(f"a table of {rows} x {columns} inputs needs as many cells in each row and column")
    place = Geometry.fit(rows, columns, cells[0][0].shape[0])
    table = np.full((place.height, place.width, 3), PAPER, np.uint8)
    for column, (picture, label) in enumerate(zip(identities, identity_labels, strict=True)):
        _put(table, picture, place, -1, column)
        caption = text_strip(label, place.cell, place.caption)
        table[place.margin : place.margin + place.caption, place.left(column) :][:, : place.cell] = caption
    for row, (picture, label) in enumerate(zip(attributes, attribute_labels, strict=True)):
        _put(table, picture, place, row, -1)
        caption = np.rot90(text_strip(label, place.cell, place.caption))
        table[place.top(row) :, place.margin : place.margin + place.caption][: place.cell] = caption
        for column in range(columns):
            _put(table, cells[row][column], place, row, column)
    _corner(table, place)
    return table


def squared(picture: np.ndarray, side: int) -> np.ndarray:
    """Return a picture RGB uint8 amid a square of `side` px, RGB uint8 [side, side, 3], on paper."""
    height, width = picture.shape[:2]
    if height == width:
        return picture
    factor = side / max(height, width)
    small = max(1, round(width * factor)), max(1, round(height * factor))
    square = np.full((side, side, 3), PAPER, np.uint8)
    left, top = (side - small[0]) // 2, (side - small[1]) // 2
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    square[top : top + small[1], left : left + small[0]] = cv2.resize(picture, small, interpolation=method)
    return square


def text_strip(text: str, width: int, height: int, colour: tuple[int, int, int] = INK) -> np.ndarray:
    """Draw `text` amid a strip, RGB uint8 [height, width, 3], shortened in its middle if it does not fit."""
    strip = np.full((height, width, 3), PAPER, np.uint8)
    size = max(6, round(height * 0.58))  # px, of the font
    shown = shorten(text, width, size)
    left = (width - text_width(shown, size)) // 2
    baseline = math.ceil(height * 0.66)
    cv2.putText(strip, shown, (max(0, left), baseline), colour, cv2.FontFace(FONT), size, WEIGHT)
    return strip


def shorten(text: str, width: int, size: int) -> str:
    """Return `text`, with as much of its middle replaced by an ellipsis as makes it at most `width` px wide."""
    if text_width(text, size) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        head, tail = (kept + 1) // 2, kept // 2
        shorter = f"{text[:head]}…{text[len(text) - tail :]}"
        if text_width(shorter, size) <= width:
            return shorter
    return "…"


def text_width(text: str, size: int) -> int:
    """Return the width in px of `text` in the table's font of `size` px."""
    _, _, width, _ = cv2.getTextSize((100_000, size * 2), text, (0, size), cv2.FontFace(FONT), size, WEIGHT)
    return width


def shrunk(frame: np.ndarray, side: int = FRAME_SIDE) -> np.ndarray:
    """Return a frame RGB uint8 [height, width, 3] as a picture of its own with no side longer than `side` px."""
    factor = min(1.0, side / max(frame.shape[:2]))
    size = max(1, round(frame.shape[1] * factor)), max(1, round(frame.shape[0] * factor))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def column_of_frames(frames: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Return pictures RGB uint8 [height, width, 3], each with words in its upper left corner, one below the other: RGB
    uint8."""
    rows = []
    for words, picture in frames:
        rows.append(picture.copy())
        outlined_text(rows[-1], words, (8, 20))
    width = max(row.shape[1] for row in rows)
    return np.vstack([np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0))) for row in rows])


def outlined_text(
    image: np.ndarray, text: str, place: tuple[int, int], colour: tuple[int, int, int] = (255, 255, 255)
) -> None:
    """Write small text into a picture RGB uint8, from its left end (x, y) on the base line, in px, readable on
    anything."""
    for thickness, shade in ((4, (0, 0, 0)), (1, colour)):
        cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, shade, thickness, cv2.LINE_AA)


def _put(table: np.ndarray, picture: np.ndarray, place: Geometry, row: int, column: int) -> None:
    side = place.cell
    if picture.shape[:2] != (side, side):
        method = cv2.INTER_AREA if picture.shape[0] > side else cv2.INTER_CUBIC
        picture = cv2.resize(picture, (side, side), interpolation=method)
    table[place.top(row) :, place.left(column) :][:side, :side] = picture


def _corner(table: np.ndarray, place: Geometry) -> None:
    """Say which side is which, in line with the labels, in the empty corner."""
    edge, side, height = place.margin, place.cell, place.caption
    table[edge : edge + height, place.left(-1) :][:, :side] = text_strip("identity", side, height, FAINT)
    sideways = np.rot90(text_strip("attributes", side, height, FAINT))
    table[place.top(-1) :, edge : edge + height][:side] = sideways
