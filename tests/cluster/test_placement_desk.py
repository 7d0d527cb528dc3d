"""PlacementDesk: which queue a request belongs to, and what happens when the desk closes."""

from cluster.placement_desk import PlacementDesk
from cluster.placement_request import Placed, RefusalReason, Refused
from tests.cluster.worlds import FACTS, World, make_request, make_spec


def make_desk(num_replicas: int = 1) -> tuple[World, PlacementDesk]:
    world = World(num_replicas)
    desk = PlacementDesk(world.registry, world.clock)
    desk.open_queue(world.spec)
    return world, desk


def test_any_served_name_leads_to_the_deployment() -> None:
    _, desk = make_desk()
    for key, name in enumerate(["model", "model-alias"]):
        assert desk.offer(name, make_request(key)) == []
        (decision,) = desk.pump()
        assert isinstance(decision, Placed) and decision.key == key


def test_deployments_have_queues_of_their_own() -> None:
    world, desk = make_desk(0)
    other = make_spec("other")
    world.registry.add_deployment(other)
    desk.open_queue(other)
    world.registry.begin("other", "o0", 1, tp_size=1)
    world.registry.set_ready("o0", 1, "o0:1", FACTS, world.load())
    desk.offer("model", make_request("a"))
    desk.offer("other", make_request("b"))
    (decision,) = desk.pump()
    assert isinstance(decision, Placed)
    assert (decision.key, decision.replica_id) == ("b", "o0")
    assert (desk.num_queued("model"), desk.num_queued("other"), desk.num_queued("x")) == (1, 0, 0)
    world.clock.advance(2.0)
    assert desk.oldest_wait_s("model") == 2.0


def test_unknown_model_and_broken_hashes_are_refused() -> None:
    _, desk = make_desk()
    (unknown,) = desk.offer("nothing", make_request("a"))
    assert isinstance(unknown, Refused) and unknown.field == "model"
    assert unknown.reason is RefusalReason.UNKNOWN_MODEL
    broken = make_request("b", chain=[b"short"])  # type: ignore[list-item]
    (invalid,) = desk.offer("model", broken)
    assert isinstance(invalid, Refused) and invalid.field == "block_hashes"


def test_cancelled_request_is_never_decided() -> None:
    world, desk = make_desk(0)
    desk.offer("model", make_request("a"))
    assert desk.cancel("a")
    assert not desk.cancel("a")
    world.add_replica("r0")
    assert desk.pump() == []


def test_closed_desk_answers_everyone_and_takes_nobody() -> None:
    _, desk = make_desk(0)
    desk.offer("model", make_request("a"))
    (waiting,) = desk.close("going down")
    (late,) = desk.offer("model", make_request("b"))
    for refused in (waiting, late):
        assert isinstance(refused, Refused)
        assert refused.reason is RefusalReason.UNAVAILABLE and refused.message == "going down"
