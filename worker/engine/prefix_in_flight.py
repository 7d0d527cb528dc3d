"""Which shared prefixes are being computed right now, so that simultaneous requests compute them
once.

A collaborator of the BatchScheduler. It only ever advises to wait for a running request of at least
equal priority, and a running request always progresses or gives its claim up; so nobody waits for
nothing.
"""

from itertools import takewhile

from protos.block_hash import BlockHash
from worker.engine.request import Request

# Waiting costs a step or more: it must spare a quarter of the work, or this many tokens.
_MIN_SPARED_FRACTION = 0.25
_MIN_SPARED_TOKENS = 256


class PrefixInFlight:
    """Owned by the engine thread. Invariant: every claimed hash belongs to a running request."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._claims: dict[BlockHash, Request] = {}

    def __len__(self) -> int:
        return len(self._claims)

    def claim(self, request: Request) -> None:
        """The request has been admitted and will compute the rest of its full blocks."""
        for block_hash in request.block_hashes[request.num_blocks_cached :]:
            self._claims.setdefault(block_hash, request)

    def settle(self, request: Request, hashes: list[BlockHash]) -> None:
        """These blocks are computed, or will not be."""
        for block_hash in hashes:
            if self._claims.get(block_hash) is request:
                del self._claims[block_hash]

    def withdraw(self, request: Request) -> None:
        """The request leaves the batch."""
        if self._claims:
            self.settle(request, request.block_hashes[request.num_blocks_cached :])

    def is_worth_waiting(self, request: Request, hashes: list[BlockHash], num_cached: int) -> bool:
        """Whether another request is computing enough of the prefix `hashes[num_cached:]`."""
        if not self._claims:
            return False
        spared = list(takewhile(lambda h: self._is_claimed_for(request, h), hashes[num_cached:]))
        num_spared = len(spared) * self._block_size
        num_needed = request.num_tokens - num_cached * self._block_size
        if num_spared < min(num_needed * _MIN_SPARED_FRACTION, _MIN_SPARED_TOKENS) or not spared:
            return False
        request.waits_for = spared[-1]
        return True

    def is_still_waiting(self, request: Request) -> bool:
        """Whether the last block that it waits for is still claimed: one look-up a step."""
        if request.waits_for is None:
            return False
        if self._is_claimed_for(request, request.waits_for):
            return True
        request.waits_for = None
        return False

    def _is_claimed_for(self, request: Request, block_hash: BlockHash) -> bool:
        claimant = self._claims.get(block_hash)
        return claimant is not None and claimant.priority <= request.priority
