"""What a video file may make the reader do: no other files are opened, and no frame is decoded that is too large."""

import struct
from pathlib import Path

import cv2
import pytest
from fid.runtime.errors import InputError
from fid.runtime.media.images import TooLargeError
from fid.runtime.media.video import open_clip, read_frames

from .test_video import picture, write_clip, write_kind

PLAYLISTS = {
    "concat": "ffconcat version 1.0\nfile secret.mp4\n",
    "HLS": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\nsecret.mp4\n#EXT-X-ENDLIST\n",
    "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
}


@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".txt"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_list_of_other_files_is_no_video(kind: str, suffix: str, tmp_path: Path) -> None:
    write_clip(tmp_path / "secret.mp4", [0, 3000, 6000], sound=None)
    (tmp_path / f"list{suffix}").write_text(PLAYLISTS[kind])
    with pytest.raises(InputError, match="is not a video that can be read"):
        open_clip(tmp_path / f"list{suffix}")


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", ".mp4"), ("mpeg4", ".avi"), ("libvpx-vp9", ".webm")])
def test_frames_that_are_too_large_are_not_decoded(codec: str, suffix: str, tmp_path: Path) -> None:
    path = write_kind(tmp_path / f"in{suffix}", codec, count=3)
    assert len(list(read_frames(open_clip(path, 96 * 64)))) == 3
    with pytest.raises(TooLargeError, match=r"frames of 0\.006144 megapixels, and 0\.006143 are the limit; make"):
        open_clip(path, 96 * 64 - 1)


def test_a_head_that_says_less_than_its_frames_have_does_not_help(tmp_path: Path) -> None:
    """96 x 64 in the head of an MP4 in the place of 768 x 512: the decoder has the limit as well."""
    large = cv2.resize(picture(3), (768, 512))
    path = write_clip(tmp_path / "in.mp4", [0, 3000, 6000], sound=None, pictures=lambda number: large)
    data = bytearray(path.read_bytes())
    at = data.index(b"avc1", data.index(b"stsd")) + 28
    assert data[at : at + 4] == struct.pack(">2H", 768, 512)
    data[at : at + 4] = struct.pack(">2H", 96, 64)
    path.write_bytes(data)
    assert len(list(read_frames(open_clip(path)))) == 3
    with pytest.raises(InputError, match=r"has frames of 0\.393|has no frame that can be decoded|cannot be decoded"):
        open_clip(path, 96 * 64)
