"""Read a request: a form with its fields and files, or a body, all in memory and of bounded size."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..controls import MOST_CONTROL, Controls
from .guard import RefusedError

if TYPE_CHECKING:
    from starlette.requests import Request

BODY_SECONDS = 30.0  # for the whole of a request's body to arrive


@dataclass(frozen=True)
class Upload:
    """A file of a form."""

    data: bytes
    name: str  # as the sender calls it, fit to be shown; "" where it has none that says anything


class Form:
    """The fields of a form: text, or a file."""

    def __init__(self, items: Sequence[tuple[str, str | Upload]], fields: Sequence[str]) -> None:
        unknown = sorted({name for name, _ in items} - set(fields))
        if unknown:
            raise RefusedError(400, f"there is no field {unknown[0][:40]!r} here; there are {', '.join(fields)}.")
        self._items = items

    def values(self, field: str) -> list[str | Upload]:
        """Return all that came under this name."""
        return [value for name, value in self._items if name == field]

    def text(self, field: str, default: str) -> str:
        """Return the one text under this name."""
        values = self.values(field) or [default]
        if len(values) != 1 or not isinstance(values[0], str):
            raise RefusedError(400, f"{field} is one text.")
        return values[0].lower()

    def number(self, field: str) -> int | None:
        """Return the one whole number from 1 under this name; None without."""
        text = self.text(field, "")
        if text and not (text.isascii() and text.isdigit() and int(text[:9]) >= 1 and len(text) < 9):
            raise RefusedError(400, f"{field} is a number from 1; it is {text[:40]!r}.")
        return int(text) if text else None

    def controls(self) -> Controls:
        """Return how far `pose` and `expression` are followed; as far as they go without."""
        found = {}
        for name in ("pose", "expression"):
            text = self.text(name, "1")
            try:
                found[name] = float(text)
            except ValueError:
                raise RefusedError(
                    400, f"{name} is a number from 0 to {MOST_CONTROL:g}; it is {text[:40]!r}."
                ) from None
        return Controls(**found)

    def mix(self, what: str) -> float | None:
        """Return how far from `what` to `what`_to, 0..1; None when there is nothing to go to."""
        text = self.text(f"{what}_mix", "")
        if not self.values(f"{what}_to"):
            if text:
                raise RefusedError(400, f"{what}_mix needs {what}_to, to go there.")
            return None
        try:
            number = float(text or "0.5")
        except ValueError:
            number = -1.0
        if not 0 <= number <= 1:
            raise RefusedError(400, f"{what}_mix is a number from 0 to 1; it is {text[:40]!r}.")
        return number


async def read_form(request: Request, fields: Sequence[str], limit: int) -> Form:
    """Return the fields of a multipart/form-data request of at most `limit` bytes; `RefusedError` for anything else."""
    from starlette.datastructures import UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser
    from starlette.requests import ClientDisconnect

    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise RefusedError(415, "send the fields as multipart/form-data.")
    stream = _limited(request, limit)
    parser = MultiPartParser(request.headers, stream, max_files=32, max_fields=32, max_part_size=4096)  # pyright: ignore[reportArgumentType]
    parser.spool_max_size = limit + 1  # never onto the disk
    try:
        items = (await asyncio.wait_for(parser.parse(), BODY_SECONDS)).multi_items()
    except MultiPartException as error:
        raise RefusedError(400, f"the form cannot be read: {error.message.rstrip('.').lower()}.") from error
    except (KeyError, ValueError, ClientDisconnect) as error:
        raise RefusedError(400, "the form cannot be read.") from error
    except TimeoutError:
        raise RefusedError(408, f"the photos did not arrive within {BODY_SECONDS:.0f} s.") from None
    values: list[tuple[str, str | Upload]] = []
    for name, item in items:
        if isinstance(item, UploadFile):
            values.append((name, Upload(await item.read(), _shown(item.filename or ""))))
            await item.close()
        else:
            values.append((name, item))
    return Form(values, fields)


def _shown(name: str) -> str:
    """A file's name without folders and without what cannot be shown, 60 characters of it."""
    plain = "".join(c for c in name.replace("\\", "/").rpartition("/")[2] if c.isprintable())[:60]
    return "" if plain in ("blob", "file", "photo", "upload") else plain  # what programs call a file that has no name


async def _limited(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body as it arrives; `RefusedError` 413 as soon as it is known to be too large.

    The connection stays open, and uvicorn passes over what still comes: closed on a sender that has not done, it would
    be reset, and the answer could be lost.
    """
    sentence = f"the request is too large; {limit / 1e6:g} MB are the limit."
    stated = request.headers.get("content-length", "0")
    if not stated.isdigit() or int(stated) > limit:
        raise RefusedError(413, sentence)
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise RefusedError(413, sentence)
        yield part


async def stored_body(request: Request, path: Path, limit: int) -> None:
    """Write the body of a request of at most `limit` bytes into a file as it comes; `RefusedError` 413 for more, 408
    for one that stands still, 400 for one that breaks off."""
    from starlette.requests import ClientDisconnect

    parts = _limited(request, limit)
    try:
        with path.open("xb") as file:
            while (part := await asyncio.wait_for(anext(parts, None), BODY_SECONDS)) is not None:
                await asyncio.to_thread(file.write, part)
    except TimeoutError:
        raise RefusedError(408, f"nothing arrived for {BODY_SECONDS:.0f} s.") from None
    except ClientDisconnect:
        raise RefusedError(400, "the video did not arrive.") from None
    except OSError as error:
        raise RefusedError(503, f"the video cannot be stored: {error.strerror or error}.") from error


async def read_body(request: Request, limit: int) -> bytes:
    """Return the whole body of at most `limit` bytes; `RefusedError` 413 for more, 408 for one that does not arrive."""

    async def whole() -> bytes:
        return b"".join([part async for part in _limited(request, limit)])

    try:
        return await asyncio.wait_for(whole(), BODY_SECONDS)
    except TimeoutError:
        raise RefusedError(408, f"the request did not arrive within {BODY_SECONDS:.0f} s.") from None
