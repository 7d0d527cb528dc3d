"""The formats of tool calls that are known, under the names that vLLM gives their parsers."""

import re

from gateway.parsers.gemma_calls import GemmaSyntax
from gateway.parsers.json_calls import JsonSyntax
from gateway.parsers.mistral import MistralSyntax
from gateway.parsers.named_calls import NamedSyntax
from gateway.parsers.pythonic_calls import PythonicSyntax
from gateway.parsers.tagged_calls import TaggedSyntax
from gateway.parsers.tool_format import ToolFormat

_JSON = JsonSyntax()
_LLAMA_JSON = JsonSyntax(arguments_key="parameters")

# A model of which nothing is known: JSON as the whole answer, or between the usual marks.
GENERIC = ToolFormat(
    "json",
    _JSON,
    marks=("<tool_call>",),
    end_marks=("</tool_call>",),
    bare_begins="{[",
    opening="[",
    between=", ",
    closing="]",
)
HERMES = ToolFormat(
    "hermes",
    _JSON,
    marks=("<tool_call>",),
    end_marks=("</tool_call>",),
    opening="<tool_call>\n",
    between="\n</tool_call>\n<tool_call>\n",
    closing="\n</tool_call>",
)
# `<|python_tag|>` announces code as well, which no reader takes.
LLAMA = ToolFormat(
    "llama3_json", _LLAMA_JSON, marks=("<|python_tag|>",), bare_begins="{[", between="; "
)
PYTHONIC = ToolFormat(
    "pythonic",
    PythonicSyntax(),
    marks=("<|python_start|>", "<|python_tag|>"),
    end_marks=("<|python_end|>",),
    bare_begins="[",
    opening="[",
    between=", ",
    closing="]",
)
OLMO3 = ToolFormat(
    "olmo3",
    PythonicSyntax(opening="", closing="</function_calls>", separator=""),
    marks=("<function_calls>",),
    opening="<function_calls>",
    between="\n",
    closing="</function_calls>",
)
LFM2 = ToolFormat(
    "lfm2",
    PythonicSyntax(),
    marks=("<|tool_call_start|>",),
    end_marks=("<|tool_call_end|>",),
    opening="<|tool_call_start|>[",
    between=", ",
    closing="]<|tool_call_end|>",
)
MISTRAL = ToolFormat(
    "mistral",
    MistralSyntax(writes_names=False),
    marks=("[TOOL_CALLS]",),
    inner_marks=("[CALL_ID]", "[ARGS]"),
    opening="[TOOL_CALLS][",
    between=", ",
    closing="]",
    call_ids="mistral",
)
MISTRAL_NAMED = ToolFormat(
    "mistral",
    MistralSyntax(writes_names=True),
    marks=("[TOOL_CALLS]",),
    inner_marks=("[CALL_ID]", "[ARGS]"),
    opening="[TOOL_CALLS]",
    between="[TOOL_CALLS]",
    call_ids="mistral",
)

_DEEPSEEK_BEGIN = "<｜tool▁calls▁begin｜>"
_DEEPSEEK_CALL = "<｜tool▁call▁begin｜>"
_DEEPSEEK_CALL_END = "<｜tool▁call▁end｜>"
_DEEPSEEK_END = "<｜tool▁calls▁end｜>"
_DEEPSEEK_SEPARATOR = "<｜tool▁sep｜>"
# The kind, the name, and the arguments in a fence.
DEEPSEEK_V3 = ToolFormat(
    "deepseek_v3",
    NamedSyntax(
        re.compile(rf"\s*\w*\s*{_DEEPSEEK_SEPARATOR}\s*(?P<name>[^\s{{`]+)\s*(?:```(?:json)?\s*)?"),
        before_name="function" + _DEEPSEEK_SEPARATOR,
        after_name="\n```json\n",
        after_arguments="\n```",
    ),
    marks=(_DEEPSEEK_BEGIN + _DEEPSEEK_CALL, _DEEPSEEK_CALL),
    end_marks=(f"\n```{_DEEPSEEK_CALL_END}", _DEEPSEEK_CALL_END, _DEEPSEEK_END),
    inner_marks=(_DEEPSEEK_SEPARATOR,),
    opening=_DEEPSEEK_BEGIN + _DEEPSEEK_CALL,
    between=f"{_DEEPSEEK_CALL_END}\n{_DEEPSEEK_CALL}",
    closing=_DEEPSEEK_CALL_END + _DEEPSEEK_END,
)
DEEPSEEK_V31 = ToolFormat(
    "deepseek_v31",
    NamedSyntax(
        re.compile(rf"\s*(?P<name>[^\s{{｜]+)\s*{_DEEPSEEK_SEPARATOR}\s*"),
        after_name=_DEEPSEEK_SEPARATOR,
    ),
    marks=(_DEEPSEEK_BEGIN + _DEEPSEEK_CALL, _DEEPSEEK_CALL),
    end_marks=(_DEEPSEEK_CALL_END, _DEEPSEEK_END),
    inner_marks=(_DEEPSEEK_SEPARATOR,),
    opening=_DEEPSEEK_BEGIN + _DEEPSEEK_CALL,
    between=_DEEPSEEK_CALL_END + _DEEPSEEK_CALL,
    closing=_DEEPSEEK_CALL_END + _DEEPSEEK_END,
)
_DSML = "｜DSML｜"
DEEPSEEK_V32 = ToolFormat(
    "deepseek_v32",
    TaggedSyntax(
        name_end='">',
        key_begin=f'<{_DSML}parameter name="',
        key_end='">',
        text_key_end='" string="true">',
        json_key_end='" string="false">',
        value_end=f"</{_DSML}parameter>",
        call_end=f"</{_DSML}invoke>",
        breaks="\n",
    ),
    marks=(
        f'<{_DSML}function_calls>\n<{_DSML}invoke name="',
        f'<{_DSML}function_calls><{_DSML}invoke name="',
        f'<{_DSML}invoke name="',
    ),
    end_marks=(f"</{_DSML}function_calls>",),
    inner_marks=(_DSML,),
    opening=f'<{_DSML}function_calls>\n<{_DSML}invoke name="',
    between=f'\n<{_DSML}invoke name="',
    closing=f"\n</{_DSML}function_calls>",
)


def _glm(name: str, breaks: str) -> ToolFormat:
    return ToolFormat(
        name,
        TaggedSyntax(
            name_end="",
            key_begin="<arg_key>",
            key_end="</arg_key>",
            value_begin=f"{breaks}<arg_value>",
            value_end="</arg_value>",
            call_end="</tool_call>",
            breaks=breaks,
        ),
        marks=("<tool_call>",),
        end_marks=("</tool_call>",),
        inner_marks=("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
        opening="<tool_call>",
        between=f"{breaks}<tool_call>",
    )


GLM45 = _glm("glm45", "\n")
GLM47 = _glm("glm47", "")


def _function_tags(name: str, section: str, value_breaks: str) -> ToolFormat:
    begin, end = f"<{section}>", f"</{section}>"
    return ToolFormat(
        name,
        TaggedSyntax(
            name_end=">",
            key_begin="<parameter=",
            key_end=">",
            value_end="</parameter>",
            call_end="</function>",
            breaks="\n",
            value_breaks=value_breaks,
        ),
        marks=(f"{begin}\n<function=", f"{begin}<function=", "<function="),
        end_marks=(end,),
        inner_marks=("</parameter>", "</function>"),
        opening=f"{begin}\n<function=",
        between=f"\n{end}\n{begin}\n<function=",
        closing=f"\n{end}",
    )


QWEN3_CODER = _function_tags("qwen3_coder", "tool_call", "\n")
SEED_OSS = _function_tags("seed_oss", "seed:tool_call", "")
MINIMAX_M2 = ToolFormat(
    "minimax_m2",
    TaggedSyntax(
        name_end='">',
        key_begin='<parameter name="',
        key_end='">',
        value_end="</parameter>",
        call_end="</invoke>",
        breaks="\n",
    ),
    marks=(
        '<minimax:tool_call>\n<invoke name="',
        '<minimax:tool_call><invoke name="',
        '<invoke name="',
    ),
    end_marks=("</minimax:tool_call>",),
    inner_marks=("</parameter>", "</invoke>"),
    opening='<minimax:tool_call>\n<invoke name="',
    between='\n<invoke name="',
    closing="\n</minimax:tool_call>",
)
KIMI_K2 = ToolFormat(
    "kimi_k2",
    NamedSyntax(
        re.compile(
            r"\s*(?:functions\.)?(?P<name>[^\s{<:]+)(?::\d+)?\s*<\|tool_call_argument_begin\|>\s*"
        ),
        before_name="functions.",
        after_name=":0<|tool_call_argument_begin|>",
    ),
    marks=("<|tool_calls_section_begin|><|tool_call_begin|>", "<|tool_call_begin|>"),
    end_marks=("<|tool_call_end|>", "<|tool_calls_section_end|>"),
    inner_marks=("<|tool_call_argument_begin|>",),
    opening="<|tool_calls_section_begin|><|tool_call_begin|>",
    between="<|tool_call_end|><|tool_call_begin|>",
    closing="<|tool_call_end|><|tool_calls_section_end|>",
)


def _listed(name: str, mark: str, *other_marks: str, end: str = "") -> ToolFormat:
    """A JSON list behind a mark."""
    return ToolFormat(
        name,
        _JSON,
        marks=(mark, *other_marks),
        end_marks=(end,) if end else (),
        opening=f"{mark}[",
        between=", ",
        closing=f"]{end}",
    )


GRANITE_20B = ToolFormat(
    "granite-20b-fc",
    _JSON,
    marks=("<function_call>",),
    opening="<function_call> ",
    between=" <function_call> ",
)
GRANITE = _listed("granite", "<|tool_call|>", "<tool_call>")
PHI4 = ToolFormat(
    "phi4_mini_json",
    _JSON,
    marks=("functools", "<|tool_call|>"),
    end_marks=("<|/tool_call|>",),
    opening="functools[",
    between=", ",
    closing="]",
)
JAMBA = _listed("jamba", "<tool_calls>", end="</tool_calls>")
NEMOTRON = _listed("nemotron_json", "<TOOLCALL>", end="</TOOLCALL>")
INTERNLM = ToolFormat(
    "internlm",
    _LLAMA_JSON,
    marks=("<|action_start|><|plugin|>", "<|action_start|> <|plugin|>"),
    end_marks=("<|action_end|>",),
    opening="<|action_start|><|plugin|>\n",
    closing="<|action_end|>",
    max_calls=1,
)
COHERE = ToolFormat(
    "cohere_command3",
    JsonSyntax("tool_name", "parameters", other_fields='"tool_call_id": "0", '),
    marks=("<|START_ACTION|>",),
    end_marks=("<|END_ACTION|>",),
    opening="<|START_ACTION|>[\n    ",
    between=",\n    ",
    closing="\n]<|END_ACTION|>",
)
GEMMA4 = ToolFormat(
    "gemma4",
    GemmaSyntax(text_mark='<|"|>'),
    marks=("<|tool_call>",),
    end_marks=("<tool_call|>", "<|tool_response>"),
    inner_marks=('<|"|>',),
    opening="<|tool_call>",
    between="<tool_call|><|tool_call>",
    closing="<tool_call|>",
)
FUNCTION_GEMMA = ToolFormat(
    "functiongemma",
    GemmaSyntax(text_mark="<escape>"),
    marks=("<start_function_call>",),
    end_marks=("<end_function_call>", "<start_function_response>"),
    inner_marks=("<escape>",),
    opening="<start_function_call>",
    between="<end_function_call><start_function_call>",
    closing="<end_function_call>",
)

ALL = (
    *(GENERIC, HERMES, LLAMA, PYTHONIC, OLMO3, LFM2, MISTRAL, MISTRAL_NAMED),
    *(DEEPSEEK_V3, DEEPSEEK_V31, DEEPSEEK_V32, GLM45, GLM47, QWEN3_CODER, SEED_OSS, MINIMAX_M2),
    *(KIMI_K2, GRANITE, GRANITE_20B, PHI4, JAMBA, NEMOTRON, INTERNLM, COHERE),
    *(GEMMA4, FUNCTION_GEMMA),
)
