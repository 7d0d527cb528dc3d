"""Gemma's objects to JSON, character by character: `{a:1,words:[<|"|>x<|"|>]}`.

Keys are bare, text stands between two marks as it is, all else is as in JSON; JSON's own strings
are read as well. Text goes out as it comes, numbers and words once they are whole. Knows nothing of
calls; gateway/parsers/gemma_calls.py drives it.
"""

import json
from enum import Enum, auto
from typing import Any

from gateway.parsers.call_reader import Schema
from gateway.parsers.json_calls import loads
from gateway.parsers.literal import json_word
from gateway.parsers.marks import num_held
from gateway.parsers.values import json_of_text, property_of, retyped, takes_text

_MAX_WORD_CHARS = 400
_MAX_DEPTH = 64
_CLOSING = {"{": "}", "[": "]"}


class At(Enum):
    KEY = auto()  # or the object's end
    BARE_KEY = auto()
    COLON = auto()
    VALUE = auto()
    MARK = auto()  # the one in front of a text
    TEXT = auto()
    STRING = auto()  # JSON's
    WORD = auto()
    COMMA = auto()  # or the end of the list or object
    DONE = auto()
    BAD = auto()


class GemmaObject:
    """One object, from its brace on. `push` gives the JSON that the character completes.
    Invariant: DONE and BAD are final."""

    def __init__(self, text_mark: str, schema: Schema) -> None:
        self.at = At.VALUE
        self._text_mark = text_mark
        self._schema = schema  # of the whole
        self._value_schema: Any = None  # of an argument's value
        self._open: list[str] = []
        self._can_close = False  # the list or object is empty, or a comma has come
        self._comma = ""  # owed before the next key or value
        self._part = ""  # of the key or value that is being read, not told
        self._is_key = False
        self._is_held = False  # the text is told when it is whole

    @property
    def lacks_only_its_end(self) -> bool:
        is_behind = self.at is At.COMMA or (self.at is At.KEY and self._can_close)
        return is_behind and len(self._open) == 1

    def push(self, char: str) -> str:
        match self.at:
            case At.TEXT:
                return self._in_text(char)
            case At.WORD:
                return self._in_word(char)
            case At.STRING:
                return self._in_string(char)
            case At.BARE_KEY:
                return self._in_bare_key(char)
            case At.MARK:
                return self._in_mark(char)
        if char.isspace():
            return ""
        match self.at:
            case At.KEY:
                return self._begin_key(char)
            case At.VALUE:
                return self._begin_value(char)
            case At.COLON:
                return self._tell_key() if char == ":" else self._fail()
            case At.COMMA:
                return self._behind_value(char)
        return self._fail()

    def _begin_key(self, char: str) -> str:
        if char == "}" and self._can_close:
            return self._close()
        if char in "{}[],:":
            return self._fail()
        self._is_key, self._part = True, char
        self.at = self._quoted_at(char) or At.BARE_KEY
        return ""

    def _begin_value(self, char: str) -> str:
        if char == "]" and self._can_close and self._open[-1] == "[":
            return self._close()
        if char in _CLOSING and len(self._open) < _MAX_DEPTH:
            self._open.append(char)
            self._can_close = True
            self.at = At.KEY if char == "{" else At.VALUE
            return self._take_comma() + char
        if char in "{}[],:":
            return self._fail()
        self._is_key, self._part = False, char
        self.at = self._quoted_at(char) or At.WORD
        return ""

    def _quoted_at(self, char: str) -> At | None:
        if char == self._text_mark[0]:
            return At.MARK
        return At.STRING if char == '"' else None

    def _in_bare_key(self, char: str) -> str:
        if char == ":":
            self._part = self._part.strip()
            return self._tell_key()
        self._part += char
        is_good = char not in '{}[],"\n' and len(self._part) <= _MAX_WORD_CHARS
        return "" if is_good else self._fail()

    def _tell_key(self) -> str:
        key, self._part = self._part, ""
        self.at, self._can_close = At.VALUE, False
        is_argument = len(self._open) == 1
        self._value_schema = property_of(self._schema, key) if is_argument else None
        return f"{self._take_comma()}{json.dumps(key, ensure_ascii=False)}: "

    def _in_mark(self, char: str) -> str:
        self._part += char
        if not self._text_mark.startswith(self._part):
            return self._fail()
        if self._part != self._text_mark:
            return ""
        is_argument = len(self._open) == 1 and not self._is_key
        self._is_held = self._is_key or (is_argument and not takes_text(self._value_schema))
        self.at, self._part = At.TEXT, ""
        return "" if self._is_held else self._take_comma() + '"'

    def _in_text(self, char: str) -> str:
        self._part += char
        if self._part.endswith(self._text_mark):
            text = self._part[: -len(self._text_mark)]
            return self._end_held(text) if self._is_held else self._end_text(text)
        if self._is_held:
            return ""
        shown = self._part[: len(self._part) - num_held(self._part, (self._text_mark,))]
        self._part = self._part[len(shown) :]
        return json.dumps(shown, ensure_ascii=False)[1:-1]

    def _end_text(self, text: str) -> str:
        self._end_value()
        return json.dumps(text, ensure_ascii=False)[1:]

    def _end_held(self, text: str) -> str:
        if self._is_key:
            self._part, self.at = text, At.COLON
            return ""
        self._end_value()
        return self._take_comma() + json_of_text(text, self._value_schema)

    def _in_string(self, char: str) -> str:
        self._part += char
        num_escapes = len(self._part) - 1 - len(self._part[:-1].rstrip("\\"))
        if char != '"' or num_escapes % 2:
            return ""
        text = loads(self._part)
        if not isinstance(text, str):
            return self._fail()
        if self._is_key:
            return self._end_held(text)
        self._end_value()
        return self._take_comma() + json.dumps(text, ensure_ascii=False)

    def _in_word(self, char: str) -> str:
        if char not in ",}]":
            self._part += char
            is_good = char not in '{["' and len(self._part) <= _MAX_WORD_CHARS
            return "" if is_good else self._fail()
        schema = self._value_schema if len(self._open) == 1 else None
        word = self._part.rstrip()
        known = json_word(word)
        written = json_of_text(word, schema) if known is None else retyped(known, schema)
        self._end_value()
        return self._take_comma() + written + self._behind_value(char)

    def _behind_value(self, char: str) -> str:
        if char == ",":
            self.at = At.KEY if self._open[-1] == "{" else At.VALUE
            self._can_close, self._comma = True, ", "
            return ""
        return self._close() if char == _CLOSING[self._open[-1]] else self._fail()

    def _take_comma(self) -> str:
        comma, self._comma = self._comma, ""
        return comma

    def _close(self) -> str:
        self._comma, self._can_close = "", False
        closed = _CLOSING[self._open.pop()]
        self._end_value()
        return closed

    def _end_value(self) -> None:
        self._part = ""
        self.at = At.COMMA if self._open else At.DONE

    def _fail(self) -> str:
        self.at = At.BAD
        return ""
