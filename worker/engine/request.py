"""One request inside the engine: what was asked, how far it has come, and what a step brought for
it.

`NewRequest` comes in from any thread, `Request` lives in the engine thread, `RequestOutput` goes
out again. Nothing here knows the wire; `owner` and `handle` are opaque names that the caller gave.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from protos.block_hash import BlockHash
from worker.engine.drafting import Drafting
from worker.engine.sampling_params import SamplingParams
from worker.engine.step import TokenLogprobs

FinishReason = Literal["stop", "length", "abort", "error"]

NO_SLOT = -1


class ErrorCode(IntEnum):
    """The numbers of google.rpc.Code, which gRPC's status codes share."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    RESOURCE_EXHAUSTED = 8
    INTERNAL = 13
    UNAVAILABLE = 14


class Status(IntEnum):
    WAITING = 0  # new or preempted: no slot, no blocks
    RUNNING = 1
    FINISHED = 2


@dataclass(frozen=True, slots=True)
class RequestError:
    code: ErrorCode
    message: str
    field: str = ""  # the offending parameter, where there is one
    retry_after_s: float = 0.0  # 0: no advice


@dataclass(frozen=True, slots=True)
class NewRequest:
    """A submit as it enters the engine, not yet validated. Immutable: it crosses threads."""

    owner: Hashable
    handle: int  # unique among the owner's live requests
    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    emitted_token_ids: list[int]  # generated before, elsewhere; they count as output
    arrival_s: float  # on the engine's clock
    deadline_s: float | None = None  # on the engine's clock
    priority: int = 0  # lower is earlier
    tenant: str = ""
    cache_salt: str = ""
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class RequestTiming:
    num_cached_tokens: int  # prompt tokens found in the prefix cache
    queue_s: float  # arrival to first scheduled
    prefill_s: float  # first scheduled to first token
    decode_s: float  # first token to last
    num_preemptions: int


@dataclass(slots=True)
class RequestOutput:
    """What one step brought for one request.

    Treated as immutable, but not frozen: one is made per token, and a frozen dataclass takes three
    times as long to build.
    """

    owner: Hashable
    handle: int
    request_id: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None  # the token that ended it; it is also in token_ids
    logprobs: list[TokenLogprobs] | None = None  # one a token where asked for
    prompt_logprobs: list[TokenLogprobs] | None = None  # once, positions 1 .. prompt length - 1
    timing: RequestTiming | None = None  # with the first token and with the end
    error: RequestError | None = None  # with finish_reason "error"


class Request:
    """A live request. Owned by the engine thread.

    Invariant: `num_computed_tokens` < `num_tokens` between steps; catching up is all a request ever
    does, be it prefill, a chunk, decode or the recomputation after a preemption.
    """

    __slots__ = (
        "arrival_s",
        "backlog_tokens",
        "block_hashes",
        "block_ids",
        "capacity",
        "deadline_s",
        "drafting",
        "first_scheduled_s",
        "first_token_s",
        "handle",
        "is_self_contained",
        "max_total_tokens",
        "min_total_tokens",
        "new_block_ids",
        "next_cache_at",
        "num_blocks_cached",
        "num_bypassed",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_found_blocks",
        "num_hit_tokens",
        "num_preemptions",
        "num_prompt_tokens",
        "order",
        "owner",
        "parent_hash",
        "priority",
        "prompt_logprobs",
        "released_at",
        "request_id",
        "reserved_block_ids",
        "sampling",
        "slot",
        "status",
        "stop_token_ids",
        "tenant",
        "token_ids",
        "waits_for",
    )

    def __init__(
        self, new: NewRequest, max_total_tokens: int, sequence: int, parent_hash: BlockHash
    ) -> None:
        self.owner = new.owner
        self.handle = new.handle
        self.request_id = new.request_id
        self.sampling = new.sampling
        self.is_self_contained = new.sampling.is_self_contained
        self.priority = new.priority
        self.tenant = new.tenant
        self.arrival_s = new.arrival_s
        self.deadline_s = new.deadline_s
        self.order = (new.priority, sequence)  # place in the queue, kept over preemptions

        self.token_ids = [*new.prompt_token_ids, *new.emitted_token_ids]  # grows by each new token
        self.num_prompt_tokens = len(new.prompt_token_ids)
        self.num_computed_tokens = 0  # those whose keys and values are in the cache
        self.max_total_tokens = max_total_tokens
        # A stop id counts from the token after this many on (min_tokens masks it before).
        # Where a grammar has ended nothing but a stop id can follow, however few tokens it took.
        is_constrained = new.sampling.grammar is not None
        min_tokens = 0 if is_constrained else new.sampling.min_tokens
        self.min_total_tokens = self.num_prompt_tokens + min_tokens
        self.stop_token_ids = frozenset(new.sampling.stop_token_ids)

        self.status = Status.WAITING
        self.slot = NO_SLOT
        # By place in the sequence, at each place one block of each group: see KVCacheManager.
        self.block_ids: list[int] = []
        self.new_block_ids: list[int] = []  # the last of them, not yet in a plan; never changed
        self.reserved_block_ids: list[int] = []  # its own, for places still to come
        # Computed tokens when it last gave back what nothing sees any more: ids there mean nothing.
        self.released_at = 0
        self.capacity = 0  # tokens that block_ids can hold
        self.parent_hash = parent_hash  # root of the hash chain: the cache salt
        self.block_hashes: list[BlockHash] = []  # of full blocks, as far as needed
        self.num_found_blocks = 0  # places that the prefix cache had at its admission
        self.num_blocks_cached = 0  # leading blocks offered to the prefix cache
        self.next_cache_at = 0  # computed tokens at which the next block is full
        self.waits_for: BlockHash | None = None  # block that another request computes
        self.drafting: Drafting | None = None  # the Speculator's; None: not yet

        self.num_hit_tokens = 0  # latest estimate of what the prefix cache holds
        self.backlog_tokens = 0  # what the waiting queue counted for it
        self.num_bypassed = 0  # steps in which it found no blocks while others might pass
        self.num_cached_tokens = 0  # prompt tokens found at its first admission
        self.num_preemptions = 0
        self.prompt_logprobs: list[TokenLogprobs] = []
        self.first_scheduled_s: float | None = None
        self.first_token_s: float | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def num_wanted_prompt_logprobs(self) -> int:
        """Prompt positions whose log-probabilities are still to come."""
        if self.sampling.prompt_logprobs is None:
            return 0
        return max(self.num_prompt_tokens - 1 - len(self.prompt_logprobs), 0)

    def take(self, token_ids: list[int]) -> tuple[list[int], FinishReason | None]:
        """Appends sampled tokens, up to the first that ends the request; returns what it took."""
        known = self.token_ids
        for count, token_id in enumerate(token_ids, start=1):
            known.append(token_id)
            num_tokens = len(known)
            if token_id in self.stop_token_ids and num_tokens > self.min_total_tokens:
                return token_ids[:count], "stop"
            if num_tokens >= self.max_total_tokens:
                return token_ids[:count], "length"
        return token_ids, None

    def finish_reason(self) -> FinishReason | None:
        """Why what was emitted elsewhere is all of it; None while there is more to come."""
        num_tokens = len(self.token_ids)
        if (
            self.token_ids[-1] in self.stop_token_ids
            and num_tokens > self.min_total_tokens
            and num_tokens > self.num_prompt_tokens
        ):
            return "stop"
        return "length" if num_tokens >= self.max_total_tokens else None

    def timing(self, now_s: float) -> RequestTiming:
        scheduled_s = now_s if self.first_scheduled_s is None else self.first_scheduled_s
        first_token_s = now_s if self.first_token_s is None else self.first_token_s
        return RequestTiming(
            num_cached_tokens=self.num_cached_tokens,
            queue_s=max(scheduled_s - self.arrival_s, 0.0),
            prefill_s=max(first_token_s - scheduled_s, 0.0),
            decode_s=max(now_s - first_token_s, 0.0),
            num_preemptions=self.num_preemptions,
        )

    def output(
        self,
        token_ids: list[int],
        finish_reason: FinishReason | None = None,
        error: RequestError | None = None,
        timing: RequestTiming | None = None,
    ) -> RequestOutput:
        return RequestOutput(
            self.owner,
            self.handle,
            self.request_id,
            token_ids,
            finish_reason,
            error=error,
            timing=timing,
        )
