"""The channel on which the leader sends each step's plan to its followers.

One TCP connection a follower, on one host or across hosts (a plan takes some 30 us over loopback,
wake-up included, and a waiting follower takes no CPU). The kernel closes a dead process's
connections, so both sides learn of the other's death at once. A frame is a length, a kind and a
body; a plan's body is msgpack. Knows nothing of what a plan does; used by the executors.
"""

import logging
import secrets
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from worker.engine.step import StepPlan
from worker.errors import ShardError

logger = logging.getLogger(__name__)

_HEADER = struct.Struct("<IB")
_HELLO, _PLAN, _FAILURE, _END = range(4)
_WATCH_INTERVAL_S = 1.0
_MAX_HELLO_BYTES = 256


class PlanSender(Protocol):
    """The leader's end. Owned by the engine thread."""

    def wait_connected(self) -> None:
        """Raises: ShardError unless all followers come in time."""
        ...

    def watch(self, on_failure: Callable[[str], None]) -> None:
        """From now on calls `on_failure(reason)` once, from a thread of its own, when a follower
        dies or reports a failure.
        """
        ...

    def send(self, plan: StepPlan) -> None:
        """Raises: ShardError when a follower is gone."""
        ...

    def close(self) -> None:
        """Ends the followers' loops. Idempotent."""
        ...


class PlanReceiver(Protocol):
    """A follower's end. Owned by the thread of its loop; `close` may be called from another."""

    def receive(self) -> StepPlan | None:
        """The next plan; None when the leader has ended the channel, or this end was closed.

        Raises: ShardError when the leader is gone.
        """
        ...

    def fail(self, reason: str) -> None:
        """Tells the leader that this rank cannot go on."""
        ...

    def close(self) -> None: ...


def encode_plan(plan: StepPlan) -> bytes:
    return _encoder.encode(plan)


def decode_plan(body: bytes | bytearray) -> StepPlan:
    return _decoder.decode(body)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(StepPlan)


class LeaderChannel:
    """A PlanSender over TCP. `address` (host:port/token) is what followers connect with; the token
    keeps strangers out.
    """

    def __init__(self, num_followers: int, host: str, timeout_s: float = 60.0) -> None:
        self._num_followers = num_followers
        self._timeout_s = timeout_s
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host.strip("[]"), 0), family=family)
        self._token = secrets.token_hex(16)
        self.address = f"{host}:{self._listener.getsockname()[1]}/{self._token}"
        self._followers: dict[int, socket.socket] = {}
        self._watcher: threading.Thread | None = None
        self._is_closed = False

    def wait_connected(self) -> None:
        deadline = time.monotonic() + self._timeout_s
        while len(self._followers) < self._num_followers:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                raise ShardError(
                    f"{len(self._followers)} of {self._num_followers} followers came "
                    f"within {self._timeout_s:g} s"
                )
            self._listener.settimeout(remaining_s)
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            self._greet(connection, min(5.0, remaining_s))

    def watch(self, on_failure: Callable[[str], None]) -> None:
        self._watcher = threading.Thread(
            target=self._watch, args=(on_failure,), name="follower-watch", daemon=True
        )
        self._watcher.start()

    def send(self, plan: StepPlan) -> None:
        frame = _frame(_PLAN, encode_plan(plan))
        for rank, connection in self._followers.items():
            try:
                connection.sendall(frame)
            except OSError as error:
                raise ShardError(f"rank {rank} takes no plan: {error}") from error

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._listener.close()
        for connection in self._followers.values():
            _say_goodbye(connection)
        if self._watcher is not None and self._watcher is not threading.current_thread():
            self._watcher.join(timeout=5 * _WATCH_INTERVAL_S)
        for connection in self._followers.values():
            connection.close()

    def _greet(self, connection: socket.socket, timeout_s: float) -> None:
        """Takes a follower in; drops whoever does not know the token."""
        connection.settimeout(timeout_s)
        try:
            frame = _read_frame(connection, _MAX_HELLO_BYTES)
        except OSError:
            frame = None
        token, _, rank = frame[1].decode(errors="replace").partition(" ") if frame else ("", "", "")
        if not secrets.compare_digest(token.encode(), self._token.encode()) or not rank.isdigit():
            logger.warning("a stranger on the step channel was refused")
            connection.close()
            return
        _tune(connection)
        connection.settimeout(self._timeout_s)
        self._followers[int(rank)] = connection

    def _watch(self, on_failure: Callable[[str], None]) -> None:
        poll = select.poll()
        ranks = {connection.fileno(): rank for rank, connection in self._followers.items()}
        for fd in ranks:
            poll.register(fd, select.POLLIN)
        while not self._is_closed:
            ready = poll.poll(_WATCH_INTERVAL_S * 1000)
            if ready and not self._is_closed:
                on_failure(self._failure_of(ranks[ready[0][0]]))
                return

    def _failure_of(self, rank: int) -> str:
        """A follower only ever speaks to say that it failed."""
        try:
            frame = _read_frame(self._followers[rank])
        except OSError:
            frame = None
        if frame is None:
            return f"rank {rank} has died"
        return f"rank {rank} failed: {frame[1].decode(errors='replace')}"


class FollowerChannel:
    """A PlanReceiver over TCP. Raises: ShardError when the leader cannot be reached."""

    def __init__(self, address: str, rank: int, timeout_s: float = 60.0) -> None:
        place, _, token = address.partition("/")
        host, _, port = place.rpartition(":")
        self._is_closed = False
        try:
            self._leader = socket.create_connection((host.strip("[]"), int(port)), timeout_s)
            _tune(self._leader)
            self._leader.sendall(_frame(_HELLO, f"{token} {rank}".encode()))
        except OSError as error:
            raise ShardError(f"rank {rank} cannot reach its leader at {place}: {error}") from error
        # An idle leader is silent for hours; its death, or its host's, ends the wait (see _tune).
        self._leader.settimeout(None)

    def receive(self) -> StepPlan | None:
        try:
            frame = _read_frame(self._leader)
        except OSError as error:
            if self._is_closed:
                return None
            raise ShardError(f"the leader is gone: {error}") from error
        if self._is_closed or (frame is not None and frame[0] == _END):
            return None
        if frame is None:
            raise ShardError("the leader has died")
        return decode_plan(frame[1])

    def fail(self, reason: str) -> None:
        try:
            self._leader.sendall(_frame(_FAILURE, reason.encode()))
        except OSError:
            logger.warning("the leader is gone and did not hear: %s", reason)

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self._leader.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits in `receive`
        except OSError:
            logger.debug("the step channel was already down")
        self._leader.close()


def _frame(kind: int, body: bytes) -> bytes:
    return _HEADER.pack(len(body), kind) + body


def _read_frame(
    connection: socket.socket, limit: int | None = None
) -> tuple[int, bytearray] | None:
    """Kind and body; None at the end of the stream, also in mid-frame. Raises: OSError."""
    header = _read(connection, _HEADER.size)
    if header is None:
        return None
    length, kind = _HEADER.unpack(header)
    if limit is not None and length > limit:
        return None
    body = _read(connection, length)
    return None if body is None else (kind, body)


def _read(connection: socket.socket, length: int) -> bytearray | None:
    data = bytearray(length)
    view = memoryview(data)
    done = 0
    while done < length:
        count = connection.recv_into(view[done:])
        if count == 0:
            return None
        done += count
    return data


def _say_goodbye(connection: socket.socket) -> None:
    try:
        connection.sendall(_frame(_END, b""))
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        logger.debug("a follower was already gone")


def _tune(connection: socket.socket) -> None:
    """Frames leave at once; a peer whose host vanished without a word is noticed within 11 s."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
