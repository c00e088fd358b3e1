"""Alignment is exact on known points, does not alias, and undoes itself."""

import cv2
import numpy as np
import pytest
from fid.runtime.errors import InputError
from fid.runtime.face.align import Alignment, align, fit_similarity, invert, quick_warp, transform, warp
from fid.runtime.face.crop import FIVE_POINTS

UNMOVED = align(np.array(FIVE_POINTS))


def similarity(scale: float, degrees: float, x: float, y: float) -> np.ndarray:
    cosine, sine = scale * np.cos(np.radians(degrees)), scale * np.sin(np.radians(degrees))
    return np.array([[cosine, -sine, x], [sine, cosine, y]])


def chart(height: int = 300, width: int = 400) -> np.ndarray:
    """A smooth colourful picture, RGB uint8."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = [np.sin(x / 23) * np.cos(y / 31), np.sin((x + y) / 41), np.cos((x - 2 * y) / 37)]
    return np.rint(127.5 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)


@pytest.mark.parametrize(("scale", "degrees", "x", "y"), [(1, 0, 0, 0), (3.7, 25, 900, -40), (0.21, -170, 3, 5)])
def test_a_similarity_recovers_its_own_parameters(scale: float, degrees: float, x: float, y: float) -> None:
    matrix = similarity(scale, degrees, x, y)
    points = np.random.default_rng(0).uniform(0, 256, (5, 2))
    np.testing.assert_allclose(fit_similarity(points, transform(matrix, points)), matrix, atol=1e-6)
    np.testing.assert_allclose(transform(invert(matrix), transform(matrix, points)), points, atol=1e-6)


@pytest.mark.parametrize(("scale", "degrees", "x", "y"), [(1, 0, 0, 0), (3.7, 25, 900, -40), (0.21, -170, 3, 5)])
def test_the_crop_follows_the_face(scale: float, degrees: float, x: float, y: float) -> None:
    """Moving, turning and scaling the points moves the crop with them, exactly."""
    matrix = similarity(scale, degrees, x, y)
    moved = align(transform(matrix, np.array(FIVE_POINTS)))
    corners = np.array([[0, 0], [255, 0], [255, 255], [0, 255]])
    there = transform(moved.matrix, transform(matrix, corners))
    np.testing.assert_allclose(there, transform(UNMOVED.matrix, corners), atol=1e-6)
    assert moved.side_px == pytest.approx(UNMOVED.side_px * scale)
    assert moved.roll_degrees == pytest.approx(UNMOVED.roll_degrees + degrees, abs=1e-6)


def test_mean_points_of_generated_faces_stay_where_they_are() -> None:
    """FFHQ-aligned faces need no alignment: within 2 px at the corners for points of another detector's measuring."""
    corners = np.array([[0, 0], [255, 0], [255, 255], [0, 255]])
    assert np.abs(transform(UNMOVED.matrix, corners) - corners).max() < 2.0


def test_the_published_formula() -> None:
    """Against FFHQ's own lines, written out as they stand there, in coordinates that start at the pixel's corner."""
    points = np.array([[410.0, 300.5], [520.2, 322.0], [455.0, 390.0], [400.0, 430.0], [489.0, 447.0]])
    eye_left, eye_right = points[0] + 0.5, points[1] + 0.5
    eye_avg = (eye_left + eye_right) * 0.5
    eye_to_eye = eye_right - eye_left
    mouth_avg = (points[3] + points[4]) * 0.5 + 0.5
    eye_to_mouth = mouth_avg - eye_avg
    x = eye_to_eye - np.flipud(eye_to_mouth) * [-1, 1]
    x /= np.hypot(*x)
    x *= max(np.hypot(*eye_to_eye) * 2.0, np.hypot(*eye_to_mouth) * 1.8)
    y = np.flipud(x) * [-1, 1]
    c = eye_avg + eye_to_mouth * 0.1
    quad = np.stack([c - x - y, c - x + y, c + x + y, c + x - y])
    found = transform(align(points).matrix, quad - 0.5) + 0.5
    np.testing.assert_allclose(found, [[0, 0], [0, 256], [256, 256], [256, 0]], atol=1e-6)


@pytest.mark.parametrize("points", [np.zeros((5, 2)), np.full((5, 2), np.nan)])
def test_points_that_are_no_face(points: np.ndarray) -> None:
    with pytest.raises(InputError, match="do not make a face"):
        align(points)


def test_nothing_changes_without_a_move() -> None:
    image = chart(256, 256)
    np.testing.assert_array_equal(Alignment(np.eye(2, 3)).crop(image), image)


def test_shrinking_averages() -> None:
    """A one-pixel chessboard becomes even grey; picking single pixels would leave black or white."""
    board = (np.indices((1000, 1000)).sum(axis=0) % 2 * 255).astype(np.uint8)
    board = np.dstack([board] * 3)
    crop = Alignment(np.array([[0.256, 0, 0], [0, 0.256, 0]])).crop(board)
    assert np.abs(crop[4:-4, 4:-4].astype(int) - 128).max() <= 24
    turned = warp(board, similarity(0.25, 30, 60, -20), 128, 128)
    assert np.abs(turned.astype(int) - 128).max() <= 24


def test_shrinking_keeps_places() -> None:
    """Where a smooth picture is sampled does not depend on how much it is shrunk."""
    image = chart(1200, 1600)
    for scale, degrees in ((0.5, 0), (0.37, 17), (0.13, -40)):
        matrix = similarity(scale, degrees, 40, 30)
        small = warp(image, matrix, 120, 90).astype(np.float64)
        xy = transform(invert(matrix), np.array([[x, y] for y in range(90) for x in range(120)], np.float64))
        inside = ((xy > 4) & (xy < (1595, 1195))).all(axis=1)
        blurred = cv2.GaussianBlur(image, (0, 0), 0.3 / scale)
        exact = cv2.remap(blurred, xy[:, 0].astype(np.float32), xy[:, 1].astype(np.float32), cv2.INTER_LINEAR).reshape(
            -1, 3
        )
        assert inside.sum() > 1000
        assert np.abs(small.reshape(-1, 3)[inside] - exact[inside]).mean() < 2.5


@pytest.mark.parametrize(("scale", "degrees"), [(1.0, 0.0), (2.0, 20.0), (0.6, -35.0)])
def test_crop_then_paste_gives_the_photo_back(scale: float, degrees: float) -> None:
    """Inside the mask within resampling error, outside the mask bit for bit."""
    photo = chart(600, 800)
    alignment = Alignment(similarity(scale, degrees, 0, 0))
    middle = transform(alignment.matrix, np.array([[400.0, 300.0]]))[0]
    alignment = Alignment(alignment.matrix + np.array([[0, 0, 127.5 - middle[0]], [0, 0, 127.5 - middle[1]]]))
    mask = np.zeros((256, 256), np.float32)
    cv2.circle(mask, (128, 128), 90, (1.0,), -1)
    crop = alignment.crop(photo)
    back = alignment.paste(photo, crop, mask)
    assert np.abs(back.astype(int) - photo).max() <= 4
    painted = alignment.paste(photo, np.zeros_like(crop), mask)
    changed = np.argwhere((painted != photo).any(axis=2))[:, ::-1]
    distance = np.hypot(*(transform(alignment.matrix, changed) - 128).T)
    assert distance.max() < 90 + 3 * max(scale, 1)
    assert (painted[300, 400] == 0).all()


def test_a_crop_beyond_the_photo_can_be_pasted() -> None:
    photo = chart(200, 200)
    for shift in (-100.0, 100.0, 5000.0):
        alignment = Alignment(np.array([[1.0, 0, shift], [0, 1.0, shift]]))
        pasted = alignment.paste(photo, alignment.crop(photo))
        assert pasted.shape == photo.shape
        assert np.abs(pasted.astype(int) - photo).max() <= 1


@pytest.mark.parametrize("scale", [0.3, 0.6, 0.9, 1.5])
def test_a_quick_warp_is_the_exact_one_but_for_the_finest_detail(scale: float) -> None:
    photo = cv2.GaussianBlur(chart(700, 900), (0, 0), 1.2 / min(scale, 1))
    matrix = similarity(scale, 20, 0, 0)
    matrix[:, 2] = (79.5, 79.5) - matrix[:, :2] @ (450.3, 350.6)
    exact, quick = (resampled(photo, matrix, 160, 160).astype(int) for resampled in (warp, quick_warp))
    assert np.abs(quick - exact).mean() < 1.0  # of 0..255
    assert np.abs(quick.mean() - exact.mean()) < 0.3
    shift, _ = cv2.phaseCorrelate(*(x.mean(axis=2) for x in (exact, quick)))
    assert np.abs(shift).max() < 0.02  # px: nothing moves


@pytest.mark.parametrize("scale", [0.35, 0.45, 0.55, 0.7, 0.9])
def test_a_quick_warp_leaves_no_more_noise_than_the_exact_one(scale: float) -> None:
    """At 128 px, where the attribute encoder looks: its code is to tremble no more."""
    noise = np.clip(np.random.default_rng(0).normal(128, 10, (900, 900)), 0, 255).astype(np.uint8)
    matrix = similarity(scale, 9, 0, 0)
    matrix[:, 2] = (127.5, 127.5) - matrix[:, :2] @ (450, 450)
    left = [
        cv2.resize(
            resampled(noise, matrix, 256, 256).astype(np.float32), (128, 128), interpolation=cv2.INTER_AREA
        ).std()
        for resampled in (warp, quick_warp)
    ]
    assert 0.85 * left[0] < left[1] < 1.06 * left[0]


def test_a_quick_warp_does_not_pick_single_pixels() -> None:
    chessboard = np.where(np.indices((400, 400)).sum(0) % 2, 255, 0).astype(np.uint8)
    small = quick_warp(chessboard, np.array([[0.25, 0, 0], [0, 0.25, 0]]), 100, 100)
    assert np.abs(small[2:-2, 2:-2].astype(int) - 128).max() <= 2


def test_beyond_the_photo_is_mirror_then_blur_then_flat() -> None:
    photo = chart(256, 256)
    crop = Alignment(np.array([[1.0, 0, 100], [0, 1.0, 0]])).crop(photo)  # 100 px of nothing on the left
    np.testing.assert_array_equal(crop[:, 101:], photo[:, 1:156])
    assert np.abs(crop[:, 99].astype(int) - photo[:, 1]).mean() < 4  # the mirror continues the picture
    assert crop[:, :10].std(axis=(0, 1)).max() < 4  # 90 px out, beyond 0.3 sides, there is no detail left
