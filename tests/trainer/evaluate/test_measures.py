"""The mathematics of the evaluation against closed forms and known sequences."""

from dataclasses import replace

import numpy as np
import pytest
from fid.trainer.evaluate import measures
from fid.trainer.evaluate.clips import following_measures, pose_agreement
from fid.trainer.evaluate.judges import Seen


def rotation(pitch: float, yaw: float, roll: float) -> np.ndarray:
    """The rotation with these Euler angles in degrees, factor by factor."""
    a, b, c = np.radians([-pitch, -yaw, roll])
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return rz @ ry @ rx


class TestFrechetDistance:
    def test_two_gaussians_in_closed_form(self):
        """Covariances that commute: |m - n|^2 + sum (sqrt(a) - sqrt(b))^2 over the common axes."""
        turn = rotation(20, 30, 40)
        a, b = np.array([4.0, 1.0, 0.25]), np.array([1.0, 9.0, 0.0])
        mean, other = np.array([1.0, 2, 3]), np.array([1.0, 0, 3])
        found = measures.gaussian_distance(mean, turn * a @ turn.T, other, turn * b @ turn.T)
        assert found == pytest.approx(4 + 1 + 4 + 0.25)

    def test_one_dimension(self):
        assert measures.gaussian_distance(np.zeros(1), np.eye(1) * 4, np.ones(1), np.eye(1)) == pytest.approx(2)

    def test_the_same_features_have_none(self, rng):
        features = rng.normal(size=(50, 80))  # fewer than dimensions, as in a short evaluation
        assert measures.frechet_distance(features, features) == pytest.approx(0, abs=1e-4)

    def test_of_one_picture_it_is_not_defined(self, rng):
        assert np.isnan(measures.frechet_distance(rng.normal(size=(1, 3)), rng.normal(size=(5, 3))))

    def test_a_shift_counts_by_its_square(self, rng):
        features = rng.normal(size=(300, 5))
        assert measures.frechet_distance(features, features + 2) == pytest.approx(20)


class TestPose:
    @pytest.mark.parametrize("angles", [(0, 0, 0), (20, 0, 0), (0, -35, 0), (0, 0, 15), (10, 30, -5), (-25, -40, 12)])
    def test_euler_angles_of_a_known_rotation(self, angles):
        np.testing.assert_allclose(measures.euler_angles(rotation(*angles)), angles, atol=1e-9)

    def test_signs(self):
        """The nose, at z < 0, goes up in the picture with pitch and right with yaw; roll takes x towards y."""
        nose = np.array([0, 0, -1.0])
        assert (rotation(20, 0, 0) @ nose)[1] < -0.3
        assert (rotation(0, 20, 0) @ nose)[0] > 0.3
        assert (rotation(0, 0, 20) @ [1, 0, 0])[1] > 0.3

    @pytest.mark.parametrize("angles", [(12, -30, 4), (-8, 25, 0)])
    def test_a_turned_face_mesh(self, angles, rng):
        mesh = rng.normal(size=(1, 468, 3))  # the other points do not count
        reference = np.array(list(measures.RIGID_POINTS.values()))
        mesh[0, list(measures.RIGID_POINTS)] = 1.3 * reference @ rotation(*angles).T + [120, 130, 7]
        np.testing.assert_allclose(measures.head_pose(mesh)[0], angles, atol=1e-6)

    @pytest.mark.parametrize("angles", [(0, 0, 0), (12, -30, 4), (-8, 25, 0)])
    def test_dlib_points_of_a_turned_head(self, angles):
        points = np.zeros((1, 68, 2))
        reference = np.array(list(measures.DLIB_RIGID_POINTS.values()))
        seen = reference @ rotation(*angles).T + [3, -5, measures.DLIB_FOCAL]
        points[0, list(measures.DLIB_RIGID_POINTS)] = measures.DLIB_FOCAL * seen[:, :2] / seen[:, 2:] + 127.5
        np.testing.assert_allclose(measures.dlib_pose(points)[0], angles, atol=0.01)

    def test_the_mean_face_is_symmetric(self):
        for points in (measures.RIGID_POINTS, measures.DLIB_RIGID_POINTS):
            places = set(points.values())
            assert {(-x, y, z) for x, y, z in places} == places

    def test_distance_is_euclidean_over_the_three_angles(self):
        assert measures.pose_distance(np.array([[3.0, 4, 0]]), np.zeros((1, 3)))[0] == 5


class TestPca:
    def test_axes_of_a_stretched_cloud(self, rng):
        turn = rotation(10, 20, 30)
        points = rng.normal(size=(4000, 3)) * [5, 2, 0.1] @ turn.T + [1, 2, 3]
        pca = measures.Pca.fit(points)
        np.testing.assert_allclose(np.abs(pca.axes @ turn), np.eye(3)[:2], atol=0.02)
        np.testing.assert_allclose(pca.project(points).std(axis=0), [5, 2], rtol=0.05)
        np.testing.assert_allclose(pca.project(points).mean(axis=0), 0, atol=1e-9)
        np.testing.assert_allclose(pca.share, [25 / 29.01, 4 / 29.01], atol=0.02)

    def test_the_sign_does_not_depend_on_the_order(self, rng):
        points = rng.normal(size=(100, 6)) * np.arange(1, 7)
        np.testing.assert_allclose(measures.Pca.fit(points).axes, measures.Pca.fit(points[::-1]).axes, atol=1e-9)


class TestSequences:
    def test_drift_of_a_known_sequence(self):
        """Two codes 60 degrees apart: each is 30 degrees from their mean."""
        codes = np.array([[1, 0], [0.5, np.sqrt(0.75)]]) * [[2.0], [5.0]]  # lengths do not count
        np.testing.assert_allclose(measures.drift(codes), 1 - np.cos(np.radians(30)))
        np.testing.assert_allclose(measures.drift(np.tile(codes[:1], (4, 1))), 0, atol=1e-12)

    def test_jitter_of_even_motion_and_of_trembling(self):
        time = np.arange(6.0)[:, None, None]
        even = np.broadcast_to(time * [3.0, -1.0], (6, 4, 2))
        assert measures.jitter(even) == pytest.approx(0)
        trembling = np.broadcast_to((time % 2) * [1.0, 0.0], (6, 4, 2))  # +-1 px: the second difference is 2 px
        assert measures.jitter(trembling) == pytest.approx(2)

    def test_jitter_skips_gaps(self):
        jump = np.array([0, 1, 2, 50, 51, 52.0])[:, None, None] * np.ones((6, 1, 2))
        assert measures.jitter(jump, np.array([0, 1, 2, 9, 10, 11])) == pytest.approx(0)
        assert np.isnan(measures.jitter(jump, np.array([0, 2, 4, 6, 8, 10])))
        assert np.isnan(measures.jitter(jump[:2]))

    def test_correlation(self):
        series = np.array([1.0, 3, 2, 5])
        assert measures.correlation(series, 2 * series + 1) == pytest.approx(1)
        assert measures.correlation(series, -series) == pytest.approx(-1)
        assert np.isnan(measures.correlation(series, np.ones(4)))


def test_pixel_errors():
    black, white = np.zeros((1, 4, 4, 3), np.uint8), np.full((1, 4, 4, 3), 255, np.uint8)
    half = np.where(np.arange(4)[:, None] < 1, 255, black[0])[None].astype(np.uint8)  # a quarter is white
    assert measures.rmse(black, white) == pytest.approx([1])
    assert measures.rmse(half, black) == pytest.approx([0.5])
    np.testing.assert_allclose(measures.psnr(np.array([1, 0.1, 0])), [0, 20, 100])


def test_summary_and_point_distance():
    assert measures.summary(np.array([1.0, 3.0])) == {"mean": 2, "std": pytest.approx(np.sqrt(2)), "n": 2}
    assert measures.summary(np.array([7.0])) == {"mean": 7, "std": 0, "n": 1}
    points = np.zeros((1, 2, 2))
    others = np.array([[[3.0, 4.0], [0.0, 0.0]]])
    assert measures.point_distance(points, others, 256) == pytest.approx([2.5 / 256])


def test_cosine_ignores_length():
    np.testing.assert_allclose(measures.cosine(np.array([[3.0, 0]]), np.array([[1.0, 1]])), [np.sqrt(0.5)])


def test_what_follows_exactly_correlates_fully(rng):
    poses, points, mouth = rng.normal(size=(9, 3)), rng.normal(size=(9, 5, 2)), rng.normal(size=9)
    nothing = np.zeros((9, 1))

    def seen(poses, points, mouth):
        return Seen(nothing, {}, {"mesh": points}, {"mesh": poses}, mouth, mouth / 9, np.stack([mouth] * 2, 1), nothing)

    driving = seen(poses, points, mouth)
    backwards = seen(poses * (2, -1, 1) + (5, 0, 3), points + np.array([3, 4]), -mouth)
    exact, other = following_measures(driving, driving), following_measures(backwards, driving)
    assert exact["pose_correlation"]["mesh"] == pytest.approx({"pitch": 1, "yaw": 1, "roll": 1})
    assert exact["pose_error"]["mesh"]["mean"] == exact["expression"]["mesh"]["mean"] == 0
    assert other["pose_correlation"]["mesh"] == pytest.approx({"pitch": 1, "yaw": -1, "roll": 1})
    for what in ("mouth", "eyes", "gaze"):
        assert exact[f"{what}_correlation"] == pytest.approx(1)
        assert other[f"{what}_correlation"] == pytest.approx(-1)
    assert other["expression"]["mesh"]["mean"] == pytest.approx(5 / 256)


def test_two_ways_of_measuring_pose_agree_as_far_as_they_correlate(rng):
    poses, nothing = rng.normal(size=(9, 3)), np.zeros((9, 1))
    seen = Seen(nothing, {}, {}, {"face mesh": poses, "dlib": poses * (2, -1, 1)}, *[nothing] * 4)
    assert pose_agreement(seen) == pytest.approx({"pitch": 1, "yaw": -1, "roll": 1})
    assert pose_agreement(replace(seen, poses={"face mesh": poses})) == {}
