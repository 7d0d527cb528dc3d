"""What an answer must be, as a grammar for the engine: from response_format, structured_outputs and
forced tool calls.

Here only texts are made, and checked for their size: the GrammarChecker tries them, so that engines
see only what passed. Pure functions, run where the rest of a plan is made.
"""

from gateway.errors import InvalidRequestError
from gateway.parsers.tool_format import ToolFormat
from gateway.schemas.chat import ChatRequest
from gateway.schemas.common import SamplingFields
from gateway.structured_outputs import answer_grammar, format_grammar
from gateway.text.mark_tokens import NO_MARKS, MarkTokens
from gateway.tokens import Grammar
from gateway.tool_grammar import tools_grammar


def grammar_of(
    body: SamplingFields, tool_format: ToolFormat, marks: MarkTokens = NO_MARKS
) -> Grammar | None:
    """Where the model may choose between a call and an answer, it is held to the format of either
    only if one was asked for.

    Raises: InvalidRequestError.
    """
    if not isinstance(body, ChatRequest) or not body.uses_tools:
        return answer_grammar(body)
    constraint, param = body.constraint
    if constraint is not None:
        raise InvalidRequestError(
            f"{param} cannot be given with tools, unless tool_choice is 'none'.", param=param
        )
    answer = None if body.forces_call else format_grammar(body.response_format)
    return tools_grammar(body, answer, tool_format, marks)
