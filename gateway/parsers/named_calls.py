"""Calls written as a name, something between, and the arguments as JSON.

`add[ARGS]{"a": 1}` (Mistral), `functions.add:0<|tool_call_argument_begin|>{…}` (Kimi),
`function<｜tool▁sep｜>add` and a fenced block (DeepSeek).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.parsers.call_reader import CallReader, GrammarTool, Progress, Quote, ReadCall, Tools
from gateway.parsers.events import Arguments, CallEnded, CallStarted, ParserEvent
from gateway.parsers.json_scanner import JsonScanner, State

_MAX_HEAD_CHARS = 400


@dataclass(frozen=True, slots=True)
class NamedSyntax:
    """`head` matches all that stands before the arguments' brace, and has a group `name`."""

    head: re.Pattern[str]
    before_name: str = ""  # as the model writes it
    after_name: str = ""
    after_arguments: str = ""

    def make_reader(self, tools: Tools) -> CallReader:
        return NamedCall(tools, self.head)

    def rules(self, tools: Sequence[GrammarTool], quote: Quote) -> list[str]:
        lines = ["call: " + " | ".join(f"call_{i}" for i in range(len(tools)))]
        for i, tool in enumerate(tools):
            head = quote(f"{self.before_name}{tool.name}{self.after_name}")
            tail = f" {quote(self.after_arguments)}" if self.after_arguments else ""
            lines.append(f"call_{i}: {head} arguments_{i}{tail}")
            lines.append(f"arguments_{i}: %json {json.dumps(tool.schema, ensure_ascii=False)}")
        return lines


class NamedCall(ReadCall):
    """See CallReader. What follows the arguments is not read."""

    def __init__(self, tools: Tools, head: re.Pattern[str]) -> None:
        super().__init__()
        self._tools = tools
        self._head = head
        self._scanner = JsonScanner()

    def push(self, char: str) -> list[ParserEvent]:
        if not self.is_call_open:
            return self._in_head(char)
        state = self._scanner.push(char)
        if state is State.BAD:
            self.progress, self.is_call_open, self.unread = Progress.FAILED, False, char
            return [CallEnded()]
        if state is State.DONE:
            self.progress, self.is_call_open = Progress.DONE, False
            return [Arguments(char), CallEnded()]
        return [Arguments(char)]

    def finish(self) -> list[ParserEvent]:
        return self._end()

    def _in_head(self, char: str) -> list[ParserEvent]:
        if char != "{":
            self.unread += char
            if len(self.unread) > _MAX_HEAD_CHARS:
                self.progress = Progress.FAILED
            return []
        match = self._head.fullmatch(self.unread)
        if match is None or match["name"] not in self._tools:
            self.unread += char
            self.progress = Progress.FAILED
            return []
        self.unread, self.is_call_open = "", True
        self._scanner.push(char)
        return [CallStarted(match["name"]), Arguments(char)]
