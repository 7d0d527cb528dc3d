"""The request fields that chat and text completions share, checked for type and range.

Untrusted input ends here: what passes has the right shape, but may still break a rule that needs
the model (gateway/sampling.py). Unknown fields are ignored, as OpenAI's clients expect.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, Strict

from gateway.errors import InvalidRequestError

Int = Annotated[int, Strict()]
Bool = Annotated[bool, Strict()]
Float = Annotated[float, Strict(), Field(allow_inf_nan=False)]
# One error of a wrong list is enough: one an element would turn a small body into a huge answer.
TokenIds = Annotated[list[Int], Field(fail_fast=True)]

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
MAX_CHOICES = 128
MAX_STOPS = 16
MAX_TIMEOUT_S = 86_400.0
MAX_USER_CHARS = 1024

# Fields that change the answer and are not honoured: better refused than silently dropped. Here
# with the values that ask for nothing special, where null, false and emptiness are not all of them.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "length_penalty": (1, 1.0),
    "stream_interval": (1,),
    "modalities": (["text"],),
}
_REFUSED = (
    *("use_beam_search", "best_of", "suffix", "prompt_embeds", "logprob_token_ids", "functions"),
    *("thinking_token_budget", "max_thinking_tokens"),  # of chats only
    *("function_call", "audio", "web_search_options", "stop_regex", "chat_template"),
    *("echo", "documents", "repetition_detection", "length_penalty", "stream_interval"),
    *("lora_path", "modalities", "return_tokens_as_token_ids"),
    "return_prompt_text",
    *("mm_processor_kwargs", "media_io_kwargs", "kv_transfer_params", "ec_transfer_params"),
)


class StreamOptions(BaseModel):
    include_usage: Bool | None = None
    continuous_usage_stats: Bool | None = None


class JsonSchema(BaseModel):
    name: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: Bool | None = None


class ResponseFormat(BaseModel):
    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchema | None = None
    format: dict[str, Any] | None = None  # these three of a structural tag
    structures: list[Any] | None = None
    triggers: list[Any] | None = None

    def structural_tag(self) -> dict[str, Any]:
        """The tag that this object is, in the newer or the older form."""
        if self.format is not None:
            return {"format": self.format}
        if self.structures is not None:
            return {"structures": self.structures, "triggers": self.triggers}
        return {}


class StructuredOutputs(BaseModel):
    """vLLM's; exactly one of the first six."""

    json_: str | dict[str, Any] | Bool | None = Field(None, alias="json")
    json_object: Bool | None = None
    regex: str | None = Field(None, min_length=1)
    choice: Annotated[list[str], Field(fail_fast=True)] | None = None
    grammar: str | None = Field(None, min_length=1)
    structural_tag: str | dict[str, Any] | None = None
    whitespace_pattern: str | None = Field(None, min_length=1)
    disable_any_whitespace: Bool | None = None
    disable_additional_properties: Bool | None = None

    def given(self) -> list[str]:
        kinds = {
            "json": self.json_,
            "json_object": self.json_object or None,
            "regex": self.regex,
            "choice": self.choice,
            "grammar": self.grammar,
            "structural_tag": self.structural_tag,
        }
        return [name for name, value in kinds.items() if value is not None]


class SamplingFields(BaseModel):
    """Fields of both completion endpoints. None: not given."""

    model: str | None = None
    frequency_penalty: Float | None = Field(None, ge=-2, le=2)
    presence_penalty: Float | None = Field(None, ge=-2, le=2)
    repetition_penalty: Float | None = Field(None, gt=0, le=1e6)
    temperature: Float | None = Field(None, ge=0, le=2)
    top_p: Float | None = Field(None, gt=0, le=1)
    top_k: Int | None = Field(None, ge=-1, le=2**31 - 1)
    min_p: Float | None = Field(None, ge=0, le=1)
    max_tokens: Int | None = Field(None, ge=0)
    min_tokens: Int | None = Field(None, ge=0)
    n: Int | None = Field(None, ge=1, le=MAX_CHOICES)
    seed: Int | None = Field(None, ge=INT64_MIN, le=INT64_MAX)
    stop: str | Annotated[list[str], Field(fail_fast=True, max_length=MAX_STOPS)] | None = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: Bool = False
    ignore_eos: Bool = False
    logit_bias: dict[str, Float] | None = Field(None, max_length=1024)
    allowed_token_ids: TokenIds | None = None
    bad_words: Annotated[list[str], Field(fail_fast=True, max_length=128)] | None = None
    prompt_logprobs: Int | None = Field(None, ge=0)
    stream: Bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | Bool | None = None  # vLLM's names before
    guided_json_object: Bool | None = None
    guided_regex: str | None = Field(None, min_length=1)
    guided_choice: Annotated[list[str], Field(fail_fast=True)] | None = None
    guided_grammar: str | None = Field(None, min_length=1)
    guided_whitespace_pattern: str | None = Field(None, min_length=1)
    skip_special_tokens: Bool = True
    spaces_between_special_tokens: Bool = True
    add_special_tokens: Bool | None = None
    truncate_prompt_tokens: Int | None = Field(None, ge=-1)
    truncation_side: Literal["left", "right"] | None = None  # what is cut off; None: left
    return_token_ids: Bool = False
    user: str | None = Field(None, max_length=MAX_USER_CHARS)  # queues are kept by it
    request_id: str | None = Field(None, max_length=128)
    priority: Int | None = Field(None, ge=INT64_MIN, le=INT64_MAX)
    cache_salt: str | None = Field(None, max_length=128)
    timeout: Float | None = Field(None, gt=0, le=MAX_TIMEOUT_S)  # seconds to the last token

    model_config = {"extra": "allow"}  # kept only to see the refused ones

    def check_rules(self) -> None:
        """What concerns several fields, or fields that exist only to be refused.

        Raises: InvalidRequestError.
        """
        for name in _REFUSED:
            _refuse(name, self.extra_fields.get(name))
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError(
                "Stream options can only be defined when `stream=True`.", param="stream_options"
            )
        if any(not stop for stop in self.stops):
            raise InvalidRequestError("stop cannot contain an empty string.", param="stop")
        if self.prompt_logprobs is not None and self.stream:
            raise InvalidRequestError(
                "prompt_logprobs are not available when `stream=True`.", param="prompt_logprobs"
            )

    @property
    def extra_fields(self) -> dict[str, Any]:
        return self.__pydantic_extra__ or {}

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def constraint(self) -> tuple[StructuredOutputs | None, str]:
        """What structured_outputs, or the guided_* fields, ask for, and the name of the field.

        Raises: InvalidRequestError when both ask.
        """
        guided = {
            "json": self.guided_json,
            "json_object": self.guided_json_object or None,
            "regex": self.guided_regex,
            "choice": self.guided_choice,
            "grammar": self.guided_grammar,
            "whitespace_pattern": self.guided_whitespace_pattern,
        }
        given = {name: value for name, value in guided.items() if value is not None}
        if not given:
            return self.structured_outputs, "structured_outputs"
        param = f"guided_{next(iter(given))}"
        if self.structured_outputs is not None:
            raise InvalidRequestError(
                f"{param} and structured_outputs cannot both be given.", param=param
            )
        return StructuredOutputs.model_validate(given), param

    @property
    def max_output_tokens(self) -> int | None:
        """As the client asked; None: it did not."""
        return self.max_tokens

    @property
    def wants_usage_chunk(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def wants_running_usage(self) -> bool:
        options = self.stream_options
        return options is not None and bool(options.continuous_usage_stats)


def _refuse(name: str, value: Any) -> None:
    is_neutral = value in (None, False, "", "none", [], {}, *_NEUTRAL.get(name, ()))
    if not is_neutral:
        raise InvalidRequestError(f"`{name}` is not supported by this server.", param=name)
