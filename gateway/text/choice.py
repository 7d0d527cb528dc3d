"""One choice's way from token deltas to text: detokenizer, stop strings, the end.

Pure state, no I/O: Generation feeds it what the engine sent. The events of a choice, joined, are
the same however the engine's tokens were grouped into deltas.
"""

from dataclasses import dataclass, field

from gateway.errors import EngineError, UnavailableError
from gateway.logprobs import ScoredToken
from gateway.parsers.answer import AnswerReader, AnswerReading
from gateway.parsers.events import Content, ParserEvent, Reasoning, ToolDelta
from gateway.schemas.answers import AnswerEnd, StopReason
from gateway.text.detokenizer import Detokenizer
from gateway.text.stop import StopStrings
from gateway.text.tokenizer import TextTokenizer
from gateway.tokens import FinishReason, Timing, TokenDelta, TokenLogprobs


@dataclass(frozen=True, slots=True)
class TextSettings:
    """How tokens become text, for all choices of a request."""

    stops: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    shown_special_ids: frozenset[int] = frozenset()  # marks of tool calls: text all the same
    min_tokens: int = 0  # stop strings count only from the token after these
    stop_token_ids: frozenset[int] = frozenset()  # the client's own: named as the stop reason
    wants_logprobs: bool = False
    echoes_prompt_logprobs: bool = False
    drops_output: bool = False  # the client wants the echoed prompt only
    answer: AnswerReading | None = None  # None: the model does not think, all text is its answer


@dataclass(slots=True)
class ChoiceEvent:
    """What is new of one choice since its last event."""

    index: int
    text: str = ""
    reasoning: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: AnswerEnd | None = None
    stop_reason: StopReason = None
    found_calls: list[ParserEvent] | None = None  # told with the thoughts
    hidden_places: list[int] | None = None  # in token_ids: thoughts that nobody wants
    tool_deltas: list[ToolDelta] = field(default_factory=list)
    logprobs: list[ScoredToken] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None

    def drop_hidden(self) -> None:
        hidden = frozenset(self.hidden_places or ())
        self.token_ids = [id_ for i, id_ in enumerate(self.token_ids) if i not in hidden]
        self.hidden_places = None


class Choice:
    """Invariant: after an event with a finish_reason it takes no more. Owned by the event loop."""

    __slots__ = (
        *(
            "_detokenizer",
            "_echo_text",
            "_is_plain",
            "_offset",
            "_prompt_ids",
            "_reader",
            "_settings",
            "_stops",
            "_tokenizer",
        ),
        *("finish_reason", "index", "num_reasoning_tokens", "num_tokens", "timing"),
    )

    def __init__(
        self,
        index: int,
        prompt_ids: list[int],
        tokenizer: TextTokenizer,
        settings: TextSettings,
        echo_text: str = "",
    ) -> None:
        self.index = index
        self.num_tokens = 0
        self.num_reasoning_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.timing = Timing()
        self._settings = settings
        self._tokenizer = tokenizer
        self._prompt_ids = prompt_ids
        self._echo_text = echo_text
        self._offset = len(echo_text)
        # Its tokens are just text: no stop strings, no scores, nothing dropped.
        self._is_plain = not (settings.stops or settings.wants_logprobs or settings.drops_output)
        reading = settings.answer
        self._reader: AnswerReader | None = None if reading is None else reading.make_reader()
        self._stops = StopStrings(settings.stops, include=settings.include_stop)
        self._detokenizer = Detokenizer(
            tokenizer,
            prompt_ids,
            skip_special_tokens=settings.skip_special_tokens,
            shown_ids=settings.shown_special_ids,
        )

    def feed(self, deltas: list[TokenDelta]) -> ChoiceEvent:
        """Raises: APIError when the engine gave the request up."""
        if len(deltas) == 1 and self._is_plain and self._reader is None and self.num_tokens:
            delta = deltas[0]
            if delta.finish_reason is None and delta.timing is None:
                return self._feed_plain(delta.token_ids)
        event = ChoiceEvent(self.index)
        if self._settings.wants_logprobs:
            event.logprobs = []
        for delta in deltas:
            if delta.prompt_logprobs is not None:
                self._take_prompt_logprobs(delta.prompt_logprobs, event)
            if delta.timing is not None:
                self.timing = delta.timing
            if self.finish_reason is None:
                self._take(delta, event)
        if self._echo_text:
            event.text = self._echo_text + event.text
            self._echo_text = ""
        return event

    def _feed_plain(self, token_ids: list[int]) -> ChoiceEvent:
        """Nearly every delta: tokens, neither the first nor the last."""
        self.num_tokens += len(token_ids)
        push = self._detokenizer.push
        if len(token_ids) == 1:
            return ChoiceEvent(self.index, push(token_ids[0]), token_ids=token_ids)
        text = "".join([push(id_) for id_ in token_ids])
        return ChoiceEvent(self.index, text, token_ids=token_ids)

    def _take(self, delta: TokenDelta, event: ChoiceEvent) -> None:
        if delta.finish_reason in ("abort", "error"):
            _raise_failure(delta.finish_reason)
        if self._settings.drops_output:
            if delta.token_ids or delta.finish_reason is not None:
                self._end("length", event)
            return
        if not self._is_plain or self._reader is not None:
            self._take_one_by_one(delta, event)
        else:
            shown = self._num_shown(delta)
            push = self._detokenizer.push
            for token_id in delta.token_ids[:shown]:
                event.text += push(token_id)
            event.token_ids += delta.token_ids
            self.num_tokens += len(delta.token_ids)
        if delta.finish_reason is not None and self.finish_reason is None:
            self._finish(delta, event)

    def _take_one_by_one(self, delta: TokenDelta, event: ChoiceEvent) -> None:
        """A stop string may match in the middle of a delta: the tokens behind it never were."""
        shown = self._num_shown(delta)
        for place, token_id in enumerate(delta.token_ids):
            piece = self._detokenizer.push(token_id) if place < shown else ""
            self._count(delta, place, len(piece), event)
            if self._reader is None:
                self._show(piece, event)
            else:
                self._read(self._reader, piece, event)
            if self._stops.matched is not None:
                event.stop_reason = self._stops.matched
                self._end("stop", event)
                return

    def _count(self, delta: TokenDelta, place: int, num_chars: int, event: ChoiceEvent) -> None:
        token_id = delta.token_ids[place]
        self.num_tokens += 1
        event.token_ids.append(token_id)
        if event.logprobs is not None and delta.logprobs is not None:
            event.logprobs.append(ScoredToken(token_id, self._offset, delta.logprobs[place]))
        self._offset += num_chars

    def _read(self, reader: AnswerReader, piece: str, event: ChoiceEvent) -> None:
        """One token's text. Marks are no thoughts: they count neither way."""
        was_thinking = reader.is_thinking
        self._tell(reader.feed(piece), event)
        if was_thinking and reader.is_thinking:
            self.num_reasoning_tokens += 1
        if reader.is_over:
            self._reader = None
        assert self._settings.answer is not None
        if self._settings.answer.is_hidden and (was_thinking or reader.is_thinking):
            event.hidden_places = [*(event.hidden_places or ()), len(event.token_ids) - 1]
            if event.logprobs:
                event.logprobs.pop()

    def _tell(self, found: list[ParserEvent], event: ChoiceEvent) -> None:
        assert self._settings.answer is not None
        for part in found:
            if isinstance(part, Reasoning):
                if not self._settings.answer.is_hidden:
                    event.reasoning += part.text
            elif isinstance(part, Content):
                self._show(part.text, event)
            else:
                event.found_calls = [*(event.found_calls or ()), part]

    def _show(self, piece: str, event: ChoiceEvent) -> None:
        if self.num_tokens > self._settings.min_tokens:
            event.text += self._stops.push(piece)
        else:
            event.text += piece

    def _finish(self, delta: TokenDelta, event: ChoiceEvent) -> None:
        assert delta.finish_reason is not None
        if self._reader is None:
            self._show(self._detokenizer.finish(), event)
        else:
            self._tell(self._reader.feed(self._detokenizer.finish()), event)
            self._tell(self._reader.finish(), event)
        if self._stops.matched is not None:
            event.stop_reason = self._stops.matched
            self._end("stop", event)
            return
        event.text += self._stops.finish()
        last = delta.token_ids[-1] if delta.token_ids else None
        if delta.finish_reason == "stop" and last in self._settings.stop_token_ids:
            event.stop_reason = last
        self._end(delta.finish_reason, event)

    def _end(self, reason: FinishReason, event: ChoiceEvent) -> None:
        self.finish_reason = event.finish_reason = reason

    def _num_shown(self, delta: TokenDelta) -> int:
        """The token that stopped the engine is not text, unless the client wants stops included."""
        hides_last = delta.finish_reason == "stop" and not self._settings.include_stop
        return len(delta.token_ids) - 1 if hides_last else len(delta.token_ids)

    def _take_prompt_logprobs(self, scores: list[TokenLogprobs], event: ChoiceEvent) -> None:
        event.prompt_logprobs = scores
        if self._settings.echoes_prompt_logprobs and event.logprobs is not None:
            event.logprobs += self._scored_prompt(scores)

    def _scored_prompt(self, scores: list[TokenLogprobs]) -> list[ScoredToken]:
        pieces = Detokenizer(
            self._tokenizer, [], skip_special_tokens=self._settings.skip_special_tokens
        )
        scored: list[ScoredToken] = []
        offset = 0
        for token_id, score in zip(self._prompt_ids, [None, *scores], strict=True):
            scored.append(ScoredToken(token_id, offset, score))
            offset += len(pieces.push(token_id))
        return scored


def _raise_failure(reason: FinishReason) -> None:
    if reason == "error":
        raise EngineError("The model failed to answer this request.")
    raise UnavailableError("The request was aborted before its answer was complete.")
