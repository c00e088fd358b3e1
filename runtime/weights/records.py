"""Records on disk and in messages: JSON that becomes a value of a known type, or one sentence about what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import FidError

T = TypeVar("T")


def decode(content: bytes | str, kind: type[T], complain: Callable[[str], Exception] = FidError) -> T:
    """Return JSON as a value of `kind`, a dataclass or a plain type; fields that it does not know are passed over.

    Raises what `complain` makes of half a sentence ("is not JSON", "says Expected `int`, got `str` - at `$.step`").
    """
    import msgspec

    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        raise complain(f"is not as it should be: {error}") from None
    except RecursionError:
        raise complain("is nested too deeply") from None
    except ValueError:  # no JSON, no UTF-8, half a surrogate pair
        raise complain("is not JSON") from None


def convert(record: Any, kind: type[T], complain: Callable[[str], Exception] = FidError) -> T:
    """Return what `decode` has read as plain values as a value of `kind`. Raises as `decode` does."""
    import msgspec

    try:
        return msgspec.convert(record, kind)
    except msgspec.ValidationError as error:
        raise complain(f"is not as it should be: {error}") from None
