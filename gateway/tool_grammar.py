"""Forced and strict tool calls as a grammar, in the model's own way of writing them.

Pure functions, called by gateway/grammar.py. How each format is written is in gateway/parsers.
"""

import json
from dataclasses import replace
from typing import Any

from llguidance import regex_to_lark

from gateway.grammar_text import LENIENT_STYLE, checked, json_grammar, options_line
from gateway.parsers.call_reader import GrammarTool, Quote
from gateway.parsers.tool_format import ToolFormat
from gateway.schemas.chat import ChatRequest, NamedTool, Tool
from gateway.text.mark_tokens import MarkTokens, quote_plain
from gateway.tokens import Grammar
from protos.grammar_source import UNFORCED

_MAX_CALLS = 16
_CALLS = "start: calls\n"
_NO_ARGUMENTS: dict[str, Any] = {
    "type": "object",
    "properties": {},
    "additionalProperties": False,
}


def tools_grammar(
    body: ChatRequest, answer: Grammar | None, tool_format: ToolFormat, marks: MarkTokens
) -> Grammar | None:
    """What an answer that may call tools is held to. `answer`: the format that was asked for, where
    the model may answer as well. None: it is free.

    Raises: InvalidRequestError.
    """
    is_free = not body.forces_call and answer is None
    mark_id = marks.first_id(tool_format.opening)
    if is_free and (mark_id is None or not _is_any_strict(body)):
        return None
    parts, callables = _callables(body)
    is_one = body.parallel_tool_calls is False or isinstance(body.tool_choice, NamedTool)
    limit = 1 if is_one else _MAX_CALLS

    def written(start: str, quote: Quote) -> str:
        return options_line(answer) + start + tool_format.rules(callables, limit, quote)

    if is_free:
        text, trial = written(_free_start(mark_id), marks.quote), written(_CALLS, quote_plain)
    else:
        text, trial = (
            written(_start(answer, quote(tool_format.before_answer)), quote)
            for quote in (marks.quote, quote_plain)
        )
    grammar = Grammar("lark", text, "tools", trial=None if text == trial else trial)
    return replace(checked(grammar), parts=(*parts, *(() if answer is None else (answer,))))


def _is_any_strict(body: ChatRequest) -> bool:
    return any(tool.function.strict for tool in body.tools or [])


def _callables(body: ChatRequest) -> tuple[list[Grammar], list[GrammarTool]]:
    """The functions that may be called, and their arguments' grammars."""
    tools = body.tools or []
    places = _callable_places(body)
    parts = [arguments_grammar(tools[place], place) for place in places]
    names = [tools[place].function.name for place in places]
    schemas = [json.loads(part.text) for part in parts]
    return parts, [GrammarTool(*both) for both in zip(names, schemas, strict=True)]


def _callable_places(body: ChatRequest) -> list[int]:
    """Of the tools that this answer may call: all, or the one that is named."""
    tools = body.tools or []
    if isinstance(body.tool_choice, NamedTool):
        return [[tool.function.name for tool in tools].index(body.tool_choice.function.name)]
    return list(range(len(tools)))


def _start(answer: Grammar | None, lead: str) -> str:
    if answer is None:
        return _CALLS
    return f"start: calls | {lead} answer\n{answer_rule(answer)}\n"


def _free_start(mark_id: int | None) -> str:
    """Any text, in which calls, once the model begins them, are calls."""
    return f"start: text (calls text)?\ntext: (<[^{mark_id}]>)*\n"


def answer_rule(answer: Grammar) -> str:
    """The rule `answer` for a whole grammar."""
    match answer.kind:
        case "json_schema":
            return f"answer: %json {answer.text}"
        case "regex":
            return f"answer: /{regex_to_lark(answer.text)}/"
    return f"answer: %lark {{\n{answer.text.removeprefix(UNFORCED)}\n}}"


def arguments_grammar(tool: Tool, place: int) -> Grammar:
    return json_grammar(arguments_schema(tool), f"tools[{place}].function.parameters")


def arguments_schema(tool: Tool) -> dict[str, Any]:
    """Always an object, and only of what is described: no model was told of other properties."""
    schema = tool.function.parameters
    if not schema:
        return _NO_ARGUMENTS
    schema = {"type": "object", **schema}
    if "properties" in schema:
        schema = {"additionalProperties": False, **schema}
    if not tool.function.strict:
        schema = {**schema, "x-guidance": LENIENT_STYLE}
    return schema
