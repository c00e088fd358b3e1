"""Pictures: photos of every kind become upright sRGB through Pillow, and what is written is complete or not there."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from ..errors import FidError, InputError
from ..files import replacing
from ..labels.provenance import Note, embed_note
from .cicp import stated_colour
from .tone import ADOBE_RGB, GAMMA_22, needs_table, screen_picture

# What a folder of photos is searched for; a file named on its own may have any name.
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".jp2", ".ppm")
PHOTO_SUFFIXES += (".heic", ".heif")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")  # what write_image can write
MAX_PIXELS = 48_000_000  # larger photos are halved until they fit: 144 MB as RGB, and no face needs more
MOST_PIXELS = 1 << 29  # px that are decoded at all
MOST_SCANNED = 50 * MAX_PIXELS  # px times scans of a progressive JPEG; cameras and editors write 10 scans
JPEG_QUALITY = 95
WEBP_QUALITY = 95

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "AVIF", "TIFF", "JPEG2000")  # the first five load at once
_ANIMATED = ("PNG", "WEBP", "GIF", "AVIF")  # of the others, further pictures are pages or previews
_HEIC_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis"}
_AVIF_BRANDS = {b"avif", b"avis"}
_VIDEO_BRANDS = (b"iso", b"mp4", b"avc", b"qt ", b"M4V", b"3gp", b"dash", b"f4v")  # how they begin
_BITS_PER_SAMPLE = 258  # a tag of TIFF

# Pillow warns beyond its own limit and refuses beyond twice of it: the second wall, behind the size that is asked here.
Image.MAX_IMAGE_PIXELS = MOST_PIXELS


class TooLargeError(InputError):
    """A picture with more pixels than it may have."""


class UnknownFormatError(InputError):
    """Bytes that are no picture of a format that is read."""


def read_image(path: str | os.PathLike[str], *, still: bool = False) -> np.ndarray:
    """Return a photo as sRGB uint8 [height, width, 3], 0..255, upright (EXIF, `irot` and `imir` are applied).

    Colours are converted from the embedded ICC profile or the numbers of ISO/IEC 23091-2, HDR as in videos, though from
    the 8 bits that Pillow gives; grey becomes three equal channels, a palette is looked up, more
    than 8 bits are scaled by the file's own depth, floating point is taken as 0..1, and whatever is transparent is laid
    on white. Of an animation the first picture is taken, or with `still` it is refused. A photo of more than
    `MAX_PIXELS` is halved until it fits. Raises `InputError`, one sentence, for everything that is no readable picture.
    """
    path = Path(path)
    return decode_image(_read_bytes(path), str(path), still=still)


def decode_image(
    data: bytes | bytearray | memoryview | np.ndarray, name: str, *, max_pixels: int = MOST_PIXELS, still: bool = False
) -> np.ndarray:
    """Return the photo whose file has these bytes as `read_image` does; `name` is what a message calls it.

    Raises `TooLargeError` when it has more than `max_pixels`, before any of it is decoded, `UnknownFormatError` when it
    is no picture, and `InputError` when it is broken.
    """
    data = bytes(data)
    if not data:
        raise InputError(f"{name} is empty; give a photo.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow has to say about a broken file, a sentence here says
            return _decoded(data, name, max_pixels, still)
    except FidError:
        raise
    except MemoryError as error:
        raise FidError(f"there is not enough memory to read {name}.") from error
    except Image.DecompressionBombError as error:
        raise TooLargeError(_too_large(name, f"more than {2 * MOST_PIXELS / 1e6:.0f}", max_pixels)) from error
    except UnidentifiedImageError as error:
        odd = _odd_tiff(data)
        if odd is None:
            raise UnknownFormatError(_not_a_picture(data, name)) from error
        return odd
    except Exception as error:  # in a broken file, Pillow's parsers meet everything from KeyError to struct.error
        raise InputError(_unreadable(name)) from error


def find_photos(paths: Sequence[Path], also: tuple[str, ...] = ()) -> list[Path]:
    """Return every file given, and of every folder given its photos sorted by name (not those in its subfolders).

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


def check_output(path: Path, suffixes: tuple[str, ...] = PICTURE_SUFFIXES, inputs: Sequence[Path] = ()) -> None:
    """Raise `InputError` unless `path` ends in one of `suffixes`, lies in a folder that exists and is none of the
    `inputs`, however they are spelled."""
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{path} cannot be written: its name must end in {_either(suffixes)}.")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file to write.")
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: the folder {path.parent} does not exist; create it first.")
    check_not_input(path, inputs)


def check_not_input(path: Path, inputs: Sequence[Path]) -> None:
    """Raise `InputError` when `path` is one of the files `inputs`, by another name or through a link as well."""
    if path.exists() and any(one.exists() and path.samefile(one) for one in inputs):
        raise InputError(f"{path} is the original itself; give another name for the result.")


def write_image(path: str | os.PathLike[str], image: np.ndarray, note: Note | None = None) -> None:
    """Write RGB uint8 [height, width, 3] as PNG, JPEG or WebP by the name's ending, labelled as the note says.

    The file appears complete or not at all. Raises `InputError` for an unknown ending or a missing folder, `FidError`
    when the disk refuses.
    """
    path = Path(path)
    check_output(path)
    data = encode_image(image, path.suffix.lower(), note, path.name)
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def encode_image(image: np.ndarray, suffix: str, note: Note | None = None, name: str = "the picture") -> bytes:
    """Return the file's bytes of RGB uint8 [height, width, 3]; `suffix` is one of `PICTURE_SUFFIXES`."""
    import cv2  # here, because a process that only decodes does without

    from ..labels.mark import embed_mark

    parameters = {".png": [], ".webp": [cv2.IMWRITE_WEBP_QUALITY, WEBP_QUALITY]}.get(
        suffix, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    )
    image = embed_mark(image) if note is not None and note.mark else image
    done, encoded = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), parameters)
    if not done:
        raise FidError(f"{name} could not be encoded.")
    data = encoded.tobytes()
    return data if note is None else embed_note(data, note)


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a photo.")
    if not path.exists():
        raise InputError(f"{path} does not exist.")
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a photo.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error


def _decoded(data: bytes, name: str, max_pixels: int, still: bool) -> np.ndarray:
    image = _opened(data, name)
    pixels = image.size[0] * image.size[1]
    if pixels > max_pixels:
        raise TooLargeError(_too_large(name, f"{pixels / 1e6:.0f}", max_pixels))
    if still and image.format in _ANIMATED and getattr(image, "is_animated", False):
        raise InputError(f"{name} is an animation, and a photo is needed; give one picture of it, or make a video.")
    if image.format in ("JPEG", "MPO") and pixels * data.count(b"\xff\xda") > MOST_SCANNED:
        raise InputError(f"{name} is a JPEG picture in very many scans; save it anew, then it can be read.")
    if image.format == "PNG":
        Image.open(BytesIO(data), formats=("PNG",)).verify()  # all of it there, every checksum right
    stated = stated_colour(data) or _exif_colour(image)
    if stated and needs_table(*stated) and (image.format == "PNG" or not image.info.get("icc_profile")):
        image.info["colour"] = stated  # PNG prefers the numbers to a profile, HEIF the profile
    return np.array(_rendered(image))


def _opened(data: bytes, name: str) -> Image.Image:
    """The header of a picture, by the decoder itself; nothing is decoded yet."""
    formats = _FORMATS
    if data[4:8] == b"ftyp":
        end = min(int.from_bytes(data[:4], "big"), 512)
        brands = {data[at : at + 4] for at in (8, *range(16, end, 4))}  # the major one, and those it is compatible with
        if brands & _HEIC_BRANDS and not brands & _AVIF_BRANDS:
            _register_heif(name)
            formats = ("HEIF",)
    return Image.open(BytesIO(data), formats=formats)


def _register_heif(name: str) -> None:
    try:
        import pillow_heif
    except ImportError as error:
        raise InputError(
            f"{name} is a HEIC photo; `pip install 'fid-face[heif]'` brings what reads it, or save it as JPEG or PNG."
        ) from error
    pillow_heif.register_heif_opener()


def _rendered(image: Image.Image) -> Image.Image:
    """The opened picture decoded: mode RGB, sRGB, upright, on white, of at most `MAX_PIXELS`."""
    if image.format in ("JPEG", "MPO"):  # its decoder makes a huge one smaller by itself
        factor = 1
        while image.size[0] * image.size[1] > MAX_PIXELS * factor * factor and factor < 8:
            factor *= 2
        image.draft(None, (image.size[0] // factor, image.size[1] // factor))
    image.load()
    with suppress(OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error):  # broken EXIF: upright
        ImageOps.exif_transpose(image, in_place=True)
    image = _with_eight_bits(image)
    while image.size[0] * image.size[1] > MAX_PIXELS:
        image = image.reduce(2)
    image = _to_srgb(image)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _with_eight_bits(image: Image.Image) -> Image.Image:
    """The picture in a mode of 8 bits a channel: L, RGB, RGBA, CMYK or LAB."""
    if image.mode == "F":
        values = np.nan_to_num(np.array(image), nan=0.0, posinf=1.0, neginf=0.0)
        return _grey(255.0 * values, image)
    if image.mode.startswith("I"):
        tags = getattr(image, "tag_v2", {})
        return _grey(np.array(image) * (255.0 / (2 ** tags.get(_BITS_PER_SAMPLE, (16,))[0] - 1)), image)
    if "transparency" in image.info or image.mode in ("PA", "LA", "La", "RGBa"):
        return image.convert("RGBA")
    if image.mode in ("L", "RGB", "RGBA", "CMYK", "LAB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _grey(values: np.ndarray, image: Image.Image) -> Image.Image:
    grey = Image.fromarray(np.rint(np.clip(values, 0.0, 255.0)).astype(np.uint8))
    grey.info = image.info
    return grey


def _to_srgb(image: Image.Image) -> Image.Image:
    """The picture in sRGB: by the colours that it states by number, by its profile if that fits, CIELAB always."""
    profile, stated = image.info.get("icc_profile"), image.info.get("colour")
    if stated:
        shown = Image.fromarray(screen_picture(np.asarray(image.convert("RGB")), *stated))
        if image.mode == "RGBA":
            shown.putalpha(image.getchannel("A"))
        return shown
    if image.mode != "LAB" and not profile:
        return image
    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    try:
        if image.mode == "LAB":
            source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        else:
            source = ImageCms.ImageCmsProfile(BytesIO(profile or b""))
        if image.mode in ("RGB", "RGBA") and ImageCms.getProfileDescription(source).startswith("sRGB"):
            return image
        target, intent = ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC
        flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
        return ImageCms.profileToProfile(image, source, target, intent, mode, flags=flags) or image
    except (ImageCms.PyCMSError, OSError):  # a broken profile, or one for another number of channels
        return image


def _exif_colour(image: Image.Image) -> tuple[int, int] | None:
    """Adobe RGB as cameras state it, which write no profile: colours "uncalibrated", and the name R03 of the DCF."""
    with suppress(OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error, AttributeError):
        exif = image.getexif()
        names = exif.get_ifd(ExifTags.IFD.Interop)
        if exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.ColorSpace) == 65535 and str(names.get(1))[:3] == "R03":
            return ADOBE_RGB, GAMMA_22
    return None


def _odd_tiff(data: bytes) -> np.ndarray | None:
    """A TIFF picture in floating-point colour, which OpenCV reads and Pillow does not, as sRGB; None for any other."""
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return None
    import cv2

    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if image is None or image.dtype.kind != "f" or image.ndim != 3 or image.shape[2] not in (3, 4):
        return None
    values = np.clip(np.nan_to_num(image.astype(np.float32), nan=0.0, posinf=1.0, neginf=0.0), 0.0, 1.0)
    alpha = values[..., 3:] if image.shape[2] == 4 else 1.0
    return np.rint(255.0 * (values[..., 2::-1] * alpha + 1.0 - alpha)).astype(np.uint8)


def _too_large(name: str, megapixels: str, limit: int) -> str:
    return f"{name} has {megapixels} megapixels, and {limit / 1e6:.4g} are the limit; make it smaller."


def _unreadable(name: str) -> str:
    return f"{name} is not a picture that can be read: it is broken, cut off, or of another format."


def _not_a_picture(data: bytes, name: str) -> str:
    """What a file is that is no picture, where that can be seen, and what to do."""
    brand = data[8:12] if data[4:8] == b"ftyp" else b""
    if brand.startswith(_VIDEO_BRANDS) or data[:4] == b"\x1a\x45\xdf\xa3" or data[8:12] == b"AVI ":
        return f"{name} is a video, and a photo is needed here; `fid-run video --driving` takes a video."
    if data[:4] == b"PK\x03\x04" and name.lower().endswith(".npz"):
        return f"{name} is an identity file, which says who but not how: pose, expression and light come from a photo."
    if data[:5] == b"%PDF-":
        return f"{name} is a PDF document; save the picture in it as JPEG or PNG."
    return _unreadable(name)


def _either(words: tuple[str, ...]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
