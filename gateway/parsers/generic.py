"""Any model of which nothing is known: a JSON object or list with names and arguments as the whole
answer, or between the marks that most models have seen."""

from gateway.parsers.text_parser import ToolFormat

GENERIC = ToolFormat("json", marks=("<tool_call>",), end_mark="</tool_call>", takes_bare=True)
