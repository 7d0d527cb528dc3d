"""A whole answer: the events of a streamed one, joined.

One path: nothing is generated differently for a client that does not stream. Routes call `fold`.
"""

from dataclasses import dataclass, field

from gateway.generation import Generation
from gateway.logprobs import ScoredToken
from gateway.parsers.events import FoundCall, join_calls
from gateway.schemas.answers import AnswerEnd, StopReason
from gateway.text.choice import ChoiceEvent
from gateway.tokens import TokenLogprobs


@dataclass(slots=True)
class ChoiceResult:
    """A choice's events, joined."""

    index: int
    text: str = ""
    reasoning: list[str] = field(default_factory=list)  # in pieces
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[ScoredToken] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    finish_reason: AnswerEnd | None = None
    stop_reason: StopReason = None
    calls: list[FoundCall] = field(default_factory=list)


async def fold(generation: Generation) -> list[ChoiceResult]:
    """The whole answer, which is the streamed one joined. Raises: APIError."""
    results = [ChoiceResult(index) for index in range(len(generation.plan.requests))]
    texts: list[list[str]] = [[] for _ in results]

    def join(events: list[ChoiceEvent]) -> bool:
        for event in events:
            texts[event.index].append(event.text)
            _join(results[event.index], event)
        return True

    async with generation:
        await generation.pump(join)
    for result in results:
        result.text = "".join(texts[result.index])
    return results


def _join(result: ChoiceResult, event: ChoiceEvent) -> None:
    result.token_ids += event.token_ids
    if event.reasoning:
        result.reasoning.append(event.reasoning)
    join_calls(result.calls, event.tool_deltas)
    if event.logprobs is not None:
        if result.logprobs is None:
            result.logprobs = []
        result.logprobs += event.logprobs
    if event.prompt_logprobs is not None:
        result.prompt_logprobs = event.prompt_logprobs
    if event.finish_reason is not None:
        result.finish_reason = event.finish_reason
        result.stop_reason = event.stop_reason
