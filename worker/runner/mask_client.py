"""The leader's end of a mask process: starts it, talks to it, kills it.

Decides nothing: which grammar is to blame for what, GrammarMasks knows.
"""

import itertools
import logging
import os
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec
import numpy as np
import numpy.typing as npt

from protos.grammar_source import cpu_seconds
from worker.engine.sampling_params import Grammar
from worker.runner.frame_socket import FrameSocket
from worker.runner.mask_messages import (
    NO_KEY,
    Accept,
    FromLeader,
    FromMaskProcess,
    Hello,
    MaskMemory,
    Masks,
    Release,
    Start,
)
from worker.runner.mask_process import Setup

logger = logging.getLogger(__name__)

_EXIT_TIMEOUT_S = 5.0


class MaskClient:
    """Invariant: at most one process at a time, none before the first sequence. Used by the engine
    thread only.
    """

    def __init__(
        self,
        model_path: str,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        num_rows: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.started_s = 0.0  # the process, on the clock
        self.running_since_s = 0.0  # when it had read the vocabulary
        self.is_running = False  # it has
        self.problem = ""  # why no process can be of use
        self._model_path = model_path
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(eos_token_ids)
        self._num_rows = num_rows
        self._clock = clock
        self._memory_fd = MaskMemory.create(num_rows, vocab_size)
        self._memory = MaskMemory(self._memory_fd, num_rows, vocab_size)
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: FrameSocket | None = None
        self._keys = itertools.count(NO_KEY + 1)
        self._hopeless: dict[int, str] = {}  # not yet told
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(FromMaskProcess).decode

    @property
    def rows(self) -> npt.NDArray[np.uint8]:
        """[num_rows, bytes]: bit i of a row says whether token i may come next."""
        return self._memory.rows

    def new_key(self) -> int:
        """For a sequence."""
        return next(self._keys)

    def warm_up(self) -> None:
        """Starts the process before anybody needs it."""
        if self._process is None and not self.problem:
            self._spawn()

    def start(self, key: int, row: int, grammar: Grammar, token_ids: list[int]) -> None:
        self.warm_up()
        if self.problem:
            self._hopeless[key] = self.problem
        else:
            self._send(Start(key, row, grammar.kind, grammar.text, token_ids))

    def accept(self, tokens: list[tuple[int, list[int]]]) -> None:
        self._send(Accept(tokens))

    def release(self, keys: list[int]) -> None:
        self._send(Release(keys))

    def receive(self, timeout_s: float) -> list[Masks] | None:
        """What has come within the time; None: the process has died."""
        news: list[Masks] = []
        if self._hopeless:
            news.append(Masks(errors=self._hopeless))
            self._hopeless = {}
        if news or self._channel is None:
            return news
        try:
            for message in self._channel.receive(timeout_s):
                match self._decode(message):
                    case Masks() as masks:
                        news.append(masks)
                    case Hello(problem):
                        self._greet(problem)
        except (EOFError, OSError):
            if not self.is_running and not self.problem:
                self._greet("their process does not start")
            if not self.problem:
                return None
            self._kill()  # no other would do better
        return news

    def at_work(self) -> set[int]:
        """The sequences that the process is, or was when it died, computing something for."""
        return {int(key) for key in self._memory.at_work} - {NO_KEY}

    def cpu_seconds(self) -> float | None:
        """What the process has computed so far, where the system tells."""
        return None if self._process is None else cpu_seconds(self._process.pid)

    def restart(self) -> None:
        self._kill()
        self._memory.at_work[:] = NO_KEY
        self._spawn()

    def close(self) -> None:
        self._kill()
        if self._memory_fd >= 0:
            os.close(self._memory_fd)
            self._memory_fd = -1

    def _greet(self, problem: str) -> None:
        self.is_running = not problem
        self.running_since_s = self._clock()
        if problem:
            self.problem = f"grammars cannot be used: {problem}"
            logger.warning("no constrained output: %s", problem)

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        setup = Setup(
            socket_fd=theirs.fileno(),
            memory_fd=self._memory_fd,
            num_rows=self._num_rows,
            vocab_size=self._vocab_size,
            model_path=self._model_path,
            eos_token_ids=self._eos_token_ids,
        )
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "worker.runner.mask_process", *setup.arguments()],
                pass_fds=(setup.socket_fd, setup.memory_fd),
                stdin=subprocess.DEVNULL,
                # It finds the code where this process did, however that was started.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        # A runner has no end of its own: its process ends with the client at the latest.
        weakref.finalize(self, _end, self._process)
        self._channel = FrameSocket(ours)
        self.is_running = False
        self.started_s = self._clock()

    def _send(self, message: FromLeader) -> None:
        if self._channel is None:
            return
        try:
            self._channel.send(self._encode(message))
        except OSError:
            logger.debug("the mask process is gone; the next receive says so")

    def _kill(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            _end(self._process)
            self._process = None
        self.is_running = False


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    with suppress(subprocess.TimeoutExpired):  # the system has yet to end it
        process.wait(_EXIT_TIMEOUT_S)
