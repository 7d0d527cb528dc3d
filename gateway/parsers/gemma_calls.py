"""Calls as Gemma writes them: `call:add{a:1,words:[<|"|>x<|"|>]}`.

How their arguments are read is in gateway/parsers/gemma_object.py.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gateway.parsers.call_reader import (
    CallReader,
    GrammarTool,
    Progress,
    Quote,
    ReadCall,
    Tools,
)
from gateway.parsers.events import Arguments, CallEnded, CallStarted, ParserEvent
from gateway.parsers.gemma_object import At, GemmaObject
from gateway.parsers.parameters import argument_chain, parameters_of, takes_any_names
from gateway.parsers.values import is_text, text_choices

_HEAD = re.compile(r"\s*call:\s*(?P<name>[^\s{]+)\s*")
_MAX_HEAD_CHARS = 400


@dataclass(frozen=True, slots=True)
class GemmaSyntax:
    text_mark: str  # on both sides of a text

    def make_reader(self, tools: Tools) -> CallReader:
        return GemmaCall(tools, self.text_mark)

    def rules(self, tools: Sequence[GrammarTool], quote: Quote) -> list[str]:
        lines = ["call: " + " | ".join(f"call_{i}" for i in range(len(tools)))]
        for i, tool in enumerate(tools):
            head = quote(f"call:{tool.name}{{")
            if takes_any_names(tool.schema):
                lines.append(f'call_{i}: {head} (any_{i} ("," any_{i})*)? "}}"')
                lines.append(f"any_{i}: /[A-Za-z_][A-Za-z0-9_]*:/ %json {{}}")
                continue
            parameters = parameters_of(tool.schema)
            lines.append(f'call_{i}: {head} first_{i}_0 "}}"')
            for j, parameter in enumerate(parameters):
                lines += self._value_rules(f"{i}_{j}", parameter.schema, quote)
            arguments = [
                (f"{json.dumps(one.name + ':', ensure_ascii=False)} value_{i}_{j}", one.is_required)
                for j, one in enumerate(parameters)
            ]
            lines += argument_chain(f"{i}", arguments, ",")
        return lines

    def _value_rules(self, name: str, schema: dict[str, Any], quote: Quote) -> list[str]:
        """JSON, with its own strings, for what is not simply text."""
        if not is_text(schema):
            return [f"value_{name}: %json {json.dumps(schema, ensure_ascii=False)}"]
        mark, choices = quote(self.text_mark), text_choices(schema)
        if choices:
            quoted = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
            return [f"value_{name}: {mark} ({quoted}) {mark}"]
        if not mark.startswith('"'):  # a token of its own, which no text contains
            return [f"value_{name}: {mark} /(?s:.*)/ {mark}"]
        end = re.escape(self.text_mark).replace("/", r"\/")
        return [f"value_{name}: {mark} text_{name}", f"text_{name}[lazy]: /(?s:.*){end}/"]


class GemmaCall(ReadCall):
    """See CallReader. Begins with `call:`."""

    def __init__(self, tools: Tools, text_mark: str) -> None:
        super().__init__()
        self._tools = tools
        self._text_mark = text_mark
        self._object = GemmaObject(text_mark, {})

    def push(self, char: str) -> list[ParserEvent]:
        self.unread += char
        if not self.is_call_open:
            return self._in_head(char)
        written = self._object.push(char)
        if self._object.at is At.BAD:
            return self._fail()
        if written:
            self.unread = ""
        if self._object.at is At.DONE:
            self.progress, self.is_call_open, self.unread = Progress.DONE, False, ""
            return [Arguments(written), CallEnded()]
        return [Arguments(written)] if written else []

    def finish(self) -> list[ParserEvent]:
        return self._end_whole() if self._object.lacks_only_its_end else self._end()

    def _in_head(self, char: str) -> list[ParserEvent]:
        if char != "{":
            return [] if len(self.unread) <= _MAX_HEAD_CHARS else self._fail()
        match = _HEAD.fullmatch(self.unread[:-1])
        if match is None or match["name"] not in self._tools:
            return self._fail()
        self._object = GemmaObject(self._text_mark, self._tools[match["name"]])
        self.unread, self.is_call_open = "", True
        return [CallStarted(match["name"]), Arguments(self._object.push(char))]
