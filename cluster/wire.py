"""Declared conversions between the control plane's messages and the core's data types.

The only place of the cluster that knows both; used by the servicer and the snapshot feed.
"""

from collections.abc import Hashable

import grpc

from cluster.placement_request import Placed, PlacementRequest, RefusalReason, Refused
from cluster.replica_record import ReplicaRecord
from cluster.state import ClusterState, DeploymentInfo, ModelFacts, ReplicaInfo, ReplicaState
from protos import common_pb2, scheduler_pb2
from protos.block_hash import unpack
from worker.report import EngineCounters, ReplicaLoad, ReplicaReport

STATES: dict[ReplicaState, scheduler_pb2.ReplicaState.ValueType] = {
    ReplicaState.STARTING: scheduler_pb2.REPLICA_STATE_STARTING,
    ReplicaState.READY: scheduler_pb2.REPLICA_STATE_READY,
    ReplicaState.DRAINING: scheduler_pb2.REPLICA_STATE_DRAINING,
    ReplicaState.HUNG: scheduler_pb2.REPLICA_STATE_HUNG,
    ReplicaState.DEAD: scheduler_pb2.REPLICA_STATE_DEAD,
}

CODES: dict[RefusalReason, grpc.StatusCode] = {
    RefusalReason.UNKNOWN_MODEL: grpc.StatusCode.NOT_FOUND,
    RefusalReason.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    RefusalReason.FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    RefusalReason.HOPELESS: grpc.StatusCode.RESOURCE_EXHAUSTED,
    RefusalReason.EXPIRED: grpc.StatusCode.DEADLINE_EXCEEDED,
    RefusalReason.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
}


def placement_request(message: scheduler_pb2.PlaceRequest, key: Hashable) -> PlacementRequest:
    return PlacementRequest(
        key=key,
        request_id=message.request_id,
        num_prompt_tokens=message.num_prompt_tokens,
        packed_hashes=message.block_hashes,
        max_tokens=message.max_tokens,
        priority=message.priority,
        tenant=message.tenant,
        timeout_s=message.timeout_s if message.HasField("timeout_s") else None,
        excluded=frozenset(message.exclude_replicas),
    )


def placement_reply(
    place_id: int, placed: Placed, record: ReplicaRecord
) -> scheduler_pb2.PlaceReply:
    placement = scheduler_pb2.Placement(
        replica_id=record.replica_id,
        address=record.address,
        epoch=record.epoch,
        num_cached_blocks=placed.num_cached_blocks,
        queue_s=placed.queue_s,
    )
    return scheduler_pb2.PlaceReply(id=place_id, placement=placement)


def refusal_reply(place_id: int, refused: Refused) -> scheduler_pb2.PlaceReply:
    refusal = common_pb2.Error(
        code=CODES[refused.reason].value[0],
        message=refused.message,
        field=refused.field,
        retry_after_s=refused.retry_after_s,
    )
    return scheduler_pb2.PlaceReply(id=place_id, refusal=refusal)


def replica_report(message: scheduler_pb2.ReplicaReport) -> ReplicaReport:
    """Raises: ValueError when the packed hashes are not whole."""
    return ReplicaReport(
        replica_id=message.replica_id,
        epoch=message.epoch,
        sequence=message.sequence,
        full=message.full,
        load=replica_load(message.load),
        stored_blocks=unpack(message.stored_blocks),
        removed_blocks=unpack(message.removed_blocks),
        admitted_request_ids=list(message.admitted_request_ids),
        draining=message.draining,
        counters=engine_counters(message.counters),
    )


def replica_load(message: scheduler_pb2.ReplicaLoad) -> ReplicaLoad:
    return ReplicaLoad(
        num_running=message.num_running,
        num_waiting=message.num_waiting,
        backlog_tokens=message.backlog_tokens,
        num_blocks=message.num_blocks,
        num_free_blocks=message.num_free_blocks,
        steps=message.steps,
        max_num_seqs=message.max_num_seqs,
    )


def replica_load_message(load: ReplicaLoad) -> scheduler_pb2.ReplicaLoad:
    return scheduler_pb2.ReplicaLoad(
        num_running=load.num_running,
        num_waiting=load.num_waiting,
        backlog_tokens=load.backlog_tokens,
        num_blocks=load.num_blocks,
        num_free_blocks=load.num_free_blocks,
        steps=load.steps,
        max_num_seqs=load.max_num_seqs,
    )


def engine_counters(message: scheduler_pb2.EngineCounters) -> EngineCounters:
    return EngineCounters(
        prompt_tokens=message.prompt_tokens,
        generation_tokens=message.generation_tokens,
        prefix_cache_queries=message.prefix_cache_queries,
        prefix_cache_hits=message.prefix_cache_hits,
        preemptions=message.preemptions,
        finished_stop=message.finished_stop,
        finished_length=message.finished_length,
        finished_abort=message.finished_abort,
        finished_error=message.finished_error,
        step_seconds=message.step_seconds,
        drafts=message.drafts,
        draft_tokens=message.draft_tokens,
        accepted_tokens=message.accepted_tokens,
        accepted_by_position=tuple(message.accepted_by_position),
        step_tokens=message.step_tokens,
        steps_by_tokens=tuple(message.steps_by_tokens),
    )


def cluster_snapshot(
    state: ClusterState, version: int, scheduler_id: str, num_queued: dict[str, int]
) -> scheduler_pb2.ClusterSnapshot:
    """Deployments whose model nobody has loaded yet are left out: a gateway could not serve
    them.
    """
    return scheduler_pb2.ClusterSnapshot(
        version=version,
        scheduler_id=scheduler_id,
        deployments=[
            _deployment(info, info.facts, num_queued.get(info.spec.name, 0))
            for info in state.deployments
            if info.facts is not None
        ],
    )


def _deployment(
    info: DeploymentInfo, facts: ModelFacts, num_queued: int
) -> scheduler_pb2.Deployment:
    return scheduler_pb2.Deployment(
        model=_model_card(info, facts),
        num_desired_replicas=info.spec.num_replicas,
        replicas=[_replica(replica) for replica in info.replicas],
        num_queued=num_queued,
    )


def _model_card(info: DeploymentInfo, facts: ModelFacts) -> common_pb2.ModelCard:
    return common_pb2.ModelCard(
        deployment=info.spec.name,
        served_names=info.spec.served_names,
        root=info.spec.runner.model_path,
        digest=facts.digest,
        max_model_len=facts.max_model_len,
        block_size=facts.block_size,
        vocab_size=facts.vocab_size,
        eos_token_ids=facts.eos_token_ids,
        created_unix_s=info.spec.created_unix_s,
        max_logprobs=info.spec.max_logprobs,
    )


def _replica(info: ReplicaInfo) -> scheduler_pb2.Replica:
    return scheduler_pb2.Replica(
        replica_id=info.replica_id,
        address=info.address,
        epoch=info.epoch,
        state=STATES[info.state],
        tp_size=info.tp_size,
        load=replica_load_message(info.load),
        report_age_s=info.report_age_s,
    )
