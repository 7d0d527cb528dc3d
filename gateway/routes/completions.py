"""POST /v1/completions: choice n*i + j is the j-th continuation of prompt i."""

import time

from fastapi import APIRouter
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from gateway.candidates import best_of
from gateway.chunks import TextChunks
from gateway.logprobs import prompt_logprobs, text_logprobs
from gateway.planning import plan_completion
from gateway.routes.answering import Answering, begin, fingerprint, stream, whole
from gateway.schemas.answers import TextChoice, TextCompletion
from gateway.schemas.completion import CompletionRequest
from gateway.whole_answer import ChoiceResult

router = APIRouter(tags=["completions"])


@router.post("/v1/completions", response_model=None)
async def completions(body: CompletionRequest, request: Request) -> Response:
    answering = await begin(request, body, "cmpl", plan_completion)
    if body.stream:
        head = answering.chunk_head(int(time.time()), body.logprobs or 0)
        return stream(request, answering, TextChunks(head))
    return await whole(request, answering, _answer)


def _answer(answering: Answering, results: list[ChoiceResult]) -> TextCompletion:
    asker, generation = answering.asker, answering.generation
    body = answering.body
    assert isinstance(body, CompletionRequest)
    if body.picks_best:
        results = best_of(results, body.num_candidates, body.n or 1)
    return TextCompletion(
        id=asker.completion_id,
        created=int(time.time()),
        model=asker.model_name,
        system_fingerprint=fingerprint(asker.model),
        choices=[_choice(place, result, answering) for place, result in enumerate(results)],
        usage=generation.usage(),
    )


def _choice(place: int, result: ChoiceResult, answering: Answering) -> TextChoice:
    body, generation = answering.body, answering.generation
    assert isinstance(body, CompletionRequest)
    tokenizer = answering.asker.text.tokenizer
    logprobs = None
    if result.logprobs is not None and body.logprobs is not None:
        logprobs = text_logprobs(result.logprobs, body.logprobs, tokenizer)
    wants_prompt = body.prompt_logprobs is not None and result.prompt_logprobs is not None
    request = generation.plan.requests[result.index]
    return TextChoice(
        index=place,
        text=result.text,
        logprobs=logprobs,
        finish_reason=result.finish_reason,
        stop_reason=result.stop_reason,
        token_ids=result.token_ids if body.return_token_ids else UNSET,
        prompt_logprobs=prompt_logprobs(
            result.prompt_logprobs or [], body.prompt_logprobs or 0, tokenizer
        )
        if wants_prompt
        else UNSET,
        prompt_token_ids=request.prompt_token_ids if body.return_token_ids else UNSET,
    )
