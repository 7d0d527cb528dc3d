"""Answers as models write them, with what they mean: (format, text, content, calls)."""

from gateway.parsers.formats import FUNCTION_GEMMA, GEMMA4, GENERIC, HERMES, LLAMA, MISTRAL

ONE = ("add", '{"a": 1, "b": [2, {"c": "}]"}]}')
CITY = ("get_weather", '{"city": "São \\"Paulo\\" \\u00e9", "unit": null}')
NONE = ("add", "{}")


def _object(call: tuple[str, str], key: str = "arguments") -> str:
    return f'{{"name": "{call[0]}", "{key}": {call[1]}}}'


def _hermes(call: tuple[str, str]) -> str:
    return f"<tool_call>\n{_object(call)}\n</tool_call>"


RECORDINGS = [
    # calls
    (HERMES, _hermes(ONE), "", [ONE]),
    (HERMES, f"Let me look.\n\n{_hermes(CITY)}", "Let me look.", [CITY]),
    (HERMES, f"{_hermes(ONE)}\n{_hermes(CITY)}\n", "", [ONE, CITY]),
    (
        HERMES,
        f"{_hermes(ONE)} then <b> and {_hermes(CITY)} done",
        "then <b> and done",
        [ONE, CITY],
    ),
    (HERMES, f'<tool_call>{{"arguments": {CITY[1]}, "name": "get_weather"}}', "", [CITY]),
    (HERMES, '<tool_call>{"id": 7, "name": "add", "x": [{}], "arguments": {}}', "", [NONE]),
    (HERMES, '<tool_call>{"name": "add"}</tool_call>', "", [NONE]),
    (LLAMA, _object(ONE, "parameters"), "", [ONE]),
    (LLAMA, "<|python_tag|>" + _object(CITY, "parameters"), "", [CITY]),
    (LLAMA, f"\n{_object(ONE, 'parameters')}; {_object(CITY, 'parameters')};", "", [ONE, CITY]),
    (LLAMA, f"{_object(NONE, 'parameters')}\n{_object(ONE, 'parameters')}", "", [NONE, ONE]),
    (MISTRAL, f"[TOOL_CALLS][{_object(ONE)}, {_object(CITY)}]", "", [ONE, CITY]),
    (MISTRAL, f"Well [1].[TOOL_CALLS] [{_object(ONE)}]", "Well [1].", [ONE]),
    (MISTRAL, f"[TOOL_CALLS]add[ARGS]{ONE[1]}", "", [ONE]),
    (
        MISTRAL,
        f"[TOOL_CALLS]add{ONE[1]}[TOOL_CALLS]get_weather[CALL_ID]aB3[ARGS]{CITY[1]}",
        "",
        [ONE, CITY],
    ),
    (GENERIC, f"[{_object(ONE)},{_object(NONE)}]", "", [ONE, NONE]),
    (GENERIC, '{"name": "add", "arguments": "{\\"a\\": 1}"}', "", [("add", '{"a": 1}')]),
    (GENERIC, '{"name": "add", "arguments": null}', "", [NONE]),
    (GENERIC, f"{_object(ONE)} and more", "and more", [ONE]),
    (GEMMA4, '<|tool_call>call:add{a:1,b:[2,{c:<|"|>}]<|"|>}]}<tool_call|>', "", [ONE]),
    (
        GEMMA4,
        'So: <|tool_call>call:get_weather{city:<|"|>a "b", <|<|"|>,unit:None}<tool_call|>'
        '<|tool_call>call:add{}<tool_call|> done',
        "So: done",
        [("get_weather", '{"city": "a \\"b\\", <|", "unit": null}'), NONE],
    ),
    (GEMMA4, '<|tool_call>call: add {"a": -1.5, <|"|>b<|"|>: ["x\\n", ], c:x y}<tool_call|>', "",
     [("add", '{"a": -1.5, "b": ["x\\n"], "c": "x y"}')]),
    (GEMMA4, '<|tool_call>call:get_weather{city:7,loud:<|"|>true<|"|>}', "",
     [("get_weather", '{"city": "7", "loud": true}')]),
    (FUNCTION_GEMMA, "<start_function_call>call:get_weather{city:<escape>Oslo<escape>}"
     "<end_function_call>", "", [("get_weather", '{"city": "Oslo"}')]),
    # cut off
    (GEMMA4, '<|tool_call>call:add{a:1', "1", [("add", '{"a": ')]),
    (GEMMA4, '<|tool_call>call:add{a:1,', "", [("add", '{"a": 1}')]),
    (GEMMA4, '<|tool_call>call:get_weather{city:<|"|>x<|', "<|", [("get_weather", '{"city": "x')]),
    (HERMES, '<tool_call>{"name": "add", "arguments": {"a": "x', "", [("add", '{"a": "x')]),
    (MISTRAL, f"[TOOL_CALLS][{_object(ONE)}, ", "", [ONE]),
    (HERMES, "text <tool_c", "text <tool_c", []),
    (HERMES, '<tool_call>{"name": "ad', '<tool_call>{"name": "ad', []),
    (MISTRAL, "[TOOL_CALLS]get_wea", "[TOOL_CALLS]get_wea", []),
    # no calls at all
    (HERMES, "  plain text <b>  \n", "  plain text <b>  \n", []),
    (LLAMA, ' {"answer": [1, 2.5e3, true]} ', ' {"answer": [1, 2.5e3, true]} ', []),
    (LLAMA, '{"name": "Ada", "age": 36}', '{"name": "Ada", "age": 36}', []),
    (GENERIC, "[1, 2, 3]", "[1, 2, 3]", []),
    (GENERIC, "", "", []),
    # malformed
    (HERMES, "<tool_call>garbage</tool_call> so", "<tool_call>garbage</tool_call> so", []),
    (HERMES, *2 * ('<tool_call>{"name": "rm", "arguments": {}}',), []),
    (HERMES, *2 * ('<tool_call>{"name": "add", "arguments": [1]}',), []),
    (HERMES, f"<tool_call><tool_call>{_object(ONE)}</tool_call>", "<tool_call>", [ONE]),
    (HERMES, '<tool_call>{"name": "add", "arguments": {"a": oops}}', "oops}}", [("add", '{"a": ')]),
    (MISTRAL, "[TOOL_CALLS]rm[ARGS]{}", "[TOOL_CALLS]rm[ARGS]{}", []),
    (MISTRAL, f"[TOOL_CALLS][{_object(ONE)} | x]", "| x]", [ONE]),
    (GEMMA4, *2 * ("<|tool_call>call:rm{}<tool_call|>",), []),
    (GEMMA4, "<|tool_call>call:add{a:}<tool_call|>", "}", [("add", '{"a": ')]),
    (GENERIC, "{name: add}", "{name: add}", []),
]  # fmt: skip
