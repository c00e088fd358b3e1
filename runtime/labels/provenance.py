"""What every picture that fid makes says about itself: synthetic, made by fid, with which bundle.

Up to three layers: a note, credentials signed with the user's certificate (`credentials.py`), and an invisible mark in
the pixels (`mark.py`), which is put in before a picture is encoded.

The note is an XMP packet, the one container that all of PNG, JPEG, WebP, GIF and MP4 hold, with the IPTC term for "made
by a trained algorithm" in the place where other programs look for it. It is put into the finished file's bytes, so it
does not depend on what an encoder supports. Anyone can strip it; it is a label for honest use, not a lock.
"""

from __future__ import annotations

import base64
import html
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..assets import installed_version
from ..errors import InputError
from .credentials import Signer, kind_of

IPTC_TERMS = "http://cv.iptc.org/newscodes/digitalsourcetype/"
MADE_BY_ALGORITHM = IPTC_TERMS + "trainedAlgorithmicMedia"  # every pixel comes from the generator
NOTE_FIELDS = ("bundle", "bundle_version", "kind", "source_type", "made_by", "version", "synthetic")
PART_BY_ALGORITHM = IPTC_TERMS + "compositeWithTrainedAlgorithmicMedia"  # a table that shows the input photos as well

_NAMESPACE = "urn:fid-face:provenance:1"
_JPEG_HEAD = b"http://ns.adobe.com/xap/1.0/\0"
_GIF_HEAD = b"\x21\xff\x0bXMP DataXMP"
_GIF_TAIL = b"\x01" + bytes(range(255, -1, -1)) + b"\0"  # the "magic trailer" of the XMP specification, part 3
_MP4_UUID = bytes.fromhex("BE7ACFCB97A942E89C71999491E3AFAC")
_PNG_HEAD = b"\x89PNG\r\n\x1a\n"
_IHDR_BYTES = 25  # 8 of head, 13 of data, 4 of checksum
_PNG_KEY = b"XML:com.adobe.xmp\0\0\0\0\0"  # keyword, not compressed, no language, no translated keyword
_VP8X_XMP = 0x04
_VP8X_ALPHA = 0x10


@dataclass(frozen=True)
class Note:
    """What a picture made by fid says about itself."""

    bundle: str  # the bundle's name
    bundle_version: str  # the bundle's version
    kind: str  # the command that made it: composition, grid, interpolation, sample
    source_type: str = MADE_BY_ALGORITHM  # an IPTC digital source type, as a URI
    made_by: str = "fid"  # the program
    version: str = ""  # the program's version; "" in the constructor is replaced by the installed one
    synthetic: bool = True  # always: nothing in it is a photograph of the person it seems to show
    packet: bool = field(default=True, compare=False)  # write the note itself
    mark: bool = field(default=True, compare=False)  # put the invisible mark into the pixels
    signer: Signer | None = field(default=None, compare=False, repr=False)  # sign the finished file
    inputs: tuple[Path, ...] = field(default=(), compare=False)  # named in what is signed

    def __post_init__(self) -> None:
        if not self.version:
            object.__setattr__(self, "version", installed_version() or "unknown")


def check_label(path: Path, note: Note | None) -> None:
    """Raise `InputError` when a file of that name cannot hold what is to be signed."""
    if note is not None and note.signer is not None and path.suffix.lower() in (".mkv", ".webm"):
        raise InputError(f"{path}: Matroska files cannot hold Content Credentials; write .mp4, or do not sign.")


def embed_note(data: bytes, note: Note) -> bytes:
    """Return the bytes of a PNG, JPEG, WebP, GIF or MP4 file with the note inside, and signed last if it is to be.

    `ValueError` for any other file.
    """
    data = _with_packet(data, _packet(note), note.version) if note.packet else data
    kind = kind_of(data[:16])
    if note.signer is None or kind is None:
        return data
    return note.signer.sign(data, kind, note.kind, note.source_type, note.inputs)


def inserted_note(note: Note) -> dict[str, str]:
    """Return what the page of a browser puts into the files that it makes itself, base64: under "png" the chunks after
    IHDR, under "mp4" the box at the end."""
    head = _PNG_HEAD + bytes(_IHDR_BYTES)
    packet = _packet(note)
    parts = {"png": _with_packet(head, packet, note.version)[len(head) :], "mp4": _mp4_box(packet)}
    return {kind: base64.b64encode(part).decode() for kind, part in parts.items()}


def _with_packet(data: bytes, packet: bytes, version: str) -> bytes:
    if data.startswith(_PNG_HEAD):
        text = _png_chunk(b"tEXt", b"Software\0" + f"fid {version}".encode("latin-1", "replace"))
        after_header = len(_PNG_HEAD) + _IHDR_BYTES
        return data[:after_header] + text + _png_chunk(b"iTXt", _PNG_KEY + packet) + data[after_header:]
    if data.startswith(b"\xff\xd8"):
        body = _JPEG_HEAD + packet
        at = 2
        if data[2:4] == b"\xff\xe0":  # JFIF must stay the first segment
            at += 2 + struct.unpack(">H", data[4:6])[0]
        return data[:at] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[at:]
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _embed_webp(data, packet)
    if data[:4] == b"GIF8" and data.endswith(b"\x3b"):
        return data[:-1] + _GIF_HEAD + packet + _GIF_TAIL + b"\x3b"
    if data[4:8] == b"ftyp":
        return data + _mp4_box(packet)
    raise ValueError("a provenance note can be put into PNG, JPEG, WebP, GIF and MP4 files only")


def append_note(path: Path, note: Note) -> None:
    """Put the note at the end of an MP4 or MOV file of any length, and sign it last if it is to be; a file of another
    kind stays as it is."""
    with open(path, "r+b") as file:
        if file.read(8)[4:8] != b"ftyp":
            return
        if note.packet:
            file.seek(0, os.SEEK_END)
            file.write(_mp4_box(_packet(note)))
    if note.signer is not None:
        signed = path.with_name(f"{path.stem}.signed{path.suffix}")
        try:
            with open(path, "rb") as file, open(signed, "w+b") as result:
                note.signer.sign_stream(file, result, "mp4", note.kind, note.source_type, note.inputs)
            signed.replace(path)
        finally:
            signed.unlink(missing_ok=True)


def read_note(path: str | os.PathLike[str]) -> Note | None:
    """Return the note in the file; None when it holds none, or none that fid wrote."""
    return note_in(Path(path).read_bytes())


def note_in(data: bytes) -> Note | None:
    """Return the note in the bytes of a file; None when they hold none, or none that fid wrote."""
    packets = _png_packets(data) if data.startswith(_PNG_HEAD) else _marked_packets(data)
    for packet in packets:
        fields = dict(re.findall(rb'\bfid:(\w+)="([^"]*)"', packet)) if _NAMESPACE.encode() in packet else {}
        texts: dict[str, str] = {key.decode(): html.unescape(value.decode()) for key, value in fields.items()}
        if {"bundle", "bundle_version", "kind", "source_type", "made_by", "version"} <= texts.keys():
            told = (texts[name] for name in NOTE_FIELDS[:-1])
            return Note(*told, synthetic=texts.get("synthetic", "True") == "True")
    return None


def _mp4_box(packet: bytes) -> bytes:
    return struct.pack(">I", 24 + len(packet)) + b"uuid" + _MP4_UUID + packet


def _packet(note: Note) -> bytes:
    told = {name: getattr(note, name) for name in NOTE_FIELDS}
    fields = "\n".join(f"   fid:{key}={_attribute(str(value))}" for key, value in told.items())
    creator = f"fid {note.version} (bundle {note.bundle} {note.bundle_version})"
    return f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
   xmlns:xmp="http://ns.adobe.com/xap/1.0/"
   xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
   xmlns:fid="{_NAMESPACE}"
   xmp:CreatorTool={_attribute(creator)}
   Iptc4xmpExt:DigitalSourceType={_attribute(note.source_type)}
{fields}/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>""".encode()


def _attribute(text: str) -> str:
    """`text` as an XML attribute, always in double quotes."""
    quoted = html.escape(text, quote=False).replace('"', "&quot;")  # xml.sax takes 50 ms to import
    return '"' + quoted.replace("\n", "&#10;").replace("\r", "&#13;").replace("\t", "&#9;") + '"'


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png_packets(data: bytes) -> Iterator[bytes]:
    at = len(_PNG_HEAD)
    while at + 12 <= len(data):
        length = struct.unpack(">I", data[at : at + 4])[0]
        if data[at + 4 : at + 8] == b"iTXt":
            yield data[at + 8 : at + 8 + length]
        at += 12 + length


def _marked_packets(data: bytes) -> Iterator[bytes]:
    """XMP packets by their own begin and end marks, which the standard made for scanning files of any kind."""
    for found in re.finditer(rb"<\?xpacket begin=.*?<\?xpacket end=", data, re.DOTALL):
        yield found.group()


def _embed_webp(data: bytes, packet: bytes) -> bytes:
    """Add an XMP chunk; a simple file is turned into an extended one first, because only those can carry it."""
    chunks = data[12:]
    if chunks[:4] == b"VP8X":
        chunks = chunks[:8] + bytes([chunks[8] | _VP8X_XMP]) + chunks[9:]
    else:
        width, height = webp_size(chunks)
        alpha = chunks[:4] == b"VP8L" and bool(chunks[12] >> 4 & 1)
        sizes = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        flags = _VP8X_XMP | (_VP8X_ALPHA if alpha else 0)
        chunks = b"VP8X" + struct.pack("<I", 10) + bytes([flags, 0, 0, 0]) + sizes + chunks
    body = chunks + b"XMP " + struct.pack("<I", len(packet)) + packet + b"\0" * (len(packet) % 2)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def webp_size(chunks: bytes) -> tuple[int, int]:
    """Return width and height, px, of a WebP file from its chunks, which start at byte 12; (0, 0) for an unknown first
    one."""
    if chunks[:4] == b"VP8X":  # after 8 bytes of head and 4 of flags, both less one
        return int.from_bytes(chunks[12:15], "little") + 1, int.from_bytes(chunks[15:18], "little") + 1
    if chunks[:4] == b"VP8 ":
        width, height = struct.unpack("<HH", chunks[14:18])  # after 8 bytes of head, 3 of frame tag, 3 of start code
        return width & 0x3FFF, height & 0x3FFF
    if chunks[:4] != b"VP8L":
        return 0, 0
    bits = int.from_bytes(chunks[9:13], "little")  # after the signature byte
    return (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
