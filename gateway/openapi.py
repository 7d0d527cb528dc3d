"""The OpenAPI document of this server: FastAPI's, with the answers and errors it really gives.

FastAPI documents wrong bodies as 422 with its own schema; here they are 400 with OpenAI's object.
Knows which paths need a key only by being told.
"""

from collections.abc import Set
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from gateway.answer_schemas import answer_components, answer_content

_NULLABLE_TEXT = {"anyOf": [{"type": "string"}, {"type": "null"}]}
_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": _NULLABLE_TEXT,
                "code": _NULLABLE_TEXT,
            },
        }
    },
}
_ERROR_ANSWER = {
    "description": "OpenAI's error object",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}},
}


_KEY_SCHEME = {"type": "http", "scheme": "bearer", "description": "An API key, where there are any"}


def install(app: FastAPI, open_paths: Set[str]) -> None:
    """Made at the first request for it, then kept. `open_paths` need no key."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, open_paths)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way


def _document(app: FastAPI, open_paths: Set[str]) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _tell_answers(path, operation)
            # {}: without a key too, as on a server that has none.
            operation["security"] = [] if path in open_paths else [{"apiKey": []}, {}]
    schemas = document["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["ErrorResponse"] = _ERROR_SCHEMA
    schemas |= answer_components()
    document["components"]["securitySchemes"] = {"apiKey": _KEY_SCHEME}
    return document


def _tell_answers(path: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    responses["default"] = _ERROR_ANSWER
    content = answer_content(path)
    if content is not None:
        responses["200"]["content"] = content
