"""Protocol messages to the worker's own data and back: one declared function per message.

The only place of the worker besides the gRPC shells that knows protobuf. No I/O, no validation of
values: the engine does that, so that it holds for every caller.
"""

from collections.abc import Hashable, Iterable

from protos import common_pb2, scheduler_pb2, worker_pb2
from protos.block_hash import pack
from worker.engine.request import NewRequest, RequestError, RequestOutput, RequestTiming
from worker.engine.sampling_params import Grammar, SamplingParams
from worker.engine.step import TokenLogprobs
from worker.identity import ModelIdentity, ReplicaIdentity
from worker.report import EngineCounters, ReplicaLoad, ReplicaReport

_FINISH_REASONS = {
    None: common_pb2.FINISH_REASON_UNSPECIFIED,
    "stop": common_pb2.FINISH_REASON_STOP,
    "length": common_pb2.FINISH_REASON_LENGTH,
    "abort": common_pb2.FINISH_REASON_ABORT,
    "error": common_pb2.FINISH_REASON_ERROR,
}

# --- what comes in --------------------------------------------------------------------------------


def new_request(
    message: worker_pb2.Submit,
    owner: Hashable,
    now_s: float,
    max_model_len: int,
    eos_token_ids: tuple[int, ...],
) -> NewRequest:
    """`now_s` is on the engine's clock; a time-out on the wire becomes a deadline on it."""
    deadline_s = now_s + message.timeout_s if message.HasField("timeout_s") else None
    return NewRequest(
        owner=owner,
        handle=message.handle,
        request_id=message.request_id,
        prompt_token_ids=list(message.prompt_token_ids),
        sampling=sampling_params(message.sampling, max_model_len, eos_token_ids),
        emitted_token_ids=list(message.emitted_token_ids),
        arrival_s=now_s,
        deadline_s=deadline_s,
        priority=message.priority,
        tenant=message.tenant,
        cache_salt=message.cache_salt,
        traceparent=message.traceparent,
    )


def sampling_params(
    message: common_pb2.SamplingParams, max_model_len: int, eos_token_ids: tuple[int, ...]
) -> SamplingParams:
    """Absent fields get the sampler's neutral values. Without `ignore_eos` the model's own
    end-of-sequence ids stop as well.
    """
    stop_token_ids = tuple(message.stop_token_ids)
    # A grammar needs a way to end.
    if not message.ignore_eos or message.HasField("grammar"):
        stop_token_ids = tuple(dict.fromkeys((*eos_token_ids, *stop_token_ids)))
    return SamplingParams(
        max_tokens=message.max_tokens if message.HasField("max_tokens") else max_model_len,
        temperature=message.temperature if message.HasField("temperature") else 1.0,
        top_p=message.top_p if message.HasField("top_p") else 1.0,
        top_k=max(message.top_k, 0) if message.top_k >= -1 else message.top_k,
        min_p=message.min_p,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        repetition_penalty=(
            message.repetition_penalty if message.HasField("repetition_penalty") else 1.0
        ),
        seed=message.seed,
        min_tokens=message.min_tokens,
        stop_token_ids=stop_token_ids,
        logit_bias=tuple(sorted(message.logit_bias.items())),
        allowed_token_ids=tuple(message.allowed_token_ids),
        bad_words=tuple(tuple(word.token_ids) for word in message.bad_words),
        logprobs=message.logprobs if message.HasField("logprobs") else None,
        prompt_logprobs=message.prompt_logprobs if message.HasField("prompt_logprobs") else None,
        grammar=grammar(message.grammar) if message.HasField("grammar") else None,
    )


def grammar(message: common_pb2.Grammar) -> Grammar:
    match message.kind:
        case common_pb2.Grammar.KIND_JSON_SCHEMA:
            return Grammar("json_schema", message.text)
        case common_pb2.Grammar.KIND_REGEX:
            return Grammar("regex", message.text)
        case common_pb2.Grammar.KIND_LARK:
            return Grammar("lark", message.text)
    return Grammar("unknown", message.text)


# --- what goes out --------------------------------------------------------------------------------


def step_event(step: int, outputs: Iterable[RequestOutput]) -> worker_pb2.WorkerEvent:
    """One gateway's outputs of one step, or of several up to `step`, oldest first; a plain token
    takes two array elements.

    Readers take the arrays before the other outputs. So a token behind an output of the other kind
    goes with those, where order is kept.
    """
    handles: list[int] = []
    token_ids: list[int] = []
    others: list[worker_pb2.RequestOutput] = []
    begun: set[int] = set()  # handles among the others
    for output in outputs:
        # A timing comes with the first token and with every end, so its absence says: neither.
        is_plain = output.timing is None and output.logprobs is None
        if is_plain and output.finish_reason is None and output.handle not in begun:
            handles += [output.handle] * len(output.token_ids)
            token_ids += output.token_ids
        else:
            others.append(request_output(output))
            begun.add(output.handle)
    event = worker_pb2.WorkerEvent()
    message = event.step  # filled in place: given to the constructor it would be copied
    message.step = step
    message.handles.extend(handles)
    message.token_ids.extend(token_ids)
    message.outputs.extend(others)
    return event


def request_output(output: RequestOutput) -> worker_pb2.RequestOutput:
    return worker_pb2.RequestOutput(
        handle=output.handle,
        token_ids=output.token_ids,
        finish_reason=_FINISH_REASONS[output.finish_reason],
        logprobs=map(token_logprobs, output.logprobs or ()),
        prompt_logprobs=map(token_logprobs, output.prompt_logprobs or ()),
        timing=None if output.timing is None else timing(output.timing),
        error=None if output.error is None else request_error(output.error),
    )


def token_logprobs(logprobs: TokenLogprobs) -> common_pb2.TokenLogprobs:
    return common_pb2.TokenLogprobs(
        token_id=logprobs.token_id,
        logprob=logprobs.logprob,
        rank=logprobs.rank,
        top_ids=logprobs.top_ids,
        top_logprobs=logprobs.top_logprobs,
    )


def timing(value: RequestTiming) -> worker_pb2.Timing:
    return worker_pb2.Timing(
        num_cached_tokens=value.num_cached_tokens,
        queue_s=value.queue_s,
        prefill_s=value.prefill_s,
        decode_s=value.decode_s,
        num_preemptions=value.num_preemptions,
    )


def request_error(error: RequestError) -> common_pb2.Error:
    return common_pb2.Error(
        code=int(error.code),
        message=error.message,
        field=error.field,
        retry_after_s=error.retry_after_s,
    )


def heartbeat(load: ReplicaLoad, is_draining: bool) -> worker_pb2.Heartbeat:
    return worker_pb2.Heartbeat(
        steps=load.steps,
        num_running=load.num_running,
        num_waiting=load.num_waiting,
        draining=is_draining,
    )


def worker_info(identity: ReplicaIdentity, load: ReplicaLoad) -> worker_pb2.WorkerInfo:
    return worker_pb2.WorkerInfo(
        replica_id=identity.replica_id,
        epoch=identity.epoch,
        version=identity.version,
        model=model_card(identity.model),
        tp_size=identity.tp_size,
        device=identity.device,
        dtype=identity.dtype,
        num_blocks=load.num_blocks,
        num_free_blocks=load.num_free_blocks,
        steps=load.steps,
        num_running=load.num_running,
        num_waiting=load.num_waiting,
    )


def model_card(model: ModelIdentity) -> common_pb2.ModelCard:
    return common_pb2.ModelCard(
        deployment=model.deployment,
        served_names=model.served_names,
        root=model.root,
        digest=model.digest,
        max_model_len=model.max_model_len,
        block_size=model.block_size,
        vocab_size=model.vocab_size,
        eos_token_ids=model.eos_token_ids,
        created_unix_s=model.created_unix_s,
        max_logprobs=model.max_logprobs,
    )


def replica_report(report: ReplicaReport) -> scheduler_pb2.ReplicaReport:
    return scheduler_pb2.ReplicaReport(
        replica_id=report.replica_id,
        epoch=report.epoch,
        sequence=report.sequence,
        full=report.full,
        load=replica_load(report.load),
        stored_blocks=pack(report.stored_blocks),
        removed_blocks=pack(report.removed_blocks),
        admitted_request_ids=report.admitted_request_ids,
        draining=report.draining,
        counters=engine_counters(report.counters),
    )


def replica_load(load: ReplicaLoad) -> scheduler_pb2.ReplicaLoad:
    return scheduler_pb2.ReplicaLoad(
        num_running=load.num_running,
        num_waiting=load.num_waiting,
        backlog_tokens=load.backlog_tokens,
        num_blocks=load.num_blocks,
        num_free_blocks=load.num_free_blocks,
        steps=load.steps,
        max_num_seqs=load.max_num_seqs,
    )


def engine_counters(counters: EngineCounters) -> scheduler_pb2.EngineCounters:
    return scheduler_pb2.EngineCounters(
        prompt_tokens=counters.prompt_tokens,
        generation_tokens=counters.generation_tokens,
        prefix_cache_queries=counters.prefix_cache_queries,
        prefix_cache_hits=counters.prefix_cache_hits,
        preemptions=counters.preemptions,
        finished_stop=counters.finished_stop,
        finished_length=counters.finished_length,
        finished_abort=counters.finished_abort,
        finished_error=counters.finished_error,
        step_seconds=counters.step_seconds,
        drafts=counters.drafts,
        draft_tokens=counters.draft_tokens,
        accepted_tokens=counters.accepted_tokens,
        accepted_by_position=counters.accepted_by_position,
        step_tokens=counters.step_tokens,
        steps_by_tokens=counters.steps_by_tokens,
    )
