"""A model's chat template: messages in, the prompt's text out.

Takes plain message dicts, knows neither HTTP nor tokens. Whatever a template refuses is the
client's error and names `messages`.

Models without a template (base models such as mpt-7b) get `DEFAULT_TEMPLATE`: a transcript of
"System: …", "User: …" and "Assistant: …" lines that ends with "Assistant:", the form that plain
language models continue most readily. Such a model does not know when its turn ends, so the next
speaker's line (`DEFAULT_STOPS`) ends it, unless the request ignores end-of-sequence tokens.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Template, TemplateError

from gateway.errors import InvalidRequestError
from gateway.text.jinja import iterates_over_content, make_environment

Message = dict[str, Any]

DEFAULT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- message['role'] | capitalize + ': ' + message['content'] | trim -}}"
    "{%- if message['tool_calls'] -%}{{- message['tool_calls'] | tojson -}}{%- endif -%}"
    "{{- '\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}"
)
DEFAULT_STOPS = ("\nUser:", "\nSystem:")

_RESERVED = frozenset(
    {"messages", "tools", "add_generation_prompt", "chat_template", "tokenize"}
    | {"raise_exception", "strftime_now"}
)
# Not whitespace at either end: templates trim contents.
_CONTINUE_MARK = "\x1acontinue-here\x1a"
# What a template can raise besides Jinja's own errors when it meets data it did not expect.
_DATA_ERRORS = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True)
class ChatOptions:
    tools: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)


class ChatTemplate:
    """One compiled template. Immutable; safe from any thread."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Raises: jinja2.TemplateSyntaxError."""
        self._template: Template = make_environment().from_string(source)
        self._special_tokens = dict(special_tokens)
        self._wants_parts = iterates_over_content(source)
        self._knows_developer = "developer" in source
        self._says_thinking = ".thinking" in source

    def render(self, messages: Sequence[Message], options: ChatOptions) -> str:
        """Raises: InvalidRequestError."""
        prepared = [self._prepare(message) for message in messages]
        if options.continue_final_message:
            prepared[-1] = _marked(prepared[-1])
        text = self._render(prepared, options)
        if not options.continue_final_message:
            return text
        head, mark, _ = text.rpartition(_CONTINUE_MARK)
        if not mark:
            raise InvalidRequestError(
                "The chat template leaves out the final message, so it cannot be continued.",
                param="continue_final_message",
            )
        return head

    def _render(self, messages: list[Message], options: ChatOptions) -> str:
        reserved = _RESERVED.intersection(options.template_kwargs)
        if reserved:
            raise InvalidRequestError(
                f"chat_template_kwargs cannot set {', '.join(sorted(reserved))}.",
                param="chat_template_kwargs",
            )
        variables = {
            **self._special_tokens,
            **options.template_kwargs,
            "messages": messages,
            "tools": list(options.tools) if options.tools else None,
            "add_generation_prompt": options.add_generation_prompt,
        }
        try:
            return self._render_calls(variables)
        except (TemplateError, *_DATA_ERRORS) as error:
            raise InvalidRequestError(
                f"The model's chat template refused the messages: {error}", param="messages"
            ) from error

    def _render_calls(self, variables: dict[str, Any]) -> str:
        """Most templates want a call's arguments as an object; some put them into the text as they
        are, which only a string can be."""
        try:
            return self._template.render(variables)
        except TypeError:
            messages = variables["messages"]
            if not any(message.get("tool_calls") for message in messages):
                raise
            return self._template.render(
                {**variables, "messages": [_with_written_arguments(m) for m in messages]}
            )

    def _prepare(self, message: Message) -> Message:
        role = message["role"]
        if role == "developer" and not self._knows_developer:
            role = "system"
        prepared = {**message, "role": role, "content": self._content(message.get("content"))}
        # The third name of a history's thoughts; such templates take text before a call for one too
        # and refuse both.
        has_both = message.get("content") and message.get("tool_calls")
        if self._says_thinking and "reasoning" in message and not has_both:
            prepared["thinking"] = message["reasoning"]
        return prepared

    def _content(self, content: str | list[str] | None) -> str | list[dict[str, str]]:
        texts = [content] if isinstance(content, str) else content or []
        if self._wants_parts:
            return [{"type": "text", "text": text} for text in texts]
        return "\n".join(texts)


def _with_written_arguments(message: Message) -> Message:
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        arguments = call["function"]["arguments"]
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        calls.append({**call, "function": {**call["function"], "arguments": arguments}})
    return {**message, "tool_calls": calls}


def _marked(message: Message) -> Message:
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": content + _CONTINUE_MARK}
    if not content:
        content = [{"type": "text", "text": ""}]
    last = {**content[-1], "text": content[-1]["text"] + _CONTINUE_MARK}
    return {**message, "content": [*content[:-1], last]}
