"""Reading any photo OpenCV can decode into RGB, and writing pictures so that no half file is ever left behind."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from ..errors import FidError, InputError
from .provenance import Note, embed_note, webp_size

# What a folder of photos is searched for; a file named on its own may have any name.
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".jp2", ".ppm")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")  # what write_image can write
MAX_PIXELS = 48_000_000  # larger photos are halved until they fit: 144 MB as RGB, and no face needs more
JPEG_QUALITY = 95
WEBP_QUALITY = 95

_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_ORIENTATION_TAG = 0x0112


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """The photo as RGB uint8 [height, width, 3], 0..255, upright (the EXIF orientation is applied).

    Grey becomes three equal channels, a palette is looked up, 16-bit is scaled to 8, floating point is taken as 0..1,
    and whatever is transparent is laid on white. Of an animation the first picture is taken. A photo of more than
    `MAX_PIXELS` is halved until it fits. Raises `InputError`, one sentence, for everything that is no readable picture.
    """
    path = Path(path)
    return decode_image(_read_bytes(path), str(path))


def decode_image(data: np.ndarray, name: str) -> np.ndarray:
    """The same for the bytes of a photo, uint8 [bytes]; `name` is what a message calls it."""
    head = data[:12].tobytes()
    if not head:
        raise InputError(f"{name} is empty; give a photo.")
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS:
        raise InputError(f"{name} is a HEIC photo, which OpenCV cannot read; save it as JPEG or PNG first.")
    if head[:4] == b"\x89PNG" and not png_is_whole(data):
        raise InputError(f"{name} is a PNG picture that is broken or cut off; copy or download it again.")
    try:
        image = _decode_jpeg(data) if head[:3] == b"\xff\xd8\xff" else _decode_other(data)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in str(error):
            raise InputError(f"{name} has more pixels than OpenCV reads (2^30); make it smaller first.") from error
        image = None
    except MemoryError as error:
        raise FidError(f"there is not enough memory to read {name}.") from error
    if image is None or image.size == 0:
        raise InputError(f"{name} is not a picture that can be read: it is broken, cut off, or of another format.")
    return np.ascontiguousarray(_shrink(image))


def find_photos(paths: Sequence[Path], also: tuple[str, ...] = ()) -> list[Path]:
    """Every file given, and of every folder given its photos sorted by name (not those in its subfolders).

    `also` are further endings of names, in small letters, to take from folders. Raises `InputError` for a folder
    without any, and for what does not exist.
    """
    photos: list[Path] = []
    for path in paths:
        if path.is_dir():
            suffixes = (*PHOTO_SUFFIXES, *also)
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes and file.is_file())
            if not inside:
                raise InputError(f"there are no photos in the folder {path}.")
            photos.extend(inside)
        elif path.exists():
            photos.append(path)
        else:
            raise InputError(f"{path} does not exist.")
    return photos


def check_output(path: Path, suffixes: tuple[str, ...] = PICTURE_SUFFIXES, source: Path | None = None) -> None:
    """Raise `InputError` unless `path` ends in one of `suffixes`, lies in a folder that exists and is not `source`."""
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{path} cannot be written: its name must end in {_either(suffixes)}.")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file to write.")
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: the folder {path.parent} does not exist; create it first.")
    if source is not None and path.exists() and source.exists() and path.samefile(source):
        raise InputError(f"{path} is the original itself; give another name for the result.")


def write_image(path: str | os.PathLike[str], image: np.ndarray, note: Note | None = None) -> None:
    """Write RGB uint8 [height, width, 3] as PNG, JPEG or WebP by the name's ending, with the provenance note if given.

    The file appears complete or not at all. Raises `InputError` for an unknown ending or a missing folder, `FidError`
    when the disk refuses.
    """
    path = Path(path)
    check_output(path)
    data = encode_image(image, path.suffix.lower(), note, path.name)
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def encode_image(image: np.ndarray, suffix: str, note: Note | None = None, name: str = "the picture") -> bytes:
    """The file's bytes of RGB uint8 [height, width, 3]; `suffix` is one of `PICTURE_SUFFIXES`."""
    parameters = {".png": [], ".webp": [cv2.IMWRITE_WEBP_QUALITY, WEBP_QUALITY]}.get(
        suffix, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    )
    done, encoded = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), parameters)
    if not done:
        raise FidError(f"{name} could not be encoded.")
    data = encoded.tobytes()
    return data if note is None else embed_note(data, note)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, with the same ending; renamed to `path` at the end, removed after any error."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise FidError(f"{path} could not be written: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _read_bytes(path: Path) -> np.ndarray:
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a photo.")
    if not path.exists():
        raise InputError(f"{path} does not exist.")
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a photo.")
    try:
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error


def _decode_jpeg(data: np.ndarray) -> np.ndarray | None:
    """JPEG is 8-bit and never transparent; OpenCV turns it upright and, for a huge one, decodes it already smaller."""
    pixels = jpeg_pixels(data)
    mode = cv2.IMREAD_COLOR_RGB
    for factor, reduced in (
        (2, cv2.IMREAD_REDUCED_COLOR_2),
        (4, cv2.IMREAD_REDUCED_COLOR_4),
        (8, cv2.IMREAD_REDUCED_COLOR_8),
    ):
        if pixels > MAX_PIXELS * (factor // 2) ** 2:
            mode = reduced
    image = cv2.imdecode(data, mode)
    if image is None or mode == cv2.IMREAD_COLOR_RGB:
        return image
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def jpeg_pixels(data: np.ndarray) -> int:
    """Width times height from the frame header of a JPEG file [bytes] uint8; 0 when there is none."""
    view, at = data.data, 2
    while at + 9 <= len(view) and view[at] == 0xFF:
        marker = view[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # the start-of-frame markers
            height, width = struct.unpack(">HH", view[at + 5 : at + 9])
            return height * width
        at += 2 + struct.unpack(">H", view[at + 2 : at + 4])[0]
    return 0


def png_is_whole(data: np.ndarray) -> bool:
    """Whether all chunks of a PNG file [bytes] uint8 are there, those of the picture with the right checksum.

    libpng would find out, too, but says so on stderr in its own words.
    """
    view, at, kind = data.data, 8, b""
    while kind != b"IEND" and at + 12 <= len(view):
        end = at + 8 + struct.unpack(">I", view[at : at + 4])[0]
        kind = bytes(view[at + 4 : at + 8])
        if end + 4 > len(view):
            return False
        needed = kind[:1].isupper()
        if needed and struct.unpack(">I", view[end : end + 4])[0] != zlib.crc32(view[at + 4 : end]):
            return False
        at = end + 4
    return kind == b"IEND"


def stated_pixels(data: np.ndarray) -> int:
    """Width times height as the header of a JPEG, PNG or WebP file [bytes] uint8 says, without decoding it.

    0 for any other file, and where there is no such header.
    """
    head = data[:32].tobytes()
    if head[:3] == b"\xff\xd8\xff":
        return jpeg_pixels(data)
    if head[:8] == b"\x89PNG\r\n\x1a\n" and head[12:16] == b"IHDR" and len(head) >= 24:
        width, height = struct.unpack(">II", head[16:24])
        return width * height
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP" and len(head) >= 30:
        width, height = webp_size(head[12:])
        return width * height
    return 0


def _decode_other(data: np.ndarray) -> np.ndarray | None:
    """Decoded as stored, so that transparency and 16 bits are seen, then brought to upright RGB uint8."""
    image, kinds, metadata = cv2.imdecodeWithMetadata(data, flags=cv2.IMREAD_UNCHANGED)
    if image is None:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)  # the few layouts that only the plain reader converts
        return image
    image = _shrink(image)  # first, so that the steps below need less memory
    exif = next((block for kind, block in zip(kinds, metadata, strict=True) if kind == cv2.IMAGE_METADATA_EXIF), None)
    if exif is not None:
        image = _upright(image, exif_orientation(np.asarray(exif).tobytes()))
    return _to_rgb8(image)


def _to_rgb8(image: np.ndarray) -> np.ndarray:
    """Any depth and 1 to 4 channels (grey, grey + alpha, BGR, BGRA) as RGB uint8."""
    if image.dtype == np.uint16:
        image = cv2.convertScaleAbs(image, alpha=1 / 257)
    elif image.dtype != np.uint8:
        finite = np.nan_to_num(image.astype(np.float32), nan=0.0, posinf=1.0, neginf=0.0)
        image = np.rint(np.clip(finite, 0.0, 1.0) * 255.0).astype(np.uint8)
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    channels = image.shape[2]
    if channels == 1:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if channels == 2:
        return _on_white(cv2.cvtColor(image[..., 0], cv2.COLOR_GRAY2RGB), image[..., 1])
    if channels == 4:
        return _on_white(cv2.cvtColor(image, cv2.COLOR_BGRA2RGB), image[..., 3])
    return cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2RGB)


def _on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    if alpha.min() == 255:
        return colour
    opacity = alpha[..., None].astype(np.float32) / 255.0
    return np.rint(colour * opacity + 255.0 * (1.0 - opacity)).astype(np.uint8)


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """The EXIF orientation (1 to 8) undone."""
    if orientation in (5, 6, 7, 8):  # the stored rows are the columns of the picture
        image = cv2.transpose(image)
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)  # 1 left-right, 0 top-bottom, -1 both
    return image if flip is None else cv2.flip(image, flip)


def exif_orientation(exif: bytes) -> int:
    """The orientation 1..8 in an EXIF block (a TIFF header, perhaps after `Exif\\0\\0`); 1 when there is none."""
    block = exif[6:] if exif.startswith(b"Exif\0\0") else exif
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None or len(block) < 10:
        return 1
    start = struct.unpack_from(order + "I", block, 4)[0]
    if start + 2 > len(block):
        return 1
    for entry in range(struct.unpack_from(order + "H", block, start)[0]):
        at = start + 2 + 12 * entry
        if at + 12 > len(block):
            break
        if struct.unpack_from(order + "H", block, at)[0] == _ORIENTATION_TAG:
            value = struct.unpack_from(order + "H", block, at + 8)[0]
            return value if 1 <= value <= 8 else 1
    return 1


def _shrink(image: np.ndarray) -> np.ndarray:
    """Halved until it has at most `MAX_PIXELS`."""
    while image.shape[0] * image.shape[1] > MAX_PIXELS:
        image = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return image


def _either(words: tuple[str, ...]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
