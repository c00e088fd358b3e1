"""Read which colours a picture file states by number: `colr` of AVIF and HEIC (ISO 23008-12), `cICP` of PNG.

The numbers are those of ISO/IEC 23091-2, which video has as well; Pillow does not tell them.
"""

from __future__ import annotations

from collections.abc import Iterator

UNSAID = 2


def stated_colour(data: bytes) -> tuple[int, int] | None:
    """Return the numbers of colour primaries and transfer characteristics that a file's bytes state; None without.

    Of a HEIF file with several pictures, such as one with a gain map, those of the primary one. Broken bytes state
    none.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        found = _of_png(data)
    elif data[4:8] == b"ftyp":
        found = _of_heif(data)
    else:
        found = None
    return None if found is None or found == (UNSAID, UNSAID) else found


def _of_png(data: bytes) -> tuple[int, int] | None:
    at = 8
    while at + 12 <= len(data) and data[at + 4 : at + 8] != b"IDAT":  # it stands before the picture
        length = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"cICP" and length == 4:
            return data[at + 8], data[at + 9]
        at += 12 + length
    return None


def _of_heif(data: bytes) -> tuple[int, int] | None:
    meta = next((body for kind, body in _boxes(data) if kind == b"meta"), b"")
    inside = dict(_boxes(meta[4:]))  # version and flags first
    entries = dict(_boxes(inside.get(b"iprp", b"")))
    properties = [body if kind == b"colr" else b"" for kind, body in _boxes(entries.get(b"ipco", b""))]
    primary = inside.get(b"pitm", b"")
    item = int.from_bytes(primary[4 : 6 if primary[:1] == b"\0" else 8], "big")
    for number in _properties_of(item, entries.get(b"ipma", b"")):
        stated = properties[number - 1] if 0 < number <= len(properties) else b""
        if stated[:4] == b"nclx" and len(stated) >= 8:
            return int.from_bytes(stated[4:6], "big"), int.from_bytes(stated[6:8], "big")
    return None


def _properties_of(item: int, table: bytes) -> list[int]:
    """The numbers of an item's properties, from 1 on, by the box `ipma`."""
    wide, many = (4 if table[:1] != b"\0" else 2), (2 if table[3:4] and table[3] & 1 else 1)
    at = 8
    while at + wide < len(table):
        count, begin = table[at + wide], at + wide + 1
        if int.from_bytes(table[at : at + wide], "big") == item:
            parts = (table[begin + many * n : begin + many * (n + 1)] for n in range(count))
            return [int.from_bytes(part, "big") & ((1 << 8 * many - 1) - 1) for part in parts]  # less the essential bit
        at = begin + many * count
    return []


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, content) of the boxes that follow one another."""
    at = 0
    while at + 8 <= len(data):
        size, head = int.from_bytes(data[at : at + 4], "big"), 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        size = size or len(data) - at  # 0: until the end
        if size < head:
            return
        yield data[at + 4 : at + 8], data[at + head : at + size]
        at += size
