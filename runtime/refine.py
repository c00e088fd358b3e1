"""Finding what a person's photo shows beyond their codes: rounds of the graph `refine`, each a step in W+.

The graph composes the photo with its own attributes, sees where composition and photo differ, and takes one step of
gradient descent; its gradient is part of it, so nothing but an engine is needed (export/refine.py makes it). The photo
and its mirror image take turns: the person is the same in both, pose, light and whatever else one picture has are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from .engines.session import Session
from .face.parts import FACE, HAIR, NECK

ROUNDS = 20
"""How many rounds a photo gets unless somebody says otherwise; 0.06 to 0.13 s each on two cores, by the engine."""

NECK_SHARE = 0.5  # how much the neck counts beside face and hair
SEEN = 0.1  # mean share of face and hair in a crop, below which the network has not understood it


def own_share(parts: np.ndarray) -> np.ndarray:
    """Return how much of each place of a photo is the person's own, float32 [128, 128] in 0..1, of its parts float32
    [6, 128, 128] (`face.parts`): what is behind, worn or held is not. 1 everywhere where hardly a head is seen."""
    head = parts[FACE] + parts[HAIR]
    return np.minimum(head + NECK_SHARE * parts[NECK], 1) if head.mean() >= SEEN else np.ones_like(head)


class View(NamedTuple):
    """A photo or its mirror image, as the rounds see it."""

    crop: np.ndarray  # aligned, RGB uint8 [256, 256, 3]
    own: np.ndarray  # `own_share` of it, float32 [128, 128]
    w: np.ndarray  # the mapper's for the photo's code and the view's own attributes, float32 [w_size]


def w_plus_offset(
    session: Session, views: Sequence[View], rounds: int, go_on: Callable[[], bool] = lambda: True
) -> np.ndarray:
    """Return the person's offset in W+, float32 [n_styles, w_size], to be added to the mapper's w for any attributes.

    session: the graph `refine`. views: they take turns, a round each; the offset is what they have in common, while
    what a view has for itself in pose, expression and light goes into an unknown of its own, which is dropped. rounds:
    1 or more; the steps get smaller towards the last. go_on: asked before each round; raises InterruptedError when it
    says no.
    """
    shapes = {tensor.name: tensor.shape for tensor in session.inputs}
    state = np.zeros(tuple(map(int, shapes["state"])), np.float32)
    dropped = [state[:, :, -1].copy() for _ in views]
    last, offset = np.array([rounds], np.float32), None
    for number in range(rounds):
        if not go_on():
            raise InterruptedError("nobody waits for the rest of the rounds.")
        turn = number % len(views)
        view, state[:, :, -1] = views[turn], dropped[turn]
        given = {"crop": view.crop[None], "w": view.w[None], "state": state, "rounds": last}
        if "own" in shapes:  # a bundle that was exported before compares the whole head
            given["own"] = view.own[None]
        found = session.run(**given, round=np.array([number], np.float32))
        state, offset = found["next_state"].copy(), found["w_plus_offset"]
        dropped[turn] = state[:, :, -1].copy()
    assert offset is not None
    return offset[0]
