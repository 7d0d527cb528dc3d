"""Harmony, the language of gpt-oss: messages on channels, each told by its header.

`<|channel|>analysis<|message|>…<|end|>` is thought, `final` is the answer, `commentary` is text for
the user or, with a recipient (`to=functions.add`), a call that `<|call|>` ends. One reader for all
of it, since thoughts and calls may take turns. Source: github.com/openai/harmony, docs/format.md.
"""

import re

from gateway.parsers.call_reader import Progress, Tools
from gateway.parsers.events import (
    Arguments,
    CallEnded,
    CallStarted,
    Content,
    ParserEvent,
    Reasoning,
)
from gateway.parsers.marks import first_mark, num_held
from gateway.parsers.named_calls import NamedCall, NamedSyntax
from gateway.parsers.reasoning import ReasoningFormat
from gateway.parsers.tool_format import ToolFormat

_CHANNEL_MARK, _START, _MESSAGE = "<|channel|>", "<|start|>", "<|message|>"
_BODY_ENDS = ("<|end|>", "<|call|>", "<|return|>", _START, _CHANNEL_MARK)
_HEADER_BEGINS = (_CHANNEL_MARK, _START, _MESSAGE, "to=")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_CALL_HEAD = re.compile(
    r"(?s:.*)\bto=(?:functions\.)?(?P<name>[^\s<]+)(?s:.*)<\|message\|>\s*",
)
_MAX_HEADER_CHARS = 300

HARMONY_CALLS = ToolFormat(
    "openai",
    NamedSyntax(_CALL_HEAD, after_name=" <|constrain|>json<|message|>"),
    marks=(*_BODY_ENDS, _MESSAGE, "<|constrain|>"),
    opening="<|channel|>commentary to=functions.",
    before_answer="<|channel|>final<|message|>",
    max_calls=1,
    has_channels=True,
)
HARMONY = ReasoningFormat(
    "openai_gptoss",
    begins=("<|channel|>analysis<|message|>",),
    ends=("<|end|><|start|>assistant",),
    other_marks=(*_BODY_ENDS, _MESSAGE, "<|constrain|>"),
    before_answer="<|channel|>final<|message|>",
    has_channels=True,
)


class HarmonyReader:
    """A TextReader of one choice. `is_thinking` tells of the next token; `is_over` is never true,
    for any message may be followed by a thought."""

    is_over = False

    def __init__(self, tools: Tools, *, is_in_answer: bool) -> None:
        """`is_in_answer`: the prompt ends inside a message to the user."""
        self._tools = tools
        self._header = ""
        self._is_in_header = not is_in_answer
        self._is_thought = False  # the open message
        self._call: NamedCall | None = None  # the open message's
        self._held = ""  # may begin a mark
        self._events: list[ParserEvent] = []
        self._is_new = True  # the open message has said nothing
        self._has_told: set[type[ParserEvent]] = set()

    @property
    def is_thinking(self) -> bool:
        return self._is_thought and not self._is_in_header

    def feed(self, text: str) -> list[ParserEvent]:
        while text:
            text = self._in_header(text) if self._is_in_header else self._in_body(text)
        return self._take_events()

    def finish(self) -> list[ParserEvent]:
        """A header that was cut off is no text."""
        if not self._is_in_header:
            held, self._held = self._held, ""
            self._say(held)
            self._end_body()
        elif not self._header.lstrip().startswith((_CHANNEL_MARK, _START)):
            self._begin_answer(self._header)
        return self._take_events()

    def _in_header(self, text: str) -> str:
        """Takes up to the end of the header; gives back what is behind it."""
        self._header += text
        place = self._header.find(_MESSAGE)
        if 0 <= place <= _MAX_HEADER_CHARS and _may_be_header(self._header[:place]):
            behind = self._header[place + len(_MESSAGE) :]
            self._begin_body(self._header[: place + len(_MESSAGE)])
            return behind
        if len(self._header) < _MAX_HEADER_CHARS + len(_MESSAGE) and _may_be_header(self._header):
            return ""
        header, self._header = self._header, ""
        self._is_in_header, self._is_thought, self._is_new = False, False, True
        return header

    def _begin_answer(self, text: str) -> None:
        self._is_in_header, self._is_thought = False, False
        self._say(text)

    def _begin_body(self, header: str) -> None:
        channel, recipient = _CHANNEL.search(header), _RECIPIENT.search(header)
        self._is_in_header, self._is_new, self._header = False, True, header
        self._is_thought = channel is not None and channel[1] == "analysis"
        self._call = None
        if recipient is not None and not self._is_thought:
            self._call = NamedCall(self._tools, _CALL_HEAD)
            for char in header:
                self._call.push(char)

    def _in_body(self, text: str) -> str:
        text = self._held + text
        self._held = ""
        found = first_mark(text, _BODY_ENDS)
        if found is None:
            held = num_held(text, _BODY_ENDS)
            self._held = text[len(text) - held :]
            self._say(text[: len(text) - held])
            return ""
        start, mark = found
        self._say(text[:start])
        self._end_body()
        self._is_in_header, self._header = True, ""
        behind = text[start + len(mark) :]
        return mark + behind if mark in (_START, _CHANNEL_MARK) else behind

    def _say(self, text: str) -> None:
        if self._call is not None:
            self._in_call(self._call, text)
        elif text:
            self._emit(Reasoning(text) if self._is_thought else Content(text))

    def _in_call(self, call: NamedCall, text: str) -> None:
        for place, char in enumerate(text):
            if call.progress is Progress.OPEN:
                self._events += call.push(char)
            if call.progress is Progress.FAILED:
                self._call = None
                self._say(call.unread + text[place + 1 :])
                return
            if call.progress is Progress.DONE:
                self._call = None
                self._say(text[place + 1 :].lstrip())
                return

    def _end_body(self) -> None:
        call, self._call = self._call, None
        if call is None:
            return
        self._events += call.finish()
        name = _CALL_HEAD.fullmatch(call.unread)
        if name is not None and name["name"] in self._tools:
            self._events += [CallStarted(name["name"]), Arguments("{}"), CallEnded()]
        else:
            self._say(call.unread)

    def _emit(self, event: Content | Reasoning) -> None:
        """A new message of a kind begins on a line of its own."""
        kind = type(event)
        if self._is_new and kind in self._has_told:
            event = kind("\n" + event.text)
        self._is_new = False
        self._has_told.add(kind)
        last = self._events[-1] if self._events else None
        if isinstance(last, kind):
            self._events[-1] = kind(last.text + event.text)
        else:
            self._events.append(event)

    def _take_events(self) -> list[ParserEvent]:
        events, self._events = self._events, []
        return events


def _may_be_header(text: str) -> bool:
    """So far; a text without marks is an answer."""
    text = text.lstrip()
    return any(mark.startswith(text) or text.startswith(mark) for mark in _HEADER_BEGINS)
