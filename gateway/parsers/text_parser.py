"""The one incremental parser: text that may hold calls, of whatever format, to events.

Formats differ in data only (ToolFormat): which marks announce calls, whether a call may also stand
bare, and how calls are written. Knows nothing of tokens or HTTP.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from gateway.parsers.call_reader import CallList, CallReader, Names, Progress
from gateway.parsers.events import Arguments, CallEnded, CallStarted, Content, ParserEvent

_SEPARATORS = ";,"


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How one family of models writes its calls."""

    name: str
    marks: tuple[str, ...] = ()  # what announces calls
    end_mark: str = ""  # closes what a mark announced
    inner_marks: tuple[str, ...] = ()  # between names and arguments
    takes_bare: bool = False  # calls may also be the whole text, without a mark
    make_reader: Callable[[Names], CallReader] = CallList
    call_ids: Literal["openai", "mistral"] = "openai"

    @property
    def is_tagged(self) -> bool:
        """Every call stands between a mark and an end mark."""
        return bool(self.end_mark) and not self.takes_bare

    @property
    def all_marks(self) -> tuple[str, ...]:
        """Those that may be tokens of their own, and must not be hidden then."""
        return tuple(mark for mark in (*self.marks, self.end_mark, *self.inner_marks) if mark)


class TextParser:
    """A ToolParser for any ToolFormat.

    Three places: in text; in a reader, where a call may be; behind a bare call, where another may
    follow. What a reader refuses is text again, read anew from behind its mark.
    """

    def __init__(self, tool_format: ToolFormat, names: Names) -> None:
        self._format = tool_format
        self._names = names
        self._reader: CallReader | None = None
        self._mark = ""  # that announced the reader, as long as it is not told
        self._is_bare = False
        self._may_be_bare = tool_format.takes_bare  # nothing but space so far
        self._is_behind_bare = False
        self._has_calls = False
        self._has_content = False
        self._held = ""  # may begin a mark
        self._space = ""  # at the end of the content: dropped if a call follows
        self._events: list[ParserEvent] = []

    def feed(self, text: str) -> list[ParserEvent]:
        self._read(text)
        return self._take_events()

    def finish(self) -> list[ParserEvent]:
        reader = self._reader
        if reader is not None:
            self._reader = None
            if reader.is_call_open:
                self._emit(CallEnded())
            elif not self._is_behind_call(reader):
                self._content(self._mark + reader.unread)
        held, self._held = self._held, ""
        if not self._is_behind_bare:
            self._content(held)
        if self._space and not self._has_calls:
            self._events.append(Content(self._space))
        self._space = ""
        return self._take_events()

    def _is_behind_call(self, reader: CallReader) -> bool:
        """A list that was cut off between two calls."""
        return self._has_calls and not self._mark and not reader.unread.strip(" \t\r\n,[]")

    def _read(self, text: str) -> None:
        """Each turn consumes at least one character, or moves from a reader back to text."""
        open_texts = [text]
        while open_texts:
            text = open_texts.pop()
            if not text:
                continue
            if self._reader is not None:
                rest, again = self._in_reader(self._reader, text)
                open_texts += [rest, again]
            elif self._may_be_bare or self._is_behind_bare:
                open_texts.append(self._at_bare(text))
            else:
                open_texts.append(self._in_text(text))

    def _in_reader(self, reader: CallReader, text: str) -> tuple[str, str]:
        """What is still to be read, and what must be read again before."""
        for place, char in enumerate(text):
            events = reader.push(char)
            for event in events:
                self._emit(event)
            if reader.progress is Progress.OPEN:
                continue
            self._reader = None
            refused = ""
            if reader.progress is Progress.FAILED:
                self._content(self._mark)
                refused = reader.unread
            self._is_behind_bare = self._is_bare and reader.progress is Progress.DONE
            self._mark = ""
            return text[place + 1 :], refused
        return "", ""

    def _at_bare(self, text: str) -> str:
        """Only space has come, or calls and separators: a call may begin without a mark."""
        skipped = " \t\r\n" + (_SEPARATORS if self._is_behind_bare else "")
        rest = text.lstrip(skipped)
        between = text[: len(text) - len(rest)]
        if self._is_behind_bare:
            self._held += between
        else:
            self._content(between)
        if rest:
            held, self._held = self._held, ""
            self._may_be_bare = self._is_behind_bare = False
            if rest[0] in "{[":
                self._begin(held, is_bare=True)
            else:
                return held.lstrip() + rest
        return rest

    def _in_text(self, text: str) -> str:
        text = self._held + text
        self._held = ""
        marks = self._format.marks
        if self._has_calls and self._format.end_mark:
            marks = (*marks, self._format.end_mark)
        found = _first_mark(text, marks)
        if found is None:
            kept = _num_held(text, marks)
            self._content(text[: len(text) - kept])
            self._held = text[len(text) - kept :]
            return ""
        start, mark = found
        self._content(text[:start])
        if mark != self._format.end_mark:
            self._begin(mark, is_bare=False)
        return text[start + len(mark) :]

    def _begin(self, mark: str, *, is_bare: bool) -> None:
        self._reader = self._format.make_reader(self._names)
        self._mark = mark
        self._is_bare = is_bare

    def _emit(self, event: ParserEvent) -> None:
        if isinstance(event, CallStarted):
            self._has_calls = True
            self._mark = self._space = ""
        last = self._events[-1] if self._events else None
        if isinstance(event, Arguments) and isinstance(last, Arguments):
            self._events[-1] = Arguments(last.text + event.text)
        else:
            self._events.append(event)

    def _content(self, text: str) -> None:
        text = self._space + text
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if not shown:
            return
        if self._has_calls and not self._has_content:
            shown = shown.lstrip()  # the space between a call and the text behind it
        self._may_be_bare, self._has_content = False, True
        last = self._events[-1] if self._events else None
        if isinstance(last, Content):
            self._events[-1] = Content(last.text + shown)
        else:
            self._events.append(Content(shown))

    def _take_events(self) -> list[ParserEvent]:
        events, self._events = self._events, []
        return events


class ForcedCall:
    """A ToolParser for text that is one call's arguments and nothing else."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._is_open = False

    def feed(self, text: str) -> list[ParserEvent]:
        if not text:
            return []
        if self._is_open:
            return [Arguments(text)]
        self._is_open = True
        return [CallStarted(self._name), Arguments(text)]

    def finish(self) -> list[ParserEvent]:
        return [CallEnded()] if self._is_open else []


def _first_mark(text: str, marks: tuple[str, ...]) -> tuple[int, str] | None:
    places = [(text.find(mark), -len(mark), mark) for mark in marks]
    found = [place for place in places if place[0] >= 0]
    if not found:
        return None
    start, _, mark = min(found)
    return start, mark


def _num_held(text: str, marks: tuple[str, ...]) -> int:
    """The length of the longest end of `text` that begins a mark."""
    longest = max((len(mark) for mark in marks), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-length:]) for mark in marks):
            return length
    return 0
