"""What a model thinks, told apart from what it answers: formats as data, one incremental reader.

Where thinking begins depends on the prompt: many chat templates open it for the model, or close it
at once where none is wanted. Comes before everything else that reads an answer; Choice drives it.
"""

import re
from dataclasses import dataclass
from enum import Enum, auto

from gateway.parsers.events import Content, ParserEvent, Reasoning
from gateway.parsers.marks import first_mark, num_held


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """Invariant: the first of `begins` and of `ends` is the one that the model writes."""

    name: str
    begins: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    cut_by: tuple[str, ...] = ()  # also ends it, and belongs to the answer
    is_assumed: bool = False  # thinks from the start, unless the prompt says otherwise
    other_marks: tuple[str, ...] = ()  # of its structure, told to nobody
    before_answer: str = ""  # what the model writes between its thoughts and the answer
    answer_marks: tuple[str, str] | None = None  # around the answer, where it writes them
    has_channels: bool = False  # Harmony: thoughts, calls and answers share one structure

    @property
    def all_marks(self) -> tuple[str, ...]:
        return (*self.begins, *self.ends, *self.other_marks, *(self.answer_marks or ()))

    def start(self, prompt: str, continued: str | None = None) -> "ReasoningStart":
        """What an answer to this prompt begins with. `continued`: the last message, where the
        answer goes on with it."""
        if self.has_channels:  # each message says what it is
            return ReasoningStart.OPEN if continued is None else ReasoningStart.ANSWERING
        if continued is not None:
            begun = max((continued.rfind(mark) for mark in self.begins), default=-1)
            ended = max((continued.rfind(mark) for mark in self.ends), default=-1)
            return ReasoningStart.THINKING if begun > ended else ReasoningStart.ANSWERING
        prompt = prompt.rstrip()
        if prompt.endswith(self.ends):
            return ReasoningStart.ANSWERING
        if self.is_assumed or prompt.endswith(self.begins):
            return ReasoningStart.THINKING
        return ReasoningStart.OPEN


class ReasoningStart(Enum):
    OPEN = auto()  # the model decides, by its first words
    THINKING = auto()
    ANSWERING = auto()


class ReasoningReader:
    """One choice's. A TextReader whose events are Reasoning and Content only; `is_thinking` tells
    of the next token, and once `is_over` all further text is content as it is."""

    def __init__(self, reasoning_format: ReasoningFormat, start: ReasoningStart) -> None:
        self._format = reasoning_format
        self._marks = (*reasoning_format.ends, *reasoning_format.cut_by)
        self._mark_begin = re.compile("|".join({re.escape(mark[0]) for mark in self._marks}))
        self.is_thinking = start is ReasoningStart.THINKING
        self.is_over = start is ReasoningStart.ANSWERING
        self._may_begin = not self.is_over  # a mark may still stand in front
        self._is_behind = False  # the thoughts are over, and no word of the answer has come
        self._is_framed = False  # the answer, by the marks that it ends with as well
        self._held = ""
        self._space = ""  # at the end of the thoughts
        self._has_no_thoughts = True

    def feed(self, text: str) -> list[ParserEvent]:
        if self.is_over:
            return [Content(text)] if text else []
        text = self._held + text
        self._held = ""
        if self._may_begin:
            return self._at_begin(text)
        if self._is_framed:
            return self._in_frame(text)
        return self._in_thoughts(text) if self.is_thinking else self._behind(text)

    def finish(self) -> list[ParserEvent]:
        held, self._held = self._held, ""
        if not held:
            return []
        return self._thoughts(held) if self.is_thinking else [Content(held)]

    def _at_begin(self, text: str) -> list[ParserEvent]:
        """Perhaps a mark, behind perhaps some space."""
        shown = text.lstrip()
        for mark in self._format.begins:
            if shown.startswith(mark):
                self._may_begin, self.is_thinking = False, True
                return self._in_thoughts(shown[len(mark) :])
        if not shown or any(mark.startswith(shown) for mark in self._format.begins):
            self._held = text
            return []
        self._may_begin = False
        if self.is_thinking:
            return self._in_thoughts(text)
        self.is_over = True
        return [Content(text)]

    def _in_thoughts(self, text: str) -> list[ParserEvent]:
        if self._mark_begin.search(text) is None:  # nearly every token
            return self._thoughts(text)
        found = first_mark(text, self._marks)
        if found is None:
            held = num_held(text, self._marks)
            self._held = text[len(text) - held :]
            return self._thoughts(text[: len(text) - held])
        start, mark = found
        self.is_thinking, self._is_behind = False, True
        behind = start + len(mark) if mark in self._format.ends else start
        return self._thoughts(text[:start]) + self._behind(text[behind:])

    def _thoughts(self, text: str) -> list[ParserEvent]:
        """Without the space around them."""
        if self._space:
            text = self._space + text
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if self._has_no_thoughts:
            shown = shown.lstrip()
            self._has_no_thoughts = not shown
        return [Reasoning(shown)] if shown else []

    def _behind(self, text: str) -> list[ParserEvent]:
        shown = text.lstrip()
        begin = "" if self._format.answer_marks is None else self._format.answer_marks[0]
        if begin and shown.startswith(begin):
            self._is_framed = True
            return self._in_frame(shown[len(begin) :].lstrip())
        if not shown or begin.startswith(shown):
            self._held = shown
            return []
        self.is_over = True
        return [Content(shown)]

    def _in_frame(self, text: str) -> list[ParserEvent]:
        """The answer without the space that its marks stand in."""
        assert self._format.answer_marks is not None
        end = self._format.answer_marks[1]
        if self._is_behind:
            text = text.lstrip()
        place = text.find(end)
        if place >= 0:
            self.is_over = True
            shown = text[:place].rstrip() + text[place + len(end) :]
        else:
            shown = text[: len(text) - num_held(text, (end,))].rstrip()
            self._held = text[len(shown) :]
        if not shown:
            return []
        self._is_behind = False
        return [Content(shown)]
