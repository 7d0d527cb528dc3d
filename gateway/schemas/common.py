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

# Fields that change the answer and are not honoured: better refused than silently dropped.
_REFUSED = (
    *("guided_json", "guided_regex", "guided_choice", "guided_grammar"),
    *("use_beam_search", "best_of", "suffix", "prompt_embeds", "logprob_token_ids", "functions"),
    *("function_call", "audio", "web_search_options", "stop_regex", "chat_template"),
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


class StructuredOutputs(BaseModel):
    """vLLM's; exactly one of the first six, of which two are always refused."""

    json_: str | dict[str, Any] | Bool | None = Field(None, alias="json")
    json_object: Bool | None = None
    regex: str | None = Field(None, min_length=1)
    choice: Annotated[list[str], Field(fail_fast=True)] | None = None
    grammar: str | None = Field(None, min_length=1)
    structural_tag: Any = None
    whitespace_pattern: str | None = None

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
    skip_special_tokens: Bool = True
    spaces_between_special_tokens: Bool = True
    add_special_tokens: Bool | None = None
    truncate_prompt_tokens: Int | None = Field(None, ge=-1)
    return_token_ids: Bool = False
    user: str | None = None
    request_id: str | None = Field(None, max_length=128)
    priority: Int | None = Field(None, ge=INT64_MIN, le=INT64_MAX)
    cache_salt: str | None = Field(None, max_length=128)

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
    def wants_json(self) -> bool:
        return self.response_format is not None and self.response_format.type != "text"

    @property
    def wants_usage_chunk(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def wants_running_usage(self) -> bool:
        options = self.stream_options
        return options is not None and bool(options.continuous_usage_stats)


def _refuse(name: str, value: Any) -> None:
    is_neutral = value in (None, False, "", "none") or (name == "best_of" and value == 1)
    if not is_neutral:
        raise InvalidRequestError(f"`{name}` is not supported by this server.", param=name)
