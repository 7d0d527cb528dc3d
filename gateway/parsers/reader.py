"""One choice's calls: a parser's events as what the client is told, with indices and ids.

Made by Generation, one a choice, from the plan's ToolReading.
"""

import secrets
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.parsers.call_reader import Tools
from gateway.parsers.events import (
    Arguments,
    CallStarted,
    Content,
    ParserEvent,
    TextReader,
    ToolDelta,
)
from gateway.parsers.text_parser import TextParser
from gateway.parsers.tool_format import ToolFormat

_LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class ToolReading:
    """How a request's answers are searched for calls."""

    tool_format: ToolFormat
    tools: Tools
    forced: str | None = None  # the client named this function
    takes_many: bool = True

    def make_reader(self) -> "ToolReader":
        parser = None
        if not self.tool_format.has_channels:
            parser = TextParser(self.tool_format, self.tools)
        make_id = _mistral_id if self.tool_format.call_ids == "mistral" else _openai_id
        return ToolReader(parser, self.takes_many, make_id)


class ToolReader:
    """Invariant: only a call's first delta has id and name. Owned by the event loop."""

    def __init__(
        self, parser: TextReader | None, takes_many: bool, make_id: Callable[[], str]
    ) -> None:
        """Without a parser all calls come from whoever found them before."""
        self.num_calls = 0
        self._parser = parser
        self._takes_many = takes_many
        self._make_id = make_id

    def feed(
        self, text: str, *, is_last: bool, found: Sequence[ParserEvent] = ()
    ) -> tuple[str, list[ToolDelta]]:
        """The text that is content, and what is new of calls. `found`: of calls, told before."""
        deltas: list[ToolDelta] = []
        for event in found:
            self._take(event, deltas)
        if self._parser is None:
            return text, deltas
        events = self._parser.feed(text)
        if is_last:
            events += self._parser.finish()
        content: list[str] = []
        for event in events:
            if isinstance(event, Content):
                content.append(event.text)
            else:
                self._take(event, deltas)
        return "".join(content), deltas

    def _take(self, event: ParserEvent, deltas: list[ToolDelta]) -> None:
        if isinstance(event, CallStarted):
            self.num_calls += 1
            if self._is_wanted:
                delta = ToolDelta(self.num_calls - 1, id=self._make_id(), name=event.name)
                deltas.append(delta)
        elif isinstance(event, Arguments) and event.text and self._is_wanted:
            deltas.append(ToolDelta(self.num_calls - 1, arguments=event.text))

    @property
    def _is_wanted(self) -> bool:
        return self._takes_many or self.num_calls == 1


def _openai_id() -> str:
    return "call_" + secrets.token_hex(12)


def _mistral_id() -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(9))
