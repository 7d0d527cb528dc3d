"""Which format a model writes its calls in: told by its chat templates and its vocabulary.

A new format is a file beside this one and a line in `_TRACES`.
"""

from collections.abc import Collection, Iterable

from gateway.parsers.generic import GENERIC
from gateway.parsers.hermes import HERMES
from gateway.parsers.llama import LLAMA
from gateway.parsers.mistral import MISTRAL
from gateway.parsers.text_parser import ToolFormat

# What a template says of calls, the plainest trace first.
_TRACES: tuple[tuple[str, ToolFormat], ...] = (
    ("[TOOL_CALLS]", MISTRAL),
    ("<tool_call>", HERMES),
    ("<|python_tag|>", LLAMA),
    ('"parameters": dictionary of argument name', LLAMA),
)
# Written like Hermes' from afar, but with other text between the marks.
_OTHER_TRACES = ("<function=", "<arg_key>")


def detect_format(templates: Iterable[str], added_tokens: Collection[str]) -> ToolFormat:
    """`added_tokens`: the texts of the tokenizer's added tokens."""
    sources = list(templates)
    for source in sources:
        if any(trace in source for trace in _OTHER_TRACES):
            return GENERIC
    for trace, tool_format in _TRACES:
        if any(trace in source for source in sources):
            return tool_format
    for trace, tool_format in _TRACES:
        if trace in added_tokens:
            return tool_format
    return GENERIC
