"""Finding what a person's photo shows beyond their codes: rounds of the graph `refine`, each a step in W+.

The graph composes the photo with its own attributes, sees where composition and photo differ, and takes one step of
gradient descent; its gradient is part of it, so nothing but an engine is needed (export/refine.py makes it).
"""

from __future__ import annotations

import numpy as np

from .engines.session import Session

ROUNDS = 20
"""How many rounds a photo gets unless somebody says otherwise; about a seventh of a second each on two cores."""


def w_plus_offset(session: Session, crop: np.ndarray, w: np.ndarray, rounds: int) -> np.ndarray:
    """Return the person's offset in W+, float32 [n_styles, w_size], to be added to the mapper's w for any attributes.

    session: the graph `refine`. crop: the photo, aligned, RGB uint8 [256, 256, 3]. w: the mapper's float32 [w_size] for
    the photo's own codes. rounds: 1 or more; the steps get smaller towards the last.
    """
    shape = next(tensor.shape for tensor in session.inputs if tensor.name == "state")
    found = {"next_state": np.zeros(tuple(map(int, shape)), np.float32)}
    last = np.array([rounds], np.float32)
    for number in range(rounds):
        now = np.array([number], np.float32)
        found = session.run(crop=crop[None], w=w[None], state=found["next_state"], round=now, rounds=last)
    return found["w_plus_offset"][0]
