"""What the chat and text completion routes share: who asks, how the answer is sent.

The routes differ in bodies and answer objects; from the plan on their way is one.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.chunks import ChunkHead, Chunks
from gateway.generation import ChoiceResult, Generation, GenerationPlan, fold
from gateway.middleware import usable_request_id
from gateway.planning import Asker
from gateway.schemas.common import SamplingFields
from gateway.sse import EventStream, until_disconnect
from gateway.state import facts_of, gateway_of, tenant_of
from gateway.tokens import ModelInfo, Timing

B = TypeVar("B", bound=SamplingFields)
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
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
    gateway = gateway_of(request)
    model = gateway.model(body.model)
    body.check_rules()
    asker = Asker(
        completion_id=f"{prefix}-{_request_id(request, body)}",
        model=model,
        model_name=body.model or model.served_names[0],
        text=await gateway.texts.get(model),
        max_logprobs=min(gateway.config.max_logprobs, model.max_logprobs),
        tenant=tenant_of(request),
        traceparent=_traceparent(request),
        timeout_s=gateway.config.request_timeout_s,
        default_max_tokens=gateway.config.default_max_tokens,
    )
    planned = await gateway.texts.run(body_bytes(request), lambda: plan(body, asker))
    num_prompt = sum(len(one.prompt_token_ids) for one in planned.requests) // (body.n or 1)
    timer = gateway.metrics.of_model(model.served_names[0]).start(
        facts_of(request).arrival_s, num_prompt
    )
    return Answering(body, asker, Generation(planned, gateway.router, timer, gateway.drain))


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
    headers = {"server-timing": server_timing(answering.generation.timing)}
    return json_response(build(answering, results), headers)


def json_response(answer: msgspec.Struct, headers: dict[str, str] | None = None) -> Response:
    return Response(_encoder.encode(answer), headers=headers, media_type="application/json")


def server_timing(timing: Timing) -> str:
    """https://www.w3.org/TR/server-timing/, durations in milliseconds."""
    spans = {
        "placement": timing.placement_s,
        "queue": timing.queue_s,
        "prefill": timing.prefill_s,
        "decode": timing.decode_s,
    }
    return ", ".join(f"{name};dur={seconds * 1e3:.3f}" for name, seconds in spans.items())


def fingerprint(model: ModelInfo) -> str:
    return f"fp_{model.digest[:12]}"


def body_bytes(request: Request) -> int:
    """How long the body is; where the client does not say, as long as it may be."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isdigit() else gateway_of(request).config.max_body_bytes


def _request_id(request: Request, body: SamplingFields) -> str:
    """The header's, as everywhere; a body's counts only where there is no such header."""
    facts = facts_of(request)
    named = None if facts.is_client_id else usable_request_id(body.request_id)
    return named or facts.request_id


def _traceparent(request: Request) -> str:
    value = request.headers.get("traceparent", "")
    return value if _TRACEPARENT.fullmatch(value) else ""
