"""The note survives every format fid writes, and the picture inside stays what it was."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from fid.runtime.files import replacing
from fid.runtime.labels.provenance import PART_BY_ALGORITHM, Note, embed_note, read_note
from fid.runtime.media.images import read_image, write_image

NOTE = Note(bundle='a "odd" <name> & more', bundle_version="1.2.3", kind="composition", source_type=PART_BY_ALGORITHM)


def picture(height: int = 40, width: int = 56) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 4 % 256, columns * 4 % 256, (rows + columns) % 256], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp"])
def test_note_is_read_back_and_pixels_stay(tmp_path: Path, suffix: str) -> None:
    noted, plain = tmp_path / f"noted{suffix}", tmp_path / f"plain{suffix}"
    write_image(noted, picture(), NOTE)
    write_image(plain, picture())
    assert read_note(noted) == NOTE
    assert read_note(plain) is None
    np.testing.assert_array_equal(read_image(noted), read_image(plain))
    assert read_image(noted).shape == (40, 56, 3)


def test_lossless_webp_with_transparency(tmp_path: Path) -> None:
    image = np.dstack([picture(31, 17), np.full((31, 17), 128, np.uint8)])
    data = cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes()
    (tmp_path / "a.webp").write_bytes(embed_note(data, NOTE))
    assert read_note(tmp_path / "a.webp") == NOTE
    again = cv2.imread(str(tmp_path / "a.webp"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(again, cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))


def test_gif(tmp_path: Path) -> None:
    data = cv2.imencode(".gif", picture())[1].tobytes()
    (tmp_path / "a.gif").write_bytes(embed_note(data, NOTE))
    assert read_note(tmp_path / "a.gif") == NOTE
    assert read_image(tmp_path / "a.gif").shape == (40, 56, 3)


def test_mp4(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25.0, (56, 40))
    for _ in range(5):
        writer.write(picture())
    writer.release()
    path.write_bytes(embed_note(path.read_bytes(), NOTE))
    assert read_note(path) == NOTE
    video = cv2.VideoCapture(str(path))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    assert video.read()[0]


def test_iptc_source_type_and_software_are_where_other_programs_look(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", picture(), NOTE)
    data = (tmp_path / "a.png").read_bytes()
    assert re.search(rb'Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/\w+"', data)
    assert b"tEXtSoftware\0fid " in data
    assert b"XML:com.adobe.xmp\0" in data


def test_a_foreign_packet_is_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b'<?xpacket begin=""?><x fid:bundle="x"/><?xpacket end="r"?>')
    assert read_note(path) is None


def test_other_formats_are_refused() -> None:
    with pytest.raises(ValueError, match="PNG, JPEG"):
        embed_note(b"BM123456", NOTE)


def test_nothing_is_left_behind_after_an_error(tmp_path: Path) -> None:
    target = tmp_path / "a.png"
    target.write_bytes(b"old")

    def fail_half_way() -> None:
        with replacing(target) as temporary:
            temporary.write_bytes(b"half")
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail_half_way()
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    assert target.read_bytes() == b"old"
