"""The ways of thinking that are known, under the names that vLLM gives their parsers."""

from gateway.parsers.reasoning import ReasoningFormat

_BEGIN, _END = "<think>", "</think>"

THINK = ReasoningFormat("think", (_BEGIN,), (_END,))
QWEN3 = ReasoningFormat("qwen3", (_BEGIN,), (_END,), cut_by=("<tool_call>",))
# The model was trained to think always, and older templates do not open it.
DEEPSEEK_R1 = ReasoningFormat("deepseek_r1", (_BEGIN,), (_END,), is_assumed=True)
KIMI_K2 = ReasoningFormat("kimi_k2", (_BEGIN,), (_END,), cut_by=("<|tool_calls_section_begin|>",))
MISTRAL = ReasoningFormat("mistral", ("[THINK]",), ("[/THINK]",))
SEED_OSS = ReasoningFormat("seed_oss", ("<seed:think>",), ("</seed:think>",))
COHERE = ReasoningFormat("cohere_command3", ("<|START_THINKING|>",), ("<|END_THINKING|>",))
GRANITE = ReasoningFormat(
    "granite",
    ("Here is my thought process:", "Here's my thought process:"),
    ("Here is my response:", "Here's my response:"),
)
GRANITE33 = ReasoningFormat(
    "granite33", (_BEGIN,), (_END,), answer_marks=("<response>", "</response>")
)
GEMMA4 = ReasoningFormat("gemma4", ("<|channel>thought",), ("<channel|>",))

ALL = (THINK, QWEN3, DEEPSEEK_R1, KIMI_K2, MISTRAL, SEED_OSS, COHERE, GRANITE, GRANITE33, GEMMA4)
