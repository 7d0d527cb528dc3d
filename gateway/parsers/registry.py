"""Which formats a model uses, told by its chat templates and its vocabulary, or by name.

A new tool format is an entry in formats.py and a line in `_TOOL_TRACES`; a new way of thinking one
in reasoning_formats.py and a line in `_REASONING_TRACES`.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from gateway.parsers import formats, reasoning_formats
from gateway.parsers.harmony import HARMONY, HARMONY_CALLS
from gateway.parsers.reasoning import ReasoningFormat
from gateway.parsers.tool_format import ToolFormat

# What a template says of calls, all of it; the more particular ones first.
_TOOL_TRACES: tuple[tuple[tuple[str, ...], ToolFormat], ...] = (
    (("<|channel|>", "<|message|>"), HARMONY_CALLS),
    (("｜DSML｜",), formats.DEEPSEEK_V32),
    (("<｜tool▁calls▁begin｜>", "```json"), formats.DEEPSEEK_V3),
    (("<｜tool▁calls▁begin｜>",), formats.DEEPSEEK_V31),
    (("<|tool_calls_section_begin|>",), formats.KIMI_K2),
    (("minimax:tool_call", "<invoke name="), formats.MINIMAX_M2),
    (("seed:tool_call", "<function="), formats.SEED_OSS),
    (("<arg_key>", "</arg_key><arg_value>"), formats.GLM47),
    (("<arg_key>",), formats.GLM45),
    (("<function=", "<parameter="), formats.QWEN3_CODER),
    (("[TOOL_CALLS]", "[ARGS]"), formats.MISTRAL_NAMED),
    (("[TOOL_CALLS]",), formats.MISTRAL),
    (("<|START_ACTION|>", "tool_name"), formats.COHERE),
    (("<TOOLCALL>",), formats.NEMOTRON),
    (("<|tool_call>call:",), formats.GEMMA4),
    (("<start_function_call>call:",), formats.FUNCTION_GEMMA),
    (("<|tool_call_start|>",), formats.LFM2),
    (("<|tool_list_start|>",), formats.LFM2),
    (("<function_calls>",), formats.OLMO3),
    (("<|action_start|>", "<|plugin|>"), formats.INTERNLM),
    (("<tool_calls>",), formats.JAMBA),
    (("functools[",), formats.PHI4),
    (("<|tool_call|>", "<|/tool_call|>"), formats.PHI4),
    (("<|tool_call|>",), formats.GRANITE),
    # Other text between marks that are known: better read as nothing in particular.
    (("<function=",), formats.GENERIC),
    (("<tool_call>",), formats.HERMES),
    (("[func_name1(params_name1",), formats.PYTHONIC),
    (("<|python_start|>",), formats.PYTHONIC),
    (("<|python_tag|>",), formats.LLAMA),
    (('"parameters": dictionary of argument name',), formats.LLAMA),
)
# Special tokens that tell as much, for a model whose template says nothing of tools.
_TOKEN_TRACES: tuple[tuple[str, ToolFormat], ...] = (
    ("<｜tool▁calls▁begin｜>", formats.DEEPSEEK_V3),
    ("<|tool_calls_section_begin|>", formats.KIMI_K2),
    ("[TOOL_CALLS]", formats.MISTRAL),
    ("<|START_ACTION|>", formats.COHERE),
    ("<arg_key>", formats.GLM45),
    ("<|tool_call_start|>", formats.LFM2),
    ("<|tool_call>", formats.GEMMA4),
    ("<start_function_call>", formats.FUNCTION_GEMMA),
    ("<tool_call>", formats.HERMES),
    ("<|python_tag|>", formats.LLAMA),
)
_REASONING_TRACES: tuple[tuple[str, ReasoningFormat], ...] = (
    ("<seed:think>", reasoning_formats.SEED_OSS),
    ("[THINK]", reasoning_formats.MISTRAL),
    ("<|START_THINKING|>", reasoning_formats.COHERE),
    ("<|channel>thought", reasoning_formats.GEMMA4),
    ("<response></response>", reasoning_formats.GRANITE33),
    ("</think>", reasoning_formats.THINK),
    ("<think>", reasoning_formats.THINK),
    ("Here is my thought process:", reasoning_formats.GRANITE),
)
_THINK = reasoning_formats.THINK
# Models that begin a call where they should have ended their thoughts.
_THINKS_LIKE = {
    formats.HERMES.name: reasoning_formats.QWEN3,
    formats.QWEN3_CODER.name: reasoning_formats.QWEN3,
    formats.KIMI_K2.name: reasoning_formats.KIMI_K2,
}
_TOOL_ALIASES = {
    "llama3": formats.LLAMA,
    "llama4_json": formats.LLAMA,
    "llama4_pythonic": formats.PYTHONIC,
    "deepseek_r1": formats.DEEPSEEK_V3,
    "qwen3_xml": formats.QWEN3_CODER,
    "mimo": formats.QWEN3_CODER,
    "step3p5": formats.QWEN3_CODER,
    "nemotron_v3": formats.QWEN3_CODER,
    "granite4": formats.HERMES,
    "granite-20b-fc": formats.GRANITE_20B,
    "hunyuan_a13b": formats.JAMBA,
    "cohere_command4": formats.COHERE,
    "gpt_oss": HARMONY_CALLS,
    "xlam": formats.GENERIC,
}
_REASONING_ALIASES = {
    **dict.fromkeys(("mimo", "qwen3_5", "step3p5", "nemotron_v3"), reasoning_formats.QWEN3),
    **dict.fromkeys(
        ("deepseek_v3", "glm45", "glm47", "olmo3", "ernie45", "hunyuan_a13b", "holo2", "step3"),
        reasoning_formats.THINK,
    ),
    "minimax_m2": reasoning_formats.DEEPSEEK_R1,
    "cohere_command4": reasoning_formats.COHERE,
    "gpt_oss": HARMONY,
}


_TOOL_FORMATS = {**_TOOL_ALIASES, **{one.name: one for one in (*formats.ALL, HARMONY_CALLS)}}
_REASONING_FORMATS = {
    **_REASONING_ALIASES,
    **{one.name: one for one in (*reasoning_formats.ALL, HARMONY)},
}
# protos/answer_parsers.py lists both for the launcher.
TOOL_PARSER_NAMES = tuple(sorted(_TOOL_FORMATS))
REASONING_PARSER_NAMES = tuple(sorted(_REASONING_FORMATS))


@dataclass(frozen=True, slots=True)
class ParserNames:
    """What the operator decided. "auto": as detected; "none": no thoughts are looked for."""

    tool_call: str = "auto"
    reasoning: str = "auto"


AUTO = ParserNames()


def choose_formats(
    names: ParserNames, templates: Iterable[str], added_tokens: Collection[str]
) -> tuple[ToolFormat, ReasoningFormat | None]:
    """`added_tokens`: the texts of the tokenizer's added tokens."""
    sources = list(templates)
    tool_format = detect_format(sources, added_tokens)
    if names.tool_call not in ("auto", tool_format.name):
        tool_format = _TOOL_FORMATS[names.tool_call]
    reasoning = _REASONING_FORMATS.get(names.reasoning)
    if reasoning is HARMONY or tool_format.has_channels:  # neither works without the other
        return HARMONY_CALLS, HARMONY
    if names.reasoning == "auto":
        reasoning = detect_reasoning(sources, tool_format)
    return tool_format, reasoning


def detect_format(templates: Iterable[str], added_tokens: Collection[str]) -> ToolFormat:
    sources = list(templates)
    for traces, tool_format in _TOOL_TRACES:
        if any(all(trace in source for trace in traces) for source in sources):
            return tool_format
    for token, tool_format in _TOKEN_TRACES:
        if token in added_tokens:
            return tool_format
    return formats.GENERIC


def detect_reasoning(templates: Iterable[str], tool_format: ToolFormat) -> ReasoningFormat | None:
    """None: nothing says that the model thinks."""
    if tool_format.has_channels:
        return HARMONY
    sources = list(templates)
    for trace, found in _REASONING_TRACES:
        if any(trace in source for source in sources):
            return _THINKS_LIKE.get(tool_format.name, found) if found is _THINK else found
    return None
