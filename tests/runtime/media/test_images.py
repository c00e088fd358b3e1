"""Every kind of picture a user may have either is read as upright RGB uint8 or is refused in one sentence."""

import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from fid.runtime.errors import FidError, InputError
from fid.runtime.media import images
from fid.runtime.media.images import check_output, exif_orientation, find_photos, jpeg_pixels, read_image, write_image


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


def exif(orientation: int, order: str = "<") -> bytes:
    head = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    return head + struct.pack(order + "IH", 8, 1) + entry + struct.pack(order + "I", 0)


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
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_exif_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    bgr = stored_for(colours(), orientation)[..., ::-1].copy()
    block = np.frombuffer(exif(orientation), np.uint8)
    done, data = cv2.imencodeWithMetadata(suffix, bgr, [int(cv2.IMAGE_METADATA_EXIF)], [block])
    assert done
    (tmp_path / f"a{suffix}").write_bytes(data.tobytes())
    read = read_image(tmp_path / f"a{suffix}").astype(int)
    assert read.shape == (24, 40, 3)
    assert np.abs(read - colours()).mean() < 8  # JPEG smears the colour borders


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_orientation_is_read_in_both_byte_orders(order: str) -> None:
    assert exif_orientation(exif(6, order)) == 6
    assert exif_orientation(b"Exif\0\0" + exif(3, order)) == 3


@pytest.mark.parametrize("block", [b"", b"II*\0\xff\xff\xff\xff\0\0", exif(9), exif(6)[:12], b"garbage in here"])
def test_broken_exif_means_upright(block: bytes) -> None:
    assert exif_orientation(block) == 1


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


def test_a_huge_photo_is_halved_until_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 2000)
    big = cv2.resize(colours(), (200, 120), interpolation=cv2.INTER_NEAREST)
    for suffix in (".jpg", ".png"):  # the JPEG decoder does it by itself, the others afterwards
        (tmp_path / f"a{suffix}").write_bytes(encode(suffix, big[..., ::-1].copy()))
        read = read_image(tmp_path / f"a{suffix}")
        assert read.shape == (30, 50, 3)
        assert read[5, 5].tolist() == pytest.approx([255, 0, 0], abs=6)


def test_a_hundred_megapixels(tmp_path: Path) -> None:
    grey = np.full((8000, 12500), 128, np.uint8)
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(".jpg", grey))
    assert jpeg_pixels(np.fromfile(path, np.uint8)) == 100_000_000
    assert read_image(path).shape == (4000, 6250, 3)


def test_more_pixels_than_opencv_reads(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(60_000, 60_000, 8, 2, b"\0" * 100))
    with pytest.raises(InputError, match="more pixels than OpenCV reads"):
        read_image(tmp_path / "a.png")


def bad_inputs() -> dict[str, tuple[bytes, str]]:
    photo = encode(".jpg", cv2.resize(colours(), (400, 240)))
    drawing = encode(".png", np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8))
    return {
        "empty": (b"", "is empty"),
        "text": (b"just a few words of text", "not a picture"),
        "web page": (b"<!doctype html><html>404</html>", "not a picture"),
        "head of a JPEG": (photo[:100], "broken, cut off"),
        "half a JPEG": (photo[: len(photo) // 2], "broken, cut off"),
        "half a PNG": (drawing[: len(drawing) // 2], "broken or cut off"),
        "head of a PNG": (drawing[:8], "broken or cut off"),
        "PNG without its end": (drawing[:-12], "broken or cut off"),
        "PNG with a wrong byte": (drawing[:500] + bytes([drawing[500] ^ 1]) + drawing[501:], "broken or cut off"),
        "three bytes": (b"\xff\xd8\xff", "broken, cut off"),
        "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
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


def test_find_photos(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "inner").mkdir()
    given = tmp_path / "notes.txt"
    assert find_photos([tmp_path, given]) == [tmp_path / "a.png", tmp_path / "b.JPG", given]
    with pytest.raises(InputError, match="no photos in the folder"):
        find_photos([tmp_path / "inner"])
