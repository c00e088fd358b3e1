"""Pictures that state their colours by number: AVIF, HEIC and PNG are shown as the same video."""

import io
import zlib

import numpy as np
import pytest
from fid.runtime.media.cicp import stated_colour
from fid.runtime.media.images import decode_image
from fid.runtime.media.tone import BT2020, DISPLAY_P3, HLG, PQ, SRGB, nits_to_pq, screen_colour, to_bt709
from mutants import mutant
from PIL import Image, ImageCms

WALL = np.array([2.6, 7.1, 2.6])  # cd/m2 of BT.709 light: 6 cd/m2 green where white is 100
SIGNAL = nits_to_pq(np.linalg.solve(to_bt709(BT2020), WALL))


def box(kind: bytes, content: bytes) -> bytes:
    return (8 + len(content)).to_bytes(4, "big") + kind + content


def nclx(primaries: int, transfer: int) -> bytes:
    return b"nclx" + b"".join(number.to_bytes(2, "big") for number in (primaries, transfer, 6)) + b"\x80"


def stating(data: bytes, primaries: int, transfer: int) -> bytes:
    """A file of AVIF or HEIC that states other numbers."""
    if b"colrnclx" not in data:
        pytest.skip("this pillow-heif is old and writes no numbers")
    at = data.index(b"colrnclx") + 8
    return data[:at] + nclx(primaries, transfer)[4:8] + data[at + 4 :]


def picture(colour: np.ndarray, kind: str, **options: object) -> bytes:
    """A wall of one colour 0..1."""
    file = io.BytesIO()
    wall = np.broadcast_to(np.rint(255 * colour).astype(np.uint8), (32, 48, 3))
    Image.fromarray(np.ascontiguousarray(wall)).save(file, kind, **options)
    return file.getvalue()


def with_chunk(png: bytes, primaries: int, transfer: int) -> bytes:
    chunk = b"cICP" + bytes((primaries, transfer, 0, 1))
    return png[:33] + (4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + png[33:]


def heif(tables: bytes, colours: list[bytes], primary: int = 1) -> bytes:
    """The head of a HEIF file with these entries of `ipma` and properties."""
    properties = box(b"iprp", box(b"ipco", b"".join(box(b"colr", one) for one in colours)) + box(b"ipma", tables))
    meta = box(b"pitm", bytes(4) + primary.to_bytes(2, "big")) + properties
    return box(b"ftyp", b"avif") + box(b"meta", bytes(4) + meta) + box(b"mdat", bytes(9))


def test_the_numbers_of_the_primary_picture_count() -> None:
    """Of a file with a gain map, the brighter version has numbers of its own."""
    colours = [nclx(BT2020, PQ), nclx(1, SRGB), nclx(BT2020, HLG)]
    narrow = bytes(7) + b"\x02" + b"\x00\x02\x01\x81" + b"\x00\x01\x01\x82"
    assert stated_colour(heif(narrow, colours)) == (1, SRGB)
    assert stated_colour(heif(narrow, colours, primary=2)) == (BT2020, PQ)
    assert stated_colour(heif(narrow, colours, primary=3)) is None
    wide = b"\x01\x00\x00\x01" + bytes(3) + b"\x01" + b"\x00\x00\x00\x01\x02" + b"\x80\x09" + b"\x80\x03"
    assert stated_colour(heif(wide, colours)) == (BT2020, HLG)


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_what_encoders_write_is_found(kind: str) -> None:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    data = picture(SIGNAL, kind)
    assert stated_colour(stating(data, BT2020, PQ)) == (BT2020, PQ)
    for end in range(0, len(data), 7):  # cut off anywhere
        assert stated_colour(data[:end]) in (None, stated_colour(data))


def test_broken_bytes_state_something_or_nothing() -> None:
    whole = heif(bytes(7) + b"\x02" + b"\x00\x02\x01\x81" + b"\x00\x01\x01\x82", [nclx(BT2020, PQ), nclx(1, SRGB)])
    for number in range(2000):
        for data in (whole, with_chunk(picture(SIGNAL, "PNG"), BT2020, PQ) if number < 200 else whole):
            found = stated_colour(mutant(data, number))
            assert found is None or len(found) == 2


def test_files_that_state_nothing() -> None:
    png = picture(SIGNAL, "PNG")
    assert stated_colour(png) is None
    assert stated_colour(with_chunk(png, 2, 2)) is None
    assert stated_colour(picture(SIGNAL, "JPEG")) is None
    assert stated_colour(b"") is None
    endless = box(b"ftyp", b"avif") + b"\0\0\0\1meta" + bytes(8)  # a box of size 0
    assert stated_colour(endless) is None


@pytest.mark.parametrize("kind", ["AVIF", "HEIF", "PNG"])
@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_hdr_pictures_are_tone_mapped(kind: str, transfer: int) -> None:
    """The wall's light on a screen; 8 bits of PQ are steps of 2 to 3 levels there."""
    signal = SIGNAL
    if transfer == HLG:
        nits = np.linalg.solve(to_bt709(BT2020), WALL) / 1000
        luminance = (nits @ np.array([0.2627, 0.6780, 0.0593])) ** (1 / 1.2)
        signal = np.sqrt(3 * nits / luminance**0.2)
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    data = picture(signal, kind, **({} if kind == "PNG" else {"quality": 100}))
    data = with_chunk(data, BT2020, transfer) if kind == "PNG" else stating(data, BT2020, transfer)
    found = decode_image(data, "the photo").mean(axis=(0, 1))
    wanted = 255 * (WALL / 100) ** (1 / 2.2)
    np.testing.assert_allclose(found, wanted, atol=4 if kind == "PNG" else 6)  # a level of the codec is more


def test_wide_gamut_by_number_is_converted_as_by_profile() -> None:
    skin = np.array([0.62, 0.48, 0.42])
    found = decode_image(with_chunk(picture(skin, "PNG"), DISPLAY_P3, SRGB), "the photo")[5, 5]
    np.testing.assert_allclose(found, 255 * screen_colour(np.rint(255 * skin) / 255, DISPLAY_P3, SRGB), atol=1)
    assert int(found[0]) - round(255 * 0.62) > 4  # redder as sRGB than the same number in Display P3


def adobe_exif(name: str = "R03", space: int = 65535) -> Image.Exif:
    exif = Image.Exif()
    exif[0x8769] = {0xA001: space, 0xA005: {1: name}}
    return exif


def test_adobe_rgb_without_a_profile_as_cameras_write_it() -> None:
    """Green 0.5 of Adobe RGB (1998) is out of sRGB's gamut by red; a skin tone gets redder; grey stays."""
    skin = np.array([0.62, 0.48, 0.42])
    options = {"quality": 100, "subsampling": 0}
    plain = decode_image(picture(skin, "JPEG", **options), "the photo")[5, 5].astype(float)
    found = decode_image(picture(skin, "JPEG", exif=adobe_exif(), **options), "the photo")[5, 5]
    to_srgb = np.array([[1.3983, -0.3983, 0.0], [0.0, 1.0, 0.0], [0.0, -0.0429, 1.0429]])  # from the primaries
    linear = to_srgb @ (plain / 255) ** 2.2
    np.testing.assert_allclose(found, 255 * (1.055 * linear ** (1 / 2.4) - 0.055), atol=1.5)
    assert found[0] > plain[0] + 8
    for other in (adobe_exif("R98"), adobe_exif(space=1)):
        assert (decode_image(picture(skin, "JPEG", exif=other, **options), "the photo")[5, 5] == plain).all()


def test_a_profile_goes_before_the_numbers_but_in_png() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    skin = np.array([0.62, 0.48, 0.42])
    plain = decode_image(picture(skin, "AVIF", quality=100), "the photo")
    own = picture(skin, "AVIF", quality=100, icc_profile=srgb)
    if b"colrnclx" in own:  # beside the profile
        own = stating(own, BT2020, PQ)
    assert np.abs(decode_image(own, "the photo").astype(int) - plain).max() <= 1
    png = with_chunk(picture(SIGNAL, "PNG", icc_profile=srgb), BT2020, PQ)
    np.testing.assert_allclose(decode_image(png, "the photo")[5, 5], 255 * (WALL / 100) ** (1 / 2.2), atol=4)


def test_transparency_and_grey_are_kept() -> None:
    file = io.BytesIO()
    rgba = np.zeros((32, 48, 4), np.uint8)
    rgba[..., :3], rgba[:, 24:, 3] = np.rint(255 * SIGNAL), 255
    Image.fromarray(rgba).save(file, "PNG")
    found = decode_image(with_chunk(file.getvalue(), BT2020, PQ), "the photo")
    assert (found[:, :24] == 255).all()
    np.testing.assert_allclose(found[5, 40], 255 * (WALL / 100) ** (1 / 2.2), atol=4)
    file = io.BytesIO()
    Image.fromarray(np.full((32, 48), round(255 * 0.5081), np.uint8)).save(file, "PNG")  # 100 cd/m2
    grey = decode_image(with_chunk(file.getvalue(), BT2020, PQ), "the photo")
    assert np.ptp(grey, axis=2).max() <= 1
    wanted = 255 * screen_colour(np.full(3, round(255 * 0.5081) / 255), BT2020, PQ)[0]
    assert abs(float(grey.mean()) - wanted) < 2
