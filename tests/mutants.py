"""Broken files in great number: what chance makes of a good one, the same for the same seed."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ODD_BYTES = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)
ODD_NUMBERS = (0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1 << 31, 1 << 63, 1e308, -0.5, "", "x" * 5000, "\ud800", "\0", "../x", "a.onnx"),
    *([], {}, [[]], [0] * 300, {"": {}}, "default", "batch", "float32", [1, "batch"]),
)


def mutant(data: bytes, number: int) -> bytes:
    """Return `data` with 1 to 8 things done to it, by the random numbers of `number`."""
    rng, content = random.Random(number), bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        at = rng.randrange(len(content)) if content else 0
        length = min(rng.choice((1, 2, 4, 16, 256)), len(content) - at)
        match rng.randrange(7):
            case 0 if content:
                content[at] ^= 1 << rng.randrange(8)
            case 1 if content:
                content[at] = rng.choice(ODD_BYTES)
            case 2:
                content[at : at + 4] = rng.choice(ODD_NUMBERS).to_bytes(4, rng.choice(("little", "big")))
            case 3:
                del content[at : at + length]
            case 4:
                content[at:at] = rng.randbytes(length or 1)
            case 5:
                content[at:at] = content[at : at + length] * rng.choice((1, 3))
            case 6 if rng.random() < 0.3:
                del content[at:]
    return bytes(content)


def json_mutant(record: Any, number: int) -> bytes:
    """Return a JSON record in which 1 to 3 values are others, missing, or deeply wrapped."""
    rng, copy = random.Random(number), json.loads(json.dumps(record))
    for _ in range(rng.choice((1, 1, 2, 3))):
        place, key = rng.choice(list(_places(copy)))
        match rng.randrange(4):
            case 0 | 1:
                place[key] = json.loads(json.dumps(rng.choice(ODD_VALUES)))
            case 2:
                del place[key]
            case 3:
                for _ in range(rng.choice((1, 30, 400))):
                    place[key] = [place[key]] if rng.random() < 0.5 else {"x": place[key]}
        if not list(_places(copy)):
            break
    return json.dumps(copy).encode()


def _places(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        if depth < 8:
            yield from _places(inner, depth + 1)


@contextmanager
def within(seconds: float, what: Callable[[], str]) -> Iterator[None]:
    """End what takes longer with an error that names it."""

    def late(*_: object) -> None:
        raise AssertionError(f"{what()} takes more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
