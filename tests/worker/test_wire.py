"""Each conversion carries every field: the messages' own descriptors are the check list."""

from dataclasses import fields
from typing import Any

import pytest
from google.protobuf.message import Message

from protos import common_pb2, scheduler_pb2, worker_pb2
from protos.block_hash import BlockHash
from worker import wire
from worker.engine.request import ErrorCode, RequestError, RequestOutput, RequestTiming
from worker.engine.sampling_params import Grammar, SamplingParams
from worker.engine.step import TokenLogprobs
from worker.identity import ModelIdentity, ReplicaIdentity
from worker.report import EngineCounters, ReplicaLoad, ReplicaReport

LOAD = ReplicaLoad(1, 2, 3, 4, 5, 6, 7)
COUNTERS = EngineCounters(1, 2, 3, 4, 5, 6, 7, 8, 9, 10.5, 11, (1, 2), 12, 13, 14, (9, 5))
MODEL = ModelIdentity("m", ("m", "n"), "/m", "d1", 512, 16, 1000, (2, 3), 77, 20)
IDENTITY = ReplicaIdentity("m-0", 3, MODEL, "0.1", 2, "cpu", "float32")
LOGPROBS = TokenLogprobs(5, -0.5, 1, [5, 6], [-0.5, -1.5])
TIMING = RequestTiming(4, 0.5, 1.5, 2.5, 1)
ERROR = RequestError(ErrorCode.UNAVAILABLE, "gone", "prompt", 2.0)


def all_sampling() -> common_pb2.SamplingParams:
    message = common_pb2.SamplingParams(
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        repetition_penalty=1.1,
        seed=-(2**62),
        max_tokens=99,
        min_tokens=3,
        stop_token_ids=[8, 9],
        ignore_eos=True,
        allowed_token_ids=[1, 2],
        bad_words=[common_pb2.TokenSequence(token_ids=[4, 5])],
        logprobs=0,
        prompt_logprobs=2,
        grammar=common_pb2.Grammar(kind=common_pb2.Grammar.KIND_REGEX, text="a+"),
    )
    message.logit_bias[6] = 1.5
    return message


def unset_fields(message: Message) -> set[str]:
    """Names of fields that were left at nothing."""

    def is_unset(field: Any) -> bool:
        if field.is_repeated:
            return not getattr(message, field.name)
        if field.has_presence:
            return not message.HasField(field.name)
        return getattr(message, field.name) == field.default_value

    return {field.name for field in message.DESCRIPTOR.fields if is_unset(field)}


MESSAGES: list[tuple[Message, set[str]]] = [
    (wire.replica_load(LOAD), set()),
    (wire.engine_counters(COUNTERS), set()),
    (wire.model_card(MODEL), set()),
    (wire.worker_info(IDENTITY, LOAD), set()),
    (wire.heartbeat(LOAD, True), set()),
    (wire.token_logprobs(LOGPROBS), set()),
    (wire.timing(TIMING), set()),
    (wire.request_error(ERROR), set()),
    (
        wire.request_output(
            RequestOutput("o", 3, "r", [1], "error", None, [LOGPROBS], [LOGPROBS], TIMING, ERROR)
        ),
        set(),
    ),
    (
        wire.replica_report(
            ReplicaReport(
                "m-0",
                3,
                9,
                True,
                LOAD,
                [BlockHash(b"a" * 16)],
                [BlockHash(b"b" * 16)],
                ["r1"],
                True,
                COUNTERS,
            )
        ),
        set(),
    ),
]


@pytest.mark.parametrize(
    ("message", "left_out"), MESSAGES, ids=lambda value: getattr(type(value), "__name__", "")
)
def test_every_field_of_an_outgoing_message_is_filled(message: Message, left_out: set[str]) -> None:
    assert unset_fields(message) == left_out


def test_fields_with_one_name_carry_one_value() -> None:
    pairs: list[tuple[Any, Message]] = [
        (LOAD, wire.replica_load(LOAD)),
        (COUNTERS, wire.engine_counters(COUNTERS)),
        (TIMING, wire.timing(TIMING)),
        (ERROR, wire.request_error(ERROR)),
        (LOGPROBS, wire.token_logprobs(LOGPROBS)),
        (MODEL, wire.model_card(MODEL)),
    ]
    for value, message in pairs:
        names = {field.name for field in fields(value)}
        assert names == {field.name for field in message.DESCRIPTOR.fields}
        for name in names:
            sent, got = getattr(value, name), getattr(message, name)
            assert list(got) == list(sent) if isinstance(sent, (list, tuple)) else got == sent


def test_every_sampling_field_reaches_the_sampler() -> None:
    message = all_sampling()
    assert unset_fields(message) == set()
    expected = SamplingParams(
        max_tokens=99,
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        repetition_penalty=1.1,
        seed=-(2**62),
        min_tokens=3,
        stop_token_ids=(2, 3, 8, 9),  # a grammar must be able to end, so ignore_eos gives way
        logit_bias=((6, 1.5),),
        allowed_token_ids=(1, 2),
        bad_words=((4, 5),),
        logprobs=0,
        prompt_logprobs=2,
        grammar=Grammar("regex", "a+"),
    )
    assert wire.sampling_params(message, 512, (2, 3)) == expected
    neutral = SamplingParams(max_tokens=512)
    names = {field.name for field in fields(SamplingParams)}
    assert all(getattr(expected, name) != getattr(neutral, name) for name in names)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (common_pb2.Grammar.KIND_JSON_SCHEMA, "json_schema"),
        (common_pb2.Grammar.KIND_REGEX, "regex"),
        (common_pb2.Grammar.KIND_LARK, "lark"),
        (common_pb2.Grammar.KIND_UNSPECIFIED, "unknown"),
    ],
)
def test_grammars_keep_their_kind(kind: common_pb2.Grammar.Kind.ValueType, wanted: str) -> None:
    found = wire.grammar(common_pb2.Grammar(kind=kind, text="a"))
    assert (found.kind, found.text) == (wanted, "a")


def test_absent_sampling_fields_are_neutral() -> None:
    sampling = wire.sampling_params(common_pb2.SamplingParams(), 512, ())
    assert sampling == SamplingParams(max_tokens=512)


@pytest.mark.parametrize(
    ("message", "stop_token_ids"),
    [
        (common_pb2.SamplingParams(), (2, 3)),
        (common_pb2.SamplingParams(stop_token_ids=[9, 3]), (2, 3, 9)),
        (common_pb2.SamplingParams(stop_token_ids=[9], ignore_eos=True), (9,)),
    ],
)
def test_end_of_sequence_ids_stop_unless_ignored(
    message: common_pb2.SamplingParams, stop_token_ids: tuple[int, ...]
) -> None:
    assert wire.sampling_params(message, 512, (2, 3)).stop_token_ids == stop_token_ids


def test_top_k_of_minus_one_means_all_and_other_negatives_stay_wrong() -> None:
    def top_k(value: int) -> int:
        return wire.sampling_params(common_pb2.SamplingParams(top_k=value), 512, ()).top_k

    assert (top_k(-1), top_k(0), top_k(4), top_k(-2)) == (0, 0, 4, -2)


def test_every_submit_field_reaches_the_engine() -> None:
    submit = worker_pb2.Submit(
        handle=5,
        request_id="r5",
        prompt_token_ids=[1, 2],
        emitted_token_ids=[3],
        sampling=all_sampling(),
        timeout_s=2.5,
        priority=-4,
        tenant="t",
        cache_salt="s",
        traceparent="00-1-2-01",
    )
    assert unset_fields(submit) == set()
    new = wire.new_request(submit, "stream", 100.0, 512, ())
    assert (new.owner, new.handle, new.request_id) == ("stream", 5, "r5")
    assert (new.prompt_token_ids, new.emitted_token_ids) == ([1, 2], [3])
    assert (new.arrival_s, new.deadline_s, new.priority) == (100.0, 102.5, -4)
    assert (new.tenant, new.cache_salt, new.traceparent) == ("t", "s", "00-1-2-01")
    assert new.sampling.max_tokens == 99
    without_timeout = worker_pb2.Submit(handle=5)
    assert wire.new_request(without_timeout, "stream", 100.0, 512, ()).deadline_s is None


def test_plain_tokens_travel_as_two_arrays_and_the_rest_as_outputs() -> None:
    outputs = [
        RequestOutput("o", 1, "r1", [11]),
        RequestOutput("o", 2, "r2", [12], "stop", 12, timing=TIMING),
        RequestOutput("o", 3, "r3", [13], logprobs=[LOGPROBS]),
        RequestOutput("o", 4, "r4", [14]),
        RequestOutput("o", 5, "r5", [], "error", error=ERROR),
        RequestOutput("o", 6, "r6", [16], timing=TIMING),
    ]
    message = wire.step_event(8, outputs).step
    assert message.step == 8
    assert list(message.handles) == [1, 4] and list(message.token_ids) == [11, 14]
    assert [output.handle for output in message.outputs] == [2, 3, 5, 6]
    assert message.outputs[0].finish_reason == common_pb2.FINISH_REASON_STOP
    assert message.outputs[2].error.code == 14
    assert message.outputs[3].finish_reason == common_pb2.FINISH_REASON_UNSPECIFIED


def test_tokens_of_several_steps_keep_their_order_within_each_request() -> None:
    outputs = [
        RequestOutput("o", 1, "r1", [11]),
        RequestOutput("o", 2, "r2", [21], timing=TIMING),  # its first
        RequestOutput("o", 1, "r1", [12, 13]),
        RequestOutput("o", 2, "r2", [22]),
        RequestOutput("o", 1, "r1", [14], "length", timing=TIMING),
        RequestOutput("o", 2, "r2", [23]),
    ]
    message = wire.step_event(9, outputs).step
    read = list(zip(message.handles, message.token_ids, strict=True))
    read += [(output.handle, id_) for output in message.outputs for id_ in output.token_ids]
    assert [id_ for handle, id_ in read if handle == 1] == [11, 12, 13, 14]
    assert [id_ for handle, id_ in read if handle == 2] == [21, 22, 23]


def test_report_hashes_are_packed() -> None:
    report = ReplicaReport("m-0", 1, 2, False, LOAD, [BlockHash(b"a" * 16), BlockHash(b"c" * 16)])
    message: scheduler_pb2.ReplicaReport = wire.replica_report(report)
    assert message.stored_blocks == b"a" * 16 + b"c" * 16
    assert (message.sequence, message.full) == (2, False)
