"""Every failure as OpenAI's error object: our errors, the framework's, and wrong request bodies.

`create_app` installs them; they only translate.
"""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gateway.error_response import error_response
from gateway.errors import (
    APIError,
    BodyTooLargeError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
)
from gateway.sse import ClientDisconnected
from gateway.state import account_in

_MAX_QUOTED_CHARS = 100


def install(app: FastAPI) -> None:
    app.add_exception_handler(APIError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(ClientDisconnected, _on_disconnect)


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, APIError)
    account = account_in(request.scope)
    if account is not None:
        account.fail_with(error)
    return error_response(error)


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = error_response(_api_error(request, error))
    for name, value in (error.headers or {}).items():  # Allow, with a 405
        response.headers[name] = value
    return response


def _api_error(request: Request, error: HTTPException) -> APIError:
    asked = f"{request.method} {request.url.path[:256]}"
    if error.status_code == 404:
        return NotFoundError(f"Unknown request URL: {asked}.", code="unknown_url")
    if error.status_code == 405:
        return MethodNotAllowedError(f"Not allowed method for this URL: {asked}.")
    if error.status_code == 413:
        return BodyTooLargeError(str(error.detail))
    if error.status_code < 500:
        refusal = InvalidRequestError(str(error.detail))
        refusal.status = error.status_code
        return refusal
    return APIError(str(error.detail))


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(_explain(request, error))


def _explain(request: Request, error: RequestValidationError) -> InvalidRequestError:
    """The first wrong field; what its alternatives say (a string? a list?) is joined."""
    problems = error.errors()
    first = problems[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "invalid JSON")
        place = first["loc"][-1]
        return InvalidRequestError(
            f"We could not parse the JSON body of your request: {reason} (at character {place})."
        )
    if isinstance(error.body, bytes):
        kind = request.headers.get("content-type", "none")[:_MAX_QUOTED_CHARS]
        return InvalidRequestError(
            f"The body must be JSON with the header 'Content-Type: application/json', got {kind}."
        )
    param = _likeliest_param(problems, error.body)
    matching = [problem for problem in problems if _param(problem, error.body) == param]
    first = matching[0]
    text = " or ".join(dict.fromkeys(str(one["msg"]).removesuffix(".") for one in matching))
    if not param:
        return InvalidRequestError(f"The request body is not valid: {text}.")
    quoted = "" if first["type"] == "missing" else f" (got {_quoted(first['input'])})"
    return InvalidRequestError(f"Invalid value for '{param}': {text}{quoted}.", param=param)


def _likeliest_param(problems: Sequence[dict[str, Any]], body: Any) -> str:
    """Of the first wrong field: where the alternative that fits its value best went wrong."""
    params = [_param(problem, body) for problem in problems]
    field = _field(params[0])
    return max(
        (param for param in params if _field(param) == field), key=lambda one: one.count(".")
    )


def _field(param: str) -> str:
    return param.split(".")[0].split("[")[0]


def _quoted(value: Any) -> str:
    """Short enough that no answer grows with its request."""
    if isinstance(value, str | int | float | bool | None):
        text = repr(value) if not isinstance(value, int) else str(value)[:_MAX_QUOTED_CHARS]
    else:
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= _MAX_QUOTED_CHARS else text[:_MAX_QUOTED_CHARS] + "…"


def _param(problem: dict[str, Any], body: Any) -> str:
    """`messages[0].role` from pydantic's location, whose path also names alternatives tried."""
    path = ""
    value = body
    location = problem["loc"][1:]  # behind "body"
    for place, step in enumerate(location):
        if isinstance(step, int) and isinstance(value, list) and step < len(value):
            path += f"[{step}]"
            value = value[step]
        elif isinstance(value, dict) and (
            step in value or (problem["type"] == "missing" and place == len(location) - 1)
        ):
            path += f".{step}" if path else str(step)
            value = value.get(step)
    return path[:256]
