"""The one path of an answer: TokenRequests are started, their deltas become events of text.

A streamed answer writes the events as they come; a whole answer is `fold` over the same events.
Knows the router and the text side by their protocols, and nothing of HTTP.
"""

import asyncio
from dataclasses import dataclass, field
from types import TracebackType

from gateway.delta_source import DeltaSource, ManySource, OneSource, settle
from gateway.drain import Drain
from gateway.errors import APIError
from gateway.logprobs import ScoredToken
from gateway.metrics import RequestTimer
from gateway.parsers.events import FoundCall, join_calls
from gateway.parsers.reader import ToolReader, ToolReading
from gateway.schemas.answers import AnswerEnd, PromptTokensDetails, StopReason, Usage
from gateway.text.choice import Choice, ChoiceEvent, TextSettings
from gateway.text.tokenizer import TextTokenizer
from gateway.tokens import (
    FinishReason,
    Timing,
    TokenDelta,
    TokenLogprobs,
    TokenRequest,
    TokenRouter,
    TokenStream,
)


@dataclass(frozen=True, slots=True)
class GenerationPlan:
    """Everything about a request's answer that is known before its first token."""

    requests: list[TokenRequest]  # choice by choice: those of one prompt follow each other
    choices_per_prompt: int
    tokenizer: TextTokenizer
    text: TextSettings
    echo_texts: list[str] = field(default_factory=list)  # one a prompt, where it is echoed
    tools: ToolReading | None = None  # None: whatever the model says is content


class Generation:
    """A request's running choices; `async with` starts and surely ends them.

    Invariant: each stream that was started either ended by itself or is aborted once the block is
    left. Entered, read and left by one task of the event loop.
    """

    def __init__(
        self, plan: GenerationPlan, router: TokenRouter, timer: RequestTimer, drain: Drain
    ) -> None:
        self.plan = plan
        self._router = router
        self._timer = timer
        self._drain = drain
        self._streams: list[TokenStream] = []
        self._choices = [self._choice(index) for index in range(len(plan.requests))]
        self._readers: list[ToolReader] = []
        if plan.tools is not None:
            self._readers = [plan.tools.make_reader() for _ in self._choices]
        self._num_open = len(self._choices)
        self._source: DeltaSource | None = None
        self._reader: asyncio.Task[object] | None = None
        self._is_reading = False
        self._end_error: APIError | None = None

    async def __aenter__(self) -> "Generation":
        """Raises: APIError when a choice cannot be started."""
        self._reader = asyncio.current_task()
        self._drain.register(self.end)
        try:
            await self._start_all()
        except BaseException:
            await self._clean_up("error")
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._clean_up("error" if isinstance(exc, Exception) else "abort")

    @property
    def is_finished(self) -> bool:
        return self._num_open == 0

    @property
    def prompt_ids(self) -> list[list[int]]:
        step = self.plan.choices_per_prompt
        return [request.prompt_token_ids for request in self.plan.requests[::step]]

    @property
    def timing(self) -> Timing:
        """Of the first choice."""
        return self._choices[0].timing

    def usage(self) -> Usage:
        num_prompt = sum(map(len, self.prompt_ids))
        num_generated = sum(choice.num_tokens for choice in self._choices)
        firsts = self._choices[:: self.plan.choices_per_prompt]
        num_cached = sum(choice.timing.num_cached_tokens for choice in firsts)
        return Usage(
            prompt_tokens=num_prompt,
            completion_tokens=num_generated,
            total_tokens=num_prompt + num_generated,
            prompt_tokens_details=PromptTokensDetails(min(num_cached, num_prompt)),
        )

    def end(self, error: APIError) -> None:
        """Breaks the generation off: its `read` raises `error`. May be called by any task."""
        if self._end_error is None:
            self._end_error = error
            if self._is_reading and self._reader is not None:
                self._reader.cancel()

    async def read(self) -> list[ChoiceEvent]:
        """Waits for news. Raises: APIError when the request failed for good."""
        assert self._source is not None and not self.is_finished
        if self._end_error is not None:
            raise self._end_error
        self._is_reading = True
        try:
            arrived = await self._source.read()
        except asyncio.CancelledError:
            self._raise_end_error()
            raise
        finally:
            self._is_reading = False
        return [self._feed(index, deltas) for index, deltas in arrived if self._is_open(index)]

    def _raise_end_error(self) -> None:
        """Turns the cancellation that `end` asked for, and only that one, into its error."""
        if self._end_error is None or self._reader is None:
            return
        if self._reader.uncancel() == 0:
            raise self._end_error from None

    def _is_open(self, index: int) -> bool:
        return self._choices[index].finish_reason is None

    def _feed(self, index: int, deltas: list[TokenDelta]) -> ChoiceEvent:
        choice = self._choices[index]
        event = choice.feed(deltas)
        if event.token_ids:
            self._timer.on_tokens(index, len(event.token_ids))
        if choice.finish_reason is not None:
            self._close_choice(choice, ended_by_engine=deltas[-1].finish_reason is not None)
        if self._readers:
            self._read_calls(self._readers[index], event)
        return event

    def _read_calls(self, reader: ToolReader, event: ChoiceEvent) -> None:
        """Takes the calls out of the event's text. Who forced one function by its name is told
        "stop", as by OpenAI."""
        is_last = event.finish_reason is not None
        event.text, event.tool_deltas = reader.feed(event.text, is_last=is_last)
        assert self.plan.tools is not None
        if event.finish_reason == "stop" and reader.num_calls and self.plan.tools.forced is None:
            event.finish_reason = "tool_calls"

    def _close_choice(self, choice: Choice, *, ended_by_engine: bool) -> None:
        assert choice.finish_reason is not None
        self._num_open -= 1
        self._timer.on_choice_end(choice.finish_reason)
        if self._num_open == 0:
            self._timer.on_end()
        if not ended_by_engine:  # a stop string: the engine does not know
            assert self._source is not None
            self._streams[choice.index].abort()
            self._source.stop(choice.index)

    def _choice(self, index: int) -> Choice:
        plan = self.plan
        prompt_ids = plan.requests[index].prompt_token_ids
        echo = plan.echo_texts[index // plan.choices_per_prompt] if plan.echo_texts else ""
        return Choice(index, prompt_ids, plan.tokenizer, plan.text, echo)

    async def _start_all(self) -> None:
        requests = self.plan.requests
        if len(requests) == 1:
            stream = await self._router.start(requests[0])
            self._streams.append(stream)
            self._source = OneSource(stream)
            return
        starts = [asyncio.create_task(self._router.start(request)) for request in requests]
        try:
            await asyncio.gather(*starts)
        finally:
            await settle(starts)
            self._streams += [start.result() for start in starts if _has_result(start)]
        self._source = ManySource(self._streams)

    async def _clean_up(self, reason: FinishReason) -> None:
        self._drain.unregister(self.end)
        open_choices = [choice for choice in self._choices if choice.finish_reason is None]
        for _ in open_choices:
            self._timer.on_choice_end(reason)
        if open_choices:
            for stream in self._streams:
                stream.abort()
        if self._source is not None:
            await self._source.close()


@dataclass(slots=True)
class ChoiceResult:
    """A choice's events, joined."""

    index: int
    text: str = ""
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
    async with generation:
        while not generation.is_finished:
            for event in await generation.read():
                texts[event.index].append(event.text)
                _join(results[event.index], event)
    for result in results:
        result.text = "".join(texts[result.index])
    return results


def _join(result: ChoiceResult, event: ChoiceEvent) -> None:
    result.token_ids += event.token_ids
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


def _has_result(task: "asyncio.Task[TokenStream]") -> bool:
    return not task.cancelled() and task.exception() is None
