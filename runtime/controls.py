"""How far a composition follows the pose and the expression of the attribute photo."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InputError

MOST_CONTROL = 1.5  # how far pose and expression may be exaggerated


@dataclass(frozen=True)
class Controls:
    """How far a composition follows the attribute photo: 0 not at all (a frontal head, a neutral face), 1 as it is, up
    to `MOST_CONTROL` exaggerated. `InputError` for other values."""

    pose: float = 1.0
    expression: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("pose", self.pose), ("expression", self.expression)):
            if not 0 <= value <= MOST_CONTROL:
                raise InputError(f"{name} {value:g} is outside 0 (does not follow) to {MOST_CONTROL:g} (exaggerated).")


AS_IT_IS = Controls()
