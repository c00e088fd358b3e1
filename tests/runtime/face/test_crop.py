import cv2
import numpy as np
import pytest
from fid.runtime.face import crop


def test_identity_case_is_exact():
    np.testing.assert_array_equal(crop.resample_matrix(9, 9, 1.0, 0.0), np.eye(9, dtype=np.float32))
    np.testing.assert_array_equal(crop.resample_matrix(9, 9), np.eye(9, dtype=np.float32))


@pytest.mark.parametrize(
    ("out_size", "in_size", "scale", "shift"),
    [
        (112, 256, 0.5677, -17.0),
        (112, 256, None, None),
        (299, 256, None, None),
        (7, 5, 3.3, -40.0),
        (4, 16, 0.25, 99.0),
    ],
)
def test_rows_sum_to_one(out_size, in_size, scale, shift):
    matrix = crop.resample_matrix(out_size, in_size, scale, shift)
    assert matrix.shape == (out_size, in_size)
    assert matrix.dtype == np.float32
    assert matrix.min() >= 0
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)


def test_halving_is_a_triangle():
    # Row 1 looks at 2.5 with reach 2: distances 1.5, 0.5, 0.5, 1.5 -> weights 0.25, 0.75, 0.75, 0.25 over 2.
    matrix = crop.resample_matrix(4, 8)
    np.testing.assert_allclose(matrix[1], [0, 0.125, 0.375, 0.375, 0.125, 0, 0, 0], atol=1e-7)


def test_a_linear_ramp_stays_linear_inside():
    rows, columns = crop.identity_matrices()
    ramp = np.arange(256, dtype=np.float64)
    for matrix, shift in ((columns, crop.IDENTITY_SHIFT[0]), (rows, crop.IDENTITY_SHIFT[1])):
        seen = matrix.astype(np.float64) @ ramp
        # A reducing triangle at a fractional centre is off by a small part of a pixel; more would be a shifted crop.
        np.testing.assert_allclose(seen, (np.arange(112) - shift) / crop.IDENTITY_SCALE, atol=0.1)
        assert abs(np.mean(seen - (np.arange(112) - shift) / crop.IDENTITY_SCALE)) < 0.01


@pytest.mark.parametrize("point", crop.FIVE_POINTS)
def test_known_points_land_where_the_placement_says(point):
    image = np.zeros((1, 256, 256, 3), np.uint8)
    yy, xx = np.mgrid[:256, :256]
    blob = 255 * np.exp(-((xx - point[0]) ** 2 + (yy - point[1]) ** 2) / (2 * 5.0**2))
    image[0] = blob[..., None].round()
    seen = crop.identity_view(image)[0, ..., 1].astype(np.float64)
    yy, xx = np.mgrid[:112, :112]
    centre = (seen * xx).sum() / seen.sum(), (seen * yy).sum() / seen.sum()
    np.testing.assert_allclose(centre, crop.to_identity(point), atol=0.05)


def test_the_view_agrees_with_an_area_antialiased_warp():
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (256, 256, 3), np.uint8), (0, 0), 4)
    placement = np.array(
        [[crop.IDENTITY_SCALE, 0, crop.IDENTITY_SHIFT[0]], [0, crop.IDENTITY_SCALE, crop.IDENTITY_SHIFT[1]]]
    )
    warped = cv2.warpAffine(image, placement, (112, 112), flags=cv2.INTER_LINEAR).astype(np.float32)
    np.testing.assert_allclose(crop.identity_view(image[None])[0], warped, atol=6)
    assert np.abs(crop.identity_view(image[None])[0] - warped).mean() < 1


def test_mean_points_are_near_the_arcface_template():
    template = [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
    distance = np.linalg.norm(crop.to_identity(crop.FIVE_POINTS) - np.array(template), axis=1)
    assert distance.max() < 4.5


@pytest.mark.parametrize(
    ("out_size", "in_size", "scale"), [(0, 4, 1.0), (4, 0, 1.0), (4, 4, 0.0), (4, 4, -1.0), (4, 4, float("nan"))]
)
def test_nonsense_is_refused(out_size, in_size, scale):
    with pytest.raises(ValueError, match="cannot resample"):
        crop.resample_matrix(out_size, in_size, scale)
