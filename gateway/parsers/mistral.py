"""Mistral: `[TOOL_CALLS][{…}, {…}]`, or in newer models `[TOOL_CALLS]name[ARGS]{…}` a call.

Their templates take call ids of nine letters and digits only.
"""

from gateway.parsers.call_reader import CallList, CallReader, NamedCall, Names, Progress
from gateway.parsers.events import ParserEvent
from gateway.parsers.text_parser import ToolFormat

_MARKS = ("[CALL_ID]", "[ARGS]")


class MistralCalls:
    """Decides by the first character which of the two forms it is. See CallReader."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._space = ""
        self._reader: CallReader | None = None

    @property
    def progress(self) -> Progress:
        return Progress.OPEN if self._reader is None else self._reader.progress

    @property
    def unread(self) -> str:
        return self._space if self._reader is None else self._reader.unread

    @property
    def is_call_open(self) -> bool:
        return self._reader is not None and self._reader.is_call_open

    def push(self, char: str) -> list[ParserEvent]:
        if self._reader is None:
            if char.isspace():
                self._space += char
                return []
            is_json = char in "[{"
            self._reader = CallList(self._names) if is_json else NamedCall(self._names, _MARKS)
            for skipped in self._space:
                self._reader.push(skipped)
        return self._reader.push(char)


MISTRAL = ToolFormat(
    "mistral",
    marks=("[TOOL_CALLS]",),
    inner_marks=_MARKS,
    make_reader=MistralCalls,
    call_ids="mistral",
)
