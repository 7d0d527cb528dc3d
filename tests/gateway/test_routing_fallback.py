"""The choice without a scheduler, on plain data."""

from random import Random

from gateway.cluster_snapshot import Replica, ReplicaAddress, ReplicaLoad
from gateway.routing_fallback import Candidate, choose_replica


def candidate(replica_id: str, num_requests: int, **load: int) -> Candidate:
    leader = ReplicaAddress(replica_id, 1, "127.0.0.1:1")
    return Candidate(Replica(leader, "ready", ReplicaLoad(**load)), num_requests)


def chosen(*candidates: Candidate, excluded: tuple[str, ...] = ()) -> str | None:
    leader = choose_replica(candidates, excluded, Random(0))
    return None if leader is None else leader.replica_id


def test_fewest_requests_win() -> None:
    assert chosen(candidate("a", 3), candidate("b", 1), candidate("c", 2)) == "b"


def test_load_counts_per_seat() -> None:
    assert chosen(candidate("a", 8, max_num_seqs=64), candidate("b", 4, max_num_seqs=8)) == "a"


def test_backlog_of_prompt_tokens_counts() -> None:
    assert chosen(candidate("a", 1, backlog_tokens=8192), candidate("b", 2)) == "b"


def test_excluded_replicas_are_left_out() -> None:
    assert chosen(candidate("a", 0), candidate("b", 9), excluded=("a",)) == "b"
    assert chosen(candidate("a", 0), excluded=("a",)) is None


def test_nobody_there_is_none() -> None:
    assert chosen() is None


def test_ties_are_spread() -> None:
    rng = Random(1)
    pair = [candidate("a", 1), candidate("b", 1)]
    picks = [choose_replica(pair, (), rng) for _ in range(100)]
    assert 25 < sum(p is not None and p.replica_id == "a" for p in picks) < 75
