"""A tool's arguments one by one, for grammars of formats that do not write them as one object."""

from dataclasses import dataclass
from typing import Any

from gateway.parsers.call_reader import Schema

_SHARED = ("$defs", "definitions", "x-guidance")  # what a property's schema may refer to


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    schema: dict[str, Any]
    is_required: bool


def parameters_of(schema: Schema) -> list[Parameter]:
    """In the order of the schema."""
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return []
    required = schema.get("required")
    needed = frozenset(required) if isinstance(required, list) else frozenset()
    shared = {key: schema[key] for key in _SHARED if key in schema}
    return [
        Parameter(name, {**shared, **(inner if isinstance(inner, dict) else {})}, name in needed)
        for name, inner in properties.items()
    ]


def takes_any_names(schema: Schema) -> bool:
    """Nothing is said of the arguments' names."""
    return "properties" not in schema and schema.get("additionalProperties") is not False
