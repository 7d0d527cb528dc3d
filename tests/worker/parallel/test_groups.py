"""Groups of real processes: shared memory and gloo must do the same."""

import os
import time
from multiprocessing.queues import Queue
from typing import Any

import pytest
import torch

from tests.worker.parallel.ranks import ranks
from worker.errors import ShardError
from worker.parallel import rendezvous
from worker.parallel.group import DistributedGroup, SingleGroup, TPGroup
from worker.parallel.shm_group import SLOT_BYTES, SharedMemoryGroup, create_segment

CPU = torch.device("cpu")
LARGE = SLOT_BYTES // 4 + 1000  # floats: more than a slot


def connect(rank: int, size: int, address: str, kind: str, timeout_s: float = 30.0) -> TPGroup:
    torch.set_num_threads(1)
    if kind == "gloo":
        store = rendezvous.join_rendezvous(address)
        return DistributedGroup(rank, size, store, CPU, timeout_s)
    group = rendezvous.connect_group(rank, size, address, CPU, timeout_s)
    assert isinstance(group, SharedMemoryGroup)
    return group


def part(rank: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * rank + len(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def collect(rank: int, size: int, address: str, kind: str, report: "Queue[Any]") -> None:
    group = connect(rank, size, address, kind)
    found: dict[str, Any] = {"min": [group.min_int(10 - rank), group.min_int(-(2**40) + rank)]}
    sums = [(3, 7), (1,), (LARGE,)]
    found["sums"] = [group.all_reduce(part(rank, shape)).numpy() for shape in sums]
    with torch.inference_mode():
        found["bf16"] = group.all_reduce(part(rank, (5, 11), torch.bfloat16)).float().numpy()
    strided = part(rank, (6, 4)).t()
    found["strided"] = group.all_reduce(strided).numpy()
    gathers = [(3, 5), (4,), (2, LARGE)]
    found["gathers"] = [group.all_gather(part(rank, shape)).numpy() for shape in gathers]
    ids = torch.arange(7) * (rank + 1) + 2**40
    casts = (group.broadcast(ids), group.broadcast(part(rank, (LARGE,))))
    found["casts"] = [cast.numpy() for cast in casts]
    turns = [group.all_reduce(torch.full((4,), float(i + rank))) for i in range(50)]
    found["turns"] = torch.stack(turns)[:, 0].tolist()
    report.put(found)
    group.min_int(0)
    group.close()
    group.close()


@pytest.mark.parametrize(("size", "kind"), [(2, "shm"), (4, "shm"), (2, "gloo")])
def test_collectives_of_real_processes(size: int, kind: str) -> None:
    _store, address = rendezvous.open_rendezvous("127.0.0.1")
    with ranks(collect, 0, size, size, address, kind) as group:
        found = [group.report(rank) for rank in range(size)]
    for mine in found:
        check_collectives(mine, size)
    for key in ("sums", "bf16", "strided"):  # the same bits on every rank
        for mine in found[1:]:
            for ours, first in zip(mine[key], found[0][key], strict=True):
                assert (ours == first).all()


def check_collectives(found: dict[str, Any], size: int) -> None:
    assert found["min"] == [10 - (size - 1), -(2**40)]
    for shape, got in zip([(3, 7), (1,), (LARGE,)], found["sums"], strict=True):
        expected = torch.stack([part(r, shape) for r in range(size)]).sum(0)
        torch.testing.assert_close(torch.from_numpy(got), expected)
    bf16 = torch.stack([part(r, (5, 11), torch.bfloat16).float() for r in range(size)]).sum(0)
    torch.testing.assert_close(torch.from_numpy(found["bf16"]), bf16, atol=0.05, rtol=0.02)
    strided = torch.stack([part(r, (6, 4)).t() for r in range(size)]).sum(0)
    torch.testing.assert_close(torch.from_numpy(found["strided"]), strided)
    for shape, got in zip([(3, 5), (4,), (2, LARGE)], found["gathers"], strict=True):
        expected = torch.cat([part(r, shape) for r in range(size)], dim=-1)
        assert torch.equal(torch.from_numpy(got), expected)
    assert found["casts"][0].tolist() == [i + 2**40 for i in range(7)]
    assert torch.equal(torch.from_numpy(found["casts"][1]), part(0, (LARGE,)))
    assert found["turns"] == [size * i + sum(range(size)) for i in range(50)]


def wait_for_a_peer(rank: int, size: int, address: str, kind: str, report: "Queue[Any]") -> None:
    """Rank 0 never comes to the second collective."""
    group = connect(rank, size, address, kind)
    group.min_int(0)
    report.put("ready")
    try:
        group.all_reduce(torch.zeros(4))
    except ShardError as error:
        report.put((time.time(), str(error)))
    try:
        group.all_reduce(torch.zeros(4))
    except ShardError as error:
        report.put(str(error))


def sit_idle(rank: int, size: int, address: str, kind: str, report: "Queue[Any]") -> None:
    group = connect(rank, size, address, kind)
    group.min_int(0)
    report.put("ready")
    time.sleep(60)  # until killed
    group.close()


@pytest.mark.parametrize("kind", ["shm", "gloo"])
def test_killed_peer_breaks_a_collective_within_two_seconds(kind: str) -> None:
    _store, address = rendezvous.open_rendezvous("127.0.0.1")
    with (
        ranks(wait_for_a_peer, 0, 1, 2, address, kind) as waiting,
        ranks(sit_idle, 1, 2, 2, address, kind) as idle,
    ):
        assert (waiting.report(0), idle.report(1)) == ("ready", "ready")
        killed_at = time.time()
        idle.kill(1)
        raised_at, reason = waiting.report(0)
        assert raised_at - killed_at < 2
        assert "broken at rank 0" in reason
        assert "broken at rank 0" in waiting.report(0)  # and stays broken


def test_abort_ends_a_collective_of_all_ranks() -> None:
    _store, address = rendezvous.open_rendezvous("127.0.0.1")
    with ranks(wait_for_a_peer, 1, 3, 3, address, "shm") as waiting:
        group = connect(0, 3, address, "shm")
        group.min_int(0)
        assert [waiting.report(rank) for rank in (1, 2)] == ["ready", "ready"]
        group.abort()
        for rank in (1, 2):
            _, reason = waiting.report(rank)
            assert "rank 0 gave up" in reason
        with pytest.raises(ShardError, match="gave up"):
            group.all_reduce(torch.zeros(1))
        group.close()
        group.abort()  # of no effect any more
        with pytest.raises(ShardError, match="has left"):
            group.min_int(1)


def test_peer_that_leaves_breaks_a_collective() -> None:
    _store, address = rendezvous.open_rendezvous("127.0.0.1")
    with ranks(wait_for_a_peer, 1, 2, 2, address, "shm") as waiting:
        group = connect(0, 2, address, "shm")
        group.min_int(0)
        assert waiting.report(1) == "ready"
        group.close()
        _, reason = waiting.report(1)
        assert "rank 0 has left" in reason


def test_peer_that_does_not_come_in_time_breaks_a_collective() -> None:
    segment, fd = create_segment(2)
    os.close(fd)
    alive_elsewhere = os.getppid()
    group = SharedMemoryGroup(0, segment, [os.getpid(), alive_elsewhere], timeout_s=0.1)
    with pytest.raises(ShardError, match=r"rank 1 did not come within 0\.1 s"):
        group.all_reduce(torch.zeros(4))
    group.close()


def other_host(rank: int, size: int, address: str, report: "Queue[Any]") -> None:
    """A rank that believes to be elsewhere."""
    rendezvous.host_identity = lambda: f"host-{rank}"  # type: ignore[assignment]
    group = rendezvous.connect_group(rank, size, address, CPU, 30.0)
    report.put((type(group).__name__, group.min_int(rank)))
    group.close()


def test_ranks_on_several_hosts_take_gloo() -> None:
    _store, address = rendezvous.open_rendezvous("127.0.0.1")
    with ranks(other_host, 0, 2, 2, address) as group:
        assert [group.report(r) for r in range(2)] == [("DistributedGroup", 0)] * 2


def no_memory(rank: int, size: int, address: str, report: "Queue[Any]") -> None:
    """Rank 0 cannot make a segment: all ranks must hear of it."""

    def refuse(size: int) -> None:
        raise OSError("no memory")

    rendezvous.create_segment = refuse  # type: ignore[assignment]
    group = rendezvous.connect_group(rank, size, address, CPU, 30.0)
    report.put((type(group).__name__, group.min_int(rank)))
    group.close()


def test_ranks_without_shared_memory_take_gloo() -> None:
    _store, address = rendezvous.open_rendezvous("127.0.0.1")
    with ranks(no_memory, 0, 2, 2, address) as group:
        assert [group.report(r) for r in range(2)] == [("DistributedGroup", 0)] * 2


def test_single_rank_needs_no_rendezvous() -> None:
    group = rendezvous.connect_group(0, 1, "", CPU)
    x = torch.ones(3)
    assert isinstance(group, SingleGroup)
    assert group.all_reduce(x) is x and group.all_gather(x) is x and group.min_int(4) == 4
    group.abort()
    group.close()


def test_missing_rank_is_a_shard_error() -> None:
    _store, address = rendezvous.open_rendezvous("127.0.0.1")
    with pytest.raises(ShardError, match="could not join"):
        rendezvous.connect_group(0, 2, address, CPU, timeout_s=0.5)


def test_missing_leader_is_a_shard_error() -> None:
    _store, address = rendezvous.open_rendezvous("127.0.0.1")
    del _store
    with pytest.raises(ShardError, match="no rendezvous"):
        rendezvous.connect_group(1, 2, address, CPU, timeout_s=0.5)
