"""POST /v1/chat/completions."""

import time

from fastapi import APIRouter
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from gateway.chunks import ChatChunks
from gateway.logprobs import chat_logprobs, prompt_logprobs
from gateway.planning import plan_chat
from gateway.routes.answering import Answering, begin, fingerprint, stream, whole
from gateway.schemas.answers import (
    AssistantMessage,
    CalledFunction,
    ChatChoice,
    ChatCompletion,
    ToolCall,
)
from gateway.schemas.chat import ChatRequest
from gateway.whole_answer import ChoiceResult

router = APIRouter(tags=["chat"])


@router.post("/v1/chat/completions", response_model=None)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    answering = await begin(request, body, "chatcmpl", plan_chat)
    if body.stream:
        head = answering.chunk_head(int(time.time()), body.top_logprobs or 0)
        return stream(request, answering, ChatChunks(head))
    return await whole(request, answering, _answer)


def _answer(answering: Answering, results: list[ChoiceResult]) -> ChatCompletion:
    body, asker, generation = answering.body, answering.asker, answering.generation
    assert isinstance(body, ChatRequest)
    scores = results[0].prompt_logprobs if body.prompt_logprobs is not None else None
    num_prompt_top = body.prompt_logprobs or 0
    return ChatCompletion(
        id=asker.completion_id,
        created=int(time.time()),
        model=asker.model_name,
        system_fingerprint=fingerprint(asker.model),
        choices=[_choice(result, body, answering) for result in results],
        usage=generation.usage(),
        prompt_logprobs=UNSET
        if scores is None
        else prompt_logprobs(scores, num_prompt_top, asker.text.tokenizer),
        prompt_token_ids=generation.prompt_ids[0] if body.return_token_ids else UNSET,
    )


def _choice(result: ChoiceResult, body: ChatRequest, answering: Answering) -> ChatChoice:
    tokenizer = answering.asker.text.tokenizer
    logprobs = None
    if result.logprobs is not None:
        logprobs = chat_logprobs(result.logprobs, body.top_logprobs or 0, tokenizer)
    return ChatChoice(
        index=result.index,
        message=_message(result),
        logprobs=logprobs,
        finish_reason=result.finish_reason,
        stop_reason=result.stop_reason,
        token_ids=result.token_ids if body.return_token_ids else UNSET,
    )


def _message(result: ChoiceResult) -> AssistantMessage:
    """Content is null where there are only calls."""
    reasoning = "".join(result.reasoning) or UNSET
    if not result.calls:
        content = result.text or ("" if reasoning is UNSET else None)
        return AssistantMessage(content=content, reasoning=reasoning, reasoning_content=reasoning)
    calls = [
        ToolCall(id=call.id, function=CalledFunction(call.name, call.arguments))
        for call in result.calls
    ]
    return AssistantMessage(
        content=result.text or None,
        reasoning=reasoning,
        reasoning_content=reasoning,
        tool_calls=calls,
    )
