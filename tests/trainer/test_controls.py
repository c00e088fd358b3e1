"""Which part of the attribute code is pose and which is expression."""

import numpy as np
import pytest
import torch
from fid.export.graphs import ControlsGraph
from fid.trainer.controls import POSE, LinearControls, expression_of, fit_controls
from fid.trainer.evaluate.measures import RIGID_POINTS


@pytest.fixture(scope="module")
def world() -> dict[str, np.ndarray]:
    """Codes that are a linear function of nine numbers and of who it is, who smiles more the further the head is
    turned."""
    rng = np.random.default_rng(5)
    numbers, people = rng.standard_normal((2000, 9)), rng.standard_normal((2000, 6))
    numbers[:, POSE] += 0.5 * numbers[:, 1]
    numbers[:, POSE + 1] += 0.5 * people[:, 0]
    ways = rng.standard_normal((15, 40))
    codes = 3 + np.hstack([numbers, people]) @ ways
    return {"codes": codes, "identities": people, "numbers": numbers, "ways": ways}


@pytest.fixture(scope="module")
def controls(world: dict[str, np.ndarray]) -> LinearControls:
    neutral = np.array([0.0, 0.0, -1.0, 0, 0, 0, 0, 0, 0])
    return fit_controls(world["codes"], world["identities"], world["numbers"], neutral)


@pytest.mark.parametrize(("pose", "expression"), [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (1.5, 0.5)])
def test_each_is_scaled_and_the_other_and_the_person_stay(
    world: dict[str, np.ndarray], controls: LinearControls, pose: float, expression: float
) -> None:
    codes = torch.from_numpy(world["codes"][:64].astype(np.float32))
    scales = (torch.full((64, 1), value) for value in (pose, expression))
    found = ControlsGraph(controls)(codes, *scales).double().numpy()
    parts = (found - 3) @ np.linalg.pinv(world["ways"])  # numbers and people, exactly
    neutral = np.array([0.0, 0.0, -1.0, 0, 0, 0, 0, 0, 0])
    scale = np.array([pose] * POSE + [expression] * (9 - POSE))
    wanted = np.hstack([neutral + scale * (world["numbers"][:64] - neutral), world["identities"][:64]])
    apart = np.abs(parts - wanted)
    # Ridge pulls what is read off a little towards the mean: a tenth in the weakest of nine directions.
    assert apart.mean() < 0.08, f"mean {apart.mean():.3f}, max {apart.max():.3f}"
    if pose == expression == 1:
        assert apart.max() < 1e-4


def test_expression_is_read_off_whatever_way_the_head_looks() -> None:
    mesh = np.zeros((468, 3))
    mesh[list(RIGID_POINTS)] = list(RIGID_POINTS.values())
    mesh[[13, 14, 61, 291]] = (0, 60, -30), (0, 72, -30), (-25, 62, -15), (25, 62, -15)  # an open mouth
    mesh[[159, 145, 386, 374]] = (-31, -5, -5), (-31, 4, -5), (31, -5, -5), (31, 4, -5)
    turn, tilt = np.radians(25), np.radians(-10)
    about_y = np.array([[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    turned = 0.7 * mesh @ about_y @ about_x + (128, 120, 0)
    closed = mesh.copy()
    closed[14] = closed[13]
    straight, same, shut = expression_of(np.stack([mesh, turned, closed]))
    np.testing.assert_allclose(same, straight, atol=1e-9)
    assert straight[0] > 0 == shut[0]  # the gap between the lips
    assert straight[1] == shut[1]  # the width of the mouth
    assert straight[3] == pytest.approx(9 / np.hypot(27.8, 1.6), rel=0.05)  # the eyes, of their width
