"""Ids to text as they come: each piece is final, and the pieces joined are the whole text.

A character split over several tokens comes out with its last one. Knows nothing of stop strings.
"""

from tokenizers.decoders import DecodeStream

from gateway.text.tokenizer import TextTokenizer

# Decoders treat the very first token apart (a leading space is dropped), so the output is decoded
# behind the end of the prompt. A handful of tokens is enough context for any decoder.
_NUM_CONTEXT_TOKENS = 6
# No character takes this many tokens: longer runs are broken bytes, written as U+FFFD.
_MAX_HELD_TOKENS = 16
_REPLACEMENT = "\ufffd"


class Detokenizer:
    """The text of one choice. Invariant: the pieces of all `push` calls and of one `finish` joined
    are the text of all ids. Owned by the event loop, one request's task at a time."""

    __slots__ = (
        *("_context", "_held", "_hidden", "_num_ids", "_plain_texts", "_prompt_ids", "_skip"),
        *("_stream", "_tokenizer"),
    )

    def __init__(
        self,
        tokenizer: TextTokenizer,
        prompt_ids: list[int],
        *,
        skip_special_tokens: bool = True,
        shown_ids: frozenset[int] = frozenset(),
    ) -> None:
        """`shown_ids`: special tokens that are text all the same."""
        self._tokenizer = tokenizer
        self._plain_texts = tokenizer.plain_texts
        self._num_ids = tokenizer.num_ids
        self._prompt_ids = prompt_ids
        self._hidden = tokenizer.hidden_ids(shown_ids) if skip_special_tokens else frozenset()
        # What is to be hidden does not come here, so the library need not look.
        self._skip = skip_special_tokens and not shown_ids
        self._context: list[int] | None = None  # None: nothing yet but the prompt
        self._held: list[int] = []
        self._stream: DecodeStream | None = None  # None: plain tokens so far, since the context

    def push(self, token_id: int) -> str:
        # Ids without text must not enter the stream: it would keep and re-decode them for ever.
        if token_id in self._hidden or token_id >= self._num_ids:
            return ""
        if not self._held:
            text = self._plain_texts[token_id]
            if text is not None:
                self._context = [token_id]
                self._stream = None
                return text
        return self._push_through_stream(token_id)

    def finish(self) -> str:
        """What is still held: an unfinished character, as U+FFFD."""
        if not self._held:
            return ""
        context = self._context or []
        before = self._decode(context)
        whole = self._decode(context + self._held)
        text = whole[len(before) :] if whole.startswith(before) else self._decode(self._held)
        self._held = []
        self._context = []
        self._stream = None
        return text

    def _push_through_stream(self, token_id: int) -> str:
        text = self._step(token_id)
        if text is not None:
            self._context = [*self._held, token_id] if self._held else [token_id]
            self._held = []
            return text
        self._held.append(token_id)
        return self.finish() if len(self._held) >= _MAX_HELD_TOKENS else ""

    def _step(self, token_id: int) -> str | None:
        if self._stream is None:
            self._stream = self._new_stream()
        try:
            return self._stream.step(self._tokenizer.backend, token_id)
        except Exception:  # the library raises a bare one
            # Some decoders rewrite earlier text (a space before a full stop): start anew from here.
            self._stream = DecodeStream(ids=[], skip_special_tokens=self._skip)
            return self._stream.step(self._tokenizer.backend, token_id)

    def _new_stream(self) -> DecodeStream:
        if self._context is None:
            self._context = self._usable_context()
        return DecodeStream(ids=self._context, skip_special_tokens=self._skip)

    def _usable_context(self) -> list[int]:
        """The end of the prompt, unless it stops inside a character: the stream would then hold it
        back and give it out as if it were generated."""
        ids = self._prompt_ids[-_NUM_CONTEXT_TOKENS:]
        context = [id_ for id_ in ids if id_ < self._num_ids]
        return [] if self._decode(context).endswith(_REPLACEMENT) else context

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip)
