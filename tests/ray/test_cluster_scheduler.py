"""The ClusterScheduler actor on a real Ray with fake shards: deployment, loss, recovery,
clean-up.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
import ray
from ray.util import list_named_actors
from ray.util.placement_group import placement_group_table

from cluster.config import DeploymentSpec, SchedulerConfig
from cluster.errors import DeploymentConflict, StartFailed
from protos import scheduler_pb2, scheduler_pb2_grpc
from tests.ray.fake_shard import FILES
from worker.config import RunnerConfig

pytestmark = pytest.mark.ray

Start = Callable[..., tuple[Any, SchedulerConfig]]
CALL_S = 30.0
BACK_WITHIN_S = 5.0
GONE_WITHIN_S = 5.0


def spec(name: str = "org/model", path: str = "fine", **settings: Any) -> DeploymentSpec:
    fields = {"tp_size": 2, "cpus_per_rank": 0.5, **settings}
    return DeploymentSpec(
        name=name, served_names=(name, f"{name}-alias"), runner=RunnerConfig(path), **fields
    )


def ask(ref: Any) -> Any:
    return ray.get(ref, timeout=CALL_S)


def deploy(handle: Any, what: DeploymentSpec) -> dict[str, Any]:
    ask(handle.deploy.remote(what.to_json()))
    status: dict[str, Any] = ask(handle.wait_ready.remote(CALL_S))
    return status


def only_replica(status: dict[str, Any]) -> dict[str, Any]:
    (deployment,) = status["deployments"]
    (replica,) = deployment["replicas"]
    return dict(replica)


def is_there(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def until(handle: Any, is_so: Callable[[dict[str, Any]], bool], timeout_s: float) -> float:
    """Polls the status; returns the seconds it took."""
    began = time.monotonic()
    status: Any = None
    while time.monotonic() - began < timeout_s:
        try:
            status = ray.get(handle.status.remote(), timeout=timeout_s)
        except ray.exceptions.RayActorError:
            status = None  # it is being restarted
        if status is not None and is_so(status):
            return time.monotonic() - began
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout_s} s: {status}")


@contextmanager
def stub(config: SchedulerConfig) -> Iterator[scheduler_pb2_grpc.SchedulerStub]:
    with grpc.insecure_channel(f"{config.host}:{config.port}") as channel:
        yield scheduler_pb2_grpc.SchedulerStub(channel)


def place(config: SchedulerConfig, model: str) -> scheduler_pb2.PlaceReply:
    request = scheduler_pb2.PlaceRequest(id=7, request_id="r", model=model, num_prompt_tokens=40)
    with stub(config) as scheduler:
        replies = scheduler.Place(iter([scheduler_pb2.PlaceCommand(place=request)]), timeout=10)
        return next(iter(replies))


def first_snapshot(config: SchedulerConfig, timeout_s: float = 10) -> scheduler_pb2.ClusterSnapshot:
    with stub(config) as scheduler:
        request = scheduler_pb2.WatchClusterRequest(gateway_id="g")
        watch = scheduler.WatchCluster(request, timeout=timeout_s, wait_for_ready=True)
        return next(iter(watch))


def live_groups() -> list[str]:
    return [g["name"] for g in placement_group_table().values() if g["state"] != "REMOVED"]


def test_deployment_comes_up_and_places(scheduler: Start) -> None:
    handle, config = scheduler()
    status = deploy(handle, spec())
    replica = only_replica(status)
    assert replica["state"] == "ready" and len(set(replica["pids"])) == 2
    reply = place(config, "org/model-alias")
    assert reply.id == 7
    assert reply.placement.replica_id == replica["replica_id"]
    assert reply.placement.address == replica["address"]
    assert reply.placement.epoch == replica["epoch"]
    until(handle, lambda s: only_replica(s)["num_indexed_blocks"] == 4, 5)
    events = ask(handle.startup_events.remote(0))
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
    phases = [e["phase"] for e in events if e["done"]]
    assert phases == ["Resources", "Shard actors", "Shards prepared", "Weights"]
    assert ask(handle.startup_events.remote(len(events) - 1)) == events[-1:]


def test_model_files_come_from_a_leader(scheduler: Start) -> None:
    handle, config = scheduler()
    deploy(handle, spec(tp_size=1))
    with stub(config) as control:
        chunks = list(control.GetModel(scheduler_pb2.GetModelRequest(digest="d1"), timeout=10))
        files: dict[str, bytes] = {}
        for chunk in chunks:
            files[chunk.name] = files.get(chunk.name, b"") + chunk.data
        assert files == FILES
        assert max(len(chunk.data) for chunk in chunks) <= 1 << 20
        with pytest.raises(grpc.RpcError) as refused:
            list(control.GetModel(scheduler_pb2.GetModelRequest(digest="other"), timeout=10))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]


def test_shutdown_leaves_nothing_behind(scheduler: Start) -> None:
    handle, config = scheduler()
    status = deploy(handle, spec(num_replicas=2))
    pids = [pid for r in status["deployments"][0]["replicas"] for pid in r["pids"]]
    ask(handle.drain.remote(1.0))
    assert place(config, "org/model").refusal.code == grpc.StatusCode.UNAVAILABLE.value[0]
    ask(handle.shutdown.remote())
    assert not [n for n in list_named_actors() if n.startswith("shard/")]
    assert live_groups() == []
    # Ray buries a process a moment after its actor's end.
    deadline = time.monotonic() + GONE_WITHIN_S
    while any(map(is_there, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in pids if is_there(pid)] == []


def test_killed_scheduler_is_back_with_its_full_state(scheduler: Start) -> None:
    handle, config = scheduler()
    before = deploy(handle, spec(num_replicas=2))
    old_id = first_snapshot(config).scheduler_id
    began = time.monotonic()
    os.kill(before["pid"], signal.SIGKILL)
    snapshot = _snapshot_of_another(config, old_id)
    until(
        handle,
        lambda s: all(r["num_indexed_blocks"] == 4 for r in s["deployments"][0]["replicas"]),
        BACK_WITHIN_S,
    )
    seconds = time.monotonic() - began
    print(f"scheduler back with full state after {seconds:.2f} s")
    assert seconds <= BACK_WITHIN_S
    (deployment,) = snapshot.deployments
    assert deployment.model.max_model_len == 512 and deployment.model.digest == "d1"
    told = {
        (r["replica_id"], r["epoch"], r["address"]) for r in before["deployments"][0]["replicas"]
    }
    assert {(r.replica_id, r.epoch, r.address) for r in deployment.replicas} == told
    assert place(config, "org/model").placement.address in {address for _, _, address in told}


def _snapshot_of_another(config: SchedulerConfig, old_id: str) -> scheduler_pb2.ClusterSnapshot:
    deadline = time.monotonic() + 2 * BACK_WITHIN_S
    while time.monotonic() < deadline:
        try:
            snapshot = first_snapshot(config)
        except grpc.RpcError:
            continue
        if snapshot.scheduler_id != old_id:
            return snapshot
    raise AssertionError("no new scheduler answers at the old address")


@pytest.mark.parametrize("rank", [0, 1])
def test_killed_shard_replaces_its_whole_replica(scheduler: Start, rank: int) -> None:
    handle, _ = scheduler()
    before = only_replica(deploy(handle, spec()))
    os.kill(before["pids"][rank], signal.SIGKILL)
    lost_s = until(handle, lambda s: only_replica(s)["restarts"] == 1, 5)
    until(handle, lambda s: only_replica(s)["state"] == "ready", 15)
    after = only_replica(ask(handle.status.remote()))
    print(f"rank {rank} killed: being replaced after {lost_s:.2f} s")
    assert after["epoch"] > before["epoch"]
    assert not set(after["pids"]) & set(before["pids"])
    assert f"shard {rank} died" in after["reason"]
    assert [pid for pid in before["pids"] if os.path.exists(f"/proc/{pid}")] == []
    assert live_groups() == [f"shard/org/model/{after['replica_id']}/{after['epoch']}"]


def test_hung_replica_is_replaced(scheduler: Start) -> None:
    handle, _ = scheduler(hang_timeout_s=0.6)
    ask(handle.deploy.remote(spec(path="hangs", tp_size=1).to_json()))
    until(handle, lambda s: only_replica(s)["restarts"] >= 1, 15)
    assert "no step for" in only_replica(ask(handle.status.remote()))["reason"]


def test_failing_start_is_told_and_retried_with_pauses(scheduler: Start) -> None:
    handle, _ = scheduler()
    ask(handle.deploy.remote(spec(path="fails").to_json()))
    with pytest.raises(StartFailed, match=r"did not start: model\.safetensors is missing"):
        ask(handle.wait_ready.remote(CALL_S))
    until(handle, lambda s: only_replica(s)["restarts"] == 1, 10)


def test_missing_resources_are_named(scheduler: Start) -> None:
    handle, _ = scheduler(placement_timeout_s=0.5)
    ask(handle.deploy.remote(spec(cpus_per_rank=50).to_json()))
    with pytest.raises(
        StartFailed, match=r"100 CPU needed on one node, the cluster has 4 \(4 free\)"
    ):
        ask(handle.wait_ready.remote(CALL_S))
    ask(handle.shutdown.remote())
    assert live_groups() == []


def test_second_deployment_must_not_take_a_name(scheduler: Start) -> None:
    handle, _ = scheduler()
    first = spec(tp_size=1)
    deploy(handle, first)
    ask(handle.deploy.remote(first.to_json()))  # the same again is no conflict
    with pytest.raises(DeploymentConflict, match="other settings"):
        ask(handle.deploy.remote(spec(tp_size=2).to_json()))
    with pytest.raises(DeploymentConflict, match="org/model-alias"):
        ask(handle.deploy.remote(spec(name="org/model-alias").to_json()))
    assert len(ask(handle.status.remote())["deployments"]) == 1


def test_recovery_clears_remains_and_restarts_what_is_missing(scheduler: Start) -> None:
    """The leader dies while no scheduler watches: its follower and its group are remains."""
    handle, config = scheduler()
    status = deploy(handle, spec())
    before = only_replica(status)
    old_id = first_snapshot(config).scheduler_id
    os.kill(status["pid"], signal.SIGKILL)
    os.kill(before["pids"][0], signal.SIGKILL)
    assert _snapshot_of_another(config, old_id) is not None
    until(handle, lambda s: only_replica(s)["state"] == "ready", 20)
    after = only_replica(ask(handle.status.remote()))
    assert after["epoch"] > before["epoch"]
    assert not os.path.exists(f"/proc/{before['pids'][1]}")
    assert live_groups() == [f"shard/org/model/{after['replica_id']}/{after['epoch']}"]


def test_drained_replica_that_ends_is_not_replaced(scheduler: Start) -> None:
    handle, _ = scheduler()
    replica = only_replica(deploy(handle, spec(tp_size=1)))
    ask(handle.drain.remote(1.0))
    assert only_replica(ask(handle.status.remote()))["state"] == "draining"
    os.kill(replica["pids"][0], signal.SIGKILL)
    until(handle, lambda s: only_replica(s)["state"] == "dead", 10)
    until(handle, lambda s: live_groups() == [], 10)
    assert only_replica(ask(handle.status.remote()))["restarts"] == 0
