"""Decoded frames become pictures: the eight matrices, HD without a tag, HDR, fields, transparency, another size."""

import gc
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from fid.runtime.media.camera import Camera
from fid.runtime.media.frame import FrameReader, deinterlaced, fitted, upright
from fid.runtime.media.tone import BT2020, HLG, PQ, hlg_to_nits, nits_to_pq, to_bt709
from fid.runtime.media.video import open_clip, read_frames

MATRICES = [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, -1, 0),
            (0, -1, -1, 0)]  # fmt: skip


def corners(width: int = 64, height: int = 48) -> np.ndarray:
    """RGB uint8 with another grey in each quarter."""
    image = np.full((height, width, 3), 40, np.uint8)
    image[: height // 2, width // 2 :], image[height // 2 :, : width // 2] = 100, 160
    image[height // 2 :, width // 2 :] = 220
    return image


def write_frames(
    path: Path,
    frames: list[av.VideoFrame],
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    prepare: Callable[[av.VideoStream], None] = lambda stream: None,
    begin: int = 0,
    **options: str,
) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, pix_fmt
        prepare(stream)
        for number, frame in enumerate(frames):
            frame.pts, frame.time_base = begin + number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def placed(image: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """The picture as the equations say, pixel by pixel: x' = a x + c y, y' = b x + d y, moved to the corner."""
    a, b, c, d = matrix
    y, x = np.indices(image.shape[:2])
    to_x, to_y = a * x + c * y, b * x + d * y
    to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
    result = np.zeros((to_y.max() + 1, to_x.max() + 1, 3), np.uint8)
    result[to_y, to_x] = image
    return result


@pytest.mark.parametrize("matrix", MATRICES)
def test_every_matrix_turns_a_picture_as_its_equations_say(matrix: tuple[int, int, int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(upright(image, matrix), placed(image, matrix))
    assert upright(image, matrix).flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("matrix", MATRICES)
def test_a_file_with_any_matrix_is_upright_as_a_clip_and_as_a_camera(
    matrix: tuple[int, int, int, int], tmp_path: Path
) -> None:
    a, b, c, d = (value << 16 for value in matrix)

    def prepare(stream: av.VideoStream) -> None:
        stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])

    frames = [av.VideoFrame.from_ndarray(corners(), format="rgb24").reformat(format="yuv420p") for _ in range(3)]
    path = write_frames(tmp_path / "a.mp4", frames, prepare=prepare, crf="5")
    wanted = placed(corners(), matrix)
    clip = open_clip(path)
    assert (clip.height, clip.width, 3) == wanted.shape
    for image in (next(read_frames(clip))[1], played(path)):
        assert image.shape == wanted.shape
        assert np.abs(image.astype(int) - wanted).mean() < 4


def test_a_frame_that_was_read_is_freed_at_once() -> None:
    """Without waiting for the collector of cycles, which counts objects and knows nothing of megabytes."""
    frame = av.VideoFrame.from_ndarray(corners(), format="rgb24")
    gc.collect()
    FrameReader().picture(frame)
    del frame
    assert gc.collect() == 0


def played(path: Path) -> np.ndarray:
    camera = Camera(path)
    camera.start()
    frame = camera.mailbox.take(20)
    camera.stop()
    assert frame is not None
    return frame.image


@pytest.mark.parametrize(("height", "tag", "matrix"), [(720, 2, 1), (720, 5, 5), (720, 1, 1), (480, 2, 5), (480, 1, 1)])
def test_hd_without_a_tag_is_bt_709(height: int, tag: int, matrix: int) -> None:
    """The same Y, U, V, decoded by hand with the matrix that is meant."""
    y, u, v = 120, 110, 160
    frame = av.VideoFrame(height * 4 // 3, height, "yuv444p")
    for plane, value in zip(frame.planes, (y, u, v), strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    frame.colorspace, frame.color_range = tag, 1
    kr, kb = (0.2126, 0.0722) if matrix == 1 else (0.299, 0.114)
    luma, blue, red = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    r, b = luma + 2 * (1 - kr) * red, luma + 2 * (1 - kb) * blue
    wanted = 255 * np.array([r, (luma - kr * r - kb * b) / (1 - kr - kb), b])
    np.testing.assert_allclose(FrameReader().picture(frame)[5, 5], wanted, atol=1.5)


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_hdr_is_shown_as_its_light_is(transfer: int) -> None:
    """A wall of BT.709 light in 10 bits of BT.2020; 6 cd/m2 green of a white of 100."""
    nits_709 = np.array([2.6, 7.1, 2.6])
    nits = np.linalg.solve(to_bt709(BT2020), nits_709)
    signal = nits_to_pq(nits)
    if transfer == HLG:
        luminance = (nits / 1000 @ np.array([0.2627, 0.6780, 0.0593])) ** (1 / 1.2)
        signal = np.sqrt(3 * nits / 1000 / luminance**0.2)
        np.testing.assert_allclose(hlg_to_nits(signal[None])[0], nits, rtol=1e-6)
    luma = float(signal @ np.array([0.2627, 0.6780, 0.0593]))
    chroma = (signal[2] - luma) / 1.8814, (signal[0] - luma) / 1.4746
    frame = av.VideoFrame(32, 32, "yuv420p10le")
    for plane, value in zip(frame.planes, (64 + 876 * luma, *(512 + 896 * one for one in chroma)), strict=True):
        plane.update(np.full(plane.buffer_size // 2, round(value), np.uint16).tobytes())
    frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range = 9, BT2020, transfer, 1
    frame.pts, frame.time_base = 0, Fraction(1, 25)
    wanted = 255 * (nits_709 / 100) ** (1 / 2.2)
    reader = FrameReader()
    for _ in range(2):
        np.testing.assert_allclose(reader.picture(frame).mean(axis=(0, 1)), wanted, atol=2.5)


def moving_bar(field_of: int, width: int = 96, height: int = 64) -> np.ndarray:
    image = np.full((height, width, 3), 60, np.uint8)
    image[:, 8 + 4 * field_of : 24 + 4 * field_of] = 200
    return image


def interlaced(path: Path, count: int = 12) -> Path:
    """A bar that moves from field to field."""
    frames = []
    for number in range(count):
        image = moving_bar(2 * number)
        image[1::2] = moving_bar(2 * number + 1)[1::2]
        frames.append(av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p"))
    return write_frames(path, frames, codec="mpeg2video", flags="+ildct+ilme", top="1", qscale="2")


def comb(image: np.ndarray) -> float:
    """How much each row differs from the mean of its neighbours."""
    grey = image[..., 1].astype(float)
    return float(np.abs(grey[1:-1] - (grey[:-2] + grey[2:]) / 2).mean())


def test_interlaced_frames_are_joined_and_keep_their_times(tmp_path: Path) -> None:
    path = interlaced(tmp_path / "a.mpg")
    with av.open(str(path)) as container:
        raw = list(container.decode(video=0))
    assert raw[3].interlaced_frame
    clip = open_clip(path)
    read = list(read_frames(clip))
    assert [stamp for stamp, _ in read] == [frame.pts for frame in raw]
    torn = [comb(frame.to_ndarray(format="rgb24")) for frame in raw]
    assert max(comb(image) for _, image in read[1:-1]) < 0.2 * min(torn[1:-1])


def test_reading_interlaced_frames_from_any_frame_on_gives_the_same(tmp_path: Path) -> None:
    clip = open_clip(interlaced(tmp_path / "a.mpg"))
    whole = list(read_frames(clip))
    for number in (1, 5, 11):
        first = next(read_frames(clip, whole[number][0]))
        assert first[0] == whole[number][0]
        np.testing.assert_array_equal(first[1], whole[number][1])


def test_frames_that_are_not_interlaced_pass_untouched() -> None:
    frames = [av.VideoFrame(16, 16, "yuv420p") for _ in range(3)]
    assert all(one is other for one, other in zip(deinterlaced(iter(frames)), frames, strict=True))


def test_a_transparent_video_is_laid_on_white(tmp_path: Path) -> None:
    image = np.zeros((64, 64, 4), np.uint8)
    image[..., :3] = (200, 60, 60)
    image[:, :32, 3] = 255
    frames = [av.VideoFrame.from_ndarray(image, format="rgba").reformat(format="yuva420p") for _ in range(3)]
    path = write_frames(
        tmp_path / "a.webm", frames, "libvpx-vp9", "yuva420p", crf="10", **{"b:v": "0", "auto-alt-ref": "0"}
    )
    read = [picture for _, picture in read_frames(open_clip(path))]
    assert len(read) == 3
    for picture in (*read, played(path)):
        np.testing.assert_allclose(picture[:, 40:].mean(axis=(0, 1)), 255, atol=2)
        np.testing.assert_allclose(picture[:, :24].mean(axis=(0, 1)), (200, 60, 60), atol=6)


def test_half_transparent_is_half_white() -> None:
    image = np.full((8, 8, 4), (0, 100, 200, 51), np.uint8)
    frame = av.VideoFrame.from_ndarray(image, format="rgba")
    assert FrameReader().picture(frame)[0, 0].tolist() == [204, 224, 244]


def test_a_picture_that_turns_within_a_file_keeps_its_proportions(tmp_path: Path) -> None:
    parts = []
    for begin, name, image in ((0, "wide", corners(64, 48)), (4, "high", corners(48, 64))):
        frames = [av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p") for _ in range(4)]
        parts.append(write_frames(tmp_path / f"{name}.ts", frames, begin=begin, crf="5").read_bytes())
    (tmp_path / "turn.ts").write_bytes(parts[0] + parts[1])
    pictures = [image for _, image in read_frames(open_clip(tmp_path / "turn.ts"))]
    assert {image.shape for image in pictures} == {(48, 64, 3)}
    assert np.abs(pictures[0].astype(int) - corners()).mean() < 4
    last = pictures[-1]
    assert last[:, :13].max() < 20  # 36 x 48 of 64 x 48: borders of 14
    assert last[:, -13:].max() < 20
    assert np.abs(last[:, 14:50].astype(int) - fitted(corners(48, 64), (48, 36, 3))).mean() < 6
