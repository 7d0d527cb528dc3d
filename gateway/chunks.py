"""Choice events as the JSON of stream chunks, written into byte templates.

All of a stream's chunks share their head, so it is encoded once; the usual chunk, a few characters
of text and nothing else, costs one JSON string. Nothing here waits or knows HTTP.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from gateway.logprobs import chat_logprobs, text_logprobs
from gateway.parsers.events import ToolDelta
from gateway.schemas.answers import Usage
from gateway.text.choice import ChoiceEvent
from gateway.text.tokenizer import TextTokenizer

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class ChunkHead:
    """What every chunk of one stream says, and what the client asked the chunks to carry."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    tokenizer: TextTokenizer
    num_top_logprobs: int = 0
    wants_token_ids: bool = False


class Chunks(ABC):
    """Base of the two chunk kinds. Owned by one request's task."""

    object_name: str
    # Around the text of a chunk that has only text; the index comes between the first two.
    text_before: tuple[bytes, bytes]
    text_after: bytes

    def __init__(self, head: ChunkHead) -> None:
        self._head = head
        fields = {
            "id": head.id,
            "object": self.object_name,
            "created": head.created,
            "model": head.model,
            "system_fingerprint": head.system_fingerprint,
        }
        self._open = b"data: " + _encode(fields)[:-1]
        self._text_heads: dict[int, bytes] = {}
        self._begun: set[int] = set()

    def write(
        self, event: ChoiceEvent, usage: Usage | None, prompt_ids: list[int] | None = None
    ) -> bytes:
        """Some frames, or none when there is nothing to say yet. `prompt_ids`: given with a
        choice's first event where the client wants token ids."""
        if event.index in self._begun:
            return self._write_begun(event, usage)
        self._begun.add(event.index)
        return self._write_first(event, usage, prompt_ids)

    @abstractmethod
    def _write_first(
        self, event: ChoiceEvent, usage: Usage | None, prompt_ids: list[int] | None
    ) -> bytes:
        """A choice's first event: never nothing, it is the client's first sign of life."""

    def _write_begun(
        self, event: ChoiceEvent, usage: Usage | None, prompt_ids: list[int] | None = None
    ) -> bytes:
        is_text_only = event.finish_reason is None and event.logprobs is None
        if is_text_only and usage is None and not self._head.wants_token_ids:
            return self._plain_frames(event)
        has_text = event.text or event.reasoning
        is_empty = is_text_only and not has_text and not event.token_ids
        if is_empty and prompt_ids is None:
            return b""
        return self._full_frame(event, usage, prompt_ids)

    def usage(self, usage: Usage) -> bytes:
        return self._frame(b"[]", usage)

    def _text_frame(self, index: int, text: str) -> bytes:
        head = self._text_heads.get(index)
        if head is None:
            before, behind = self.text_before
            head = self._open + b',"choices":[' + before + b"%d" % index + behind
            self._text_heads[index] = head
        return head + _encode(text) + self.text_after

    def _plain_frames(self, event: ChoiceEvent) -> bytes:
        """Of an event that has text at most."""
        return self._text_frame(event.index, event.text) if event.text else b""

    def _full_frame(
        self, event: ChoiceEvent, usage: Usage | None, prompt_ids: list[int] | None
    ) -> bytes:
        choice = self._choice(event)
        choice["finish_reason"] = event.finish_reason
        if event.finish_reason is not None:
            choice["stop_reason"] = event.stop_reason
        if self._head.wants_token_ids:
            choice["token_ids"] = event.token_ids
        return self._frame(_encode([choice]), usage, prompt_ids)

    def _frame(
        self, choices: bytes, usage: Usage | None = None, prompt_ids: list[int] | None = None
    ) -> bytes:
        parts = [self._open, b',"choices":', choices]
        if usage is not None:
            parts += [b',"usage":', _encode(usage)]
        if prompt_ids is not None:
            parts += [b',"prompt_token_ids":', _encode(prompt_ids)]
        return b"".join([*parts, b"}\n\n"])

    @abstractmethod
    def _choice(self, event: ChoiceEvent) -> dict[str, Any]:
        """The choice's fields but for the end and the token ids."""


class ChatChunks(Chunks):
    """chat.completion.chunk: the first of each choice says the role and no text."""

    object_name = "chat.completion.chunk"
    text_before = (b'{"index":', b',"delta":{"content":')
    text_after = b'},"logprobs":null,"finish_reason":null}]}\n\n'

    def _write_first(
        self, event: ChoiceEvent, usage: Usage | None, prompt_ids: list[int] | None
    ) -> bytes:
        delta = {"role": "assistant", "content": ""}
        choice = {
            "index": event.index,
            "delta": delta,
            "logprobs": None,
            "finish_reason": None,
        }
        first = self._frame(_encode([choice]), usage, prompt_ids)
        return first + self._write_begun(event, usage)

    def _write_begun(
        self, event: ChoiceEvent, usage: Usage | None, prompt_ids: list[int] | None = None
    ) -> bytes:
        """Calls have frames of their own, between the event's text and its end."""
        if not event.tool_deltas:
            return super()._write_begun(event, usage, prompt_ids)
        text = replace(event, finish_reason=None, tool_deltas=[])
        has_text = event.text or event.reasoning or event.token_ids
        frames = [super()._write_begun(text, usage) if has_text else b""]
        frames += [self._call_frame(event.index, delta, usage) for delta in event.tool_deltas]
        if event.finish_reason is not None:
            end = replace(event, text="", reasoning="", token_ids=[], logprobs=None, tool_deltas=[])
            frames.append(self._full_frame(end, usage, None))
        return b"".join(frames)

    def _plain_frames(self, event: ChoiceEvent) -> bytes:
        """Thoughts go out under both names: clients know one or the other."""
        text = super()._plain_frames(event)
        if not event.reasoning:
            return text
        head = b',"choices":[{"index":%d,"delta":{"reasoning":' % event.index
        thought = _encode(event.reasoning)
        both = [thought, b',"reasoning_content":', thought]
        return b"".join([self._open, head, *both, self.text_after, text])

    def _call_frame(self, index: int, delta: ToolDelta, usage: Usage | None) -> bytes:
        call: dict[str, Any] = {"index": delta.index}
        function: dict[str, str] = {"arguments": delta.arguments}
        if delta.id is not None and delta.name is not None:
            call |= {"id": delta.id, "type": "function"}
            function = {"name": delta.name, **function}
        choice = {
            "index": index,
            "delta": {"tool_calls": [{**call, "function": function}]},
            "logprobs": None,
            "finish_reason": None,
        }
        return self._frame(_encode([choice]), usage)

    def _choice(self, event: ChoiceEvent) -> dict[str, Any]:
        head = self._head
        logprobs = None
        if event.logprobs:
            logprobs = chat_logprobs(event.logprobs, head.num_top_logprobs, head.tokenizer)
        delta = {"content": event.text} if event.text else {}
        if event.reasoning:
            delta = {"reasoning": event.reasoning, "reasoning_content": event.reasoning, **delta}
        return {"index": event.index, "delta": delta, "logprobs": logprobs}


class TextChunks(Chunks):
    """text_completion: chunk and whole answer are the same object. The first of each choice comes
    with its first token, even if that has no text: a client's first sign of life.
    """

    object_name = "text_completion"
    text_before = (b'{"index":', b',"text":')
    text_after = b',"logprobs":null,"finish_reason":null}]}\n\n'

    def _write_first(
        self, event: ChoiceEvent, usage: Usage | None, prompt_ids: list[int] | None
    ) -> bytes:
        frame = self._write_begun(event, usage, prompt_ids)
        return frame or self._text_frame(event.index, "")

    def _choice(self, event: ChoiceEvent) -> dict[str, Any]:
        head = self._head
        logprobs = None
        if event.logprobs:
            logprobs = text_logprobs(event.logprobs, head.num_top_logprobs, head.tokenizer)
        return {"index": event.index, "text": event.text, "logprobs": logprobs}
