"""Protocol messages to the gateway's own data and back, one function a message.

The only place of the gateway besides the clients that knows protobuf. No I/O.
"""

from dataclasses import dataclass

from gateway.cluster_snapshot import (
    ClusterSnapshot,
    Deployment,
    Replica,
    ReplicaAddress,
    ReplicaLoad,
    ReplicaState,
)
from gateway.refusals import Code, Refusal
from gateway.tokens import (
    FinishReason,
    Grammar,
    ModelInfo,
    SamplingSettings,
    Timing,
    TokenDelta,
    TokenLogprobs,
    TokenRequest,
)
from protos import common_pb2, scheduler_pb2, worker_pb2

_FINISH_REASONS: dict[int, FinishReason] = {
    common_pb2.FINISH_REASON_STOP: "stop",
    common_pb2.FINISH_REASON_LENGTH: "length",
    common_pb2.FINISH_REASON_ABORT: "abort",
    common_pb2.FINISH_REASON_ERROR: "error",
}
_GRAMMAR_KINDS = {
    "json_schema": common_pb2.Grammar.KIND_JSON_SCHEMA,
    "regex": common_pb2.Grammar.KIND_REGEX,
    "lark": common_pb2.Grammar.KIND_LARK,
}
_REPLICA_STATES: dict[int, ReplicaState] = {
    scheduler_pb2.REPLICA_STATE_STARTING: "starting",
    scheduler_pb2.REPLICA_STATE_READY: "ready",
    scheduler_pb2.REPLICA_STATE_DRAINING: "draining",
    scheduler_pb2.REPLICA_STATE_HUNG: "hung",
    scheduler_pb2.REPLICA_STATE_DEAD: "dead",
}


@dataclass(frozen=True, slots=True)
class PlacementQuery:
    """What the scheduler needs to know to choose a replica for a request."""

    request_id: str
    model: str
    block_hashes: bytes  # packed
    num_prompt_tokens: int
    max_tokens: int
    priority: int = 0
    tenant: str = ""
    timeout_s: float | None = None
    exclude_replicas: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Placement:
    leader: ReplicaAddress
    num_cached_blocks: int = 0
    queue_s: float = 0.0


def place_request(query_id: int, query: PlacementQuery) -> scheduler_pb2.PlaceRequest:
    return scheduler_pb2.PlaceRequest(
        id=query_id,
        request_id=query.request_id,
        model=query.model,
        block_hashes=query.block_hashes,
        num_prompt_tokens=query.num_prompt_tokens,
        max_tokens=query.max_tokens,
        priority=query.priority,
        tenant=query.tenant,
        timeout_s=query.timeout_s,
        exclude_replicas=query.exclude_replicas,
    )


def place_command(requests: list[scheduler_pb2.PlaceRequest]) -> scheduler_pb2.PlaceCommand:
    """One question as itself, several as one message."""
    if len(requests) == 1:
        return scheduler_pb2.PlaceCommand(place=requests[0])
    return scheduler_pb2.PlaceCommand(places=scheduler_pb2.PlaceRequests(places=requests))


def cancel_command(query_id: int) -> scheduler_pb2.PlaceCommand:
    return scheduler_pb2.PlaceCommand(cancel=scheduler_pb2.CancelPlace(id=query_id))


def placement(reply: scheduler_pb2.PlaceReply) -> Placement | Refusal:
    match reply.WhichOneof("result"):
        case "placement":
            chosen = reply.placement
            leader = ReplicaAddress(chosen.replica_id, chosen.epoch, chosen.address)
            return Placement(leader, chosen.num_cached_blocks, chosen.queue_s)
        case "refusal":
            return refusal(reply.refusal)
    return Refusal(Code.INTERNAL, "the scheduler sent an empty placement reply")


def refusal(error: common_pb2.Error) -> Refusal:
    return Refusal(error.code, error.message, error.field, error.retry_after_s)


def cluster_snapshot(message: scheduler_pb2.ClusterSnapshot) -> ClusterSnapshot:
    return ClusterSnapshot(
        message.version,
        message.scheduler_id,
        tuple(_deployment(d) for d in message.deployments),
    )


def _deployment(message: scheduler_pb2.Deployment) -> Deployment:
    return Deployment(
        model_info(message.model),
        tuple(_replica(r) for r in message.replicas),
        message.num_desired_replicas,
        message.num_queued,
    )


def _replica(message: scheduler_pb2.Replica) -> Replica:
    load = message.load
    return Replica(
        ReplicaAddress(message.replica_id, message.epoch, message.address),
        _REPLICA_STATES.get(message.state, "unknown"),
        ReplicaLoad(load.num_running, load.num_waiting, load.backlog_tokens, load.max_num_seqs),
        message.report_age_s,
    )


def model_info(card: common_pb2.ModelCard) -> ModelInfo:
    return ModelInfo(
        deployment=card.deployment,
        served_names=tuple(card.served_names) or (card.deployment,),
        root=card.root,
        digest=card.digest,
        max_model_len=card.max_model_len,
        block_size=card.block_size,
        vocab_size=card.vocab_size,
        eos_token_ids=tuple(card.eos_token_ids),
        created_unix_s=card.created_unix_s,
        max_logprobs=card.max_logprobs,
    )


def submit(
    request: TokenRequest, handle: int, emitted: list[int], timeout_s: float | None
) -> worker_pb2.Submit:
    """`emitted` are the output tokens the request already has; `timeout_s` is the time it has
    left."""
    return worker_pb2.Submit(
        handle=handle,
        request_id=request.request_id,
        prompt_token_ids=request.prompt_token_ids,
        emitted_token_ids=emitted,
        sampling=sampling_params(request.sampling),
        timeout_s=timeout_s,
        priority=request.priority,
        tenant=request.tenant,
        cache_salt=request.cache_salt,
        traceparent=request.traceparent,
    )


def submit_command(submits: list[worker_pb2.Submit]) -> worker_pb2.WorkerCommand:
    """One submit as itself, several as one message."""
    if len(submits) == 1:
        return worker_pb2.WorkerCommand(submit=submits[0])
    return worker_pb2.WorkerCommand(submits=worker_pb2.Submits(submits=submits))


def sampling_params(settings: SamplingSettings) -> common_pb2.SamplingParams:
    return common_pb2.SamplingParams(
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        min_p=settings.min_p,
        presence_penalty=settings.presence_penalty,
        frequency_penalty=settings.frequency_penalty,
        repetition_penalty=settings.repetition_penalty,
        seed=settings.seed,
        max_tokens=settings.max_tokens,
        min_tokens=settings.min_tokens,
        stop_token_ids=settings.stop_token_ids,
        ignore_eos=settings.ignore_eos,
        logit_bias=dict(settings.logit_bias),
        allowed_token_ids=settings.allowed_token_ids,
        bad_words=[common_pb2.TokenSequence(token_ids=ids) for ids in settings.bad_words],
        logprobs=settings.logprobs,
        prompt_logprobs=settings.prompt_logprobs,
        grammar=None if settings.grammar is None else _grammar(settings.grammar),
    )


def _grammar(grammar: Grammar) -> common_pb2.Grammar:
    return common_pb2.Grammar(kind=_GRAMMAR_KINDS[grammar.kind], text=grammar.text)


def token_delta(output: worker_pb2.RequestOutput) -> TokenDelta:
    return TokenDelta(
        list(output.token_ids),
        _FINISH_REASONS.get(output.finish_reason),
        [_logprobs(entry) for entry in output.logprobs] or None,
        [_logprobs(entry) for entry in output.prompt_logprobs] or None,
        _timing(output.timing) if output.HasField("timing") else None,
    )


def _logprobs(entry: common_pb2.TokenLogprobs) -> TokenLogprobs:
    top = list(zip(entry.top_ids, entry.top_logprobs, strict=True))
    return TokenLogprobs(entry.token_id, entry.logprob, entry.rank, top)


def _timing(timing: worker_pb2.Timing) -> Timing:
    return Timing(
        num_cached_tokens=timing.num_cached_tokens,
        queue_s=timing.queue_s,
        prefill_s=timing.prefill_s,
        decode_s=timing.decode_s,
        num_preemptions=timing.num_preemptions,
    )
