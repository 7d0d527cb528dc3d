"""Requests that wait for their first or next admission, in the order they should get it.

A collaborator of the BatchScheduler; knows priorities, arrival order and deadlines, nothing of
blocks.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import islice
from operator import attrgetter

from worker.engine.request import Request, Status

_by_order = attrgetter("order")


class WaitingQueue:
    """Owned by the engine thread.

    Invariant: sorted by (priority, arrival); a preempted request comes back to its old place, so
    nobody loses a turn by being preempted.
    """

    def __init__(self) -> None:
        self.backlog_tokens = 0  # tokens to compute for all of them, cached prefixes left out
        self._requests: list[Request] = []
        # Entries of requests that have left are dropped when they come up.
        self._deadlines: list[tuple[float, tuple[int, int], Request]] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def head(self) -> Request | None:
        return self._requests[0] if self._requests else None

    def window(self, size: int) -> list[Request]:
        """The first `size` requests."""
        return list(islice(self._requests, size))

    def push(self, request: Request) -> None:
        insort(self._requests, request, key=_by_order)
        request.backlog_tokens = request.num_tokens - request.num_hit_tokens
        self.backlog_tokens += request.backlog_tokens
        if request.deadline_s is not None:
            heappush(self._deadlines, (request.deadline_s, request.order, request))
            self._drop_stale_deadlines()

    def remove(self, request: Request) -> None:
        """Raises: ValueError if it does not wait here."""
        index = bisect_left(self._requests, request.order, key=_by_order)
        if index == len(self._requests) or self._requests[index] is not request:
            raise ValueError(f"request {request.request_id} does not wait")
        del self._requests[index]
        self.backlog_tokens -= request.backlog_tokens

    def pop_expired(self, now_s: float) -> list[Request]:
        """Removes and returns the requests whose deadline has passed."""
        expired: list[Request] = []
        while self._deadlines and self._deadlines[0][0] <= now_s:
            request = heappop(self._deadlines)[2]
            # A request that was preempted has an entry for each time it came here.
            if request.status is Status.WAITING and request not in expired:
                self.remove(request)
                expired.append(request)
        return expired

    def _drop_stale_deadlines(self) -> None:
        """Lets go of requests that left long before their deadline, at O(1) a push on average."""
        if len(self._deadlines) > 2 * len(self._requests) + 64:
            self._deadlines = [d for d in self._deadlines if d[2].status is Status.WAITING]
            heapify(self._deadlines)
