"""Argument values as the tool's schema wants them, where a model's way to write them has no types.

Nothing here refuses: a value that fits no type of its schema is passed on as text.
"""

import json
from typing import Any

from gateway.parsers.call_reader import Schema
from gateway.parsers.json_calls import loads
from gateway.parsers.literal import json_of_literal, json_word

_TYPES = frozenset({"string", "integer", "number", "boolean", "null", "array", "object"})
_MAX_NESTING = 8


def types_of(schema: Any, depth: int = 0) -> frozenset[str]:
    """The JSON types that a schema allows; empty: it does not say."""
    if not isinstance(schema, dict) or depth > _MAX_NESTING:
        return frozenset()
    named = schema.get("type")
    if isinstance(named, str):
        return frozenset({named}) & _TYPES
    if isinstance(named, list):
        return frozenset(name for name in named if isinstance(name, str)) & _TYPES
    values = schema.get("enum") or ([schema["const"]] if "const" in schema else None)
    if isinstance(values, list):
        return frozenset(_type_of(value) for value in values)
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            found = [types_of(option, depth + 1) for option in schema[key]]
            return frozenset().union(*found) if all(found) else frozenset()
    return frozenset()


def is_text(schema: Any) -> bool:
    """Only strings are allowed, so whatever is written is one."""
    return types_of(schema) == {"string"}


def text_choices(schema: Schema) -> list[str]:
    """Of a schema that allows text only: the texts that it names; empty: any."""
    choices = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    return list(choices)


def takes_text(schema: Any) -> bool:
    types = types_of(schema)
    return not types or "string" in types


def json_of_text(text: str, schema: Any) -> str:
    """A value written without quotes, as JSON of a type that the schema allows."""
    types = types_of(schema)
    if types == {"string"}:
        return _quoted(text)
    for written in (text.strip(), json_of_literal(text)):
        value = _as_type(written, types)
        if value is not None:
            return value
    return _quoted(text)


def retyped(written: str, schema: Any) -> str:
    """JSON whose type may not be the schema's: numbers for text, or text for numbers."""
    value = loads(written)
    if isinstance(value, str):
        return written if takes_text(schema) else json_of_text(value, schema)
    return _quoted(written) if is_text(schema) else written


def _as_type(written: str | None, types: frozenset[str]) -> str | None:
    """The text itself where it is JSON of one of the types; None: it is not."""
    if not written:
        return None
    word = json_word(written) if len(written) <= 400 else None
    if word is not None:
        written = word
    value = loads(written)
    if value is None and written != "null":
        return None
    kind = _type_of(value)
    if not types or kind in types:
        return written
    if kind == "integer" and "number" in types:
        return written
    if kind == "number" and "integer" in types and float(value).is_integer():
        return str(int(value))
    return None


def _type_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def property_of(schema: Schema, name: str) -> Any:
    properties = schema.get("properties")
    return properties.get(name) if isinstance(properties, dict) else None
