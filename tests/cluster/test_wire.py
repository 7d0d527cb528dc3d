"""Declared conversions: every field of every message is carried, in the right place."""

from dataclasses import fields

import grpc
import pytest

from cluster import wire
from cluster.placement_request import Placed, RefusalReason, Refused
from cluster.state import ReplicaState
from protos import common_pb2, scheduler_pb2
from protos.block_hash import pack
from tests.cluster.worlds import World, hashes
from worker.report import EngineCounters, ReplicaLoad, ReplicaReport

LOAD = ReplicaLoad(1, 2, 3, 4, 5, 6, 7)
COUNTERS = EngineCounters(1, 2, 3, 4, 5, 6, 7, 8, 9, 10.5, 11, (1, 2), 12, 13, 14, (9, 5))


def names(message: object) -> set[str]:
    return {field.name for field in message.DESCRIPTOR.fields}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("dataclass", "message"),
    [
        (ReplicaLoad, scheduler_pb2.ReplicaLoad),
        (EngineCounters, scheduler_pb2.EngineCounters),
        (ReplicaReport, scheduler_pb2.ReplicaReport),
    ],
)
def test_dataclass_and_message_have_the_same_fields(dataclass: type, message: type) -> None:
    assert {field.name for field in fields(dataclass)} == names(message)


def test_load_survives_the_round_trip() -> None:
    assert wire.replica_load(wire.replica_load_message(LOAD)) == LOAD


def test_report_carries_every_field() -> None:
    stored, removed = hashes(3), hashes(2, seed=1)
    counters = {field.name: getattr(COUNTERS, field.name) for field in fields(COUNTERS)}
    message = scheduler_pb2.ReplicaReport(
        replica_id="r",
        epoch=2**40,
        sequence=3,
        full=True,
        load=wire.replica_load_message(LOAD),
        stored_blocks=pack(stored),
        removed_blocks=pack(removed),
        admitted_request_ids=["a", "b"],
        draining=True,
        counters=scheduler_pb2.EngineCounters(**counters),
    )
    assert {descriptor.name for descriptor, _ in message.ListFields()} == names(message)
    expected = ReplicaReport("r", 2**40, 3, True, LOAD, stored, removed, ["a", "b"], True, COUNTERS)
    assert wire.replica_report(message) == expected


def test_broken_hashes_in_a_report_are_an_error() -> None:
    with pytest.raises(ValueError, match="16-byte"):
        wire.replica_report(scheduler_pb2.ReplicaReport(stored_blocks=b"short"))


def test_place_request_carries_every_field() -> None:
    message = scheduler_pb2.PlaceRequest(
        id=9,
        request_id="q",
        model="m",
        block_hashes=b"h" * 32,
        num_prompt_tokens=40,
        max_tokens=5,
        priority=-3,
        tenant="t",
        timeout_s=0.0,
        exclude_replicas=["a", "b"],
    )
    request = wire.placement_request(message, key=("stream", 9))
    assert request.key == ("stream", 9)
    assert (request.request_id, request.num_prompt_tokens, request.max_tokens) == ("q", 40, 5)
    assert (request.packed_hashes, request.priority, request.tenant) == (b"h" * 32, -3, "t")
    assert request.timeout_s == 0.0
    assert request.excluded == {"a", "b"}
    message.ClearField("timeout_s")
    assert wire.placement_request(message, key=1).timeout_s is None


def test_placement_names_the_incarnation() -> None:
    world = World(1)
    record = world.registry.record("r0")
    assert record is not None
    reply = wire.placement_reply(4, Placed("k", "r0", 7, 0.25), record)
    expected = scheduler_pb2.Placement(
        replica_id="r0", address="r0:1", epoch=1, num_cached_blocks=7, queue_s=0.25
    )
    assert reply == scheduler_pb2.PlaceReply(id=4, placement=expected)


def test_refusal_carries_code_field_and_advice() -> None:
    refused = Refused("k", RefusalReason.FULL, "full", 2.5, "model")
    code = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    error = common_pb2.Error(code=code, message="full", field="model", retry_after_s=2.5)
    assert wire.refusal_reply(4, refused) == scheduler_pb2.PlaceReply(id=4, refusal=error)


def test_every_reason_has_a_code_and_every_state_a_message() -> None:
    assert set(wire.CODES) == set(RefusalReason)
    assert set(wire.STATES) == set(ReplicaState)


def test_snapshot_tells_models_replicas_and_queues() -> None:
    world = World(2)
    world.report("r1", load=LOAD)
    world.clock.advance(1.5)
    snapshot = wire.cluster_snapshot(world.registry.snapshot(), 8, "id", {"model": 6})
    assert (snapshot.version, snapshot.scheduler_id) == (8, "id")
    (deployment,) = snapshot.deployments
    assert {d.name for d, _ in deployment.model.ListFields()} == names(deployment.model) - {
        "created_unix_s"  # 0 in this world
    }
    assert (deployment.num_desired_replicas, deployment.num_queued) == (1, 6)
    replica = deployment.replicas[1]
    assert (replica.replica_id, replica.address, replica.epoch) == ("r1", "r1:1", 1)
    assert replica.state == scheduler_pb2.REPLICA_STATE_READY
    assert wire.replica_load(replica.load) == LOAD
    assert replica.report_age_s == pytest.approx(1.5)


def test_snapshot_leaves_out_models_nobody_has_loaded() -> None:
    world = World()
    world.registry.begin("model", "r0", 1, tp_size=1)
    assert not wire.cluster_snapshot(world.registry.snapshot(), 1, "id", {}).deployments
