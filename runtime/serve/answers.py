"""Answers of the HTTP API: bytes, and one sentence for each kind of failure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import FidError, InputError
from .guard import RefusedError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


def file_answer(data: bytes, media_type: str, name: str, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with a file of that name, which nobody keeps."""
    from starlette.responses import Response

    extra = {"content-disposition": f'inline; filename="{name}"', "cache-control": "no-store", **(headers or {})}
    return Response(data, media_type=media_type, headers=extra)


def _answer(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse({"error": sentence}, status, headers)


async def _refused(_: Request, error: RefusedError) -> Response:
    return _answer(error.status, str(error), error.headers)


async def _unusable(_: Request, error: InputError) -> Response:
    return _answer(422, str(error))


async def _failed(_: Request, error: FidError) -> Response:
    return _answer(500, str(error))


async def _full(_: Request, __: MemoryError) -> Response:
    return _answer(503, "there is not enough memory for this picture now; use a smaller one.")


async def _http(_: Request, error: Any) -> Response:
    sentence = {404: "there is nothing at this address.", 405: "this address takes other methods."}
    return _answer(error.status_code, sentence.get(error.status_code, str(error.detail)), error.headers)


async def _bug(_: Request, __: Exception) -> Response:  # uvicorn prints the traceback
    return _answer(500, "something went wrong in the server; its terminal says what.")


def exception_handlers() -> dict[Any, Any]:
    """Return what answers each kind of failure, as Starlette takes it."""
    from starlette.exceptions import HTTPException

    return {
        RefusedError: _refused,
        InputError: _unusable,
        FidError: _failed,
        MemoryError: _full,
        HTTPException: _http,
        500: _bug,
    }
