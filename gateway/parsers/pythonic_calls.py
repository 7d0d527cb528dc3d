"""Calls written as Python: `[add(a=1, b=2), get_weather(city='Oslo')]`.

Arguments become JSON as they come; those that the tool's schema wants to be of another type are
held until they are whole (gateway/parsers/values.py).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

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
from gateway.parsers.literal import LiteralReader, Place
from gateway.parsers.parameters import (
    Parameter,
    argument_chain,
    parameters_of,
    takes_any_names,
)
from gateway.parsers.values import is_text, property_of, retyped, takes_text

_MAX_NAME_CHARS = 300


@dataclass(frozen=True, slots=True)
class PythonicSyntax:
    opening: str = "["  # empty: the mark is all
    closing: str = "]"
    separator: str = ","  # empty: calls stand on lines of their own

    def make_reader(self, tools: Tools) -> CallReader:
        return PythonicCalls(tools, self)

    def rules(self, tools: Sequence[GrammarTool], quote: Quote) -> list[str]:
        lines = ["call: " + " | ".join(f"call_{i}" for i in range(len(tools)))]
        for i, tool in enumerate(tools):
            head = json.dumps(f"{tool.name}(", ensure_ascii=False)
            lines.append(f'call_{i}: {head} first_{i}_0 ")"')
            if takes_any_names(tool.schema):
                lines.append(f'first_{i}_0: (any_{i} (", " any_{i})*)?')
                lines.append(f"any_{i}: /[A-Za-z_][A-Za-z0-9_]*=/ %json {{}}")
            else:
                lines += _argument_rules(f"{i}", parameters_of(tool.schema))
        return lines


def _argument_rules(name: str, parameters: Sequence[Parameter]) -> list[str]:
    values = [
        f"value_{name}_{i}: %json {json.dumps(parameter.schema, ensure_ascii=False)}"
        for i, parameter in enumerate(parameters)
    ]
    arguments = [
        (f"{json.dumps(one.name + '=', ensure_ascii=False)} value_{name}_{i}", one.is_required)
        for i, one in enumerate(parameters)
    ]
    return values + argument_chain(name, arguments, ", ")


class _At(Enum):
    OPENING = auto()
    NAME = auto()
    ARGUMENT = auto()  # its name, or the end of the call
    VALUE = auto()
    BEHIND_VALUE = auto()
    BEHIND_CALL = auto()


class PythonicCalls(ReadCall):
    """See CallReader."""

    def __init__(self, tools: Tools, syntax: PythonicSyntax) -> None:
        super().__init__()
        self._tools = tools
        self._syntax = syntax
        self._at = _At.OPENING if syntax.opening else _At.NAME
        self._word = ""  # the name that is being read
        self._schema: Schema = {}  # of the open call
        self._parameter = ""
        self._told: set[str] = set()  # the open call's arguments so far
        self._value = LiteralReader()
        self._begins: bool = True  # nothing of the value has come
        self._held: str | None = None  # the value so far, where it cannot go out as it comes

    def push(self, char: str) -> list[ParserEvent]:
        self.unread += char
        match self._at:
            case _At.OPENING:
                return self._in_opening(char)
            case _At.NAME:
                return self._in_name(char)
            case _At.ARGUMENT:
                return self._in_argument(char)
            case _At.VALUE:
                return self._in_value(char)
            case _At.BEHIND_VALUE:
                return self._behind_value(char)
        return self._behind_call(char)

    def finish(self) -> list[ParserEvent]:
        is_behind_name = self._at is _At.ARGUMENT and not self._word
        is_whole = self._at is _At.BEHIND_VALUE or is_behind_name
        return self._end_whole() if is_whole else self._end()

    def _in_opening(self, char: str) -> list[ParserEvent]:
        if char == self._syntax.opening:
            self._at = _At.NAME
            return []
        return [] if char.isspace() else self._fail()

    def _in_name(self, char: str) -> list[ParserEvent]:
        word = (self._word + char).strip()
        if char != "(":
            self._word += char
            is_name = not word or word.replace(".", "_").replace("-", "_").isidentifier()
            return [] if is_name and len(self._word) <= _MAX_NAME_CHARS else self._fail()
        name = word[:-1].rstrip()
        if name not in self._tools:
            return self._fail()
        self._schema, self._told, self._word = self._tools[name], set(), ""
        self._at, self.is_call_open, self.unread = _At.ARGUMENT, True, ""
        return [CallStarted(name), Arguments("{")]

    def _in_argument(self, char: str) -> list[ParserEvent]:
        word = self._word.strip()
        if char == ")" and not word:
            return self._end_call()
        if char != "=":
            self._word += char
            is_name = not self._word.strip() or self._word.strip().isidentifier()
            return [] if is_name and len(self._word) <= _MAX_NAME_CHARS else self._fail()
        if not word or word in self._told:
            return self._fail()
        self._parameter, self._word, self._at = word, "", _At.VALUE
        self._value, self._begins, self._held = LiteralReader(), True, None
        return []

    def _in_value(self, char: str) -> list[ParserEvent]:
        if self._begins and not char.isspace():
            self._begins = False
            schema = property_of(self._schema, self._parameter)
            is_fitting = takes_text(schema) if char in "\"'" else not is_text(schema)
            self._held = None if is_fitting else ""
        written = self._value.push(char)
        if self._value.place is Place.BAD:
            return self._fail()
        events = self._tell(written)
        if self._value.place is Place.DONE:
            events += self._end_value()
            if not self._value.took_last:
                self.unread = char
                events += self._behind_value(char)
        return events

    def _tell(self, written: str) -> list[ParserEvent]:
        if self._held is not None:
            self._held += written
            return []
        return [self._argument(written)] if written else []

    def _argument(self, written: str) -> ParserEvent:
        self.unread = ""
        if self._parameter in self._told:
            return Arguments(written)
        comma = ", " if self._told else ""
        self._told.add(self._parameter)
        return Arguments(f"{comma}{json.dumps(self._parameter, ensure_ascii=False)}: {written}")

    def _end_value(self) -> list[ParserEvent]:
        self._at = _At.BEHIND_VALUE
        if self._held is None:
            return []
        return [self._argument(retyped(self._held, property_of(self._schema, self._parameter)))]

    def _behind_value(self, char: str) -> list[ParserEvent]:
        if char == ")":
            return self._end_call()
        if char == ",":
            self._at = _At.ARGUMENT
            return []
        return [] if char.isspace() else self._fail()

    def _end_call(self) -> list[ParserEvent]:
        self.is_call_open, self.unread, self._at = False, "", _At.BEHIND_CALL
        return [Arguments("}"), CallEnded()]

    def _behind_call(self, char: str) -> list[ParserEvent]:
        behind = self.unread.strip()
        if behind == self._syntax.closing:
            self.progress, self.unread = Progress.DONE, ""
            return []
        if self._syntax.closing.startswith(behind):
            return []
        if self._syntax.separator and behind == self._syntax.separator:
            self._at = _At.NAME
            return []
        if self._syntax.separator or not behind.isidentifier():
            return self._fail()
        self._at, self._word = _At.NAME, behind
        return []
