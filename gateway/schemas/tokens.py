"""The bodies of /tokenize and /detokenize: vLLM's, which several tools speak."""

from typing import Annotated, Any

from pydantic import BaseModel, Field

from gateway.errors import InvalidRequestError
from gateway.schemas.chat import ChatMessage, Tool, template_message
from gateway.schemas.common import Bool, TokenIds
from gateway.text.chat_template import ChatOptions


class TokenizeRequest(BaseModel):
    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1)] | None = None
    add_special_tokens: Bool | None = None
    return_token_strs: Bool = False
    add_generation_prompt: Bool = True
    continue_final_message: Bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True, min_length=1)] | None = None

    def check_rules(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequestError(
                "Give exactly one of `prompt` and `messages`.", param="prompt"
            )
        if self.add_generation_prompt and self.continue_final_message:
            raise InvalidRequestError(
                "continue_final_message and add_generation_prompt cannot both be true.",
                param="continue_final_message",
            )

    def template_messages(self, model: str) -> list[dict[str, Any]]:
        """Raises: InvalidRequestError."""
        return [
            template_message(message, f"messages[{place}]", model)
            for place, message in enumerate(self.messages or [])
        ]

    def chat_options(self) -> ChatOptions:
        tools = [tool.model_dump(exclude_none=True) for tool in self.tools or []]
        return ChatOptions(
            tools=tools or None,
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            template_kwargs=self.chat_template_kwargs or {},
        )


class DetokenizeRequest(BaseModel):
    model: str | None = None
    tokens: TokenIds
    skip_special_tokens: Bool = False
