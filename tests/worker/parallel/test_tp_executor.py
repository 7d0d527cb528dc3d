"""Executors, followers and their channel, over real processes where death matters."""

import threading
import time
from multiprocessing.queues import Queue
from typing import Any

import pytest
import torch

from tests.worker.parallel.ranks import ranks
from worker.engine.sampling_params import SamplingParams
from worker.engine.step import AdmittedSequence, ScheduledSequence, StepPlan, StepResult
from worker.errors import ShardError
from worker.parallel import rendezvous
from worker.parallel.group import TPGroup
from worker.parallel.step_channel import FollowerChannel, LeaderChannel, decode_plan, encode_plan
from worker.parallel.tp_executor import LocalExecutor, TPExecutor, follow

CPU = torch.device("cpu")
HOST = "127.0.0.1"


def make_plan(step: int, num_tokens: int = 3) -> StepPlan:
    return StepPlan(step, list(range(num_tokens)), [])


class SummingRunner:
    """A rank's runner: the plan's step number, summed over all ranks."""

    def __init__(self, group: TPGroup) -> None:
        self.group = group

    def execute(self, plan: StepPlan) -> StepResult:
        total = self.group.all_reduce(torch.tensor([float(plan.step + len(plan.token_ids))]))
        return StepResult([int(total)])


class RefusingRunner(SummingRunner):
    def execute(self, plan: StepPlan) -> StepResult:
        if plan.step == 2:
            raise ValueError("no such weights")
        return super().execute(plan)


class StuckRunner(SummingRunner):
    """Takes step 2 and never comes back."""

    def execute(self, plan: StepPlan) -> StepResult:
        if plan.step == 2:
            time.sleep(60)
        return super().execute(plan)


RUNNERS = {c.__name__: c for c in (SummingRunner, RefusingRunner, StuckRunner)}


def run_follower(rank: int, size: int, address: str, runner: str, report: "Queue[Any]") -> None:
    torch.set_num_threads(1)
    group = rendezvous.connect_group(rank, size, address, CPU, 30.0)
    channel = rendezvous.join_channel(rank, address)
    report.put("ready")
    try:
        follow(RUNNERS[runner](group), channel, group)
        report.put("ended")
    except ShardError as error:
        report.put(str(error))
    if runner == "RefusingRunner":
        time.sleep(60)  # failed but not dead: the leader must learn of it all the same


def run_leader(rank: int, size: int, address: str, report: "Queue[Any]") -> None:
    """A leader that makes one step and is idle then."""
    group = rendezvous.connect_group(rank, size, address, CPU, 30.0)
    executor = TPExecutor(SummingRunner(group), rendezvous.open_channel(size, address), group)
    report.put(executor.execute(make_plan(1)).token_ids)
    time.sleep(60)  # until killed


class Leader:
    """Rank 0 in the test's own process."""

    def __init__(self, size: int, address: str) -> None:
        self.group = rendezvous.connect_group(0, size, address, CPU, 30.0)
        self.failed = threading.Event()
        self.executor = TPExecutor(
            SummingRunner(self.group),
            rendezvous.open_channel(size, address),
            self.group,
            on_failure=lambda error: self.failed.set(),
        )

    def close(self) -> None:
        self.executor.close()
        self.group.close()


@pytest.mark.parametrize("size", [2, 3])
def test_all_ranks_run_every_plan_until_the_leader_closes(size: int) -> None:
    _store, address = rendezvous.open_rendezvous(HOST)
    with ranks(run_follower, 1, size, size, address, "SummingRunner") as followers:
        leader = Leader(size, address)
        for step in range(20):
            assert leader.executor.execute(make_plan(step)).token_ids == [size * (step + 3)]
        many = 1_000_000  # some megabytes: far beyond any socket buffer
        assert leader.executor.execute(make_plan(0, many)).token_ids == [size * many]
        leader.close()
        leader.close()
        for rank in range(1, size):
            assert (followers.report(rank), followers.report(rank)) == ("ready", "ended")
        assert leader.executor.failure is None


def test_killed_follower_is_noticed_between_steps() -> None:
    _store, address = rendezvous.open_rendezvous(HOST)
    with ranks(run_follower, 1, 2, 2, address, "SummingRunner") as followers:
        leader = Leader(2, address)
        leader.executor.execute(make_plan(1))
        followers.kill(1)
        assert leader.failed.wait(2)
        with pytest.raises(ShardError, match="rank 1 has died"):
            leader.executor.execute(make_plan(2))
        leader.close()


def test_follower_killed_within_a_step_raises_within_two_seconds() -> None:
    _store, address = rendezvous.open_rendezvous(HOST)
    with ranks(run_follower, 1, 2, 2, address, "StuckRunner") as followers:
        leader = Leader(2, address)
        leader.executor.execute(make_plan(1))
        timer = threading.Timer(0.2, followers.kill, [1])
        timer.start()
        started = time.monotonic()
        with pytest.raises(ShardError, match="rank 1 has died"):
            leader.executor.execute(make_plan(2))
        assert time.monotonic() - started < 2.2
        timer.join()
        leader.close()


def test_failing_follower_tells_the_leader_why() -> None:
    _store, address = rendezvous.open_rendezvous(HOST)
    with ranks(run_follower, 1, 2, 2, address, "RefusingRunner") as followers:
        leader = Leader(2, address)
        leader.executor.execute(make_plan(1))
        with pytest.raises(ShardError, match=r"rank 1 failed: .*no such weights"):
            leader.executor.execute(make_plan(2))
        with pytest.raises(ShardError, match="no such weights"):  # and stays failed
            leader.executor.execute(make_plan(3))
        assert followers.report(1) == "ready"
        assert "no such weights" in followers.report(1)
        followers.kill(1)
        leader.close()


def test_follower_of_a_killed_leader_ends() -> None:
    _store, address = rendezvous.open_rendezvous(HOST)
    with (
        ranks(run_leader, 0, 1, 2, address) as leader,
        ranks(run_follower, 1, 2, 2, address, "SummingRunner") as followers,
    ):
        assert leader.report(0) == [2 * (1 + 3)]
        assert followers.report(1) == "ready"
        leader.kill(0)
        assert "leader" in followers.report(1)


def test_failing_leader_breaks_the_group() -> None:
    class Broken:
        def execute(self, plan: StepPlan) -> StepResult:
            raise ValueError("leader's own mistake")

    channel, followers = connected(1)
    executor = TPExecutor(Broken(), channel)
    with pytest.raises(ShardError, match="leader's own mistake"):
        executor.execute(make_plan(1))
    assert followers[0].receive() == make_plan(1)
    with pytest.raises(ShardError, match="leader's own mistake"):
        executor.execute(make_plan(2))
    executor.close()


def test_local_executor_wraps_failures() -> None:
    class Broken:
        def execute(self, plan: StepPlan) -> StepResult:
            raise ValueError("out of cheese")

    class Fine:
        def execute(self, plan: StepPlan) -> StepResult:
            return StepResult([plan.step])

    executor = LocalExecutor(Fine())
    assert executor.execute(make_plan(7)) == StepResult([7])
    executor.close()
    with pytest.raises(ShardError, match="out of cheese"):
        LocalExecutor(Broken()).execute(make_plan(1))


def connected(num_followers: int) -> tuple[LeaderChannel, list[FollowerChannel]]:
    leader = LeaderChannel(num_followers, HOST, timeout_s=5)
    followers = [FollowerChannel(leader.address, r + 1, 5) for r in range(num_followers)]
    leader.wait_connected()
    return leader, followers


FULL_PLAN = StepPlan(
    step=2**40,
    token_ids=[0, 151_935, 7],
    sequences=[ScheduledSequence(3, 128, 2, [5, 9], True), ScheduledSequence(4, 0, 1, [], False)],
    admitted=[
        AdmittedSequence(
            3,
            [1, 2, 3],
            [4],
            SamplingParams(
                max_tokens=5,
                temperature=0.7,
                top_p=0.9,
                top_k=40,
                min_p=0.05,
                presence_penalty=-0.5,
                frequency_penalty=0.25,
                repetition_penalty=1.1,
                seed=-(2**63),
                min_tokens=2,
                stop_token_ids=(2, 3),
                logit_bias=((7, -100.0), (8, 1.5)),
                allowed_token_ids=(1, 7, 8),
                bad_words=((4,), (5, 6)),
                logprobs=0,
                prompt_logprobs=3,
            ),
            num_prompt_logprobs_done=1,
        )
    ],
    released=[1, 2],
)


def test_plan_survives_the_wire_unchanged() -> None:
    assert decode_plan(encode_plan(FULL_PLAN)) == FULL_PLAN
    channel, followers = connected(2)
    channel.send(FULL_PLAN)
    channel.send(make_plan(1))
    for follower in followers:
        assert [follower.receive(), follower.receive()] == [FULL_PLAN, make_plan(1)]
    channel.close()
    assert [follower.receive() for follower in followers] == [None, None]


def test_stranger_on_the_channel_is_refused() -> None:
    leader = LeaderChannel(1, HOST, timeout_s=5)
    place = leader.address.partition("/")[0]
    stranger = FollowerChannel(f"{place}/wrong", 1, 5)
    follower = FollowerChannel(leader.address, 1, 5)
    leader.wait_connected()
    leader.send(make_plan(4))
    assert follower.receive() == make_plan(4)
    with pytest.raises(ShardError, match="leader"):
        stranger.receive()
    leader.close()


def test_missing_follower_is_a_shard_error() -> None:
    leader = LeaderChannel(1, HOST, timeout_s=0.1)
    with pytest.raises(ShardError, match="0 of 1 followers"):
        leader.wait_connected()
    leader.close()


def test_channel_that_nobody_opened_is_a_shard_error() -> None:
    _store, address = rendezvous.open_rendezvous(HOST)
    with pytest.raises(ShardError, match="no step channel"):
        rendezvous.join_channel(1, address, timeout_s=0.2)


def test_unreachable_leader_is_a_shard_error() -> None:
    leader = LeaderChannel(1, HOST, timeout_s=1)
    leader.close()
    with pytest.raises(ShardError, match="cannot reach its leader"):
        FollowerChannel(leader.address, 1, 1)


def test_closing_a_follower_wakes_its_loop() -> None:
    leader, [follower] = connected(1)
    received: list[StepPlan | None] = []
    loop = threading.Thread(target=lambda: received.append(follower.receive()))
    loop.start()
    follower.close()
    loop.join(timeout=5)
    assert received == [None]
    leader.close()
