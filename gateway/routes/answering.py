"""What the chat and text completion routes share: who asks, how the answer is sent.

The routes differ in bodies and answer objects; from the plan on their way is one.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.account import Asked
from gateway.chunks import ChunkHead, Chunks
from gateway.errors import InvalidRequestError
from gateway.generation import Generation, GenerationPlan
from gateway.middleware import usable_request_id
from gateway.planning import Asker
from gateway.schemas.common import INT64_MAX, INT64_MIN, SamplingFields
from gateway.server_timing import server_timing
from gateway.sse import EventStream, until_disconnect
from gateway.state import account_of, facts_of, gateway_of
from gateway.tenant_rules import check_allowed, keep_within, priority_of, reserved_tokens
from gateway.text.model_text import TextModel
from gateway.tokens import ModelInfo
from gateway.whole_answer import ChoiceResult, fold

B = TypeVar("B", bound=SamplingFields)
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_PRIORITY_HEADER = "X-Vllm-Priority"
_MAX_PRIORITY_CHARS = 20  # of a number of 64 bits
_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Answering:
    """One request on its way to an answer."""

    body: SamplingFields
    asker: Asker
    generation: Generation

    def chunk_head(self, created: int, num_top_logprobs: int) -> ChunkHead:
        return ChunkHead(
            id=self.asker.completion_id,
            created=created,
            model=self.asker.model_name,
            system_fingerprint=fingerprint(self.asker.model),
            tokenizer=self.asker.text.tokenizer,
            num_top_logprobs=num_top_logprobs,
            wants_token_ids=self.body.return_token_ids,
        )


async def begin(
    request: Request, body: B, prefix: str, plan: Callable[[B, Asker], GenerationPlan]
) -> Answering:
    """Checks, encodes and plans; nothing runs yet. Raises: APIError."""
    gateway, account = gateway_of(request), account_of(request)
    tenant = account.tenant
    model = gateway.model(body.model, tenant)
    account.ask(Asked(model.served_names[0], request.url.path, bool(body.stream)))
    body.check_rules()
    _take_priority(request, body)
    check_allowed(body, tenant)
    asker = Asker(
        completion_id=f"{prefix}-{_request_id(request, body)}",
        model=model,
        model_name=body.model or model.served_names[0],
        text=await text_of(request, model),
        max_logprobs=min(gateway.config.max_logprobs, model.max_logprobs),
        tenant=tenant.name,
        priority=priority_of(body, tenant),
        traceparent=_traceparent(request),
        timeout_s=_timeout_s(body, gateway.config.request_timeout_s),
        default_max_tokens=gateway.config.default_max_tokens,
    )
    planned = await gateway.texts.run(body_bytes(request), lambda: plan(body, asker))
    grammar = planned.requests[0].sampling.grammar
    if grammar is not None:
        # Seconds, for one that is tried the first time: nobody stays for a client that left.
        await until_disconnect(request.receive, gateway.grammars.check(grammar))
    keep_within(planned.requests, tenant)
    account.charge(reserved_tokens(planned, body))
    timer = gateway.metrics.of_model(model.served_names[0]).start(
        facts_of(request).arrival_s, body.n or 1
    )
    generation = Generation(planned, gateway.router, timer, gateway.drain)
    account.answer_with(generation)
    return Answering(body, asker, generation)


async def text_of(request: Request, model: ModelInfo) -> TextModel:
    """Only a model's first requests wait for it. Raises: APIError, ClientDisconnected."""
    texts = gateway_of(request).texts
    text = texts.loaded(model)
    if text is None:
        text = await until_disconnect(request.receive, texts.get(model))
    return text


def stream(request: Request, answering: Answering, chunks: Chunks) -> Response:
    return EventStream(
        answering.generation,
        chunks,
        wants_usage=answering.body.wants_usage_chunk,
        wants_running_usage=answering.body.wants_running_usage,
        wants_token_ids=answering.body.return_token_ids,
        stalled_client_timeout_s=gateway_of(request).config.stalled_client_timeout_s,
    )


async def whole(
    request: Request,
    answering: Answering,
    build: Callable[[Answering, list[ChoiceResult]], msgspec.Struct],
) -> Response:
    results = await until_disconnect(request.receive, fold(answering.generation))
    generation = answering.generation
    total_s = perf_counter() - facts_of(request).arrival_s
    headers = {"server-timing": server_timing(generation.timing, generation.first_token_s, total_s)}
    return json_response(build(answering, results), headers)


def json_response(answer: msgspec.Struct, headers: dict[str, str] | None = None) -> Response:
    return Response(_encoder.encode(answer), headers=headers, media_type="application/json")


def fingerprint(model: ModelInfo) -> str:
    return f"fp_{model.digest[:12]}"


def body_bytes(request: Request) -> int:
    """How long the body is; where the client does not say, as long as it may be."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isdigit() else gateway_of(request).config.max_body_bytes


def _timeout_s(body: SamplingFields, limit_s: float | None) -> float | None:
    """A client may ask for less time than the server's own limit, not for more."""
    given = [one for one in (body.timeout, limit_s) if one is not None]
    return min(given, default=None)


def _take_priority(request: Request, body: SamplingFields) -> None:
    """vLLM's header, which counts more than the body's field: routers in front set it."""
    value = request.headers.get(_PRIORITY_HEADER)
    if value is None:
        return
    try:
        priority = int(value) if len(value) <= _MAX_PRIORITY_CHARS else None
    except ValueError:
        priority = None
    if priority is None or not INT64_MIN <= priority <= INT64_MAX:
        raise InvalidRequestError(
            f"The header {_PRIORITY_HEADER} must be an integer of 64 bits, got {value[:100]!r}.",
            param="priority",
        )
    body.priority = priority


def _request_id(request: Request, body: SamplingFields) -> str:
    """The header's, as everywhere; a body's counts only where there is no such header."""
    facts = facts_of(request)
    named = None if facts.is_client_id else usable_request_id(body.request_id)
    return named or facts.request_id


def _traceparent(request: Request) -> str:
    value = request.headers.get("traceparent", "")
    return value if _TRACEPARENT.fullmatch(value) else ""
