"""Sliding windows, and counters that several processes share."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import RateLimitError
from gateway.rate_limits import SlidingWindow, TenantMeter, TenantMeters, duration
from gateway.shared_counters import REQUESTS, SharedCounters
from gateway.tenants import Limits, Tenant


class Clock:
    def __init__(self, now: float = 6000.0) -> None:  # a whole minute
        self.now = now

    def __call__(self) -> float:
        return self.now


def meter(limits: Limits, clock: Clock, counters: SharedCounters | None = None) -> TenantMeter:
    meters = TenantMeters(counters or SharedCounters(), clock)
    found = meters.of(Tenant("a", limits))
    assert found is not None
    return found


def refusal(step) -> RateLimitError:
    with pytest.raises(RateLimitError) as error:
        step()
    return error.value


def test_requests_of_a_minute_are_counted_and_forgotten():
    clock = Clock()
    one = meter(Limits(requests_per_minute=3), clock)
    for _ in range(3):
        one.admit()
    error = refusal(one.admit)
    assert error.status == 429
    assert error.body()["error"]["code"] == "rate_limit_exceeded"
    assert error.body()["error"]["type"] == "requests"
    # Nothing of this minute goes before it ends; in the next its three fade evenly.
    assert error.retry_after_s == pytest.approx(60 + 20)
    clock.now += error.retry_after_s - 0.01
    refusal(one.admit)
    clock.now += 0.02
    one.admit()
    refusal(one.admit)
    clock.now += 120
    for _ in range(3):
        one.admit()


def test_tokens_are_charged_beforehand_and_settled_afterwards():
    clock = Clock()
    one = meter(Limits(tokens_per_minute=100), clock)
    one.charge(90)
    error = refusal(lambda: one.charge(20))
    assert "tokens per min: Limit 100, Used 90, Requested 20." in error.message
    one.settle(90, 30)
    one.charge(70)
    one.settle(70, 170)  # more than was said: those after it wait
    assert refusal(lambda: one.charge(1)).retry_after_s > 60


def test_what_no_waiting_can_allow_comes_without_advice():
    error = refusal(lambda: meter(Limits(tokens_per_minute=100), Clock()).charge(101))
    assert error.retry_after_s is None
    assert "too large" in error.message


def test_concurrent_requests_are_counted_until_they_leave():
    one = meter(Limits(max_concurrent=2), Clock())
    one.admit()
    one.admit()
    error = refusal(one.admit)
    assert (error.type, error.retry_after_s) == ("concurrency", 1.0)
    one.leave()
    one.admit()


def test_a_refused_request_counts_for_nothing():
    one = meter(Limits(requests_per_minute=10, max_concurrent=1), Clock())
    one.admit()
    refusal(one.admit)
    assert dict(one.headers())[b"x-ratelimit-remaining-requests"] == b"9"


def test_headers_are_those_of_openai():
    clock = Clock()
    one = meter(Limits(requests_per_minute=10, tokens_per_minute=1000), clock)
    one.admit()
    one.charge(300)
    clock.now += 15
    assert dict(one.headers()) == {
        b"x-ratelimit-limit-requests": b"10",
        b"x-ratelimit-remaining-requests": b"9",
        b"x-ratelimit-reset-requests": b"1m45s",
        b"x-ratelimit-limit-tokens": b"1000",
        b"x-ratelimit-remaining-tokens": b"700",
        b"x-ratelimit-reset-tokens": b"1m45s",
    }


def test_unlimited_tenants_have_no_meter():
    assert TenantMeters(SharedCounters()).of(Tenant("a")) is None


def test_new_limits_apply_to_what_was_used_before():
    clock = Clock()
    meters = TenantMeters(SharedCounters(), clock)
    first = meters.of(Tenant("a", Limits(requests_per_minute=5)))
    for _ in range(5):
        first.admit()
    second = meters.of(Tenant("a", Limits(requests_per_minute=4)))
    assert second is first
    refusal(second.admit)


def test_processes_that_share_a_folder_share_the_limits(tmp_path):
    clock, limits = Clock(), Limits(requests_per_minute=3, max_concurrent=9)
    first, second = SharedCounters(tmp_path), SharedCounters(tmp_path)
    # One process cannot exclude itself from its own locks, so the second row is given by hand.
    second._row = 1
    meters = [meter(limits, clock, counters) for counters in (first, second)]
    meters[0].admit()
    meters[1].admit()
    meters[1].leave()
    meters[0].admit()
    for one in meters:
        refusal(one.admit)
    others = TenantMeters(first, clock).of(Tenant("b", limits))
    others.admit()


ROW = """
import sys
from pathlib import Path
from gateway.shared_counters import SharedCounters, RUNNING
counters = SharedCounters(Path(sys.argv[1]))
counters.table("a").own[RUNNING] += 5
print(counters._row, flush=True)
sys.stdin.read()
"""


def claim(folder) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", ROW, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    process.row = int(process.stdout.readline())
    return process


def test_a_dead_process_leaves_its_row_and_nothing_running(tmp_path):
    first, second = claim(tmp_path), claim(tmp_path)
    try:
        assert {first.row, second.row} == {0, 1}
        first.kill()
        first.wait(10)
        counters = SharedCounters(tmp_path)
        assert counters._row == first.row
        one = meter(Limits(max_concurrent=6), Clock(), counters)
        one.admit()
        refusal(one.admit)  # with the living one's five
        counters.close()
    finally:
        for process in (first, second):
            process.kill()
            process.communicate(timeout=10)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 90), st.integers(1, 40)), min_size=1, max_size=40),
    st.integers(10, 100),
)
def test_the_advised_wait_is_enough_and_not_too_long(steps, limit):
    clock = Clock()
    window = SlidingWindow(SharedCounters().table("a"), REQUESTS, clock)
    for pause, amount in steps:
        clock.now += pause
        wait = window.read().wait_s(limit - amount)
        assert 0 <= wait <= 120
        if window.read().used + amount > limit and amount <= limit:
            clock.now += wait - 0.01
            assert window.read().used + amount > limit - 1e-6
            clock.now += 0.02
            assert window.read().used + amount <= limit
        if window.read().used + amount <= limit:
            window.add(amount)
        assert 0 <= window.read().used <= limit + 1e-6


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.12, "120ms"), (1.5, "1.5s"), (60, "1m0s"), (90.25, "1m30.2s")],
)
def test_durations_are_written_as_openai_does(seconds, text):
    assert duration(seconds) == text
