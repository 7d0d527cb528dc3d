"""Each kind of constraint as the text of a Grammar: JSON schema, regular expression, list of
choices, context-free grammar.

Size and nesting are checked here; whether the text means anything, the GrammarChecker finds out.
Pure functions.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark

from gateway.errors import InvalidRequestError
from gateway.tokens import Grammar
from protos.grammar_source import UNFORCED

MAX_CHARS = 65_536
_MAX_NESTING = 64
_MAX_CHOICES = 4096
_MAX_WHITESPACE_CHARS = 256
# One space where JSON may have many: a model that is unsure would write them for ever.
STYLE = {"whitespace_flexible": False, "key_separator": ": ", "item_separator": ", "}
LENIENT_STYLE = {"lenient": True, **STYLE}  # passes over keywords that cannot be held
_COMPACT_STYLE = {"whitespace_flexible": False, "key_separator": ":", "item_separator": ","}
_EMPTY_OPTIONS = re.compile(r"%llguidance\s*\{\s*\}")
_UNICODE_ESCAPE = re.compile(r"(\\\\)|\\u([0-9a-fA-F]{4})|\\U([0-9a-fA-F]{8})")


@dataclass(frozen=True, slots=True)
class JsonWriting:
    """How JSON under a schema is written, where the client has a say in it."""

    is_compact: bool = False
    whitespace_pattern: str | None = None  # between tokens, instead of single spaces
    closes_objects: bool = False  # no properties but the described ones


def json_grammar(schema: Any, param: str, writing: JsonWriting | None = None) -> Grammar:
    """Raises: InvalidRequestError."""
    _check_nesting(schema, param)
    if writing is not None and writing.closes_objects:
        schema = _closed(schema)
    if isinstance(schema, dict):
        schema = styled(schema, None if writing is None else _style(writing, param))
    text = json.dumps(schema, ensure_ascii=False)
    return checked(Grammar("json_schema", text, param))


def styled(schema: dict[str, Any], style: dict[str, Any] | None = None) -> dict[str, Any]:
    """The client's own compiler options are dropped: they could make a grammar ambiguous."""
    if style is None:
        style = LENIENT_STYLE if schema.get("x-guidance") is LENIENT_STYLE else STYLE
    return {**schema, "x-guidance": style}


def parsed_schema(schema: str | dict[str, Any] | bool, param: str) -> Any:
    if not isinstance(schema, str):
        return schema
    _check_size(schema, param)
    try:
        return json.loads(schema)
    except (ValueError, RecursionError):
        raise InvalidRequestError("json must be a JSON schema.", param=param) from None


def regex_grammar(pattern: str, param: str) -> Grammar:
    return checked(Grammar("regex", pattern, param))


def choice_grammar(choices: list[str], param: str) -> Grammar:
    """One terminal of them all: as alternatives of a rule they would be too many for the parser."""
    if not choices or not all(choices):
        raise InvalidRequestError("choice must be a list of non-empty strings.", param=param)
    if len(choices) > _MAX_CHOICES:
        raise InvalidRequestError(
            f"choice can have at most {_MAX_CHOICES} strings, got {len(choices)}.", param=param
        )
    alternatives = " | ".join(quoted(choice) for choice in dict.fromkeys(choices))
    return checked(Grammar("lark", f"start: CHOICE\nCHOICE: {alternatives}", param))


def client_grammar(text: str, param: str) -> Grammar:
    """A grammar in Lark, or in the EBNF of llama.cpp and xgrammar (`root ::= ...`)."""
    return checked(Grammar("lark", UNFORCED + client_lark(text, param), param))


def client_lark(text: str, param: str) -> str:
    """Without any compiler options: those are not the client's. Raises: InvalidRequestError."""
    _check_size(text, param)
    if "::=" in text and not _is_lark(text):
        text = _lark_of_ebnf(text, param)
    text = _EMPTY_OPTIONS.sub("", text)
    if "%llguidance" in text:
        message = f"{param} cannot set compiler options (%llguidance)."
        raise InvalidRequestError(message, param=param)
    return text


def options_line(inner: Grammar | None) -> str:
    """What a grammar must begin with that has this one for a part: options count at the top."""
    return UNFORCED if inner is not None and inner.text.startswith(UNFORCED) else ""


def quoted(text: str) -> str:
    """A literal of Lark."""
    return json.dumps(text, ensure_ascii=False)


def checked(grammar: Grammar) -> Grammar:
    """Raises: InvalidRequestError for what is too large to be tried."""
    _check_size(grammar.text, grammar.param)
    if "\0" in grammar.text:
        message = f"{grammar.param} must not contain a NUL character."
        raise InvalidRequestError(message, param=grammar.param)
    return grammar


def _style(writing: JsonWriting, param: str) -> dict[str, Any]:
    if writing.whitespace_pattern is None:
        return _COMPACT_STYLE if writing.is_compact else STYLE
    if writing.is_compact:
        raise InvalidRequestError(
            "whitespace_pattern and disable_any_whitespace cannot both be given.", param=param
        )
    if len(writing.whitespace_pattern) > _MAX_WHITESPACE_CHARS:
        raise InvalidRequestError(
            f"whitespace_pattern can have at most {_MAX_WHITESPACE_CHARS} characters.", param=param
        )
    return {**_COMPACT_STYLE, "whitespace_pattern": writing.whitespace_pattern}


def _closed(schema: Any) -> Any:
    """Every object that describes properties and says nothing of others takes no others."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: _closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type", "object") == "object":
        inner.setdefault("additionalProperties", False)
    return inner


def _is_lark(text: str) -> bool:
    """Of a text with `::=` in it: whether that stands in a literal of Lark, after `start:`."""
    return re.search(r"^\s*start\s*:(?!:=)", text, re.MULTILINE) is not None


def _lark_of_ebnf(text: str, param: str) -> str:
    try:
        return str(gbnf_to_lark(_UNICODE_ESCAPE.sub(_plain_escape, text)))
    except (GbnfToLarkError, IndexError) as error:
        reason = str(error) if isinstance(error, GbnfToLarkError) else "it ends in an escape"
    except RecursionError:
        reason = "it nests too deeply"
    except Exception as error:  # the converter raises bare ones for rules that are missing
        reason = str(error)
    raise InvalidRequestError(f"{param} is not a grammar in EBNF: {reason[:300]}", param=param)


def _plain_escape(found: re.Match[str]) -> str:
    """The converter drops the zeros that code points begin with."""
    digits = found[2] or found[3]
    if digits is None or int(digits, 16) > 0x10FFFF:
        return found[0]
    code_point = int(digits, 16)
    return f"\\x{code_point:02x}" if code_point < 0x80 else chr(code_point)


def _check_size(text: str, param: str) -> None:
    if len(text) > MAX_CHARS:
        raise InvalidRequestError(
            f"{param} is too large: {len(text)} characters, at most {MAX_CHARS} are allowed.",
            param=param,
        )


def _check_nesting(schema: Any, param: str) -> None:
    level, depth = [schema], 0
    while level:
        depth += 1
        if depth > _MAX_NESTING:
            raise InvalidRequestError(
                f"{param} nests deeper than {_MAX_NESTING} levels.", param=param
            )
        inner = [list(x.values()) if isinstance(x, dict) else x for x in level]
        level = [child for x in inner if isinstance(x, list) for child in x]
