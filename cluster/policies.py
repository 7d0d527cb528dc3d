"""Which replica suits a request: placement policies over plain numbers.

A policy prices a replica for a request; the placement queue takes the cheapest, and decides *when*.
A new policy is one class and one line in POLICIES.
"""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class CandidateLoad:
    """One replica as placement sees it: its last report and what was placed there since."""

    replica_id: str
    num_live: int  # running, waiting and reserved requests
    max_num_seqs: int
    backlog_tokens: int  # prompt tokens not yet computed, reserved requests included
    num_free_tokens: int  # room in the KV cache, reserved requests already subtracted
    prefill_tokens_per_s: float  # measured, or a guess before the first prompt
    became_ready_t: float = 0.0  # of this incarnation
    last_placed: int = 0  # grows with each placement of the deployment; 0: never


class Policy(Protocol):
    """Pure and stateless. Costs are in prompt tokens: the work that stands before the first
    token.
    """

    uses_prefixes: bool  # False: spares the queue the prefix lookup

    def cost(self, load: CandidateLoad, uncached_tokens: int) -> float:
        """`uncached_tokens`: of the request's prompt, what this replica would have to compute."""
        ...


# Each live sequence slows the newcomer and is slowed by it, for as long as both decode. Priced as
# this many prompt tokens, a short shared prefix cannot pull all traffic onto one replica.
LIVE_SEQUENCE_TOKENS = 32


class PrefixAware:
    """Least uncached work: the backlog there, the request's own part, and a share for live
    sequences.

    Counting load in uncached tokens weighs cache hits and load in one unit: a long match is worth a
    queue of exactly its length, so no replica becomes a hot spot for being popular.
    """

    uses_prefixes = True

    def cost(self, load: CandidateLoad, uncached_tokens: int) -> float:
        # What does not fit has to evict or wait for others to end, and may be computed twice.
        shortage = uncached_tokens - load.num_free_tokens
        work = load.backlog_tokens + uncached_tokens + LIVE_SEQUENCE_TOKENS * load.num_live
        return work + shortage if shortage > 0 else work


class LeastLoaded:
    """Fewest requests for the slots there are, whatever is cached; the backlog decides between
    equals.
    """

    uses_prefixes = False

    def cost(self, load: CandidateLoad, uncached_tokens: int) -> float:
        fill = load.num_live / max(1, load.max_num_seqs)
        return fill * 1e6 + min(load.backlog_tokens, 1e6 - 1) / max(1, load.max_num_seqs)


POLICIES: dict[str, Policy] = {
    "prefix_aware": PrefixAware(),
    "least_loaded": LeastLoaded(),
}
