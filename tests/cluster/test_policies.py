"""Policies on tables: which of two replicas is cheaper."""

from dataclasses import replace
from typing import get_args

import pytest

from cluster.config import PolicyName
from cluster.policies import POLICIES, CandidateLoad, LeastLoaded, Policy, PrefixAware

IDLE = CandidateLoad(
    replica_id="r",
    num_live=0,
    max_num_seqs=256,
    backlog_tokens=0,
    num_free_tokens=100_000,
    prefill_tokens_per_s=8000.0,
)


def with_load(**values: int) -> CandidateLoad:
    return replace(IDLE, **values)  # type: ignore[arg-type]


# policy, the cheaper (load, uncached tokens), the dearer
TABLE = [
    pytest.param(PrefixAware(), (IDLE, 100), (IDLE, 1000), id="a-prefix-saves-work"),
    pytest.param(
        PrefixAware(),
        (IDLE, 1000),
        (with_load(backlog_tokens=2000), 100),
        id="backlog-beats-prefix",
    ),
    pytest.param(
        PrefixAware(), (with_load(backlog_tokens=500), 100), (IDLE, 1000), id="prefix-beats-backlog"
    ),
    pytest.param(
        PrefixAware(), (IDLE, 132), (with_load(num_live=40), 100), id="short-prefix-is-no-magnet"
    ),
    pytest.param(PrefixAware(), (IDLE, 900), (with_load(num_free_tokens=0), 500), id="room-counts"),
    pytest.param(LeastLoaded(), (IDLE, 1000), (with_load(num_live=1), 0), id="fewest-requests"),
    pytest.param(
        LeastLoaded(),
        (with_load(num_live=3, max_num_seqs=8), 0),
        (with_load(num_live=2, max_num_seqs=4), 0),
        id="relative-to-its-slots",
    ),
    pytest.param(
        LeastLoaded(),
        (with_load(num_live=1, backlog_tokens=10), 0),
        (with_load(num_live=1, backlog_tokens=90_000), 0),
        id="backlog-decides-between-equals",
    ),
    pytest.param(
        LeastLoaded(),
        (with_load(num_live=1, backlog_tokens=10**9), 0),
        (with_load(num_live=2), 0),
        id="backlog-never-outweighs-a-request",
    ),
]


@pytest.mark.parametrize(("policy", "cheaper", "dearer"), TABLE)
def test_cheaper_replica(
    policy: Policy, cheaper: tuple[CandidateLoad, int], dearer: tuple[CandidateLoad, int]
) -> None:
    assert policy.cost(*cheaper) < policy.cost(*dearer)


def test_every_configurable_policy_is_registered() -> None:
    assert set(POLICIES) == set(get_args(PolicyName))
