"""From a checked body to a GenerationPlan: prompts as ids, settings, one TokenRequest a choice.

Pure functions, run off the event loop for large requests. Routes call them with the model's
text side.
"""

import secrets
from dataclasses import dataclass, replace

from gateway.errors import InvalidRequestError
from gateway.generation import GenerationPlan
from gateway.parsers.answer import AnswerReading
from gateway.parsers.reader import ToolReading
from gateway.reading import (
    answer_reading,
    check_effort,
    grammar_behind_thoughts,
    tool_reading,
)
from gateway.sampling import (
    LogprobLimits,
    check_logprobs,
    check_max_tokens,
    check_prompt_ids,
    resolve_sampling,
    settings_of_choice,
    truncate,
    window_tokens,
)
from gateway.schemas.chat import ChatRequest
from gateway.schemas.common import SamplingFields
from gateway.schemas.completion import DEFAULT_MAX_TOKENS, CompletionRequest
from gateway.text.chat_template import ChatOptions
from gateway.text.choice import TextSettings
from gateway.text.model_text import TextModel
from gateway.tokens import ModelInfo, SamplingSettings, TokenRequest

_MAX_TOTAL_CHOICES = 2048


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks for what model, and how the answer is named."""

    completion_id: str
    model: ModelInfo
    model_name: str  # as the client spelled it
    text: TextModel
    max_logprobs: int
    tenant: str = ""
    priority: int = 0
    traceparent: str = ""
    timeout_s: float | None = None
    default_max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class _Output:
    """What the two APIs decide differently."""

    max_tokens: int | None
    param: str  # the name of the field with the prompt
    sampling: SamplingSettings
    text: TextSettings
    echo_texts: list[str]
    tools: ToolReading | None = None
    num_choices: int = 1  # of each prompt


def plan_chat(body: ChatRequest, asker: Asker) -> GenerationPlan:
    """Raises: InvalidRequestError and its kinds."""
    options = ChatOptions(
        tools=body.template_tools(),
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        template_kwargs=body.template_variables(),
    )
    check_effort(body, asker.text)
    prompt = asker.text.render_chat(body.template_messages(asker.model_name), options)
    ids = asker.text.encode_prompt(prompt, body.add_special_tokens)
    if not ids:
        raise InvalidRequestError("messages come to an empty prompt.", param="messages")
    answer = answer_reading(body, asker.text, prompt)
    sampling = _chat_sampling(body, asker, answer)
    # A grammar ends its answer itself; a default stop string could cut it short.
    has_own_end = body.ignore_eos or sampling.grammar is not None
    stops = body.stops + (() if has_own_end else asker.text.chat_stops)
    tools = tool_reading(body, asker.text)
    text = replace(
        _text_settings(body, sampling, stops),
        shown_special_ids=asker.text.mark_ids(has_tools=tools is not None),
        answer=answer,
    )
    given = body.max_output_tokens
    output = _Output(
        max_tokens=asker.default_max_tokens if given is None else given,
        param="messages",
        sampling=sampling,
        text=text,
        echo_texts=[],
        tools=tools,
        num_choices=body.n or 1,
    )
    return _plan(body, asker, [ids], output)


def _chat_sampling(
    body: ChatRequest, asker: Asker, answer: AnswerReading | None
) -> SamplingSettings:
    given = body.max_output_tokens
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    check_max_tokens(given, asker.model, name)
    num_top = check_logprobs(body.top_logprobs or 0, asker.max_logprobs, "top_logprobs")
    limits = LogprobLimits(num_top if body.logprobs else None, _prompt_logprobs(body, asker))
    sampling = _sampling(body, asker, given, limits)
    if answer is None:
        return sampling
    eos_ids = asker.model.eos_token_ids
    grammar = grammar_behind_thoughts(body, asker.text, eos_ids, sampling.grammar, answer)
    return replace(sampling, grammar=grammar)


def plan_completion(body: CompletionRequest, asker: Asker) -> GenerationPlan:
    """Raises: InvalidRequestError and its kinds."""
    wanted = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    check_max_tokens(wanted if body.max_tokens is not None else None, asker.model, "max_tokens")
    num_top = check_logprobs(body.logprobs, asker.max_logprobs, "logprobs")
    num_prompt_top = _prompt_logprobs(body, asker)
    # The best candidates are told by their scores, asked for or not.
    num_scored = 0 if num_top is None and body.picks_best else num_top
    echoes_logprobs = body.echo and num_top is not None
    if echoes_logprobs and num_top is not None:
        num_prompt_top = max(num_top, num_prompt_top or 0)
    prompts = [_prompt_ids(prompt, body, asker) for prompt in body.prompts()]
    # The engine always makes a token; one that nobody asked for is dropped.
    drops_output = wanted == 0
    sampling = _sampling(body, asker, max(wanted, 1), LogprobLimits(num_scored, num_prompt_top))
    text = _text_settings(body, sampling, body.stops)
    text = replace(text, echoes_prompt_logprobs=echoes_logprobs, drops_output=drops_output)
    output = _Output(
        max_tokens=max(wanted, 1),
        param="prompt",
        sampling=sampling,
        text=text,
        echo_texts=_echo_texts(body, prompts, asker) if body.echo else [],
        num_choices=body.num_candidates,
    )
    return _plan(body, asker, prompts, output)


def _plan(
    body: SamplingFields, asker: Asker, prompts: list[list[int]], output: _Output
) -> GenerationPlan:
    num_choices = output.num_choices
    if num_choices * len(prompts) > _MAX_TOTAL_CHOICES:
        param = "n" if num_choices == (body.n or 1) else "best_of"
        raise InvalidRequestError(
            f"{param}={num_choices} for {len(prompts)} prompts makes more than "
            f"{_MAX_TOTAL_CHOICES} choices.",
            param=param,
        )
    limit, side = body.truncate_prompt_tokens, body.truncation_side
    prompts = [truncate(ids, limit, asker.model, side) for ids in prompts]
    # A client may send the same id twice; below the gateway an id stands for one request only.
    unique_id = f"{asker.completion_id}-{secrets.token_hex(4)}"
    requests: list[TokenRequest] = []
    for ids in prompts:
        room = window_tokens(len(ids), output.max_tokens, asker.model, output.param)
        min_tokens = min(output.sampling.min_tokens, room)
        settings = replace(output.sampling, max_tokens=room, min_tokens=min_tokens)
        for choice in range(num_choices):
            request_id = f"{unique_id}-{len(requests)}"
            choice_settings = settings_of_choice(settings, choice)
            requests.append(_request(body, asker, request_id, ids, choice_settings))
    return GenerationPlan(
        requests=requests,
        choices_per_prompt=num_choices,
        tokenizer=asker.text.tokenizer,
        text=output.text,
        echo_texts=output.echo_texts,
        tools=output.tools,
    )


def _request(
    body: SamplingFields, asker: Asker, request_id: str, ids: list[int], settings: SamplingSettings
) -> TokenRequest:
    return TokenRequest(
        request_id=request_id,
        model=asker.model_name,
        prompt_token_ids=ids,
        sampling=settings,
        priority=asker.priority,
        tenant=asker.tenant or body.user or "",
        cache_salt=body.cache_salt or "",
        timeout_s=asker.timeout_s,
        traceparent=asker.traceparent,
    )


def _sampling(
    body: SamplingFields, asker: Asker, max_tokens: int | None, limits: LogprobLimits
) -> SamplingSettings:
    wanted = asker.model.max_model_len if max_tokens is None else max_tokens
    return resolve_sampling(body, asker.model, asker.text, wanted, limits)


def _text_settings(
    body: SamplingFields, sampling: SamplingSettings, stops: tuple[str, ...]
) -> TextSettings:
    return TextSettings(
        stops=stops,
        include_stop=body.include_stop_str_in_output,
        skip_special_tokens=body.skip_special_tokens,
        min_tokens=sampling.min_tokens,
        stop_token_ids=frozenset(sampling.stop_token_ids),
        wants_logprobs=sampling.logprobs is not None,
    )


def _prompt_logprobs(body: SamplingFields, asker: Asker) -> int | None:
    return check_logprobs(body.prompt_logprobs, asker.max_logprobs, "prompt_logprobs")


def _prompt_ids(prompt: str | list[int], body: CompletionRequest, asker: Asker) -> list[int]:
    if isinstance(prompt, list):
        if body.suffix:
            raise InvalidRequestError("suffix needs a prompt of text, not of ids.", param="suffix")
        check_prompt_ids(prompt, asker.model)
        return prompt
    if body.suffix:
        prompt = _infill_prompt(prompt, body.suffix, asker)
    adds = body.add_special_tokens is not False
    ids = asker.text.tokenizer.encode(prompt, add_special_tokens=adds)
    if not ids:
        raise InvalidRequestError("prompt comes to no tokens.", param="prompt")
    return ids


def _infill_prompt(prefix: str, suffix: str, asker: Asker) -> str:
    infill = asker.text.infill
    if infill is None:
        raise InvalidRequestError(
            f"The model `{asker.model_name}` has no tokens to fill in the middle with, so `suffix` "
            "is not supported.",
            param="suffix",
        )
    return infill.prompt(prefix, suffix)


def _echo_texts(body: CompletionRequest, prompts: list[list[int]], asker: Asker) -> list[str]:
    """The prompts as the client wrote them, or the text of their ids."""
    tokenizer = asker.text.tokenizer
    return [
        given
        if isinstance(given, str)
        else tokenizer.decode(ids, skip_special_tokens=body.skip_special_tokens)
        for given, ids in zip(body.prompts(), prompts, strict=True)
    ]
