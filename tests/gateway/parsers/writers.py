"""Answers written as each family of models writes them, from a seed: calls with all kinds of
arguments, text around them, endings that are broken or missing."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from gateway.parsers import formats
from gateway.parsers.harmony import HARMONY_CALLS
from gateway.parsers.tool_format import ToolFormat

TOOLS: dict[str, dict[str, Any]] = {
    "add": {
        "type": "object",
        "properties": {
            "a": {"type": "integer"},
            "b": {"type": "number"},
            "deep": {"type": "object"},
            "list": {"type": "array"},
        },
    },
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "unit": {"anyOf": [{"type": "string", "enum": ["C", "F"]}, {"type": "null"}]},
            "loud": {"type": "boolean"},
            "text": {"type": "string"},
        },
    },
    "now": {"type": "object", "properties": {}},
    "free": {},
}
Call = tuple[str, dict[str, Any]]

_TEXTS = (
    *("Oslo", "São Paulo", "東京 🗼", 'a "quoted" one', "it's", "back\\slash \\n", "two\nlines"),
    *("", " ", "true", "12", "null", "{}", "[1]", "<b>x</b>", "a, b) ]", "}}", "a=1", "é\u0301"),
    *("\n", "\ttab", "```json\n{}\n```", "</tool", "<|end", "<", "：｜"),
)
_BEFORE = (*("", "", "Let me look.\n\n", "I <b>will</b> [1] call {it}: ", "Ja — 好的。\n"),)
_BEHIND = (*("", "", "\n", "\nDone, I <think>.", " and {so} on"),)


@dataclass(frozen=True, slots=True)
class Recording:
    text: str
    content: str | None = None  # None: whatever it is, it must not depend on the cuts
    calls: tuple[Call, ...] | None = None


def recordings(tool_format: ToolFormat, number: int = 50) -> list[Recording]:
    """No two are alike."""
    made: dict[str, Recording] = {}
    for place in count():
        one = _recording(tool_format, place)
        made.setdefault(one.text, one)
        if len(made) == number:
            break
    return list(made.values())


def _recording(tool_format: ToolFormat, place: int) -> Recording:
    random_ = random.Random(f"{tool_format.name} {place}")
    num_calls = 1 if tool_format.max_calls == 1 else random_.choice((1, 1, 1, 2, 3))
    calls = [_call(random_) for _ in range(num_calls)]
    written = write(tool_format, calls)
    may_stand_in_text = bool(tool_format.marks) and not tool_format.has_channels
    before = "" if tool_format.bare_begins or not may_stand_in_text else random_.choice(_BEFORE)
    behind = random_.choice(_BEHIND) if may_stand_in_text else ""
    text = before + written + behind
    match place % 5:
        case 3:  # cut off
            return Recording(text[: random_.randrange(len(text))])
        case 4:  # broken
            at, junk = random_.randrange(len(text)), random_.choice(('"', "}", "<", "", "x", "\n"))
            return Recording(text[:at] + junk + text[at + 1 :])
    content = before.rstrip() + (behind.rstrip() if before else behind.strip())
    return Recording(text, content, tuple(calls))


def _call(random_: random.Random) -> Call:
    name = random_.choice(("add", "get_weather", "get_weather", "now"))
    makers: dict[str, Callable[[], Any]] = {
        "a": lambda: random_.choice((0, -7, 123456789012)),
        "b": lambda: random_.choice((0.5, -1e-3, 2, 1e22)),
        "deep": lambda: {"k": [random_.choice(_TEXTS), None, {"x": {}}], "é": True},
        "list": lambda: random_.choice(([], [1, [2.5, False]], [random_.choice(_TEXTS)])),
        "city": lambda: random_.choice(_TEXTS),
        "text": lambda: random_.choice(_TEXTS),
        "unit": lambda: random_.choice(("C", "F", None)),
        "loud": lambda: random_.choice((True, False)),
    }
    known = list(TOOLS[name]["properties"])
    chosen = random_.sample(known, k=min(len(known), random_.choice((0, 1, 1, 1, 2))))
    return name, {key: makers[key]() for key in chosen}


def write(tool_format: ToolFormat, calls: Sequence[Call]) -> str:
    """As the family's chat templates write them."""
    if tool_format is formats.MISTRAL:
        return "[TOOL_CALLS]" + _list(calls)
    return WRITERS[tool_format.name](calls)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _object(call: Call, key: str = "arguments", name: str = "name") -> str:
    return _json({name: call[0], key: call[1]})


def _list(calls: Sequence[Call], **keys: str) -> str:
    return "[" + ", ".join(_object(call, **keys) for call in calls) + "]"


def _python(call: Call) -> str:
    return f"{call[0]}({', '.join(f'{key}={value!r}' for key, value in call[1].items())})"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else _json(value)


def _function_tags(section: str, around: str) -> Callable[[Sequence[Call]], str]:
    def one(call: Call) -> str:
        values = "".join(
            f"<parameter={key}>{around}{_plain(value)}{around}</parameter>\n"
            for key, value in call[1].items()
        )
        return f"<{section}>\n<function={call[0]}>\n{values}</function>\n</{section}>"

    return lambda calls: "\n".join(map(one, calls))


def _glm(line: str) -> Callable[[Sequence[Call]], str]:
    def one(call: Call) -> str:
        values = "".join(
            f"<arg_key>{key}</arg_key>{line}<arg_value>{_plain(value)}</arg_value>{line}"
            for key, value in call[1].items()
        )
        return f"<tool_call>{call[0]}{line}{values}</tool_call>"

    return lambda calls: line.join(map(one, calls))


def _invokes(tag: str, section: str, *, is_typed: bool) -> Callable[[Sequence[Call]], str]:
    def one(call: Call) -> str:
        values = ""
        for key, value in call[1].items():
            kind = f' string="{_json(isinstance(value, str))}"' if is_typed else ""
            values += f'<{tag}parameter name="{key}"{kind}>{_plain(value)}</{tag}parameter>\n'
        return f'<{tag}invoke name="{call[0]}">\n{values}</{tag}invoke>\n'

    return lambda calls: f"<{section}>\n{''.join(map(one, calls))}</{section}>"


def _deepseek(one: Callable[[Call], str], line: str) -> Callable[[Sequence[Call]], str]:
    return lambda calls: (
        "<｜tool▁calls▁begin｜>"
        + line.join(f"<｜tool▁call▁begin｜>{one(c)}<｜tool▁call▁end｜>" for c in calls)
        + "<｜tool▁calls▁end｜>"
    )


def _kimi(calls: Sequence[Call]) -> str:
    written = (
        f"<|tool_call_begin|>functions.{name}:{place}<|tool_call_argument_begin|>{_json(arguments)}"
        "<|tool_call_end|>"
        for place, (name, arguments) in enumerate(calls)
    )
    return f"<|tool_calls_section_begin|>{''.join(written)}<|tool_calls_section_end|>"


def _harmony(calls: Sequence[Call]) -> str:
    ((name, arguments),) = calls
    return (
        f"<|channel|>analysis<|message|>Hm, {len(arguments)}.<|end|><|start|>assistant"
        f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
        f"{_json(arguments)}<|call|>"
    )


def _gemma(begin: str, mark: str, end: str) -> Callable[[Sequence[Call]], str]:
    def value(one: Any) -> str:
        if isinstance(one, str):
            return f"{mark}{one}{mark}"
        if isinstance(one, dict):
            return f"{{{','.join(f'{key}:{value(inner)}' for key, inner in one.items())}}}"
        return f"[{','.join(map(value, one))}]" if isinstance(one, list) else _json(one)

    return lambda calls: "".join(f"{begin}call:{name}{value(inner)}{end}" for name, inner in calls)


def _cohere(calls: Sequence[Call]) -> str:
    written = (
        "    " + _json({"tool_call_id": str(place), "tool_name": call[0], "parameters": call[1]})
        for place, call in enumerate(calls)
    )
    return "<|START_ACTION|>[\n" + ",\n".join(written) + "\n]<|END_ACTION|>"


WRITERS: dict[str, Callable[[Sequence[Call]], str]] = {
    "json": _list,
    "hermes": lambda calls: "\n".join(f"<tool_call>\n{_object(c)}\n</tool_call>" for c in calls),
    "llama3_json": lambda calls: "; ".join(_object(call, "parameters") for call in calls),
    "pythonic": lambda calls: f"[{', '.join(map(_python, calls))}]",
    "olmo3": lambda c: f"<function_calls>{chr(10).join(map(_python, c))}</function_calls>",
    "lfm2": lambda calls: f"<|tool_call_start|>[{', '.join(map(_python, calls))}]<|tool_call_end|>",
    "mistral": lambda calls: "".join(f"[TOOL_CALLS]{n}[ARGS]{_json(a)}" for n, a in calls),
    "deepseek_v3": _deepseek(
        lambda call: f"function<｜tool▁sep｜>{call[0]}\n```json\n{_json(call[1])}\n```", "\n"
    ),
    "deepseek_v31": _deepseek(lambda call: f"{call[0]}<｜tool▁sep｜>{_json(call[1])}", ""),
    "deepseek_v32": _invokes("｜DSML｜", "｜DSML｜function_calls", is_typed=True),
    "glm45": _glm("\n"),
    "glm47": _glm(""),
    "qwen3_coder": _function_tags("tool_call", "\n"),
    "seed_oss": _function_tags("seed:tool_call", ""),
    "minimax_m2": _invokes("", "minimax:tool_call", is_typed=False),
    "kimi_k2": _kimi,
    "granite": lambda calls: "<|tool_call|>" + _list(calls),
    "granite-20b-fc": lambda calls: " ".join(f"<function_call> {_object(c)}" for c in calls),
    "phi4_mini_json": lambda calls: "functools" + _list(calls),
    "jamba": lambda calls: f"<tool_calls>{_list(calls)}</tool_calls>",
    "nemotron_json": lambda calls: f"<TOOLCALL>{_list(calls)}</TOOLCALL>",
    "internlm": lambda calls: (
        f"<|action_start|><|plugin|>\n{_object(calls[0], 'parameters')}<|action_end|>"
    ),
    "cohere_command3": _cohere,
    "gemma4": _gemma("<|tool_call>", '<|"|>', "<tool_call|>"),
    "functiongemma": _gemma("<start_function_call>", "<escape>", "<end_function_call>"),
    "openai": _harmony,
}
ALL_FORMATS = (*formats.ALL, HARMONY_CALLS)
