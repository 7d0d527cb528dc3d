"""The body of POST /v1/chat/completions: pydantic checks shapes, `check_rules` the rest."""

import contextlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from gateway.errors import InvalidRequestError
from gateway.schemas.common import Bool, Int, SamplingFields

_MEDIA_TYPES = frozenset(
    {"image_url", "image", "input_image", "input_audio", "audio_url", "video_url", "file"}
)


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
MAX_THINKING_TOKENS = 1_000_000


class ContentPart(BaseModel):
    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCall(BaseModel):
    name: str
    arguments: str | dict[str, Any] | None = None


class ToolCall(BaseModel):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(BaseModel):
    role: str = Field(min_length=1, max_length=64)
    content: str | Annotated[list[str | ContentPart], Field(fail_fast=True)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None

    def text(self) -> str:
        """All its text parts."""
        if not isinstance(self.content, list):
            return self.content or ""
        return "".join(part if isinstance(part, str) else part.text or "" for part in self.content)

    def texts(self, where: str, model: str) -> str | list[str] | None:
        """Raises: InvalidRequestError for parts that are not text."""
        if not isinstance(self.content, list):
            return self.content
        return [
            _part_text(part, f"{where}.content[{place}]", model)
            for place, part in enumerate(self.content)
        ]


class FunctionDefinition(BaseModel):
    name: str = Field(min_length=1, max_length=128)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Bool | None = None


class Tool(BaseModel):
    type: Literal["function"]
    function: FunctionDefinition


class NamedTool(BaseModel):
    type: Literal["function"]
    function: FunctionCall


class ChatRequest(SamplingFields):
    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1)]
    max_completion_tokens: Int | None = Field(None, ge=0)
    logprobs: Bool | None = None
    top_logprobs: Int | None = Field(None, ge=0)
    tools: Annotated[list[Tool], Field(fail_fast=True, min_length=1, max_length=512)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: Bool | None = None
    add_generation_prompt: Bool = True
    continue_final_message: Bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Effort | None = None
    include_reasoning: Bool = True
    thinking_token_budget: Int | None = Field(None, ge=-1, le=MAX_THINKING_TOKENS)  # -1: no limit
    max_thinking_tokens: Int | None = Field(None, ge=-1, le=MAX_THINKING_TOKENS)

    def check_rules(self) -> None:
        super().check_rules()
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequestError(
                "top_logprobs can only be given when `logprobs` is true.", param="top_logprobs"
            )
        if self.add_generation_prompt and self.continue_final_message:
            raise InvalidRequestError(
                "continue_final_message and add_generation_prompt cannot both be true.",
                param="continue_final_message",
            )
        if self.max_output_tokens == 0:
            name = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
            raise InvalidRequestError(f"{name} must be at least 1, got 0.", param=name)
        self._check_tool_choice()

    def _check_tool_choice(self) -> None:
        if self.tool_choice in (None, "none"):
            return
        if self.tools is None:
            raise InvalidRequestError(
                "tool_choice is only allowed when `tools` are given.", param="tool_choice"
            )
        if isinstance(self.tool_choice, NamedTool):
            name = self.tool_choice.function.name
            if all(tool.function.name != name for tool in self.tools):
                raise InvalidRequestError(
                    f"tool_choice names the function '{name[:128]}', which is not among `tools`.",
                    param="tool_choice",
                )

    @property
    def uses_tools(self) -> bool:
        return self.tools is not None and self.tool_choice != "none"

    @property
    def forces_call(self) -> bool:
        return isinstance(self.tool_choice, NamedTool) or self.tool_choice == "required"

    @property
    def thinking_budget(self) -> int | None:
        given = self.thinking_token_budget
        if given is None:
            given = self.max_thinking_tokens
        return None if given == -1 else given

    @property
    def max_output_tokens(self) -> int | None:
        given = self.max_completion_tokens
        return self.max_tokens if given is None else given

    def template_messages(self, model: str) -> list[dict[str, Any]]:
        """The messages as chat templates expect them: texts, and tool arguments as objects.

        Raises: InvalidRequestError.
        """
        return [
            template_message(message, f"messages[{place}]", model)
            for place, message in enumerate(self.messages)
        ]

    def template_tools(self) -> list[dict[str, Any]] | None:
        if self.tools is None or self.tool_choice == "none":
            return None
        return [tool.model_dump(exclude_none=True) for tool in self.tools]

    def template_variables(self) -> dict[str, Any]:
        """An effort is told under all names that templates know of it."""
        variables = dict(self.chat_template_kwargs or {})
        effort = self.reasoning_effort
        if effort is not None:
            variables.setdefault("enable_thinking", effort != "none")
            variables.setdefault("thinking", effort != "none")
            if effort != "none":
                variables.setdefault("reasoning_effort", effort)
        return variables


def _part_text(part: str | ContentPart, where: str, model: str) -> str:
    if isinstance(part, str):
        return part
    if part.type in _MEDIA_TYPES:
        raise InvalidRequestError(
            f"The model `{model}` takes text only, but {where} is of type '{part.type}'.",
            param=where,
        )
    text = part.refusal if part.type == "refusal" else part.text
    if part.type not in ("text", "input_text", "output_text", "refusal") or text is None:
        raise InvalidRequestError(
            f"{where} must be of type 'text' and have a `text`, got type '{part.type[:64]}'.",
            param=where,
        )
    return text


def template_message(message: ChatMessage, where: str, model: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": message.role, "content": message.texts(where, model)}
    for name in ("name", "tool_call_id"):
        value = getattr(message, name)
        if value is not None:
            fields[name] = value
    reasoning = message.reasoning if message.reasoning is not None else message.reasoning_content
    if reasoning is not None:
        fields |= {"reasoning": reasoning, "reasoning_content": reasoning}
    if message.tool_calls:
        fields["tool_calls"] = [_template_call(call) for call in message.tool_calls]
    return fields


def _template_call(call: ToolCall) -> dict[str, Any]:
    arguments: Any = call.function.arguments or {}
    if isinstance(arguments, str):
        # What a model wrote wrongly, or nested beyond the interpreter's reach, is what it wrote.
        with contextlib.suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
    fields = {"type": "function", "function": {"name": call.function.name, "arguments": arguments}}
    return fields if call.id is None else {"id": call.id, **fields}
