"""Structural tags: free text in which certain tags, once begun, are held to a grammar.

Both forms that vLLM takes from xgrammar become one grammar in Lark: the older with `structures` and
`triggers`, the newer with a tree of formats under `format`. What a tree cannot mean here is refused
by its place in it. Pure; called by gateway/structured_outputs.py.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from llguidance import regex_to_lark

from gateway.errors import InvalidRequestError
from gateway.grammar_text import checked, client_lark, parsed_schema, quoted, styled
from gateway.tokens import Grammar
from protos.grammar_source import UNFORCED

_MAX_FORMATS = 512
_MAX_DEPTH = 16
_ANY_TEXT = "/(.|\\n)*/"


def structural_tag_grammar(tag: Any, param: str) -> Grammar:
    """`tag`: the object, or its JSON. Raises: InvalidRequestError."""
    tag = parsed_schema(tag, param)
    if not isinstance(tag, dict):
        raise InvalidRequestError(f"{param} must be an object.", param=param)
    form = tag.get("format")
    if form is None and "structures" in tag:
        form = _format_of_structures(tag, param)
    rules = _Rules(param)
    start = rules.place(form, "format", 0)
    text = "\n".join([f"start: {start}", *rules.lines])
    return checked(Grammar("lark", UNFORCED + text, param))


def _format_of_structures(tag: dict[str, Any], param: str) -> dict[str, Any]:
    structures = tag["structures"]
    if not isinstance(structures, list) or not all(isinstance(s, dict) for s in structures):
        raise InvalidRequestError(f"{param}.structures must be a list of objects.", param=param)
    tags = [
        {
            "begin": one.get("begin"),
            "content": {"type": "json_schema", "json_schema": one.get("schema")},
            "end": one.get("end"),
        }
        for one in structures
    ]
    return {"type": "triggered_tags", "triggers": tag.get("triggers"), "tags": tags}


class _Rules:
    """The rules of one grammar as they are found; each format becomes an expression of them."""

    def __init__(self, param: str) -> None:
        self.lines: list[str] = []
        self._param = param
        self._num_formats = 0
        self._make: dict[str, Callable[[dict[str, Any], str, int], str]] = {
            "const_string": self._const_string,
            "json_schema": self._json_schema,
            "regex": self._regex,
            "grammar": self._grammar,
            "any_text": self._any_text,
            "sequence": self._sequence,
            "or": self._or,
            "optional": self._repeated,
            "plus": self._repeated,
            "star": self._repeated,
            "tag": self._tag,
            "triggered_tags": self._triggered_tags,
            "tags_with_separator": self._tags_with_separator,
        }

    def place(self, form: Any, where: str, depth: int) -> str:
        """An expression for a format, in parentheses where it needs them."""
        if not isinstance(form, dict):
            raise self._wrong(where, "must be an object")
        self._num_formats += 1
        if self._num_formats > _MAX_FORMATS or depth > _MAX_DEPTH:
            limit = f"at most {_MAX_FORMATS} formats, nested {_MAX_DEPTH} deep, are allowed"
            raise self._wrong(where, limit)
        make = self._make.get(str(form.get("type")))
        if make is None:
            known = ", ".join(self._make)
            raise self._wrong(f"{where}.type", f"must be one of {known}")
        return make(form, where, depth)

    def _const_string(self, form: dict[str, Any], where: str, depth: int) -> str:
        return quoted(self._text(form, "value", where))

    def _json_schema(self, form: dict[str, Any], where: str, depth: int) -> str:
        schema = form.get("json_schema")
        if form.get("style", "json") != "json":
            raise self._wrong(f"{where}.style", "can only be 'json'")
        if isinstance(schema, bool):
            return self._rule(f"%json {json.dumps(schema)}")
        if not isinstance(schema, dict):
            raise self._wrong(where, "needs a JSON schema")
        return self._rule(f"%json {json.dumps(styled(schema), ensure_ascii=False)}")

    def _regex(self, form: dict[str, Any], where: str, depth: int) -> str:
        pattern = self._text(form, "pattern", where)
        if form.get("excludes"):
            raise self._wrong(f"{where}.excludes", "is not supported")
        return self._rule(f"/{regex_to_lark(pattern)}/")

    def _grammar(self, form: dict[str, Any], where: str, depth: int) -> str:
        lark = client_lark(self._text(form, "grammar", where), self._param)
        if lark.count("{") != lark.count("}"):
            raise self._wrong(where, "must have as many { as }")
        return self._rule("%lark {\n" + lark + "\n}")

    def _any_text(self, form: dict[str, Any], where: str, depth: int) -> str:
        if form.get("excludes"):
            raise self._wrong(f"{where}.excludes", "is not supported")
        return self._rule(_ANY_TEXT)

    def _sequence(self, form: dict[str, Any], where: str, depth: int) -> str:
        """Free text ends where the constant behind it begins; behind nothing else can it end."""
        elements = self._list(form, "elements", where)
        parts: list[str] = []
        for i, element in enumerate(elements):
            follower = elements[i + 1] if i + 1 < len(elements) else None
            is_free = isinstance(element, dict) and element.get("type") == "any_text"
            if is_free and follower is not None:
                constant = isinstance(follower, dict) and follower.get("type") == "const_string"
                if not constant:
                    raise self._wrong(
                        f"{where}.elements[{i}]",
                        "of type any_text must come last or before a const_string",
                    )
                end = self._text(follower, "value", f"{where}.elements[{i + 1}]")
                parts.append(self._text_until(end))
            elif i and _is_text_before(elements[i - 1], element):
                continue  # it ended the text before
            else:
                parts.append(self.place(element, f"{where}.elements[{i}]", depth + 1))
        return f"({' '.join(parts)})"

    def _or(self, form: dict[str, Any], where: str, depth: int) -> str:
        elements = self._list(form, "elements", where)
        placed = [
            self.place(e, f"{where}.elements[{i}]", depth + 1) for i, e in enumerate(elements)
        ]
        return f"({' | '.join(placed)})"

    def _repeated(self, form: dict[str, Any], where: str, depth: int) -> str:
        mark = {"optional": "?", "plus": "+", "star": "*"}[form["type"]]
        inner = self._rule(self.place(form.get("content"), f"{where}.content", depth + 1))
        return f"{inner}{mark}"

    def _tag(self, form: dict[str, Any], where: str, depth: int) -> str:
        return f"({quoted(self._text(form, 'begin', where))} {self._tag_rest(form, where, depth)})"

    def _tag_rest(self, form: dict[str, Any], where: str, depth: int) -> str:
        """What follows a tag's beginning."""
        ends = form.get("end")
        ends = ends if isinstance(ends, list) else [ends]
        if not ends or not all(isinstance(end, str) for end in ends):
            raise self._wrong(f"{where}.end", "must be a string or a list of strings")
        content = form.get("content")
        if isinstance(content, dict) and content.get("type") == "any_text" and all(ends):
            return f"({' | '.join(self._text_until(end) for end in ends)})"
        inner = self.place(content, f"{where}.content", depth + 1)
        closing = " | ".join(quoted(end) for end in ends)
        return f"{inner} ({closing})"

    def _triggered_tags(self, form: dict[str, Any], where: str, depth: int) -> str:
        """Free text; behind a trigger, which it cannot pass over, one of its tags."""
        if form.get("excludes"):
            raise self._wrong(f"{where}.excludes", "is not supported")
        triggers = self._list(form, "triggers", where)
        if not all(isinstance(trigger, str) and trigger for trigger in triggers):
            raise self._wrong(f"{where}.triggers", "must be a list of non-empty strings")
        rests: dict[str, list[str]] = {trigger: [] for trigger in triggers}
        for i, tag in enumerate(self._list(form, "tags", where)):
            place = f"{where}.tags[{i}]"
            begin = self._text(tag, "begin", place)
            trigger = next((t for t in triggers if begin.startswith(t)), None)
            if trigger is None:
                raise self._wrong(f"{place}.begin", "must begin with one of the triggers")
            head = begin[len(trigger) :]
            rest = self._tag_rest(tag, place, depth + 1)
            rests[trigger].append(f"{quoted(head)} {rest}" if head else rest)
        found = [
            f"{self._text_until(trigger)} ({' | '.join(rest)})"
            for trigger, rest in rests.items()
            if rest
        ]
        tagged, text = self._rule(" | ".join(found)), self._rule(_ANY_TEXT)
        if form.get("stop_after_first"):
            return tagged if form.get("at_least_one") else f"({tagged} | {text})"
        return f"({tagged}{'+' if form.get('at_least_one') else '*'} {text})"

    def _tags_with_separator(self, form: dict[str, Any], where: str, depth: int) -> str:
        tags = self._list(form, "tags", where)
        placed = [self._tag(t, f"{where}.tags[{i}]", depth + 1) for i, t in enumerate(tags)]
        tag = self._rule(" | ".join(placed))
        separator = form.get("separator", "")
        if not isinstance(separator, str):
            raise self._wrong(f"{where}.separator", "must be a string")
        one = tag
        if not form.get("stop_after_first"):
            one = f"({tag} ({quoted(separator)} {tag})*)" if separator else f"{tag}+"
        return one if form.get("at_least_one") else f"({one})?"

    def _text_until(self, end: str) -> str:
        return self._rule(f"{_ANY_TEXT} {quoted(end)}", "[lazy]")

    def _rule(self, body: str, attributes: str = "") -> str:
        name = f"r{len(self.lines)}"
        self.lines.append(f"{name}{attributes}: {body}")
        return name

    def _text(self, form: Any, key: str, where: str) -> str:
        value = form.get(key) if isinstance(form, dict) else None
        if not isinstance(value, str) or not value:
            raise self._wrong(f"{where}.{key}", "must be a non-empty string")
        return value

    def _list(self, form: dict[str, Any], key: str, where: str) -> Sequence[Any]:
        value = form.get(key)
        if not isinstance(value, list) or not value:
            raise self._wrong(f"{where}.{key}", "must be a list that is not empty")
        return value

    def _wrong(self, where: str, problem: str) -> InvalidRequestError:
        return InvalidRequestError(f"{self._param}.{where} {problem}.", param=self._param)


def _is_text_before(before: Any, element: Any) -> bool:
    return (
        isinstance(before, dict)
        and before.get("type") == "any_text"
        and isinstance(element, dict)
        and element.get("type") == "const_string"
    )
