"""Marks of a model's answers that are tokens of its own, such as `<tool_call>` or `[THINK]`.

Grammars must name those tokens by their ids, the detokenizer must not hide them, and a budget of
thoughts can only be kept where one token ends them. Built once a model by TextModel.
"""

import json
import re
from collections.abc import Iterable, Mapping

_MIN_CHARS = 3  # shorter ones are no marks, but would be found inside of some


class MarkTokens:
    """Immutable; safe from any thread."""

    def __init__(self, added_tokens: Mapping[int, str]) -> None:
        self._ids = {
            text: token_id
            for token_id, text in added_tokens.items()
            if len(text) >= _MIN_CHARS and text[0] in "<[｜" and text[-1] in ">]｜"
        }
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def id_of(self, mark: str) -> int | None:
        return self._ids.get(mark)

    def first_id(self, text: str) -> int | None:
        """Of the token that `text` begins with, where that is a mark."""
        match = self._pattern.match(text)
        return None if match is None else self._ids[match.group()]

    def ids_in(self, texts: Iterable[str]) -> frozenset[int]:
        """The tokens that these texts contain."""
        found = (match for text in texts for match in self._pattern.findall(text))
        return frozenset(self._ids[text] for text in found)

    def quote(self, text: str) -> str:
        """A Lark expression for `text`: tokens by id, the rest as literals."""
        parts: list[str] = []
        place = 0
        for match in self._pattern.finditer(text):
            if match.start() > place:
                parts.append(quote_plain(text[place : match.start()]))
            parts.append(f"<[{self._ids[match.group()]}]>")
            place = match.end()
        if place < len(text) or not parts:
            parts.append(quote_plain(text[place:]))
        return " ".join(parts)


NO_MARKS = MarkTokens({})


def quote_plain(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
