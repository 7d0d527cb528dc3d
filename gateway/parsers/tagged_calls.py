"""Calls written with a tag around every argument, as GLM, Qwen3-Coder, Seed-OSS and MiniMax do.

Values stand between tags as they are, without quotes: the tool's schema tells their types. Text
goes out as it comes, other values when they are whole.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from gateway.parsers.call_reader import (
    CallReader,
    GrammarTool,
    Progress,
    Quote,
    ReadCall,
    Schema,
    Tools,
)
from gateway.parsers.events import Arguments, CallEnded, CallStarted, ParserEvent
from gateway.parsers.marks import num_held
from gateway.parsers.parameters import Parameter, parameters_of, takes_any_names
from gateway.parsers.values import is_text, json_of_text, property_of, text_choices

_MAX_NAME_CHARS = 300


@dataclass(frozen=True, slots=True)
class TaggedSyntax:
    """A call: its name, `name_end`, arguments, `call_end`. An argument: `key_begin`, its name,
    `key_end`, `value_begin`, the value, `value_end`."""

    name_end: str  # empty: the name ends with its line, or before a tag
    key_begin: str
    key_end: str
    value_end: str
    call_end: str
    value_begin: str = ""
    breaks: str = ""  # what the model writes behind the name and behind an argument
    value_breaks: str = ""  # and at both ends of a value, where they are not part of it
    text_key_end: str = ""  # instead of key_end before text, and before JSON, for models that say
    json_key_end: str = ""

    def make_reader(self, tools: Tools) -> CallReader:
        return TaggedCall(tools, self)

    @property
    def key_ends(self) -> tuple[str, ...]:
        """The longest first: one may end like another."""
        return tuple(end for end in (self.json_key_end, self.text_key_end, self.key_end) if end)

    def rules(self, tools: Sequence[GrammarTool], quote: Quote) -> list[str]:
        lines = ["call: " + " | ".join(f"call_{i}" for i in range(len(tools)))]
        for i, tool in enumerate(tools):
            head = quote(tool.name + self.name_end + self.breaks)
            parameters = parameters_of(tool.schema)
            inner = [
                f"argument_{i}_{j}{'' if parameter.is_required else '?'}"
                for j, parameter in enumerate(parameters)
            ]
            if takes_any_names(tool.schema):
                inner = [f"any_{i}*"]
                lines.append(f"any_{i}: {self._any_argument(quote)}")
            lines.append(f"call_{i}: {' '.join([head, *inner, quote(self.call_end)])}")
            for j, parameter in enumerate(parameters):
                lines += self._argument_rules(f"{i}_{j}", parameter, quote)
        return lines

    def _any_argument(self, quote: Quote) -> str:
        key_end = self.json_key_end or self.key_end
        behind_key = quote(key_end + self.value_begin + self.value_breaks)
        end = quote(self.value_breaks + self.value_end + self.breaks)
        return f"{quote(self.key_begin)} /[A-Za-z_][A-Za-z0-9_]*/ {behind_key} %json {{}} {end}"

    def _argument_rules(self, name: str, parameter: Parameter, quote: Quote) -> list[str]:
        writes_text = is_text(parameter.schema)
        key_end = (self.text_key_end if writes_text else self.json_key_end) or self.key_end
        head = self.key_begin + parameter.name + key_end + self.value_begin + self.value_breaks
        end = quote(self.value_breaks + self.value_end + self.breaks)
        if not writes_text:
            value = f"%json {json.dumps(parameter.schema, ensure_ascii=False)}"
            return [f"argument_{name}: {quote(head)} value_{name} {end}", f"value_{name}: {value}"]
        choices = text_choices(parameter.schema)
        if choices:
            quoted = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
            return [f"argument_{name}: {quote(head)} ({quoted}) {end}"]
        if not quote(self.value_end).startswith('"'):
            # A token of its own, which no text contains: it ends the value by itself.
            end = quote(self.value_end + self.breaks)
            return [f"argument_{name}: {quote(head)} /(?s:.*)/ {end}"]
        close = _pattern(self.value_breaks + self.value_end)
        behind = f" {quote(self.breaks)}" if self.breaks else ""
        return [
            f"argument_{name}: {quote(head)} text_{name}{behind}",
            f"text_{name}[lazy]: /(?s:.*){close}/",
        ]


def _pattern(text: str) -> str:
    """`text` inside a Lark regular expression."""
    return re.escape(text).replace("/", r"\/").replace("\\\n", r"\n")


class _At(Enum):
    NAME = auto()
    BETWEEN = auto()  # an argument, or the end of the call
    KEY = auto()
    BEHIND_KEY = auto()
    VALUE = auto()


class TaggedCall(ReadCall):
    """See CallReader. Begins with the name."""

    def __init__(self, tools: Tools, syntax: TaggedSyntax) -> None:
        super().__init__()
        self._tools = tools
        self._syntax = syntax
        self._at = _At.NAME
        self._part = ""  # of what is being read: a name, a tag, a value
        self._schema: Schema = {}  # of the call's arguments
        self._key = ""
        self._told: set[str] = set()
        self._value_schema: Any = None
        self._is_text = False  # the value goes out as it comes

    def push(self, char: str) -> list[ParserEvent]:
        self.unread += char
        self._part += char
        match self._at:
            case _At.NAME:
                return self._in_name(char)
            case _At.BETWEEN:
                return self._between()
            case _At.KEY:
                return self._in_key()
            case _At.BEHIND_KEY:
                return self._behind_key()
        return self._in_value()

    def finish(self) -> list[ParserEvent]:
        return self._end_whole() if self._at is _At.BETWEEN else self._end()

    def _in_name(self, char: str) -> list[ParserEvent]:
        name_end = self._syntax.name_end
        if name_end:
            is_over, name = self._part.endswith(name_end), self._part[: -len(name_end)].strip()
        else:
            is_over = char == "<" or (char == "\n" and bool(self._part.strip()))
            name = self._part[:-1].strip()
        if not is_over:
            return [] if len(self._part) <= _MAX_NAME_CHARS else self._fail()
        if name not in self._tools:
            return self._fail()
        self._schema, self._at, self.is_call_open = self._tools[name], _At.BETWEEN, True
        self._part = self.unread = char if char == "<" else ""
        return [CallStarted(name), Arguments("{")]

    def _between(self) -> list[ParserEvent]:
        tag = self._part.lstrip()
        if tag == self._syntax.key_begin:
            self._at, self._part = _At.KEY, ""
        elif tag == self._syntax.call_end:
            self.progress, self.is_call_open, self.unread = Progress.DONE, False, ""
            return [Arguments("}"), CallEnded()]
        elif not any(
            whole.startswith(tag) for whole in (self._syntax.key_begin, self._syntax.call_end)
        ):
            return self._fail()
        return []

    def _in_key(self) -> list[ParserEvent]:
        for end in self._syntax.key_ends:
            if self._part.endswith(end):
                return self._begin_value(self._part[: -len(end)].strip(), end)
        return [] if len(self._part) <= _MAX_NAME_CHARS else self._fail()

    def _begin_value(self, key: str, key_end: str) -> list[ParserEvent]:
        if not key or key in self._told:
            return self._fail()
        schema = property_of(self._schema, key)
        if key_end == self._syntax.text_key_end:
            schema = {"type": "string"}
        elif key_end == self._syntax.json_key_end and is_text(schema):
            schema = None
        self._key, self._value_schema, self._is_text = key, schema, is_text(schema)
        self._at = _At.BEHIND_KEY if self._syntax.value_begin else _At.VALUE
        self._part = ""
        return []

    def _behind_key(self) -> list[ParserEvent]:
        tag, value_begin = self._part.lstrip(), self._syntax.value_begin.lstrip()
        if tag == value_begin:
            self._at, self._part = _At.VALUE, ""
        elif not value_begin.startswith(tag):
            return self._fail()
        return []

    def _in_value(self) -> list[ParserEvent]:
        syntax = self._syntax
        if self._part == syntax.value_breaks and self._key not in self._told:
            return []  # may be the break in front of the value
        if self._part.endswith(syntax.value_end):
            return self._end_value(self._part[: -len(syntax.value_end)])
        if not self._is_text:
            return []
        value = self._without_break()
        held = num_held(value, (syntax.value_breaks + syntax.value_end, syntax.value_end))
        shown = value[: len(value) - held]
        if not shown:
            return []
        self._part = value[len(shown) :]
        begin = "" if self._key in self._told else self._begin_argument() + '"'
        self.unread = self._part
        return [Arguments(begin + json.dumps(shown, ensure_ascii=False)[1:-1])]

    def _without_break(self) -> str:
        """What of the value has come and is not told."""
        if self._key in self._told:
            return self._part
        return self._part.removeprefix(self._syntax.value_breaks)

    def _begin_argument(self) -> str:
        comma = ", " if self._told else ""
        self._told.add(self._key)
        return f"{comma}{json.dumps(self._key, ensure_ascii=False)}: "

    def _end_value(self, value: str) -> list[ParserEvent]:
        is_begun = self._key in self._told
        if not is_begun:
            value = value.removeprefix(self._syntax.value_breaks)
        value = value.removesuffix(self._syntax.value_breaks)
        if is_begun:
            written = json.dumps(value, ensure_ascii=False)[1:]
        else:
            written = self._begin_argument() + json_of_text(value, self._value_schema)
        self._at, self._part, self.unread = _At.BETWEEN, "", ""
        return [Arguments(written)]
