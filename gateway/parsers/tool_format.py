"""How one family of models writes its calls, as data: marks around them, syntax inside.

A format is read by TextParser and written, as a grammar, by `rules`. The formats themselves are in
gateway/parsers/formats.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gateway.parsers.call_reader import CallSyntax, GrammarTool, Quote


@dataclass(frozen=True, slots=True)
class ToolFormat:
    name: str
    syntax: CallSyntax
    marks: tuple[str, ...] = ()  # what announces a call
    end_marks: tuple[str, ...] = ()  # what closes it, and is told to nobody
    inner_marks: tuple[str, ...] = ()  # inside of a call
    bare_begins: str = ""  # calls may also be the whole text, which then begins with one of these
    opening: str = ""  # as the model writes it: before the first call,
    between: str = ""  # between two, with the marks of both,
    closing: str = ""  # and behind the last
    before_answer: str = ""  # what an answer without calls begins with
    max_calls: int | None = None
    call_ids: Literal["openai", "mistral"] = "openai"
    has_channels: bool = False  # calls, thoughts and answers share one structure: Harmony

    @property
    def all_marks(self) -> tuple[str, ...]:
        """What may be tokens of their own, or contain some, which must not be hidden then."""
        written = (self.opening, self.between, self.closing)
        marks = (*self.marks, *self.end_marks, *self.inner_marks, *written)
        return tuple(mark for mark in marks if mark)

    def rules(self, tools: Sequence[GrammarTool], max_calls: int, quote: Quote) -> str:
        """Lark rules, of which `calls` is one to `max_calls` calls of these tools."""
        limit = max_calls if self.max_calls is None else min(max_calls, self.max_calls)
        parts = [quote(self.opening)] if self.opening else []
        parts.append("call")
        if limit > 1:
            parts.append(f"({quote(self.between)} call){{0,{limit - 1}}}")
        if self.closing:
            parts.append(quote(self.closing))
        return "\n".join([f"calls: {' '.join(parts)}", *self.syntax.rules(tools, quote)])
