"""The one incremental parser: text that may hold calls, of whatever format, to events.

Formats differ in data only (gateway/parsers/tool_format.py): which marks announce calls, whether a
call may also stand bare, and how calls are written. Knows nothing of tokens or HTTP.
"""

from gateway.parsers.call_reader import CallReader, Progress, Tools
from gateway.parsers.events import Arguments, CallStarted, Content, ParserEvent
from gateway.parsers.marks import first_mark, num_held
from gateway.parsers.tool_format import ToolFormat

_SEPARATORS = ";,"


class TextParser:
    """A TextReader for any ToolFormat.

    Three places: in text; in a reader, where a call may be; behind a bare call, where another may
    follow. What a reader refuses is text again, read anew from behind its mark.
    """

    def __init__(self, tool_format: ToolFormat, tools: Tools) -> None:
        self._format = tool_format
        self._tools = tools
        self._reader: CallReader | None = None
        self._mark = ""  # that announced the reader, as long as it is not told
        self._has_told = False  # the reader, of a call
        self._is_bare = False
        self._may_be_bare = bool(tool_format.bare_begins)  # nothing but space so far
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
            for event in reader.finish():
                self._emit(event)
            if not self._is_behind_call(reader):
                self._content(self._mark + reader.unread)
            self._mark = ""
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
            elif not self._has_told:  # an empty list
                self._content(self._mark + reader.unread)
            self._is_behind_bare = (
                self._is_bare and self._has_told and reader.progress is Progress.DONE
            )
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
            if rest[0] in self._format.bare_begins:
                self._begin(held, is_bare=True)
            else:
                return held.lstrip() + rest
        return rest

    def _in_text(self, text: str) -> str:
        text = self._held + text
        self._held = ""
        marks = self._format.marks
        if self._has_calls:
            marks = (*marks, *self._format.end_marks)
        found = first_mark(text, marks)
        if found is None:
            kept = num_held(text, marks)
            self._content(text[: len(text) - kept])
            self._held = text[len(text) - kept :]
            return ""
        start, mark = found
        self._content(text[:start])
        if mark in self._format.marks:
            self._begin(mark, is_bare=False)
        else:
            self._space = ""
        return text[start + len(mark) :]

    def _begin(self, mark: str, *, is_bare: bool) -> None:
        self._reader = self._format.syntax.make_reader(self._tools)
        self._mark = mark
        self._is_bare = is_bare
        self._has_told = False

    def _emit(self, event: ParserEvent) -> None:
        if isinstance(event, CallStarted):
            self._has_calls = self._has_told = True
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
