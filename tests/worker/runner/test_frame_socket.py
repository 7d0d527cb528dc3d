"""Messages between two processes: whole, in order, and sent without ever waiting."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from worker.runner.frame_socket import FrameSocket

Pair = tuple[FrameSocket, FrameSocket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ends = socket.socketpair()
    here, there = FrameSocket(ends[0]), FrameSocket(ends[1])
    yield here, there
    here.close()
    there.close()


def receive_all(end: FrameSocket, count: int, timeout_s: float = 10.0) -> list[bytes]:
    deadline_s = time.monotonic() + timeout_s
    messages: list[bytes] = []
    while len(messages) < count and time.monotonic() < deadline_s:
        messages += end.receive(0.1)
    return messages


def test_messages_arrive_whole_and_in_order(pair: Pair):
    here, there = pair
    sent = [b"", b"a", bytes(70_000), b"end"]
    for message in sent:
        here.send(message)
    reader = threading.Thread(target=lambda: here.receive(2.0))
    reader.start()  # goes on with sending meanwhile
    assert receive_all(there, len(sent)) == sent
    there.send(b"done")
    reader.join(5)


def test_sending_never_waits_for_who_does_not_read(pair: Pair):
    here, there = pair
    started_s = time.monotonic()
    for i in range(200):
        here.send(bytes([i]) * 20_000)
    assert time.monotonic() - started_s < 5
    received: list[bytes] = []
    while len(received) < 200:
        here.receive(0)  # gets on with sending
        received += there.receive(0.05)
        assert time.monotonic() - started_s < 20
    assert [message[0] for message in received] == list(range(200))


def test_nothing_to_read_is_no_message(pair: Pair):
    assert pair[0].receive(0) == [] and pair[0].receive(0.01) == []


def test_the_other_sides_end_is_an_error(pair: Pair):
    here, there = pair
    there.send(b"last words")
    there.close()
    assert receive_all(here, 1) == [b"last words"]
    with pytest.raises(EOFError):
        here.receive(1.0)
