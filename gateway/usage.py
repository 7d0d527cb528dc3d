"""What requests used, as lines of a file that a bill can be made from.

One JSON object a line and request, aborted and failed ones included; several processes may write to
one file. A thread does the writing, so that no disk ever holds up the event loop, and opens the
file anew when somebody has moved it away.
"""

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

log = logging.getLogger(__name__)

MAX_WAITING = 100_000  # records; a disk that stands still must not take all memory
_RETRY_S = 1.0
_CLOSE_TIMEOUT_S = 5.0
_GATHER_S = 0.1  # a thread that wakes for each record takes the event loop's turn from it


@dataclass(frozen=True, slots=True)
class Bill:
    """What of a request counts: the prompts whose answer has begun, and the tokens delivered.

    Of a prompt that its client gave up before the first token nobody knows how much was computed:
    it is no prompt to be paid, but told apart, and counted where a rate is limited.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt tokens
    completion_tokens: int = 0
    reasoning_tokens: int = 0  # of the completion tokens
    abandoned_tokens: int = 0  # of prompts that a replica had and the client gave up
    finish_reasons: tuple[str, ...] = ()  # one a choice: stop, length, abort, error

    @property
    def num_used(self) -> int:
        """What a rate is limited by."""
        return self.prompt_tokens + self.completion_tokens + self.abandoned_tokens


class UsageRecord(msgspec.Struct, frozen=True):
    """Times are Unix seconds, durations seconds. `key` is the tenant's name, "" without keys."""

    time: float  # of its arrival
    request_id: str
    key: str
    model: str
    endpoint: str
    stream: bool
    status: int  # 499: the client left before an answer
    error: str | None  # its code, or its type where it has none
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    abandoned_tokens: int
    finish_reasons: tuple[str, ...]
    first_token_s: float | None  # after arrival; None: there was none
    duration_s: float


class UsageLog:
    """`write` from the event loop never waits. Invariant: a record that was taken is in the file
    once `close` has returned, unless the disk refused it for as long as `close` waits."""

    def __init__(self, path: Path, on_drop: Callable[[], None] = lambda: None) -> None:
        """`on_drop` hears of each record that is lost. Raises: OSError when the file cannot be
        opened."""
        self._path = path
        self._on_drop = on_drop
        self._encoder = msgspec.json.Encoder()
        self._waiting: deque[UsageRecord] = deque()
        self._num_taken = 0  # by the event loop
        self._num_written = 0  # by the thread
        self._has_news = threading.Event()
        self._is_closing = threading.Event()
        self._is_over = threading.Event()  # the disk is no longer waited for
        self._fd = self._open()
        self._thread = threading.Thread(target=self._run, name="usage-log", daemon=True)
        self._thread.start()

    def write(self, record: UsageRecord) -> None:
        if self._is_closing.is_set() or len(self._waiting) >= MAX_WAITING:
            log.error("usage record lost request_id=%s", record.request_id)
            self._on_drop()
            return
        self._num_taken += 1
        self._waiting.append(record)
        if not self._has_news.is_set():  # setting it wakes the thread: once a batch, not a record
            self._has_news.set()

    def close(self, timeout_s: float = _CLOSE_TIMEOUT_S) -> None:
        """Blocks for up to `timeout_s`: call it in a thread. Idempotent."""
        self._is_closing.set()
        self._has_news.set()
        self._thread.join(timeout_s)
        self._is_over.set()
        num_lost = self._num_taken - self._num_written
        if num_lost:
            log.error("usage log %s: the last %d records are lost", self._path, num_lost)
        for _ in range(num_lost):
            self._on_drop()

    def _run(self) -> None:
        is_last = False
        while not is_last:
            self._has_news.wait()  # `close` sets it as well
            self._is_closing.wait(_GATHER_S)
            self._has_news.clear()
            # Asked before the writing: what was taken until then is still written.
            is_last = self._is_closing.is_set()
            self._write_waiting()
        os.close(self._fd)

    def _write_waiting(self) -> None:
        while self._waiting and not self._is_over.is_set():
            batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
            data = b"".join(self._encoder.encode(one) + b"\n" for one in batch)
            if self._write_all(data):
                self._num_written += len(batch)

    def _write_all(self, data: bytes) -> bool:
        """Whether all was written before `close` gave up. A line is never torn between two files:
        what a full disk took of a batch is gone on with in the same file."""
        has_failed = False
        while data and not self._is_over.is_set():
            try:
                if not has_failed:
                    self._reopen_if_moved()
                data = data[os.write(self._fd, data) :]
                has_failed = False
            except OSError as error:
                if not has_failed:
                    log.error("usage log %s: %s; trying again", self._path, error)
                has_failed = True
                self._is_over.wait(_RETRY_S)
        return not data

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def _reopen_if_moved(self) -> None:
        try:
            is_same = os.path.samestat(os.stat(self._path), os.fstat(self._fd))
        except FileNotFoundError:
            is_same = False
        if not is_same:
            old, self._fd = self._fd, self._open()
            os.close(old)
