"""The one path of an answer: TokenRequests are started, their deltas become events of text.

A streamed answer (gateway/sse.py) writes the events as they come, a whole one
(gateway/whole_answer.py) joins them. Knows the router and the text side by their protocols, and
nothing of HTTP.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from msgspec import UNSET, UnsetType

from gateway.delta_source import DeltaSource, ManySource, OneSource
from gateway.drain import Drain
from gateway.errors import APIError, DeadlineError
from gateway.parsers.reader import ToolReader, ToolReading
from gateway.request_timer import EndedChoice, RequestTimer
from gateway.schemas.answers import (
    CompletionTokensDetails,
    PromptTokensDetails,
    Usage,
)
from gateway.text.choice import Choice, ChoiceEvent, TextSettings
from gateway.text.tokenizer import TextTokenizer
from gateway.tokens import (
    FinishReason,
    Timing,
    TokenDelta,
    TokenRequest,
    TokenRouter,
    TokenStream,
)
from gateway.usage import Bill

# Takes what is new; False: no more for now.
Consume = Callable[[list[ChoiceEvent]], bool]


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
        self._consume: Consume | None = None  # while `pump` waits
        self._pumped: asyncio.Future[None] | None = None
        self._failure: Exception | None = None  # what `pump` is to raise
        self._end_error: APIError | None = None
        self._open_reason: FinishReason = "abort"  # of the choices that did not end by themselves
        self.error: APIError | None = None  # what broke it off

    async def __aenter__(self) -> "Generation":
        """Raises: APIError when a choice cannot be started."""
        self._drain.register(self.end)
        try:
            await self._start_all()
        except BaseException as exc:
            self._clean_up(exc)
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._clean_up(exc)

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
            completion_tokens_details=self._completion_details(),
        )

    def _completion_details(self) -> CompletionTokensDetails | UnsetType:
        if self.plan.text.answer is None:
            return UNSET
        return CompletionTokensDetails(sum(choice.num_reasoning_tokens for choice in self._choices))

    def bill(self) -> Bill:
        """What of it costs: the prompts whose answer has begun, and the tokens that came."""
        num_prompt = num_cached = num_abandoned = 0
        step = self.plan.choices_per_prompt
        for place in range(0, len(self._choices), step):
            choices = self._choices[place : place + step]
            begun = [one for one in choices if one.num_tokens or one.finish_reason is not None]
            if begun:
                length = len(self.plan.requests[place].prompt_token_ids)
                num_prompt += length
                num_cached += min(length, begun[0].timing.num_cached_tokens)
            elif self._is_given_up:
                num_abandoned += len(self.plan.requests[place].prompt_token_ids)
        return Bill(
            prompt_tokens=num_prompt,
            cached_tokens=num_cached,
            completion_tokens=sum(choice.num_tokens for choice in self._choices),
            reasoning_tokens=sum(choice.num_reasoning_tokens for choice in self._choices),
            abandoned_tokens=num_abandoned,
            finish_reasons=tuple(
                choice.finish_reason or self._open_reason for choice in self._choices
            ),
        )

    @property
    def _is_given_up(self) -> bool:
        """By its client, by leaving or by its deadline, when replicas had its prompts."""
        has_left = self._open_reason == "abort" or isinstance(self.error, DeadlineError)
        return self._source is not None and has_left

    @property
    def first_token_s(self) -> float | None:
        """After the request's arrival."""
        return self._timer.first_token_s

    def end(self, error: APIError) -> None:
        """Breaks the generation off: whoever reads it gets `error`. May be called by any task."""
        if self._end_error is None:
            self._end_error = error
            self._on_news()

    async def read(self) -> list[ChoiceEvent]:
        """Waits for news. Raises: APIError when the request failed for good."""
        arrived: list[ChoiceEvent] = []

        def keep(events: list[ChoiceEvent]) -> bool:
            arrived.extend(events)
            return False

        await self.pump(keep)
        return arrived

    async def pump(self, consume: Consume) -> None:
        """Gives news to `consume` within the call that brought them from the network, so that no
        task wakes for a token. Returns once the generation is finished or `consume` says False;
        what comes after waits to be taken.

        Raises: APIError when the request failed for good; what `consume` raises.
        """
        assert self._source is not None and not self.is_finished
        self._consume = consume
        self._pumped = asyncio.get_running_loop().create_future()
        self._on_news()  # what came while nobody listened
        try:
            # Its end comes from the leader, the loss of its stream, the deadline or an abort.
            await self._pumped
        finally:
            self._consume = self._pumped = None
        if self._failure is not None:
            raise self._failure

    def _on_news(self) -> None:
        if self._consume is None or self._pumped is None or self._pumped.done():
            return
        try:
            goes_on = self._pass_on(self._consume)
        except Exception as error:  # its place is in the reader, not in the network's call
            self._failure, goes_on = error, False
        if not goes_on:
            self._pumped.set_result(None)

    def _pass_on(self, consume: Consume) -> bool:
        assert self._source is not None
        if self._end_error is not None:
            raise self._end_error
        events = []
        for index, deltas in self._source.take():
            choice = self._choices[index]
            if choice.finish_reason is None:
                events.append(self._feed(index, choice, deltas))
        wants_more = not events or consume(events)
        return wants_more and self._num_open > 0

    def _feed(self, index: int, choice: Choice, deltas: list[TokenDelta]) -> ChoiceEvent:
        event = choice.feed(deltas)
        if event.token_ids:
            if choice.num_tokens == len(event.token_ids):
                prompt_ids = self.plan.requests[index].prompt_token_ids
                self._timer.on_prompt(len(prompt_ids), choice.timing)
            self._timer.on_tokens(index, len(event.token_ids))
        if choice.finish_reason is not None:
            self._close_choice(choice, ended_by_engine=deltas[-1].finish_reason is not None)
        if event.hidden_places:
            event.drop_hidden()
        if self._readers:
            self._read_calls(self._readers[index], event)
        return event

    def _read_calls(self, reader: ToolReader, event: ChoiceEvent) -> None:
        """Takes the calls out of the event's text. Who forced one function by its name is told
        "stop", as by OpenAI."""
        is_last = event.finish_reason is not None
        event.text, event.tool_deltas = reader.feed(
            event.text, is_last=is_last, found=event.found_calls or ()
        )
        assert self.plan.tools is not None
        if event.finish_reason == "stop" and reader.num_calls and self.plan.tools.forced is None:
            event.finish_reason = "tool_calls"

    def _close_choice(self, choice: Choice, *, ended_by_engine: bool) -> None:
        assert choice.finish_reason is not None
        self._num_open -= 1
        self._timer.on_choice_end(self._ended(choice, choice.finish_reason))
        if self._num_open == 0:
            self._timer.on_end(max(one.num_tokens for one in self._choices))
        if not ended_by_engine:  # a stop string: the engine does not know
            assert self._source is not None
            self._source.stop(choice.index)
            self._streams[choice.index].abort()

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
            self._source = OneSource(stream, self._on_news)
            return
        starts = [asyncio.create_task(self._router.start(request)) for request in requests]
        try:
            await asyncio.gather(*starts)
        finally:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
            self._streams += [start.result() for start in starts if _has_result(start)]
        self._source = ManySource(self._streams, self._on_news)

    def _ended(self, choice: Choice, reason: FinishReason) -> EndedChoice:
        request = self.plan.requests[choice.index]
        return EndedChoice(
            choice=choice.index,
            reason=reason,
            num_prompt_tokens=len(request.prompt_token_ids),
            num_tokens=choice.num_tokens,
            max_tokens=request.sampling.max_tokens,
            timing=choice.timing,
        )

    def _clean_up(self, exc: BaseException | None) -> None:
        self._drain.unregister(self.end)
        cause = self._failure or exc  # a stream tells its client of a failure, and goes on
        self._open_reason = "error" if isinstance(cause, Exception) else "abort"
        self.error = cause if isinstance(cause, APIError) else None
        open_choices = [choice for choice in self._choices if choice.finish_reason is None]
        for choice in open_choices:
            self._timer.on_choice_end(self._ended(choice, self._open_reason))
        if self._source is not None:
            self._source.close()
        if open_choices:
            for stream in self._streams:
                stream.abort()


def _has_result(task: "asyncio.Task[TokenStream]") -> bool:
    return not task.cancelled() and task.exception() is None
