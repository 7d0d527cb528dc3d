"""Hermes and Qwen: `<tool_call>` and `</tool_call>` around one JSON object a call."""

from gateway.parsers.text_parser import ToolFormat

HERMES = ToolFormat("hermes", marks=("<tool_call>",), end_mark="</tool_call>")
