"""What each operation answers, as JSON schema: for the OpenAPI document only.

Answers are msgspec structs, of which FastAPI knows nothing; their schemas come from the structs.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec

from gateway.schemas.answers import (
    ChatCompletion,
    Detokenized,
    ModelCard,
    ModelList,
    TextCompletion,
    Tokenized,
)

Schema = dict[str, Any]

# Requests have types of the same names.
_PREFIX = "answers."
_STRUCTS: Mapping[str, type[msgspec.Struct]] = {
    "/v1/chat/completions": ChatCompletion,
    "/v1/completions": TextCompletion,
    "/v1/models": ModelList,
    "/v1/models/{model_id}": ModelCard,
    "/tokenize": Tokenized,
    "/v1/tokenize": Tokenized,
    "/detokenize": Detokenized,
    "/v1/detokenize": Detokenized,
}
_EVENT: Schema = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string"}},
    "description": "With `stream`: one server-sent event. Its data are a chunk as JSON, or an "
    "error object where the answer broke off; of the last event `[DONE]`.",
}
_STREAMED = frozenset(("/v1/chat/completions", "/v1/completions"))


def _record(name: str, value: Schema) -> Schema:
    return {"type": "object", "required": [name], "properties": {name: value}}


_STATUS = _record("status", {"const": "ok"})
_PLAIN: Mapping[str, Schema] = {
    "/livez": _STATUS,
    "/health": _STATUS,
    "/readyz": _STATUS,
    "/version": _record("version", {"type": "string"}),
    "/load": _record("server_load", {"type": "integer", "minimum": 0}),
}


@cache
def _built() -> tuple[dict[str, Schema], dict[str, Schema]]:
    """By path, and the components that they refer to."""
    template = f"#/components/schemas/{_PREFIX}{{name}}"
    schemas, components = msgspec.json.schema_components(_STRUCTS.values(), ref_template=template)
    return (
        dict(zip(_STRUCTS, schemas, strict=True)),
        {_PREFIX + name: schema for name, schema in components.items()},
    )


def answer_components() -> dict[str, Schema]:
    return _built()[1]


def answer_content(path: str) -> dict[str, Schema] | None:
    """By media type, as in an OpenAPI response; None: not JSON, FastAPI tells it itself."""
    schema = _PLAIN.get(path) or _built()[0].get(path)
    if schema is None:
        return None
    content = {"application/json": {"schema": schema}}
    if path in _STREAMED:
        content["text/event-stream"] = {"schema": _EVENT}
    return content
