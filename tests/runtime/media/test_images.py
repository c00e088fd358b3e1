"""Every kind of picture a user may have either is read as upright RGB uint8 or is refused in one sentence."""

import io
import os
import struct
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from fid.runtime.errors import FidError, InputError
from fid.runtime.media import images
from fid.runtime.media.images import (
    TooLargeError,
    UnknownFormatError,
    check_output,
    decode_image,
    find_photos,
    read_image,
    write_image,
)
from PIL import Image, ImageCms

SKIN = (170, 132, 113)  # sRGB


def colours(height: int = 24, width: int = 40) -> np.ndarray:
    """RGB uint8: red top left, green top right, blue bottom left, white bottom right."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2] = (255, 0, 0)
    image[: height // 2, width // 2 :] = (0, 255, 0)
    image[height // 2 :, : width // 2] = (0, 0, 255)
    image[height // 2 :, width // 2 :] = (255, 255, 255)
    return image


def encode(suffix: str, image: np.ndarray) -> bytes:
    """`image` is in OpenCV's order (BGR or BGRA)."""
    done, data = cv2.imencode(suffix, image)
    assert done
    return data.tobytes()


def saved(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    """A file by Pillow; an array is RGB."""
    file = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(file, kind, **options)
    return file.getvalue()


def mean_colour(data: bytes) -> list[float]:
    return decode_image(data, "a").mean(axis=(0, 1)).tolist()


def stored_for(image: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera stores so that a viewer that applies `orientation` shows `image`."""
    stored = {
        1: image,
        2: image[:, ::-1],
        3: image[::-1, ::-1],
        4: image[::-1],
        5: image.transpose(1, 0, 2),
        6: np.rot90(image, 1),  # shown after a quarter turn clockwise
        7: np.rot90(image, 2).transpose(1, 0, 2),
        8: np.rot90(image, -1),
    }[orientation]
    return np.ascontiguousarray(stored)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_orientation(kind: str, orientation: int) -> None:
    """By EXIF; in AVIF Pillow writes `irot` and `imir` in its place, which are part of the picture."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind in ("JPEG", "AVIF") else {}
    data = saved(stored_for(colours(), orientation), kind, exif=exif, **options)
    if kind == "AVIF":
        assert orientation < 3 or b"irot" in data or b"imir" in data
    read = decode_image(data, "a").astype(int)
    assert read.shape == (24, 40, 3)
    assert np.abs(read - colours()).mean() < 8  # smeared colour borders


@pytest.mark.parametrize("block", [b"", b"II*\0\xff\xff\xff\xff\0\0", b"II*\0\x08\0\0\0\1\0", b"garbage in here"])
def test_broken_exif_means_upright(block: bytes) -> None:
    data = saved(colours(), "JPEG", exif=b"Exif\0\0" + block, quality=95)
    assert decode_image(data, "a").shape == (24, 40, 3)


def test_orientation_that_does_not_exist_means_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 9
    assert decode_image(saved(colours(), "PNG", exif=exif), "a").shape == (24, 40, 3)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tiff", ".gif", ".avif", ".ppm"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encode(suffix, colours()[..., ::-1].copy()))
    read = read_image(path)
    assert read.dtype == np.uint8
    assert read.flags["C_CONTIGUOUS"]
    assert np.abs(read.astype(int) - colours()).mean() < 8


def test_the_ending_of_the_name_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "photo.txt").write_bytes(encode(".png", colours()[..., ::-1].copy()))
    np.testing.assert_array_equal(read_image(tmp_path / "photo.txt"), colours())


def test_names_in_any_script(tmp_path: Path) -> None:
    path = tmp_path / "Grüße 日本 лицо.png"
    write_image(path, colours())
    np.testing.assert_array_equal(read_image(path), colours())


def test_grey_and_sixteen_bits(tmp_path: Path) -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    (tmp_path / "grey.png").write_bytes(encode(".png", ramp))
    (tmp_path / "grey16.png").write_bytes(encode(".png", ramp.astype(np.uint16) * 257))
    (tmp_path / "colour16.tiff").write_bytes(encode(".tiff", np.dstack([ramp.astype(np.uint16) * 257] * 3)))
    for name in ("grey.png", "grey16.png", "colour16.tiff"):
        np.testing.assert_array_equal(read_image(tmp_path / name), np.dstack([ramp] * 3))


@pytest.mark.parametrize("depth", [10, 12])
def test_avif_of_more_than_eight_bits(depth: int) -> None:
    level = np.full((16, 16, 3), round(200 / 255 * (2**depth - 1)), np.uint16)
    done, data = cv2.imencode(".avif", level, [cv2.IMWRITE_AVIF_DEPTH, depth, cv2.IMWRITE_AVIF_QUALITY, 95])
    assert done
    assert mean_colour(data.tobytes()) == pytest.approx([200] * 3, abs=2)


@pytest.mark.parametrize(("layout", "depth"), [("rgb48le", 16), ("gray12le", 12), ("gray10le", 10), ("gray16le", 16)])
def test_jpeg_2000_of_more_than_eight_bits(layout: str, depth: int) -> None:
    encoder = av.CodecContext.create("jpeg2000", "w")
    encoder.width = encoder.height = 32
    encoder.pix_fmt, encoder.time_base, encoder.options = layout, Fraction(1, 25), {"format": "jp2"}
    level = np.full((32, 32, 3) if layout == "rgb48le" else (32, 32), round(200 / 255 * (2**depth - 1)), np.uint16)
    packets = encoder.encode(av.VideoFrame.from_ndarray(level, format=layout)) + encoder.encode(None)
    assert mean_colour(bytes(packets[0])) == pytest.approx([200] * 3, abs=2)


@pytest.mark.parametrize("maximum", [1, 15, 255, 1000, 1023, 4095, 65535])
@pytest.mark.parametrize("kind", ["P2", "P3", "P5", "P6"])
def test_ppm_with_any_maximum(kind: str, maximum: int) -> None:
    level = round(0.8 * maximum)
    count = 4 * (3 if kind in ("P3", "P6") else 1)
    plain = kind in ("P2", "P3")
    body = f"{level} ".encode() * count if plain else level.to_bytes(1 if maximum < 256 else 2, "big") * count
    data = f"{kind}\n2 2\n{maximum}\n".encode() + body
    assert mean_colour(data) == pytest.approx([255 * level / maximum] * 3, abs=1)


def test_tiff_of_twelve_bits() -> None:
    data = bytearray(saved(Image.fromarray(np.full((8, 8), 3212, np.uint16)), "TIFF"))  # of 4095
    at = data.index(struct.pack("<HHI", 258, 3, 1)) + 8  # the tag BitsPerSample
    data[at : at + 2] = struct.pack("<H", 12)
    packed = np.full(64, 3212).reshape(-1, 2)  # two values in three bytes
    rows = np.stack([packed[:, 0] >> 4, (packed[:, 0] & 15) << 4 | packed[:, 1] >> 8, packed[:, 1] & 255], 1)
    start = struct.unpack("<I", data[data.index(struct.pack("<HHI", 273, 4, 1)) + 8 :][:4])[0]
    data[start : start + rows.size] = rows.astype(np.uint8).tobytes()
    assert mean_colour(bytes(data)) == pytest.approx([200] * 3, abs=1)


def profile_of(primaries: tuple[tuple[float, float], ...], gamma: float) -> bytes:
    """An ICC profile, version 2, of a display with D50 white: its three primaries as XYZ columns, one gamma."""
    (xr, yr), (xg, yg), (xb, yb) = primaries
    columns = np.array([[xr / yr, xg / yg, xb / yb], [1, 1, 1], [(1 - x - y) / y for x, y in primaries]])
    white = np.array([0.9642, 1.0, 0.8249])
    xyz = columns * np.linalg.solve(columns, white)

    def fixed(values: np.ndarray) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    name = b"test\0"
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    bodies = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(78),
        b"wtpt": fixed(white),
        **{b"rgb"[i : i + 1] + b"XYZ": fixed(xyz[:, i]) for i in range(3)},
        **{b"rgb"[i : i + 1] + b"TRC": curve for i in range(3)},
    }
    at, table, blob = 128 + 4 + 12 * len(bodies), b"", b""
    for tag, body in bodies.items():
        body += bytes(-len(body) % 4)
        table += tag + struct.pack(">II", at + len(blob), len(body))
        blob += body
    head = struct.pack(">I4sI4s4s4s", at + len(blob), b"lcms", 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">iii", *(round(v * 65536) for v in white)) + bytes(48)
    return head + struct.pack(">I", len(bodies)) + table + blob


DISPLAY_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
PROPHOTO = ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001))


def adapted(primaries: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    """Primaries given for D65 as seen by an eye adapted to D50 (Bradford), as profiles state them."""
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    from_white, to_white = bradford @ (0.9505, 1.0, 1.0891), bradford @ (0.9642, 1.0, 0.8249)
    change = np.linalg.inv(bradford) @ np.diag(to_white / from_white) @ bradford
    moved = [change @ (x / y, 1, (1 - x - y) / y) for x, y in primaries]
    return tuple((x / (x + y + z), y / (x + y + z)) for x, y, z in moved)


def linear(srgb: np.ndarray) -> np.ndarray:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


SRGB_TO_XYZ_D50 = np.array([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7142]])


@pytest.mark.parametrize(
    ("primaries", "gamma"), [(adapted(DISPLAY_P3), 2.2), (PROPHOTO, 1.8)], ids=["Display P3", "ProPhoto"]
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "AVIF"])
def test_an_icc_profile_is_converted_to_srgb(
    kind: str, primaries: tuple[tuple[float, float], ...], gamma: float
) -> None:
    columns = np.array([[x / y for x, y in primaries], [1, 1, 1], [(1 - x - y) / y for x, y in primaries]])
    to_xyz = columns * np.linalg.solve(columns, [0.9642, 1.0, 0.8249])
    skin = SRGB_TO_XYZ_D50 @ linear(np.array(SKIN) / 255)
    stored = np.rint(255 * np.linalg.solve(to_xyz, skin) ** (1 / gamma)).astype(np.uint8)
    assert np.abs(stored - np.array(SKIN)).max() > 4  # ignored, it would be wrong by that
    options = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}.get(kind, {"quality": 100})
    data = saved(np.full((16, 16, 3), stored, np.uint8), kind, icc_profile=profile_of(primaries, gamma), **options)
    assert mean_colour(data) == pytest.approx(SKIN, abs=2.5)


def test_cielab_becomes_srgb() -> None:
    lab = ImageCms.profileToProfile(
        Image.new("RGB", (8, 8), SKIN), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    assert mean_colour(saved(lab, "TIFF")) == pytest.approx(SKIN, abs=2)


def test_colours_of_transparent_pictures_are_converted_too() -> None:
    picture = Image.new("RGBA", (8, 8), (*SKIN, 255))
    plain = mean_colour(saved(picture, "PNG"))
    converted = mean_colour(saved(picture, "PNG", icc_profile=profile_of(PROPHOTO, 1.8)))
    assert plain == list(SKIN)
    assert converted[0] > SKIN[0] + 10


@pytest.mark.parametrize("profile", [b"no profile", profile_of(PROPHOTO, 1.8)[:100]])
def test_a_broken_profile_is_left_alone(profile: bytes) -> None:
    data = saved(np.full((8, 8, 3), SKIN, np.uint8), "PNG", icc_profile=profile)
    assert mean_colour(data) == list(SKIN)
    grey = saved(Image.new("L", (8, 8), 90), "PNG", icc_profile=profile_of(PROPHOTO, 1.8))  # for three channels
    assert mean_colour(grey) == [90] * 3


def test_cmyk() -> None:
    assert mean_colour(saved(Image.new("RGB", (8, 8), SKIN).convert("CMYK"), "TIFF")) == pytest.approx(SKIN, abs=1)


def brand_of(data: bytes, brand: bytes) -> bytes:
    """The file with another major brand; it keeps its compatible ones."""
    return data[:8] + brand + data[12:]


def test_the_compatible_brands_tell_avif_from_heic() -> None:
    data = saved(np.full((16, 16, 3), SKIN, np.uint8), "AVIF", quality=100)
    assert mean_colour(brand_of(data, b"mif1")) == pytest.approx(SKIN, abs=2)
    with pytest.raises(InputError, match=r"HEIC photo; `pip install 'fid-face\[heif\]'`|not a picture"):
        decode_image(b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "a")


def test_heic_without_its_reader_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for head in (b"ftypheic\0\0\0\0mif1heic", b"ftypmif1\0\0\0\0mif1heic"):
        with pytest.raises(InputError, match=r"a is a HEIC photo; `pip install 'fid-face\[heif\]'`"):
            decode_image(b"\0\0\0\x18" + head, "a")


def test_heic_with_its_reader() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    wanted = cv2.resize(colours(), (160, 96), interpolation=cv2.INTER_NEAREST)
    data = saved(wanted, "HEIF", quality=95)
    for brand in (b"heic", b"mif1"):
        read = decode_image(brand_of(data, brand), "a")
        assert read.shape == wanted.shape
        assert np.abs(read.astype(int) - wanted).mean() < 6


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_an_animation_gives_its_first_picture_or_is_refused(kind: str, tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    options = {"quality": 100} if kind in ("WEBP", "AVIF") else {}
    data = saved(pictures[0], kind, save_all=True, append_images=pictures[1:], duration=100, **options)
    assert mean_colour(data) == pytest.approx([255, 0, 0], abs=4)
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(InputError, match="is an animation, and a photo is needed"):
        read_image(tmp_path / "a", still=True)


def test_floating_point_is_taken_as_zero_to_one(tmp_path: Path) -> None:
    (tmp_path / "a.tiff").write_bytes(encode(".tiff", np.full((4, 4, 3), [0.0, 0.5, 7.0], np.float32)))
    np.testing.assert_array_equal(read_image(tmp_path / "a.tiff")[0, 0], [255, 128, 0])


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    image = np.zeros((4, 4, 4), np.uint8)  # black
    image[:2, :, 3] = 255  # opaque above, half transparent and transparent below
    image[2, :, 3] = 51
    (tmp_path / "a.png").write_bytes(encode(".png", image))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[:, 0, 0], [0, 0, 204, 255])


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def test_palette(tmp_path: Path) -> None:
    palette = png_chunk(b"PLTE", bytes([255, 0, 0, 0, 0, 255]))
    (tmp_path / "a.png").write_bytes(png(2, 2, 8, 3, b"\0\0\1\0\1\0", palette))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0], [[255, 0, 0], [0, 0, 255]])
    transparent = palette + png_chunk(b"tRNS", bytes([0, 255]))
    (tmp_path / "b.png").write_bytes(png(2, 2, 8, 3, b"\0\0\1\0\1\0", transparent))
    np.testing.assert_array_equal(read_image(tmp_path / "b.png")[0], [[255, 255, 255], [0, 0, 255]])


def test_grey_with_transparency(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(2, 1, 8, 4, b"\0" + bytes([0, 255, 0, 0])))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0], [[0, 0, 0], [255, 255, 255]])


def test_a_huge_photo_is_halved_until_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 2000)
    big = cv2.resize(colours(), (200, 120), interpolation=cv2.INTER_NEAREST)
    for kind in ("JPEG", "PNG"):  # the JPEG decoder does it by itself, the others afterwards
        read = decode_image(saved(big, kind), "a")
        assert read.shape == (30, 50, 3)
        assert read[5, 5].tolist() == pytest.approx([255, 0, 0], abs=6)


def test_a_hundred_megapixels() -> None:
    grey = encode(".jpg", np.full((8000, 12500), 128, np.uint8))
    assert decode_image(grey, "a").shape == (4000, 6250, 3)
    with pytest.raises(TooLargeError, match="a has 100 megapixels, and 50 are the limit"):
        decode_image(grey, "a", max_pixels=50_000_000)


@pytest.mark.parametrize("side", [30_000, 60_000, 2**31 - 1])
def test_more_pixels_than_are_read_at_all(side: int) -> None:
    with pytest.raises(TooLargeError, match=r"megapixels, and 536\.9 are the limit"):
        decode_image(png(side, side, 8, 2, b"\0" * 100), "a")


@pytest.mark.parametrize("marker", [b"\xff\x01", b"\xff\xd0", b"\xff\xff\xff", b"\xff\xe0\0\x04ab"])
def test_markers_without_a_length_do_not_hide_the_size_of_a_jpeg(marker: bytes) -> None:
    data = saved(cv2.resize(colours(), (400, 240)), "JPEG")
    hidden = data[:2] + marker + data[2:]
    with pytest.raises(InputError):
        decode_image(hidden, "a", max_pixels=90_000)
    if marker != b"\xff\x01":  # which Pillow does not take for the head of a JPEG
        assert decode_image(hidden, "a", max_pixels=100_000).shape == (240, 400, 3)


def test_a_second_size_in_a_jpeg_is_refused() -> None:
    small, large = (saved(np.zeros((side, side, 3), np.uint8), "JPEG") for side in (16, 4000))
    at = small.index(b"\xff\xc0")
    frame = large[large.index(b"\xff\xc0") :][:19]
    for data in (small[:at] + frame + small[at:], small[: at + 19] + frame + small[at + 19 :]):
        with pytest.raises(InputError):
            decode_image(data, "a", max_pixels=1000)


def test_a_jpeg_of_very_many_scans_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(cv2.resize(colours(), (400, 240)), "JPEG", progressive=True)
    assert decode_image(data, "a").shape == (240, 400, 3)
    at = data.rindex(b"\xff\xda")
    many = data[:at] + data[at:-2] * 30_000 + data[-2:]
    with pytest.raises(InputError, match="in very many scans"):
        decode_image(many, "a")


def test_a_png_laden_with_text_is_read_or_refused_at_once() -> None:
    def laden(text: bytes) -> bytes:
        return png(2, 1, 8, 2, b"\0" + bytes(6), png_chunk(b"zTXt", b"key\0\0" + zlib.compress(text)) * 40)

    assert decode_image(laden(b"a" * 1000), "a").shape == (1, 2, 3)
    with pytest.raises(InputError):
        decode_image(laden(bytes(20_000_000)), "a")


def bad_inputs() -> dict[str, tuple[bytes, str]]:
    photo = encode(".jpg", cv2.resize(colours(), (400, 240)))
    drawing = encode(".png", np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8))
    return {
        "empty": (b"", "is empty"),
        "text": (b"just a few words of text", "not a picture"),
        "web page": (b"<!doctype html><html>404</html>", "not a picture"),
        "head of a JPEG": (photo[:100], "broken, cut off"),
        "half a JPEG": (photo[: len(photo) // 2], "broken, cut off"),
        "half a PNG": (drawing[: len(drawing) // 2], "broken, cut off"),
        "head of a PNG": (drawing[:8], "broken, cut off"),
        "PNG without its end": (drawing[:-12], "broken, cut off"),
        "PNG with a wrong byte": (drawing[:500] + bytes([drawing[500] ^ 1]) + drawing[501:], "broken, cut off"),
        "three bytes": (b"\xff\xd8\xff", "broken, cut off"),
    }


@pytest.mark.parametrize("kind", bad_inputs())
def test_bad_files_are_refused_in_one_sentence(tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    data, words = bad_inputs()[kind]
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    with pytest.raises(InputError, match=words) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "png" not in capfd.readouterr().err  # no library says it again in its own words


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(InputError, match="is a folder"):
        read_image(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is not a file"):
        read_image(tmp_path / "pipe")


def test_writing_refuses_early(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must end in \.png, \.jpg, \.jpeg or \.webp"):
        write_image(tmp_path / "a.docx", colours())
    with pytest.raises(InputError, match=r"nowhere does not exist; create it first"):
        check_output(tmp_path / "nowhere" / "a.png")
    (tmp_path / "b.png").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        check_output(tmp_path / "b.png")


def test_a_disk_that_refuses_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(FidError, match=r"a\.png could not be written: No space left on device"):
        write_image(tmp_path / "a.png", colours())
    assert list(tmp_path.iterdir()) == []


def test_the_input_itself_is_never_written(tmp_path: Path) -> None:
    photo = tmp_path / "a.png"
    write_image(photo, colours())
    (tmp_path / "link.png").symlink_to(photo)
    os.link(photo, tmp_path / "hard.png")
    for path in (photo, tmp_path / "link.png", tmp_path / "hard.png", tmp_path / "." / "a.png"):
        with pytest.raises(InputError, match="is the original itself"):
            check_output(path, inputs=[tmp_path / "other.png", photo])
    check_output(tmp_path / "b.png", inputs=[photo])


def test_what_is_no_picture_is_told_from_what_is_broken() -> None:
    with pytest.raises(UnknownFormatError):
        decode_image(b"words", "a")
    with pytest.raises(InputError) as caught:
        decode_image(saved(colours(), "JPEG")[:-200], "a")
    assert not isinstance(caught.value, UnknownFormatError)


def test_find_photos(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "inner").mkdir()
    given = tmp_path / "notes.txt"
    assert find_photos([tmp_path, given]) == [tmp_path / "a.png", tmp_path / "b.JPG", given]
    with pytest.raises(InputError, match="no photos in the folder"):
        find_photos([tmp_path / "inner"])
