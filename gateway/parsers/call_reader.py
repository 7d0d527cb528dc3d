"""A syntax of calls: what reads them, character by character, and what writes their grammar.

A reader is made where a call may begin and says whether it was one. Until a call's name is known
nothing has been said, so that whatever is no call can still become text; from then on its arguments
go out as they come. Readers are driven by TextParser, rules go into gateway/grammar.py's grammars.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol

from gateway.parsers.events import Arguments, CallEnded, ParserEvent

Schema = Mapping[str, Any]
Tools = Mapping[str, Schema]  # the schema of the arguments by the function's name
# Text as a Lark expression: marks that are tokens of the model by their ids.
Quote = Callable[[str], str]


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

    def finish(self) -> list[ParserEvent]:
        """The text is over: the end of the open call, if there is one."""
        ...


class ReadCall:
    """Base of the CallReaders whose calls stand alone: what they tell, and how a call ends."""

    def __init__(self) -> None:
        self.progress = Progress.OPEN
        self.unread = ""
        self.is_call_open = False

    def _fail(self) -> list[ParserEvent]:
        """An open call ends with what was told of it."""
        self.progress = Progress.FAILED
        return self._end()

    def _end(self) -> list[ParserEvent]:
        was_open, self.is_call_open = self.is_call_open, False
        return [CallEnded()] if was_open else []

    def _end_whole(self) -> list[ParserEvent]:
        """Only what closes the call is missing: it is whole all the same."""
        if not self.is_call_open:
            return []
        self.unread = ""
        return [Arguments("}"), *self._end()]


@dataclass(frozen=True, slots=True)
class GrammarTool:
    """A function that a grammar lets the model call."""

    name: str
    schema: Schema  # of the arguments: an object, with llguidance's options in it


class CallSyntax(Protocol):
    """How the inside of a call is written, between whatever announces and closes it."""

    def make_reader(self, tools: Tools) -> CallReader: ...

    def rules(self, tools: Sequence[GrammarTool], quote: Quote) -> list[str]:
        """Lark rules, of which `call` is any one call."""
        ...
