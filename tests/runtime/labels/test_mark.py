"""The invisible mark: not to be seen, found after what happens to pictures, and never where it is not."""

from collections.abc import Callable

import av
import cv2
import numpy as np
import pytest
from fid.runtime.assets import FACES
from fid.runtime.labels import mark
from fid.runtime.labels.mark import FOUND, SMALLEST, TILE, detect_mark, embed_mark
from fid.runtime.media.images import read_image

PICTURES = [read_image(path) for path in sorted(FACES.glob("*.jpg"))]


def jpeg(quality: int) -> Callable[[np.ndarray], np.ndarray]:
    def attack(image: np.ndarray) -> np.ndarray:
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))

    return attack


def halved(image: np.ndarray) -> np.ndarray:
    small = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)


def cropped(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[15:-11, 9:-17])


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2)))


def test_it_is_not_seen() -> None:
    for picture in PICTURES:
        assert psnr_db(picture, embed_mark(picture)) >= 42


@pytest.mark.parametrize("attack", [jpeg(75), jpeg(50), halved, cropped], ids=["jpeg 75", "jpeg 50", "half", "crop"])
def test_it_stays(attack: Callable[[np.ndarray], np.ndarray]) -> None:
    found = [detect_mark(attack(embed_mark(picture)), sizes=False).sigma for picture in PICTURES]
    assert min(found) >= FOUND, found


def test_it_stays_at_another_size_and_mirrored() -> None:
    marked = embed_mark(np.hstack(PICTURES[:2]))
    for factor, turned in ((0.5, marked), (0.73, marked[:, ::-1])):
        changed = cv2.resize(np.ascontiguousarray(turned), None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        found = detect_mark(changed)
        assert found.marked
        assert found.scale == pytest.approx(1 / factor, rel=0.02)
        assert found.mirrored == (turned is not marked)


def test_it_stays_in_a_video() -> None:
    frames = [np.roll(np.hstack(PICTURES[:2]), step, axis=1) for step in range(12)]
    coder = av.CodecContext.create("libx264", "w")
    coder.width, coder.height, coder.pix_fmt, coder.framerate, coder.options = 512, 256, "yuv420p", 25, {"crf": "28"}
    packets = [packet for frame in [*frames, None] for packet in coder.encode(
        None if frame is None else av.VideoFrame.from_ndarray(embed_mark(frame), format="rgb24"))]  # fmt: skip
    reader = av.CodecContext.create("h264", "r")
    decoded = [frame.to_ndarray(format="rgb24") for packet in [*packets, None] for frame in reader.decode(packet)]
    assert detect_mark(decoded, sizes=False).marked


def test_it_is_not_found_where_it_is_not(rng: np.random.Generator) -> None:
    """The peak over all shifts of random phases: 4 to 5 standard deviations, whatever the picture shows."""
    stripes = np.full((300, 300, 3), 120, np.uint8)
    stripes[:, ::8] = 200
    others = [*PICTURES, stripes, rng.integers(0, 256, (200, 200, 3), np.uint8), np.zeros((200, 200, 3), np.uint8)]
    sigmas = [detect_mark(picture, sizes=False).sigma for picture in others]
    assert max(sigmas) < 6, sigmas
    assert not detect_mark(PICTURES[0]).marked
    assert detect_mark([]).sigma == 0


def test_random_phases_have_the_deviation_that_is_assumed(rng: np.random.Generator) -> None:
    _, wanted = mark._key()
    turned = [mark._spectrum(np.exp(2j * np.pi * rng.random(len(wanted)))) for _ in range(4)]
    assert np.std(turned) / np.sqrt(2 * len(wanted)) == pytest.approx(1, rel=0.02)
    assert mark._spectrum(wanted * wanted.conj()).max() == pytest.approx(
        2 * len(wanted), rel=0.02
    )  # few stand for themselves


def test_what_is_small_is_left_alone() -> None:
    small = PICTURES[0][: SMALLEST - 1]
    assert embed_mark(small) is small
    odd = PICTURES[0][: TILE + 7, : 2 * TILE - 3]
    assert embed_mark(odd).shape == odd.shape
