"""A tool's arguments one by one, for grammars of formats that do not write them as one object."""

import json
from collections.abc import Sequence
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


def argument_chain(name: str, arguments: Sequence[tuple[str, bool]], comma: str) -> list[str]:
    """Rules of which `first_{name}_0` is the arguments in their order, with commas between.
    `arguments`: each as a Lark expression, and whether it is required.

    Two chains: before the first argument, and behind one, where a comma comes first."""
    lines = []
    separator, last = json.dumps(comma), len(arguments)
    for i, (argument, is_required) in enumerate(arguments):
        skip_first = "" if is_required else f" | first_{name}_{i + 1}"
        skip_later = "" if is_required else f" | later_{name}_{i + 1}"
        lines.append(f"first_{name}_{i}: {argument} later_{name}_{i + 1}{skip_first}")
        lines.append(f"later_{name}_{i}: {separator} {argument} later_{name}_{i + 1}{skip_later}")
    return [*lines, f'first_{name}_{last}: ""', f'later_{name}_{last}: ""']
