"""What tells a model's thoughts from its answer, for one request: made by planning, used by Choice.

Comes before stop strings, which count in answers only, and before the search for calls.
"""

from dataclasses import dataclass
from typing import Protocol

from gateway.parsers.call_reader import Tools
from gateway.parsers.events import ParserEvent
from gateway.parsers.harmony import HarmonyReader
from gateway.parsers.reasoning import ReasoningFormat, ReasoningReader, ReasoningStart


class AnswerReader(Protocol):
    """A TextReader of one choice."""

    @property
    def is_thinking(self) -> bool:
        """Whether the next character is thought."""
        ...

    @property
    def is_over(self) -> bool:
        """All further text is content as it is."""
        ...

    def feed(self, text: str) -> list[ParserEvent]: ...

    def finish(self) -> list[ParserEvent]: ...


@dataclass(frozen=True, slots=True)
class AnswerReading:
    format: ReasoningFormat
    start: ReasoningStart
    tools: Tools  # that may be called, where calls are part of the same structure
    is_hidden: bool = False  # the client does not want the thoughts

    def make_reader(self) -> AnswerReader:
        if self.format.has_channels:
            return HarmonyReader(self.tools, is_in_answer=self.start is ReasoningStart.ANSWERING)
        return ReasoningReader(self.format, self.start)
