"""Calls written as JSON, read character by character: one object, a list of them, bare arguments.

A reader is made where a call may begin and says whether it was one. Until a call's name is known
nothing has been said, so that whatever is no call can still become text; from then on its arguments
go out as they come. Used by TextParser (gateway/parsers/text_parser.py).
"""

import json
from enum import Enum, auto
from typing import Any, Protocol

from gateway.parsers.events import Arguments, CallEnded, CallStarted, ParserEvent
from gateway.parsers.json_scanner import JsonScanner, State

Names = frozenset[str]
ARGUMENT_KEYS = ("arguments", "parameters")
_MAX_NAME_CHARS = 300


class Progress(Enum):
    OPEN = auto()
    DONE = auto()  # with the last character pushed
    FAILED = auto()


class CallReader(Protocol):
    """Invariant: after DONE or FAILED it takes no more. `unread` is the text since the last call
    began to be told or ended: after FAILED, and at the end of the text, it is no call."""

    @property
    def progress(self) -> Progress: ...

    @property
    def unread(self) -> str: ...

    @property
    def is_call_open(self) -> bool: ...

    def push(self, char: str) -> list[ParserEvent]: ...


class CallObject:
    """`{"name": "add", "arguments": {"a": 1}}`, keys in any order, others passed over. Arguments
    may also be JSON in a string, or missing."""

    def __init__(self, names: Names) -> None:
        self.progress = Progress.OPEN
        self.unread = ""
        self.is_call_open = False
        self._names = names
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

    def _watch_keys(self, before: State, char: str, events: list[ParserEvent]) -> None:
        state = self._scanner.state
        if before in (State.FIRST_KEY, State.KEY) and state is State.STRING:
            self._begin = len(self._text) - 1
        elif before is State.STRING and state is State.COLON:
            self._key = _loads(self._text[self._begin :])
        elif before is State.VALUE and state is not State.VALUE:
            self._has_value = True
            self._begin = len(self._text) - 1
            is_told = char == "{" and self._key in ARGUMENT_KEYS and self._arguments is None
            if is_told and self._name is not None:
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
        elif self._key == "name" and self._name is None:
            self._take_name(_loads(value), events)
        elif self._key in ARGUMENT_KEYS and self._arguments is None:
            self._take_arguments(value, events)

    def _take_name(self, name: Any, events: list[ParserEvent]) -> None:
        if not isinstance(name, str) or name not in self._names:
            self.progress = Progress.FAILED
            return
        self._name = name
        if self._arguments is not None:
            events += self._tell(self._arguments)

    def _take_arguments(self, value: str, events: list[ParserEvent]) -> None:
        arguments = _argument_text(value)
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

    def __init__(self, names: Names) -> None:
        self.progress = Progress.OPEN
        self._names = names
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
            self._call = CallObject(self._names)
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


class NamedCall:
    """`add{"a": 1}` with marks that may stand between name and arguments."""

    def __init__(self, names: Names, marks: tuple[str, ...]) -> None:
        self.progress = Progress.OPEN
        self.unread = ""
        self.is_call_open = False
        self._names = names
        self._marks = marks
        self._scanner = JsonScanner()

    def push(self, char: str) -> list[ParserEvent]:
        if not self.is_call_open:
            return self._in_name(char)
        state = self._scanner.push(char)
        if state is State.BAD:
            self.progress, self.is_call_open, self.unread = Progress.FAILED, False, char
            return [CallEnded()]
        if state is State.DONE:
            self.progress, self.is_call_open = Progress.DONE, False
            return [Arguments(char), CallEnded()]
        return [Arguments(char)]

    def _in_name(self, char: str) -> list[ParserEvent]:
        self.unread += char
        if char == "{":
            name = self.unread[:-1]
            for mark in self._marks:
                name = name.partition(mark)[0]
            if name.strip() not in self._names:
                self.progress = Progress.FAILED
                return []
            self.unread, self.is_call_open = "", True
            self._scanner.push(char)
            return [CallStarted(name.strip()), Arguments(char)]
        if len(self.unread) > _MAX_NAME_CHARS or char == "\n":
            self.progress = Progress.FAILED
        return []


def _argument_text(value: str) -> str | None:
    """The text of an object, whether written as one, as a string, or left out; None: no object."""
    parsed = _loads(value)
    if isinstance(parsed, str):
        value = parsed if parsed.strip() else "{}"
        parsed = _loads(value)
    if parsed is None:
        return "{}" if value == "null" else None
    return value if isinstance(parsed, dict) else None


def _loads(text: str) -> Any:
    """None for what is no JSON: lone surrogates pass, nesting beyond the interpreter's does not."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
