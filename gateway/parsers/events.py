"""What parsers find in a model's text, and how an answer tells it to the client.

Parsers give ParserEvents; ToolReader (gateway/parsers/reader.py) numbers and names the calls.
"""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Content:
    """Text that is no call and no thought."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStarted:
    name: str  # whole


@dataclass(frozen=True, slots=True)
class Arguments:
    """The next characters of the open call's arguments."""

    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    pass


ParserEvent = Content | Reasoning | CallStarted | Arguments | CallEnded


class TextReader(Protocol):
    """One choice's parser. Invariants: calls do not nest; the events of all `feed` calls and of one
    `finish`, neighbours of a kind joined, do not depend on how the text was cut; nothing raises.
    Owned by the event loop.
    """

    def feed(self, text: str) -> list[ParserEvent]: ...

    def finish(self) -> list[ParserEvent]:
        """The text is over: what was held back."""
        ...


@dataclass(frozen=True, slots=True)
class ToolDelta:
    """News of one call. The first of a call has its id and name and no arguments."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass(slots=True)
class FoundCall:
    """A call's deltas, joined."""

    id: str
    name: str
    arguments: str = ""


def join_calls(calls: list[FoundCall], deltas: list[ToolDelta]) -> None:
    """Folds deltas into `calls`, in place."""
    for delta in deltas:
        if delta.id is not None and delta.name is not None:
            calls.append(FoundCall(delta.id, delta.name))
        calls[delta.index].arguments += delta.arguments
