"""How the tokens that decoding leaves in a step are shared between prompts: a pure function.

Half of them belong to the oldest prompt, so that it ends in time whatever arrives; the rest goes to
the shortest remaining first, so that a long prompt never holds up a short one. What one side
leaves, the other gets. Equal prompts are thereby computed one after another, which ends each of
them sooner than an equal split would (Sarathi-Serve 2024 chunks one prompt at a time; the split
between several is ours). A chunk of several blocks ends where a block does, unless it ends its
prompt: what is computed can then be shared at once.
"""

from collections.abc import Callable, Iterator, Sequence

from worker.engine.request import Request

# The part of a chunk that its end at a block's may cost.
_MAX_GIVEN_AWAY = 0.125


def prefill_offers(
    candidates: Sequence[Request], budget: int, block_size: int
) -> Iterator[tuple[Request, int]]:
    """Yields (request, most tokens it may take now) in the order to serve them.

    A more urgent priority goes first in both halves. The oldest is offered twice.
    """
    if not candidates:
        return
    oldest = min(candidates, key=lambda request: request.order)
    half = (budget + 1) // 2
    yield oldest, max(half - half % block_size, min(block_size, budget))
    for request in sorted(candidates, key=_shortest_first):
        yield request, budget


def _shortest_first(request: Request) -> tuple[int, int, int]:
    priority, sequence = request.order
    num_known = request.num_computed_tokens or request.num_hit_tokens
    return priority, request.num_tokens - num_known, sequence


def share_budget(
    candidates: Sequence[Request],
    budget: int,
    block_size: int,
    try_enter: Callable[[Request], bool],
) -> dict[Request, int]:
    """Tokens for each request that gets some. `try_enter` admits a request that still waits."""
    shares: dict[Request, int] = {}
    refused: set[Request] = set()
    for request, most in prefill_offers(candidates, budget, block_size):
        if budget == 0:
            break
        if request in refused:
            continue
        if not try_enter(request):
            refused.add(request)
            continue
        share = min(request.num_uncomputed_tokens - shares.get(request, 0), most, budget)
        if share > 0:
            shares[request] = shares.get(request, 0) + share
            budget -= share
    return {request: _aligned(request, share, block_size) for request, share in shares.items()}


def _aligned(request: Request, share: int, block_size: int) -> int:
    """The share, up to the last end of a block in it where that gives little away."""
    if share == request.num_uncomputed_tokens:
        return share
    excess = (request.num_computed_tokens + share) % block_size
    return share - excess if excess <= share * _MAX_GIVEN_AWAY else share
