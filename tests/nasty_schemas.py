"""300 JSON schemas of growing nastiness, made by rule from a seed: what clients write, what they
write by mistake, and what somebody writes to hurt.

`schema(i)` is the i-th; twenty kinds in turn, each nastier every time round.
"""

import random
import string
from collections.abc import Callable
from typing import Any

NUM_SCHEMAS = 300

Make = Callable[[random.Random, int], Any]


def schema(index: int) -> tuple[str, Any]:
    """Its kind and itself; `index` in [0, NUM_SCHEMAS)."""
    kinds = list(KINDS)
    kind = kinds[index % len(kinds)]
    return kind, KINDS[kind](random.Random(index), index // len(kinds))


def word(rng: random.Random, letters: str = string.ascii_lowercase) -> str:
    return "".join(rng.choice(letters) for _ in range(rng.randint(1, 8)))


def short_string(rng: random.Random) -> dict[str, Any]:
    low = rng.randint(0, 3)
    return {"type": "string", "minLength": low, "maxLength": low + rng.randint(0, 12)}


def number(rng: random.Random, level: int) -> dict[str, Any]:
    kind = rng.choice(["integer", "number"])
    low = rng.randint(-(10**level), 10**level)
    wanted: dict[str, Any] = {"type": kind}
    wanted[rng.choice(["minimum", "exclusiveMinimum"])] = low
    wanted[rng.choice(["maximum", "exclusiveMaximum"])] = low + rng.randint(
        2, 10 ** (level // 2 + 1)
    )
    return wanted


def scalar(rng: random.Random, level: int) -> dict[str, Any]:
    return rng.choice(
        [
            {"type": "boolean"},
            {"type": "null"},
            {"type": ["boolean", "null"]},
            short_string(rng),
            number(rng, level % 6),
            {"enum": [word(rng) for _ in range(3)]},
        ]
    )


def closed(properties: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
        **rest,
    }


def flat(rng: random.Random, level: int) -> dict[str, Any]:
    properties = {f"{word(rng)}{i}": scalar(rng, level) for i in range(1 + level)}
    wanted = closed(properties)
    wanted["required"] = rng.sample(list(properties), rng.randint(0, len(properties)))
    return wanted


def nested(rng: random.Random, level: int) -> dict[str, Any]:
    inner = scalar(rng, level)
    for i in range(1 + level * 2):
        inner = closed({f"k{i}": inner}) if rng.random() < 0.7 else array_of(inner, 1, 1)
    return inner


def array_of(items: Any, low: int, high: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": low, "maxItems": high}


def arrays(rng: random.Random, level: int) -> dict[str, Any]:
    low = rng.randint(0, 2 + level)
    if rng.random() < 0.4:
        prefix = [scalar(rng, level) for _ in range(rng.randint(1, 4))]
        return {"type": "array", "prefixItems": prefix, "items": False, "minItems": len(prefix)}
    return array_of(scalar(rng, level), low, low + rng.randint(0, 4))


def pattern(rng: random.Random, level: int) -> dict[str, Any]:
    parts = ["[a-z]{2,4}", "(foo|bar|baz)", "[0-9]{3}", "-", "(ab){1,3}", "x?y", "[A-F0-9]{8}", "_"]
    body = "".join(rng.choice(parts) for _ in range(1 + level // 2))
    return closed({"code": {"type": "string", "pattern": f"^{body}$"}})


def formats(rng: random.Random, level: int) -> dict[str, Any]:
    names = ["date", "time", "date-time", "uuid", "ipv4", "email", "hostname", "ipv6", "uri"]
    return closed({name: {"type": "string", "format": name} for name in rng.sample(names, 2)})


def bounds(rng: random.Random, level: int) -> dict[str, Any]:
    return closed({f"n{i}": number(rng, level) for i in range(3)})


def multiples(rng: random.Random, level: int) -> dict[str, Any]:
    step = rng.choice([2, 3, 5, 7, 10, 25, 100, 365])
    return closed({"n": {"type": "integer", "multipleOf": step, "minimum": 0, "maximum": 10**5}})


def open_objects(rng: random.Random, level: int) -> dict[str, Any]:
    wanted: dict[str, Any] = {
        "type": "object",
        "properties": {word(rng): scalar(rng, level)},
        "additionalProperties": rng.choice([False, True, {"type": "integer"}]),
    }
    if rng.random() < 0.5:
        wanted["patternProperties"] = {"^x_[a-z]{1,3}$": {"type": "boolean"}}
    return wanted


def references(rng: random.Random, level: int) -> dict[str, Any]:
    count = 2 + level
    definitions: dict[str, Any] = {f"d{count}": scalar(rng, level)}
    for i in range(count):
        definitions[f"d{i}"] = closed({f"p{i}": {"$ref": f"#/$defs/d{i + 1}"}})
    return {"$ref": "#/$defs/d0", "$defs": definitions}


def recursive(rng: random.Random, level: int) -> dict[str, Any]:
    children = array_of({"$ref": "#/$defs/node"}, 0, 1 + level % 2)
    node = closed({"v": {"enum": [1, 2, 3]}, "children": children})
    return {"$ref": "#/$defs/node", "$defs": {"node": node}}


def any_of(rng: random.Random, level: int) -> dict[str, Any]:
    return {"anyOf": [rng.choice([flat, nested, scalar])(rng, level % 5) for _ in range(2 + level)]}


def one_of(rng: random.Random, level: int) -> dict[str, Any]:
    if rng.random() < 0.3:  # they overlap
        return {"oneOf": [{"type": "integer"}, {"type": "number"}]}
    kinds = [word(rng) + str(i) for i in range(2 + level)]
    return {"oneOf": [closed({"kind": {"const": kind}, kind: scalar(rng, 1)}) for kind in kinds]}


def all_of(rng: random.Random, level: int) -> dict[str, Any]:
    parts = [{"type": "object", "properties": {f"a{i}": scalar(rng, 2)}} for i in range(1 + level)]
    names = [name for part in parts for name in part["properties"]]
    bounds = {"minimum": 3}, {"maximum": 3 + level}, {"type": "integer"}
    if rng.random() < 0.5:
        return {"allOf": list(bounds)}
    return {"allOf": parts, "required": names}


def huge(rng: random.Random, level: int) -> dict[str, Any]:
    count = 100 * (level + 1)
    if rng.random() < 0.5:
        return closed({"pick": {"enum": [f"{word(rng)}-{i}" for i in range(3 * count)]}})
    many = {f"field_{i}": {"type": "boolean"} for i in range(count)}
    return {"type": "object", "properties": many, "additionalProperties": False}


def unicode(rng: random.Random, level: int) -> dict[str, Any]:
    odd = ["é", "名前", "😀", 'quo"te', "back\\slash", "new\nline", "\u2028", "тест", "a b", "$ref"]
    keys = rng.sample(odd, 1 + level % 5)
    return closed({key: {"enum": [*rng.sample(odd, 3), None, 1.5, [key]]} for key in keys})


def malformed(rng: random.Random, level: int) -> Any:
    return [
        {"type": "objct"},
        {"type": 5},
        {"type": "string", "pattern": "a(b"},
        {"$ref": "#/$defs/nothing"},
        {"properties": [1, 2]},
        {"type": "integer", "minimum": "three"},
        {"type": "integer", "minimum": 5, "maximum": 1},
        {"enum": []},
        {"type": "array", "items": 3},
        {"type": "string", "minLength": 5, "maxLength": 2},
        {"required": "name", "type": "object"},
        {"not": {}},
        {"type": "string", "format": "no-such-format"},
        {"$ref": "https://example.com/schema.json"},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
    ][level]


def explosive(rng: random.Random, level: int) -> Any:
    deep: dict[str, Any] = {"type": "integer"}
    for _ in range(100):
        deep = closed({"a": deep})
    wide = [closed({f"p{j}": {"type": "string", "pattern": f"^x{{1,{j}}}$"} for j in range(1, 20)})]
    return [
        {"type": "string", "pattern": "^((a{0,50}){0,50}){0,50}$"},
        {"type": "string", "pattern": "^(a|b)*a(a|b){18}$"},
        {"type": "string", "minLength": 50_000, "maxLength": 100_000},
        {"type": "integer", "multipleOf": 1_000_003},
        deep,
        {"$ref": "#"},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"allOf": [{"type": "string", "pattern": f"^(a|b)*a(a|b){{{i}}}$"} for i in (9, 10, 11)]},
        {"anyOf": wide * 40},
        {"type": "array", "minItems": 100_000, "items": {"type": "integer"}},
        {"enum": ["x" * 70_000]},
        {"type": "string", "pattern": "^(([a-z]+)+)+[0-9]$"},
        {"allOf": [{"anyOf": [flat(rng, 3) for _ in range(8)]} for _ in range(8)]},
        {"type": "string", "pattern": "^.{0,5000}(.{0,5000}a){20}$"},
        {"type": "number", "multipleOf": 0.0001, "minimum": -1e300, "maximum": 1e300},
    ][level]


def rare_keywords(rng: random.Random, level: int) -> Any:
    base = flat(rng, 3)
    return [
        {**base, "minProperties": 1},
        {**base, "propertyNames": {"pattern": "^a"}},
        {"type": "array", "uniqueItems": True, "items": {"enum": [1, 2, 3]}},
        {"type": "array", "contains": {"const": 1}},
        {"if": {"type": "integer"}, "then": {"minimum": 1}},
        {**base, "dependentRequired": {"a": ["b"]}},
        {"type": "string", "contentEncoding": "base64"},
        {**base, "title": "T", "description": "D", "$comment": "C", "examples": [1]},
        {**base, "deprecated": True, "default": {}},
        {"type": ["string", "integer", "null"], "maxLength": 4, "maximum": 9},
        {"const": {"a": [1, {"b": None}]}},
        True,
        {},
        {**base, "unevaluatedProperties": False},
        {"type": "integer", "format": "int32"},
    ][level]


def mixed(rng: random.Random, level: int) -> Any:
    makers = [flat, nested, arrays, pattern, bounds, any_of, open_objects, unicode]
    return closed({f"part{i}": rng.choice(makers)(rng, level % 4) for i in range(1 + level // 3)})


KINDS: dict[str, Make] = {
    "scalar": scalar,
    "flat": flat,
    "nested": nested,
    "arrays": arrays,
    "pattern": pattern,
    "formats": formats,
    "bounds": bounds,
    "multiples": multiples,
    "open": open_objects,
    "references": references,
    "recursive": recursive,
    "any_of": any_of,
    "one_of": one_of,
    "all_of": all_of,
    "huge": huge,
    "unicode": unicode,
    "malformed": malformed,
    "explosive": explosive,
    "rare": rare_keywords,
    "mixed": mixed,
}
