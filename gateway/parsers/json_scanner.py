"""Whether characters that come one by one make a JSON value, and where it ends.

Strict (RFC 8259): what it accepts, `json.loads` accepts. Knows nothing of calls.
"""

import re
from enum import Enum, auto

_SCALAR = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?|true|false|null", re.ASCII)
_SCALAR_BEGINNING = frozenset("-0123456789tfn")
_SPACE = frozenset(" \t\n\r")
_HEX = frozenset("0123456789abcdefABCDEF")
_CLOSING = {"{": "}", "[": "]"}


class State(Enum):
    VALUE = auto()
    FIRST_ITEM = auto()  # a value, or the end of an empty list
    FIRST_KEY = auto()  # a key, or the end of an empty object
    KEY = auto()
    COLON = auto()
    COMMA = auto()  # or the end of the list or object
    STRING = auto()
    ESCAPE = auto()
    HEX = auto()
    SCALAR = auto()
    DONE = auto()
    BAD = auto()


class JsonScanner:
    """Invariant: BAD and DONE are final. A number at the top never ends: only a delimiter would
    tell."""

    __slots__ = ("_is_key", "_num_hex", "_open", "_scalar", "state")

    def __init__(self) -> None:
        self.state = State.VALUE
        self._open: list[str] = []  # the brackets around
        self._is_key = False
        self._num_hex = 0
        self._scalar: list[str] = []

    @property
    def depth(self) -> int:
        return len(self._open)

    def push(self, char: str) -> State:
        match self.state:
            case State.STRING:
                self._in_string(char)
            case State.SCALAR:
                self._in_scalar(char)
            case State.ESCAPE:
                self._in_escape(char)
            case State.HEX:
                self._in_hex(char)
            case State.DONE | State.BAD:
                self.state = State.BAD
            case _ if char not in _SPACE:
                self._between(char)
        return self.state

    def _between(self, char: str) -> None:
        match self.state:
            case State.VALUE:
                self._begin_value(char)
            case State.FIRST_ITEM if char != "]":
                self._begin_value(char)
            case State.FIRST_KEY | State.KEY if char == '"':
                self.state, self._is_key = State.STRING, True
            case State.COLON if char == ":":
                self.state = State.VALUE
            case State.COMMA if char == ",":
                self.state = State.KEY if self._open[-1] == "{" else State.VALUE
            case State.FIRST_ITEM | State.FIRST_KEY | State.COMMA:
                self._close(char)
            case _:
                self.state = State.BAD

    def _begin_value(self, char: str) -> None:
        if char in _CLOSING:
            self._open.append(char)
            self.state = State.FIRST_KEY if char == "{" else State.FIRST_ITEM
        elif char == '"':
            self.state, self._is_key = State.STRING, False
        elif char in _SCALAR_BEGINNING:
            self.state, self._scalar = State.SCALAR, [char]
        else:
            self.state = State.BAD

    def _close(self, char: str) -> None:
        if char != _CLOSING[self._open[-1]]:
            self.state = State.BAD
            return
        self._open.pop()
        self._end_value()

    def _end_value(self) -> None:
        self.state = State.COMMA if self._open else State.DONE

    def _in_string(self, char: str) -> None:
        if char == "\\":
            self.state = State.ESCAPE
        elif char < " ":
            self.state = State.BAD
        elif char == '"' and self._is_key:
            self.state = State.COLON
        elif char == '"':
            self._end_value()

    def _in_escape(self, char: str) -> None:
        if char == "u":
            self.state, self._num_hex = State.HEX, 0
        else:
            self.state = State.STRING if char in '"\\/bfnrt' else State.BAD

    def _in_hex(self, char: str) -> None:
        self._num_hex += 1
        if char not in _HEX:
            self.state = State.BAD
        elif self._num_hex == 4:
            self.state = State.STRING

    def _in_scalar(self, char: str) -> None:
        if char not in _SPACE and char not in ",]}":
            self._scalar.append(char)
        elif self._open and _SCALAR.fullmatch("".join(self._scalar)):
            self._end_value()
            self.push(char)
        else:
            self.state = State.BAD
