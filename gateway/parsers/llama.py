"""Llama 3: `{"name": …, "parameters": …}` as the whole answer, or behind `<|python_tag|>`; several
are separated by semicolons."""

from gateway.parsers.text_parser import ToolFormat

LLAMA = ToolFormat("llama3", marks=("<|python_tag|>",), takes_bare=True)
