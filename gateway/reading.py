"""How a chat's answers will be read: for calls, for thoughts, and what holds both to their form.

Pure functions of the request and the model's text side; gateway/planning.py calls them.
"""

from gateway.errors import InvalidRequestError
from gateway.parsers.answer import AnswerReading
from gateway.parsers.reader import ToolReading
from gateway.reasoning_grammar import Thoughts, behind_thoughts
from gateway.schemas.chat import ChatRequest, NamedTool
from gateway.text.model_text import TextModel
from gateway.tokens import Grammar

_HARMONY_EFFORTS = ("low", "medium", "high")


def tool_reading(body: ChatRequest, text: TextModel) -> ToolReading | None:
    """None: no tools, or the client wants none called."""
    if not body.tools or body.tool_choice == "none":
        return None
    tools = {tool.function.name: tool.function.parameters or {} for tool in body.tools}
    forced = body.tool_choice.function.name if isinstance(body.tool_choice, NamedTool) else None
    if forced is not None:
        tools = {forced: tools[forced]}
    takes_many = body.parallel_tool_calls is not False and forced is None
    return ToolReading(text.tool_format, tools, forced, takes_many)


def answer_reading(body: ChatRequest, text: TextModel, prompt: str) -> AnswerReading | None:
    """None: the model does not think. Raises: InvalidRequestError."""
    thinks = text.reasoning_format
    if thinks is None:
        if body.thinking_budget is not None:
            raise InvalidRequestError(
                "thinking_token_budget cannot be kept: this model does not think.",
                param="thinking_token_budget",
            )
        return None
    continued = body.messages[-1].text() if body.continue_final_message else None
    reading = tool_reading(body, text)
    return AnswerReading(
        format=thinks,
        start=thinks.start(prompt, continued),
        tools={} if reading is None else reading.tools,
        is_hidden=not body.include_reasoning,
    )


def check_effort(body: ChatRequest, text: TextModel) -> None:
    """Raises: InvalidRequestError for an effort that the model's template cannot ask for."""
    thinks = text.reasoning_format
    is_limited = thinks is not None and thinks.has_channels
    if is_limited and body.reasoning_effort not in (None, *_HARMONY_EFFORTS):
        raise InvalidRequestError(
            f"reasoning_effort of this model must be one of {', '.join(_HARMONY_EFFORTS)}, "
            f"got '{body.reasoning_effort}'.",
            param="reasoning_effort",
        )


def grammar_behind_thoughts(
    body: ChatRequest,
    text: TextModel,
    eos_token_ids: tuple[int, ...],
    grammar: Grammar | None,
    answer: AnswerReading,
) -> Grammar | None:
    """Raises: InvalidRequestError for a budget that cannot be kept."""
    tool_format = text.tool_format
    thoughts = Thoughts(
        format=answer.format,
        start=answer.start,
        marks=text.marks,
        budget=body.thinking_budget,
        forbidden_ids=eos_token_ids,
        # With tools the grammar has it already, where it belongs.
        lead="" if body.uses_tools else tool_format.before_answer,
    )
    return behind_thoughts(grammar, thoughts)
