"""Mistral's two ways: a JSON list of calls, or in newer models a name and its arguments.

`[TOOL_CALLS][{…}, {…}]` and `[TOOL_CALLS]add[ARGS]{…}[TOOL_CALLS]…`; any model's answer is read
either way, by its first character. Its templates take call ids of nine letters and digits only.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.parsers.call_reader import CallReader, GrammarTool, Progress, Quote, Tools
from gateway.parsers.events import ParserEvent
from gateway.parsers.json_calls import JsonSyntax
from gateway.parsers.named_calls import NamedSyntax

_HEAD = re.compile(r"\s*(?P<name>[^\[\]{}\s]+)\s*(?:\[CALL_ID\][^\[\]]*)?(?:\[ARGS\])?\s*")
_LISTED = JsonSyntax()
_NAMED = NamedSyntax(_HEAD, after_name="[ARGS]")


@dataclass(frozen=True, slots=True)
class MistralSyntax:
    writes_names: bool  # the newer way

    def make_reader(self, tools: Tools) -> CallReader:
        return MistralCalls(tools)

    def rules(self, tools: Sequence[GrammarTool], quote: Quote) -> list[str]:
        return (_NAMED if self.writes_names else _LISTED).rules(tools, quote)


class MistralCalls:
    """See CallReader."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._space = ""
        self._reader: CallReader | None = None

    @property
    def progress(self) -> Progress:
        return Progress.OPEN if self._reader is None else self._reader.progress

    @property
    def unread(self) -> str:
        return self._space if self._reader is None else self._reader.unread

    @property
    def is_call_open(self) -> bool:
        return self._reader is not None and self._reader.is_call_open

    def push(self, char: str) -> list[ParserEvent]:
        if self._reader is None:
            if char.isspace():
                self._space += char
                return []
            syntax = _LISTED if char in "[{" else _NAMED
            self._reader = syntax.make_reader(self._tools)
            for skipped in self._space:
                self._reader.push(skipped)
        return self._reader.push(char)

    def finish(self) -> list[ParserEvent]:
        return [] if self._reader is None else self._reader.finish()
