import pytest

from protos.block_hash import root_hash
from tests.worker.engine.harness import new_request
from worker.engine.request import Request, Status
from worker.engine.waiting_queue import WaitingQueue


def make(sequence: int, priority: int = 0, deadline_s: float | None = None) -> Request:
    new = new_request(sequence, [1, 2, 3], priority=priority, deadline_s=deadline_s)
    return Request(new, 100, sequence, root_hash())


def test_order_is_priority_then_arrival() -> None:
    queue = WaitingQueue()
    for request in (make(1), make(2, priority=-1), make(3), make(4, priority=-1)):
        queue.push(request)
    assert [request.handle for request in queue] == [2, 4, 1, 3]


def test_request_that_comes_back_keeps_its_place() -> None:
    queue = WaitingQueue()
    first, second = make(1), make(2)
    queue.push(first)
    queue.push(second)
    queue.remove(first)
    queue.push(first)
    assert queue.head() is first


def test_backlog_is_zero_after_all_have_left_whatever_they_became() -> None:
    queue = WaitingQueue()
    request = make(1)
    queue.push(request)
    assert queue.backlog_tokens == 3
    request.token_ids.append(7)
    request.num_hit_tokens = 2
    queue.remove(request)
    assert queue.backlog_tokens == 0


def test_removing_a_stranger_fails() -> None:
    queue = WaitingQueue()
    queue.push(make(1))
    with pytest.raises(ValueError, match="r2"):
        queue.remove(make(2))


def test_only_expired_waiting_requests_are_popped_once() -> None:
    queue = WaitingQueue()
    early, late, gone = make(1, deadline_s=5.0), make(2, deadline_s=50.0), make(3, deadline_s=4.0)
    for request in (early, late, gone):
        queue.push(request)
    queue.remove(gone)
    gone.status = Status.RUNNING
    queue.remove(early)
    queue.push(early)  # preempted: a second entry
    assert queue.pop_expired(10.0) == [early]
    assert queue.pop_expired(10.0) == []
    assert list(queue) == [late]


def test_requests_that_left_before_their_deadline_are_let_go() -> None:
    queue = WaitingQueue()
    for i in range(1000):
        request = make(i, deadline_s=1e9)
        queue.push(request)
        queue.remove(request)
        request.status = Status.FINISHED
    assert len(queue._deadlines) < 100
