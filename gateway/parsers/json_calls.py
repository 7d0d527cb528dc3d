"""Calls written as JSON objects, one by one or in a list, whatever the keys are called."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gateway.parsers.call_reader import CallReader, GrammarTool, Progress, Quote, Tools
from gateway.parsers.events import Arguments, CallEnded, CallStarted, ParserEvent
from gateway.parsers.json_scanner import JsonScanner, State

_ARGUMENT_KEYS = ("arguments", "parameters")


@dataclass(frozen=True, slots=True)
class JsonSyntax:
    """`{"name": …, "arguments": {…}}`. Reads both usual keys, writes the model's own."""

    name_key: str = "name"
    arguments_key: str = "arguments"
    other_fields: str = ""  # JSON text that the model writes in front

    def make_reader(self, tools: Tools) -> CallReader:
        return CallList(tools, self.name_key)

    def rules(self, tools: Sequence[GrammarTool], quote: Quote) -> list[str]:
        lines = ["call: " + " | ".join(f"call_{i}" for i in range(len(tools)))]
        for i, tool in enumerate(tools):
            name = json.dumps(tool.name, ensure_ascii=False)
            head = f'{{{self.other_fields}"{self.name_key}": {name}, "{self.arguments_key}": '
            lines.append(f'call_{i}: {quote(head)} arguments_{i} "}}"')
            lines.append(f"arguments_{i}: %json {json.dumps(tool.schema, ensure_ascii=False)}")
        return lines


class CallObject:
    """`{"name": "add", "arguments": {"a": 1}}`, keys in any order, others passed over. Arguments
    may also be JSON in a string, or missing."""

    def __init__(self, tools: Tools, name_key: str) -> None:
        self.progress = Progress.OPEN
        self.unread = ""
        self.is_call_open = False
        self._tools = tools
        self._name_key = name_key
        self._scanner = JsonScanner()
        self._text = ""
        self._begin = 0  # of the open key or value in _text
        self._key: str | None = None
        self._has_value = False  # a value of the outer object is open
        self._streams = False  # and it goes out as it comes
        self._name: str | None = None
        self._arguments: str | None = None

    def push(self, char: str) -> list[ParserEvent]:
        before, depth = self._scanner.state, self._scanner.depth
        state = self._scanner.push(char)
        self._text += char
        if state is State.BAD:
            return self._fail()
        events: list[ParserEvent] = []
        if self._has_value:
            if self._streams:
                events.append(Arguments(char))
            self._watch_value_end(events)
        elif depth == 1:
            self._watch_keys(before, char, events)
        if self.progress is Progress.FAILED:
            return self._fail()
        if state is State.DONE:
            events += self._end()
        self.unread = "" if self.is_call_open else self._text
        return events

    def finish(self) -> list[ParserEvent]:
        was_open, self.is_call_open = self.is_call_open, False
        return [CallEnded()] if was_open else []

    def _watch_keys(self, before: State, char: str, events: list[ParserEvent]) -> None:
        state = self._scanner.state
        if before in (State.FIRST_KEY, State.KEY) and state is State.STRING:
            self._begin = len(self._text) - 1
        elif before is State.STRING and state is State.COLON:
            self._key = loads(self._text[self._begin :])
        elif before is State.VALUE and state is not State.VALUE:
            self._has_value = True
            self._begin = len(self._text) - 1
            is_first = self._key in _ARGUMENT_KEYS and self._arguments is None
            if char == "{" and is_first and self._name is not None:
                self._streams = True
                self._arguments = ""
                events += self._tell("{")

    def _watch_value_end(self, events: list[ParserEvent]) -> None:
        is_over = self._scanner.depth == 0 or (
            self._scanner.depth == 1 and self._scanner.state in (State.COMMA, State.KEY)
        )
        if not is_over:
            return
        is_scalar = self._text[self._begin] not in '{["'
        end = len(self._text) - 1 if is_scalar else len(self._text)  # ended by what is behind it
        value = self._text[self._begin : end]
        self._has_value = False
        if self._streams:
            self._streams = False
        elif self._key == self._name_key and self._name is None:
            self._take_name(loads(value), events)
        elif self._key in _ARGUMENT_KEYS and self._arguments is None:
            self._take_arguments(value, events)

    def _take_name(self, name: Any, events: list[ParserEvent]) -> None:
        if not isinstance(name, str) or name not in self._tools:
            self.progress = Progress.FAILED
            return
        self._name = name
        if self._arguments is not None:
            events += self._tell(self._arguments)

    def _take_arguments(self, value: str, events: list[ParserEvent]) -> None:
        arguments = argument_text(value)
        if arguments is None:
            self.progress = Progress.FAILED
            return
        self._arguments = arguments
        if self._name is not None:
            events += self._tell(arguments)

    def _tell(self, arguments: str) -> list[ParserEvent]:
        assert self._name is not None
        self.is_call_open = True
        return [CallStarted(self._name), Arguments(arguments)]

    def _end(self) -> list[ParserEvent]:
        events: list[ParserEvent] = []
        if not self.is_call_open:
            if self._name is None:
                return self._fail()
            events += self._tell("{}")
        self.progress = Progress.DONE
        self.is_call_open = False
        self._text = ""
        return [*events, CallEnded()]

    def _fail(self) -> list[ParserEvent]:
        self.progress = Progress.FAILED
        if not self.is_call_open:
            self.unread = self._text
            return []
        self.is_call_open = False
        self.unread = self._text[-1]
        return [CallEnded()]


class CallList:
    """One call object, or a JSON list of them."""

    def __init__(self, tools: Tools, name_key: str) -> None:
        self.progress = Progress.OPEN
        self._tools = tools
        self._name_key = name_key
        self._is_list = False
        self._between = ""  # what was read before the open call, or after the last one
        self._call: CallObject | None = None

    @property
    def unread(self) -> str:
        return self._between + (self._call.unread if self._call is not None else "")

    @property
    def is_call_open(self) -> bool:
        return self._call is not None and self._call.is_call_open

    def push(self, char: str) -> list[ParserEvent]:
        if self._call is None and char == "{":
            self._call = CallObject(self._tools, self._name_key)
        if self._call is not None:
            return self._in_call(self._call, char)
        self._between += char
        if char == "[" and not self._is_list:
            self._is_list = True
        elif char == "]" and self._is_list:
            self.progress = Progress.DONE
        elif not (char.isspace() or (char == "," and self._is_list)):
            self.progress = Progress.FAILED
        return []

    def finish(self) -> list[ParserEvent]:
        return [] if self._call is None else self._call.finish()

    def _in_call(self, call: CallObject, char: str) -> list[ParserEvent]:
        events = call.push(char)
        if events:  # what was read is told
            self._between = ""
        if call.progress is Progress.FAILED:
            self.progress = Progress.FAILED
        elif call.progress is Progress.DONE:
            self._call = None
            self.progress = Progress.OPEN if self._is_list else Progress.DONE
        return events


def argument_text(value: str) -> str | None:
    """The text of an object, whether written as one, as a string, or left out; None: no object."""
    parsed = loads(value)
    if isinstance(parsed, str):
        value = parsed if parsed.strip() else "{}"
        parsed = loads(value)
    if parsed is None:
        return "{}" if value == "null" else None
    return value if isinstance(parsed, dict) else None


def loads(text: str) -> Any:
    """None for what is no JSON: lone surrogates pass, nesting beyond the interpreter's does not."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
