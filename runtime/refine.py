"""Finding what a person's photo shows beyond their codes: rounds of the graph `refine`, each a step in W+.

The graph composes the photo with its own attributes, sees where composition and photo differ, and takes one step of
gradient descent; its gradient is part of it, so nothing but an engine is needed (export/refine.py makes it).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .engines.session import Session

ROUNDS = 24
"""How many rounds a photo gets unless somebody says otherwise; 0.06 to 0.12 s each on two cores, by the engine."""


def w_plus_offset(
    session: Session, crop: np.ndarray, w: np.ndarray, rounds: int, go_on: Callable[[], bool] = lambda: True
) -> np.ndarray:
    """Return the person's offset in W+, float32 [n_styles, w_size], to be added to the mapper's w for any attributes.

    session: the graph `refine`. crop: the photo, aligned, RGB uint8 [256, 256, 3]. w: the mapper's float32 [w_size] for
    the photo's own codes. rounds: 1 or more; the steps get smaller towards the last. go_on: asked before each round;
    raises InterruptedError when it says no.
    """
    shape = next(tensor.shape for tensor in session.inputs if tensor.name == "state")
    found = {"next_state": np.zeros(tuple(map(int, shape)), np.float32)}
    last = np.array([rounds], np.float32)
    for number in range(rounds):
        if not go_on():
            raise InterruptedError("nobody waits for the rest of the rounds.")
        now = np.array([number], np.float32)
        found = session.run(crop=crop[None], w=w[None], state=found["next_state"], round=now, rounds=last)
    return found["w_plus_offset"][0]
