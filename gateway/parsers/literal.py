"""Python literals to JSON, character by character: strings, numbers, lists, dicts, True and None.

Knows nothing of calls. `true`, `false` and `null` pass too: models mix the two languages.
"""

import json
import re
from enum import Enum, auto

_WORDS = {"True": "true", "False": "false", "None": "null"}
_WORDS |= {word: word for word in _WORDS.values()}
_NUMBER = re.compile(
    r"([+-]?)(0|[1-9]\d*(?:_\d+)*)?(?:\.(\d*))?([eE][+-]?\d+)?",
    re.ASCII,
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "0": "\0"}
_ESCAPES |= {char: char for char in "\\'\""} | {"\n": ""}
_HEX_LENGTHS = {"x": 2, "u": 4, "U": 8}
_CLOSING = {"[": "]", "(": ")", "{": "}"}
_MAX_DEPTH = 64
_MAX_WORD_CHARS = 400


class Place(Enum):
    VALUE = auto()
    KEY = auto()  # of a dict
    COLON = auto()
    COMMA = auto()  # or the end of the list or dict
    QUOTE = auto()  # one quotation mark has come: a string, or the first of three
    QUOTES = auto()  # two have come: an empty string, or a string with three marks
    STRING = auto()
    ESCAPE = auto()
    HEX = auto()
    WORD = auto()
    DONE = auto()  # the character that says so is not part of a scalar
    BAD = auto()


class LiteralReader:
    """Reads one value. `push` gives the JSON that the character completes; the value ends before a
    `,` or `)` at the top, or with its own last character. Invariant: DONE and BAD are final."""

    def __init__(self) -> None:
        self.place = Place.VALUE
        self.took_last = True  # with DONE: whether the last character pushed is part of the value
        self._open: list[str] = []
        self._is_key = False
        self._can_close = False  # the list or dict is empty, or a comma has come
        self._quote = ""
        self._num_ending = 0  # closing quotation marks so far, of three
        self._word = ""
        self._comma = ""  # owed before the next value

    @property
    def is_done(self) -> bool:
        return self.place is Place.DONE

    def push(self, char: str) -> str:
        match self.place:
            case Place.VALUE | Place.KEY:
                return self._begin(char)
            case Place.COLON | Place.COMMA:
                return self._between(char)
            case Place.QUOTE | Place.QUOTES:
                return self._after_quotes(char)
            case Place.STRING:
                return self._in_string(char)
            case Place.ESCAPE | Place.HEX:
                return self._in_escape(char)
            case Place.WORD:
                return self._in_word(char)
        self.place = Place.BAD
        return ""

    def _begin(self, char: str) -> str:
        if char.isspace():
            return ""
        if self._can_close and self._open and char == _CLOSING[self._open[-1]]:
            return self._close()
        comma, self._comma, self._can_close = self._comma, "", False
        if char in "\"'":
            self._is_key = self.place is Place.KEY
            self._quote, self.place = char, Place.QUOTE
            return comma + '"'
        if self.place is Place.KEY:
            return self._fail()
        if char in _CLOSING and len(self._open) < _MAX_DEPTH:
            self._open.append(char)
            self._can_close = True
            self.place = Place.KEY if char == "{" else Place.VALUE
            return comma + ("{" if char == "{" else "[")
        if char.isalnum() or char in "+-.":
            self._word, self.place = char, Place.WORD
            return comma
        return self._fail()

    def _between(self, char: str) -> str:
        if char.isspace():
            return ""
        if self.place is Place.COLON:
            self.place = Place.VALUE if char == ":" else Place.BAD
            return ": " if char == ":" else ""
        if char == ",":
            self.place = Place.KEY if self._open[-1] == "{" else Place.VALUE
            self._can_close, self._comma = True, ", "
            return ""
        return self._close() if char == _CLOSING[self._open[-1]] else self._fail()

    def _close(self) -> str:
        self._comma, self._can_close = "", False
        closed = "}" if self._open.pop() == "{" else "]"
        self._end_value()
        return closed

    def _end_value(self, *, took_last: bool = True) -> None:
        self.place = Place.COMMA if self._open else Place.DONE
        self.took_last = took_last

    def _after_quotes(self, char: str) -> str:
        if self.place is Place.QUOTE:
            if char == self._quote:
                self.place = Place.QUOTES
                return ""
            self.place = Place.STRING
            return self._in_string(char)
        if char == self._quote:
            self._quote, self._num_ending, self.place = char * 3, 0, Place.STRING
            return ""
        return '"' + self._end_string_before(char)

    def _in_string(self, char: str) -> str:
        if char == self._quote[0]:
            self._num_ending += 1
            if self._num_ending < len(self._quote):
                return ""
            self._num_ending = 0
            self._end_string()
            return '"'
        held = self._quote[0] * self._num_ending
        self._num_ending = 0
        if char == "\\":
            self.place = Place.ESCAPE
            return _inside(held)
        return _inside(held + char)

    def _end_string(self) -> None:
        if self._is_key:
            self.place = Place.COLON
        else:
            self._end_value()

    def _end_string_before(self, char: str) -> str:
        """The string was empty, and `char` is behind it."""
        if self._is_key or self._open:
            self._end_string()
            return self._between(char)
        self._end_value(took_last=False)
        return ""

    def _in_escape(self, char: str) -> str:
        if self.place is Place.HEX:
            return self._in_hex(char)
        if char in _HEX_LENGTHS:
            self._word, self.place = char, Place.HEX
            return ""
        self.place = Place.STRING
        return _inside(_ESCAPES.get(char, "\\" + char))

    def _in_hex(self, char: str) -> str:
        if char not in "0123456789abcdefABCDEF":
            return self._fail()
        self._word += char
        if len(self._word) <= _HEX_LENGTHS[self._word[0]]:
            return ""
        self.place = Place.STRING
        code = int(self._word[1:], 16)
        if code > 0x10FFFF:
            return self._fail()
        # Halves of a pair are legal in JSON as escapes, and only so.
        return f"\\u{code:04x}" if 0xD800 <= code < 0xE000 else _inside(chr(code))

    def _in_word(self, char: str) -> str:
        if char.isalnum() or char in "+-._":
            self._word += char
            return "" if len(self._word) <= _MAX_WORD_CHARS else self._fail()
        value = json_word(self._word)
        if value is None or not (char.isspace() or char in ",)]}"):
            return self._fail()
        if self._open:
            self._end_value()
            return value + self._between(char)
        self._end_value(took_last=False)
        return value

    def _fail(self) -> str:
        self.place = Place.BAD
        return ""


def json_word(word: str) -> str | None:
    """A number or constant as JSON writes it; None: neither."""
    if word in _WORDS:
        return _WORDS[word]
    match = _NUMBER.fullmatch(word)
    if match is None or not (match[2] or match[3]):
        return None
    whole = (match[2] or "0").replace("_", "")
    fraction = f".{match[3] or '0'}" if match[3] is not None else ""
    return f"{'-' if match[1] == '-' else ''}{whole}{fraction}{match[4] or ''}"


def json_of_literal(text: str) -> str | None:
    """A whole text as one value; None: it is none."""
    reader, written = LiteralReader(), ""
    text = text.strip()
    for place, char in enumerate(text + ","):  # a comma ends a number as well
        if reader.is_done:
            return written if place == len(text) else None
        written += reader.push(char)
        if reader.is_done and not reader.took_last:
            return written if place == len(text) else None
    return None


def _inside(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
