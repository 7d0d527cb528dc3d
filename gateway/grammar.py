"""What an answer must be, as a grammar for the engine: from response_format, structured_outputs and
forced tool calls.

A grammar is compiled here first, under limits, so that a bad one is the client's error and names
its field; engines see only what passed. Pure functions, run where the rest of a plan is made.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher, LLParserLimits

from gateway.errors import InvalidRequestError
from gateway.parsers.generic import GENERIC
from gateway.parsers.text_parser import ToolFormat
from gateway.schemas.chat import ChatRequest, NamedTool, Tool
from gateway.schemas.common import ResponseFormat, SamplingFields, StructuredOutputs
from gateway.tokens import Grammar

_MAX_CHARS = 65_536
_MAX_NESTING = 64
_MAX_CHOICES = 4096
_MAX_CALLS = 16
_MAX_QUOTED_CHARS = 300
# As in worker/runner/grammar.py.
_LIMITS = LLParserLimits(initial_lexer_fuel=500_000, max_grammar_size=100_000, verbose_errors=False)
# One space where JSON may have many: a model that is unsure would write them for ever.
_STYLE = {"whitespace_flexible": False, "key_separator": ": ", "item_separator": ", "}
_LENIENT_STYLE = {"lenient": True, **_STYLE}  # passes over keywords that cannot be held
_ANY_OBJECT = {"type": "object"}
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


def constrained_format(tool_format: ToolFormat) -> ToolFormat:
    """How calls are written under a grammar: as the model does it where that is JSON between tags,
    else as a plain JSON list."""
    return tool_format if tool_format.is_tagged else GENERIC


def grammar_of(body: SamplingFields, tool_format: ToolFormat) -> Grammar | None:
    """Raises: InvalidRequestError."""
    if isinstance(body, ChatRequest) and body.uses_tools:
        if body.structured_outputs is not None:
            raise InvalidRequestError(
                "structured_outputs cannot be given with tools, unless tool_choice is 'none'.",
                param="structured_outputs",
            )
        return _grammar_with_tools(body, constrained_format(tool_format))
    asked = _format_grammar(body.response_format)
    if body.structured_outputs is not None:
        if asked is not None:
            raise InvalidRequestError(
                "response_format and structured_outputs cannot both be given.",
                param="structured_outputs",
            )
        asked = _structured_grammar(body.structured_outputs)
    return asked


def _format_grammar(response_format: ResponseFormat | None) -> Grammar | None:
    if response_format is None or response_format.type == "text":
        return None
    if response_format.type == "json_object":
        return _json_grammar(_ANY_OBJECT, "response_format")
    if response_format.type == "structural_tag":
        raise InvalidRequestError(
            "response_format of type 'structural_tag' is not supported by this server.",
            param="response_format",
        )
    wanted = response_format.json_schema
    if wanted is None or wanted.schema_ is None:
        raise InvalidRequestError(
            "response_format of type 'json_schema' needs a `json_schema` with a `schema`.",
            param="response_format.json_schema",
        )
    return _json_grammar(wanted.schema_, "response_format")


def _structured_grammar(asked: StructuredOutputs) -> Grammar:
    param = "structured_outputs"
    given = asked.given()
    if len(given) != 1:
        raise InvalidRequestError(
            "structured_outputs must have exactly one of json, json_object, regex and choice, "
            f"got {', '.join(given) or 'none'}.",
            param=param,
        )
    # Masks of an ambiguous grammar, `start: /a+/ /a+/ start?`, were seen to take minutes, and no
    # limit of the library ends it: a client's own grammar must not reach an engine.
    unsupported = (asked.grammar, asked.structural_tag, asked.whitespace_pattern)
    if any(value is not None for value in unsupported):
        raise InvalidRequestError(
            "structured_outputs with grammar, structural_tag or whitespace_pattern is not "
            "supported by this server.",
            param=param,
        )
    if asked.json_ is not None:
        return _json_grammar(_parsed(asked.json_, param), param)
    if asked.regex is not None:
        return _checked(Grammar("regex", asked.regex), param)
    if asked.choice is not None:
        return _checked(Grammar("lark", _choice_lark(asked.choice, param)), param)
    return _json_grammar(_ANY_OBJECT, param)


def _grammar_with_tools(body: ChatRequest, tool_format: ToolFormat) -> Grammar | None:
    """A forced call goes before the format of an answer; where the model may choose between the
    two, it is held to the format only if one was asked for."""
    tools = body.tools or []
    if isinstance(body.tool_choice, NamedTool):
        place = [tool.function.name for tool in tools].index(body.tool_choice.function.name)
        return _arguments_grammar(tools[place], place)
    answer = None
    if body.tool_choice != "required":
        answer = _format_grammar(body.response_format)
        if answer is None:
            return None
    for place, tool in enumerate(tools):
        _arguments_grammar(tool, place)
    limit = 1 if body.parallel_tool_calls is False else _MAX_CALLS
    lark = _calls_lark(tools, limit, tool_format)
    if answer is None:
        return _checked(Grammar("lark", f"start: calls\n{lark}"), "tools")
    start = f"start: calls | answer\nanswer: %json {answer.text}\n"
    return _checked(Grammar("lark", start + lark), "tools")


def _calls_lark(tools: Sequence[Tool], max_calls: int, tool_format: ToolFormat) -> str:
    """The rule `calls`; each schema keeps a root of its own, which its references mean."""
    unit, separator, around = "call", '", "', '"[" {} "]"'
    if tool_format.is_tagged:
        unit, separator, around = "tagged", r'"\n"', "{}"
    more = f" ({separator} {unit}){{0,{max_calls - 1}}}" if max_calls > 1 else ""
    lines = ["calls: " + around.format(unit + more)]
    if tool_format.is_tagged:
        begin, end = f"{tool_format.marks[0]}\n", f"\n{tool_format.end_mark}"
        lines.append(f"tagged: {json.dumps(begin)} call {json.dumps(end)}")
    lines.append("call: " + " | ".join(f"call_{i}" for i in range(len(tools))))
    for i, tool in enumerate(tools):
        name = json.dumps(tool.function.name, ensure_ascii=False)
        head = json.dumps(f'{{"name": {name}, "arguments": ', ensure_ascii=False)
        schema = json.dumps(_styled(_arguments_schema(tool)), ensure_ascii=False)
        lines.append(f'call_{i}: {head} arguments_{i} "}}"')
        lines.append(f"arguments_{i}: %json {schema}")
    return "\n".join(lines)


def _arguments_grammar(tool: Tool, place: int) -> Grammar:
    return _json_grammar(_arguments_schema(tool), f"tools[{place}].function.parameters")


def _arguments_schema(tool: Tool) -> dict[str, Any]:
    """Always an object, and only of what is described: no model was told of other properties."""
    schema = tool.function.parameters
    if not schema:
        return _NO_ARGUMENTS
    schema = {"type": "object", **schema}
    if "properties" in schema:
        schema = {"additionalProperties": False, **schema}
    if not tool.function.strict:
        schema = {**schema, "x-guidance": _LENIENT_STYLE}
    return schema


def _choice_lark(choices: list[str], param: str) -> str:
    if not choices or not all(choices):
        raise InvalidRequestError("choice must be a list of non-empty strings.", param=param)
    if len(choices) > _MAX_CHOICES:
        raise InvalidRequestError(
            f"choice can have at most {_MAX_CHOICES} strings, got {len(choices)}.", param=param
        )
    return "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)


def _json_grammar(schema: Any, param: str) -> Grammar:
    _check_nesting(schema, param)
    if isinstance(schema, dict):
        schema = _styled(schema)
    text = json.dumps(schema, ensure_ascii=False)
    return _checked(Grammar("json_schema", text), param)


def _styled(schema: dict[str, Any]) -> dict[str, Any]:
    """The client's own compiler options are dropped: they could make a grammar ambiguous."""
    lenient = schema.get("x-guidance") is _LENIENT_STYLE
    return {**schema, "x-guidance": _LENIENT_STYLE if lenient else _STYLE}


def _parsed(schema: str | dict[str, Any] | bool, param: str) -> Any:
    if not isinstance(schema, str):
        return schema
    _check_size(schema, param)
    try:
        return json.loads(schema)
    except (ValueError, RecursionError):
        raise InvalidRequestError("json must be a JSON schema.", param=param) from None


def _checked(grammar: Grammar, param: str) -> Grammar:
    _check_size(grammar.text, param)
    if "\0" in grammar.text:
        raise InvalidRequestError(f"{param} must not contain a NUL character.", param=param)
    problem = _problem(grammar)
    if problem:
        raise _refused(problem, param)
    return grammar


@lru_cache(maxsize=256)
def _problem(grammar: Grammar) -> str:
    """Empty: the grammar compiles."""
    try:
        match grammar.kind:
            case "json_schema":
                source = LLMatcher.grammar_from_json_schema(grammar.text)
            case "regex":
                source = LLMatcher.grammar_from_regex(grammar.text)
            case _:
                source = LLMatcher.grammar_from_lark(grammar.text)
        return LLMatcher.validate_grammar(source, limits=_LIMITS)
    except Exception as error:  # lone surrogates and the like; the library raises bare ones
        return str(error) or type(error).__name__


def _refused(problem: str, param: str) -> InvalidRequestError:
    if len(problem) > _MAX_QUOTED_CHARS:
        problem = problem[:_MAX_QUOTED_CHARS] + "…"
    return InvalidRequestError(f"{param} cannot be used as a constraint: {problem}", param=param)


def _check_size(text: str, param: str) -> None:
    if len(text) > _MAX_CHARS:
        raise InvalidRequestError(
            f"{param} is too large: {len(text)} characters, at most {_MAX_CHARS} are allowed.",
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
