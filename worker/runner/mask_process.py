"""The process that computes what grammars allow next: `python -m worker.runner.mask_process`.

It may hang or die of a grammar; the leader (worker/runner/grammar.py) then kills it, fails that
sequence, and starts another, which follows the rest from their tokens. Knows tokens and grammars;
nothing of models, logits or steps.
"""

import logging
import os
import socket
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue

import msgspec
import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer

from protos.grammar_source import LIMITS, limit_memory, plain_problem, source
from worker.model_files import read_model_files
from worker.runner.frame_socket import FrameSocket
from worker.runner.mask_messages import (
    NO_KEY,
    Accept,
    FromLeader,
    Hello,
    MaskMemory,
    Masks,
    Release,
    Start,
)

logger = logging.getLogger(__name__)

_MAX_MEMORY_BYTES = 4 << 30
_MAX_COMPILED = 128
_MAX_ERROR_CHARS = 300
_MAX_FORCED = 64
_MASKING, _COMPILING = 0, 1

Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Setup:
    """The command line."""

    socket_fd: int
    memory_fd: int
    num_rows: int
    vocab_size: int
    model_path: str
    eos_token_ids: tuple[int, ...]

    def arguments(self) -> list[str]:
        numbers = (self.socket_fd, self.memory_fd, self.num_rows, self.vocab_size)
        return [*map(str, numbers), self.model_path, *map(str, self.eos_token_ids)]

    @staticmethod
    def parse(arguments: list[str]) -> "Setup":
        socket_fd, memory_fd, num_rows, vocab_size = map(int, arguments[:4])
        eos_token_ids = tuple(map(int, arguments[5:]))
        return Setup(socket_fd, memory_fd, num_rows, vocab_size, arguments[4], eos_token_ids)


@dataclass(frozen=True, slots=True)
class _Sequence:
    row: Mask
    matcher: LLMatcher


class MaskProcess:
    """The main thread reads messages, follows sequences and computes their masks; a second one
    compiles, so that a grammar that takes long holds up nobody's masks.

    A sequence belongs to the compiling thread until its first mask is told, then to the main one.
    """

    def __init__(self, channel: FrameSocket, memory: MaskMemory, tokenizer: LLTokenizer) -> None:
        self._channel = channel
        self._memory = memory
        self._tokenizer = tokenizer
        self._mask_bytes = (tokenizer.vocab_size + 31) // 32 * 4
        self._sequences: dict[int, _Sequence] = {}
        self._compiling: set[int] = set()  # told of, and not released since
        self._handing_over = threading.Lock()  # of a sequence from one thread to the other
        self._starts: SimpleQueue[Start] = SimpleQueue()
        self._compiled: OrderedDict[tuple[str, str], LLMatcher] = OrderedDict()

    def serve(self) -> None:
        """Until the leader closes its end."""
        threading.Thread(target=self._compile_all, name="compile", daemon=True).start()
        decode = msgspec.msgpack.Decoder(FromLeader).decode
        while True:
            for message in self._channel.receive(None):
                match decode(message):
                    case Start() as start:
                        self._compiling.add(start.key)
                        self._starts.put(start)
                    case Accept(tokens):
                        self._accept(tokens)
                    case Release(keys):
                        with self._handing_over:
                            for key in keys:
                                self._compiling.discard(key)
                                self._sequences.pop(key, None)

    def _accept(self, tokens: list[tuple[int, list[int]]]) -> None:
        masks = Masks([], {}, {})
        at_work = self._memory.at_work
        for key, token_ids in tokens:
            sequence = self._sequences.get(key)
            if sequence is None:
                continue  # it has failed
            at_work[_MASKING] = key
            sequence.matcher.consume_tokens(token_ids)
            self._compute(key, sequence, masks)
        at_work[_MASKING] = NO_KEY
        self._tell(masks)

    def _compute(self, key: int, sequence: _Sequence, masks: Masks) -> None:
        """Writes the next mask to the sequence's row, and notes it in `masks`."""
        matcher, row = sequence.matcher, sequence.row
        if not matcher.is_error():
            self._fill(matcher, row)
        if matcher.is_error():
            masks.errors[key] = plain_problem(matcher.get_error())[:_MAX_ERROR_CHARS]
            return
        masks.ready.append(key)
        # The search for forced tokens costs as much as a mask; one bit says that it is worth it.
        if np.count_nonzero(row) == 1:
            forced = matcher.compute_ff_tokens()
            if len(forced) > 1:
                masks.forced[key] = forced[:_MAX_FORCED]

    def _fill(self, matcher: LLMatcher, row: Mask) -> None:
        if self._mask_bytes == len(row):
            matcher.unsafe_compute_mask_ptr(row.ctypes.data, self._mask_bytes)
            return
        buffer = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        count = min(len(buffer), len(row))
        row[:count] = buffer[:count]
        row[count:] = 0

    def _tell(self, masks: Masks) -> None:
        self._channel.send(msgspec.msgpack.encode(masks))

    # --- compiling thread -------------------------------------------------------------------------

    def _compile_all(self) -> None:
        while True:
            start = self._starts.get()
            self._memory.at_work[_COMPILING] = start.key
            masks = Masks([], {}, {})
            try:
                self._begin(start, masks)
            except Exception as error:  # the library raises bare ones
                problem = str(error)[:_MAX_ERROR_CHARS] or type(error).__name__
                masks.errors[start.key] = problem
            self._memory.at_work[_COMPILING] = NO_KEY
            self._tell(masks)

    def _begin(self, start: Start, masks: Masks) -> None:
        if start.key not in self._compiling:
            return  # it was released
        matcher = self._matcher(start.kind, start.text)
        if start.token_ids:
            matcher.consume_tokens(start.token_ids)
        sequence = _Sequence(self._memory.rows[start.row], matcher)
        self._compute(start.key, sequence, masks)
        with self._handing_over:
            if start.key in self._compiling and start.key in masks.ready:
                self._sequences[start.key] = sequence
            self._compiling.discard(start.key)

    def _matcher(self, kind: str, text: str) -> LLMatcher:
        """At its beginning, and owned by the caller."""
        compiled = self._compiled.get((kind, text))
        if compiled is None:
            compiled = LLMatcher(self._tokenizer, source(kind, text), log_level=0, limits=LIMITS)
            self._compiled[kind, text] = compiled
            if len(self._compiled) > _MAX_COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end((kind, text))
        return compiled.deep_copy()


def read_tokenizer(setup: Setup) -> LLTokenizer:
    text = read_model_files(setup.model_path)["tokenizer.json"].decode()
    eos = list(setup.eos_token_ids) or None
    try:
        return LLTokenizer(text, n_vocab=setup.vocab_size, eos_token=eos)
    except ValueError:  # some files list more tokens than the model has rows
        return LLTokenizer(text, eos_token=eos)


def _exit_with(parent: int, pause: Callable[[float], object]) -> None:
    """The other threads may be in a computation that never ends, and read no end of the channel."""
    while os.getppid() == parent:
        pause(1.0)
    os._exit(1)


def main() -> None:
    setup = Setup.parse(sys.argv[1:])
    channel = FrameSocket(socket.socket(fileno=setup.socket_fd))
    pause = threading.Event().wait
    threading.Thread(target=_exit_with, args=(os.getppid(), pause), daemon=True).start()
    try:
        tokenizer = read_tokenizer(setup)
    except Exception as error:  # the library raises bare ones
        channel.send(msgspec.msgpack.encode(Hello(f"the vocabulary cannot be read ({error})")))
        return
    memory = MaskMemory(setup.memory_fd, setup.num_rows, setup.vocab_size)
    limit_memory(_MAX_MEMORY_BYTES)
    channel.send(msgspec.msgpack.encode(Hello("")))
    try:
        MaskProcess(channel, memory, tokenizer).serve()
    except (EOFError, OSError):
        logger.debug("the leader is gone")


if __name__ == "__main__":
    main()
