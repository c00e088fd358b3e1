"""The lean runtime: compose photos with NumPy, OpenCV and ONNX Runtime, without torch.

from fid.runtime import Composer

composer = Composer()
composer.set_identity("ann.jpg")
image = composer.compose("bob.jpg")  # RGB uint8 [256, 256, 3]
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import FidError, InputError

if TYPE_CHECKING:
    from .composer import Composer
    from .controls import Controls
    from .identity import Identity
    from .weights.bundle import Bundle

__all__ = ["Bundle", "Composer", "Controls", "FidError", "Identity", "InputError"]

_MODULES = {"Bundle": "weights.bundle", "Composer": "composer", "Controls": "controls", "Identity": "identity"}


def __getattr__(name: str) -> Any:
    """Load a public name's module when the name is first used: importing this package costs nothing."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
