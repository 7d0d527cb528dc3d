"""Where a request goes when the scheduler cannot be asked: the least loaded replica that can be
reached.

Pure: plain data in, a choice out. The router calls it with the view's last snapshot and the pool's
streams.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from gateway.cluster_snapshot import Replica, ReplicaAddress

# A prompt token still to be computed weighs little beside a whole request.
_TOKENS_PER_REQUEST = 512
_DEFAULT_MAX_NUM_SEQS = 64


@dataclass(frozen=True, slots=True)
class Candidate:
    """`num_requests`: the gateway's best estimate now, newer than the snapshot's load where it has
    a stream."""

    replica: Replica
    num_requests: int


def choose_replica(
    candidates: Iterable[Candidate], excluded: Iterable[str], rng: Random
) -> ReplicaAddress | None:
    """Ties are broken at random, so that gateways that know the same do not all choose the same."""
    barred = set(excluded)
    usable = [c for c in candidates if c.replica.replica_id not in barred]
    if not usable:
        return None
    lowest = min(_pressure(candidate) for candidate in usable)
    return rng.choice([c for c in usable if _pressure(c) == lowest]).replica.leader


def _pressure(candidate: Candidate) -> float:
    """Work per seat."""
    load = candidate.replica.load
    work = candidate.num_requests + load.backlog_tokens / _TOKENS_PER_REQUEST
    return work / (load.max_num_seqs or _DEFAULT_MAX_NUM_SEQS)
